//! Scans and convolutions and their gradients against the framework's own functions, text by
//! text, and packed texts against each alone.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{Tensor, activation};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::ops::{self, ConvShape, Course, SelectiveInputs, SsdInputs};
use proptest::prelude::*;
use support::{agree, device, row, starts, tensor};

/// Steps above 0 and rates below.
fn step(x: Tensor<2>) -> Tensor<2> {
    activation::sigmoid(x)
}

fn rate(x: Tensor<2>) -> Tensor<2> {
    x.exp().neg()
}

/// The positions of a text in the order in which a scan meets them, and where its result goes.
fn order(len: usize, course: Course) -> Vec<(usize, Option<usize>)> {
    let place = |t: usize| if course.backward { len - 1 - t } else { t };
    (0..len)
        .map(|t| {
            let to = if course.strict { t + 1 } else { t };
            (place(t), (to < len).then(|| place(to)))
        })
        .collect()
}

/// Rows of a text by a recurrence: `one(state, position)` gives the next state and a row.
fn plain_scan(
    [rows, width]: [usize; 2],
    starts: &[usize],
    course: Course,
    state: &Tensor<2>,
    one: &dyn Fn(Tensor<2>, usize) -> (Tensor<2>, Tensor<2>),
) -> Tensor<2> {
    let mut out = vec![Tensor::<2>::zeros([1, width], &device()); rows];
    for text in starts.windows(2) {
        let mut state = state.clone();
        for (at, to) in order(text[1] - text[0], course) {
            let (next, y) = one(state, text[0] + at);
            state = next;
            if let Some(to) = to {
                out[text[0] + to] = y;
            }
        }
    }
    Tensor::cat(out, 0)
}

fn plain_selective(
    [x, dt, a, b, c]: [Tensor<2>; 5],
    d: Option<Tensor<2>>,
    starts: &[usize],
    course: Course,
) -> Tensor<2> {
    let zero = Tensor::zeros(a.dims(), &device());
    plain_scan(x.dims(), starts, course, &zero, &|h, t| {
        let at = |m: &Tensor<2>| m.clone().narrow(0, t, 1);
        let (x, dt) = (at(&x), at(&dt));
        let decay = (dt.clone().transpose() * a.clone()).exp();
        let h = h * decay + (dt * x.clone()).transpose() * at(&b);
        let y = (h.clone() * at(&c)).sum_dim(1).transpose();
        (
            h,
            match &d {
                Some(d) => y + d.clone() * x,
                None => y,
            },
        )
    })
}

/// Heads one after the other, each as a scan with the same decay in all places.
fn plain_ssd(
    [x, dt, a, b, c]: [Tensor<2>; 5],
    d: Option<Tensor<2>>,
    groups: usize,
    starts: &[usize],
    course: Course,
) -> Tensor<2> {
    let heads = a.dims()[1];
    let (p, n) = (x.dims()[1] / heads, b.dims()[1] / groups);
    let all = (0..heads).map(|head| {
        let group = head / (heads / groups) * n;
        let of = |m: &Tensor<2>, from: usize, len: usize| m.clone().narrow(1, from, len);
        let every = |m: Tensor<2>| m.repeat_dim(1, p);
        let inputs = [
            of(&x, head * p, p),
            every(of(&dt, head, 1)),
            of(&a, head, 1).repeat_dim(0, p).repeat_dim(1, n),
            of(&b, group, n),
            of(&c, group, n),
        ];
        let d = d.as_ref().map(|d| every(of(d, head, 1)));
        plain_selective(inputs, d, starts, course)
    });
    Tensor::cat(all.collect(), 1)
}

