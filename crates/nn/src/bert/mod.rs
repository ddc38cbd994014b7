//! BERT (Devlin et al. 2019) and its kin with the same layers (DistilBERT, RoBERTa,
//! XLM-RoBERTa, CamemBERT), to be trained.
//!
//! `x ← norm(x + attention(x))`, then `x ← norm(x + W₂ gelu(W₁ x))`; the first `x` is the
//! normed sum of a vector per token id, one per position and one per type. `[rows, hidden]`
//! throughout, with the rows of all texts one after the other ([`Packed`]).
//!
//! Names of tensors and fields of config.json are those of Hugging Face's transformers, so
//! that what was trained is read by `keyfold-text` and others.

mod config;
mod files;
mod packed;

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use keyfold_core::ModelFolder;
use keyfold_core::weights::Weights;

use crate::checkpoint::{self, NamedTensor};
use crate::ops::{self, Heads};
use crate::{Embedding, LayerNorm, Linear, ModelError, random};
use config::Names;
use files::Files;

pub use config::{BertConfig, Family};
pub use packed::Packed;

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
const NORM: &str = "embeddings.LayerNorm";
const POOLER: &str = "pooler.dense";

/// A transformer encoder that can be trained.
#[derive(Module, Debug)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    /// Not DistilBERT.
    types: Option<Embedding>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// BERT's dense layer over the first token, where the checkpoint has it.
    pooler: Option<Linear>,
    #[module(skip)]
    config: BertConfig,
    #[module(skip)]
    family: Family,
    #[module(skip)]
    files: Files,
}

#[derive(Module, Debug)]
struct Layer {
    /// Queries, keys and values.
    qkv: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl Bert {
    /// A model with random weights, as its authors begin: normal with
    /// `initializer_range`, biases 0.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn init(config: BertConfig, seed: u64, device: &Device) -> Result<Self, ModelError> {
        let family = config.check(Path::new("the configuration"))?;
        let (hidden, deviation) = (config.hidden_size, config.initializer_range);
        let embedding = |part, rows| {
            Embedding::init(rows, hidden, deviation, random::derive(seed, part), device)
        };
        let typed = family != Family::DistilBert && config.type_vocab_size > 0;
        Ok(Self {
            words: embedding(0, config.vocab_size),
            positions: embedding(1, config.max_position_embeddings),
            types: typed.then(|| embedding(2, config.type_vocab_size)),
            norm: LayerNorm::init(hidden, config.layer_norm_eps, device),
            layers: (0..config.num_hidden_layers as u64)
                .map(|i| Layer::init(&config, random::derive(seed, 3 + i), device))
                .collect(),
            pooler: None,
            family,
            files: Files::of_config(&config),
            config,
        })
    }

    /// Loads the model in a folder of Hugging Face's layout.
    ///
    /// Parameters lie on `device`; `Device::flex().autodiff()` can be trained.
    ///
    /// # Errors
    /// When the folder holds no such model, or its weights do not fit config.json.
    pub fn load(folder: &ModelFolder, device: &Device) -> Result<Self, ModelError> {
        Self::load_parts(folder, folder, device)
    }

