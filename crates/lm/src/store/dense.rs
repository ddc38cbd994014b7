//! Every row as it came, in 32 or 16 bits, or in blocks of 8 or 4 bits.

use crate::roles::{Dims, KvStore, RowSet};
use keyfold_kernels::Pages;
use keyfold_kernels::attention::{CacheRows, dot_rows, mix_rows, read_rows};
use keyfold_kernels::blocks::{BlockType, quantize};
use std::ops::Range;

/// How a row is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// As it was computed.
    F32,
    /// Rounded to 16 bits.
    #[default]
    F16,
    /// Blocks of 32 numbers in 8 bits with a scale, as GGUF has them.
    Q8_0,
    /// Blocks of 32 numbers in 4 bits with a scale.
    Q4_0,
}

impl CacheType {
    /// The blocks that a row consists of.
    pub fn blocks(self) -> BlockType {
        match self {
            Self::F32 => BlockType::F32,
            Self::F16 => BlockType::F16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_0 => BlockType::Q4_0,
        }
    }
}

/// What is known of the rows of one layer and KV head.
#[derive(Debug, Clone, Default)]
struct Head {
    positions: Vec<u32>,
    /// Of the first rows.
    bias: Vec<f32>,
}

/// The rows of all heads of a layer, `[kv_heads, keys and values, capacity, row_bytes]`: one run of
/// bytes, since that of a single head is often smaller than a large page.
#[derive(Debug, Default)]
struct Layer {
    bytes: Pages,
    /// Rows for which each head has room.
    capacity: usize,
}

/// Keeps every row until it is told to drop it.
#[derive(Debug)]
pub struct DenseStore {
    dims: Dims,
    cache: CacheType,
    kind: BlockType,
    row_bytes: usize,
    /// Rows that are expected.
    rows: usize,
    /// `[layers, kv_heads]`.
    heads: Vec<Head>,
    layers: Vec<Layer>,
}

/// The two kinds of rows, in the order in which a layer has them.
const KEYS: usize = 0;
const VALUES: usize = 1;

impl DenseStore {
    /// An empty store, for about `rows` rows: it takes no room for more until there are more.
    /// `None` where the blocks of `kind` do not divide a head's vector.
    pub fn new(dims: Dims, kind: CacheType, rows: usize) -> Option<Self> {
        let (cache, kind) = (kind, kind.blocks());
        Some(Self {
            dims,
            cache,
            kind,
            row_bytes: kind.row_bytes(dims.head_dim)?,
            rows,
            heads: vec![Head::default(); dims.layers * dims.kv_heads],
            layers: (0..dims.layers).map(|_| Layer::default()).collect(),
        })
    }

    fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.dims.kv_heads + kv_head]
    }

    fn head_mut(&mut self, layer: usize, kv_head: usize) -> &mut Head {
        &mut self.heads[layer * self.dims.kv_heads + kv_head]
    }

    /// Where the keys or the values of a head lie in its layer; those of `rows` rows.
    fn place(&self, layer: usize, kv_head: usize, which: usize, rows: usize) -> Range<usize> {
        let start = (2 * kv_head + which) * self.layers[layer].capacity * self.row_bytes;
        start..start + rows * self.row_bytes
    }

    fn bytes_of(&self, layer: usize, kv_head: usize, which: usize) -> &[u8] {
        let rows = self.head(layer, kv_head).positions.len();
        &self.layers[layer].bytes[self.place(layer, kv_head, which, rows)]
    }

    /// The bytes of the first `rows` rows, for which there must be room.
    fn bytes_mut(&mut self, layer: usize, kv_head: usize, which: usize, rows: usize) -> &mut [u8] {
        let place = self.place(layer, kv_head, which, rows);
        &mut self.layers[layer].bytes[place]
    }

    fn cache_rows(&self, layer: usize, kv_head: usize, which: usize) -> CacheRows<'_> {
        CacheRows {
            kind: self.kind,
            dim: self.dims.head_dim,
            stride: self.row_bytes,
            bytes: self.bytes_of(layer, kv_head, which),
        }
    }

    /// Makes room for `rows` rows of every head of a layer, and for a quarter more where more will
    /// come: twice as much would be half empty, and large pages that are touched are in use.
    fn reserve(&mut self, layer: usize, rows: usize) {
        let capacity = self.layers[layer].capacity;
        if rows <= capacity {
            return;
        }
        let more = rows.max(capacity + capacity / 4).max(LEAST_ROWS);
        let more = match rows <= self.rows {
            true => more.min(self.rows),
            false => more,
        };
        self.layers[layer] = self.with_room(layer, more);
    }

    /// A copy of a layer in which each head has room for `capacity` rows, which are no fewer than it has.
    fn with_room(&self, layer: usize, capacity: usize) -> Layer {
        let size = capacity * self.row_bytes;
        let mut bytes = Pages::zeroed(2 * self.dims.kv_heads * size);
        for (i, to) in bytes.chunks_exact_mut(size.max(1)).enumerate() {
            let from = self.bytes_of(layer, i / 2, i % 2);
            to[..from.len()].copy_from_slice(from);
        }
        Layer { bytes, capacity }
    }
}

