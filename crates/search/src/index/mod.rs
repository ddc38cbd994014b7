//! Bringing a store up to date with folders: what changed is read, encoded and
//! added, what vanished is removed, and nothing else is touched.
//!
//! A file is taken for unchanged if its size and time are; if only its time
//! changed, its content is compared by hash before anything is encoded. Reading,
//! encoding and writing run beside each other, in an order that is the same
//! whatever the number of threads.

mod pipeline;
mod plan;
mod sink;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyfold_core::{Encoder, Progress};
use keyfold_data::{ChunkOptions, ReadOptions, Summary, WalkOptions};

use crate::codebook::Bits;
use crate::error::SearchError;
use crate::fold::Folding;
use crate::store::{Writer, WriterOptions, resolve};
use pipeline::Pipeline;
use plan::{Plan, Roots, Stored};

/// How folders are indexed.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Bits kept of every entry of a vector; none takes what the store has, or
    /// four (eight where rows have any length). Another number than the store's is refused.
    pub bits: Option<Bits>,
    /// How the vectors of a passage become fewer; none takes what the store has, or
    /// keeps all. Another way than the store's is refused.
    pub fold: Option<Folding>,
    /// Which files are walked; none takes what the store was made with, or the
    /// default. The store remembers it for the next time.
    pub walk: Option<WalkOptions>,
    /// The size of passages; none takes what the store was made with, or the
    /// default. Another one than the store's is refused.
    pub chunk: Option<ChunkOptions>,
    /// The limits of reading; its `chunk` is not used.
    pub read: ReadOptions,
    /// Memory for what is not written yet, bytes (see [`WriterOptions::memory`]).
    pub memory: usize,
    /// What was done is committed about this often.
    pub commit_every: Duration,
    /// Seed of the order of a first indexing and of the codebook.
    pub seed: u64,
    /// Threads that encode; reading has one of its own.
    pub threads: usize,
    /// Read those files again that could not be read, though they are as they
    /// were: with other limits they may pass.
    pub retry: bool,
    /// Make the store anew, whatever is there.
    pub rebuild: bool,
    /// Make a store that folds otherwise than its model learnt to be folded.
    pub force: bool,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            bits: None,
            fold: None,
            walk: None,
            chunk: None,
            read: ReadOptions::default(),
            memory: WriterOptions::default().memory,
            commit_every: Duration::from_secs(30),
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            retry: false,
            rebuild: false,
            force: false,
        }
    }
}

/// What [`update`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexSummary {
    /// Files that were new or changed, by what became of them.
    pub files: Summary,
    /// Files that were as the store knows them, by size and time or by content.
    pub unchanged: u64,
    /// Files that are gone and were removed.
    pub removed: u64,
    /// Passages that were added.
    pub passages: u64,
    /// Token vectors that were added.
    pub tokens: u64,
    /// The user asked to stop; what was done until then is kept.
    pub cancelled: bool,
    /// How long it took.
    pub time: Duration,
}

