//! A store of single-precision rows for tests of what reads from one.

use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use keyfold_kernels::Team;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::roles::{Dims, KvStore, Reads, RowSet, Rows, Selector, StepCtx};
use crate::store::{CacheType, DenseStore};

/// Rows as they were computed, and what tests ask of them.
pub(crate) struct TestStore {
    pub(crate) dims: Dims,
    store: DenseStore,
}

/// Sizes for tests.
pub(crate) fn dims(layers: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Dims {
    Dims {
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden: heads * head_dim,
        vocab: 64,
    }
}

/// Normally distributed numbers.
pub(crate) fn normal(rng: &mut StdRng, len: usize) -> Vec<f32> {
    let mut one = || {
        let sum: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
        sum - 6.0
    };
    (0..len).map(|_| one()).collect()
}

impl TestStore {
    pub(crate) fn new(dims: Dims) -> Self {
        let store = DenseStore::new(dims, CacheType::F32, 0).unwrap();
        Self { dims, store }
    }

    /// A store of `rows` random rows in every layer.
    pub(crate) fn random(dims: Dims, rows: usize, seed: u64) -> Self {
        let mut store = Self::new(dims);
        let mut rng = StdRng::seed_from_u64(seed);
        let wide = dims.kv_heads * dims.head_dim;
        let positions: Vec<u32> = (0..rows as u32).collect();
        for layer in 0..dims.layers {
            let (keys, values) = (normal(&mut rng, rows * wide), normal(&mut rng, rows * wide));
            store.append(layer, &positions, &keys, &values);
        }
        store
    }

    /// Keys of a layer as they were appended, `[rows, kv_heads, head_dim]`.
    pub(crate) fn keys(&self, layer: usize) -> Vec<f32> {
        self.rows(layer).0
    }

    /// Values of a layer as they were appended.
    pub(crate) fn values(&self, layer: usize) -> Vec<f32> {
        self.rows(layer).1
    }

    fn rows(&self, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let (dim, wide) = (self.dims.head_dim, self.dims.kv_heads * self.dims.head_dim);
        let rows = self.len(layer, 0);
        let (mut all_keys, mut all_values) = (vec![0.0; rows * wide], vec![0.0; rows * wide]);
        for head in 0..self.dims.kv_heads {
            let (mut keys, mut values) = (vec![0.0; rows * dim], vec![0.0; rows * dim]);
            self.read(layer, head, 0..rows, &mut keys, &mut values);
            for row in 0..rows {
                let (from, to) = (row * dim, row * wide + head * dim);
                all_keys[to..to + dim].copy_from_slice(&keys[from..from + dim]);
                all_values[to..to + dim].copy_from_slice(&values[from..from + dim]);
            }
        }
        (all_keys, all_values)
    }

    /// Attention of `queries` `[heads, head_dim]` to the rows that `rows` says.
    pub(crate) fn attend(&self, layer: usize, queries: &[f32], rows: &Rows) -> Vec<f32> {
        let (dims, dim) = (self.dims, self.dims.head_dim);
        let mut out = vec![0.0; queries.len()];
        for (head, (query, out)) in queries.chunks(dim).zip(out.chunks_mut(dim)).enumerate() {
            let kv_head = head / dims.group();
            let all: Vec<u32> = (0..self.len(layer, kv_head) as u32).collect();
            let list = match rows.reads {
                Reads::All => &all,
                Reads::PerKvHead => &rows.lists[kv_head],
                Reads::PerHead => &rows.lists[head],
            };
            let mut weights = vec![0.0; list.len()];
            self.dot(layer, kv_head, query, RowSet::List(list), &mut weights);
            softmax(&mut weights, (dim as f32).sqrt().recip());
            self.mix(layer, kv_head, &weights, RowSet::List(list), out);
        }
        out
    }
}

pub(crate) fn softmax(scores: &mut [f32], scale: f32) {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|x| *x = ((*x - greatest) * scale).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|x| *x /= sum);
}

/// Rows that a selector chooses for the newest token.
pub(crate) fn choose(
    selector: &mut dyn Selector,
    layer: usize,
    queries: &[f32],
    store: &TestStore,
    ctx: &mut StepCtx,
) -> Rows {
    let mut rows = Rows::default();
    static TEAM: LazyLock<Team> = LazyLock::new(|| Team::new(2));
    ctx.position = store.positions(layer, 0).last().copied().unwrap_or(0);
    selector.select(layer, queries, &**store, ctx, &TEAM, &mut rows);
    rows
}

impl Deref for TestStore {
    type Target = DenseStore;

    fn deref(&self) -> &DenseStore {
        &self.store
    }
}

impl DerefMut for TestStore {
    fn deref_mut(&mut self) -> &mut DenseStore {
        &mut self.store
    }
}

/// Tensors of a fixture that `parity/long_context.py` wrote.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures-long-context/");
        Self(std::fs::read(format!("{folder}{name}")).unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let words = tensors.tensor(name).unwrap().data().chunks_exact(4);
        words.map(|word| word.try_into().unwrap()).collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name)
            .into_iter()
            .map(f32::from_le_bytes)
            .collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<u32> {
        self.words(name)
            .into_iter()
            .map(u32::from_le_bytes)
            .collect()
    }
}

/// The inputs of `parity/long_context.py`: even numbers between -1 and 1.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let number = |i: u64| {
        let mut z = (seed << 32)
            .wrapping_add(i)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
    };
    (1..=len as u64).map(number).collect()
}

/// Asserts that the numbers are equal but for `tolerance`.
pub(crate) fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance,
            "{what}: number {i}: {a} and {b}"
        );
    }
}
