//! What learns from a stream.

use crate::{Dictionary, DictionaryError, State};

/// Learns from rows as they come, and keeps none of them.
///
/// Rows are taken in batches of a fixed size, whatever the pieces are in which they come;
/// a rest waits, as a part of the state. So a stream that was cut anywhere, saved and
/// continued gives the same bits as one that was not.
pub trait Learner {
    /// Learns from rows `[n, width]`.
    ///
    /// # Errors
    /// When they are not finite or of another width.
    fn partial_fit(&mut self, rows: &[f32]) -> Result<(), DictionaryError>;

    /// Learns from the rest that waits for a batch to fill, at the end of the data.
    ///
    /// # Errors
    /// When a decomposition fails.
    fn flush(&mut self) -> Result<(), DictionaryError>;

    /// What was learned.
    ///
    /// # Errors
    /// When there was no batch yet.
    fn dictionary(&self) -> Result<Dictionary, DictionaryError>;

    /// Everything that is needed to go on.
    fn state(&self) -> State;

    /// Batches that were learned from.
    fn steps(&self) -> u64;

    /// How it goes, in a word or two.
    fn status(&self) -> String;
}

/// Rows that come in pieces, in batches of one size.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Batches {
    pub(crate) size: usize,
    pub(crate) waiting: Vec<f32>,
}

impl Batches {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size,
            waiting: Vec::new(),
        }
    }

    /// Calls `step` with each batch that is full.
    pub(crate) fn push(
        &mut self,
        mut rows: &[f32],
        width: usize,
        mut step: impl FnMut(&[f32]) -> Result<(), DictionaryError>,
    ) -> Result<(), DictionaryError> {
        let size = self.size.saturating_mul(width);
        if !self.waiting.is_empty() {
            let room = size.saturating_sub(self.waiting.len());
            let (some, rest) = rows.split_at(rows.len().min(room));
            self.waiting.extend_from_slice(some);
            rows = rest;
            if self.waiting.len() < size {
                return Ok(());
            }
            step(&self.waiting)?;
            self.waiting.clear();
        }
        let batches = rows.chunks_exact(size);
        self.waiting.extend_from_slice(batches.remainder());
        batches.into_iter().try_for_each(&mut step)
    }
}

pub(crate) fn nothing_yet() -> DictionaryError {
    DictionaryError::Empty
}
