//! Tables of a few numbers that stand for many: fitted to samples, evenly spaced, or those
//! of a normal distribution. All are for numbers between -1 and 1, ascending.
//!
//! The fitted one minimises `Σ w (x - nearest entry)²`. Numbers on a line have their best
//! clusters in runs, so the start is exact on a histogram (Wang and Song 2011, by dynamic
//! programming over the ends of the runs), and Lloyd's steps on the sorted samples follow.

use std::f64::consts::PI;

/// Bins of the histogram.
const BINS: usize = 512;

/// Lloyd's steps at most; mostly some tens move nothing any more.
const STEPS: usize = 200;

/// Samples on a line, sorted, with running sums.
pub(super) struct Samples {
    x: Vec<f32>,
    /// Sums of `w`, `w x`, `w x²` and of `x`, `x²` before each sample.
    sums: Vec<[f64; 5]>,
}

impl Samples {
    /// Takes numbers with their weights.
    pub(super) fn new(mut samples: Vec<(f32, f32)>) -> Self {
        samples.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        // Weights that are all nothing say nothing.
        let flat = samples.iter().all(|s| s.1 <= 0.0);
        let mut sum = [0.0; 5];
        let mut sums = Vec::with_capacity(samples.len() + 1);
        sums.push(sum);
        for &(x, w) in &samples {
            let (x, w) = (f64::from(x), if flat { 1.0 } else { f64::from(w) });
            for (sum, term) in sum.iter_mut().zip([w, w * x, w * x * x, x, x * x]) {
                *sum += term;
            }
            sums.push(sum);
        }
        let x = samples.into_iter().map(|s| s.0).collect();
        Self { x, sums }
    }

    pub(super) fn len(&self) -> usize {
        self.x.len()
    }

    /// Where the runs of the entries of a table begin and end.
    fn ends(&self, table: &[f64]) -> Vec<usize> {
        let middle = |w: &[f64]| (0.5 * (w[0] + w[1])) as f32;
        let inner = table
            .windows(2)
            .map(|w| self.x.partition_point(|&x| x <= middle(w)));
        let mut ends = vec![0];
        ends.extend(inner);
        ends.push(self.len());
        ends
    }

    /// Moves every entry to the mean of its run until nothing moves.
    fn lloyd(&self, table: &mut [f64]) {
        for _ in 0..STEPS {
            let ends = self.ends(table);
            let mut moved = 0.0f64;
            for (entry, run) in table.iter_mut().zip(ends.windows(2)) {
                let (from, to) = (&self.sums[run[0]], &self.sums[run[1]]);
                let weight = to[0] - from[0];
                if weight > 0.0 {
                    let mean = (to[1] - from[1]) / weight;
                    moved = moved.max((mean - *entry).abs());
                    *entry = mean;
                }
            }
            if moved < 1e-7 {
                break;
            }
        }
    }

    /// `Σ w (x - nearest entry)²`.
    #[cfg(test)]
    pub(super) fn error(&self, table: &[f32]) -> f64 {
        let table: Vec<f64> = table.iter().map(|&t| f64::from(t)).collect();
        let ends = self.ends(&table);
        let of_run = |(entry, run): (&f64, &[usize])| {
            let (from, to) = (&self.sums[run[0]], &self.sums[run[1]]);
            let [w, wx, wxx] = [0, 1, 2].map(|i| to[i] - from[i]);
            wxx - 2.0 * entry * wx + entry * entry * w
        };
        table.iter().zip(ends.windows(2)).map(of_run).sum()
    }

    /// Fitted tables of 2, 3 and 4 bits.
    pub(super) fn fit(&self) -> [Vec<f32>; 3] {
        let (first, last) = match (self.x.first(), self.x.last()) {
            (Some(&first), Some(&last)) => (f64::from(first), f64::from(last)),
            _ => (-1.0, 1.0),
        };
        let starts = if last > first {
            self.best_runs(first, last)
        } else {
            [4, 8, 16].map(|k| vec![first; k])
        };
        starts.map(|mut table| {
            self.lloyd(&mut table);
            let mut table: Vec<f32> = table.into_iter().map(|t| t as f32).collect();
            table.sort_by(f32::total_cmp);
            table
        })
    }

