//! Rows of one layer and KV head: first rows in 16 bits, the others as codes, and what is
//! kept beside the codes.

use half::f16;
use keyfold_kernels::nuq::{BEHIND, GRANULE, Group};

use super::quantizer::{Outlier, Scale};
use super::sparse::Sparse;
use crate::store::dense::kept_bias;

/// A row that was taken out.
pub(super) struct Packed {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
    pub(super) scale: Scale,
    pub(super) key_outliers: Vec<Outlier>,
    pub(super) value_outliers: Vec<Outlier>,
}

/// Rows of one layer and KV head.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    /// Of all rows.
    pub(super) positions: Vec<u32>,
    /// What is added to the logits of rows; shorter than the rows where it is 0 from there on.
    pub(super) bias: Vec<f32>,
    /// Rows that come first and are kept as they are.
    pub(super) sinks: usize,
    /// `[sinks, dim]`, keys before rotary embedding.
    pub(super) sink_keys: Vec<f16>,
    pub(super) sink_values: Vec<f16>,
    /// Codes of the other rows, and [`BEHIND`] bytes.
    keys: Vec<u8>,
    values: Vec<u8>,
    pub(super) scales: Vec<Scale>,
    pub(super) key_outliers: Sparse,
    pub(super) value_outliers: Sparse,
}

impl Head {
    /// Rows that are kept as codes.
    pub(super) fn packed(&self) -> usize {
        self.positions.len() - self.sinks
    }

    pub(super) fn key_bytes(&self) -> &[u8] {
        &self.keys
    }

    pub(super) fn value_bytes(&self) -> &[u8] {
        &self.values
    }

    /// Adds a row that is kept as it is; only before any other.
    pub(super) fn push_sink(&mut self, position: u32, key: &[f32], value: &[f32]) {
        self.sink_keys.extend(key.iter().map(|&x| f16::from_f32(x)));
        self.sink_values
            .extend(value.iter().map(|&x| f16::from_f32(x)));
        self.positions.push(position);
        self.sinks += 1;
    }

