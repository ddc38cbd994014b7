#![allow(clippy::unwrap_used)]

use super::match3::match3;
use super::polynomial::{Fit, Polynomial};
use super::*;
use keyfold_kernels::Team;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Numbers of an attention.
struct Numbers {
    dim: usize,
    q: Vec<f64>,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Numbers {
    fn new(n: usize, dim: usize, width: usize, keys: usize, bound: f64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = |len: usize| -> Vec<f64> {
            (0..len).map(|_| rng.random_range(-bound..=bound)).collect()
        };
        Self {
            dim,
            q: draw(n * dim),
            keys: (0..keys).map(|_| draw(n * dim)).collect(),
            values: (0..keys).map(|_| draw(n * width)).collect(),
        }
    }

    fn attention(&self) -> Attention<'_> {
        Attention::new(
            &self.q,
            self.keys.iter().map(Vec::as_slice).collect(),
            self.values.iter().map(Vec::as_slice).collect(),
            self.dim,
        )
        .unwrap()
    }

    /// All numbers in a row.
    fn flat(&self) -> Vec<f64> {
        [&self.q]
            .into_iter()
            .chain(&self.keys)
            .chain(&self.values)
            .flatten()
            .copied()
            .collect()
    }

    fn with(&self, flat: &[f64]) -> Self {
        let mut rest = flat;
        let mut take = |like: &Vec<f64>| {
            let (own, other) = rest.split_at(like.len());
            rest = other;
            own.to_vec()
        };
        Self {
            dim: self.dim,
            q: take(&self.q),
            keys: self.keys.iter().map(&mut take).collect(),
            values: self.values.iter().map(&mut take).collect(),
        }
    }

