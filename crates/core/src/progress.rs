//! Telling how far long work has come, and asking whether to stop.

use std::sync::atomic::{AtomicU64, Ordering};

/// Receives the progress of long work. The CLI draws a bar; libraries only call.
///
/// Implementations are called from several threads.
pub trait Progress: Send + Sync {
    /// A stage begins; `total` units (files, passages, bytes) if known.
    fn start(&self, stage: &str, unit: &str, total: Option<u64>);
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// The total became known, or better known.
    fn set_total(&self, total: u64);
    /// How it goes, in a word or two that stand beside the count (a loss).
    fn status(&self, _text: &str) {}
    /// The stage is over.
    fn finish(&self);
    /// Something that a person should know, in one line (a file was skipped, and why).
    fn note(&self, line: &str);
    /// True when the user asked to stop; work then ends at the next safe point
    /// and keeps what is done.
    fn cancelled(&self) -> bool;
}

/// Shows nothing and never asks to stop.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _: &str, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn set_total(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Shows nothing and asks to stop after so many units, as a user may at any moment.
#[derive(Debug)]
pub struct StopAfter {
    units: u64,
    done: AtomicU64,
}

impl StopAfter {
    /// Asks once `units` units were done.
    pub fn new(units: u64) -> Self {
        Self {
            units,
            done: AtomicU64::new(0),
        }
    }
}

impl Progress for StopAfter {
    fn start(&self, _: &str, _: &str, _: Option<u64>) {}
    fn advance(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }
    fn set_total(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.units
    }
}