    /// Means of the best 4, 8 and 16 runs of a histogram.
    fn best_runs(&self, first: f64, last: f64) -> [Vec<f64>; 3] {
        let bin = |i: usize| first + (last - first) * i as f64 / BINS as f64;
        let mut edges: Vec<usize> = (0..BINS)
            .map(|i| self.x.partition_point(|&x| f64::from(x) < bin(i)))
            .collect();
        edges.push(self.len());
        let sums: Vec<[f64; 3]> = edges
            .iter()
            .map(|&e| [self.sums[e][0], self.sums[e][1], self.sums[e][2]])
            .collect();
        // What the bins from..to cost as one run.
        let cost = |from: usize, to: usize| -> f64 {
            let [w, wx, wxx] = [0, 1, 2].map(|i| sums[to][i] - sums[from][i]);
            if w > 0.0 {
                (wxx - wx * wx / w).max(0.0)
            } else {
                0.0
            }
        };
        let mut best: Vec<f64> = (0..=BINS).map(|to| cost(0, to)).collect();
        let mut starts: Vec<Vec<usize>> = vec![vec![0; BINS + 1]];
        let mut tables = [4, 8, 16].map(|_| Vec::new());
        for k in 2..=16 {
            let mut next = best.clone();
            let mut start = vec![0; BINS + 1];
            for to in 1..=BINS {
                for (from, before) in best.iter().enumerate().take(to).skip(1) {
                    let total = before + cost(from, to);
                    if total < next[to] {
                        (next[to], start[to]) = (total, from);
                    }
                }
            }
            best = next;
            starts.push(start);
            if let Some(place) = [4, 8, 16].iter().position(|&n| n == k) {
                tables[place] = self.means(&starts, &edges, (first, last));
            }
        }
        tables
    }

    /// The means of the runs that `starts` leads back to; where there are fewer than wanted
    /// (few different samples), the others lie evenly.
    fn means(&self, starts: &[Vec<usize>], edges: &[usize], ends: (f64, f64)) -> Vec<f64> {
        let k = starts.len();
        let (mut means, mut to) = (Vec::with_capacity(k), BINS);
        for start in starts.iter().rev() {
            let from = start[to];
            let (a, b) = (&self.sums[edges[from]], &self.sums[edges[to]]);
            if b[0] > a[0] {
                means.push((b[1] - a[1]) / (b[0] - a[0]));
            }
            to = from;
        }
        for i in means.len()..k {
            means.push(ends.0 + (ends.1 - ends.0) * (i as f64 + 0.5) / k as f64);
        }
        means.sort_by(f64::total_cmp);
        means
    }

    /// Q-Norm: scale and offset that give the rounded samples the mean and the deviation
    /// that they had (`c σ₁/σ₂ + m₁ - m₂ σ₁/σ₂`).
    pub(super) fn norm(&self, table: &[f32]) -> [f32; 2] {
        let n = self.len().max(1) as f64;
        let wide: Vec<f64> = table.iter().map(|&t| f64::from(t)).collect();
        let runs = self.ends(&wide);
        let counts: Vec<f64> = runs.windows(2).map(|r| (r[1] - r[0]) as f64).collect();
        let all = self.sums[self.len()];
        let moments = |x: f64, xx: f64| (x / n, (xx / n - (x / n).powi(2)).max(0.0).sqrt());
        let (m1, s1) = moments(all[3], all[4]);
        let of = |power: i32| -> f64 {
            let terms = wide.iter().zip(&counts);
            terms.map(|(t, n)| t.powi(power) * n).sum()
        };
        let (m2, s2) = moments(of(1), of(2));
        let scale = if s2 > 0.0 { s1 / s2 } else { 1.0 };
        [scale as f32, (m1 - m2 * scale) as f32]
    }
}

/// `2^bits` numbers from -1 to 1 in equal steps: integers with a zero that is no integer.
pub(super) fn even(bits: u8) -> Vec<f32> {
    let last = (1u32 << bits) - 1;
    (0..=last)
        .map(|i| 2.0 * i as f32 / last as f32 - 1.0)
        .collect()
}

/// NormalFloat (Dettmers and others 2023): quantiles of the normal distribution at evenly
/// spaced chances, each side scaled to reach -1 and 1, with an exact 0.
pub(super) fn normal_float(bits: u8) -> Vec<f32> {
    let half = 1usize << (bits - 1);
    let outer = 0.5 * (1.0 / 32.0 + 1.0 / 30.0);
    let side = |steps: usize| -> Vec<f64> {
        // From the outer chance to one half.
        let at = |i: usize| outer + (0.5 - outer) * i as f64 / steps as f64;
        let quantiles: Vec<f64> = (0..=steps).map(|i| quantile(at(i))).collect();
        quantiles.iter().map(|q| q / quantiles[0].abs()).collect()
    };
    // The negative side has 0; the positive one has a step more and leaves it out.
    let mut table: Vec<f32> = side(half - 1).iter().map(|&x| x as f32).collect();
    let positive = side(half);
    table.extend(positive[..half].iter().rev().map(|&x| -x as f32));
    if let Some(zero) = table.get_mut(half - 1) {
        *zero = 0.0;
    }
    table
}