    /// Loads a model of which `folder` has configuration and tokenizer, and `weights` the
    /// weights, under any prefix.
    ///
    /// # Errors
    /// As for [`Bert::load`].
    pub fn load_parts(
        folder: &ModelFolder,
        weights: &ModelFolder,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let path = folder.file(files::CONFIG);
        let config: BertConfig = folder.json(files::CONFIG, "it says what model this is")?;
        let family = config.check(&path)?;
        let mut weights = Weights::open(weights, "")?;
        weights.find_prefix(WORDS)?;
        let hidden = config.hidden_size;
        let embedding = |name| Embedding::load(&weights, name, hidden, device);
        let pooled = weights.has(&format!("{POOLER}.weight"));
        Ok(Self {
            words: embedding(WORDS)?,
            positions: embedding(POSITIONS)?,
            types: match family {
                Family::DistilBert => None,
                _ => Some(embedding(TYPES)?),
            },
            norm: LayerNorm::load(&weights, NORM, hidden, config.layer_norm_eps, device)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&weights, family.names(), i, &config, device))
                .collect::<Result<_, _>>()?,
            pooler: match pooled {
                true => Some(Linear::load(
                    &weights, POOLER, hidden, hidden, true, device,
                )?),
                false => None,
            },
            files: Files::read(folder)?,
            family,
            config,
        })
    }

    /// Writes the model into a folder, which is made: `model.safetensors`, `config.json`
    /// and the tokenizer's files as they were loaded.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        self.save_files(folder)?;
        checkpoint::write(&folder.join("model.safetensors"), &self.tensors())
    }

    /// Writes what stands beside the weights: `config.json` and the tokenizer's files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_files(&self, folder: &Path) -> Result<(), ModelError> {
        self.files.write(folder)
    }

    /// The weights by their official names.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let table = |name: &str, e: &Embedding| NamedTensor::new(name, &e.table.val());
        let mut all = vec![table(WORDS, &self.words), table(POSITIONS, &self.positions)];
        all.extend(self.types.as_ref().map(|t| table(TYPES, t)));
        all.extend(self.norm.tensors(NORM));
        let names = self.family.names();
        for (i, layer) in self.layers.iter().enumerate() {
            all.extend(layer.tensors(names, i));
        }
        all.extend(self.pooler.iter().flat_map(|p| p.tensors(POOLER)));
        all
    }

    /// What config.json says.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Length of a hidden state.
    pub fn hidden(&self) -> usize {
        self.config.hidden_size
    }

    /// Longest text in tokens.
    pub fn longest(&self) -> usize {
        self.positions.ids().saturating_sub(self.first_position())
    }

    /// Number of token ids that have a vector.
    pub fn vocabulary(&self) -> usize {
        self.words.ids()
    }

    /// The table of the vectors of token ids, `[ids, hidden]`.
    pub fn word_table(&self) -> &Param<Tensor<2>> {
        &self.words.table
    }

    /// Which names the tensors have and how positions count.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The dense layer over a pooled state, where the model has it.
    pub fn pooler(&self) -> Option<&Linear> {
        self.pooler.as_ref()
    }

    /// Replaces that layer.
    pub fn set_pooler(&mut self, pooler: Linear) {
        self.pooler = Some(pooler);
    }

    fn first_position(&self) -> usize {
        match self.family {
            Family::Roberta => self.config.pad_token_id.unwrap_or(1) as usize + 1,
            Family::Bert | Family::DistilBert => 0,
        }
    }

    /// Puts texts, as ids of tokens, one after the other. `types` are 0; set them where two
    /// texts are read together.
    ///
    /// # Errors
    /// When a text is longer than the model reads, or an id has no vector.
    pub fn pack<T: AsRef<[u32]>>(&self, texts: &[T]) -> Result<Packed, ModelError> {
        let mut packed = Packed::default();
        packed.starts.push(0);
        let first = self.first_position();
        for (number, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            let error = |what| ModelError::Text { text: number, what };
            if text.len() > self.longest() {
                return Err(error(format!(
                    "it has {} tokens, the model reads {}; cut it",
                    text.len(),
                    self.longest()
                )));
            }
            if let Some(id) = text.iter().find(|&&id| id as usize >= self.vocabulary()) {
                return Err(error(format!(
                    "token id {id} has no vector, the model has {}; the tokenizer is of another \
                     model",
                    self.vocabulary()
                )));
            }
            packed.ids.extend_from_slice(text);
            let positions = (first..first + text.len()).map(|p| p as u32);
            packed.positions.extend(positions);
            packed.starts.push(packed.ids.len());
        }
        packed.types = vec![0; packed.ids.len()];
        Ok(packed)
    }

    /// The last hidden states, `[tokens of all texts, hidden]`.
    ///
    /// Without `dropout` as at inference; with it, what is dropped follows from that seed,
    /// which should differ from step to step.
    ///
    /// # Panics
    /// When an id, a position or a type has no vector; [`Bert::pack`] sees to it.
    pub fn forward(&self, batch: &Packed, dropout: Option<u64>) -> Tensor<2> {
        let first = self.embed(batch, dropout);
        self.layers.iter().enumerate().fold(first, |x, (i, layer)| {
            self.layer(layer, i, x, batch, dropout)
        })
    }

    /// The hidden states before the first layer and after each, as transformers'
    /// `output_hidden_states` has them; see [`Bert::forward`].
    pub fn forward_all(&self, batch: &Packed, dropout: Option<u64>) -> Vec<Tensor<2>> {
        let mut states = vec![self.embed(batch, dropout)];
        for (i, layer) in self.layers.iter().enumerate() {
            let x = states[i].clone();
            states.push(self.layer(layer, i, x, batch, dropout));
        }
        states
    }

    /// `tanh(W x + b)` of each text's first state, `[texts, hidden]`, where the checkpoint
    /// has that layer.
    pub fn pooled(&self, states: Tensor<2>, batch: &Packed) -> Option<Tensor<2>> {
        let firsts = ops::rows(states, &batch.firsts());
        Some(self.pooler.as_ref()?.forward(firsts).tanh())
    }

    fn embed(&self, batch: &Packed, dropout: Option<u64>) -> Tensor<2> {
        let words = self.words.forward(&batch.ids);
        let mut x = words + self.positions.forward(&batch.positions);
        if let Some(types) = &self.types {
            x = x + types.forward(&batch.types);
        }
        let x = self.norm.forward(x);
        match self.dropout(dropout, 0) {
            Some((rate, seed)) => ops::dropout(x, rate, seed),
            None => x,
        }
    }

    fn layer(
        &self,
        layer: &Layer,
        number: usize,
        x: Tensor<2>,
        batch: &Packed,
        dropout: Option<u64>,
    ) -> Tensor<2> {
        let place = 1 + 3 * number as u64;
        let rate = self.config.attention_probs_dropout_prob;
        let heads = Heads {
            count: self.config.num_attention_heads,
            size: self.hidden() / self.config.num_attention_heads,
            dropout: dropout.map(|seed| (rate, random::derive(seed, place))),
        };
        let context = ops::attention(layer.qkv.forward(x.clone()), &batch.starts, heads);
        let context = layer.output.forward(context);
        let drop = self.dropout(dropout, place + 1);
        let x = layer.attention_norm.forward_sum(x, context, drop);
        let inner = layer.inner.forward_gelu(x.clone());
        let outer = layer.outer.forward(inner);
        let drop = self.dropout(dropout, place + 2);
        layer.outer_norm.forward_sum(x, outer, drop)
    }

    /// Rate and seed of the dropout of hidden states at a place of the model.
    fn dropout(&self, seed: Option<u64>, place: u64) -> Option<(f64, u64)> {
        let rate = self.config.hidden_dropout_prob;
        Some((rate, random::derive(seed?, place)))
    }
}

