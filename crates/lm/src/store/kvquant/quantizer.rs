//! From numbers to codes and outliers: what happens to a key and to a value when it is
//! stored. Both are free of where they are stored.

use half::f16;
use keyfold_kernels::nuq::nearest_codes;

/// A number that is kept beside its code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outlier {
    /// Channel of the row.
    pub(super) channel: usize,
    /// What is added to what its code stands for.
    pub(super) residual: f32,
}

/// A table, its middles and what its entries stand for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    /// Middles between the entries, by which numbers are rounded.
    bounds: Vec<f32>,
    /// What the codes stand for: the entries, after Q-Norm.
    pub(super) entries: Vec<f32>,
}

impl Table {
    /// `norm`: Q-Norm's scale and offset.
    pub(super) fn new(centroids: &[f32], norm: Option<[f32; 2]>) -> Self {
        let [scale, offset] = norm.unwrap_or([1.0, 0.0]);
        Self {
            bounds: centroids.windows(2).map(|w| 0.5 * (w[0] + w[1])).collect(),
            entries: centroids.iter().map(|c| c * scale + offset).collect(),
        }
    }

    fn last(&self) -> u8 {
        (self.entries.len() - 1) as u8
    }
}

/// Numbers at each end that may be kept beside the codes of `width` numbers, where their
/// count is capped (21 of 4,096 at a share of 0.99).
pub(super) fn cap(sparsity_threshold: f64, width: usize) -> usize {
    // The threshold is no exact binary number.
    ((1.0 - sparsity_threshold) / 2.0 * width as f64 - 1e-9).ceil() as usize
}

/// Keys of a layer: every channel has its own thresholds, which are the same for all tokens.
#[derive(Debug, Clone)]
pub(super) struct KeyQuantizer {
    upper: Vec<f32>,
    lower: Vec<f32>,
    pub(super) zero: Vec<f32>,
    pub(super) range: Vec<f32>,
    pub(super) table: Table,
    outliers: bool,
    cap: Option<f64>,
}

impl KeyQuantizer {
    /// Thresholds `[width]`; outliers are numbers outside of them, at most so many at each end
    /// of a token where `cap` gives the share that is not capped.
    pub(super) fn new(
        upper: &[f32],
        lower: &[f32],
        table: Table,
        outliers: bool,
        cap: Option<f64>,
    ) -> Self {
        let middle = |(u, l): (&f32, &f32)| 0.5 * (u + l);
        // A channel that never changes has no range.
        let half = |(u, l): (&f32, &f32)| (0.5 * (u - l)).max(1e-12);
        Self {
            zero: upper.iter().zip(lower).map(middle).collect(),
            range: upper.iter().zip(lower).map(half).collect(),
            upper: upper.to_vec(),
            lower: lower.to_vec(),
            table,
            outliers,
            cap,
        }
    }

    /// Channels of all heads.
    pub(super) fn width(&self) -> usize {
        self.upper.len()
    }

    /// Codes of the channels `first ..` of a token's keys, before rotary embedding, and what
    /// is kept beside them, in the order of the channels (counted from `first`).
    pub(super) fn encode(
        &self,
        first: usize,
        row: &[f32],
        work: &mut Vec<f32>,
        codes: &mut [u8],
        outliers: &mut Vec<Outlier>,
    ) {
        let span = first..first + row.len();
        let (zero, range) = (&self.zero[span.clone()], &self.range[span.clone()]);
        work.clear();
        let scaled = row.iter().zip(zero.iter().zip(range));
        work.extend(scaled.map(|(x, (z, r))| (x - z) / r));
        nearest_codes(work, &self.table.bounds, codes);
        outliers.clear();
        if !self.outliers {
            return;
        }
        let (upper, lower) = (&self.upper[span.clone()], &self.lower[span]);
        for (channel, (&x, (u, l))) in row.iter().zip(upper.iter().zip(lower)).enumerate() {
            let (above, below) = (x > *u, x < *l);
            if !above && !below {
                continue;
            }
            codes[channel] = if above { self.table.last() } else { 0 };
            let end = self.table.entries[usize::from(codes[channel])];
            let residual = x - (end * range[channel] + zero[channel]);
            outliers.push(Outlier { channel, residual });
        }
        if let Some(share) = self.cap {
            keep_farthest(outliers, work, cap(share, row.len()));
        }
    }
}

