//! Reading, encoding and writing, beside each other.
//!
//! One thread reads files. Their passages are put into batches, which some
//! threads encode and code. This thread gives the batches out and takes them back
//! in the same order, so that the passages of a file stay together and the
//! result does not depend on the threads. A few batches are under way at a time,
//! which bounds the memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use keyfold_core::{EncodeError, Encoder, Progress, Role, Vectors, VectorsError};
use keyfold_data::{Document, Passage, ReadError, ReadOptions, content_hash, read, read_vectors};

use super::plan::{Plan, Task};
use super::sink::{Encoded, EncodedRows, Sink, Step};
use super::{IndexOptions, IndexSummary};
use crate::codebook::Codebook;
use crate::error::SearchError;
use crate::fold::Folding;
use crate::store::{FileRecord, FileState, Writer, nanoseconds};

/// Passages that are encoded in one go.
const BATCH: usize = 64;
/// Numbers of rows that were made elsewhere and go in one batch.
const NUMBERS: usize = 1 << 22;
/// Files that are read ahead.
const READ_AHEAD: usize = 8;
/// A file that changed so shortly before it was read may change again within the
/// same tick of the clock that file systems keep, nanoseconds.
const UNSETTLED: u64 = 2_000_000_000;

pub(super) struct Pipeline<'a> {
    pub(super) encoder: &'a dyn Encoder,
    pub(super) options: &'a IndexOptions,
    pub(super) read: &'a ReadOptions,
    pub(super) fold: Folding,
    pub(super) progress: &'a dyn Progress,
}

/// What reading a file came to.
enum Outcome {
    /// The content is as the store has it.
    Same,
    /// With its rows, where these were made elsewhere.
    Read(Document, Option<Vectors>),
    Unread(ReadError),
}

/// Steps that are encoded together.
#[derive(Default)]
struct Batch {
    steps: Vec<Step>,
    passages: usize,
    /// The rows of each passage, where these were made elsewhere.
    given: Vec<Vectors>,
}

/// A batch on its way to a worker, and where its result goes.
struct Job {
    batch: Batch,
    codebook: Option<Arc<Codebook>>,
    result: SyncSender<Encoded>,
}

