//! PowerAttention's mask while a prompt is read: tiles that no query of a block sees are
//! never touched, so that `n` tokens cost `n log n`.
//!
//! The mask, its source and what it costs are in [`block_mask`](keyfold_core::block_mask). The
//! same mask serves decoding ([`select::power`](crate::select::power)); a model that was
//! trained on it needs both.

use keyfold_kernels::Team;

use super::runs::{Chunk, attend, attend_all};
use crate::block_mask::PowerConfig;
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Prefill};

/// The prefill kernel.
#[derive(Debug)]
pub struct PowerPrefill {
    config: PowerConfig,
    dims: Dims,
}

impl PowerPrefill {
    /// Checks the settings.
    pub fn new(config: PowerConfig, dims: Dims) -> Result<Self, Refusal> {
        config.validate(&dims)?;
        Ok(Self { config, dims })
    }

    /// What a user should know of the settings.
    pub fn notices(&self) -> Vec<String> {
        self.config.notices()
    }
}

impl Prefill for PowerPrefill {
    fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        positions: &[u32],
        store: &dyn KvStore,
        team: &Team,
        out: &mut [f32],
        mass: &mut [f32],
    ) {
        let chunk = Chunk {
            layer,
            dims: self.dims,
            queries,
            positions,
            store,
            window: None,
        };
        let config = &self.config;
        if config.dense_layers.contains(layer) {
            return attend_all(&chunk, team, out, mass);
        }
        let size = config.mask.block as u32;
        let runs = |position: u32| {
            let runs = config.mask.runs((position / size) as usize).into_iter();
            runs.map(|(from, to)| (from as u32 * size, to as u32 * size))
                .collect()
        };
        attend(&chunk, config.mask.block, &runs, team, out, mass);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::roles::{Selector, StepCtx};
    use crate::select::power::PowerSelect;
    use crate::test_store::{TestStore, assert_near, choose, dims, normal, softmax};
    use keyfold_core::block_mask::{BlockMask, Pattern};

    const N: usize = 500;

    /// Attention under the mask as written, and the mass that every row of the KV head gets.
    fn literal(config: &BlockMask, store: &TestStore, queries: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let dims = store.dims;
        let mut out = vec![0.0; queries.len()];
        let mut mass = vec![0.0; dims.kv_heads * N];
        for query in 0..N {
            for head in 0..dims.heads {
                let kv_head = head / dims.group();
                let seen: Vec<u32> = (0..=query)
                    .filter(|key| {
                        let apart = query / config.block - key / config.block;
                        apart < config.window
                            || apart & apart.wrapping_sub(1) == 0
                            || *key < config.block * config.sink
                    })
                    .map(|key| key as u32)
                    .collect();
                let at = (query * dims.heads + head) * dims.head_dim;
                let mut weights = vec![0.0; seen.len()];
                let rows = crate::roles::RowSet::List(&seen);
                store.dot(
                    0,
                    kv_head,
                    &queries[at..at + dims.head_dim],
                    rows,
                    &mut weights,
                );
                softmax(&mut weights, (dims.head_dim as f32).sqrt().recip());
                store.mix(0, kv_head, &weights, rows, &mut out[at..at + dims.head_dim]);
                for (&row, weight) in seen.iter().zip(&weights) {
                    mass[kv_head * N + row as usize] += weight;
                }
            }
        }
        (out, mass)
    }

    fn config() -> PowerConfig {
        let mask = BlockMask {
            block: 64,
            window: 2,
            ..BlockMask::default()
        };
        PowerConfig {
            mask,
            dense_layers: "1".parse().unwrap(),
            ..PowerConfig::default()
        }
    }

    #[test]
    fn a_prompt_in_any_chunks_is_read_as_the_mask_is_written() {
        let dims = dims(2, 4, 2, 32);
        let store = TestStore::random(dims, N, 1);
        let queries = normal(&mut StdRng::seed_from_u64(2), N * 128);
        let (expected, expected_mass) = literal(&config().mask, &store, &queries);
        let team = Team::new(2);
        for chunk in [N, 256, 100] {
            let mut power = PowerPrefill::new(config(), dims).unwrap();
            let mut full = TestStore::new(dims);
            let (mut out, mut mass) = (vec![0.0; N * 128], vec![0.0; 2 * N]);
            for from in (0..N).step_by(chunk) {
                let to = (from + chunk).min(N);
                let rows = |rows: &[f32]| rows[from * 64..to * 64].to_vec();
                let (keys, values) = (store.keys(0), store.values(0));
                let positions: Vec<u32> = (from as u32..to as u32).collect();
                full.append(0, &positions, &rows(&keys), &rows(&values));
                let mut part = vec![0.0; 2 * to];
                power.attend(
                    0,
                    &queries[from * 128..to * 128],
                    &positions,
                    &*full,
                    &team,
                    &mut out[from * 128..to * 128],
                    &mut part,
                );
                for head in 0..2 {
                    let sums = &part[head * to..(head + 1) * to];
                    keyfold_kernels::add_assign(&mut mass[head * N..head * N + to], sums);
                }
            }
            assert_near(&out, &expected, 1e-5, &format!("chunks of {chunk}"));
            assert_near(
                &mass,
                &expected_mass,
                1e-3,
                &format!("mass, chunks of {chunk}"),
            );
        }
    }

    #[test]
    fn decoding_sees_what_the_prompt_s_last_token_saw() {
        let dims = dims(2, 4, 2, 32);
        let store = TestStore::random(dims, N, 1);
        let queries = normal(&mut StdRng::seed_from_u64(2), N * 128);
        for pattern in [Pattern::Power, Pattern::LongNet, Pattern::Dilated] {
            let mask = BlockMask {
                block: 64,
                ..BlockMask::baseline(pattern)
            };
            let config = PowerConfig::from(mask);
            let mut out = vec![0.0; N * 128];
            let positions: Vec<u32> = (0..N as u32).collect();
            let team = Team::new(2);
            PowerPrefill::new(config.clone(), dims).unwrap().attend(
                0,
                &queries,
                &positions,
                &*store,
                &team,
                &mut out,
                &mut [],
            );
            let mut select = PowerSelect::new(config, dims).unwrap();
            let last = &queries[(N - 1) * 128..];
            let rows = choose(&mut select, 0, last, &store, &mut StepCtx::default());
            let got = store.attend(0, last, &rows);
            assert_near(&got, &out[(N - 1) * 128..], 1e-5, "decoding");
            select.truncate(0);
        }
    }

    #[test]
    fn a_dense_layer_sees_everything_that_is_left() {
        let dims = dims(2, 4, 2, 32);
        let mut store = TestStore::random(dims, N, 1);
        store.keep(
            1,
            0,
            &(0..N as u32).filter(|row| row % 3 != 0).collect::<Vec<_>>(),
        );
        let queries = normal(&mut StdRng::seed_from_u64(2), 128);
        let mut out = vec![0.0; 128];
        let team = Team::new(1);
        PowerPrefill::new(config(), dims).unwrap().attend(
            1,
            &queries,
            &[N as u32 - 1],
            &*store,
            &team,
            &mut out,
            &mut [],
        );
        let expected = store.attend(1, &queries, &crate::roles::Rows::default());
        assert_near(&out, &expected, 1e-5, "dense layer");
    }
}
