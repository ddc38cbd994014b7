//! The blocks that PowerAttention's mask shows, while decoding: few runs of rows in order,
//! whatever the query.
//!
//! The mask, its source and what it costs are in [`block_mask`](keyfold_core::block_mask). The
//! newest token sees `window + sink` blocks and one more for each power of two up to the
//! number of blocks, in `log n` runs of consecutive rows; the lists change only when a new
//! block begins, so they are extended, not made, at the other tokens.

use keyfold_kernels::Team;

use crate::block_mask::PowerConfig;
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Reads, Rows, Selector, StepCtx};

/// The selector.
#[derive(Debug)]
pub struct PowerSelect {
    config: PowerConfig,
    dims: Dims,
    /// Runs of positions that the block `of` sees.
    of: Option<usize>,
    runs: Vec<(u32, u32)>,
}

impl PowerSelect {
    /// Checks the settings.
    pub fn new(config: PowerConfig, dims: Dims) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        Ok(Self {
            config,
            dims,
            of: None,
            runs: Vec::new(),
        })
    }

    /// What a user should know of the settings.
    pub fn notices(&self) -> Vec<String> {
        self.config.notices()
    }
}

impl Selector for PowerSelect {
    fn on_append(&mut self, _layer: usize, _positions: &[u32], _keys: &[f32]) {}

    fn select(
        &mut self,
        layer: usize,
        _queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        _team: &Team,
        rows: &mut Rows,
    ) {
        if self.config.dense_layers.contains(layer) {
            return rows.all();
        }
        let block = ctx.position as usize / self.config.mask.block;
        if self.of != Some(block) {
            let size = self.config.mask.block as u32;
            let runs = self.config.mask.runs(block).into_iter();
            self.runs = runs
                .map(|(from, to)| (from as u32 * size, to as u32 * size))
                .collect();
            self.of = Some(block);
        }
        rows.start(Reads::PerKvHead, self.dims.kv_heads);
        for (head, list) in rows.lists.iter_mut().enumerate() {
            let positions = store.positions(layer, head);
            for &(from, to) in &self.runs {
                let first = positions.partition_point(|&p| p < from);
                let end = positions.partition_point(|&p| p < to.min(ctx.position + 1));
                list.extend(first as u32..end as u32);
            }
        }
    }

    fn truncate(&mut self, _position: u32) {}
}