/// Room that a layer has at first.
const LEAST_ROWS: usize = 64;

impl Clone for DenseStore {
    fn clone(&self) -> Self {
        let layers = self.layers.iter().enumerate();
        Self {
            heads: self.heads.clone(),
            layers: layers
                .map(|(i, layer)| self.with_room(i, layer.capacity))
                .collect(),
            ..*self
        }
    }
}

/// Adds a row's bytes at the end.
pub(super) fn push(kind: BlockType, row_bytes: usize, to: &mut Vec<u8>, row: &[f32]) {
    let at = to.len();
    to.resize(at + row_bytes, 0);
    quantize(kind, row, &mut to[at..]);
}

/// Moves the rows `keep` to the front.
pub(super) fn compact(bytes: &mut [u8], row_bytes: usize, keep: &[u32]) {
    for (to, &from) in keep.iter().enumerate() {
        let from = from as usize * row_bytes;
        bytes.copy_within(from..from + row_bytes, to * row_bytes);
    }
}

/// The bias of the rows `keep`; none where there was none.
pub(super) fn kept_bias(bias: &[f32], keep: &[u32]) -> Vec<f32> {
    if bias.is_empty() {
        return Vec::new();
    }
    let of = |&row: &u32| bias.get(row as usize).copied().unwrap_or(0.0);
    keep.iter().map(of).collect()
}

