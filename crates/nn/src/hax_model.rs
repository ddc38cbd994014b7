//! Language models whose layers are those of HAX or of Mamba alone, to be trained.
//!
//! ```text
//! h  = embed(tokens)
//! h += layer(rms(h))              for each layer
//! logits = table of embed · rms(h)
//! ```
//!
//! `[rows, hidden]` throughout, with the rows of all texts one after the other. Tensors and
//! config.json have the names of Hugging Face's transformers, so that a model without attention
//! is a Mamba that `keyfold-lm` and others read.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic};
use keyfold_sequence::hax::HaxConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::{self, NamedTensor};
use crate::error::invalid;
use crate::layers::parameter;
use crate::mixers::{
    Hax, HaxBase, HaxLayerConfig, Looked, Mamba2Config, MambaConfig, Source, Sparse,
};
use crate::{Embedding, ModelError, ops, random};

const CONFIG: &str = "config.json";
const EMBEDDING: &str = "backbone.embeddings.weight";
const NORM: &str = "backbone.norm_f.weight";

/// The layer under the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaxKind {
    /// Mamba.
    Mamba,
    /// Mamba-2.
    Mamba2,
}

/// Fields of config.json, as transformers has them for Mamba and Mamba-2, and the choice of keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HaxModelConfig {
    /// The layer under the attention.
    pub base: HaxKind,
    /// Which keys are looked at; with no source of keys the base stands alone.
    pub sparse: HaxConfig,
    /// Seed of the hashes of a trained model.
    pub hash_seed: u64,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// State numbers of a channel, and numbers of a query.
    pub state_size: usize,
    /// Channels of a head, of Mamba-2.
    pub head_dim: usize,
    /// Rank of the steps, of Mamba; 0 stands for a sixteenth of `hidden_size`.
    pub time_step_rank: usize,
    /// Width of the convolution.
    pub conv_kernel: usize,
    /// Channels for each number of a hidden state.
    pub expand: usize,
    /// What is added to the mean square in norms between the layers.
    pub layer_norm_epsilon: f64,
    /// Deviation of the weights at the beginning.
    pub initializer_range: f32,
}

impl Default for HaxModelConfig {
    /// The model for joint recall.
    fn default() -> Self {
        Self {
            base: HaxKind::Mamba2,
            sparse: HaxConfig::default(),
            hash_seed: 0,
            vocab_size: 100,
            hidden_size: 64,
            num_hidden_layers: 2,
            state_size: 32,
            head_dim: 16,
            time_step_rank: 8,
            conv_kernel: 4,
            expand: 2,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.1,
        }
    }
}

impl HaxModelConfig {
    fn check(&self, path: &Path) -> Result<(), ModelError> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
        ] {
            if size == 0 {
                return Err(invalid(path, format!("{field} is 0")));
            }
        }
        Ok(())
    }

    /// Whether there is no attention.
    fn alone(&self) -> bool {
        self.sparse.sparse_arch.is_empty()
    }

    fn layer(&self) -> HaxLayerConfig {
        let base = match self.base {
            HaxKind::Mamba => HaxBase::Mamba(MambaConfig {
                d_model: self.hidden_size,
                d_state: self.state_size,
                d_conv: self.conv_kernel,
                expand: self.expand,
                dt_rank: self.time_step_rank,
            }),
            HaxKind::Mamba2 => HaxBase::Mamba2(Mamba2Config {
                d_model: self.hidden_size,
                d_state: self.state_size,
                d_conv: self.conv_kernel,
                expand: self.expand,
                headdim: self.head_dim,
            }),
        };
        HaxLayerConfig {
            base,
            sparse: (!self.alone()).then(|| self.sparse.clone()),
        }
    }

    /// config.json with what readers of Mamba need besides.
    fn json(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        let name = match (self.alone(), self.base) {
            (false, _) => "hax",
            (true, HaxKind::Mamba) => "mamba",
            (true, HaxKind::Mamba2) => "mamba2",
        };
        json["model_type"] = name.into();
        json["num_heads"] = (self.expand * self.hidden_size / self.head_dim.max(1)).into();
        json["n_groups"] = 1.into();
        json["tie_word_embeddings"] = true.into();
        json["use_bias"] = false.into();
        json["use_conv_bias"] = true.into();
        json["time_step_rank"] = match self.time_step_rank {
            0 => self.hidden_size.div_ceil(16).into(),
            rank => json!(rank),
        };
        json
    }
}

/// A language model that can be trained.
#[derive(Module, Debug)]
pub struct HaxModel {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Param<Tensor<1>>,
    #[module(skip)]
    config: HaxModelConfig,
}

#[derive(Module, Debug)]
struct Layer {
    norm: Param<Tensor<1>>,
    mixer: Hax,
}

/// Hidden states of a pass, and what its attention learns by itself.
pub struct HaxStates {
    /// The final, normed hidden states `[rows, hidden]`.
    pub states: Tensor<2>,
    /// The sum over layers of the losses of their rankings, where keys are selected and a
    /// ranking is learned.
    pub ranking: Option<Tensor<1>>,
}

