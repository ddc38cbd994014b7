//! The scans of Mamba and Mamba-2 within each text of a packed batch.
//!
//! Texts are scanned side by side and each by itself, so that a text has the result that it
//! has alone, whatever stands beside it. The arithmetic of both passes, and how states are
//! made again in the backward pass, is [`keyfold_kernels::scan`].

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;
use keyfold_kernels::Team;
use keyfold_kernels::scan::{self, Rows, SSD_CHUNK, Selective, Ssd};
use rayon::prelude::*;

use super::operator::{Array, Operator, apply, cut, sum};

/// Which way a scan goes through a text, and what a position sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Course {
    /// From the last position to the first.
    pub backward: bool,
    /// A position sees what comes before it in that direction, but not itself (Hydra).
    pub strict: bool,
}

/// What a scan of Mamba reads, `D` channels with `N` state numbers each; rows are those of
/// all texts.
#[derive(Debug, Clone)]
pub struct SelectiveInputs {
    /// Input, `[rows, D]`.
    pub x: Tensor<2>,
    /// Length of the steps, at least 0, `[rows, D]`.
    pub dt: Tensor<2>,
    /// Rate of the decay, at most 0, `[D, N]`.
    pub a: Tensor<2>,
    /// What is written to the state, `[rows, N]`.
    pub b: Tensor<2>,
    /// What is read from it, `[rows, N]`.
    pub c: Tensor<2>,
    /// How much of the input goes past it, `[D]`.
    pub d: Option<Tensor<1>>,
}

/// What a scan of Mamba-2 reads, `H` heads of `P` channels in `G` groups, `N` state numbers
/// of each channel; rows are those of all texts.
#[derive(Debug, Clone)]
pub struct SsdInputs {
    /// Input, `[rows, H P]`.
    pub x: Tensor<2>,
    /// Length of the steps, at least 0, `[rows, H]`.
    pub dt: Tensor<2>,
    /// Rate of the decay, at most 0, `[H]`.
    pub a: Tensor<1>,
    /// What is written to the state, `[rows, G N]`.
    pub b: Tensor<2>,
    /// What is read from it, `[rows, G N]`.
    pub c: Tensor<2>,
    /// How much of the input goes past it, `[H]` or `[H P]`.
    pub d: Option<Tensor<1>>,
    /// `G`.
    pub groups: usize,
}

/// The scan of Mamba, `[rows, D]`. `starts` has the first row of each text and, at its end,
/// the number of rows.
///
/// # Panics
/// When shapes do not fit, `starts` falls or does not end with the rows, or `d` comes with a
/// strict course.
pub fn selective_scan(inputs: SelectiveInputs, starts: &[usize], course: Course) -> Tensor<2> {
    let SelectiveInputs { x, dt, a, b, c, d } = inputs;
    let scan = Scan::new(SelectiveRule, starts, course, d.is_some(), x.dims()[0]);
    let all = [x.into(), dt.into(), b.into(), c.into(), a.into()];
    match d {
        None => apply(scan, all),
        Some(d) => {
            let [x, dt, b, c, a] = all;
            apply(scan, [x, dt, b, c, a, d.into()])
        }
    }
}

/// The scan of Mamba-2, `[rows, H P]`; otherwise as [`selective_scan`].
///
/// # Panics
/// As [`selective_scan`].
pub fn ssd_scan(inputs: SsdInputs, starts: &[usize], course: Course) -> Tensor<2> {
    let SsdInputs {
        x,
        dt,
        a,
        b,
        c,
        d,
        groups,
    } = inputs;
    let scan = Scan::new(SsdRule { groups }, starts, course, d.is_some(), x.dims()[0]);
    let all = [x.into(), dt.into(), b.into(), c.into(), a.into()];
    match d {
        None => apply(scan, all),
        Some(d) => {
            let [x, dt, b, c, a] = all;
            apply(scan, [x, dt, b, c, a, d.into()])
        }
    }
}

/// Rows of every text from its last to its first; the same once more gives them back.
///
/// # Panics
/// When `starts` falls or does not end with the rows.
pub fn reversed(x: Tensor<2>, starts: &[usize]) -> Tensor<2> {
    assert_eq!(
        starts.last(),
        Some(&x.dims()[0]),
        "starts end with the rows"
    );
    let ids: Vec<u32> = starts
        .windows(2)
        .flat_map(|t| (t[0]..t[1]).rev().map(|row| row as u32))
        .collect();
    super::rows(x, &ids)
}

