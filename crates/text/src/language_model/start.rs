//! First weights that look back, so that a small model need not find out how.
//!
//! Finding what followed the same bytes earlier takes two layers that are of no use without each
//! other (an induction head: Olsson et al., In-context Learning and Induction Heads, 2022), and
//! with some thousand small batches training comes upon them by chance or not at all. Here
//! they stand at the beginning, as weights that look like those of trained models help others
//! (Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, 2023):
//!
//! ```text
//! embedding   e(t) in the first half of the channels, one channel with the same number for all
//! layer 0     head k attends k + 1 back, by that channel and its rotary angle alone, and
//!             copies P e to the k-th part of the second half, k = 0, 1, 2
//! layer 1     query  A_0 P e(t_i)     + A_1 P e(t_{i-1}) + A_2 P e(t_{i-2})
//!             key    A_0 P e(t_{j-1}) + A_1 P e(t_{j-2}) + A_2 P e(t_{j-3})
//!             value  R e(t_j), put in the way of the token's own vector
//! ```
//!
//! with P, R and every A of random orthonormal rows, and codes only in the pairs of a head that
//! the rotary angles hardly turn. All other weights are random, and all of them are trained.

use keyfold_kernels as kernels;
use keyfold_nn::{LlamaConfig, random};
use keyfold_train::TrainError;

/// How far back layer 0 copies from.
const BACK: usize = 3;
/// Pairs of a head by which layer 0 knows a distance: those that turn fastest.
const FAST: usize = 5;
/// The score of the right distance.
const PEAK: f32 = 60.0;
/// Distance over which a pair that holds codes turns by less than one.
const REACH: f32 = 256.0;
/// Length of token vectors against other weights; what layers add must not drown them.
const TOKENS: f32 = 3.5;
/// The other channels of a token's vector against other weights: layer 0 writes over them.
const UNUSED: f32 = 0.1;
/// What layer 0 copies, as a share of it.
const COPIED: f32 = 0.5;
/// Scale of queries and keys of layer 1.
const SHARPNESS: f32 = 2.0;
/// How far a token that was found stands out above the present one.
const FOUND: f32 = 6.0;

/// Weights of the first two layers that look back.
pub(super) struct LookBack {
    hidden: usize,
    head: usize,
    group: usize,
    frequencies: Vec<f32>,
    deviation: f32,
    /// P, `[head, half - 1]`: what layer 0 copies.
    copied: Vec<f32>,
    /// R, `[head, half - 1]`: what layer 1 finds.
    found: Vec<f32>,
    /// A, each `[codes, head]`.
    mixed: Vec<Vec<f32>>,
    /// The numbers of a head that hold codes.
    slow: Vec<usize>,
}

impl LookBack {
    /// For a model of these sizes.
    ///
    /// # Errors
    /// When it is too small.
    pub(super) fn new(config: &LlamaConfig, seed: u64) -> Result<Self, TrainError> {
        let (hidden, head) = (config.hidden_size, config.head_dim);
        let small = |what: String| {
            let way = "--set start=random begins without";
            Err(TrainError::Config(format!("start=look-back {what}; {way}")))
        };
        let fits = config.num_hidden_layers >= 2
            && config.num_attention_heads >= BACK
            && hidden >= 2 * BACK * head
            && head >= 2 * FAST;
        if !fits {
            return small(format!(
                "needs 2 layers, {BACK} heads of {} numbers or more, and a hidden_size of {} heads",
                2 * FAST,
                2 * BACK
            ));
        }
        let frequencies: Vec<f32> = (0..head / 2)
            .map(|i| config.rope_theta.powf(-2.0 * i as f64 / head as f64) as f32)
            .collect();
        let pairs = || (0..head / 2).filter(|&i| frequencies[i] * REACH < 1.0);
        let slow: Vec<usize> = pairs().chain(pairs().map(|i| i + head / 2)).collect();
        if slow.is_empty() {
            return small(format!(
                "finds no angle slow enough with model.rope_theta {}; 1000000 has some",
                config.rope_theta
            ));
        }
        let seed = random::derive(seed, 0x100c_bac0);
        let tokens = hidden / 2 - 1;
        Ok(Self {
            hidden,
            head,
            group: config.num_attention_heads / config.num_key_value_heads.max(1),
            deviation: config.initializer_range * TOKENS,
            copied: orthonormal(seed, 0, head, tokens),
            found: orthonormal(seed, 1, head, tokens),
            mixed: (0..BACK as u64)
                .map(|k| orthonormal(seed, 2 + k, slow.len(), head))
                .collect(),
            slow,
            frequencies,
        })
    }

    /// Puts the weights of tensor `name` in their places.
    pub(super) fn change(&self, name: &str, weights: &mut [f32]) {
        let Some(rest) = name.strip_prefix("model.layers.") else {
            if name == "model.embed_tokens.weight" {
                self.embedding(weights);
            }
            return;
        };
        match rest {
            "0.self_attn.q_proj.weight" => self.distances(weights, BACK, |k| -(k as f32 + 1.0)),
            "0.self_attn.k_proj.weight" => self.distances(weights, self.copying(), |_| 0.0),
            "0.self_attn.v_proj.weight" => {
                for kv in 0..self.copying() {
                    self.read(weights, kv, &self.copied);
                }
            }
            "0.self_attn.o_proj.weight" => self.copies(weights),
            "1.self_attn.q_proj.weight" => (0..self.group).for_each(|h| self.query(weights, h)),
            "1.self_attn.k_proj.weight" => self.key(weights),
            "1.self_attn.v_proj.weight" => self.read(weights, 0, &self.found),
            "1.self_attn.o_proj.weight" => self.answer(weights),
            _ => (),
        }
    }

