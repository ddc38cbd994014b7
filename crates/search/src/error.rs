//! What can go wrong in a store, said so that a person knows where and what next.

use std::io;
use std::path::{Path, PathBuf};

use keyfold_core::EncodeError;
use tantivy::TantivyError;
use tantivy::directory::error::{OpenReadError, OpenWriteError};

use crate::codebook::{Bits, CodebookError};

/// How models of binary codes compare texts, for [`SearchError::OtherComparison`].
pub(crate) const BINARY: &str = "binary codes of whole passages, each with each";

/// Why a store could not be opened, searched or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// Nothing was indexed there yet.
    #[error("there is no store at {store}: make one with 'keyfold index'")]
    NoStore {
        /// The folder of the store.
        store: PathBuf,
    },
    /// The folder holds something else.
    #[error(
        "{store} is not a Keyfold store (it holds {found}), and nothing in it was touched: \
         name an empty or new folder with --store"
    )]
    NotAStore {
        /// The folder that was named.
        store: PathBuf,
        /// One of the things that it holds.
        found: String,
    },
    /// Another process writes to the store.
    #[error(
        "the store {store} is being written by {}: wait for it, or stop it (what it has done is kept)",
        .holder.map_or("another process".to_owned(), |id| format!("process {id}"))
    )]
    Busy {
        /// The folder of the store.
        store: PathBuf,
        /// The process that holds the lock, if it said so.
        holder: Option<u32>,
    },
    /// The store has another format.
    #[error(
        "the store {store} has format {found}, this program reads format {expected}: \
         index again with 'keyfold index --rebuild', or use the program that wrote it"
    )]
    Version {
        /// The folder of the store.
        store: PathBuf,
        /// The format that it has.
        found: u32,
        /// The format that this program reads.
        expected: u32,
    },
    /// The vectors of the store are those of a model with the same name whose
    /// weights, tokenizer or configuration were others.
    #[error(
        "the store {store} was made with other weights of model '{name}' than those of today, and \
         their vectors do not compare: index again with 'keyfold index --rebuild'"
    )]
    OtherWeights {
        /// The folder of the store.
        store: PathBuf,
        /// The model.
        name: String,
    },
    /// The vectors of the store are those of another model.
    #[error(
        "the store {store} was made with model '{stored}', not with '{given}', and their vectors \
         do not compare: name that model with --model, or index again with 'keyfold index --rebuild'"
    )]
    OtherEncoder {
        /// The folder of the store.
        store: PathBuf,
        /// The model of the store.
        stored: String,
        /// The model that was asked for.
        given: String,
    },
    /// The model's vectors have any length, which coding would lose.
    #[error(
        "the vectors of model '{model}' have any length, which {bits} bits do not keep: leave \
         --bits out, or give --bits 8"
    )]
    NeedsEightBits {
        /// The model.
        model: String,
        /// The bits that were asked for.
        bits: Bits,
    },
    /// One bit for vectors that it does not keep.
    #[error(
        "the vectors of model '{model}' are no binary codes, which --bits 1 is for: leave it out, \
         or give 2, 4 or 8"
    )]
    NotBinary {
        /// The model.
        model: String,
    },
    /// What was asked for does not go with how the store's model compares texts.
    #[error(
        "{what} does not go with model '{model}' of this store, which compares {how}: {instead}"
    )]
    OtherComparison {
        /// The option, as it is given on the command line.
        what: String,
        /// The model.
        model: String,
        /// How it compares texts.
        how: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// The store was made with another option.
    #[error(
        "the store {store} was made with {option} {stored}, not {given}: leave the option out, \
         or index again with 'keyfold index --rebuild {option} {given}'"
    )]
    OtherOption {
        /// The folder of the store.
        store: PathBuf,
        /// The option, as it is given on the command line.
        option: &'static str,
        /// Its value in the store.
        stored: String,
        /// Its value now.
        given: String,
    },
    /// The store would fold otherwise than the model learnt to be folded.
    #[error(
        "model '{model}' was trained to be folded with --fold {trained} --fold-queries, not with \
         --fold {given}: make the store with 'keyfold index PATH --model {model} --fold {trained} \
         --fold-queries', or as you say with --force"
    )]
    OtherFold {
        /// The model.
        model: String,
        /// How it was trained.
        trained: String,
        /// How the store would fold.
        given: String,
    },
    /// Lengths of rows that the store would not keep.
    #[error(
        "--raw-centroids needs a store of 8 bits, since {bits} bits give every vector the length \
         one: add --bits 8, or leave it out"
    )]
    RawCentroids {
        /// The bits of the store.
        bits: crate::codebook::Bits,
    },
    /// A file does not hold what was written to it.
    #[error(
        "{path} is damaged ({what}): 'keyfold check' lists all damaged files, \
         'keyfold index --rebuild' makes the store anew"
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error(
        "cannot write {path}: {source}; the store stays as it was at its last commit. {}",
        advice(.source)
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder to index could not be read.
    #[error("cannot index {path}: {source}; nothing was removed from the store")]
    Root {
        /// What was to be indexed.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lexical index failed.
    #[error("the lexical index of {store} failed: {source}")]
    Lexical {
        /// The folder of the store.
        store: PathBuf,
        /// What the index said.
        source: TantivyError,
    },
    /// The model failed on a text.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A glob or file type of the walk means nothing.
    #[error(transparent)]
    Walk(#[from] keyfold_data::FilterError),
    /// A filter is not a glob.
    #[error("'{glob}' is not a pattern for paths: {source}")]
    Glob {
        /// The pattern.
        glob: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// There is nothing to search for.
    #[error("the query is empty: say what you look for in words")]
    EmptyQuery,
    /// A search by meaning without a model.
    #[error(
        "searching by meaning needs model '{stored}', which made the store {store}: name it with --model, or search with --mode lexical"
    )]
    NoEncoder {
        /// The folder of the store.
        store: PathBuf,
        /// The model of the store.
        stored: String,
    },
    /// A search by encodings of fixed length in a store without them.
    #[error(
        "the passages of {segment} have no encodings of fixed length: make them with \
         'keyfold index PATH --fde', or search with --candidates auto"
    )]
    NoEncodings {
        /// The file of the passages.
        segment: PathBuf,
    },
    /// Encodings of fixed length could not be made.
    #[error("the encodings of {store} failed: {source}")]
    Encodings {
        /// The folder of the store.
        store: PathBuf,
        /// What the encoding said.
        source: crate::candidates::fde::CoderError,
    },
    /// What was asked of reranking cannot be done.
    #[error("cannot rerank: {what}")]
    Rerank {
        /// What is wrong and what to do.
        what: String,
    },
    /// The vectors could not be coded.
    #[error("the codebook of {store} failed: {source}")]
    Codebook {
        /// The folder of the store.
        store: PathBuf,
        /// What the codebook said.
        source: CodebookError,
    },
}

