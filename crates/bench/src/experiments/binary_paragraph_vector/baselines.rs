//! Other ways to binary codes: random hyperplanes (Charikar 2002), iterative quantisation
//! (Gong and Lazebnik 2011), and an auto-encoder (Salakhutdinov and Hinton, Semantic
//! hashing, 2009), here of one layer.

use std::collections::HashMap;

use kernels::learn::{AdamStep, adamw};
use keyfold_kernels as kernels;
use keyfold_text::paragraph_vector::Embedded;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::ranking::{Item, Items, pack};
use crate::random::normal;

/// Words that the auto-encoder reads: the most frequent.
const WORDS: usize = 2000;
/// Deviation of the noise before its code, which makes it decide between 0 and 1.
const NOISE: f32 = 2.0;
const BATCH: usize = 64;

/// Codes of real vectors: on which side of random hyperplanes through 0 they lie.
pub(super) fn hyperplanes(items: &Items, bits: usize, seed: u64) -> Items {
    let dim = items.dim();
    let mut rng = StdRng::seed_from_u64(seed ^ 0x1a5e);
    let planes: Vec<f32> = (0..bits * dim).map(|_| normal(&mut rng)).collect();
    items.coded(|real| {
        let mut sums = vec![0.0; bits];
        kernels::matmul_nt(&mut sums, real, &planes, 1, bits, dim, 1);
        sums
    })
}

/// Codes of real vectors: the signs after the rotation about their mean that moves the
/// vectors of the documents least when they are rounded.
pub(super) fn iterative_quantisation(items: &Items, seed: u64) -> Items {
    let dim = items.dim();
    let reals: Vec<&[f32]> = items.reals().collect();
    let n = reals.len();
    let mut mean = vec![0.0; dim];
    for real in &reals {
        kernels::axpy(&mut mean, 1.0 / n.max(1) as f32, real);
    }
    let centred =
        |real: &[f32]| -> Vec<f32> { real.iter().zip(&mean).map(|(x, m)| x - m).collect() };
    let rows: Vec<f32> = reals.iter().flat_map(|real| centred(real)).collect();
    let columns = transposed(&rows, dim);
    let mut rng = StdRng::seed_from_u64(seed ^ 0x17c);
    let random: Vec<f32> = (0..dim * dim).map(|_| normal(&mut rng)).collect();
    let mut rotation = nearest_rotation(&random, dim);
    let mut turned = vec![0.0; n * dim];
    let mut product = vec![0.0; dim * dim];
    for _ in 0..50 {
        kernels::matmul_nn(&mut turned, &rows, &rotation, n, dim, dim, 1);
        turned.iter_mut().for_each(|x| *x = x.signum());
        kernels::matmul_nn(&mut product, &columns, &turned, dim, dim, n, 1);
        rotation = nearest_rotation(&product, dim);
    }
    items.coded(|real| {
        let mut sums = vec![0.0; dim];
        kernels::matmul_nn(&mut sums, &centred(real), &rotation, 1, dim, dim, 1);
        sums
    })
}

/// The orthogonal matrix next to a square one, by the iteration of Newton and Schulz:
/// `X ← (3 X - X Xᵀ X) / 2`.
fn nearest_rotation(matrix: &[f32], n: usize) -> Vec<f32> {
    let scale = 1.0 / kernels::norm(matrix).max(1e-12);
    let mut x: Vec<f32> = matrix.iter().map(|m| m * scale).collect();
    let (mut gram, mut cubed) = (vec![0.0; n * n], vec![0.0; n * n]);
    for _ in 0..40 {
        kernels::matmul_nt(&mut gram, &x, &x, n, n, n, 1);
        kernels::matmul_nn(&mut cubed, &gram, &x, n, n, n, 1);
        x.iter_mut()
            .zip(&cubed)
            .for_each(|(x, c)| *x = 1.5 * *x - 0.5 * c);
    }
    x
}

fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    let n = rows.len() / width.max(1);
    let mut out = vec![0.0; rows.len()];
    for (i, row) in rows.chunks_exact(width.max(1)).enumerate() {
        row.iter()
            .enumerate()
            .for_each(|(j, x)| out[j * n + i] = *x);
    }
    out
}

/// Texts as shares of their words among the most frequent.
struct Bags {
    words: HashMap<String, usize>,
}

impl Bags {
    fn learn(texts: &[String]) -> Self {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in texts.iter().flat_map(|t| words(t)) {
            *counts.entry(word).or_default() += 1;
        }
        let mut order: Vec<(String, usize)> = counts.into_iter().filter(|(_, n)| *n > 1).collect();
        order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        order.truncate(WORDS);
        let numbers = order.into_iter().enumerate();
        Self {
            words: numbers.map(|(i, (word, _))| (word, i)).collect(),
        }
    }