/// A recurrence over one text.
trait Rule: Clone + Debug + Send + Sync + 'static {
    fn forward(&self, text: &Text, out: &mut [f32]);

    fn backward(&self, text: &Text, dout: &[f32]) -> TextGradients;

    /// Gradients of the rates as a tensor, whose sizes as a matrix are `sizes`.
    fn rates(&self, numbers: Vec<f32>, sizes: [usize; 2]) -> Array;
}

/// What one text's scan reads, in the order of the course.
struct Text<'a> {
    x: Cow<'a, [f32]>,
    dt: Cow<'a, [f32]>,
    b: Cow<'a, [f32]>,
    c: Cow<'a, [f32]>,
    a: &'a [f32],
    d: Option<&'a [f32]>,
    /// Numbers of a row of x, dt and b.
    widths: [usize; 3],
}

/// Gradients of a [`Text`].
struct TextGradients {
    /// Of x, dt, b, c.
    rows: [Vec<f32>; 4],
    a: Vec<f32>,
    d: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Scan<R> {
    rule: R,
    starts: Arc<[usize]>,
    course: Course,
}

impl<R> Scan<R> {
    fn new(rule: R, starts: &[usize], course: Course, skips: bool, rows: usize) -> Self {
        assert_eq!(starts.last(), Some(&rows), "starts end with the rows");
        assert!(
            !(course.strict && skips),
            "what goes past the state is at no position that a strict scan sees"
        );
        Self {
            rule,
            starts: starts.into(),
            course,
        }
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.starts.windows(2).map(|t| t[1] - t[0])
    }

    fn texts<'a>(&self, inputs: &'a [Array]) -> Vec<Text<'a>> {
        let widths: [usize; 4] = std::array::from_fn(|i| inputs[i].sizes()[1]);
        let texts = self.starts.windows(2).map(|t| {
            let part = |i: usize| {
                let rows = &inputs[i].numbers()[t[0] * widths[i]..t[1] * widths[i]];
                self.ordered(rows, widths[i])
            };
            Text {
                x: part(0),
                dt: part(1),
                b: part(2),
                c: part(3),
                a: inputs[4].numbers(),
                d: inputs.get(5).map(Array::numbers),
                widths: [widths[0], widths[1], widths[2]],
            }
        });
        texts.collect()
    }

    /// A text's rows in the order of the course, or back.
    fn ordered<'a>(&self, rows: &'a [f32], width: usize) -> Cow<'a, [f32]> {
        if !self.course.backward || width == 0 {
            return Cow::Borrowed(rows);
        }
        Cow::Owned(rows.rchunks_exact(width).flatten().copied().collect())
    }

    /// The scan's results to the positions that see them.
    fn place(&self, found: &[f32], out: &mut [f32], width: usize) {
        let shift = if self.course.strict { width } else { 0 };
        let kept = found.len() - shift;
        let ordered = &found[..kept];
        if self.course.backward {
            for (to, from) in out[..kept]
                .rchunks_exact_mut(width)
                .zip(ordered.chunks_exact(width))
            {
                to.copy_from_slice(from);
            }
        } else {
            out[shift..].copy_from_slice(ordered);
        }
    }

    /// The opposite of [`place`](Self::place), for gradients.
    fn gather(&self, g: &[f32], width: usize) -> Vec<f32> {
        let mut all = self.ordered(g, width).into_owned();
        if self.course.strict {
            all.copy_within(width.., 0);
            let kept = all.len() - width;
            all[kept..].fill(0.0);
        }
        all
    }
}

impl<R: Rule, const N: usize> Operator<N> for Scan<R> {
    type Saved = [Array; N];

    fn forward(&self, inputs: [Array; N]) -> (Array, [Array; N]) {
        let [rows, width] = inputs[0].sizes();
        let mut out = vec![0.0; rows * width];
        let outs = cut(&mut out, self.lengths().map(|len| len * width));
        self.texts(&inputs)
            .par_iter()
            .zip(outs)
            .filter(|(_, out)| !out.is_empty())
            .for_each(|(text, out)| {
                let mut found = vec![0.0; out.len()];
                self.rule.forward(text, &mut found);
                self.place(&found, out, width);
            });
        (Array::new(out, [rows, width]), inputs)
    }

