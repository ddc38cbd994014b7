//! Parameters in rows, of which a batch changes a few.

use std::ops::Range;

use keyfold_kernels as kernels;
use rayon::prelude::*;

/// Keeps what never had a gradient from a division by 0.
const EPSILON: f32 = 1e-8;

/// A change of one row: its number, a factor, and what is added that many times.
pub(crate) type Add<'a> = &'a mut dyn FnMut(u32, f32, &[f32]);

/// How gradients become changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    pub(crate) learning_rate: f32,
    pub(crate) descent: Descent,
}

/// What a change takes from those before it. Rows that a batch does not touch rest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Descent {
    /// Nothing.
    Plain,
    /// So much of the last change is made again.
    Momentum(f32),
    /// The gradient of a batch, over the root of the sum of all squares so far (Duchi,
    /// Hazan and Singer 2011).
    AdaGrad,
}

/// Rows of `dim` numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) dim: usize,
    pub(crate) values: Vec<f32>,
    /// The last change of each row, before the learning rate, or the sum of squares;
    /// empty with plain descent.
    pub(crate) velocity: Vec<f32>,
}

impl Table {
    pub(crate) fn new(dim: usize, values: Vec<f32>) -> Self {
        Self {
            dim,
            values,
            velocity: Vec::new(),
        }
    }

    pub(crate) fn zeros(rows: usize, dim: usize) -> Self {
        Self::new(dim, vec![0.0; rows * dim])
    }

    pub(crate) fn row(&self, row: u32) -> &[f32] {
        &self.values[row as usize * self.dim..][..self.dim]
    }

    /// Descends along the gradients of `batches` in their order; `gradient` names the
    /// rows of a batch that have one. But with plain descent a batch is one change,
    /// however often it names a row. `bounds` are row numbers that part the table among threads.
    pub(crate) fn descend<B: Sync>(
        &mut self,
        threads: &Threads,
        bounds: &[usize],
        rate: Rate,
        batches: &[B],
        gradient: impl Fn(&B, Add<'_>) + Sync,
    ) {
        if rate.descent != Descent::Plain && self.velocity.is_empty() {
            self.velocity = vec![0.0; self.values.len()];
        }
        let parts = self.parts(if threads.count() > 1 { bounds } else { &[] });
        threads.each(parts, |mut part| {
            for batch in batches {
                part.descend(rate, batch, &gradient);
            }
        });
    }

    /// The rows between neighbouring bounds.
    fn parts(&mut self, bounds: &[usize]) -> Vec<Part<'_>> {
        let rows = self.values.len() / self.dim.max(1);
        let (mut values, mut velocity) = (&mut self.values[..], &mut self.velocity[..]);
        let mut parts = Vec::new();
        let mut start = 0;
        for &end in bounds.iter().chain([&rows]) {
            let end = end.clamp(start, rows);
            let (mine, rest) = values.split_at_mut((end - start) * self.dim);
            let cut = if velocity.is_empty() { 0 } else { mine.len() };
            let (my_velocity, velocity_rest) = velocity.split_at_mut(cut);
            (values, velocity) = (rest, velocity_rest);
            parts.push(Part {
                rows: start..end,
                dim: self.dim,
                values: mine,
                velocity: my_velocity,
            });
            start = end;
        }
        parts
    }
}

struct Part<'a> {
    rows: Range<usize>,
    dim: usize,
    values: &'a mut [f32],
    velocity: &'a mut [f32],
}

impl Part<'_> {
    fn descend<B>(&mut self, rate: Rate, batch: &B, gradient: &impl Fn(&B, Add<'_>)) {
        let (dim, rows) = (self.dim, self.rows.clone());
        let place = |row: u32| {
            let inside = rows.contains(&(row as usize));
            inside.then(|| (row as usize - rows.start) * dim)
        };
        if rate.descent == Descent::Plain {
            let values = &mut *self.values;
            gradient(batch, &mut |row, factor, source| {
                if let Some(at) = place(row) {
                    let factor = -rate.learning_rate * factor;
                    kernels::axpy(&mut values[at..at + dim], factor, source);
                }
            });
            return;
        }
        // The rows of the batch, each once.
        let mut touched = Vec::new();
        gradient(batch, &mut |row, _, _| touched.extend(place(row)));
        touched.sort_unstable();
        touched.dedup();
        let Descent::Momentum(momentum) = rate.descent else {
            let mut sums = vec![0.0; touched.len() * dim];
            gradient(batch, &mut |row, factor, source| {
                if let Some(i) = place(row).and_then(|at| touched.binary_search(&at).ok()) {
                    kernels::axpy(&mut sums[i * dim..(i + 1) * dim], factor, source);
                }
            });
            for (at, sums) in touched.into_iter().zip(sums.chunks_exact(dim)) {
                let squares = &mut self.velocity[at..at + dim];
                let rows = self.values[at..at + dim].iter_mut().zip(squares);
                for ((value, square), g) in rows.zip(sums) {
                    *square += g * g;
                    *value -= rate.learning_rate * g / (square.sqrt() + EPSILON);
                }
            }
            return;
        };
        let velocity = &mut *self.velocity;
        for &at in &touched {
            velocity[at..at + dim]
                .iter_mut()
                .for_each(|v| *v *= momentum);
        }
        gradient(batch, &mut |row, factor, source| {
            if let Some(at) = place(row) {
                kernels::axpy(&mut velocity[at..at + dim], factor, source);
            }
        });
        for at in touched {
            let velocity = &velocity[at..at + dim];
            kernels::axpy(
                &mut self.values[at..at + dim],
                -rate.learning_rate,
                velocity,
            );
        }
    }
}

