//! Sparse autoencoders: a dictionary whose codes come from one matrix product.
//!
//! For whom: who wants to see what the vectors of a model are made of. Reads and writes the
//! folders of SAELens, EleutherAI's sparsify and OpenAI's sparse_autoencoder
//! ([`layouts`]), and trains new ones ([`Training`]).
//!
//! Sources: Huben et al. 2023 and Bricken et al. 2023 (ReLU with L1); Gao et al. 2024
//! (top-k); Bussmann et al. 2024 (batch top-k); Rajamanoharan et al. 2024 (gated; jump
//! ReLU); Dunefsky et al. 2024 (transcoders, which give the output of a layer from its
//! input). With rows `x` of `d_in`, `h = (x - b_dec) W_encᵀ + b_enc`, and codes `f` of
//! `d_sae`:
//!
//! | architecture | `f` |
//! |---|---|
//! | standard | `relu(h)` |
//! | topk | `relu` of the `k` largest of `h` |
//! | jumprelu | `h` where it is above `threshold` (and 0) |
//! | gated | `relu(h e^r + b_mag)` where `h + b_gate > 0` |
//!
//! A row is `f W_dec + b_dec`, for transcoders with a skip `x W_skipᵀ`. Batch top-k is saved
//! as jump ReLU with one threshold. Cost of coding a row: `d_in d_sae`, of decoding
//! `d_out` for each code in use.

mod backward;
pub mod layouts;
mod train;

#[cfg(test)]
mod recipe_tests;
#[cfg(test)]
mod tests;

use keyfold_kernels as kernels;
use rayon::prelude::*;

use crate::error::check_rows;
use crate::{Coder, Codes, Dictionary, DictionaryError};

pub use train::{BiasInit, Losses, SaeConfig, SaeMethod, SparsityLoss, Training};

/// Rows that are coded together.
const BLOCK: usize = 128;

/// How codes follow from the encoder's product.
#[derive(Debug, Clone, PartialEq)]
pub enum Activation {
    /// What is positive.
    Relu,
    /// The `k` largest, where positive.
    TopK {
        /// How many are kept.
        k: usize,
    },
    /// What is above a threshold of its own, and above 0.
    JumpRelu {
        /// `[d_sae]`
        threshold: Vec<f32>,
    },
    /// A gate says whether, a scaled copy how much.
    Gated {
        /// `[d_sae]`; the gate's bias is [`Sae::b_enc`].
        b_mag: Vec<f32>,
        /// Logarithm of the scale, `[d_sae]`.
        r_mag: Vec<f32>,
    },
}

/// What is done to rows before they are coded, and undone after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalize {
    /// Nothing.
    #[default]
    None,
    /// To a length of `√d_in`.
    ConstantNorm,
    /// Mean 0 and (unbiased) deviation 1 within each row.
    LayerNorm,
}

/// A sparse autoencoder or transcoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Sae {
    /// Numbers of a row that is coded.
    pub d_in: usize,
    /// Number of codes.
    pub d_sae: usize,
    /// Numbers of a row that is given back; as `d_in` but for transcoders.
    pub d_out: usize,
    /// How codes follow from the encoder's product.
    pub activation: Activation,
    /// What is done to rows before.
    pub normalize: Normalize,
    /// Whether `b_dec` is taken from rows before they are coded.
    pub apply_b_dec_to_input: bool,
    /// Top-k chooses by the codes' share of the result, `h ‖W_dec‖`.
    pub rescale_acts_by_decoder_norm: bool,
    /// `[d_sae, d_in]`
    pub w_enc: Vec<f32>,
    /// `[d_sae]`
    pub b_enc: Vec<f32>,
    /// `[d_sae, d_out]`, one atom per row.
    pub w_dec: Vec<f32>,
    /// `[d_out]`
    pub b_dec: Vec<f32>,
    /// `[d_out, d_in]`; empty without a skip.
    pub w_skip: Vec<f32>,
}

