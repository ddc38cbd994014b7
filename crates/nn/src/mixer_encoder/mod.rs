//! An encoder whose positions are mixed by Hydra or another mixer, with the head that guesses
//! masked tokens.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers; the arrangement is that of BERT (Devlin et al. 2019) with a mixer
//! in place of attention and feed-forward layer:
//!
//! ```text
//! h = norm(words(tokens) + type)            no positions: the mixers know them
//! h = norm(h + mixer(h))                    for each layer
//! logits = words · norm(gelu(W h)) + b
//! ```
//!
//! `[rows, hidden]` throughout, with the rows of all texts one after the other. Tensors have the
//! names of the authors' checkpoints, so what was trained is read by others, and `goombalab/hydra`
//! can be trained on.

mod config;

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic};

use crate::checkpoint::{self, NamedTensor};
use crate::error::invalid;
use crate::layers::parameter;
use crate::mixers::{Hydra, Mamba2, MatrixMixer, Source};
use crate::{Embedding, LayerNorm, Linear, ModelError, ops, random};

pub use config::{MixerEncoderConfig, MixerKind};

const CONFIG: &str = "config.json";
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
const TYPES: &str = "bert.embeddings.token_type_embeddings.weight";
const NORM: &str = "bert.embeddings.LayerNorm";
const DENSE: &str = "cls.predictions.transform.dense";
const HEAD_NORM: &str = "cls.predictions.transform.LayerNorm";
const BIAS: &str = "cls.predictions.decoder.bias";

/// What is added to the variances of the layers' norms.
const LAYER_EPS: f64 = 1e-5;

/// An encoder that can be trained.
#[derive(Module, Debug)]
pub struct MixerEncoder {
    words: Embedding,
    types: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    dense: Linear,
    head_norm: LayerNorm,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    config: MixerEncoderConfig,
}

#[derive(Module, Debug)]
struct Layer {
    mixer: Mixer,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
enum Mixer {
    Hydra(Hydra),
    Matrix(MatrixMixer),
    /// One from the front, and one from the end where there are two.
    Mamba2(Vec<Mamba2>),
}

/// What a folder of an encoder calls the parts of a sum of two scans.
const SIDES: [&str; 2] = ["ahead", "back"];

impl Mixer {
    fn from(
        layer: &config::Layer,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Ok(match layer {
            config::Layer::Hydra(config) => Self::Hydra(Hydra::from(config, source, device)?),
            config::Layer::Matrix(config) => {
                Self::Matrix(MatrixMixer::from(config, source, device)?)
            }
            config::Layer::Mamba2(config, 1) => {
                Self::Mamba2(vec![Mamba2::from(config, source, device)?])
            }
            config::Layer::Mamba2(config, sides) => {
                let sides = SIDES
                    .iter()
                    .take(*sides)
                    .map(|side| Mamba2::from(config, &mut source.part(side), device));
                Self::Mamba2(sides.collect::<Result<_, _>>()?)
            }
        })
    }

    fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        match self {
            Self::Hydra(mixer) => mixer.forward(u, starts),
            Self::Matrix(mixer) => mixer.forward(u, starts),
            Self::Mamba2(mixers) => {
                let sides = mixers.iter().enumerate().map(|(side, mixer)| {
                    if side == 0 {
                        return mixer.forward(u.clone(), starts);
                    }
                    let back = ops::reversed(u.clone(), starts);
                    ops::reversed(mixer.forward(back, starts), starts)
                });
                let sum = sides.reduce(|a, b| a + b);
                sum.unwrap_or(u)
            }
        }
    }

    fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        match self {
            Self::Hydra(mixer) => mixer.tensors(prefix),
            Self::Matrix(mixer) => mixer.tensors(prefix),
            Self::Mamba2(mixers) => match &mixers[..] {
                [mixer] => mixer.tensors(prefix),
                mixers => SIDES
                    .iter()
                    .zip(mixers)
                    .flat_map(|(side, mixer)| mixer.tensors(&format!("{prefix}.{side}")))
                    .collect(),
            },
        }
    }
}

