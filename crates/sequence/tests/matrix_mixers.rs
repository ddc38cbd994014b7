//! Gradients of mixers that are a matrix.
#![allow(clippy::unwrap_used)]

use keyfold_sequence::matrix_mixers::{MatrixMixer, QueriesKeys};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const T: usize = 7;
const WIDTH: usize = 3;
const DIM: usize = 2;
const LONGEST: usize = 9;

fn mixer<'a>(family: usize, first: &'a [f32], second: &'a [f32], bias: f32) -> MatrixMixer<'a> {
    let of = QueriesKeys {
        queries: first,
        keys: second,
        dim: DIM,
    };
    match family {
        0 => MatrixMixer::Dense(first),
        1 => MatrixMixer::Toeplitz {
            forward: first,
            reverse: second,
        },
        2 => MatrixMixer::Vandermonde(of),
        3 => MatrixMixer::Cauchy { of, bias },
        4 => MatrixMixer::LowRank(of),
        5 => MatrixMixer::Attention(of),
        _ => MatrixMixer::Fourier,
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut draw = |n: usize, scale: f32| -> Vec<f32> {
        (0..n)
            .map(|_| scale * rng.random_range(-1.0f32..1.0))
            .collect()
    };
    for family in 0..7 {
        let (firsts, seconds) = match family {
            0 => (T * T, 0),
            1 => (T, T),
            6 => (0, 0),
            _ => (T * DIM, T * DIM),
        };
        // Angles of a thousandth: only large numbers turn far.
        let scale = if family == 2 { 60.0 } else { 1.0 };
        let mut numbers = [
            draw(T * WIDTH, 1.0),
            draw(firsts, scale),
            draw(seconds, scale),
            vec![0.5],
        ];
        let g = draw(T * WIDTH, 1.0);
        let loss = |numbers: &[Vec<f32>; 4]| -> f64 {
            let mixer = mixer(family, &numbers[1], &numbers[2], numbers[3][0]);
            let out = mixer.mix(&numbers[0], WIDTH, LONGEST).unwrap();
            out.iter().zip(&g).map(|(y, g)| f64::from(y * g)).sum()
        };
        let found = mixer(family, &numbers[1], &numbers[2], 0.5)
            .backward(&numbers[0], WIDTH, LONGEST, &g)
            .unwrap();
        let found = [found.values, found.first, found.second, vec![found.bias]];
        for part in 0..4 {
            for i in 0..numbers[part].len() {
                let step = if part == 0 || part == 3 {
                    1e-2
                } else {
                    1e-2 * scale
                };
                let before = numbers[part][i];
                let mut at = |x: f32| {
                    numbers[part][i] = x;
                    loss(&numbers)
                };
                let slope = (at(before + step) - at(before - step)) / f64::from(2.0 * step);
                at(before);
                let ours = f64::from(found[part].get(i).copied().unwrap_or(0.0));
                let near = (ours - slope).abs() < 2e-3 * (1.0 / f64::from(scale) + slope.abs());
                assert!(near, "family {family}, part {part}, {i}: {ours} {slope}");
            }
        }
    }
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let m = [0.0; 9];
    assert!(
        MatrixMixer::Dense(&m)
            .backward(&[1.0; 6], 2, 3, &[1.0; 4])
            .is_err()
    );
}