impl Sae {
    /// Refuses weights that do not fit together or are not finite.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<(), DictionaryError> {
        let (d_in, d_sae, d_out) = (self.d_in, self.d_sae, self.d_out);
        if d_in == 0 || d_sae == 0 || d_out == 0 {
            return Err(DictionaryError::settings(
                "an autoencoder needs d_in, d_sae and d_out above 0",
            ));
        }
        if self.apply_b_dec_to_input && d_in != d_out {
            return Err(DictionaryError::settings(format!(
                "b_dec has {d_out} numbers and cannot be taken from rows of {d_in}"
            )));
        }
        let skip = if self.w_skip.is_empty() {
            0
        } else {
            d_out * d_in
        };
        let mut parts = vec![
            ("W_enc", &self.w_enc, d_sae * d_in),
            ("b_enc", &self.b_enc, d_sae),
            ("W_dec", &self.w_dec, d_sae * d_out),
            ("b_dec", &self.b_dec, d_out),
            ("W_skip", &self.w_skip, skip),
        ];
        match &self.activation {
            Activation::JumpRelu { threshold } => parts.push(("threshold", threshold, d_sae)),
            Activation::Gated { b_mag, r_mag } => {
                parts.extend([("b_mag", b_mag, d_sae), ("r_mag", r_mag, d_sae)]);
            }
            Activation::TopK { k } if *k == 0 || *k > d_sae => {
                return Err(DictionaryError::settings(format!(
                    "k is {k}; it must be from 1 to the {d_sae} codes"
                )));
            }
            _ => {}
        }
        for (name, numbers, expected) in parts {
            if numbers.len() != expected {
                return Err(DictionaryError::settings(format!(
                    "{name} has {} numbers, not {expected} (d_in {d_in}, d_sae {d_sae}, d_out {d_out})",
                    numbers.len()
                )));
            }
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                return Err(DictionaryError::settings(format!(
                    "{name} holds {} at place {at}; the weights are damaged",
                    numbers[at]
                )));
            }
        }
        Ok(())
    }

    /// The codes of rows `[n, d_in]`. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// When rows are not finite or of another width.
    pub fn encode(&self, rows: &[f32]) -> Result<Codes, DictionaryError> {
        check_rows(rows, self.d_in)?;
        let norms = self.norms_to_choose_by();
        let blocks: Vec<Codes> = rows
            .par_chunks(BLOCK * self.d_in)
            .map(|block| {
                let (mut x, _) = self.input(block);
                let mut codes = Codes::new(self.d_sae);
                for h in self.products(&mut x, 1).chunks_exact(self.d_sae) {
                    self.activate(h, &norms, &mut codes);
                }
                codes
            })
            .collect();
        let mut codes = Codes::new(self.d_sae);
        blocks.iter().for_each(|block| codes.append(block));
        Ok(codes)
    }

    /// The rows that codes stand for, `[n, d_out]`. `rows` are those that were coded; they
    /// tell the scale where rows were normalised, and what a skip takes.
    ///
    /// # Errors
    /// When codes and rows do not fit together.
    pub fn decode(&self, codes: &Codes, rows: &[f32]) -> Result<Vec<f32>, DictionaryError> {
        let n = check_rows(rows, self.d_in)?;
        if codes.len() != n || codes.n_components() != self.d_sae {
            return Err(DictionaryError::settings(format!(
                "{} codes of {} do not fit {n} rows of an autoencoder with {}",
                codes.len(),
                codes.n_components(),
                self.d_sae
            )));
        }
        let mut out = codes.decode(&self.w_dec, self.d_out);
        kernels::add_bias(&mut out, &self.b_dec);
        if self.d_out == self.d_in && self.normalize != Normalize::None {
            let undo = self.input(rows).1;
            for (row, (shift, scale)) in out.chunks_exact_mut(self.d_out).zip(undo) {
                row.iter_mut().for_each(|x| *x = *x * scale + shift);
            }
        }
        self.add_skip(&mut out, rows);
        Ok(out)
    }

    /// The decoder as a dictionary, where codes alone give rows: neither a skip nor normalised
    /// rows ask for the row itself.
    pub fn plain_decoder(&self) -> Option<Dictionary> {
        let plain = self.w_skip.is_empty() && self.normalize == Normalize::None;
        plain.then(|| Dictionary {
            components: self.w_dec.clone(),
            width: self.d_out,
            mean: self.b_dec.clone(),
            coder: Coder::TopK { k: 1 },
        })
    }

    /// `decode(encode(rows))`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn forward(&self, rows: &[f32]) -> Result<Vec<f32>, DictionaryError> {
        self.decode(&self.encode(rows)?, rows)
    }

    fn add_skip(&self, out: &mut [f32], rows: &[f32]) {
        if !self.w_skip.is_empty() {
            let rows = kernels::Matrix::new(rows, self.d_in);
            let skip = kernels::Matrix::new(&self.w_skip, self.d_in).t();
            let threads = rayon::current_num_threads();
            kernels::product(out, self.d_out, rows, skip, 1.0, true, threads);
        }
    }

    /// Rows normalised, and for each what is added and multiplied to make it whole again.
    fn input(&self, rows: &[f32]) -> (Vec<f32>, Vec<(f32, f32)>) {
        let mut x = rows.to_vec();
        let n = self.d_in as f32;
        let undo = x
            .chunks_exact_mut(self.d_in)
            .map(|row| match self.normalize {
                Normalize::None => (0.0, 1.0),
                Normalize::ConstantNorm => {
                    let scale = kernels::norm(row).max(1e-12) / n.sqrt();
                    row.iter_mut().for_each(|x| *x /= scale);
                    (0.0, scale)
                }
                Normalize::LayerNorm => {
                    let mean = row.iter().sum::<f32>() / n;
                    row.iter_mut().for_each(|x| *x -= mean);
                    let deviation = (kernels::dot(row, row) / (n - 1.0).max(1.0)).sqrt();
                    // On the way back without the epsilon, as all who use it have it.
                    row.iter_mut().for_each(|x| *x /= deviation + 1e-5);
                    (mean, deviation)
                }
            })
            .collect();
        (x, undo)
    }

    /// `(x - b_dec) W_encᵀ + b_enc` of rows that are normalised; `x` becomes what was coded.
    fn products(&self, x: &mut [f32], threads: usize) -> Vec<f32> {
        if self.apply_b_dec_to_input {
            for row in x.chunks_exact_mut(self.d_in) {
                row.iter_mut().zip(&self.b_dec).for_each(|(x, b)| *x -= b);
            }
        }
        let n = x.len() / self.d_in;
        let mut h = vec![0.0; n * self.d_sae];
        kernels::matmul_nt(&mut h, x, &self.w_enc, n, self.d_sae, self.d_in, threads);
        // The gate's bias belongs to the gate alone.
        if !matches!(self.activation, Activation::Gated { .. }) {
            kernels::add_bias(&mut h, &self.b_enc);
        }
        h
    }

    /// Lengths of the atoms; empty where codes are not chosen by them.
    fn norms_to_choose_by(&self) -> Vec<f32> {
        let top_k = matches!(self.activation, Activation::TopK { .. });
        match self.rescale_acts_by_decoder_norm && top_k {
            true => self.norms(),
            false => Vec::new(),
        }
    }

    fn norms(&self) -> Vec<f32> {
        let atoms = self.w_dec.chunks_exact(self.d_out);
        atoms.map(kernels::norm).collect()
    }

    fn activate(&self, h: &[f32], norms: &[f32], codes: &mut Codes) {
        match &self.activation {
            Activation::Relu => {
                codes.push((0..).zip(h.iter().copied()).filter(|(_, x)| *x > 0.0));
            }
            Activation::TopK { k } => {
                let kept = largest(h, norms, *k);
                codes.push(kept.into_iter().map(|j| (j, h[j as usize])));
            }
            Activation::JumpRelu { threshold } => {
                let all = (0..).zip(h.iter().copied().zip(threshold));
                let above = all.filter(|(_, (x, t))| *x > t.max(0.0));
                codes.push(above.map(|(j, (x, _))| (j, x)));
            }
            Activation::Gated { b_mag, r_mag } => {
                let open = (0..self.d_sae).filter(|j| h[*j] + self.b_enc[*j] > 0.0);
                let size = |j: usize| (h[j] * r_mag[j].exp() + b_mag[j]).max(0.0);
                codes.push(open.map(|j| (j as u32, size(j))));
            }
        }
    }

    /// Multiplies the scale of rows into the weights: rows that were to be multiplied by
    /// `scale` may then be given as they are (SAELens' `expected_average_only_in`).
    pub fn fold_input_scale(&mut self, scale: f32) {
        self.w_enc.iter_mut().for_each(|x| *x *= scale);
        self.w_dec.iter_mut().for_each(|x| *x /= scale);
        self.b_dec.iter_mut().for_each(|x| *x /= scale);
    }

    /// Makes atoms of length 1, with codes as much larger; the result stays.
    ///
    /// # Errors
    /// When codes are chosen by their size, which then would choose others.
    pub fn fold_decoder_norms(&mut self) -> Result<(), DictionaryError> {
        let by_size = matches!(self.activation, Activation::TopK { .. });
        if by_size && !self.rescale_acts_by_decoder_norm {
            return Err(DictionaryError::settings(
                "top-k would choose other codes with atoms of length 1; it was not trained so",
            ));
        }
        self.make_atoms_unit();
        Ok(())
    }

    fn make_atoms_unit(&mut self) {
        for (j, norm) in self.norms().into_iter().enumerate() {
            let norm = norm.max(1e-8);
            let atom = &mut self.w_dec[j * self.d_out..][..self.d_out];
            atom.iter_mut().for_each(|x| *x /= norm);
            let encoder = &mut self.w_enc[j * self.d_in..][..self.d_in];
            encoder.iter_mut().for_each(|x| *x *= norm);
            self.b_enc[j] *= norm;
            match &mut self.activation {
                Activation::JumpRelu { threshold } => threshold[j] *= norm,
                Activation::Gated { b_mag, .. } => b_mag[j] *= norm,
                _ => {}
            }
        }
    }
}

/// The places of the `k` largest of `h`, times `norms` where there are some, that are
/// positive; in order.
fn largest(h: &[f32], norms: &[f32], k: usize) -> Vec<u32> {
    let best = match norms.is_empty() {
        true => kernels::top_k(h, k),
        false => {
            let scaled: Vec<f32> = h.iter().zip(norms).map(|(x, n)| x * n).collect();
            kernels::top_k(&scaled, k)
        }
    };
    let positive = best.into_iter().filter(|(x, _)| *x > 0.0);
    let mut places: Vec<u32> = positive.map(|(_, j)| j).collect();
    places.sort_unstable();
    places
}
