//! Every token of a prompt reads every token before it, or those of a sliding window.
//!
//! Queries in blocks, keys in tiles, a running maximum and sum; the matrix of scores is
//! never whole.

use super::runs::{Chunk, attend_all};
use crate::roles::{Dims, KvStore, Prefill};
use keyfold_kernels::Team;

/// Exact attention.
#[derive(Debug, Clone)]
pub struct DensePrefill {
    dims: Dims,
    /// Sliding window of each layer.
    windows: Vec<Option<usize>>,
    chunk: usize,
}

impl DensePrefill {
    /// `windows`: the sliding window of each layer; `chunk`: tokens that are read together.
    pub fn new(dims: Dims, windows: Vec<Option<usize>>, chunk: usize) -> Self {
        let chunk = chunk.max(1);
        Self {
            dims,
            windows,
            chunk,
        }
    }
}

impl Prefill for DensePrefill {
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
            window: self.windows[layer],
        };
        attend_all(&chunk, team, out, mass);
    }

    fn chunk(&self) -> Option<usize> {
        Some(self.chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::RowSet;
    use crate::test_store::{TestStore, assert_near, dims, normal, softmax};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn a_prompt_is_read_as_token_by_token() {
        let (n, dims) = (150, dims(1, 4, 2, 8));
        let store = TestStore::random(dims, n, 1);
        let queries = normal(&mut StdRng::seed_from_u64(5), n * 32);
        for window in [None, Some(20)] {
            for from in [0, 100] {
                let positions: Vec<u32> = (from as u32..n as u32).collect();
                let (mut out, mut mass) = (vec![0.0; (n - from) * 32], vec![0.0; 2 * n]);
                let mut expected_mass = mass.clone();
                let mut prefill = DensePrefill::new(dims, vec![window], 256);
                let queries = &queries[from * 32..];
                let team = Team::new(2);
                prefill.attend(0, queries, &positions, &*store, &team, &mut out, &mut mass);
                for (at, query) in queries.chunks_exact(8).enumerate() {
                    let (token, kv_head) = (from + at / 4, at % 4 / 2);
                    let first = window.map_or(0, |w| (token + 1).saturating_sub(w));
                    let seen = RowSet::Range(first, token + 1);
                    let mut weights = vec![0.0; seen.len()];
                    store.dot(0, kv_head, query, seen, &mut weights);
                    softmax(&mut weights, 8f32.sqrt().recip());
                    let mut expected = vec![0.0; 8];
                    store.mix(0, kv_head, &weights, seen, &mut expected);
                    assert_near(&out[at * 8..][..8], &expected, 1e-5, "attention");
                    for (row, weight) in (first..).zip(&weights) {
                        expected_mass[kv_head * n + row] += weight;
                    }
                }
                assert_near(&mass, &expected_mass, 1e-3, "mass");
            }
        }
    }
}
