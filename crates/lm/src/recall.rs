//! A decoder that was constructed, not trained, to look one thing up: given
//! `... key value ... key` it says `value`, however long the context. Long-context methods
//! can be tested on it with known answers.
//!
//! Its parts, with `n` tokens, heads of `d = n` numbers and a residual of `3n + 64`:
//!
//! ```text
//! residual   tok [0, n)   prev [n, 2n)   out [2n, 3n)   a constant at 3n
//! layer 0    every token looks at the one before it and copies it to prev
//! layers 1.. every token looks for the tokens whose prev is itself, and copies them to out
//! output     reads out
//! ```
//!
//! Layer 0 finds the token before by rotary embedding alone: keys are a constant vector,
//! queries the same vector turned back by one position. The later layers compare random
//! codes of ±1 on the channels that rotary embedding practically does not turn (its base is
//! 10³⁰). All later layers do the same, each a part of the answer, so that methods
//! which treat layers differently can be tested with any number of them.

use std::collections::HashMap;
use std::path::Path;

use keyfold_core::atomic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::refusal::Refusal;
use crate::roles::Dims;

/// Query heads; they are all alike.
const HEADS: usize = 4;
/// KV heads.
const KV_HEADS: usize = 2;
/// Numbers of the residual beside the three blocks, the constant being the first.
const REST: usize = 64;
/// Base of the rotary embedding.
const THETA: f64 = 1e30;
/// Square of the numbers by which the token before is found.
const POSITION_SHARPNESS: f64 = 350.0;

/// What the model is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecallConfig {
    /// Tokens: a quarter are keys, a quarter values, the others fillers. Also the length of a head.
    pub n: usize,
    /// Layers; all but the first recall.
    pub layers: usize,
    /// How sharply the right key is told from others; at 3 it gets more than 0.99 of the
    /// attention among thousands of fillers.
    pub sharpness: f32,
    /// Keys that share a part of their codes, and so are mistaken for each other by methods
    /// that look at that part only; 1 for none.
    pub family: usize,
    /// Which part they share.
    pub shared_code: f32,
    /// Of the codes.
    pub seed: u64,
}

impl Default for RecallConfig {
    fn default() -> Self {
        Self {
            n: 64,
            layers: 2,
            sharpness: 3.0,
            family: 1,
            shared_code: 0.5,
            seed: 0,
        }
    }
}

impl RecallConfig {
    /// Refuses what cannot be built.
    pub fn validate(&self) -> Result<(), Refusal> {
        let refuse = |what: &str| Err(Refusal::setting("recall model", what));
        if self.n < 16 || !self.n.is_multiple_of(4) {
            return refuse("n must be a multiple of 4 and at least 16");
        }
        if self.layers < 2 {
            return refuse("layers must be at least 2: one finds the token before, one recalls");
        }
        if self.family == 0 || self.family > self.n / 4 {
            return refuse("family must be between 1 and the number of keys, n / 4");
        }
        if !(0.0..=1.0).contains(&self.shared_code) {
            return refuse("shared_code must be between 0 and 1");
        }
        if !(self.sharpness > 0.0 && self.sharpness.is_finite()) {
            return refuse("sharpness must be positive");
        }
        Ok(())
    }

    /// Sizes of the model.
    pub fn dims(&self) -> Dims {
        Dims {
            layers: self.layers,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: self.n,
            hidden: self.hidden(),
            vocab: self.n,
        }
    }

    fn hidden(&self) -> usize {
        3 * self.n + REST
    }

    /// Code of every token, `[n, head_dim]`: ±1 on channels that do not turn, 0 on others.
    pub fn codes(&self) -> Vec<f32> {
        let (n, half) = (self.n, self.n / 2);
        // Pairs from here on turn by less than a millionth per position.
        let first = (13 * half).div_ceil(60);
        let live = |channel: usize| channel % half >= first;
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut codes: Vec<f32> = (0..n * n)
            .map(|i| match (live(i % n), rng.random::<bool>()) {
                (false, _) => 0.0,
                (true, true) => 1.0,
                (true, false) => -1.0,
            })
            .collect();
        let live: Vec<usize> = (0..n).filter(|&channel| live(channel)).collect();
        let shared = (live.len() as f32 * self.shared_code) as usize;
        for key in 0..n / 4 {
            let head = key / self.family * self.family;
            for &channel in live.iter().take(shared).filter(|_| key != head) {
                codes[key * n + channel] = codes[head * n + channel];
            }
        }
        codes
    }