/// Keeps the `cap` outliers farthest out on each side; the others stay the end of the table.
fn keep_farthest(outliers: &mut Vec<Outlier>, scaled: &[f32], cap: usize) {
    for above in [true, false] {
        let size = |o: &Outlier| scaled[o.channel].abs();
        let on_side = |o: &Outlier| (scaled[o.channel] > 0.0) == above;
        let mut sizes: Vec<f32> = outliers.iter().filter(|o| on_side(o)).map(size).collect();
        if sizes.len() <= cap {
            continue;
        }
        sizes.sort_by(|a, b| b.total_cmp(a));
        let mut left = cap;
        let least = if cap == 0 {
            f32::INFINITY
        } else {
            sizes[cap - 1]
        };
        outliers.retain(|o| {
            let keep = !on_side(o) || (size(o) >= least && left > 0);
            left -= usize::from(keep && on_side(o));
            keep
        });
    }
}

/// Values of a layer: every token has its own thresholds, which are found when it comes.
#[derive(Debug, Clone)]
pub(super) struct ValueQuantizer {
    pub(super) table: Table,
    sparsity_threshold: f64,
    cap: bool,
}

/// Scale and zero of a token's values, as they are kept.
pub(super) type Scale = [f16; 2];

impl ValueQuantizer {
    pub(super) fn new(table: Table, sparsity_threshold: f64, cap: bool) -> Self {
        Self {
            table,
            sparsity_threshold,
            cap,
        }
    }

    /// The greatest and the least number that is coded; numbers at or beyond the quantiles
    /// are outliers and do not count.
    fn ends(&self, row: &[f32], sorted: &mut Vec<f32>) -> (f32, f32) {
        sorted.clear();
        sorted.extend_from_slice(row);
        sorted.sort_unstable_by(f32::total_cmp);
        let n = sorted.len();
        if self.sparsity_threshold >= 1.0 || n < 3 {
            return (sorted[0], sorted[n - 1]);
        }
        if self.cap {
            let cap = cap(self.sparsity_threshold, n).min((n - 1) / 2);
            return (sorted[cap], sorted[n - 1 - cap]);
        }
        let t = 1.0 - (1.0 - self.sparsity_threshold) / 2.0;
        let (high, low) = (quantile(sorted, t), quantile(sorted, 1.0 - t));
        let inside = |x: &f32| *x > low && *x < high;
        let first = sorted.iter().copied().find(inside);
        let last = sorted.iter().rev().copied().find(inside);
        match (first, last) {
            (Some(first), Some(last)) => (first, last),
            // All are equal, or lie at two ends.
            _ => (sorted[n / 2], sorted[n / 2]),
        }
    }

    /// Codes of a token's values, its scale and zero, and what is kept beside the codes, in
    /// the order of the channels.
    pub(super) fn encode(
        &self,
        row: &[f32],
        work: &mut Vec<f32>,
        codes: &mut [u8],
        outliers: &mut Vec<Outlier>,
    ) -> Scale {
        let (low, high) = self.ends(row, work);
        let scale = f16::from_f32((0.5 * (high - low)).clamp(1e-7, f16::MAX.to_f32()));
        let zero = f16::from_f32(0.5 * (high + low));
        let (s, z) = (scale.to_f32(), zero.to_f32());
        work.clear();
        work.extend(row.iter().map(|x| (x - z) / s));
        nearest_codes(work, &self.table.bounds, codes);
        outliers.clear();
        if self.sparsity_threshold < 1.0 {
            for (channel, &x) in row.iter().enumerate() {
                let above = x > high;
                if above || x < low {
                    codes[channel] = if above { self.table.last() } else { 0 };
                    let end = self.table.entries[usize::from(codes[channel])];
                    let residual = x - (end * s + z);
                    outliers.push(Outlier { channel, residual });
                }
            }
        }
        [scale, zero]
    }
}

/// Quantile `t` of sorted numbers, between two of them in proportion.
pub(super) fn quantile(sorted: &[f32], t: f64) -> f32 {
    let at = t.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let part = at - below as f64;
    let (a, b) = (f64::from(sorted[below]), f64::from(sorted[above]));
    (a + (b - a) * part) as f32
}