    /// Where the second half of the channels begins; the channel before it is the same for all.
    fn half(&self) -> usize {
        self.hidden / 2
    }

    /// Heads of keys that layer 0 copies by.
    fn copying(&self) -> usize {
        BACK.div_ceil(self.group)
    }

    /// What the channel holds that is the same for all tokens.
    fn constant(&self) -> f32 {
        self.deviation * (self.hidden as f32).sqrt() / 2.0
    }

    /// Root mean square of a token's vector.
    fn rms(&self) -> f32 {
        let tokens = self.half() as f32 - 1.0;
        let squares = self.deviation.powi(2) * tokens + self.constant().powi(2);
        (squares / self.hidden as f32).sqrt()
    }

    fn embedding(&self, weights: &mut [f32]) {
        for row in weights.chunks_exact_mut(self.hidden) {
            let (tokens, rest) = row.split_at_mut(self.half() - 1);
            tokens.iter_mut().for_each(|x| *x *= TOKENS);
            rest[0] = self.constant();
            rest[1..].iter_mut().for_each(|x| *x *= UNUSED);
        }
    }

    /// Rows of `heads` heads that read nothing but the constant, turned to a distance each.
    fn distances(&self, weights: &mut [f32], heads: usize, distance: impl Fn(usize) -> f32) {
        let read = self.constant() / self.rms();
        let size = (PEAK * (self.head as f32).sqrt() / FAST as f32).sqrt() / read;
        let heads = weights
            .chunks_exact_mut(self.head * self.hidden)
            .take(heads);
        for (number, rows) in heads.enumerate() {
            rows.fill(0.0);
            for (pair, frequency) in self.frequencies.iter().take(FAST).enumerate() {
                let (sin, cos) = (distance(number) * frequency).sin_cos();
                let mut set = |row: usize, x| rows[row * self.hidden + self.half() - 1] = x;
                set(pair, size * cos);
                set(pair + self.head / 2, size * sin);
            }
        }
    }

    /// Rows of head `number` that read tokens by `matrix`, `[head, half - 1]`.
    fn read(&self, weights: &mut [f32], number: usize, matrix: &[f32]) {
        let rows = self.rows(weights, number);
        for (row, from) in rows
            .chunks_exact_mut(self.hidden)
            .zip(matrix.chunks_exact(self.half() - 1))
        {
            row.fill(0.0);
            row[..from.len()].copy_from_slice(from);
        }
    }

    fn rows<'a>(&self, weights: &'a mut [f32], head: usize) -> &'a mut [f32] {
        let size = self.head * self.hidden;
        &mut weights[head * size..(head + 1) * size]
    }

    /// What head k of layer 0 found goes to the k-th part of the second half.
    fn copies(&self, weights: &mut [f32]) {
        let columns = weights.len() / self.hidden;
        for k in 0..BACK {
            for (channel, row) in weights.chunks_exact_mut(columns).enumerate() {
                let row = &mut row[k * self.head..(k + 1) * self.head];
                row.fill(0.0);
                let part = channel.checked_sub(self.half() + k * self.head);
                if let Some(x) = part.and_then(|i| row.get_mut(i)) {
                    *x = COPIED * self.rms();
                }
            }
        }
    }

    /// Adds A_k of the copy in part `part`, or of the token itself, to the rows of a head.
    fn code(&self, rows: &mut [f32], k: usize, part: Option<usize>) {
        let codes = self.mixed[k].chunks_exact(self.head);
        for (&slow, code) in self.slow.iter().zip(codes) {
            let row = &mut rows[slow * self.hidden..(slow + 1) * self.hidden];
            match part {
                Some(part) => {
                    let from = self.half() + part * self.head;
                    let row = &mut row[from..from + self.head];
                    kernels::axpy(row, SHARPNESS / COPIED, code);
                }
                None => {
                    let tokens = self.half() - 1;
                    for (&a, p) in code.iter().zip(self.copied.chunks_exact(tokens)) {
                        kernels::axpy(&mut row[..tokens], SHARPNESS * a, p);
                    }
                }
            }
        }
    }

    fn query(&self, weights: &mut [f32], head: usize) {
        let rows = self.rows(weights, head);
        rows.fill(0.0);
        self.code(rows, 0, None);
        (1..BACK).for_each(|k| self.code(rows, k, Some(k - 1)));
    }

    fn key(&self, weights: &mut [f32]) {
        let rows = self.rows(weights, 0);
        rows.fill(0.0);
        (0..BACK).for_each(|k| self.code(rows, k, Some(k)));
    }

    /// What the first heads of layer 1 found stands out above the token's own vector.
    fn answer(&self, weights: &mut [f32]) {
        let columns = weights.len() / self.hidden;
        let tokens = self.half() - 1;
        let kept = self.head as f32 / tokens as f32;
        let size = FOUND * self.rms() / (self.group as f32 * kept);
        for (channel, row) in weights.chunks_exact_mut(columns).enumerate() {
            for head in row[..self.group * self.head].chunks_exact_mut(self.head) {
                for (i, x) in head.iter_mut().enumerate() {
                    let there = channel < tokens;
                    *x = if there {
                        size * self.found[i * tokens + channel]
                    } else {
                        0.0
                    };
                }
            }
        }
    }
}

/// `[rows, dim]` of random orthonormal rows; rows beyond `dim` are 0.
fn orthonormal(seed: u64, part: u64, rows: usize, dim: usize) -> Vec<f32> {
    let mut matrix = random::normal(random::derive(seed, part), rows * dim, 1.0);
    kernels::orthonormalize_rows(&mut matrix, dim);
    matrix
}