    /// Frequency of every pair.
    fn inv_freq(&self) -> impl Iterator<Item = f64> {
        let dim = self.n as f64;
        (0..self.n / 2).map(move |i| THETA.powf(-2.0 * i as f64 / dim))
    }

    /// A context of `spec.length` tokens that ends with the key to be recalled.
    pub fn prompt(&self, spec: &PromptSpec, seed: u64) -> Result<RecallPrompt, Refusal> {
        let quarter = self.n / 4;
        let pairs = spec.distractors + 1;
        let refuse = |what: String| Err(Refusal::setting("recall prompt", what));
        if spec.distractors + 1 > quarter {
            return refuse(format!(
                "{} distractors: there are {quarter} keys",
                spec.distractors
            ));
        }
        // The first token has none before it, so it takes itself for it.
        if spec.length < 2 * pairs + 2 {
            return refuse(format!(
                "{} tokens are too few for {pairs} pairs and the question",
                spec.length
            ));
        }
        if !(0.0..=1.0).contains(&spec.depth) {
            return refuse(format!("depth {} is not between 0 and 1", spec.depth));
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tokens: Vec<u32> = (0..spec.length)
            .map(|_| rng.random_range(2 * quarter as u32..self.n as u32))
            .collect();
        let key = rng.random_range(0..quarter);
        // Keys of the same family first, then the others.
        let family = key / self.family;
        let mut others: Vec<usize> = (0..quarter).filter(|&other| other != key).collect();
        others.sort_by_key(|&other| other / self.family != family);
        let answer = rng.random_range(quarter..2 * quarter);

        // Places of pairs: 1, 3, 5, ...
        let places = (spec.length - 2) / 2;
        let mut free: Vec<usize> = (0..places).collect();
        let own = free.remove((spec.depth * (places - 1) as f32).round() as usize);
        let mut put = |place: usize, key: usize, value: usize| {
            tokens[2 * place + 1] = key as u32;
            tokens[2 * place + 2] = value as u32;
        };
        put(own, key, answer);
        for &other in others.iter().take(spec.distractors) {
            let place = free.swap_remove(rng.random_range(0..free.len()));
            let value = quarter + (answer - quarter + rng.random_range(1..quarter)) % quarter;
            put(place, other, value);
        }
        if let Some(last) = tokens.last_mut() {
            *last = key as u32;
        }
        Ok(RecallPrompt {
            tokens,
            answer: answer as u32,
            needle: 2 * own + 2,
        })
    }

    /// Writes the model as a folder in Hugging Face's layout (`config.json`,
    /// `model.safetensors`), which must exist.
    pub fn write_model(&self, folder: &Path) -> Result<(), Refusal> {
        self.validate()?;
        let io = |path: &Path, source: std::io::Error| Refusal::Io {
            path: path.to_owned(),
            source,
        };
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.n,
            "hidden_size": self.hidden(),
            "intermediate_size": REST,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": self.n,
            "rms_norm_eps": 1e-10,
            "rope_theta": THETA,
            "max_position_embeddings": 1 << 20,
            "tie_word_embeddings": false,
            "attention_bias": false,
            "mlp_bias": false,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        });
        let tensors = self.tensors();
        let views: Result<HashMap<String, TensorView>, _> = tensors
            .iter()
            .map(|(name, tensor)| {
                let bytes = bytemuck::cast_slice(&tensor.numbers);
                let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?;
                Ok((name.clone(), view))
            })
            .collect();
        let path = folder.join("model.safetensors");
        let bytes = views
            .and_then(|views| safetensors::serialize(views, None))
            .map_err(|error| io(&path, std::io::Error::other(error)))?;
        atomic::write(&path, &bytes).map_err(|error| io(&path, error))?;
        let path = folder.join("config.json");
        let text = format!("{config:#}\n");
        atomic::write(&path, text.as_bytes()).map_err(|error| io(&path, error))
    }

    /// All tensors by name.
    fn tensors(&self) -> HashMap<String, Tensor> {
        let (n, wide) = (self.n, self.hidden());
        let (prev, out, constant) = (n, 2 * n, 3 * n);
        let mut all = HashMap::new();
        let mut embed = Tensor::zeros(n, wide);
        let mut output = Tensor::zeros(n, wide);
        for token in 0..n {
            embed.set(token, token, 1.0);
            embed.set(token, constant, 1.0);
            output.set(token, out + token, 1.0);
        }
        all.insert("model.embed_tokens.weight".to_owned(), embed);
        all.insert("lm_head.weight".to_owned(), output);
        all.insert("model.norm.weight".to_owned(), Tensor::ones(wide));
        let codes = self.codes();
        // What a residual of so many ones is multiplied by in the norm.
        let gain = |ones: f64| (wide as f64 / ones).sqrt();
        for layer in 0..self.layers {
            let mut q = Tensor::zeros(HEADS * n, wide);
            let mut k = Tensor::zeros(KV_HEADS * n, wide);
            let mut v = Tensor::zeros(KV_HEADS * n, wide);
            let mut o = Tensor::zeros(wide, HEADS * n);
            let copies = (self.layers - 1) as f64;
            // Ones in the residual: token, constant, token before; later also the part of the
            // answer that earlier layers wrote, where the question stands.
            let written = layer.saturating_sub(1) as f64 / copies;
            let (key_gain, query_gain) = match layer {
                0 => (gain(2.0), gain(2.0)),
                _ => (gain(3.0), gain(3.0 + written * written)),
            };
            if layer == 0 {
                let size = POSITION_SHARPNESS.sqrt();
                for (i, frequency) in self.inv_freq().enumerate() {
                    let (sin, cos) = frequency.sin_cos();
                    q.set_heads(n, i, constant, size * cos / query_gain);
                    q.set_heads(n, i + n / 2, constant, -size * sin / query_gain);
                    k.set_heads(n, i, constant, size / key_gain);
                }
            } else {
                let size = f64::from(self.sharpness).sqrt();
                for token in 0..n {
                    for channel in 0..n {
                        let code = f64::from(codes[token * n + channel]) * size;
                        q.set_heads(n, channel, token, code / query_gain);
                        k.set_heads(n, channel, prev + token, code / key_gain);
                    }
                }
            }
            let (target, share) = if layer == 0 {
                (prev, 1.0)
            } else {
                (out, 1.0 / copies)
            };
            for token in 0..n {
                v.set_heads(n, token, token, 1.0 / key_gain);
                for head in 0..HEADS {
                    o.set(target + token, head * n + token, share / HEADS as f64);
                }
            }
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            for (part, tensor) in [
                ("self_attn.q_proj", q),
                ("self_attn.k_proj", k),
                ("self_attn.v_proj", v),
                ("self_attn.o_proj", o),
                ("mlp.gate_proj", Tensor::zeros(REST, wide)),
                ("mlp.up_proj", Tensor::zeros(REST, wide)),
                ("mlp.down_proj", Tensor::zeros(wide, REST)),
                ("input_layernorm", Tensor::ones(wide)),
                ("post_attention_layernorm", Tensor::ones(wide)),
            ] {
                all.insert(name(part), tensor);
            }
        }
        all
    }
}

/// A context to be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptSpec {
    /// Tokens, the question included.
    pub length: usize,
    /// Where the pair stands: 0 at the beginning, 1 at the end.
    pub depth: f32,
    /// Other pairs, with keys of the same family where there are such.
    pub distractors: usize,
}

/// A context and what should follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecallPrompt {
    /// The tokens; the last is the key.
    pub tokens: Vec<u32>,
    /// The value that follows.
    pub answer: u32,
    /// Position of the value that must be read.
    pub needle: usize,
}

struct Tensor {
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl Tensor {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            shape: vec![rows, columns],
            numbers: vec![0.0; rows * columns],
        }
    }

    fn ones(len: usize) -> Self {
        Self {
            shape: vec![len],
            numbers: vec![1.0; len],
        }
    }

    fn set(&mut self, row: usize, column: usize, number: f64) {
        let columns = self.shape[1];
        self.numbers[row * columns + column] = number as f32;
    }

    /// Sets number `channel` of all heads.
    fn set_heads(&mut self, dim: usize, channel: usize, column: usize, number: f64) {
        for head in 0..self.shape[0] / dim {
            self.set(head * dim + channel, column, number);
        }
    }
}

#[cfg(test)]
mod tests;
