//! Every row as it came, in 32 or 16 bits, or in blocks of 8 or 4 bits.

use crate::roles::{Dims, KvStore, RowSet};
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

/// Rows of one layer and KV head.
#[derive(Debug, Clone, Default)]
struct Head {
    keys: Vec<u8>,
    values: Vec<u8>,
    positions: Vec<u32>,
    /// Of the first rows.
    bias: Vec<f32>,
}

/// Keeps every row until it is told to drop it.
#[derive(Debug, Clone)]
pub struct DenseStore {
    dims: Dims,
    cache: CacheType,
    kind: BlockType,
    row_bytes: usize,
    /// `[layers, kv_heads]`.
    heads: Vec<Head>,
}

impl DenseStore {
    /// An empty store with room for `rows` rows. `None` where the blocks of `kind` do not
    /// divide a head's vector.
    pub fn new(dims: Dims, kind: CacheType, rows: usize) -> Option<Self> {
        let (cache, kind) = (kind, kind.blocks());
        let row_bytes = kind.row_bytes(dims.head_dim)?;
        let head = || Head {
            keys: Vec::with_capacity(rows * row_bytes),
            values: Vec::with_capacity(rows * row_bytes),
            positions: Vec::with_capacity(rows),
            bias: Vec::new(),
        };
        let heads = (0..dims.layers * dims.kv_heads).map(|_| head()).collect();
        Some(Self {
            dims,
            cache,
            kind,
            row_bytes,
            heads,
        })
    }

    fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.dims.kv_heads + kv_head]
    }

    fn head_mut(&mut self, layer: usize, kv_head: usize) -> &mut Head {
        &mut self.heads[layer * self.dims.kv_heads + kv_head]
    }

    fn rows<'a>(&self, bytes: &'a [u8]) -> CacheRows<'a> {
        CacheRows {
            kind: self.kind,
            dim: self.dims.head_dim,
            stride: self.row_bytes,
            bytes,
        }
    }
}

/// Adds a row's bytes at the end.
pub(super) fn push(kind: BlockType, row_bytes: usize, to: &mut Vec<u8>, row: &[f32]) {
    let at = to.len();
    to.resize(at + row_bytes, 0);
    quantize(kind, row, &mut to[at..]);
}

/// Moves the rows `keep` to the front and drops the rest.
pub(super) fn compact(bytes: &mut Vec<u8>, row_bytes: usize, keep: &[u32]) {
    for (to, &from) in keep.iter().enumerate() {
        let from = from as usize * row_bytes;
        bytes.copy_within(from..from + row_bytes, to * row_bytes);
    }
    bytes.truncate(keep.len() * row_bytes);
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
        for (i, &position) in positions.iter().enumerate() {
            for kv_head in 0..kv_heads {
                let at = (i * kv_heads + kv_head) * head_dim;
                let head = self.head_mut(layer, kv_head);
                push(kind, row_bytes, &mut head.keys, &keys[at..at + head_dim]);
                push(
                    kind,
                    row_bytes,
                    &mut head.values,
                    &values[at..at + head_dim],
                );
                head.positions.push(position);
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
        dot_rows(
            self.rows(&self.head(layer, kv_head).keys),
            queries,
            rows,
            out,
        );
    }

    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        mix_rows(
            self.rows(&self.head(layer, kv_head).values),
            weights,
            rows,
            out,
        );
    }

    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let head = self.head(layer, kv_head);
        let rows = RowSet::Range(rows.start, rows.end);
        read_rows(self.rows(&head.keys), rows, keys);
        read_rows(self.rows(&head.values), rows, values);
    }

    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        let row_bytes = self.row_bytes;
        let head = self.head_mut(layer, kv_head);
        compact(&mut head.keys, row_bytes, keep);
        compact(&mut head.values, row_bytes, keep);
        for (to, &from) in keep.iter().enumerate() {
            head.positions[to] = head.positions[from as usize];
        }
        head.positions.truncate(keep.len());
        head.bias = kept_bias(&head.bias, keep);
    }

    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        let (kind, row_bytes, dim) = (self.kind, self.row_bytes, self.dims.head_dim);
        let head = self.head_mut(layer, kv_head);
        for (i, &row) in rows.iter().enumerate() {
            let at = row as usize * row_bytes..(row as usize + 1) * row_bytes;
            let from = i * dim..(i + 1) * dim;
            quantize(kind, &keys[from.clone()], &mut head.keys[at.clone()]);
            quantize(kind, &values[from], &mut head.values[at]);
        }
    }

    fn bias(&self, layer: usize, kv_head: usize) -> &[f32] {
        &self.head(layer, kv_head).bias
    }

    fn set_bias(&mut self, layer: usize, kv_head: usize, bias: Vec<f32>) {
        self.head_mut(layer, kv_head).bias = bias;
    }

    fn truncate(&mut self, position: u32) {
        let row_bytes = self.row_bytes;
        for head in &mut self.heads {
            let rows = head.positions.partition_point(|&p| p < position);
            head.positions.truncate(rows);
            head.bias.truncate(rows);
            head.keys.truncate(rows * row_bytes);
            head.values.truncate(rows * row_bytes);
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
            [head.keys.as_slice(), &head.values].concat(),
        )
    }

    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        let half = positions.len() * self.row_bytes;
        if bytes.len() != 2 * half || !positions.is_sorted_by(|a, b| a < b) {
            return false;
        }
        let head = self.head_mut(layer, kv_head);
        head.positions.clear();
        head.positions.extend(positions);
        head.bias.clear();
        head.keys.clear();
        head.keys.extend(&bytes[..half]);
        head.values.clear();
        head.values.extend(&bytes[half..]);
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
