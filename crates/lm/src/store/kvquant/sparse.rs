//! What is kept beside the codes of a head, in the order of its rows.

use half::f16;
use keyfold_kernels::nuq::GRANULE;

use super::quantizer::Outlier;

/// A number beside a code: 13 bits of channel, 3 of the row within its granule, and the
/// residual. Four bytes, as the number alone would take with a place of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    place: u16,
    residual: f16,
}

/// The greatest finite half.
const MOST: f32 = 65504.0;

/// Channels that an entry can name.
pub(super) const MOST_CHANNELS: usize = 1 << 13;

impl Entry {
    #[inline]
    pub(super) fn row(self) -> usize {
        usize::from(self.place >> 13)
    }

    #[inline]
    pub(super) fn channel(self) -> usize {
        usize::from(self.place) & (MOST_CHANNELS - 1)
    }

    #[inline]
    pub(super) fn residual(self) -> f32 {
        widen(self.residual)
    }
}

/// A finite half in 32 bits. The crate's own way asks for the processor's features each time,
/// which is too long for one number.
#[inline]
pub(super) fn widen(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // 2^112: the difference of the exponents' biases.
    let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

/// Entries of all rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    entries: Vec<Entry>,
    /// Where the entries of each granule begin.
    starts: Vec<u32>,
}

impl Sparse {
    /// Adds what is kept of row `row`, the next one, in the order of the channels.
    pub(super) fn push(&mut self, row: usize, outliers: impl IntoIterator<Item = Outlier>) {
        if row.is_multiple_of(GRANULE) {
            self.starts.push(self.entries.len() as u32);
        }
        let within = (row % GRANULE) as u16;
        self.entries.extend(outliers.into_iter().map(|o| Entry {
            place: within << 13 | o.channel as u16,
            residual: f16::from_f32(o.residual.clamp(-MOST, MOST)),
        }));
    }

    /// Entries of a granule.
    pub(super) fn of_granule(&self, granule: usize) -> &[Entry] {
        let start = |granule: usize| {
            let start = self.starts.get(granule);
            start.map_or(self.entries.len(), |&s| s as usize)
        };
        &self.entries[start(granule)..start(granule + 1)]
    }

    /// Entries of a row.
    pub(super) fn of_row(&self, row: usize) -> impl Iterator<Item = Entry> + '_ {
        let of_granule = self.of_granule(row / GRANULE).iter().copied();
        of_granule.filter(move |e| e.row() == row % GRANULE)
    }

    /// Drops the rows from `rows` on.
    pub(super) fn truncate(&mut self, rows: usize) {
        let granules = rows.div_ceil(GRANULE);
        if let Some(&end) = self.starts.get(granules) {
            self.entries.truncate(end as usize);
            self.starts.truncate(granules);
        }
        let last = rows % GRANULE;
        if last > 0 && granules == self.starts.len() {
            let first = self.starts[granules - 1] as usize;
            let stay = self.entries[first..].iter().take_while(|e| e.row() < last);
            let stay = first + stay.count();
            self.entries.truncate(stay);
        }
    }

    /// Bytes.
    pub(super) fn bytes(&self) -> u64 {
        (self.entries.len() * size_of::<Entry>() + self.starts.len() * 4) as u64
    }

    /// All entries of all rows.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// For a saved prompt.
    pub(super) fn save(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        let starts = self.starts.iter().flat_map(|s| s.to_le_bytes());
        to.extend(starts);
        for entry in &self.entries {
            to.extend_from_slice(&entry.place.to_le_bytes());
            to.extend_from_slice(&entry.residual.to_le_bytes());
        }
    }

    /// Reads what [`save`](Self::save) wrote for `rows` rows of `dim` channels from the front
    /// of `bytes`; none where it does not fit.
    pub(super) fn restore(bytes: &mut &[u8], rows: usize, dim: usize) -> Option<Self> {
        let mut take = |n: usize| -> Option<&[u8]> {
            let (taken, rest) = bytes.split_at_checked(n)?;
            *bytes = rest;
            Some(taken)
        };
        let count = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
        let starts = take(rows.div_ceil(GRANULE) * 4)?;
        let starts: Vec<u32> = starts
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect();
        let entries: Vec<Entry> = take(count.checked_mul(4)?)?
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&[a, b, c, d]| Entry {
                place: u16::from_le_bytes([a, b]),
                residual: f16::from_le_bytes([c, d]),
            })
            .collect();
        let ascend = starts.first().is_none_or(|&s| s == 0)
            && starts.is_sorted()
            && starts.last().is_none_or(|&s| s as usize <= count)
            && (count == 0 || !starts.is_empty());
        let fit = entries.iter().all(|e| e.channel() < dim);
        (ascend && fit).then_some(Self { entries, starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_as_the_crate_does() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widen(half).to_bits(), half.to_f32().to_bits());
            }
        }
    }
}