impl Pipeline<'_> {
    /// Does the tasks of the plan until they are done or the user asks to stop;
    /// commits from time to time, and leaves the rest to be committed.
    pub(super) fn run(
        &self,
        writer: &mut Writer,
        plan: &Plan,
        summary: &mut IndexSummary,
    ) -> Result<(), SearchError> {
        let total = plan.bytes();
        self.progress.start("indexing", "bytes", Some(total));
        let stop = AtomicBool::new(false);
        let workers = self.options.threads.max(1);
        let (read_sender, read_receiver) = sync_channel(READ_AHEAD);
        // Room for all jobs that are under way, so that giving one out never waits.
        let (job_sender, job_receiver) = sync_channel::<Job>(2 * workers);
        let job_receiver = Mutex::new(job_receiver);
        let result = std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || self.read_all(&plan.tasks, stop, &read_sender));
            for _ in 0..workers {
                scope.spawn(|| self.encode_all(&job_receiver));
            }
            let mut feed = Feed {
                pipeline: self,
                jobs: job_sender,
                most: 2 * workers,
                under_way: VecDeque::new(),
                batch: Batch::default(),
                sink: Sink::new(
                    writer,
                    summary,
                    self.progress,
                    self.options.commit_every,
                    (self.encoder.identity().dim, total),
                ),
            };
            let result = feed.all(plan, &read_receiver);
            // The threads end when nobody listens or gives any more.
            stop.store(true, Ordering::Relaxed);
            drop(read_receiver);
            drop(feed);
            result
        });
        self.progress.finish();
        result
    }

    fn read_all(&self, tasks: &[Task], stop: &AtomicBool, out: &SyncSender<Outcome>) {
        for task in tasks {
            if stop.load(Ordering::Relaxed) || out.send(self.read_one(task)).is_err() {
                return;
            }
        }
    }

    fn read_one(&self, task: &Task) -> Outcome {
        if let Some(hash) = &task.hash
            && content_hash(&task.entry.path).is_ok_and(|now| unhex(&now).as_ref() == Some(hash))
        {
            return Outcome::Same;
        }
        let read = if self.encoder.reads_rows() {
            let dim = self.encoder.identity().dim;
            read_vectors(&task.entry, dim, self.read).map(|(document, rows)| (document, Some(rows)))
        } else {
            read(&task.entry, self.read).map(|document| (document, None))
        };
        match read {
            Ok((document, rows)) => Outcome::Read(document, rows),
            Err(e) => Outcome::Unread(e),
        }
    }

    fn encode_all(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            // Nobody waits for it if the run was given up.
            let _ = job.result.send(self.encode(job.batch, job.codebook));
        }
    }

    fn encode(&self, batch: Batch, codebook: Option<Arc<Codebook>>) -> Encoded {
        let texts: Vec<String> = batch
            .steps
            .iter()
            .flat_map(|step| match step {
                Step::Passages(passages) => &passages[..],
                _ => &[],
            })
            .map(|p| p.searchable().0)
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut counts = Vec::with_capacity(texts.len());
        let (mut rows, mut row_ids) = (Vec::new(), Vec::new());
        let mut take = |vectors: Result<Vectors, EncodeError>| {
            counts.push(vectors.map(|v| {
                rows.extend_from_slice(v.as_slice());
                row_ids.extend_from_slice(v.ids().unwrap_or(&[]));
                v.rows()
            }));
        };
        let encoded = match self.encoder.reads_rows() {
            true => Ok(self.fold_given(batch.given, &texts)),
            false => self.encode_texts(&texts),
        };
        match encoded {
            Ok(all) => all.into_iter().for_each(|v| take(Ok(v))),
            // One of them is to blame: only that one shall suffer.
            Err(_) => texts.iter().for_each(|text| {
                take(self.encode_texts(&[text]).map(|mut one| one.remove(0)));
            }),
        }
        let rows = match codebook {
            Some(codebook) => {
                let coded = codebook.quantize(&rows, 1);
                EncodedRows::Coded(codebook, coded)
            }
            None => EncodedRows::Raw(rows),
        };
        Encoded {
            steps: batch.steps,
            counts,
            rows,
            row_ids,
        }
    }

    /// Rows that were made elsewhere, of length one and folded as the store wants it.
    fn fold_given(&self, rows: Vec<Vectors>, texts: &[&str]) -> Vec<Vectors> {
        let pairs = rows.into_iter().zip(texts);
        pairs
            .map(|(rows, text)| self.fold.document(rows.normalized(), text))
            .collect()
    }

    /// One result for every text, of the right length, folded as the store wants it.
    fn encode_texts(&self, texts: &[&str]) -> Result<Vec<Vectors>, EncodeError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.encoder.encode(texts, Role::Document)?;
        let dim = self.encoder.identity().dim;
        let bad = |len| EncodeError::BadOutput {
            model: self.encoder.identity().name.clone(),
            source: VectorsError::Ragged { len, dim },
        };
        if all.len() != texts.len() {
            return Err(bad(all.len()));
        }
        match all.iter().find(|v| v.dim() != dim) {
            Some(v) => Err(bad(v.dim())),
            None => Ok(all
                .into_iter()
                .zip(texts)
                .map(|(v, text)| self.fold.document(v, text))
                .collect()),
        }
    }
}

/// Gives batches out and takes them back in order.
struct Feed<'a> {
    pipeline: &'a Pipeline<'a>,
    jobs: SyncSender<Job>,
    most: usize,
    under_way: VecDeque<Receiver<Encoded>>,
    batch: Batch,
    sink: Sink<'a>,
}