impl MixerEncoder {
    /// A model with random weights, as the authors begin: normal with `initializer_range`.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn init(
        config: &MixerEncoderConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.check(Path::new("the configuration"))?;
        let (hidden, deviation) = (config.hidden_size, config.initializer_range);
        let derive = |part| random::derive(seed, part);
        let embedding = |rows, part| Embedding::init(rows, hidden, deviation, derive(part), device);
        let layer = config.layer();
        let layers = (0..config.num_hidden_layers as u64).map(|i| {
            let mut source = Source::drawn(deviation, derive(3 + i));
            Ok::<_, ModelError>(Layer {
                mixer: Mixer::from(&layer, &mut source, device)?,
                norm: LayerNorm::init(hidden, LAYER_EPS, device),
            })
        });
        Ok(Self {
            words: embedding(config.vocab_size, 0),
            types: embedding(config.type_vocab_size, 1),
            norm: LayerNorm::init(hidden, config.layer_norm_eps, device),
            layers: layers.collect::<Result<_, _>>()?,
            dense: Linear::init(hidden, hidden, true, deviation, derive(2), device),
            head_norm: LayerNorm::init(hidden, config.layer_norm_eps, device),
            bias: parameter(vec![0.0; config.vocab_size], [config.vocab_size], device),
            config: config.clone(),
        })
    }

    /// Loads the model in a folder.
    ///
    /// # Errors
    /// When the folder holds no such model, or its weights do not fit config.json.
    pub fn load(folder: &ModelFolder, device: &Device) -> Result<Self, ModelError> {
        let config: MixerEncoderConfig = folder.json(CONFIG, "it says what model this is")?;
        config.check(&folder.file(CONFIG))?;
        let mut weights = Weights::open(folder, "")?;
        weights.find_prefix(WORDS)?;
        let weights = weights;
        let hidden = config.hidden_size;
        let layer = config.layer();
        let layers = (0..config.num_hidden_layers).map(|i| {
            let place = place(i);
            let mut source = Source::read(&weights, format!("{place}.mixer"));
            Ok::<_, ModelError>(Layer {
                mixer: Mixer::from(&layer, &mut source, device)?,
                norm: LayerNorm::load(
                    &weights,
                    &format!("{place}.norm"),
                    hidden,
                    LAYER_EPS,
                    device,
                )?,
            })
        });
        let norm = |name| LayerNorm::load(&weights, name, hidden, config.layer_norm_eps, device);
        let words = Embedding::load(&weights, WORDS, hidden, device)?;
        let types = Embedding::load(&weights, TYPES, hidden, device)?;
        if types.ids() == 0 {
            return Err(invalid(weights.path(), "its token type table has no rows"));
        }
        // Checkpoints round the number of words up.
        let vocab = words.ids();
        Ok(Self {
            words,
            types,
            norm: norm(NORM)?,
            layers: layers.collect::<Result<_, _>>()?,
            dense: Linear::load(&weights, DENSE, hidden, hidden, true, device)?,
            head_norm: norm(HEAD_NORM)?,
            bias: parameter(weights.tensor(BIAS, &[vocab])?, [vocab], device),
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &MixerEncoderConfig {
        &self.config
    }

    /// The last hidden states `[rows, hidden]` of texts one after the other. `starts` has the
    /// first row of each text and, at its end, the number of rows.
    ///
    /// # Errors
    /// When a token has no vector, or a text is longer than the model was made for.
    pub fn states(&self, tokens: &[u32], starts: &[usize]) -> Result<Tensor<2>, ModelError> {
        self.check(tokens, starts)?;
        let types = self.types.table.val().narrow(0, 0, 1);
        let words = self.words.forward(tokens) + types;
        let mut h = ops::layer_norm(
            words,
            self.norm.weight.val(),
            self.norm.bias.val(),
            self.norm.eps,
        );
        for layer in &self.layers {
            let mixed = layer.mixer.forward(h.clone(), starts);
            h = layer.norm.forward_sum(h, mixed, None);
        }
        Ok(h)
    }

    fn check(&self, tokens: &[u32], starts: &[usize]) -> Result<(), ModelError> {
        let longest = self.config.max_position_embeddings;
        for (text, rows) in starts.windows(2).enumerate() {
            let problem = if rows[1] - rows[0] > longest {
                Some(format!(
                    "it has {} tokens; the model was made for {longest} at most",
                    rows[1] - rows[0]
                ))
            } else {
                let ids = self.words.ids() as u32;
                let unknown = tokens[rows[0]..rows[1]].iter().find(|&&t| t >= ids);
                unknown.map(|t| format!("token {t} has no vector; there are {ids}"))
            };
            if let Some(what) = problem {
                return Err(ModelError::Text { text, what });
            }
        }
        Ok(())
    }

    /// What is compared with the vectors of the words, for some rows of the hidden states.
    fn guesses(&self, states: Tensor<2>, rows: &[u32]) -> Tensor<2> {
        let x = self.dense.forward_gelu(ops::rows(states, rows));
        self.head_norm.forward(x)
    }

    /// The mean over `rows` of `-log p(target)` of the tokens that stood where masks are now.
    ///
    /// # Errors
    /// As [`states`](Self::states).
    ///
    /// # Panics
    /// When there is no row, or not as many targets.
    pub fn masked_loss(
        &self,
        tokens: &[u32],
        starts: &[usize],
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Tensor<1>, ModelError> {
        let guesses = self.guesses(self.states(tokens, starts)?, rows);
        // The bias as the last number of each word, met by 1.
        let one = Tensor::ones([rows.len(), 1], &guesses.device());
        let x = Tensor::cat(vec![guesses, one], 1);
        let words = Tensor::cat(
            vec![self.words.table.val(), self.bias.val().unsqueeze_dim(1)],
            1,
        );
        Ok(ops::cross_entropy(x, words, targets))
    }

    /// Logits `[rows, vocab]` of the tokens at some rows.
    ///
    /// # Errors
    /// As [`states`](Self::states).
    pub fn logits(
        &self,
        tokens: &[u32],
        starts: &[usize],
        rows: &[u32],
    ) -> Result<Tensor<2>, ModelError> {
        let guesses = self.guesses(self.states(tokens, starts)?, rows);
        let bias = Some(self.bias.val());
        Ok(ops::linear(guesses, self.words.table.val(), bias))
    }

    /// The weights by the names of the authors' checkpoints.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut all = vec![
            NamedTensor::new(WORDS, &self.words.table.val()),
            NamedTensor::new(TYPES, &self.types.table.val()),
            NamedTensor::new(BIAS, &self.bias.val()),
        ];
        all.extend(self.norm.tensors(NORM));
        for (i, layer) in self.layers.iter().enumerate() {
            all.extend(layer.mixer.tensors(&format!("{}.mixer", place(i))));
            all.extend(layer.norm.tensors(&format!("{}.norm", place(i))));
        }
        all.extend(self.dense.tensors(DENSE));
        all.extend(self.head_norm.tensors(HEAD_NORM));
        all
    }

    /// Writes `model.safetensors` and `config.json` into a folder, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(write(folder))?;
        checkpoint::write(&folder.join("model.safetensors"), &self.tensors())?;
        let path = folder.join(CONFIG);
        let config = serde_json::to_string_pretty(&self.config).unwrap_or_default();
        atomic::write(&path, config.as_bytes()).map_err(write(&path))
    }
}

fn place(layer: usize) -> String {
    format!("bert.encoder.layer.{layer}.layer")
}
