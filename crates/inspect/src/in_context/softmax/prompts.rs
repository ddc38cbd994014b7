//! Prompts, drawn by a seed.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::SoftmaxConfig;
use crate::random::normals;

/// Prompts: rows `(x, y)` and a query, with what is to be predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// `[count, length, row]`
    pub z: Vec<f32>,
    /// `[count, d]`
    pub queries: Vec<f32>,
    /// `[count, tasks]`
    pub targets: Vec<f32>,
    /// Examples of a prompt.
    pub length: usize,
    /// Numbers of a row.
    pub row: usize,
}

impl Prompts {
    /// Draws prompts of any length. One task: `β ~ N(0, I/d)`, and the target has noise too;
    /// several: `β ~ N(0, I)` over the part of `x` that the task sees, noise as much larger,
    /// and none on the target.
    pub fn sample(config: &SoftmaxConfig, length: usize, count: usize, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut out = Self {
            z: Vec::new(),
            queries: Vec::new(),
            targets: Vec::new(),
            length,
            row: config.row(),
        };
        out.draw(config, count, &mut rng);
        out
    }

    /// Draws `count` prompts in place of those that are there.
    pub(super) fn draw(&mut self, config: &SoftmaxConfig, count: usize, rng: &mut SmallRng) {
        let (d, tasks, row, length) = (config.d, config.tasks, self.row, self.length);
        let dim = config.task_dim();
        let (scale, noise) = match tasks {
            1 => (1.0 / (d as f32).sqrt(), config.sigma2.sqrt() as f32),
            _ => (1.0, ((dim as f64) * config.sigma2).sqrt() as f32),
        };
        self.z.resize(count * length * row, 0.0);
        self.queries.resize(count * d, 0.0);
        self.targets.resize(count * tasks, 0.0);
        normals(rng, &mut self.z);
        normals(rng, &mut self.queries);
        let spread = |x: &mut [f32]| {
            let parts = x.iter_mut().zip(&config.spread);
            parts.for_each(|(x, s)| *x *= *s as f32);
        };
        let mut beta = vec![0.0; tasks * dim];
        let mut extra = vec![0.0; tasks];
        for prompt in 0..count {
            normals(rng, &mut beta);
            beta.iter_mut().for_each(|b| *b *= scale);
            let of = |x: &[f32], task: usize| -> f32 {
                let seen = &x[config.task_start(task)..][..dim];
                let beta = &beta[task * dim..][..dim];
                seen.iter().zip(beta).map(|(x, b)| x * b).sum()
            };
            for z in self.z[prompt * length * row..][..length * row].chunks_exact_mut(row) {
                let (x, y) = z.split_at_mut(d);
                spread(x);
                // What was drawn for y is its noise.
                y.iter_mut()
                    .enumerate()
                    .for_each(|(task, y)| *y = of(x, task) + noise * *y);
            }
            let query = &mut self.queries[prompt * d..][..d];
            spread(query);
            let targets = &mut self.targets[prompt * tasks..][..tasks];
            if tasks == 1 {
                normals(rng, &mut extra);
            }
            for (task, y) in targets.iter_mut().enumerate() {
                *y = of(query, task) + if tasks == 1 { noise * extra[task] } else { 0.0 };
            }
        }
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.z.len() / (self.length * self.row).max(1)
    }

    /// True when there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.z.is_empty()
    }

    pub(super) fn prompt(&self, i: usize) -> (&[f32], &[f32]) {
        let (size, d) = (self.length * self.row, self.queries.len() / self.len());
        (&self.z[i * size..][..size], &self.queries[i * d..][..d])
    }
}
