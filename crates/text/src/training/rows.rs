//! Rows of texts one after the other, as tensors with gradients.

use burn::tensor::{Int, Tensor, TensorData};
use keyfold_kernels::fold::Fold;
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops::{self, Groups, Side};

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
        let mut groups = Groups {
            of_rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        for (text, seed) in self.starts.windows(2).zip(seeds) {
            let rows = &values[text[0] * dim..text[1] * dim];
            let found = fold.groups(rows, dim, is_query, *seed);
            let first = groups.ids.len();
            let numbered = found.of_rows().map(|g| g.map(|g| (first + g) as u32));
            groups.of_rows.extend(numbered);
            groups.ids.extend(0..found.count() as u32);
            groups.starts.push(groups.ids.len());
        }
        Self {
            rows: ops::group_mean(self.rows, &groups),
            starts: groups.starts,
        }
    }

    /// As one side of a chamfer similarity.
    pub(crate) fn side(&self) -> Side<'_> {
        Side {
            rows: self.rows.clone(),
            starts: &self.starts,
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Losses {
        crisp: Case,
    }

    /// Loss and gradients of a small PyTorch graph, by parity/training_losses.py.
    #[derive(Deserialize)]
    struct Case {
        dim: usize,
        temperature: f64,
        groups: Sides<Vec<Vec<u32>>>,
        rows: Sides<Vec<Vec<f32>>>,
        loss: f32,
        gradients: Sides<Vec<Vec<f32>>>,
    }

    #[derive(Deserialize)]
    struct Sides<T> {
        queries: T,
        documents: T,
    }

    fn device() -> burn::tensor::Device {
        burn::tensor::Device::flex().autodiff()
    }

    fn tensor(numbers: Vec<f32>, dim: usize) -> Tensor<2> {
        let shape = [numbers.len() / dim, dim];
        Tensor::from_data(TensorData::new(numbers, shape), &device()).require_grad()
    }

    fn means(rows: &Tensor<2>, groups: &[Vec<u32>]) -> Rows {
        let mut all = Groups {
            of_rows: Vec::new(),
            starts: vec![0],
            ids: Vec::new(),
        };
        for text in groups {
            let first = all.ids.len() as u32;
            all.of_rows.extend(text.iter().map(|g| Some(first + g)));
            all.ids.extend(0..=text.iter().copied().max().unwrap_or(0));
            all.starts.push(all.ids.len());
        }
        Rows {
            rows: ops::group_mean(rows.clone(), &all),
            starts: all.starts,
        }
    }

    #[test]
    fn loss_and_gradients_through_clusters_are_those_of_the_same_graph_in_pytorch() {
        let text = include_str!("../../tests/fixtures-training/losses.json");
        let case = serde_json::from_str::<Losses>(text).unwrap().crisp;
        let queries = tensor(case.rows.queries.concat(), case.dim);
        let documents = tensor(case.rows.documents.concat(), case.dim);
        let q = means(&queries, &case.groups.queries);
        let d = means(&documents, &case.groups.documents);
        let scores = ops::chamfer(q.side(), d.side()) / q.counts();
        let logits = scores.div_scalar(case.temperature);
        let loss = cross_entropy(logits, &[0, 1, 2], &[false; 12]);
        let grads = loss.backward();
        let loss: f32 = loss.into_scalar();
        assert!(
            (loss - case.loss).abs() < 1e-5 * case.loss,
            "{loss} {}",
            case.loss
        );
        for (rows, theirs) in [
            (&queries, case.gradients.queries.concat()),
            (&documents, case.gradients.documents.concat()),
        ] {
            let ours = numbers(&rows.grad(&grads).unwrap());
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }

    #[test]
    fn rows_fold_as_the_index_folds_them_and_stay_as_they_are_without() {
        let rows: Vec<f32> = (0..12 * 4)
            .map(|i| ((i * 7 % 11) as f32 - 5.0) / 5.0)
            .collect();
        let whole = Rows {
            rows: normalize(tensor(rows, 4)),
            starts: vec![0, 9, 12],
        };
        let folded = whole
            .clone()
            .fold(Some(Fold::Clusters(2, 3)), false, &[5, 6]);
        assert_eq!(
            folded.starts,
            [0, 3, 6],
            "the second text keeps its three rows"
        );
        let values = numbers(&whole.rows);
        let groups = Fold::Clusters(2, 3).groups(&values[..36], 4, false, 5);
        let ours = numbers(&folded.rows);
        for (a, b) in ours.iter().zip(groups.means(&values[..36], 4)) {
            assert!((a - b).abs() < 1e-6);
        }
        assert_eq!(ours[12..], values[36..]);
        let queries = whole
            .clone()
            .fold(Some(Fold::Clusters(2, 3)), true, &[5, 6]);
        assert_eq!(queries.starts, [0, 2, 4]);
        assert_eq!(whole.clone().fold(None, true, &[5, 6]).starts, whole.starts);
    }

    #[test]
    fn hidden_documents_are_no_negatives() {
        let logits = || tensor(vec![1.0, 9.0, 2.0, 0.0, 1.0, 0.0], 3);
        let hidden = [false, true, false, false, false, false];
        let loss: f32 = cross_entropy(logits(), &[0, 1], &hidden).into_scalar();
        let first = -(1.0f32 - (1f32.exp() + 2f32.exp()).ln());
        let second = -(1.0f32 - (1.0 + 1f32.exp() + 1.0).ln());
        assert!((loss - (first + second) / 2.0).abs() < 1e-5, "{loss}");
    }
}
