//! The task of the indirect object, and a small model that is trained on it.
//!
//! Two names, then one of them again: who is meant at the end is the other. `ABB` names the
//! indirect object (`io`) first, `BAB` the subject (`s`). Attributes are the two names and
//! their order (`io_pos`). A counterfactual has a new name in one place, or the order turned.
//!
//! The model reads words of a small vocabulary through two layers of attention without MLP, and
//! is trained by cross-entropy of the last word until it names the indirect object. Its places
//! to look at are the outputs of the heads at the last word (`blocks.L.attn.hook_z`).

mod prompts;
mod saved;
pub mod training;

use keyfold_core::{Progress, seed_of};
use keyfold_kernels as kernels;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rayon::prelude::*;

use crate::InspectError;
use crate::small_transformer::{
    Adam, BlockConfig, Blocks, Edit, Layout, Trace, by_parts, draw, train_steps, warm_cosine,
};

pub use prompts::{ATTRIBUTES, Prompt, attributes, vocabulary};
use prompts::{NAMES, TEMPLATES};

/// Prompts whose gradient is made together.
const PART: usize = 16;

/// Settings of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmallModelConfig {
    /// Numbers of a state.
    pub d_model: usize,
    /// Heads of a layer; a head has `d_model / heads` numbers.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Prompts of a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps.
    pub steps: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for SmallModelConfig {
    fn default() -> Self {
        Self {
            d_model: 64,
            heads: 4,
            layers: 2,
            batch_size: 64,
            learning_rate: 3e-3,
            steps: 2000,
            seed: 0,
        }
    }
}

/// A small model of the task.
#[derive(Debug, Clone)]
pub struct SmallModel {
    config: SmallModelConfig,
    /// Number of each word.
    words: std::collections::HashMap<&'static str, usize>,
    length: usize,
    embedding: std::ops::Range<usize>,
    places: std::ops::Range<usize>,
    blocks: Blocks,
    /// `[words, d_model]`
    unembedding: std::ops::Range<usize>,
    weights: Vec<f32>,
}

/// What a pass over prompts gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// `[prompts, names]`: logits of the names.
    pub names: Vec<f32>,
    /// The likeliest of all words, one for each prompt; words below the number of names are names.
    pub best: Vec<usize>,
    /// By layer: outputs of the heads at the last word, `[prompts, d_model]`.
    pub heads: Vec<Vec<f32>>,
}

