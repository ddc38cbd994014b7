//! Parts of a tower, each with its backward pass: given the gradient of the loss by
//! what came out, the gradient by what went in.

use keyfold_kernels as kernels;

/// `y[n, outputs] = x[n, inputs] · w[inputs, outputs]`.
pub(crate) fn linear(x: &[f32], w: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let n = x.len() / inputs;
    let mut y = vec![0.0; n * outputs];
    kernels::matmul_nn(&mut y, x, w, n, outputs, inputs, 1);
    y
}

/// Gradient of [`linear`] by its weights: `x' · dy`, `[inputs, outputs]`.
pub(crate) fn linear_backward(x: &[f32], dy: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let n = x.len() / inputs;
    let mut turned = vec![0.0; x.len()];
    for (i, row) in x.chunks_exact(inputs).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            turned[j * n + i] = value;
        }
    }
    let mut dw = vec![0.0; inputs * outputs];
    kernels::matmul_nn(&mut dw, &turned, dy, inputs, outputs, n, 1);
    dw
}

/// Scales rows to length one and gives their lengths; rows of no length stay.
pub(crate) fn normalize(rows: &mut [f32], dim: usize) -> Vec<f32> {
    rows.chunks_exact_mut(dim)
        .map(|row| {
            let norm = kernels::norm(row).max(1e-12);
            row.iter_mut().for_each(|x| *x /= norm);
            norm
        })
        .collect()
}

/// Gradient of [`normalize`] in the place of `grad`: `(g - z <z, g>) / |y|`, with
/// `unit` (`z`) what came out.
pub(crate) fn normalize_backward(grad: &mut [f32], unit: &[f32], norms: &[f32], dim: usize) {
    let rows = grad.chunks_exact_mut(dim).zip(unit.chunks_exact(dim));
    for ((grad, unit), norm) in rows.zip(norms) {
        let along = kernels::dot(grad, unit);
        for (g, z) in grad.iter_mut().zip(unit) {
            *g = (*g - along * z) / norm;
        }
    }
}

/// Rows that become one: clusters of tokens, the positions of a word, single rows
/// that are kept. A row outside all groups is dropped. No group is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Groups(pub(crate) Vec<Vec<usize>>);

impl Groups {
    /// Of the group of each row; numbers without a row make no group.
    pub(crate) fn new(of_rows: impl Iterator<Item = Option<usize>>) -> Self {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, group) in of_rows.enumerate() {
            if let Some(group) = group {
                groups.resize_with(groups.len().max(group + 1), Vec::new);
                groups[group].push(i);
            }
        }
        groups.retain(|g| !g.is_empty());
        Self(groups)
    }

    /// One group for each word, in the order in which they first occur.
    pub(crate) fn of_words(words: &[u32]) -> Self {
        let mut places = std::collections::HashMap::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, &word) in words.iter().enumerate() {
            let place = *places.entry(word).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[place].push(i);
        }
        Self(groups)
    }

    /// The mean of every group, `[groups, dim]`.
    pub(crate) fn means(&self, rows: &[f32], dim: usize) -> Vec<f32> {
        let mut means = vec![0.0; self.0.len() * dim];
        for (mean, group) in means.chunks_exact_mut(dim).zip(&self.0) {
            for &i in group {
                kernels::add_assign(mean, &rows[i * dim..(i + 1) * dim]);
            }
            mean.iter_mut().for_each(|x| *x /= group.len() as f32);
        }
        means
    }

    /// Gradient of [`Groups::means`], `[rows, dim]`: a member gets its share.
    pub(crate) fn means_backward(&self, grad: &[f32], rows: usize, dim: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * dim];
        for (grad, group) in grad.chunks_exact(dim).zip(&self.0) {
            let share = 1.0 / group.len() as f32;
            for &i in group {
                let out = &mut out[i * dim..(i + 1) * dim];
                out.iter_mut().zip(grad).for_each(|(o, g)| *o += share * g);
            }
        }
        out
    }
}

/// Adam (Kingma and Ba 2015) with its usual momenta.
pub(crate) struct Adam {
    rate: f32,
    step: i32,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Adam {
    pub(crate) fn new(rate: f32, parameters: usize) -> Self {
        Self {
            rate,
            step: 0,
            first: vec![0.0; parameters],
            second: vec![0.0; parameters],
        }
    }

    /// One step against the gradient.
    pub(crate) fn step(&mut self, parameters: &mut [f32], gradient: &[f32]) {
        self.step += 1;
        let (b1, b2) = (0.9f32, 0.999f32);
        let unbias = |b: f32| 1.0 - b.powi(self.step);
        let (c1, c2) = (unbias(b1), unbias(b2));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *p -= self.rate * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_what_belongs_together() {
        assert_eq!(
            Groups::of_words(&[7, 3, 7, 9]),
            Groups(vec![vec![0, 2], vec![1], vec![3]])
        );
        assert_eq!(
            Groups::new([Some(2), Some(0), None, Some(2)].into_iter()),
            Groups(vec![vec![1], vec![0, 3]])
        );
        let groups = Groups(vec![vec![0, 2]]);
        assert_eq!(groups.means(&[1.0, 2.0, 9.0, 9.0, 3.0, 6.0], 2), [2.0, 4.0]);
        let back = groups.means_backward(&[2.0, 4.0], 3, 2);
        assert_eq!(back, [1.0, 2.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn the_first_step_of_adam_is_its_rate() {
        let mut adam = Adam::new(0.1, 2);
        let mut parameters = [1.0, 1.0];
        adam.step(&mut parameters, &[5.0, -0.01]);
        assert!((parameters[0] - 0.9).abs() < 1e-4 && (parameters[1] - 1.1).abs() < 1e-4);
    }
}