/// Row numbers that part a table among `threads` so that each gets as much of `weights`.
pub(crate) fn bounds(weights: impl Iterator<Item = f64> + Clone, threads: usize) -> Vec<usize> {
    let total: f64 = weights.clone().sum();
    let mut bounds = Vec::new();
    let mut sum = 0.0;
    for (row, weight) in weights.enumerate() {
        sum += weight;
        while bounds.len() + 1 < threads
            && sum >= total * (bounds.len() + 1) as f64 / threads as f64
        {
            bounds.push(row + 1);
        }
    }
    bounds
}

/// Threads that share rounds of batches.
pub(crate) struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// So many threads; 0 means all of the machine's. One, where no more can be had.
    pub(crate) fn new(threads: usize) -> Self {
        let threads = crate::run::thread_count(threads);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        Self((threads > 1).then(|| pool.build().ok()).flatten())
    }

    /// The caller's alone.
    pub(crate) fn one() -> Self {
        Self(None)
    }

    pub(crate) fn count(&self) -> usize {
        self.0
            .as_ref()
            .map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Works on every item, on several threads.
    pub(crate) fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        match &self.0 {
            Some(pool) if items.len() > 1 => pool.install(|| items.into_par_iter().for_each(work)),
            _ => items.into_iter().for_each(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Changes = Vec<(u32, f32, Vec<f32>)>;

    fn after(threads: usize, descent: Descent, batches: &[Changes]) -> Table {
        let mut table = Table::new(2, (0..12).map(|x| x as f32).collect());
        let rate = Rate {
            learning_rate: 0.5,
            descent,
        };
        let bounds = bounds([5.0, 1.0, 1.0, 1.0, 1.0, 1.0].into_iter(), threads);
        table.descend(
            &Threads::new(threads),
            &bounds,
            rate,
            batches,
            |batch, add| {
                batch
                    .iter()
                    .for_each(|(row, f, source)| add(*row, *f, source))
            },
        );
        table
    }

    #[test]
    fn momentum_counts_a_batch_once() {
        let batches = [
            vec![(1, 1.0, vec![1.0, 0.0]), (1, 2.0, vec![0.0, 1.0])],
            vec![(1, 1.0, vec![2.0, 0.0])],
        ];
        let table = after(1, Descent::Momentum(0.5), &batches);
        // v = (1, 2), then 0.5 v + (2, 0) = (2.5, 1).
        assert_eq!(table.row(1), [2.0 - 0.5 * 3.5, 3.0 - 0.5 * 3.0]);
        assert_eq!(table.row(0), [0.0, 1.0], "an untouched row rests");
        assert_eq!(
            after(1, Descent::Plain, &batches).row(1),
            [2.0 - 1.5, 3.0 - 1.0]
        );
    }

    #[test]
    fn adagrad_divides_by_the_root_of_all_squares() {
        let batches = [
            vec![(1, 1.0, vec![1.0, 0.0]), (1, 2.0, vec![1.0, 0.0])],
            vec![(1, 1.0, vec![4.0, -2.0])],
        ];
        let table = after(1, Descent::AdaGrad, &batches);
        // The gradients are (3, 0) and (4, -2), the squares (9, 0) and (25, 4).
        let want = [2.0 - 0.5 - 0.5 * 0.8, 3.0 + 0.5];
        let mut pairs = table.row(1).iter().zip(want);
        assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(table.row(0), [0.0, 1.0], "an untouched row rests");
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let batch = |b: u32| -> Changes {
            (0..40)
                .map(|i| ((i * 7 + b) % 6, 0.1 * i as f32, vec![0.3, b as f32 / 3.0]))
                .collect()
        };
        let batches: Vec<Changes> = (0..5).map(batch).collect();
        for descent in [Descent::Plain, Descent::Momentum(0.9), Descent::AdaGrad] {
            let one = after(1, descent, &batches);
            for threads in [2, 3, 7] {
                assert_eq!(after(threads, descent, &batches), one, "{threads}");
            }
        }
    }

    #[test]
    fn tables_are_parted_by_weight() {
        assert_eq!(bounds([8.0, 1.0, 1.0, 6.0].into_iter(), 2), [1]);
        assert_eq!(bounds([1.0; 6].into_iter(), 3), [2, 4]);
        assert!(bounds([1.0; 6].into_iter(), 1).is_empty());
    }
}