impl SmallModel {
    /// Draws the weights.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(config: SmallModelConfig) -> Result<Self, InspectError> {
        if config.heads == 0 || !config.d_model.is_multiple_of(config.heads) {
            return Err(InspectError::settings(format!(
                "d_model {} must be a multiple of the {} heads",
                config.d_model, config.heads
            )));
        }
        let block = BlockConfig {
            width: config.d_model,
            heads: config.heads,
            head_dim: config.d_model / config.heads,
            mlp: 0,
            norm: false,
            layers: config.layers,
        };
        block.check()?;
        let words: std::collections::HashMap<&str, usize> =
            vocabulary().into_iter().zip(0..).collect();
        let length = TEMPLATES[0].split(' ').count();
        let mut layout = Layout::default();
        let embedding = layout.take(words.len() * config.d_model);
        let places = layout.take(length * config.d_model);
        let blocks = Blocks::new(block, &mut layout);
        let unembedding = layout.take(words.len() * config.d_model);
        let mut weights = layout.zeros();
        let mut rng = StdRng::seed_from_u64(config.seed);
        for range in [&embedding, &places, &unembedding] {
            draw(&mut rng, config.d_model, &mut weights[range.clone()]);
        }
        blocks.init(&mut weights, &mut rng);
        Ok(Self {
            config,
            words,
            length,
            embedding,
            places,
            blocks,
            unembedding,
            weights,
        })
    }

    /// The settings.
    pub fn config(&self) -> SmallModelConfig {
        self.config
    }

    fn tokens(&self, prompts: &[Prompt]) -> Vec<usize> {
        let words = prompts.iter().flat_map(|p| p.words());
        words.map(|w| self.words[w]).collect()
    }

    fn forward(&self, tokens: &[usize], edit: Option<Edit>) -> (Trace, Vec<f32>, Vec<f32>) {
        let d = self.config.d_model;
        let mut x = Vec::with_capacity(tokens.len() * d);
        for token in tokens {
            x.extend_from_slice(&self.weights[self.embedding.clone()][token * d..][..d]);
        }
        let places = &self.weights[self.places.clone()];
        x.chunks_exact_mut(places.len())
            .for_each(|x| keyfold_kernels::add_assign(x, places));
        let trace = self.blocks.forward(&self.weights, x, self.length, edit);
        let ends = trace.out.chunks_exact(self.length * d);
        let last: Vec<f32> = ends
            .flat_map(|s| s[(self.length - 1) * d..].to_vec())
            .collect();
        let (count, words) = (last.len() / d, self.words.len());
        let mut logits = vec![0.0; count * words];
        let unembedding = &self.weights[self.unembedding.clone()];
        keyfold_kernels::matmul_nt(&mut logits, &last, unembedding, count, words, d, 1);
        (trace, last, logits)
    }

    /// Turns logits into probabilities less the truth; gives the sum of the losses.
    fn errors(&self, logits: &mut [f32], prompts: &[Prompt]) -> f64 {
        let words = self.words.len();
        keyfold_kernels::softmax_rows(logits, words);
        let mut loss = 0.0;
        for (row, prompt) in logits.chunks_exact_mut(words).zip(prompts) {
            let answer = self.words[NAMES[prompt.io]];
            loss -= f64::from(row[answer].max(1e-30)).ln();
            row[answer] -= 1.0;
        }
        loss
    }

    /// Loss and gradient of prompts, divided by `total`.
    fn gradient(&self, prompts: &[Prompt], total: usize) -> (f64, Vec<f32>) {
        use keyfold_kernels::{Matrix, product};
        let (d, words) = (self.config.d_model, self.words.len());
        let tokens = self.tokens(prompts);
        let (trace, last, mut logits) = self.forward(&tokens, None);
        let loss = self.errors(&mut logits, prompts);
        logits.iter_mut().for_each(|x| *x /= total as f32);
        let mut gradient = vec![0.0; self.weights.len()];
        let d_logits = Matrix::new(&logits, words);
        let out = &mut gradient[self.unembedding.clone()];
        product(out, d, d_logits.t(), Matrix::new(&last, d), 1.0, true, 1);
        let mut d_last = vec![0.0; last.len()];
        let unembedding = Matrix::new(&self.weights[self.unembedding.clone()], d);
        product(&mut d_last, d, d_logits, unembedding, 1.0, false, 1);
        let mut dx = vec![0.0; tokens.len() * d];
        for (dx, from) in dx
            .chunks_exact_mut(self.length * d)
            .zip(d_last.chunks_exact(d))
        {
            dx[(self.length - 1) * d..].copy_from_slice(from);
        }
        let dx = self
            .blocks
            .backward(&self.weights, &trace, dx, self.length, &mut gradient);
        let embedding = self.embedding.start;
        for (token, dx) in tokens.iter().zip(dx.chunks_exact(d)) {
            keyfold_kernels::add_assign(&mut gradient[embedding + token * d..][..d], dx);
        }
        let places = self.places.clone();
        for dx in dx.chunks_exact(self.length * d) {
            keyfold_kernels::add_assign(&mut gradient[places.clone()], dx);
        }
        (loss, gradient)
    }

    /// Step `step`, from 0, on fresh prompts; gives their mean loss.
    fn step(&mut self, adam: &mut Adam, step: usize) -> Result<f64, InspectError> {
        let config = self.config;
        let seed = seed_of(&format!("indirect object {} {step}", config.seed));
        let prompts = Prompt::sample(config.batch_size, NAMES.len(), seed)?;
        let total = prompts.len();
        let (loss, gradient) = by_parts(&prompts, PART, |part| self.gradient(part, total));
        let rate = warm_cosine(step, config.steps, config.learning_rate);
        adam.step(&mut self.weights, &gradient, rate);
        Ok(loss / total as f64)
    }

    fn adam(&self) -> Adam {
        Adam::new(self.weights.len(), (0.9, 0.999), 1e-8)
    }

    /// Trains on fresh prompts; gives the loss of each hundredth of the steps.
    ///
    /// # Errors
    /// When the user asked to stop.
    pub fn train(&mut self, progress: &dyn Progress) -> Result<Vec<f64>, InspectError> {
        let config = self.config;
        let mut adam = self.adam();
        train_steps("small model", "loss", config.steps, progress, |step| {
            self.step(&mut adam, step)
        })
    }

    /// Reads prompts; where `replace` is given, the heads' outputs of its layer at the last word
    /// are these rows `[prompts, d_model]`.
    ///
    /// # Errors
    /// When there are no prompts, or rows of another number.
    pub fn pass(
        &self,
        prompts: &[Prompt],
        replace: Option<(usize, &[f32])>,
    ) -> Result<Pass, InspectError> {
        let (d, words) = (self.config.d_model, self.words.len());
        if prompts.is_empty() {
            return Err(InspectError::Empty {
                what: "prompts".to_owned(),
            });
        }
        if let Some((layer, rows)) = replace
            && (rows.len() != prompts.len() * d || layer >= self.config.layers)
        {
            return Err(InspectError::Disagree {
                what: format!("numbers to put in place of layer {layer}, and needed"),
                left: rows.len(),
                right: prompts.len() * d,
            });
        }
        let parts: Vec<Pass> = prompts
            .par_chunks(PART)
            .enumerate()
            .map(|(part, prompts)| {
                let mut put = |layer: usize, z: &mut [f32]| {
                    let Some((_, rows)) = replace.filter(|r| r.0 == layer) else {
                        return;
                    };
                    let rows = rows[part * PART * d..].chunks_exact(d);
                    for (z, row) in z.chunks_exact_mut(self.length * d).zip(rows) {
                        z[(self.length - 1) * d..].copy_from_slice(row);
                    }
                };
                let (trace, _, logits) = self.forward(&self.tokens(prompts), Some(&mut put));
                let heads = trace.blocks.iter().map(|block| {
                    let last = block.heads.chunks_exact(self.length * d);
                    last.flat_map(|z| z[(self.length - 1) * d..].to_vec())
                        .collect()
                });
                let rows = logits.chunks_exact(words);
                Pass {
                    heads: heads.collect(),
                    names: rows
                        .clone()
                        .flat_map(|r| r[..NAMES.len()].to_vec())
                        .collect(),
                    best: rows.map(argmax).collect(),
                }
            })
            .collect();
        let mut all = Pass {
            names: Vec::new(),
            best: Vec::new(),
            heads: vec![Vec::new(); self.config.layers],
        };
        for part in parts {
            all.names.extend(part.names);
            all.best.extend(part.best);
            all.heads
                .iter_mut()
                .zip(part.heads)
                .for_each(|(all, part)| all.extend(part));
        }
        Ok(all)
    }
}