impl Feed<'_> {
    fn all(&mut self, plan: &Plan, outcomes: &Receiver<Outcome>) -> Result<(), SearchError> {
        for task in &plan.tasks {
            let Ok(outcome) = outcomes.recv() else { break };
            self.file(task, outcome)?;
            if self.pipeline.progress.cancelled() {
                return self.sink.abandon();
            }
        }
        self.send()?;
        while !self.under_way.is_empty() {
            if self.pipeline.progress.cancelled() {
                return self.sink.abandon();
            }
            self.take_back()?;
        }
        Ok(())
    }

    /// Adds the steps of a file to the stream.
    fn file(&mut self, task: &Task, outcome: Outcome) -> Result<(), SearchError> {
        let size = task.entry.size;
        let modified = nanoseconds(task.entry.modified);
        let record = |hash, state| FileRecord {
            key: task.key.clone(),
            size,
            modified: if is_settled(modified) {
                modified
            } else {
                // Never equal to what the file system says, so that the content
                // is compared the next time.
                modified.wrapping_sub(1)
            },
            hash,
            state,
        };
        let begin = |format| Step::Begin {
            key: task.key.clone(),
            format,
            modified,
        };
        match outcome {
            Outcome::Same => {
                if is_settled(modified) {
                    self.step(Step::Touch {
                        key: task.key.clone(),
                        modified,
                    });
                }
                self.sink.summary.unchanged += 1;
                self.step(Step::Done(size));
            }
            Outcome::Unread(error) => {
                self.pipeline.progress.note(&error.to_string());
                let why = error.notice().why.clone();
                let state = match error {
                    ReadError::Skipped(_) => FileState::Skipped(why),
                    ReadError::Failed(_) => FileState::Failed(why),
                };
                self.step(begin(String::new()));
                self.step(Step::End(record(None, state)));
                self.step(Step::Done(size));
            }
            Outcome::Read(document, rows) => {
                self.batch.given.extend(rows);
                let format = document.format.to_string();
                self.step(begin(format.clone()));
                let total = document.passages.len() as u64;
                let mut passages = document.passages.into_iter();
                let mut reported = 0;
                let mut given = 0;
                loop {
                    let room = BATCH - self.batch.passages;
                    let some: Vec<Passage> = passages.by_ref().take(room).collect();
                    if some.is_empty() {
                        break;
                    }
                    given += some.len() as u64;
                    self.batch.passages += some.len();
                    self.step(Step::Passages(some));
                    let done = (u128::from(size) * u128::from(given) / u128::from(total)) as u64;
                    self.step(Step::Done(done - reported));
                    reported = done;
                    if self.batch.passages >= BATCH {
                        self.send()?;
                    }
                    if self.pipeline.progress.cancelled() {
                        return Ok(());
                    }
                }
                let hash = unhex(&document.content_hash);
                self.step(Step::End(record(hash, FileState::Read(format))));
            }
        }
        // Files without passages come in great numbers too.
        let given = self.batch.given.iter().map(|rows| rows.as_slice().len());
        if self.batch.steps.len() >= 8 * BATCH || given.sum::<usize>() >= NUMBERS {
            self.send()?;
        }
        Ok(())
    }

    fn step(&mut self, step: Step) {
        self.batch.steps.push(step);
    }

    /// Gives the batch to a worker, after taking back the oldest one if enough
    /// are under way.
    fn send(&mut self) -> Result<(), SearchError> {
        while self.under_way.len() >= self.most {
            self.take_back()?;
        }
        let (result, receiver) = sync_channel(1);
        let job = Job {
            batch: std::mem::take(&mut self.batch),
            codebook: self.sink.writer.codebook().cloned(),
            result,
        };
        // Its receiver outlives this.
        let _ = self.jobs.send(job);
        self.under_way.push_back(receiver);
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), SearchError> {
        match self.under_way.pop_front().map(|r| r.recv()) {
            Some(Ok(encoded)) => self.sink.take(encoded),
            None => Ok(()),
            // The encoder panicked, and the scope of the threads passes that on.
            Some(Err(_)) => Err(SearchError::Encode(EncodeError::Tokenizer {
                model: self.pipeline.encoder.identity().name.clone(),
                reason: "it panicked".to_owned(),
            })),
        }
    }
}

/// Whether a file that was last changed then is sure to show its next change.
fn is_settled(modified: i64) -> bool {
    nanoseconds(SystemTime::now()).abs_diff(modified) > UNSETTLED
}

/// 64 hexadecimal digits as bytes.
fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|h| *h.as_bytes())
}
