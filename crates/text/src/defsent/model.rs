//! The encoder with its pooler, to be trained.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, atomic};
use keyfold_nn::{Bert, Family, Packed};
use keyfold_nn::{Linear, ops};
use keyfold_train::LearnError;
use serde_json::json;

use crate::modules;
use crate::pooling::Pool;
use crate::training::model_error;

const POOLING: &str = "1_Pooling";

/// Where the pooler of a model comes from, and its activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolerKind {
    /// BERT's own, tanh.
    Own,
    /// The dense layer of the head that predicts masked words, gelu.
    MaskedWords,
    /// RoBERTa's own where there is no such head, gelu.
    OwnGelu,
    /// Random, tanh: the checkpoint has neither.
    Random,
}

impl PoolerKind {
    fn is_gelu(self) -> bool {
        matches!(self, Self::MaskedWords | Self::OwnGelu)
    }
}

/// An encoder and its pooler.
#[derive(Module, Debug)]
pub struct DefSentModel {
    bert: Bert,
    #[module(skip)]
    kind: PoolerKind,
}

impl DefSentModel {
    /// Loads a BERT, RoBERTa or DistilBERT folder. The pooler is BERT's own, else the dense
    /// layer of the head that predicts masked words (RoBERTa: that one first), else random.
    ///
    /// # Errors
    /// When the folder holds no such model or its files do not fit.
    pub fn load(folder: &ModelFolder, seed: u64, device: &Device) -> Result<Self, LearnError> {
        let mut bert = Bert::load(folder, device).map_err(model_error)?;
        let weights = Weights::open(folder, "").map_err(|e| model_error(e.into()))?;
        let roberta = bert.family() == Family::Roberta;
        let heads = [
            "lm_head.dense",
            "cls.predictions.transform.dense",
            "vocab_transform",
        ];
        let head = heads.iter().find(|h| weights.has(&format!("{h}.weight")));
        let hidden = bert.hidden();
        let kind = match (bert.pooler().is_some(), head) {
            (true, _) if !roberta => PoolerKind::Own,
            (_, Some(head)) => {
                let dense = Linear::load(&weights, head, hidden, hidden, true, device);
                bert.set_pooler(dense.map_err(model_error)?);
                PoolerKind::MaskedWords
            }
            (true, None) => PoolerKind::OwnGelu,
            (false, None) => {
                let deviation = bert.config().initializer_range;
                let dense = Linear::init(hidden, hidden, true, deviation, seed, device);
                bert.set_pooler(dense);
                PoolerKind::Random
            }
        };
        Ok(Self { bert, kind })
    }

    /// Where the pooler is from.
    pub fn kind(&self) -> PoolerKind {
        self.kind
    }

    /// The encoder.
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// `r` of each text, `[texts, hidden]`.
    ///
    /// # Panics
    /// As [`Bert::forward`].
    pub fn represent(&self, batch: &Packed, pool: Pool, dropout: Option<u64>) -> Tensor<2> {
        let states = self.bert.forward(batch, dropout);
        let pooled = match pool {
            Pool::Cls => ops::rows(states, &batch.firsts()),
            Pool::Mean | Pool::Prompt => ops::segment_mean(states, &batch.starts),
        };
        match self.bert.pooler() {
            None => pooled,
            Some(pooler) if self.kind.is_gelu() => pooler.forward_gelu(pooled),
            Some(pooler) => pooler.forward(pooled).tanh(),
        }
    }

    /// Writes the encoder by its official names, the pooler as `pooler.dense`, with what
    /// says how texts are pooled in the layout of sentence-transformers.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, pool: Pool) -> Result<(), LearnError> {
        let pooling = folder.join(POOLING);
        std::fs::create_dir_all(&pooling).map_err(LearnError::io(&pooling))?;
        let config = match pool {
            Pool::Prompt => json!({ "pooling_mode": pool.name() }),
            Pool::Cls | Pool::Mean => json!({
                "word_embedding_dimension": self.bert.hidden(),
                "pooling_mode_cls_token": pool == Pool::Cls,
                "pooling_mode_mean_tokens": pool == Pool::Mean,
                "pooling_mode_max_tokens": false,
                "pooling_mode_mean_sqrt_len_tokens": false,
            }),
        };
        let class = |name: &str| format!("sentence_transformers.models.{name}");
        let list = json!([
            {"idx": 0, "name": "0", "path": "", "type": class("Transformer")},
            {"idx": 1, "name": "1", "path": POOLING, "type": class("Pooling")},
        ]);
        let files = [
            (pooling.join("config.json"), config),
            (folder.join(modules::MODULES), list),
        ];
        for (path, value) in files {
            let text = format!("{value:#}\n");
            atomic::write(&path, text.as_bytes()).map_err(LearnError::io(&path))?;
        }
        // The weights come last: where they are, the rest is.
        self.bert.save(folder).map_err(model_error)
    }
}
