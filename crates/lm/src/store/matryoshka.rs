//! MatryoshkaKV: keys and values in fewer numbers, in a basis of their own for every head.
//!
//! Bokai Lin, Zihao Zeng, Zipeng Xiao, Siqi Kou, Tianqi Hou, Xiaofeng Gao, Hao Zhang and
//! Zhijie Deng, 2025, MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection.
//!
//! ```text
//! k̂ = (k - μ_K) U_K[:, ..r_K]     v̂ = (v - μ_V) U_V[:, ..r_V]     after rotary embedding
//! q · k ≈ (q U_K[:, ..r_K]) · k̂ + q · μ_K
//! Σ p v ≈ (Σ p v̂) U_V[:, ..r_V]ᵀ + (Σ p) μ_V
//! ```
//!
//! `U_K` and `U_V` are orthogonal, their columns ordered so that the first tell most: by
//! principal components ([`Moments`]), or trained. Every layer and KV head has its own ranks
//! ([`Ranks`]), found by a [greedy search](search_ranks). A token reads `S (r_K + r_V)` numbers
//! of a head in place of `2 S d`, and `d (r_K + r_V)` products to turn its queries and what
//! it found, which is little beyond `d` rows.
//!
//! With weights of the output projection that are plain numbers, the basis of values is
//! [folded](fold_output) into them: the store then hands out `Σ p v̂`, padded with zeros, and
//! the projection, turned and cut to the ranks, takes it from there, so that nothing is turned
//! back and fewer weights are read. Packed weights stay as they are, and the store turns back.
//!
//! Bases are trained (feature `train`) in Cayley form ([`to_cayley`]), so that they stay
//! orthogonal, with ranks drawn anew for every head and step, so that every rank is good:
//! `loss = 0.25 KL(all weights | projected) + 0.75 cross-entropy`, all other weights fixed.
//!
//! One basis serves all query heads of a KV head. The authors repeat keys and values for each
//! query head first and train a basis for each, which stores a shared head several times; bases of
//! that kind ([`heads_in`] a file) go with a model whose heads were repeated
//! ([`ModelFile::repeat_kv`](crate::ModelFile::repeat_kv)).

mod bases;
mod cayley;
mod file;
mod fold;
mod ranks;
#[cfg(feature = "train")]
mod train;

pub use bases::{Around, Bases, HeadBasis, Moments, principal};
pub use cayley::{from_cayley, to_cayley};
pub use file::{heads_in, load, save};
pub use fold::fold_output;
pub use ranks::{RankSearch, Ranks, search_ranks};
#[cfg(feature = "train")]
pub use train::{TrainingConfig, Watched, train};

use super::CacheType;
use super::dense::{compact, kept_bias, push};
use crate::LmError;
use crate::roles::{Dims, KvStore, RowSet};
use keyfold_kernels::attention::{CacheRows, dot_rows, mix_rows, read_rows};
use keyfold_kernels::blocks::{BlockType, quantize};
use keyfold_kernels::{axpy, dot};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Rows of one layer and KV head.
#[derive(Debug, Clone, Default)]
struct Head {
    keys: Vec<u8>,
    values: Vec<u8>,
    positions: Vec<u32>,
    /// Of the first rows.
    bias: Vec<f32>,
}

/// Bytes and numbers of the rows of a head's keys or values.
#[derive(Debug, Clone, Copy)]
struct Width {
    rank: usize,
    bytes: usize,
}

/// Keeps the leading numbers of every row.
#[derive(Debug, Clone)]
pub struct MatryoshkaStore {
    dims: Dims,
    kind: BlockType,
    bases: Arc<Bases>,
    /// Whether values stay turned because the output projection takes them so.
    folded: bool,
    /// Tells these bases and ranks from others.
    tag: u32,
    /// Of keys and values, `[layers, kv_heads]`.
    widths: Vec<[Width; 2]>,
    /// `[layers, kv_heads]`.
    heads: Vec<Head>,
}

/// A checksum of what rows mean, apart from the numbers of plain caches.
fn tag(bases: &Bases, ranks: &Ranks, kind: BlockType) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(format!("{ranks:?} {kind:?}").as_bytes());
    for basis in bases.keys.iter().chain(&bases.values) {
        crc.update(bytemuck::cast_slice(&basis.directions));
        crc.update(bytemuck::cast_slice(&basis.mean));
    }
    crc.finalize() | 1 << 31
}