    /// The definition, with `weight` in place of `exp`.
    fn definition(&self, causal: bool, weight: &dyn Fn(f64) -> f64) -> Vec<f64> {
        let (n, d) = (self.q.len() / self.dim, self.dim);
        let width = self.values[0].len() / n;
        let mut out = Vec::new();
        for i in 0..n {
            let seen = if causal { i + 1 } else { n };
            let (mut sum, mut mixed) = (0.0, vec![0.0; width]);
            for tuple in 0..seen.pow(self.keys.len() as u32) {
                let row = |place: usize| tuple / seen.pow(place as u32) % seen;
                let score: f64 = (0..d)
                    .map(|l| {
                        let keys = self.keys.iter().enumerate();
                        let keys: f64 = keys.map(|(p, k)| k[row(p) * d + l]).product();
                        self.q[i * d + l] * keys
                    })
                    .sum();
                let w = weight(score / d as f64);
                sum += w;
                for (c, mixed) in mixed.iter_mut().enumerate() {
                    let values = self.values.iter().enumerate();
                    *mixed += w * values.map(|(p, v)| v[row(p) * width + c]).product::<f64>();
                }
            }
            out.extend(mixed.iter().map(|x| x / sum));
        }
        out
    }
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

fn flat(g: Gradients) -> Vec<f64> {
    let parts = [g.queries].into_iter().chain(g.keys).chain(g.values);
    parts.flatten().collect()
}

/// Central differences of `Σ dout · f(numbers)`.
fn slopes(numbers: &Numbers, dout: &[f64], f: &dyn Fn(&Numbers) -> Vec<f64>) -> Vec<f64> {
    let all = numbers.flat();
    let loss = |at: usize, step: f64| -> f64 {
        let mut moved = all.clone();
        moved[at] += step;
        f(&numbers.with(&moved))
            .iter()
            .zip(dout)
            .map(|(a, b)| a * b)
            .sum()
    };
    let step = 1e-5;
    (0..all.len())
        .map(|at| (loss(at, step) - loss(at, -step)) / (2.0 * step))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn exact_attention_is_its_definition(
        n in 1usize..7, dim in 1usize..4, width in 1usize..4, keys in 1usize..4, causal: bool, seed: u64,
    ) {
        let numbers = Numbers::new(n, dim, width, keys, 3.0, seed);
        let out = numbers.attention().causal(causal).exact(&Team::new(2)).unwrap();
        prop_assert!(far(&out, &numbers.definition(causal, &f64::exp)) < 1e-12);
    }

    #[test]
    fn polynomial_attention_is_the_polynomial_of_every_score(
        n in 1usize..7, dim in 1usize..4, width in 1usize..4, keys in 1usize..4,
        degree in 0usize..5, minimax: bool, causal: bool, seed: u64,
    ) {
        let numbers = Numbers::new(n, dim, width, keys, 0.9, seed);
        let attention = numbers.attention().causal(causal);
        let fit = if minimax { Fit::Minimax } else { Fit::Taylor };
        let polynomial = Polynomial::new(&attention, degree, fit, false).unwrap();
        let p = |s: f64| polynomial.coefficients().iter().rev().fold(0.0, |sum, c| sum * s + c);
        let out = polynomial.apply(&attention);
        prop_assert!(far(&out, &numbers.definition(causal, &p)) < 1e-10);
        let certificate = polynomial.certificate(&attention);
        let exact = attention.exact(&Team::new(1)).unwrap();
        prop_assert!(far(&out, &exact) <= certificate.output_error + 1e-12);
    }

    #[test]
    fn gradients_are_slopes(
        n in 1usize..5, dim in 1usize..3, width in 1usize..3, keys in 1usize..4, causal: bool, seed: u64,
    ) {
        let numbers = Numbers::new(n, dim, width, keys, 0.9, seed);
        let dout = Numbers::new(n, 1, width, 1, 1.0, !seed).values.remove(0);
        let attention = numbers.attention().causal(causal);
        let exact = flat(attention.exact_backward(&dout).unwrap());
        let want = slopes(&numbers, &dout, &|x| x.definition(causal, &f64::exp));
        prop_assert!(far(&exact, &want) < 1e-8);
        let polynomial = Polynomial::new(&attention, 4, Fit::Taylor, false).unwrap();
        let p = |s: f64| polynomial.coefficients().iter().rev().fold(0.0, |sum, c| sum * s + c);
        let found = flat(polynomial.backward(&attention, &dout).unwrap());
        let want = slopes(&numbers, &dout, &|x| x.definition(causal, &p));
        prop_assert!(far(&found, &want) < 1e-7);
    }

    /// With entries up to a half scores are at most 0.25, where exp and the polynomial agree to 1e-8.
    #[test]
    fn gradients_of_small_entries_are_those_of_exact_attention(
        n in 1usize..20, keys in 1usize..3, causal: bool, seed: u64,
    ) {
        let numbers = Numbers::new(n, 3, 2, keys, 0.5, seed);
        let dout = Numbers::new(n, 1, 2, 1, 1.0, !seed).values.remove(0);
        let attention = numbers.attention().causal(causal);
        let exact = flat(attention.exact_backward(&dout).unwrap());
        let polynomial = Polynomial::new(&attention, 6, Fit::Taylor, false).unwrap();
        let found = flat(polynomial.backward(&attention, &dout).unwrap());
        prop_assert!(far(&found, &exact) < 1e-6, "{}", far(&found, &exact));
    }

    #[test]
    fn three_numbers_that_match_are_found(
        modulus in 1u64..40, x in prop::collection::vec(0u64..1000, 0..8),
    ) {
        let found = match3(&x, modulus, &Team::new(1)).unwrap();
        for (i, found) in found.iter().enumerate() {
            let pairs = x.iter().flat_map(|j| x.iter().map(move |k| j + k));
            let want = pairs.into_iter().any(|pair| (pair + x[i]).is_multiple_of(modulus));
            prop_assert_eq!(*found, want);
        }
    }
}

#[test]
fn minimax_is_better_at_the_worst_score_and_equal_at_its_extremes() {
    let numbers = Numbers::new(6, 4, 2, 2, 1.4, 3);
    let attention = numbers.attention();
    for degree in 1..6 {
        let of = |fit| {
            Polynomial::new(&attention, degree, fit, false)
                .unwrap()
                .certificate(&attention)
        };
        let (taylor, best) = (of(Fit::Taylor), of(Fit::Minimax));
        assert!(
            best.relative_error < 0.7 * taylor.relative_error,
            "{degree}"
        );
        assert_eq!(taylor.features, best.features);
    }
}

#[test]
fn the_strongest_triples_are_those_of_the_definition() {
    let numbers = Numbers::new(5, 3, 1, 2, 2.0, 9);
    let attention = numbers.attention();
    let found = triples(&attention, 4).unwrap();
    let mut all = Vec::new();
    for i in 0..5 {
        let score = |j: usize, k: usize| -> f64 {
            let each = (0..3).map(|l| {
                numbers.q[i * 3 + l] * numbers.keys[0][j * 3 + l] * numbers.keys[1][k * 3 + l]
            });
            (each.sum::<f64>() / 3.0).exp()
        };
        let pairs = || (0..25).map(|p| (p / 5, p % 5));
        let sum: f64 = pairs().map(|(j, k)| score(j, k)).sum();
        all.extend(pairs().map(|(j, k)| (score(j, k) / sum, i, j, k)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (found, want) in found.iter().zip(&all) {
        assert_eq!((found.query, found.pair), (want.1, [want.2, want.3]));
        assert!((found.weight - want.0).abs() < 1e-12);
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let ones = vec![1.0; 8];
    let e = Attention::new(&[1.0, f64::NAN], vec![&[1.0, 2.0]], vec![&[1.0, 2.0]], 1).unwrap_err();
    assert!(
        e.to_string().contains("NaN") && e.to_string().contains("row 1"),
        "{e}"
    );
    assert!(Attention::new(&ones, vec![&ones[..4]], vec![&ones], 2).is_err());
    assert!(Attention::new(&[], vec![&[]], vec![&[]], 2).is_err());
    assert!(Attention::new(&ones, vec![], vec![], 2).is_err());
    let large = vec![3.0; 8];
    let attention = Attention::new(&large, vec![&large, &large], vec![&ones, &ones], 2).unwrap();
    let e = Polynomial::new(&attention, 4, Fit::Taylor, false).unwrap_err();
    assert!(e.to_string().contains("27"), "{e}");
    assert!(Polynomial::new(&attention, 4, Fit::Taylor, true).is_ok());
    let wide = vec![0.1; 128];
    let attention = Attention::new(&wide, vec![&wide, &wide], vec![&wide, &wide], 64).unwrap();
    let e = Polynomial::new(&attention, 4, Fit::Taylor, false).unwrap_err();
    assert!(e.to_string().contains("monomials"), "{e}");
    let long = vec![0.0; 3_000];
    let attention = Attention::new(&long, vec![&long, &long], vec![&long, &long], 1).unwrap();
    assert!(attention.exact(&Team::new(1)).is_err());
    assert!(attention.check_exact().is_err());
    assert!(attention.patient(true).check_exact().is_ok());
}

#[test]
fn numbers_are_those_of_pytorch() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/tensor_attention.json"
    );
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(json[name].clone()).unwrap() };
    let (q, k1, k2) = (numbers("q"), numbers("k1"), numbers("k2"));
    let (v1, v2, dout) = (numbers("v1"), numbers("v2"), numbers("dout"));
    let attention = Attention::new(&q, vec![&k1, &k2], vec![&v1, &v2], 5).unwrap();
    let out = attention.exact(&Team::new(2)).unwrap();
    assert!(far(&out, &numbers("out")) < 1e-12);
    let g = attention.exact_backward(&dout).unwrap();
    assert!(far(&g.queries, &numbers("dq")) < 1e-10);
    for (found, name) in g
        .keys
        .iter()
        .chain(&g.values)
        .zip(["dk1", "dk2", "dv1", "dv2"])
    {
        assert!(far(found, &numbers(name)) < 1e-10, "{name}");
    }
}