    /// Adds a row of codes `[dim]`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn push(
        &mut self,
        position: u32,
        bits: usize,
        keys: &[u8],
        values: &[u8],
        scale: Scale,
        key_outliers: impl IntoIterator<Item = Outlier>,
        value_outliers: impl IntoIterator<Item = Outlier>,
    ) {
        let (row, dim) = (self.packed(), keys.len());
        if row.is_multiple_of(GRANULE) {
            let granules = row / GRANULE + 1;
            self.keys.resize(granules * dim * bits + BEHIND, 0);
        }
        let row_bytes = dim / 8 * bits;
        self.values.resize((row + 1) * row_bytes + BEHIND, 0);
        self.positions.push(position);
        self.set_codes(row, bits, keys, values);
        self.scales.push(scale);
        self.key_outliers.push(row, key_outliers);
        self.value_outliers.push(row, value_outliers);
    }

    fn set_codes(&mut self, row: usize, bits: usize, keys: &[u8], values: &[u8]) {
        let dim = keys.len();
        let granule = &mut self.keys[row / GRANULE * dim * bits..][..dim * bits];
        for (group, &code) in granule.chunks_exact_mut(bits).zip(keys) {
            Group::new(group).set(row % GRANULE, code);
        }
        let of_row = &mut self.values[row * (dim / 8 * bits)..][..dim / 8 * bits];
        let groups = of_row.chunks_exact_mut(bits).zip(values.chunks_exact(8));
        for (group, codes) in groups {
            let mut group = Group::new(group);
            codes
                .iter()
                .enumerate()
                .for_each(|(i, &code)| group.set(i, code));
        }
    }

    /// A row of codes, to be put elsewhere.
    fn take(&self, row: usize, bits: usize, dim: usize) -> Packed {
        let code = |bytes: &[u8], place: usize| {
            let mut copy = [0; 4];
            copy[..bits].copy_from_slice(bytes);
            Group::new(&mut copy[..bits]).get(place)
        };
        let granule = &self.keys[row / GRANULE * dim * bits..][..dim * bits];
        let of_row = &self.values[row * (dim / 8 * bits)..][..dim / 8 * bits];
        let outliers = |sparse: &Sparse| -> Vec<Outlier> {
            let entries = sparse.of_row(row);
            entries
                .map(|e| Outlier {
                    channel: e.channel(),
                    residual: e.residual(),
                })
                .collect()
        };
        Packed {
            keys: granule
                .chunks_exact(bits)
                .map(|group| code(group, row % GRANULE))
                .collect(),
            values: (0..dim)
                .map(|c| code(&of_row[c / 8 * bits..][..bits], c % 8))
                .collect(),
            scale: self.scales[row],
            key_outliers: outliers(&self.key_outliers),
            value_outliers: outliers(&self.value_outliers),
        }
    }

    /// Makes all rows anew: those of `rows` (ascending), each as `change(row)` says where it
    /// says anything. Sinks that are changed stay sinks: theirs is written by the caller.
    pub(super) fn rebuild(
        &mut self,
        rows: &[u32],
        bits: usize,
        dim: usize,
        mut change: impl FnMut(usize) -> Option<Packed>,
    ) {
        let old = std::mem::take(self);
        for &row in rows {
            let row = row as usize;
            let position = old.positions[row];
            if row < old.sinks {
                let of_row = row * dim..(row + 1) * dim;
                self.sink_keys
                    .extend_from_slice(&old.sink_keys[of_row.clone()]);
                self.sink_values.extend_from_slice(&old.sink_values[of_row]);
                self.positions.push(position);
                self.sinks += 1;
                continue;
            }
            let p = change(row).unwrap_or_else(|| old.take(row - old.sinks, bits, dim));
            self.push(
                position,
                bits,
                &p.keys,
                &p.values,
                p.scale,
                p.key_outliers,
                p.value_outliers,
            );
        }
        self.bias = kept_bias(&old.bias, rows);
    }

    /// Drops the rows from `rows` on.
    pub(super) fn truncate(&mut self, rows: usize, bits: usize, dim: usize) {
        if rows >= self.positions.len() {
            return;
        }
        self.positions.truncate(rows);
        self.bias.truncate(rows);
        self.sinks = self.sinks.min(rows);
        self.sink_keys.truncate(self.sinks * dim);
        self.sink_values.truncate(self.sinks * dim);
        let packed = rows - self.sinks;
        self.scales.truncate(packed);
        self.key_outliers.truncate(packed);
        self.value_outliers.truncate(packed);
        let behind = if packed > 0 { BEHIND } else { 0 };
        let granules = packed.div_ceil(GRANULE);
        self.keys.truncate(granules * dim * bits + behind);
        self.values.truncate(packed * (dim / 8 * bits) + behind);
    }

    /// Whether the rows of a granule stand at positions that follow each other, and the first
    /// of them.
    pub(super) fn consecutive(&self, granule: usize) -> Option<u32> {
        let first = self.sinks + granule * GRANULE;
        let positions = &self.positions[first..self.positions.len().min(first + GRANULE)];
        let (start, last) = (*positions.first()?, *positions.last()?);
        // They ascend.
        (last - start == positions.len() as u32 - 1).then_some(start)
    }

    /// Bytes of all rows.
    pub(super) fn bytes(&self) -> u64 {
        let plain = self.positions.len() * 4
            + self.bias.len() * 4
            + (self.sink_keys.len() + self.sink_values.len()) * 2
            + self.keys.len()
            + self.values.len()
            + self.scales.len() * size_of::<Scale>();
        plain as u64 + self.key_outliers.bytes() + self.value_outliers.bytes()
    }

    /// For a saved prompt.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut to = (self.sinks as u32).to_le_bytes().to_vec();
        let halves = self.sink_keys.iter().chain(&self.sink_values);
        to.extend(halves.flat_map(|x| x.to_le_bytes()));
        to.extend_from_slice(&self.keys);
        to.extend_from_slice(&self.values);
        to.extend(self.scales.iter().flatten().flat_map(|x| x.to_le_bytes()));
        self.key_outliers.save(&mut to);
        self.value_outliers.save(&mut to);
        to
    }

    /// Reads what [`save`](Self::save) wrote; none where it does not fit.
    pub(super) fn restore(
        positions: &[u32],
        mut bytes: &[u8],
        bits: usize,
        dim: usize,
    ) -> Option<Self> {
        let rest = &mut bytes;
        let sinks = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) as usize;
        let packed = positions.len().checked_sub(sinks)?;
        let sink_keys = halves(take(rest, sinks * dim * 2)?);
        let sink_values = halves(take(rest, sinks * dim * 2)?);
        let behind = if packed > 0 { BEHIND } else { 0 };
        let granules = packed.div_ceil(GRANULE);
        let keys = take(rest, granules * dim * bits + behind)?.to_vec();
        let values = take(rest, packed * (dim / 8 * bits) + behind)?.to_vec();
        let scales = halves(take(rest, packed * 4)?);
        let key_outliers = Sparse::restore(rest, packed, dim)?;
        let value_outliers = Sparse::restore(rest, packed, dim)?;
        rest.is_empty().then(|| Self {
            positions: positions.to_vec(),
            bias: Vec::new(),
            sinks,
            sink_keys,
            sink_values,
            keys,
            values,
            scales: scales.as_chunks::<2>().0.to_vec(),
            key_outliers,
            value_outliers,
        })
    }
}

fn take<'a>(from: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(n)?;
    *from = rest;
    Some(taken)
}

fn halves(bytes: &[u8]) -> Vec<f16> {
    let halves = bytes.as_chunks::<2>().0.iter();
    halves.map(|b| f16::from_le_bytes(*b)).collect()
}