impl SmallModel {
    /// The words of a text, by their numbers.
    ///
    /// # Errors
    /// When the model does not know a word.
    pub fn tokens_of(&self, text: &str) -> Result<Vec<u32>, InspectError> {
        let one = |word: &str| match self.words.get(word) {
            Some(number) => Ok(*number as u32),
            None => Err(InspectError::settings(format!(
                "the model does not know the word '{word}', only the {} of its task",
                self.words.len()
            ))),
        };
        text.split_whitespace().map(one).collect()
    }

    /// Reads a prompt; `see` is shown, and may change, the outputs of the heads of each layer,
    /// `[words of the prompt, d_model]`. Gives the logits of all words for the next one.
    ///
    /// # Errors
    /// When the prompt has other words or another number of them than the model was made for, or
    /// logits are not finite.
    pub fn read(
        &self,
        tokens: &[u32],
        see: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<Vec<f32>, InspectError> {
        let known = tokens.iter().all(|t| (*t as usize) < self.words.len());
        if tokens.len() != self.length || !known {
            return Err(InspectError::settings(format!(
                "a prompt of {} words; this model reads {} words that it knows",
                tokens.len(),
                self.length
            )));
        }
        let tokens: Vec<usize> = tokens.iter().map(|t| *t as usize).collect();
        let (_, _, logits) = self.forward(&tokens, Some(see));
        match logits.iter().all(|x| x.is_finite()) {
            true => Ok(logits),
            false => Err(InspectError::settings(
                "the model gives numbers that are not finite: its weights, or what was put into it, \
                 are too large",
            )),
        }
    }
}

impl SmallModel {
    /// The gradient of one word's logit less another's by the outputs of the heads of a layer at the
    /// last word, `[prompts, d_model]`; `tokens` are the words of the prompts, `pairs` the two words
    /// of each.
    ///
    /// # Errors
    /// When the model has no such layer, or there are other words or another number of them than it
    /// reads.
    pub fn difference_gradients(
        &self,
        tokens: &[u32],
        pairs: &[(u32, u32)],
        layer: usize,
    ) -> Result<Vec<f32>, InspectError> {
        let (d, length, words) = (self.config.d_model, self.length, self.words.len());
        let all = || tokens.iter().chain(pairs.iter().flat_map(|(a, b)| [a, b]));
        let known = all().all(|t| (*t as usize) < words);
        if tokens.len() != pairs.len() * length || !known || layer >= self.config.layers {
            return Err(InspectError::settings(format!(
                "{} words and {} pairs for layer {layer}; this model reads {length} words that it \
                 knows, in {} layers",
                tokens.len(),
                pairs.len(),
                self.config.layers
            )));
        }
        let tokens: Vec<usize> = tokens.iter().map(|t| *t as usize).collect();
        let unembedding = &self.weights[self.unembedding.clone()];
        let of = |word: u32| &unembedding[word as usize * d..][..d];
        let parts: Vec<Vec<f32>> = tokens
            .par_chunks(PART * length)
            .zip(pairs.par_chunks(PART))
            .map(|(tokens, pairs)| {
                let (trace, _, _) = self.forward(tokens, None);
                let mut dx = vec![0.0; tokens.len() * d];
                for (dx, (right, wrong)) in dx.chunks_exact_mut(length * d).zip(pairs) {
                    let last = &mut dx[(length - 1) * d..];
                    last.copy_from_slice(of(*right));
                    kernels::axpy(last, -1.0, of(*wrong));
                }
                let mut scratch = vec![0.0; self.weights.len()];
                let at = (layer, length);
                let heads =
                    self.blocks
                        .backward_to_heads(&self.weights, &trace, dx, at, &mut scratch);
                let last = heads.chunks_exact(length * d);
                last.flat_map(|z| z[(length - 1) * d..].to_vec()).collect()
            })
            .collect();
        Ok(parts.concat())
    }

