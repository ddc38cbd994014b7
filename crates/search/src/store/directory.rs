//! Where the lexical index keeps its files, bound into the store's commits.
//!
//! tantivy commits by replacing one small file, `meta.json`. Here that write
//! becomes the replacement of the store's manifest, with tantivy's part and the
//! list of vector segments in it: one commit or none. All other files of tantivy
//! are sealed (see [`super::seal`]), so that damage is noticed by whoever reads.
//! The list of files that tantivy keeps to clean up, `.managed.json`, is not
//! stored: what lies in the folder is that list.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyfold_core::atomic;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr,
};

use super::manifest::Manifest;
use super::seal::{SealWriter, Sealed};
use super::{CODEBOOKS, LEXICAL, SEGMENTS};
use crate::error::SearchError;

const META: &str = "meta.json";
const MANAGED: &str = ".managed.json";

/// The folder of the lexical index of a store.
#[derive(Clone)]
pub(crate) struct StoreDirectory {
    store: Arc<Path>,
    files: MmapDirectory,
    commits: Commits,
}

/// What this directory does with commits.
#[derive(Clone)]
enum Commits {
    /// A reader sees one commit for ever.
    Fixed(Arc<Manifest>),
    /// A writer makes the next one.
    Made(SharedPending),
}

/// What the writer and its directory share.
#[derive(Clone)]
pub(crate) struct SharedPending(Arc<Mutex<Pending>>);

impl SharedPending {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pending> {
        // A panic elsewhere leaves no half-made state: every change is whole
        // before it is committed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last commit and what the next one will hold.
pub(crate) struct Pending {
    /// The last commit; none before the first.
    pub(crate) committed: Option<Manifest>,
    /// The next commit; its generation and lexical part are filled in when it is made.
    pub(crate) next: Manifest,
}

impl StoreDirectory {
    /// For a reader of one commit.
    pub(crate) fn reader(store: &Path, manifest: Arc<Manifest>) -> Result<Self, SearchError> {
        Self::new(store, Commits::Fixed(manifest))
    }

    /// For the one writer. `committed` is the last commit, if there is one;
    /// `next` is what the first commit shall hold.
    pub(crate) fn writer(
        store: &Path,
        committed: Option<Manifest>,
        next: Manifest,
    ) -> Result<(Self, SharedPending), SearchError> {
        let pending = SharedPending(Arc::new(Mutex::new(Pending { committed, next })));
        let directory = Self::new(store, Commits::Made(pending.clone()))?;
        Ok((directory, pending))
    }

    fn new(store: &Path, commits: Commits) -> Result<Self, SearchError> {
        Ok(Self {
            store: store.into(),
            files: open_folder(&store.join(LEXICAL))?,
            commits,
        })
    }

    /// Commits the next state with the lexical part of the last commit.
    pub(crate) fn publish(&self) -> io::Result<()> {
        self.sync_directory()?;
        self.commit(None)
    }

    fn commit(&self, lexical: Option<&[u8]>) -> io::Result<()> {
        let Commits::Made(pending) = &self.commits else {
            return Err(io::Error::other("a reader of the store tried to commit"));
        };
        let mut pending = pending.lock();
        let mut manifest = pending.next.clone();
        if let Some(last) = &pending.committed {
            manifest.generation = last.generation;
            manifest.lexical.clone_from(&last.lexical);
        }
        manifest.generation += 1;
        if let Some(meta) = lexical {
            manifest.lexical = String::from_utf8(meta.to_vec()).map_err(io::Error::other)?;
        }
        manifest.write(&self.store)?;
        pending.committed = Some(manifest);
        Ok(())
    }

    /// The lexical part of the commit that this directory stands on.
    fn meta(&self) -> Option<Vec<u8>> {
        let meta = match &self.commits {
            Commits::Fixed(manifest) => manifest.lexical.clone(),
            Commits::Made(pending) => pending.lock().committed.as_ref()?.lexical.clone(),
        };
        Some(meta.into_bytes())
    }

    /// The names of the files that lie in the folder, as tantivy's own list has them.
    fn managed(&self) -> io::Result<Vec<u8>> {
        let mut names = HashSet::new();
        if let Commits::Made(_) = self.commits {
            for entry in std::fs::read_dir(self.store.join(LEXICAL))? {
                names.insert(PathBuf::from(entry?.file_name()));
            }
        }
        Ok(serde_json::to_vec(&names)?)
    }
}

/// Opens a folder whose files are mapped into memory.
pub(crate) fn open_folder(folder: &Path) -> Result<MmapDirectory, SearchError> {
    MmapDirectory::open(folder).map_err(|e| match e {
        tantivy::directory::error::OpenDirectoryError::DoesNotExist(_) => SearchError::Damaged {
            path: folder.to_owned(),
            what: "the folder is missing".to_owned(),
        },
        e => SearchError::read(folder, io::Error::other(e)),
    })
}

impl fmt::Debug for StoreDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreDirectory({})", self.store.display())
    }
}

impl Directory for StoreDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let bytes = self.files.open_read(path)?.read_bytes();
        let full = self.store.join(LEXICAL).join(path);
        let sealed = bytes.and_then(|bytes| Sealed::open(full, bytes));
        match sealed {
            Ok(file) => Ok(Arc::new(file)),
            Err(e) => Err(OpenReadError::wrap_io_error(e, path.to_owned())),
        }
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.files.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        match path.to_str() {
            Some(META) => Ok(self.meta().is_some()),
            Some(MANAGED) => Ok(true),
            _ => self.files.exists(path),
        }
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let sealed = SealWriter::new(self.files.open_write(path)?);
        Ok(BufWriter::new(Box::new(sealed)))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let missing = || OpenReadError::FileDoesNotExist(path.to_owned());
        match path.to_str() {
            Some(META) => self.meta().ok_or_else(missing),
            Some(MANAGED) => self
                .managed()
                .map_err(|e| OpenReadError::wrap_io_error(e, path.to_owned())),
            _ => Err(missing()),
        }
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        match path.to_str() {
            Some(META) => self.commit(Some(data)),
            Some(MANAGED) => Ok(()),
            _ => Err(io::Error::other(format!(
                "the lexical index wrote an unknown file {}",
                path.display()
            ))),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        for folder in [LEXICAL, SEGMENTS, CODEBOOKS] {
            atomic::sync_folder(&self.store.join(folder))?;
        }
        Ok(())
    }

    /// The store has one lock for its one writer, and its readers need none:
    /// they try again where a file that they want to open is gone.
    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}