    /// None without a known word.
    fn of(&self, text: &str) -> Option<Vec<f32>> {
        let mut bag = vec![0.0f32; self.words.len()];
        for word in words(text) {
            if let Some(&number) = self.words.get(&word) {
                bag[number] += 1.0;
            }
        }
        let all: f32 = bag.iter().sum();
        bag.iter_mut().for_each(|x| *x /= all.max(1.0));
        (all > 0.0).then_some(bag)
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts.filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// Weights that learn by Adam.
struct Learned {
    values: Vec<f32>,
    moments: [Vec<f32>; 2],
}

impl Learned {
    fn new(values: Vec<f32>) -> Self {
        Self {
            moments: [vec![0.0; values.len()], vec![0.0; values.len()]],
            values,
        }
    }

    fn step(&mut self, gradient: &[f32], number: u32) {
        let step = AdamStep {
            rate: 3e-3,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            number,
        };
        let [first, second] = &mut self.moments;
        adamw(&mut self.values, gradient, first, second, step);
    }
}

/// `h = σ(W √x + b + noise)`, `p = softmax(U h + c)`, loss `-Σ x log p`; the code is where
/// `W √x + b` is above its median over the documents.
pub(super) fn auto_encoder(
    documents: &[String],
    queries: &[String],
    bits: usize,
    epochs: usize,
    seed: u64,
) -> Items {
    let bags = Bags::learn(documents);
    let (n, width) = (documents.len(), bags.words.len());
    let mut rng = StdRng::seed_from_u64(seed ^ 0xae);
    let mut draw = |rows: usize, columns: usize| {
        let scale = 1.0 / (columns as f32).sqrt();
        let values = (0..rows * columns).map(|_| scale * normal(&mut rng));
        Learned::new(values.collect())
    };
    let mut encoder = draw(bits, width);
    let mut decoder = draw(width, bits);
    let mut encoder_bias = Learned::new(vec![0.0; bits]);
    let mut decoder_bias = Learned::new(vec![0.0; width]);
    let known: Vec<Vec<f32>> = documents.iter().filter_map(|t| bags.of(t)).collect();
    let mut order: Vec<usize> = (0..known.len()).collect();
    let mut number = 0;
    for _ in 0..epochs {
        order.shuffle(&mut rng);
        for batch in order.chunks(BATCH) {
            number += 1;
            let rows = batch.len();
            let bag: Vec<f32> = batch.iter().flat_map(|i| &known[*i]).copied().collect();
            let input: Vec<f32> = bag.iter().map(|x| x.sqrt()).collect();
            let mut hidden = vec![0.0; rows * bits];
            kernels::matmul_nt(&mut hidden, &input, &encoder.values, rows, bits, width, 1);
            kernels::add_bias(&mut hidden, &encoder_bias.values);
            hidden
                .iter_mut()
                .for_each(|h| *h += NOISE * normal(&mut rng));
            kernels::sigmoid(&mut hidden);
            let mut slope = vec![0.0; rows * width];
            kernels::matmul_nt(&mut slope, &hidden, &decoder.values, rows, width, bits, 1);
            kernels::add_bias(&mut slope, &decoder_bias.values);
            kernels::softmax_rows(&mut slope, width);
            let share = 1.0 / rows as f32;
            slope
                .iter_mut()
                .zip(&bag)
                .for_each(|(p, x)| *p = share * (*p - x));
            let mut back = vec![0.0; rows * bits];
            kernels::matmul_nn(&mut back, &slope, &decoder.values, rows, bits, width, 1);
            back.iter_mut()
                .zip(&hidden)
                .for_each(|(g, h)| *g *= h * (1.0 - h));
            let mut gradient = vec![0.0; width * bits];
            kernels::matmul_nn(
                &mut gradient,
                &transposed(&slope, width),
                &hidden,
                width,
                bits,
                rows,
                1,
            );
            decoder.step(&gradient, number);
            decoder_bias.step(&sums(&slope, width), number);
            kernels::matmul_nn(
                &mut gradient,
                &transposed(&back, bits),
                &input,
                bits,
                width,
                rows,
                1,
            );
            encoder.step(&gradient, number);
            encoder_bias.step(&sums(&back, bits), number);
        }
    }
    let place = |text: &String| {
        let input: Vec<f32> = bags.of(text)?.iter().map(|x| x.sqrt()).collect();
        let mut sums = vec![0.0; bits];
        kernels::matmul_nt(&mut sums, &input, &encoder.values, 1, bits, width, 1);
        Some(sums)
    };
    let places: Vec<Option<Vec<f32>>> = documents.iter().map(place).collect();
    let median = |bit: usize| {
        let mut all: Vec<f32> = places.iter().flatten().map(|p| p[bit]).collect();
        all.sort_by(f32::total_cmp);
        all.get(n / 2).copied().unwrap_or(0.0)
    };
    let medians: Vec<f32> = (0..bits).map(median).collect();
    let item = |place: Option<Vec<f32>>| -> Item {
        let sums: Vec<f32> = place?.iter().zip(&medians).map(|(s, m)| s - m).collect();
        Some(Embedded {
            code: pack(&sums),
            real: None,
        })
    };
    Items {
        queries: queries.iter().map(|q| item(place(q))).collect(),
        documents: places.into_iter().map(item).collect(),
    }
}

fn sums(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    rows.chunks_exact(width)
        .for_each(|row| kernels::add_assign(&mut sums, row));
    sums
}