thread_local! {
    /// Turned queries, sums or rows.
    static TURNED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl MatryoshkaStore {
    /// An empty store with room for `rows` rows, whose leading numbers are kept as `kind`.
    /// `folded`: values go to an output projection that [`fold_output`] has made.
    ///
    /// # Errors
    /// When the bases or the ranks are of another model, or blocks of `kind` do not divide a rank.
    pub fn new(
        dims: Dims,
        bases: Arc<Bases>,
        ranks: &Ranks,
        kind: CacheType,
        folded: bool,
        rows: usize,
    ) -> Result<Self, LmError> {
        bases.check(&dims)?;
        ranks.check(&dims)?;
        let kind = kind.blocks();
        let width = |&rank: &usize| {
            let bytes = kind.row_bytes(rank).ok_or_else(|| LmError::Input {
                what: format!(
                    "matryoshka: {rank} numbers of a row are no whole blocks of {}, which hold {}",
                    kind.name(),
                    kind.block_len()
                ),
            })?;
            Ok::<_, LmError>(Width { rank, bytes })
        };
        let widths: Vec<[Width; 2]> = ranks
            .keys
            .iter()
            .zip(&ranks.values)
            .map(|(k, v)| Ok([width(k)?, width(v)?]))
            .collect::<Result<_, LmError>>()?;
        let head = |[k, v]: &[Width; 2]| Head {
            keys: Vec::with_capacity(rows * k.bytes),
            values: Vec::with_capacity(rows * v.bytes),
            positions: Vec::with_capacity(rows),
            bias: Vec::new(),
        };
        Ok(Self {
            dims,
            kind,
            folded,
            tag: tag(&bases, ranks, kind),
            heads: widths.iter().map(head).collect(),
            widths,
            bases,
        })
    }

    fn at(&self, layer: usize, kv_head: usize) -> usize {
        layer * self.dims.kv_heads + kv_head
    }

    fn rows<'a>(&self, width: Width, bytes: &'a [u8]) -> CacheRows<'a> {
        CacheRows {
            kind: self.kind,
            dim: width.rank,
            stride: width.bytes,
            bytes,
        }
    }

    /// A value as [`KvStore::mix`] hands it out.
    fn present(&self, at: usize, value: &mut [f32]) {
        let (rank, basis) = (self.widths[at][1].rank, &self.bases.values[at]);
        TURNED.with_borrow_mut(|turned| {
            turned.resize(rank, 0.0);
            basis.turn(value, turned);
            if self.folded {
                value.fill(0.0);
                value[..rank].copy_from_slice(turned);
            } else {
                basis.turn_back(turned, rank, value);
            }
        });
    }
}

