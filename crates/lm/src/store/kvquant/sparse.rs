//! What is kept beside the codes of a head, in the order of its rows.

use keyfold_kernels::nuq::{Beside, BesideRows, GRANULE};

use super::quantizer::Outlier;

/// Entries of all rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    entries: Vec<Beside>,
    /// Where the entries of each granule begin.
    starts: Vec<u32>,
}

impl Sparse {
    /// Adds what is kept of row `row`, the next one, in the order of the channels.
    pub(super) fn push(&mut self, row: usize, outliers: impl IntoIterator<Item = Outlier>) {
        if row.is_multiple_of(GRANULE) {
            self.starts.push(self.entries.len() as u32);
        }
        let within = row % GRANULE;
        let entry = |o: Outlier| Beside::new(within, o.channel, o.residual);
        self.entries.extend(outliers.into_iter().map(entry));
    }

    /// All entries, as the kernels read them.
    pub(super) fn view(&self) -> BesideRows<'_> {
        BesideRows {
            numbers: &self.entries,
            starts: &self.starts,
        }
    }

    /// Entries of a granule.
    pub(super) fn of_granule(&self, granule: usize) -> &[Beside] {
        self.view().of_granule(granule)
    }

    /// Entries of a row.
    pub(super) fn of_row(&self, row: usize) -> impl Iterator<Item = Beside> + '_ {
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
        (self.entries.len() * size_of::<Beside>() + self.starts.len() * 4) as u64
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
        to.extend(self.entries.iter().flat_map(|e| e.to_le_bytes()));
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
        let entries: Vec<Beside> = take(count.checked_mul(4)?)?
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&bytes| Beside::from_le_bytes(bytes))
            .collect();
        let ascend = starts.first().is_none_or(|&s| s == 0)
            && starts.is_sorted()
            && starts.last().is_none_or(|&s| s as usize <= count)
            && (count == 0 || !starts.is_empty());
        let fit = entries.iter().all(|e| e.channel() < dim);
        (ascend && fit).then_some(Self { entries, starts })
    }
}