impl Layer {
    fn init(config: &BertConfig, seed: u64, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part, inputs, outputs| {
            let seed = random::derive(seed, part);
            Linear::init(
                inputs,
                outputs,
                true,
                config.initializer_range,
                seed,
                device,
            )
        };
        let norm = || LayerNorm::init(hidden, config.layer_norm_eps, device);
        Self {
            qkv: linear(0, hidden, 3 * hidden),
            output: linear(1, hidden, hidden),
            attention_norm: norm(),
            inner: linear(2, hidden, inner),
            outer: linear(3, inner, hidden),
            outer_norm: norm(),
        }
    }

    fn load(
        weights: &Weights,
        names: &Names,
        number: usize,
        config: &BertConfig,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (hidden, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps,
        );
        let full = |name: &str| format!("{}.{number}.{name}", names.layer);
        let linear = |name: &str, inputs, outputs| {
            Linear::load(weights, &full(name), inputs, outputs, true, device)
        };
        let norm = |name: &str| LayerNorm::load(weights, &full(name), hidden, eps, device);
        let qkv = names.qkv.map(full);
        Ok(Self {
            qkv: Linear::load_stacked(weights, &qkv, hidden, hidden, true, device)?,
            output: linear(names.output, hidden, hidden)?,
            attention_norm: norm(names.attention_norm)?,
            inner: linear(names.inner, hidden, inner)?,
            outer: linear(names.outer, inner, hidden)?,
            outer_norm: norm(names.outer_norm)?,
        })
    }

    fn tensors(&self, names: &Names, number: usize) -> Vec<NamedTensor> {
        let full = |name: &str| format!("{}.{number}.{name}", names.layer);
        [
            self.qkv.tensors_apart(&names.qkv.map(full)),
            self.output.tensors(&full(names.output)),
            self.attention_norm.tensors(&full(names.attention_norm)),
            self.inner.tensors(&full(names.inner)),
            self.outer.tensors(&full(names.outer)),
            self.outer_norm.tensors(&full(names.outer_norm)),
        ]
        .concat()
    }
}
