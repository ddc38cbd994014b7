//! Attention by itself, on random rows: its time beside what the bytes that it reads allow.

use std::sync::Arc;
use std::time::Instant;

use keyfold_kernels::Team;
use keyfold_lm::attention::DecodeAttention;
use keyfold_lm::prefill::dense::DensePrefill;
use keyfold_lm::roles::{Dims, KvStore, Prefill, Rows, Selector, StepCtx};
use keyfold_lm::store::{CacheType, DenseStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::BenchError;

/// Rows that are drawn together.
const CHUNK: usize = 1024;

/// Time and bytes of a token's attention in all layers.
#[derive(Debug, Clone, Copy)]
pub(in crate::experiments) struct Timed {
    pub(in crate::experiments) seconds: f64,
    /// Keys, values and what a selector reads to choose.
    pub(in crate::experiments) bytes: u64,
}

impl Timed {
    /// How much faster this is than `dense`, and how much faster its bytes allow it to be.
    pub(in crate::experiments) fn against(self, dense: Self) -> (f64, f64) {
        (
            dense.seconds / self.seconds,
            dense.bytes as f64 / self.bytes as f64,
        )
    }
}

/// Random keys, values and queries for attention by itself.
pub(in crate::experiments) struct Attention {
    dims: Dims,
    store: DenseStore,
    rows: usize,
    team: Arc<Team>,
    queries: Vec<f32>,
    work: DecodeAttention,
}

impl Attention {
    /// `rows` rows in each layer, as 16-bit floats.
    pub(in crate::experiments) fn new(
        dims: Dims,
        rows: usize,
        threads: usize,
        seed: u64,
    ) -> Result<Self, BenchError> {
        let store = DenseStore::new(dims, CacheType::F16, rows);
        let mut store = store
            .ok_or_else(|| BenchError::data("attention", "16-bit rows do not fit the heads"))?;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.7..1.7)).collect() };
        let width = dims.kv_heads * dims.head_dim;
        for from in (0..rows).step_by(CHUNK) {
            let positions: Vec<u32> = (from as u32..(from + CHUNK).min(rows) as u32).collect();
            let (keys, values) = (draw(positions.len() * width), draw(positions.len() * width));
            for layer in 0..dims.layers {
                store.append(layer, &positions, &keys, &values);
            }
        }
        let queries = draw(dims.heads * dims.head_dim);
        let team = Arc::new(Team::new(threads));
        Ok(Self {
            dims,
            store,
            rows,
            team,
            queries,
            work: DecodeAttention::default(),
        })
    }

    /// The best time of a token of `repeat` (the first of which notes the keys), and its bytes.
    pub(in crate::experiments) fn decode(
        &mut self,
        mut selector: Option<&mut dyn Selector>,
        repeat: usize,
    ) -> Timed {
        if let Some(selector) = &mut selector {
            for layer in 0..self.dims.layers {
                (0..self.dims.kv_heads).for_each(|head| selector.changed(layer, head, 0));
            }
        }
        let (key, value) = self.store.row_bytes();
        let mut out = vec![0.0; self.queries.len()];
        let mut best = Timed {
            seconds: f64::INFINITY,
            bytes: 0,
        };
        let (mut ctx, mut rows) = (StepCtx::default(), Rows::default());
        for _ in 0..=repeat {
            ctx.bytes_read = 0;
            ctx.position = self.rows as u32 - 1;
            let clock = Instant::now();
            let mut read = 0;
            for layer in 0..self.dims.layers {
                rows.all();
                if let Some(selector) = &mut selector {
                    selector.select(
                        layer,
                        &self.queries,
                        &self.store,
                        &mut ctx,
                        &self.team,
                        &mut rows,
                    );
                }
                read += self.work.attend(
                    layer,
                    &self.dims,
                    &self.queries,
                    ctx.position,
                    None,
                    &self.store,
                    &rows,
                    None,
                    &self.team,
                    &mut out,
                );
            }
            best.seconds = best.seconds.min(clock.elapsed().as_secs_f64());
            best.bytes = read * (key + value) + ctx.bytes_read;
        }
        best
    }

    /// The time of a prompt's attention in layer 0, all rows read together.
    pub(in crate::experiments) fn prefill(&self, prefill: &mut dyn Prefill, seed: u64) -> f64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let len = self.rows * self.dims.heads * self.dims.head_dim;
        let queries: Vec<f32> = (0..len).map(|_| rng.random_range(-1.7..1.7)).collect();
        let positions: Vec<u32> = (0..self.rows as u32).collect();
        let mut out = vec![0.0; len];
        let clock = Instant::now();
        prefill.attend(
            0,
            &queries,
            &positions,
            &self.store,
            &self.team,
            &mut out,
            &mut [],
        );
        clock.elapsed().as_secs_f64()
    }

    /// Exact attention of prompts.
    pub(in crate::experiments) fn dense_prefill(&self) -> DensePrefill {
        DensePrefill::new(self.dims, vec![None; self.dims.layers], self.rows)
    }
}

/// Sizes of a cache by itself.
pub(in crate::experiments) fn cache_dims(
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Dims {
    Dims {
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden: heads * head_dim,
        vocab: 1,
    }
}