/// What to do when writing failed.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "Give yourself the right to write there, or name another place with --store"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "Make room, then run the command again: it goes on where it stopped"
        }
        _ => "Run the command again when the cause is gone: it goes on where it stopped",
    }
}

/// The inner error of an [`io::Error`] about bytes that are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged ({what})", path.display())]
pub(crate) struct Damage {
    pub(crate) path: PathBuf,
    pub(crate) what: String,
}

impl Damage {
    /// Wraps it for interfaces that want an [`io::Error`].
    pub(crate) fn error(path: &Path, what: impl Into<String>) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            Self {
                path: path.to_owned(),
                what: what.into(),
            },
        )
    }
}

impl SearchError {
    /// A failed read of `path`, which may turn out to be damage.
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::damage_in(&source).unwrap_or_else(|| Self::Read {
            path: path.to_owned(),
            source,
        })
    }

    /// A failed write of `path`.
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::damage_in(&source).unwrap_or_else(|| Self::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// What the lexical index said while it was read.
    pub(crate) fn lexical(store: &Path, source: TantivyError) -> Self {
        Self::from_lexical(store, source, Self::read)
    }

    /// What the lexical index said while it was written.
    pub(crate) fn lexical_write(store: &Path, source: TantivyError) -> Self {
        Self::from_lexical(store, source, Self::write)
    }

    /// Tells errors of the lexical index apart by their cause: damage, the
    /// system, or else.
    fn from_lexical(
        store: &Path,
        source: TantivyError,
        of_system: fn(&Path, io::Error) -> Self,
    ) -> Self {
        let folder = store.join(crate::store::LEXICAL);
        match &source {
            TantivyError::IoError(e) => of_system(&folder, copy(e)),
            TantivyError::OpenReadError(OpenReadError::IoError { io_error, filepath }) => {
                of_system(&folder.join(filepath), copy(io_error))
            }
            TantivyError::OpenWriteError(OpenWriteError::IoError { io_error, filepath }) => {
                of_system(&folder.join(filepath), copy(io_error))
            }
            TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(file)) => Self::Damaged {
                path: folder.join(file),
                what: "it is missing".to_owned(),
            },
            TantivyError::DataCorruption(damage) => Self::Damaged {
                path: folder,
                what: format!("{damage:?}"),
            },
            _ => Self::Lexical {
                store: store.to_owned(),
                source,
            },
        }
    }

    /// The damage that an [`io::Error`] reports, if it does.
    fn damage_in(source: &io::Error) -> Option<Self> {
        let damage = source.get_ref()?.downcast_ref::<Damage>()?;
        Some(Self::Damaged {
            path: damage.path.clone(),
            what: damage.what.clone(),
        })
    }
}

/// An [`io::Error`] like the shared one.
fn copy(e: &io::Error) -> io::Error {
    if let Some(code) = e.raw_os_error() {
        return io::Error::from_raw_os_error(code);
    }
    match e.get_ref().and_then(|e| e.downcast_ref::<Damage>()) {
        Some(damage) => Damage::error(&damage.path, &damage.what),
        None => io::Error::new(e.kind(), e.to_string()),
    }
}