    /// The same of prompts of the task: the logit of `io` less that of `s`.
    ///
    /// # Errors
    /// When the model has no such layer.
    pub fn gradients_at(&self, prompts: &[Prompt], layer: usize) -> Result<Vec<f32>, InspectError> {
        let word = |name: usize| self.words[NAMES[name]] as u32;
        let pairs: Vec<(u32, u32)> = (prompts.iter()).map(|p| (word(p.io), word(p.s))).collect();
        let tokens = self.tokens(prompts).into_iter().map(|t| t as u32);
        self.difference_gradients(&tokens.collect::<Vec<u32>>(), &pairs, layer)
    }
}

impl Pass {
    /// Mean over prompts of the logit of `io` less that of `s`.
    pub fn logit_difference(&self, prompts: &[Prompt]) -> f64 {
        let rows = self.names.chunks_exact(NAMES.len()).zip(prompts);
        let differences = rows.map(|(row, p)| f64::from(row[p.io] - row[p.s]));
        differences.sum::<f64>() / prompts.len().max(1) as f64
    }

    /// Share of prompts whose likeliest word is this name.
    pub fn share(&self, names: impl Iterator<Item = usize>) -> f64 {
        // The first words of the vocabulary are the names.
        let right = self
            .best
            .iter()
            .zip(names)
            .filter(|(best, name)| *best == name);
        right.count() as f64 / self.best.len().max(1) as f64
    }

    /// Share of prompts whose likeliest word is as in another pass.
    pub fn agreement(&self, other: &Self) -> f64 {
        self.share(other.best.iter().copied())
    }
}

fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i)
}

#[cfg(test)]
mod tests;