impl KvStore for DenseStore {
    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]) {
        let Dims {
            kv_heads, head_dim, ..
        } = self.dims;
        let (kind, row_bytes) = (self.kind, self.row_bytes);
        let most = (0..kv_heads).map(|kv_head| self.len(layer, kv_head)).max();
        self.reserve(layer, most.unwrap_or(0) + positions.len());
        for kv_head in 0..kv_heads {
            let before = self.len(layer, kv_head);
            let rows = before + positions.len();
            self.head_mut(layer, kv_head).positions.extend(positions);
            for (which, numbers) in [(KEYS, keys), (VALUES, values)] {
                let to = self.bytes_mut(layer, kv_head, which, rows);
                let to = to[before * row_bytes..].chunks_exact_mut(row_bytes);
                let heads = numbers.chunks_exact(head_dim);
                for (row, to) in heads.skip(kv_head).step_by(kv_heads).zip(to) {
                    quantize(kind, row, to);
                }
            }
        }
    }

    fn len(&self, layer: usize, kv_head: usize) -> usize {
        self.head(layer, kv_head).positions.len()
    }

    fn positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        &self.head(layer, kv_head).positions
    }

    fn dot(&self, layer: usize, kv_head: usize, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        dot_rows(self.cache_rows(layer, kv_head, KEYS), queries, rows, out);
    }

    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        mix_rows(self.cache_rows(layer, kv_head, VALUES), weights, rows, out);
    }

    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let rows = RowSet::Range(rows.start, rows.end);
        read_rows(self.cache_rows(layer, kv_head, KEYS), rows, keys);
        read_rows(self.cache_rows(layer, kv_head, VALUES), rows, values);
    }

    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        let (row_bytes, rows) = (self.row_bytes, self.len(layer, kv_head));
        for which in [KEYS, VALUES] {
            let bytes = self.bytes_mut(layer, kv_head, which, rows);
            compact(bytes, row_bytes, keep);
        }
        let head = self.head_mut(layer, kv_head);
        for (to, &from) in keep.iter().enumerate() {
            head.positions[to] = head.positions[from as usize];
        }
        head.positions.truncate(keep.len());
        head.bias = kept_bias(&head.bias, keep);
    }

    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        let (kind, row_bytes, dim) = (self.kind, self.row_bytes, self.dims.head_dim);
        let all = self.len(layer, kv_head);
        for (which, numbers) in [(KEYS, keys), (VALUES, values)] {
            let bytes = self.bytes_mut(layer, kv_head, which, all);
            for (&row, numbers) in rows.iter().zip(numbers.chunks_exact(dim)) {
                let to = &mut bytes[row as usize * row_bytes..][..row_bytes];
                quantize(kind, numbers, to);
            }
        }
    }

    fn bias(&self, layer: usize, kv_head: usize) -> &[f32] {
        &self.head(layer, kv_head).bias
    }

    fn set_bias(&mut self, layer: usize, kv_head: usize, bias: Vec<f32>) {
        self.head_mut(layer, kv_head).bias = bias;
    }

    fn truncate(&mut self, position: u32) {
        for head in &mut self.heads {
            let rows = head.positions.partition_point(|&p| p < position);
            head.positions.truncate(rows);
            head.bias.truncate(rows);
        }
    }

    fn bytes(&self) -> u64 {
        let rows: usize = self.heads.iter().map(|h| h.positions.len()).sum();
        let biases: usize = self.heads.iter().map(|h| h.bias.len()).sum();
        (rows * (2 * self.row_bytes + 4) + 4 * biases) as u64
    }

    fn row_bytes(&self) -> (u64, u64) {
        (self.row_bytes as u64, self.row_bytes as u64)
    }

    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn tag(&self) -> u32 {
        self.cache as u32
    }

    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>) {
        let head = self.head(layer, kv_head);
        (
            head.positions.clone(),
            [
                self.bytes_of(layer, kv_head, KEYS),
                self.bytes_of(layer, kv_head, VALUES),
            ]
            .concat(),
        )
    }

    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        let half = positions.len() * self.row_bytes;
        if bytes.len() != 2 * half || !positions.is_sorted_by(|a, b| a < b) {
            return false;
        }
        self.reserve(layer, positions.len());
        let head = self.head_mut(layer, kv_head);
        head.positions.clear();
        head.positions.extend(positions);
        head.bias.clear();
        let (keys, values) = bytes.split_at(half);
        for (which, bytes) in [(KEYS, keys), (VALUES, values)] {
            self.bytes_mut(layer, kv_head, which, positions.len())
                .copy_from_slice(bytes);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims = Dims {
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        hidden: 64,
        vocab: 10,
    };

    /// A row whose numbers tell its position, head and place.
    fn row(position: u32, kv_head: usize, sign: f32) -> Vec<f32> {
        (0..32)
            .map(|i| sign * (position as f32 + kv_head as f32 / 4.0 + i as f32 / 64.0))
            .collect()
    }

    fn filled(kind: CacheType, rows: u32) -> DenseStore {
        let mut store = DenseStore::new(DIMS, kind, 8).unwrap();
        for layer in 0..2 {
            let of = |sign| -> Vec<f32> {
                (0..rows)
                    .flat_map(|p| (0..2).flat_map(move |h| row(p, h, sign)))
                    .collect()
            };
            let positions: Vec<u32> = (0..rows).collect();
            store.append(layer, &positions, &of(1.0), &of(-1.0));
        }
        store
    }

    #[test]
    fn rows_come_back_within_the_precision_of_their_type() {
        let tolerances = [
            (CacheType::F32, 0.0),
            (CacheType::F16, 4e-3),
            (CacheType::Q8_0, 0.03),
            (CacheType::Q4_0, 0.6),
        ];
        for (kind, tolerance) in tolerances {
            let store = filled(kind, 7);
            let (mut keys, mut values) = (vec![0.0; 3 * 32], vec![0.0; 3 * 32]);
            store.read(1, 1, 2..5, &mut keys, &mut values);
            let expected: Vec<f32> = (2..5).flat_map(|p| row(p, 1, 1.0)).collect();
            for ((k, v), e) in keys.iter().zip(&values).zip(&expected) {
                assert!(
                    (k - e).abs() <= tolerance && (v + e).abs() <= tolerance,
                    "{kind:?} {k} {v} {e}"
                );
            }
        }
    }

    #[test]
    fn kept_written_and_truncated_rows() {
        let mut store = filled(CacheType::F32, 6);
        store.keep(0, 1, &[1, 3, 4]);
        assert_eq!(store.positions(0, 1), [1, 3, 4]);
        assert_eq!(store.len(0, 0), 6);
        let mut scores = [0.0; 3];
        let mut unit = [0.0; 32];
        unit[0] = 1.0;
        store.dot(0, 1, &unit, RowSet::Range(0, 3), &mut scores);
        assert_eq!(scores, [1.25, 3.25, 4.25]);
        store.write(0, 1, &[2], &[9.0; 32], &[8.0; 32]);
        let mut out = [0.0; 32];
        store.mix(0, 1, &[0.5], RowSet::List(&[2]), &mut out);
        assert_eq!(out, [4.0; 32]);
        store.truncate(3);
        assert_eq!(
            (store.len(0, 1), store.len(0, 0), store.len(1, 1)),
            (1, 3, 3)
        );
    }

    #[test]
    fn rows_stay_when_room_is_made_and_in_copies() {
        let keys_of = |store: &DenseStore, kv_head: usize| {
            let rows = store.len(1, kv_head);
            let (mut keys, mut values) = (vec![0.0; rows * 32], vec![0.0; rows * 32]);
            store.read(1, kv_head, 0..rows, &mut keys, &mut values);
            assert!(keys.iter().zip(&values).all(|(k, v)| *k == -v));
            keys
        };
        for expected in [0, 100, 700] {
            let mut store = DenseStore::new(DIMS, CacheType::F32, expected).unwrap();
            for position in 0..700u32 {
                let of = |sign| [row(position, 0, sign), row(position, 1, sign)].concat();
                store.append(1, &[position], &of(1.0), &of(-1.0));
                // Heads of a layer need not have the same rows.
                if position == 60 {
                    store.keep(1, 1, &[7, 50]);
                }
            }
            let all: Vec<f32> = (0..700).flat_map(|p| row(p, 0, 1.0)).collect();
            let kept = [7, 50].into_iter().chain(61..700);
            let kept: Vec<f32> = kept.flat_map(|p| row(p, 1, 1.0)).collect();
            let copy = store.clone();
            store.truncate(3);
            assert_eq!(keys_of(&store, 0), all[..3 * 32]);
            assert_eq!((keys_of(&copy, 0), keys_of(&copy, 1)), (all, kept));
        }
    }

    #[test]
    fn saved_rows_are_restored_and_nonsense_is_not() {
        let store = filled(CacheType::Q8_0, 5);
        let (positions, bytes) = store.save(1, 0);
        let mut other = DenseStore::new(DIMS, CacheType::Q8_0, 0).unwrap();
        assert!(other.restore(1, 0, &positions, &bytes));
        assert_eq!(other.save(1, 0), (positions.clone(), bytes.clone()));
        assert!(!other.restore(1, 0, &positions[1..], &bytes));
        assert!(!other.restore(1, 0, &[0, 1, 2, 3, 3], &bytes));
    }

    #[test]
    fn blocks_must_divide_the_head() {
        let dims = Dims {
            head_dim: 48,
            ..DIMS
        };
        assert!(DenseStore::new(dims, CacheType::Q8_0, 0).is_none());
        assert!(DenseStore::new(dims, CacheType::F16, 0).is_some());
    }
}
