//! Rows of texts one after the other, as tensors with gradients.

use burn::tensor::{Int, Tensor, TensorData};
use keyfold_kernels::fold::Fold;
use keyfold_nn::checkpoint::numbers;

/// The rows of several texts.
#[derive(Clone)]
pub(crate) struct Rows {
    /// `[rows of all texts, dim]`.
    pub(crate) rows: Tensor<2>,
    /// The first row of each text, and at the end the number of rows.
    pub(crate) starts: Vec<usize>,
}

/// Rows scaled to length one (floor 1e-12).
pub(crate) fn normalize(rows: Tensor<2>) -> Tensor<2> {
    let squares = rows.clone().powi_scalar(2).sum_dim(1);
    let length = squares.clamp_min(1e-24).sqrt();
    rows / length
}

impl Rows {
    /// Number of texts.
    pub(crate) fn texts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of each text folded as `fold` says: which become one is found without a
    /// gradient, and every member of a mean gets its share of the gradient.
    pub(crate) fn fold(self, fold: Option<Fold>, is_query: bool, seeds: &[u64]) -> Self {
        let Some(fold) = fold else {
            return self;
        };
        let dim = self.rows.dims()[1];
        let values = numbers(&self.rows);
        let mut groups: Vec<Option<u32>> = Vec::new();
        let mut starts = vec![0];
        for (text, seed) in self.starts.windows(2).zip(seeds) {
            let rows = &values[text[0] * dim..text[1] * dim];
            let found = fold.groups(rows, dim, is_query, *seed);
            let first = starts[starts.len() - 1];
            groups.extend(found.of_rows().map(|g| g.map(|g| (first + g) as u32)));
            starts.push(first + found.count());
        }
        let count = starts[starts.len() - 1];
        Self {
            rows: keyfold_nn::ops::mean_by(self.rows, &groups, count),
            starts,
        }
    }

    /// Number of rows of each text, `[texts, 1]`.
    pub(crate) fn counts(&self) -> Tensor<2> {
        let counts = self.starts.windows(2).map(|t| (t[1] - t[0]).max(1) as f32);
        let data = TensorData::new(counts.collect::<Vec<_>>(), [self.texts(), 1]);
        Tensor::from_data(data, &self.rows.device())
    }
}

/// `-log softmax(logits)` at the column `targets[i]` of row `i`, mean over rows. Columns
/// where `hidden` is true take no part.
pub(crate) fn cross_entropy(logits: Tensor<2>, targets: &[usize], hidden: &[bool]) -> Tensor<1> {
    let [rows, columns] = logits.dims();
    let device = logits.device();
    let bias: Vec<f32> = hidden.iter().map(|h| if *h { -1e9 } else { 0.0 }).collect();
    let bias = Tensor::<2>::from_data(TensorData::new(bias, [rows, columns]), &device);
    let chosen: Vec<i64> = targets.iter().map(|t| *t as i64).collect();
    let chosen = Tensor::<2, Int>::from_data(TensorData::new(chosen, [rows, 1]), &device);
    let log = burn::tensor::activation::log_softmax(logits + bias, 1);
    log.gather(1, chosen).mean().neg()
}