impl KvStore for MatryoshkaStore {
    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]) {
        let (d, kv_heads) = (self.dims.head_dim, self.dims.kv_heads);
        TURNED.with_borrow_mut(|turned| {
            for (i, &position) in positions.iter().enumerate() {
                for kv_head in 0..kv_heads {
                    let row = (i * kv_heads + kv_head) * d;
                    let at = layer * kv_heads + kv_head;
                    let [of_key, of_value] = self.widths[at];
                    let head = &mut self.heads[at];
                    turned.resize(of_key.rank, 0.0);
                    self.bases.keys[at].turn(&keys[row..row + d], turned);
                    push(self.kind, of_key.bytes, &mut head.keys, turned);
                    turned.resize(of_value.rank, 0.0);
                    self.bases.values[at].turn(&values[row..row + d], turned);
                    push(self.kind, of_value.bytes, &mut head.values, turned);
                    head.positions.push(position);
                }
            }
        });
    }

    fn len(&self, layer: usize, kv_head: usize) -> usize {
        self.heads[self.at(layer, kv_head)].positions.len()
    }

    fn positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        &self.heads[self.at(layer, kv_head)].positions
    }

    fn dot(&self, layer: usize, kv_head: usize, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        if rows.is_empty() {
            return;
        }
        let (at, d) = (self.at(layer, kv_head), self.dims.head_dim);
        let (width, basis) = (self.widths[at][0], &self.bases.keys[at]);
        TURNED.with_borrow_mut(|turned| {
            turned.clear();
            for query in queries.chunks_exact(d) {
                let directions = basis.directions.chunks_exact(d).take(width.rank);
                turned.extend(directions.map(|u| dot(query, u)));
            }
            dot_rows(self.rows(width, &self.heads[at].keys), turned, rows, out);
        });
        // The same for all keys of a query: softmax does not see it, but keys that are not
        // in the store (of candidates) are whole.
        for (query, out) in queries
            .chunks_exact(d)
            .zip(out.chunks_exact_mut(rows.len()))
        {
            let shift = dot(query, &basis.mean);
            out.iter_mut().for_each(|score| *score += shift);
        }
    }

    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        if rows.is_empty() {
            return;
        }
        let (at, d) = (self.at(layer, kv_head), self.dims.head_dim);
        let (width, basis) = (self.widths[at][1], &self.bases.values[at]);
        TURNED.with_borrow_mut(|sums| {
            sums.clear();
            sums.resize(out.len() / d * width.rank, 0.0);
            mix_rows(
                self.rows(width, &self.heads[at].values),
                weights,
                rows,
                sums,
            );
            let sums = sums.chunks_exact(width.rank);
            for ((out, sums), weights) in out
                .chunks_exact_mut(d)
                .zip(sums)
                .zip(weights.chunks_exact(rows.len()))
            {
                if self.folded {
                    keyfold_kernels::add_assign(&mut out[..width.rank], sums);
                    continue;
                }
                for (u, &sum) in basis.directions.chunks_exact(d).zip(sums) {
                    axpy(out, sum, u);
                }
                axpy(out, weights.iter().sum(), &basis.mean);
            }
        });
    }

    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let (at, d) = (self.at(layer, kv_head), self.dims.head_dim);
        let head = &self.heads[at];
        let set = RowSet::Range(rows.start, rows.end);
        let [of_key, of_value] = self.widths[at];
        let back =
            |basis: &HeadBasis, width: Width, bytes: &[u8], folded: bool, out: &mut [f32]| {
                TURNED.with_borrow_mut(|turned| {
                    turned.resize(rows.len() * width.rank, 0.0);
                    read_rows(self.rows(width, bytes), set, turned);
                    if !folded {
                        return basis.turn_back(turned, width.rank, out);
                    }
                    let turned = turned.chunks_exact(width.rank);
                    for (out, turned) in out.chunks_exact_mut(d).zip(turned) {
                        out[..width.rank].copy_from_slice(turned);
                        out[width.rank..].fill(0.0);
                    }
                });
            };
        back(&self.bases.keys[at], of_key, &head.keys, false, keys);
        back(
            &self.bases.values[at],
            of_value,
            &head.values,
            self.folded,
            values,
        );
    }

    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        let at = self.at(layer, kv_head);
        let [of_key, of_value] = self.widths[at];
        let head = &mut self.heads[at];
        compact(&mut head.keys, of_key.bytes, keep);
        head.keys.truncate(keep.len() * of_key.bytes);
        compact(&mut head.values, of_value.bytes, keep);
        head.values.truncate(keep.len() * of_value.bytes);
        for (to, &from) in keep.iter().enumerate() {
            head.positions[to] = head.positions[from as usize];
        }
        head.positions.truncate(keep.len());
        head.bias = kept_bias(&head.bias, keep);
    }

    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        let (at, d) = (self.at(layer, kv_head), self.dims.head_dim);
        let [of_key, of_value] = self.widths[at];
        let head = &mut self.heads[at];
        let put = |turned: &[f32], width: Width, row: u32, bytes: &mut [u8]| {
            let from = row as usize * width.bytes;
            quantize(self.kind, turned, &mut bytes[from..from + width.bytes]);
        };
        let each = keys.chunks_exact(d).zip(values.chunks_exact(d));
        TURNED.with_borrow_mut(|turned| {
            for (&row, (key, value)) in rows.iter().zip(each) {
                turned.resize(of_key.rank, 0.0);
                self.bases.keys[at].turn(key, turned);
                put(turned, of_key, row, &mut head.keys);
                if self.folded {
                    // As `read` gave it.
                    put(&value[..of_value.rank], of_value, row, &mut head.values);
                    continue;
                }
                turned.resize(of_value.rank, 0.0);
                self.bases.values[at].turn(value, turned);
                put(turned, of_value, row, &mut head.values);
            }
        });
    }

    fn bias(&self, layer: usize, kv_head: usize) -> &[f32] {
        &self.heads[self.at(layer, kv_head)].bias
    }

    fn set_bias(&mut self, layer: usize, kv_head: usize, bias: Vec<f32>) {
        let at = self.at(layer, kv_head);
        self.heads[at].bias = bias;
    }

    fn present_values(&self, layer: usize, values: &mut [f32]) {
        for (i, value) in values.chunks_exact_mut(self.dims.head_dim).enumerate() {
            self.present(self.at(layer, i % self.dims.kv_heads), value);
        }
    }

    fn truncate(&mut self, position: u32) {
        for (head, [of_key, of_value]) in self.heads.iter_mut().zip(&self.widths) {
            let rows = head.positions.partition_point(|&p| p < position);
            head.positions.truncate(rows);
            head.bias.truncate(rows);
            head.keys.truncate(rows * of_key.bytes);
            head.values.truncate(rows * of_value.bytes);
        }
    }

    fn bytes(&self) -> u64 {
        let of = |head: &Head| {
            head.keys.len() + head.values.len() + 4 * (head.positions.len() + head.bias.len())
        };
        self.heads.iter().map(of).sum::<usize>() as u64
    }

    fn row_bytes(&self) -> (u64, u64) {
        let mean = |which: usize| {
            let sum: usize = self.widths.iter().map(|w| w[which].bytes).sum();
            (sum / self.widths.len().max(1)) as u64
        };
        (mean(0), mean(1))
    }

    fn tag(&self) -> u32 {
        self.tag
    }

    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>) {
        let head = &self.heads[self.at(layer, kv_head)];
        (
            head.positions.clone(),
            [head.keys.as_slice(), &head.values].concat(),
        )
    }

    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        let at = self.at(layer, kv_head);
        let [of_key, of_value] = self.widths[at];
        let keys = positions.len() * of_key.bytes;
        let whole = keys + positions.len() * of_value.bytes;
        if bytes.len() != whole || !positions.is_sorted_by(|a, b| a < b) {
            return false;
        }
        self.heads[at] = Head {
            keys: bytes[..keys].to_vec(),
            values: bytes[keys..].to_vec(),
            positions: positions.to_vec(),
            bias: Vec::new(),
        };
        true
    }
}

#[cfg(test)]
mod tests;