impl HaxModel {
    /// A model with random weights: normal with `initializer_range`, steps and decays as the
    /// authors of Mamba begin them.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn init(config: &HaxModelConfig, seed: u64, device: &Device) -> Result<Self, ModelError> {
        config.check(Path::new("the configuration"))?;
        let (hidden, deviation) = (config.hidden_size, config.initializer_range);
        let layer = config.layer();
        let layers = (0..config.num_hidden_layers as u64).map(|i| {
            let mut source = Source::drawn(deviation, random::derive(seed, 1 + i));
            Ok::<_, ModelError>(Layer {
                norm: parameter(vec![1.0; hidden], [hidden], device),
                mixer: Hax::from(&layer, &mut source, device)?,
            })
        });
        let table = random::derive(seed, 0);
        Ok(Self {
            embedding: Embedding::init(config.vocab_size, hidden, deviation, table, device),
            layers: layers.collect::<Result<_, _>>()?,
            norm: parameter(vec![1.0; hidden], [hidden], device),
            config: config.clone(),
        })
    }

    /// Loads the model in a folder.
    ///
    /// # Errors
    /// When the folder holds no such model, or its weights do not fit config.json.
    pub fn load(folder: &ModelFolder, device: &Device) -> Result<Self, ModelError> {
        let config: HaxModelConfig = folder.json(CONFIG, "it says what model this is")?;
        config.check(&folder.file(CONFIG))?;
        let weights = Weights::open(folder, "")?;
        let hidden = config.hidden_size;
        let norm = |name: &str| -> Result<_, ModelError> {
            Ok(parameter(
                weights.tensor(name, &[hidden])?,
                [hidden],
                device,
            ))
        };
        let layer = config.layer();
        let layers = (0..config.num_hidden_layers).map(|i| {
            let place = place(i);
            let mut source = Source::read(&weights, format!("{place}.mixer"));
            Ok::<_, ModelError>(Layer {
                norm: norm(&format!("{place}.norm.weight"))?,
                mixer: Hax::from(&layer, &mut source, device)?,
            })
        });
        Ok(Self {
            embedding: Embedding::load(&weights, EMBEDDING, hidden, device)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: norm(NORM)?,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &HaxModelConfig {
        &self.config
    }

    /// Hidden states of texts one after the other. `starts` has the first row of each text and,
    /// at its end, the number of rows. `learning` is a seed of hashes and of the keys whose
    /// ranking is learned; without it hashes are those of the model.
    ///
    /// # Panics
    /// When a token is not below the size of the vocabulary, or `starts` falls.
    pub fn states(&self, tokens: &[u32], starts: &[usize], learning: Option<u64>) -> HaxStates {
        self.pass(tokens, starts, learning, |_, _, _| {})
    }

    /// By layer, what the positions of each text look at, by the hashes that the model has; no
    /// layer where there is no attention. Texts are as in [`states`](Self::states).
    ///
    /// # Panics
    /// As [`states`](Self::states).
    pub fn looked(&self, tokens: &[u32], starts: &[usize]) -> Vec<Vec<Looked>> {
        let mut all = Vec::new();
        self.pass(tokens, starts, None, |mixer, normed, sparse| {
            all.extend(mixer.looked(normed.clone(), starts, sparse.hashes));
        });
        all
    }

    /// A pass in which `watch` sees every layer with its input.
    fn pass(
        &self,
        tokens: &[u32],
        starts: &[usize],
        learning: Option<u64>,
        mut watch: impl FnMut(&Hax, &Tensor<2>, Sparse),
    ) -> HaxStates {
        let eps = self.config.layer_norm_epsilon;
        let mut h = self.embedding.forward(tokens);
        let mut ranking: Option<Tensor<1>> = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let seed = random::derive(learning.unwrap_or(self.config.hash_seed), number as u64);
            let sparse = Sparse {
                hashes: random::derive(seed, 0),
                ranking: learning.map(|_| random::derive(seed, 1)),
            };
            let normed = ops::rms_norm(h.clone(), layer.norm.val(), eps);
            watch(&layer.mixer, &normed, sparse);
            let (mixed, loss) = layer.mixer.forward(normed, starts, sparse);
            h = h + mixed;
            ranking = match (ranking, loss) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
        }
        HaxStates {
            states: ops::rms_norm(h, self.norm.val(), eps),
            ranking,
        }
    }

    /// Logits `[rows, vocab]` of some rows of hidden states.
    pub fn logits(&self, states: Tensor<2>, rows: &[u32]) -> Tensor<2> {
        ops::linear(ops::rows(states, rows), self.embedding.table.val(), None)
    }

    /// The mean of `-log p` of a token for each of some rows of hidden states.
    ///
    /// # Panics
    /// When there is no row, or not as many targets.
    pub fn loss(&self, states: Tensor<2>, rows: &[u32], targets: &[u32]) -> Tensor<1> {
        let x = ops::rows(states, rows);
        ops::cross_entropy(x, self.embedding.table.val(), targets)
    }

    /// The weights by the names of transformers.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut all = vec![
            NamedTensor::new(EMBEDDING, &self.embedding.table.val()),
            NamedTensor::new(NORM, &self.norm.val()),
        ];
        for (i, layer) in self.layers.iter().enumerate() {
            let place = place(i);
            all.push(NamedTensor::new(
                format!("{place}.norm.weight"),
                &layer.norm.val(),
            ));
            all.extend(layer.mixer.tensors(&format!("{place}.mixer")));
        }
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
        let config = serde_json::to_string_pretty(&self.config.json()).unwrap_or_default();
        atomic::write(&path, config.as_bytes()).map_err(write(&path))
    }
}

fn place(layer: usize) -> String {
    format!("backbone.layers.{layer}")
}
