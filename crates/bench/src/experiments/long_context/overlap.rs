//! How many of the best rows a selector chooses.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use keyfold_kernels::Team;
use keyfold_lm::roles::{Dims, KvStore, Reads, Rows, Selector, StepCtx};
use keyfold_lm::select::Budget;
use keyfold_lm::select::baselines::OracleTopK;
use keyfold_lm::select::double_sparsity::DoubleSparsity;

use super::failed;
use crate::BenchError;

/// Rows that both chose, and all that the best choice has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    both: u64,
    best: u64,
}

impl Counts {
    /// The share of the best rows that were chosen.
    pub(super) fn share(self) -> f64 {
        self.both as f64 / self.best.max(1) as f64
    }
}

/// A selector whose choices are counted against those of the greatest full scores.
pub(super) struct Counted {
    inner: DoubleSparsity,
    best: OracleTopK,
    rows: Rows,
    counts: Arc<Mutex<Counts>>,
}

impl Counted {
    /// `tokens` and `dense_layers` are those of `inner`.
    pub(super) fn new(
        inner: DoubleSparsity,
        tokens: usize,
        dense_layers: usize,
        dims: Dims,
    ) -> Result<Self, BenchError> {
        let best = OracleTopK::new(Budget::Tokens(tokens), dense_layers, dims);
        Ok(Self {
            inner,
            best: best.map_err(failed("oracle"))?,
            rows: Rows::default(),
            counts: Arc::default(),
        })
    }

    /// What is counted, also after the selector was handed over.
    pub(super) fn counts(&self) -> Arc<Mutex<Counts>> {
        Arc::clone(&self.counts)
    }
}

impl Selector for Counted {
    fn on_append(&mut self, layer: usize, positions: &[u32], keys: &[f32]) {
        self.inner.on_append(layer, positions, keys);
    }

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        self.inner.select(layer, queries, store, ctx, team, rows);
        if rows.reads == Reads::All {
            return;
        }
        let mut apart = ctx.clone();
        self.best
            .select(layer, queries, store, &mut apart, team, &mut self.rows);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (ours, best) in rows.lists.iter().zip(&self.rows.lists) {
            let ours: HashSet<&u32> = ours.iter().collect();
            counts.both += best.iter().filter(|row| ours.contains(row)).count() as u64;
            counts.best += best.len() as u64;
        }
    }

    fn changed(&mut self, layer: usize, kv_head: usize, from: usize) {
        self.inner.changed(layer, kv_head, from);
    }

    fn truncate(&mut self, position: u32) {
        self.inner.truncate(position);
    }
}