fn courses() -> impl Strategy<Value = Course> {
    (any::<bool>(), any::<bool>()).prop_map(|(backward, strict)| Course { backward, strict })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_scan_of_mamba_agrees(
        lengths in prop::collection::vec(0usize..7, 1..4), d in 1usize..20, n in 1usize..4, course in courses(),
    ) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let given = [
            tensor(1, [rows, d]), tensor(2, [rows, d]), tensor(3, [d, n]), tensor(4, [rows, n]),
            tensor(5, [rows, n]), tensor(6, [1, d]),
        ];
        let skip = |d: Tensor<2>| (!course.strict).then_some(d);
        agree(
            given,
            |[x, dt, a, b, c, d]| {
                let inputs = SelectiveInputs { x, dt: step(dt), a: rate(a), b, c, d: skip(d).map(row) };
                ops::selective_scan(inputs, &at, course)
            },
            |[x, dt, a, b, c, d]| plain_selective([x, step(dt), rate(a), b, c], skip(d), &at, course),
        )?;
    }

    #[test]
    fn the_scan_of_mamba_2_agrees(
        lengths in prop::collection::vec(0usize..16, 1..4),
        groups in 1usize..3, each in 1usize..3, p in 1usize..4, n in 1usize..4, course in courses(),
    ) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let heads = groups * each;
        let given = [
            tensor(1, [rows, heads * p]), tensor(2, [rows, heads]), tensor(3, [1, heads]),
            tensor(4, [rows, groups * n]), tensor(5, [rows, groups * n]), tensor(6, [1, heads]),
        ];
        let skip = |d: Tensor<2>| (!course.strict).then_some(d);
        agree(
            given,
            |[x, dt, a, b, c, d]| {
                let (a, d) = (row(rate(a)), skip(d).map(row));
                ops::ssd_scan(SsdInputs { x, dt: step(dt), a, b, c, d, groups }, &at, course)
            },
            |[x, dt, a, b, c, d]| plain_ssd([x, step(dt), rate(a), b, c], skip(d), groups, &at, course),
        )?;
    }

    #[test]
    fn convolutions_agree(
        lengths in prop::collection::vec(0usize..9, 1..4), channels in 1usize..6, width in 1usize..6, ahead in 0usize..6,
        silu: bool,
    ) {
        let at = starts(&lengths);
        let rows = at[at.len() - 1];
        prop_assume!(rows > 0);
        let shape = ConvShape { ahead: ahead.min(width - 1), silu };
        let given = [tensor(1, [rows, channels]), tensor(2, [channels, width]), tensor(3, [1, channels])];
        agree(
            given,
            |[x, w, b]| ops::depthwise_conv(x, w, row(b), &at, shape),
            |[x, w, b]| {
                let texts = at.windows(2).filter(|t| t[0] < t[1]).map(|t| {
                    let len = t[1] - t[0];
                    let zeros = |rows: usize| Tensor::zeros([rows, channels], &device());
                    let text = x.clone().narrow(0, t[0], len);
                    // One row more on either side, so that no part is empty.
                    let padded = Tensor::cat(vec![zeros(width), text, zeros(width)], 0);
                    let taps = (0..width).map(|k| {
                        let from = k + shape.ahead + 1;
                        let weight = w.clone().narrow(1, k, 1).transpose();
                        padded.clone().narrow(0, from, len) * weight
                    });
                    taps.reduce(|a, b| a + b).unwrap() + b.clone()
                });
                let y = Tensor::cat(texts.collect(), 0);
                if silu { activation::silu(y) } else { y }
            },
        )?;
    }

    #[test]
    fn softplus_agrees(rows in 1usize..40, width in 1usize..9) {
        agree(
            [tensor(1, [rows, width]), tensor(2, [1, width])],
            |[x, b]| ops::softplus(x, row(b)),
            |[x, b]| ((x + b).exp() + 1.0).log(),
        )?;
    }
}

#[test]
fn softplus_of_large_numbers_is_the_number() {
    let x = Tensor::<2>::from_data([[100.0, -100.0, 0.0]], &device()).require_grad();
    let y = ops::softplus(x.clone(), Tensor::zeros([3], &device()));
    assert_eq!(numbers(&y)[..2], [100.0, 0.0]);
    let slope = x.grad(&y.sum().backward()).unwrap();
    assert_eq!(numbers(&slope), [1.0, 0.0, 0.5]);
}

/// What pads would break: a text has the result that it has alone, in both directions, whatever
/// stands before and behind it.
#[test]
fn packed_texts_have_the_results_that_they_have_alone() {
    let lengths = [3, 90, 1, 20];
    let at = starts(&lengths);
    let rows = at[4];
    let [x, dt, b, c] = [1, 2, 3, 4].map(|seed| tensor(seed, [rows, 4]));
    for backward in [false, true] {
        let run = |from: usize, len: usize, starts: &[usize]| {
            let part = |m: &Tensor<2>| m.clone().narrow(0, from, len);
            let x = ops::depthwise_conv(
                part(&x),
                tensor(5, [4, 3]),
                row(tensor(6, [1, 4])),
                starts,
                ConvShape {
                    ahead: 1,
                    silu: true,
                },
            );
            let inputs = SsdInputs {
                x,
                dt: step(part(&dt)).narrow(1, 0, 2),
                a: row(rate(tensor(7, [1, 2]))),
                b: part(&b),
                c: part(&c),
                d: None,
                groups: 1,
            };
            numbers(&ops::ssd_scan(
                inputs,
                starts,
                Course {
                    backward,
                    strict: false,
                },
            ))
        };
        let all = run(0, rows, &at);
        for (text, &len) in at.windows(2).zip(&lengths) {
            assert_eq!(all[text[0] * 4..text[1] * 4], run(text[0], len, &[0, len]));
        }
    }
}

#[test]
fn reversing_twice_changes_nothing() {
    let x = tensor(1, [6, 2]);
    let once = ops::reversed(x.clone(), &[0, 2, 2, 6]);
    assert_eq!(
        numbers(&once)[..4],
        [&numbers(&x)[2..4], &numbers(&x)[..2]].concat()
    );
    assert_eq!(numbers(&ops::reversed(once, &[0, 2, 2, 6])), numbers(&x));
}
