//! Writing what was encoded, in the order in which it was read.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyfold_core::{EncodeError, Progress};
use keyfold_data::Passage;

use super::IndexSummary;
use crate::codebook::{Codebook, Quantized};
use crate::error::SearchError;
use crate::store::{FileRecord, FileState, Rows, Writer};

/// If the model fails on so many files before any text, the model is the cause.
const HOPELESS: usize = 3;

/// A step in the stream of work; batches hold several.
pub(super) enum Step {
    Begin {
        key: String,
        format: String,
        modified: i64,
    },
    Passages(Vec<Passage>),
    End(FileRecord),
    Touch {
        key: String,
        modified: i64,
    },
    /// So many bytes of files are done.
    Done(u64),
}

/// A batch and its rows.
pub(super) struct Encoded {
    pub(super) steps: Vec<Step>,
    /// Rows of each passage, in order; or why the model failed on it.
    pub(super) counts: Vec<Result<usize, EncodeError>>,
    pub(super) rows: EncodedRows,
    /// The ids of the rows, if they have some.
    pub(super) row_ids: Vec<u32>,
}

pub(super) enum EncodedRows {
    Raw(Vec<f32>),
    Coded(Arc<Codebook>, Quantized),
}

impl EncodedRows {
    fn part(&self, rows: Range<usize>, dim: usize) -> Rows<'_> {
        match self {
            Self::Raw(all) => Rows::Raw(&all[rows.start * dim..rows.end * dim]),
            Self::Coded(codebook, all) => {
                let size = codebook.bytes_per_row();
                Rows::Coded(
                    codebook,
                    &all.codes[rows.clone()],
                    &all.packed[rows.start * size..rows.end * size],
                )
            }
        }
    }
}

/// Writes what was encoded.
pub(super) struct Sink<'a> {
    pub(super) writer: &'a mut Writer,
    pub(super) summary: &'a mut IndexSummary,
    progress: &'a dyn Progress,
    commit_every: Duration,
    committed: Instant,
    file: Option<OpenFile>,
    /// Whether the model took any text.
    encoded: bool,
    /// Files with a text that the model did not take.
    refused: usize,
    dim: usize,
    total: u64,
    done: u64,
    tokens: u64,
}

/// The file that is being added.
struct OpenFile {
    format: String,
    modified: i64,
    passages: u64,
    tokens: u64,
    failed: Option<EncodeError>,
}

impl<'a> Sink<'a> {
    /// Writes with `writer` rows of `dim` numbers, of files of `total` bytes.
    pub(super) fn new(
        writer: &'a mut Writer,
        summary: &'a mut IndexSummary,
        progress: &'a dyn Progress,
        commit_every: Duration,
        (dim, total): (usize, u64),
    ) -> Self {
        Self {
            writer,
            summary,
            progress,
            commit_every,
            committed: Instant::now(),
            file: None,
            encoded: false,
            refused: 0,
            dim,
            total,
            done: 0,
            tokens: 0,
        }
    }

    /// Writes a batch.
    pub(super) fn take(&mut self, encoded: Encoded) -> Result<(), SearchError> {
        let mut counts = encoded.counts.into_iter();
        let mut row = 0;
        for step in encoded.steps {
            match step {
                Step::Begin {
                    key,
                    format,
                    modified,
                } => {
                    self.writer.begin_file(&key);
                    self.file = Some(OpenFile {
                        format,
                        modified,
                        passages: 0,
                        tokens: 0,
                        failed: None,
                    });
                }
                Step::Passages(passages) => {
                    let counts: Vec<_> = counts.by_ref().take(passages.len()).collect();
                    self.passages(
                        &passages,
                        counts,
                        (&encoded.rows, &encoded.row_ids),
                        &mut row,
                    )?;
                }
                Step::End(record) => self.end(record)?,
                Step::Touch { key, modified } => self.writer.touch_file(&key, modified),
                Step::Done(bytes) => {
                    self.done += bytes;
                    self.progress.advance(bytes);
                }
            }
        }
        Ok(())
    }

    /// Adds passages with the rows from `row` on, and moves it past them.
    fn passages(
        &mut self,
        passages: &[Passage],
        counts: Vec<Result<usize, EncodeError>>,
        (rows, row_ids): (&EncodedRows, &[u32]),
        row: &mut usize,
    ) -> Result<(), SearchError> {
        let first = *row;
        let mut sizes = Vec::with_capacity(counts.len());
        let mut failure = None;
        for count in counts {
            self.encoded |= count.is_ok();
            sizes.push(count.unwrap_or_else(|e| {
                failure = Some(e);
                0
            }));
        }
        *row += sizes.iter().sum::<usize>();
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if file.failed.is_none() {
            file.failed = failure;
        }
        if file.failed.is_some() {
            return Ok(());
        }
        file.passages += passages.len() as u64;
        file.tokens += (*row - first) as u64;
        self.tokens += (*row - first) as u64;
        let to_come = (self.total.saturating_sub(self.done)) as f64 / self.done.max(1) as f64;
        self.writer
            .expect_tokens((self.tokens as f64 * to_come) as u64);
        let (format, modified) = (&file.format, file.modified);
        self.writer.add_passages(
            format,
            modified,
            passages,
            &sizes,
            rows.part(first..*row, self.dim),
            row_ids.get(first..*row).unwrap_or(&[]),
        )
    }

    fn end(&mut self, record: FileRecord) -> Result<(), SearchError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        match (file.failed, &record.state) {
            (Some(error), _) => {
                self.summary.files.failed += 1;
                self.refused += 1;
                if !self.encoded && self.refused >= HOPELESS {
                    return Err(error.into());
                }
                let why = error.to_string();
                self.progress.note(&format!("{}: {why}", record.key));
                self.writer.abandon_file()?;
                self.writer.begin_file(&record.key);
                self.writer.end_file(FileRecord {
                    state: FileState::Failed(why),
                    ..record
                })?;
            }
            (None, state) => {
                let counts = &mut self.summary.files;
                match state {
                    FileState::Read(_) => counts.read += 1,
                    FileState::Skipped(_) => counts.skipped += 1,
                    FileState::Failed(_) => counts.failed += 1,
                }
                self.summary.passages += file.passages;
                self.summary.tokens += file.tokens;
                self.writer.end_file(record)?;
            }
        }
        if self.committed.elapsed() >= self.commit_every {
            self.writer.commit()?;
            self.committed = Instant::now();
        }
        Ok(())
    }

    /// Takes back the file that is being added, if there is one.
    pub(super) fn abandon(&mut self) -> Result<(), SearchError> {
        self.file = None;
        self.writer.abandon_file()
    }
}