/// The number below which a normally distributed one lies with chance `p`, by bisection.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if cumulative(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// `½ + φ(x) (x + x³/3 + x⁵/15 + ...)`; exact to 1e-12 for `|x| < 3`, where it is asked.
fn cumulative(x: f64) -> f64 {
    let x = x.clamp(-8.0, 8.0);
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 && n < 400.0 {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitted_table_finds_clusters_and_beats_even_steps() {
        // Sixteen heaps at uneven places.
        let centres: Vec<f32> = (0..16)
            .map(|i| (i as f32 / 15.0).powi(2) * 1.8 - 0.9)
            .collect();
        let samples: Vec<(f32, f32)> = (0..1600)
            .map(|i| (centres[i % 16] + 1e-4 * (i / 16) as f32, 1.0))
            .collect();
        let samples = Samples::new(samples);
        let [two, three, four] = samples.fit();
        assert_eq!([two.len(), three.len(), four.len()], [4, 8, 16]);
        for (entry, centre) in four.iter().zip(&centres) {
            assert!((entry - centre - 0.005).abs() < 0.006, "{entry} {centre}");
        }
        for (table, bits) in [(&two, 2), (&three, 3), (&four, 4)] {
            assert!(table.is_sorted());
            assert!(samples.error(table) < 0.7 * samples.error(&even(bits)));
        }
    }

    #[test]
    fn weights_draw_the_table() {
        let samples = |w: f32| {
            let line = (0..1000).map(|i| i as f32 / 500.0 - 1.0);
            Samples::new(line.map(|x| (x, if x > 0.5 { w } else { 1.0 })).collect())
        };
        let above = |table: &[f32]| table.iter().filter(|&&t| t > 0.5).count();
        assert!(above(&samples(100.0).fit()[2]) > above(&samples(1.0).fit()[2]) + 2);
        // Weights of zero are as good as none.
        assert_eq!(Samples::new(vec![(0.5, 0.0); 3]).fit()[0], [0.5; 4]);
    }

    #[test]
    fn few_or_no_samples_give_a_table() {
        assert!(
            Samples::new(Vec::new()).fit()[1]
                .iter()
                .all(|t| t.is_finite())
        );
        let two = Samples::new(vec![(-0.3, 1.0), (0.7, 2.0)]);
        let table = &two.fit()[0];
        assert!(table.is_sorted() && two.error(table) < 1e-12, "{table:?}");
        assert!(two.norm(table).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_norm_gives_mean_and_deviation_back() {
        let line = (0..4000).map(|i| ((i as f32 / 2000.0 - 1.0).powi(3), 1.0));
        let samples = Samples::new(line.clone().collect());
        let table = [-0.7, -0.1, 0.05, 0.6];
        let [scale, offset] = samples.norm(&table);
        let nearest = |x: f32| {
            let by = |a: &&f32, b: &&f32| (*a - x).abs().total_cmp(&(*b - x).abs());
            *table.iter().min_by(by).unwrap()
        };
        let moments = |x: &mut dyn Iterator<Item = f32>| {
            let x: Vec<f64> = x.map(f64::from).collect();
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            (mean, (square / x.len() as f64).sqrt())
        };
        let before = moments(&mut line.clone().map(|s| s.0));
        let after = moments(&mut line.map(|s| nearest(s.0) * scale + offset));
        assert!((before.0 - after.0).abs() < 1e-5 && (before.1 - after.1).abs() < 1e-5);
    }

    #[test]
    fn normal_floats_are_the_published_ones() {
        // bitsandbytes' NF4 to two digits; theirs has another outer chance.
        let four = normal_float(4);
        let published = [
            -1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0, 0.0796, 0.1609, 0.2461,
            0.3379, 0.4407, 0.5626, 0.723, 1.0,
        ];
        for (ours, theirs) in four.iter().zip(published) {
            assert!((ours - theirs).abs() < 0.01, "{four:?}");
        }
        let steps = even(2).into_iter().zip([-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0]);
        steps.for_each(|(a, b)| assert!((a - b).abs() < 1e-6));
        assert!((quantile(0.975) - 1.959_963_985).abs() < 1e-8);
    }
}
