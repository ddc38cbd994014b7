//! Attention of each position to few others of its text, which were chosen before.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_sequence::hax::{Selected, attend, attend_backward};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut};

/// `Σ_j softmax_j(q_t · k_j) v_j` over the keys that `selected` has for each position of each
/// text: `q` and `k` are `[rows, dim]`, `v` and the result `[rows, width]`. `starts` has the
/// first row of each text and, at its end, the number of rows.
///
/// Weights are computed again in the backward pass: memory is that of the inputs and the keys.
///
/// # Panics
/// When shapes do not fit, or `selected` is not of these texts.
pub fn sparse_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    starts: &[usize],
    selected: Vec<Selected>,
) -> Tensor<2> {
    assert_eq!(q.dims(), k.dims(), "as many queries as keys");
    assert_eq!(q.dims()[0], v.dims()[0], "a value for each row");
    assert_eq!(
        starts.last(),
        Some(&v.dims()[0]),
        "starts end with the rows"
    );
    let lengths = starts.windows(2).map(|t| t[1] - t[0]);
    assert!(
        lengths.eq(selected.iter().map(Selected::len)),
        "keys for each position"
    );
    let sparse = Sparse {
        starts: starts.into(),
        selected: selected.into(),
    };
    apply(sparse, [q.into(), k.into(), v.into()])
}

#[derive(Clone, Debug)]
struct Sparse {
    starts: Arc<[usize]>,
    selected: Arc<[Selected]>,
}

/// The shapes were compared before.
const CHECKED: &str = "shapes were checked";

impl Sparse {
    fn texts(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|t| t[0]..t[1])
    }
}

fn rows<'a>(array: &'a Array, text: &Range<usize>) -> &'a [f32] {
    let width = array.sizes()[1];
    &array.numbers()[text.start * width..text.end * width]
}

impl Operator<3> for Sparse {
    type Saved = [Array; 3];

    fn forward(&self, [q, k, v]: [Array; 3]) -> (Array, [Array; 3]) {
        let (sizes @ [all, width], dim) = (v.sizes(), q.sizes()[1]);
        let mut out = vec![0.0; all * width];
        let outs = cut(&mut out, self.texts().map(|t| t.len() * width));
        let texts: Vec<_> = self.texts().zip(self.selected.iter()).collect();
        texts
            .par_iter()
            .zip(outs)
            .filter(|(_, out)| !out.is_empty())
            .for_each(|((text, selected), out)| {
                let [q, k, v] = [&q, &k, &v].map(|x| rows(x, text));
                let found = attend(q, k, v, dim, selected).expect(CHECKED);
                out.copy_from_slice(&found);
            });
        (Array::new(out, sizes), [q, k, v])
    }

    fn backward(&self, [q, k, v]: [Array; 3], g: Array, _: [bool; 3]) -> [Option<Array>; 3] {
        let dim = q.sizes()[1];
        let texts: Vec<_> = self
            .texts()
            .zip(self.selected.iter())
            .filter(|(text, _)| !text.is_empty())
            .collect();
        let found: Vec<[Vec<f32>; 3]> = texts
            .par_iter()
            .map(|(text, selected)| {
                let [q, k, v, g] = [&q, &k, &v, &g].map(|x| rows(x, text));
                attend_backward(q, k, v, dim, selected, g).expect(CHECKED)
            })
            .collect();
        std::array::from_fn(|i| {
            let numbers = found.iter().flat_map(|text| &text[i]).copied().collect();
            Some(Array::new(numbers, [&q, &k, &v][i].sizes()))
        })
    }
}
