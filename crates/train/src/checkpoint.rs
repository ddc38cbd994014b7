//! What a run can go on from: folders `checkpoints/N` with the learner's files and
//! `state.json`, which names them with their checksums.
//!
//! A checkpoint is written under another name, synced and renamed, so a kill at any
//! moment leaves it whole or absent. `state.json` is one line of JSON and a line with
//! its checksum.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keyfold_core::atomic;
use serde::{Deserialize, Serialize};

use crate::{LearnError, Learner};

const VERSION: u32 = 1;
const STATE: &str = "state.json";
/// Before the name of a checkpoint that is being written.
const UNFINISHED: &str = "unfinished-";

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) step: u64,
    /// Seconds of training.
    pub(crate) seconds: f64,
    /// Step and loss of the best validation.
    pub(crate) best: Option<(u64, f64)>,
    /// Validations since then.
    pub(crate) worse: u64,
    /// The loss of the last step.
    pub(crate) loss: f64,
    /// Early stopping has ended the run.
    #[serde(default)]
    pub(crate) ended_early: bool,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    #[serde(flatten)]
    state: State,
    files: Vec<SealedFile>,
}

#[derive(Serialize, Deserialize)]
struct SealedFile {
    name: String,
    bytes: u64,
    crc32: u32,
}

/// The checkpoints of one run.
pub(crate) struct Checkpoints {
    pub(crate) folder: PathBuf,
}

impl Checkpoints {
    pub(crate) fn of(run: &Path) -> Self {
        Self {
            folder: run.join("checkpoints"),
        }
    }

    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(step.to_string())
    }

    /// Steps with a checkpoint, the newest first.
    pub(crate) fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut steps: Vec<u64> = entries
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        steps
    }

    /// Writes a checkpoint of `learner` after `state.step`.
    pub(crate) fn write(&self, learner: &dyn Learner, state: &State) -> Result<(), LearnError> {
        fs::create_dir_all(&self.folder).map_err(LearnError::io(&self.folder))?;
        let place = self.path(state.step);
        if place.is_dir() {
            return Ok(());
        }
        let unfinished = self.folder.join(format!("{UNFINISHED}{}", state.step));
        let made = self.fill(learner, state, &unfinished).and_then(|()| {
            fs::rename(&unfinished, &place).map_err(LearnError::io(&place))?;
            atomic::sync_folder(&self.folder).map_err(LearnError::io(&self.folder))
        });
        if made.is_err() {
            // Room on a full disk; the error that made it full is told.
            let _ = fs::remove_dir_all(&unfinished);
        }
        made
    }

    fn fill(&self, learner: &dyn Learner, state: &State, to: &Path) -> Result<(), LearnError> {
        if to.exists() {
            fs::remove_dir_all(to).map_err(LearnError::io(to))?;
        }
        fs::create_dir(to).map_err(LearnError::io(to))?;
        learner.save(to)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(to).map_err(LearnError::io(to))? {
            let path = entry.map_err(LearnError::io(to))?.path();
            files.push(seal(&path).map_err(LearnError::io(&path))?);
        }
        let sealed = Sealed {
            version: VERSION,
            state: state.clone(),
            files,
        };
        let path = to.join(STATE);
        let text = serde_json::to_string(&sealed)
            .map_err(|e| LearnError::io(&path)(io::Error::other(e)))?;
        let text = format!("{text}\ncrc32 {:08x}\n", crc32fast::hash(text.as_bytes()));
        atomic::write(&path, text.as_bytes()).map_err(LearnError::io(&path))
    }

    /// The state of the checkpoint after `step`; an error says what is damaged.
    pub(crate) fn read(&self, step: u64) -> Result<State, (PathBuf, String)> {
        let folder = self.path(step);
        let path = folder.join(STATE);
        let damaged = |what: &str| (path.clone(), what.to_owned());
        let text = fs::read_to_string(&path).map_err(|e| damaged(&e.to_string()))?;
        let (json, check) = text
            .split_once("\ncrc32 ")
            .ok_or_else(|| damaged("it has no checksum"))?;
        if check.trim_end() != format!("{:08x}", crc32fast::hash(json.as_bytes())) {
            return Err(damaged("its checksum does not fit"));
        }
        let sealed: Sealed =
            serde_json::from_str(json).map_err(|e| damaged(&format!("it cannot be read: {e}")))?;
        if sealed.version != VERSION {
            return Err(damaged("another version of the program wrote it"));
        }
        for file in &sealed.files {
            let path = folder.join(&file.name);
            let found = seal(&path).map_err(|e| (path.clone(), e.to_string()))?;
            if (found.bytes, found.crc32) != (file.bytes, file.crc32) {
                return Err((path, "its checksum does not fit".to_owned()));
            }
        }
        Ok(sealed.state)
    }

    /// Removes all but the newest `keep` and the one after step `best`, and what a kill left.
    pub(crate) fn prune(&self, keep: usize, best: Option<u64>) -> io::Result<()> {
        for old in self.steps().into_iter().skip(keep.max(1)) {
            if Some(old) != best {
                fs::remove_dir_all(self.path(old))?;
            }
        }
        for entry in fs::read_dir(&self.folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Makes a file durable and says what it holds.
fn seal(path: &Path) -> io::Result<SealedFile> {
    let mut file = File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    file.sync_all()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(SealedFile {
        name: name.into_owned(),
        bytes,
        crc32: hasher.finalize(),
    })
}