/// Brings the store in the folder `store` up to date with `roots`, folders or
/// files; makes the store if there is none. Without roots, those that the store
/// remembers are taken.
///
/// Files of the store that lie below a root and are gone are removed. A root that
/// cannot be read is an error, and a folder within that cannot be read keeps
/// what the store has of it. Files that give no passages are remembered with the
/// reason and not read again before they change, unless [`IndexOptions::retry`] says so.
///
/// When `progress` asks to stop, what is done is committed and given out as usual.
pub fn update(
    store: &Path,
    roots: &[PathBuf],
    encoder: &dyn Encoder,
    options: &IndexOptions,
    progress: &dyn Progress,
) -> Result<IndexSummary, SearchError> {
    let begun = Instant::now();
    let store = resolve(store)?;
    let stored = Stored::read(&store, options.rebuild)?;
    stored.require(&store, encoder.identity(), options)?;
    let mut writing = WriterOptions {
        whole_text_rows: encoder.whole_text_rows(),
        ..options.writer(&stored)
    };
    writing.bits = bits(encoder, &stored, options)?;
    writing.fold.unwrap_or_default().require(
        writing.bits.unwrap_or_default(),
        encoder.identity(),
        writing.whole_text_rows,
    )?;
    if !options.force && (options.rebuild || stored.is_new()) {
        require_trained_fold(encoder, writing.fold.unwrap_or_default())?;
    }
    let settings = stored.settings(options);
    let roots = Roots::new(&store, roots, &stored, &settings.walk)?;
    let found = plan::find(&store, &roots, &settings.walk, progress)?;

    let mut summary = IndexSummary::default();
    found.count_errors(&mut summary.files);
    if found.cancelled {
        summary.cancelled = true;
        summary.time = begun.elapsed();
        return Ok(summary);
    }
    if !options.rebuild && stored.remembers(&roots, &settings) {
        let plan = Plan::new(&found, &roots, stored.files(), options.retry);
        if plan.is_empty() {
            plan.report_closed(&mut summary.files, progress);
            summary.unchanged = plan.unchanged;
            summary.time = begun.elapsed();
            return Ok(summary);
        }
    }

    let mut writer = Writer::open(&store, encoder.identity(), &writing)?;
    // Another process may have written since the store was read.
    let mut plan = Plan::new(&found, &roots, writer.files(), options.retry);
    if writer.codebook().is_none() {
        plan.shuffle(options.seed);
    }
    plan.report_closed(&mut summary.files, progress);
    summary.unchanged = plan.unchanged;
    for key in &plan.remove {
        writer.remove_file(key);
        summary.removed += 1;
    }
    writer.set_roots(roots.all().to_vec(), settings.to_json());
    let read = ReadOptions {
        chunk: settings.chunk.clone(),
        ..options.read.clone()
    };
    // As the store has it now, if another process made it meanwhile.
    let folding = writer.folding();
    Pipeline {
        encoder,
        options,
        read: &read,
        fold: folding,
        progress,
    }
    .run(&mut writer, &plan, &mut summary)?;
    writer.commit()?;
    if !progress.cancelled() {
        writer.merge(progress)?;
        // Of a store that has encodings, what is new gets them too.
        writer.encode(None, progress)?;
    }
    summary.cancelled = progress.cancelled();
    summary.time = begun.elapsed();
    Ok(summary)
}

/// Refuses another folding than the one that the model learnt with, on both sides.
fn require_trained_fold(encoder: &dyn Encoder, folding: Folding) -> Result<(), SearchError> {
    let Some(trained) = encoder.trained_fold() else {
        return Ok(());
    };
    if folding.queries && folding.fold == trained.parse().ok() {
        return Ok(());
    }
    Err(SearchError::OtherFold {
        model: encoder.identity().name.clone(),
        trained: trained.to_owned(),
        given: folding.to_string(),
    })
}

/// The bits of a store: those asked for, or those that it has, or those that suit the model.
fn bits(
    encoder: &dyn Encoder,
    stored: &Stored,
    options: &IndexOptions,
) -> Result<Option<Bits>, SearchError> {
    // What another model's store kept may say nothing of this one's.
    let special = encoder.whole_text_rows() > 0 || encoder.binary();
    let kept = stored
        .bits()
        .filter(|bits| !options.rebuild || !special && *bits != Bits::One);
    let suits = encoder.binary().then_some(Bits::One);
    match options.bits.or(kept).or(suits) {
        Some(Bits::One) if !encoder.binary() => Err(SearchError::NotBinary {
            model: encoder.identity().name.clone(),
        }),
        bits => Ok(bits),
    }
}

impl IndexOptions {
    fn writer(&self, stored: &Stored) -> WriterOptions {
        WriterOptions {
            bits: None,
            fold: self.fold.or(stored.fold()),
            memory: self.memory,
            seed: self.seed,
            threads: self.threads,
            rebuild: self.rebuild,
            whole_text_rows: 0,
        }
    }
}