    fn backward(&self, inputs: [Array; N], g: Array, _: [bool; N]) -> [Option<Array>; N] {
        let width = inputs[0].sizes()[1];
        let found: Vec<Option<TextGradients>> = self
            .texts(&inputs)
            .par_iter()
            .zip(self.starts.par_windows(2))
            .map(|(text, t)| {
                let g = &g.numbers()[t[0] * width..t[1] * width];
                (!g.is_empty()).then(|| self.rule.backward(text, &self.gather(g, width)))
            })
            .collect();
        let (mut a, mut d) = (Vec::new(), Vec::new());
        let mut rows: [Vec<f32>; 4] =
            std::array::from_fn(|i| Vec::with_capacity(inputs[i].numbers().len()));
        for text in found.into_iter().flatten() {
            for (i, (all, rows)) in rows.iter_mut().zip(&text.rows).enumerate() {
                all.extend_from_slice(&self.ordered(rows, inputs[i].sizes()[1]));
            }
            a.push(text.a);
            d.push(text.d);
        }
        let mut rows = rows.into_iter();
        std::array::from_fn(|i| {
            let sizes = inputs[i].sizes();
            Some(match i {
                4 => {
                    let length = inputs[4].numbers().len();
                    self.rule.rates(sum(std::mem::take(&mut a), length), sizes)
                }
                5 => Array::new(sum(std::mem::take(&mut d), sizes[1]), [sizes[1]]),
                _ => Array::new(rows.next().unwrap_or_default(), sizes),
            })
        })
    }
}

/// Mamba.
#[derive(Clone, Debug)]
struct SelectiveRule;

impl SelectiveRule {
    /// `a` is `[N, D]` here.
    fn inputs<'a>(text: &'a Text, a: &'a [f32]) -> Selective<'a> {
        let [d, steps, n] = text.widths;
        Selective {
            x: Rows::new(&text.x, d),
            dt: Rows::new(&text.dt, steps),
            a,
            b: Rows::new(&text.b, n),
            c: Rows::new(&text.c, n),
            d: text.d,
        }
    }
}

impl Rule for SelectiveRule {
    fn forward(&self, text: &Text, out: &mut [f32]) {
        let [d, _, n] = text.widths;
        let a = transposed(text.a, d, n);
        let mut state = vec![0.0; n * d];
        let inputs = Self::inputs(text, &a);
        scan::selective_scan(&inputs, None, &mut state, out, &Team::new(1));
    }

    fn backward(&self, text: &Text, dout: &[f32]) -> TextGradients {
        let [d, _, n] = text.widths;
        let a = transposed(text.a, d, n);
        let (state, mut after) = (vec![0.0; n * d], vec![0.0; n * d]);
        let inputs = Self::inputs(text, &a);
        let team = Team::new(1);
        let found = scan::selective_scan_backward(&inputs, &state, dout, &mut after, &team);
        TextGradients {
            rows: [found.x, found.dt, found.b, found.c],
            a: transposed(&found.a, n, d),
            d: found.d,
        }
    }

    fn rates(&self, numbers: Vec<f32>, sizes: [usize; 2]) -> Array {
        Array::new(numbers, sizes)
    }
}

/// Mamba-2.
#[derive(Clone, Debug)]
struct SsdRule {
    groups: usize,
}

impl SsdRule {
    fn inputs<'a>(&self, text: &'a Text) -> (Ssd<'a>, usize) {
        let [x, heads, states] = text.widths;
        let inputs = Ssd {
            x: Rows::new(&text.x, x),
            dt: Rows::new(&text.dt, heads),
            a: text.a,
            b: Rows::new(&text.b, states),
            c: Rows::new(&text.c, states),
            d: text.d,
            groups: self.groups,
        };
        (inputs, x * states / self.groups.max(1))
    }
}

impl Rule for SsdRule {
    fn forward(&self, text: &Text, out: &mut [f32]) {
        let (inputs, len) = self.inputs(text);
        scan::ssd_scan(&inputs, SSD_CHUNK, &mut vec![0.0; len], out, &Team::new(1));
    }

    fn backward(&self, text: &Text, dout: &[f32]) -> TextGradients {
        let (inputs, len) = self.inputs(text);
        let (state, mut after) = (vec![0.0; len], vec![0.0; len]);
        let team = Team::new(1);
        let found = scan::ssd_scan_backward(&inputs, SSD_CHUNK, &state, dout, &mut after, &team);
        TextGradients {
            rows: [found.x, found.dt, found.b, found.c],
            a: found.a,
            d: found.d,
        }
    }

    fn rates(&self, numbers: Vec<f32>, _: [usize; 2]) -> Array {
        let length = numbers.len();
        Array::new(numbers, [length])
    }
}

/// A matrix `[rows, columns]` as `[columns, rows]`.
fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let at = |i: usize| matrix[i % rows * columns + i / rows];
    (0..rows * columns).map(at).collect()
}
