//! Learnt sparse encoders: a weight for every word piece that says something.
//!
//! Two heads are known:
//!
//! - *Masked language model* (SPLADE; Formal, Piwowarski, Clinchant 2021): every
//!   token `i` scores every term `j` of the vocabulary, and
//!   `w_j = max over i of log(1 + relu(logit_ij))` (or their sum, where the model's
//!   configuration says so), so a text gets terms that it does not hold. The logits
//!   are `E (norm(act(W h_i + b))) + c` with the table `E` of the input, unless the
//!   checkpoint has one of its own.
//! - *Regression* (uniCOIL; Lin and Ma 2021): token `i` weighs
//!   `relu(w h_i + b)`, its term the largest of its tokens in a document and their
//!   sum in a query; the first token (`[CLS]`) is left out, the last (`[SEP]`)
//!   counts. Queries are cut after 128 tokens.
//!
//! Terms weigh `round(256 w / 5)`, as in Pyserini.
//!
//! Cost beyond the transformer: for the first `tokens * hidden * vocabulary`
//! multiplications, which for small models is most of the work.

use keyfold_core::{
    EncodeError, EncoderIdentity, ModelFolder, Role, SparseEncoder, SparseVector, VectorsError,
};
use serde::Deserialize;

use crate::LoadOptions;
use crate::backbone::{Activation, LayerNorm, Linear, Packed};
use crate::error::{LoadError, invalid};
use crate::load::{Transformer, identity};
use crate::run::{Input, run, thread_count};
use keyfold_core::weights::Weights;

/// Weights become whole numbers of these parts, as in Pyserini.
const PARTS: f32 = 256.0 / 5.0;
/// Longest query of uniCOIL, in tokens.
const UNICOIL_QUERY: usize = 128;
/// Rows whose logits are computed at a time: so that they stay near the processor.
const ROWS: usize = 16;

/// A text encoder that weighs terms.
pub struct SparseTextEncoder {
    identity: EncoderIdentity,
    transformer: Transformer,
    head: Head,
    threads: usize,
}

enum Head {
    Splade(Splade),
    Unicoil(Linear),
}

/// A masked language model's head.
struct Splade {
    dense: Linear,
    activation: Activation,
    norm: LayerNorm,
    /// `[vocabulary, hidden]` and one number each.
    decoder: Linear,
    /// Whether the tokens of a text are summed; else the largest counts.
    sum: bool,
}

/// Names of the parts of a masked language model's head.
struct Names {
    dense: &'static str,
    norm: &'static str,
    /// Of the decoder; the first that is there.
    bias: [&'static str; 2],
    decoder: &'static str,
    /// Of the activation: none where it is the configuration's.
    activation: Option<Activation>,
}

/// The table of the input, which most checkpoints use as decoder.
const WORDS: &str = "embeddings.word_embeddings.weight";
const HEADS: [Names; 3] = [
    Names {
        dense: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        bias: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
        decoder: "cls.predictions.decoder.weight",
        activation: None,
    },
    Names {
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        bias: ["vocab_projector.bias", "vocab_projector.bias"],
        decoder: "vocab_projector.weight",
        activation: None,
    },
    Names {
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        bias: ["lm_head.bias", "lm_head.decoder.bias"],
        decoder: "lm_head.decoder.weight",
        activation: Some(Activation::Gelu),
    },
];
const REGRESSION: &str = "tok_proj";

/// What config.json says of the head; DistilBERT has its own name for it.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
}

/// The settings of sentence-transformers for the sum over tokens.
#[derive(Debug, Default, Deserialize)]
struct PoolingConfig {
    pooling_strategy: Option<String>,
    activation_function: Option<String>,
}

const POOLING: &str = "1_SpladePooling/config.json";

impl SparseTextEncoder {
    /// Loads what `name` stands for: a folder, or a hub name in the local hub cache,
    /// with a BERT-family checkpoint that has a masked-language-model head or
    /// uniCOIL's `tok_proj`.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not fit the others, or the
    /// checkpoint has neither head; the error names the file.
    pub fn load(name: &str, options: &LoadOptions) -> Result<Self, LoadError> {
        let folder = ModelFolder::find(name)?;
        let mut names = Vec::new();
        let transformer = Transformer::load(&folder, "", false, &mut names)?;
        let mut weights = Weights::open(&folder, "")?;
        let head = Head::load(&folder, &transformer, &mut weights)?;
        names.push(POOLING.to_owned());
        Ok(Self {
            identity: identity(&folder, names, transformer.backbone.vocabulary())?,
            transformer,
            head,
            threads: thread_count(options.threads),
        })
    }

    /// The weights above 0 of each text's terms (for uniCOIL, of each token), before
    /// they are rounded and those of a term put together.
    ///
    /// # Errors
    /// When the tokenizer fails or the weights are not finite.
    pub fn weights(&self, texts: &[&str], role: Role) -> Result<Vec<Vec<(u32, f32)>>, EncodeError> {
        let longest = match (&self.head, role) {
            (Head::Unicoil(_), Role::Query) => self.transformer.longest.min(UNICOIL_QUERY),
            _ => self.transformer.longest,
        };
        let tokenizer = &self.transformer.tokenizer;
        let input = |text: &&str| Ok(Input::text(tokenizer.tokens("", text, longest)?.ids));
        let inputs: Result<Vec<Input>, EncodeError> = texts.iter().map(input).collect();
        let hidden = self.transformer.backbone.hidden();
        let finish = |_: &[usize], pack: &Packed, states: Vec<f32>| {
            let texts = pack.sequences.iter();
            texts
                .map(|text| {
                    let range = text.start..text.start + text.len;
                    let states = &states[range.start * hidden..range.end * hidden];
                    let weights = self.head.weights(&pack.ids[range], states, hidden);
                    match weights.iter().all(|(_, w)| w.is_finite()) {
                        true => Ok(weights),
                        false => Err(self.not_finite()),
                    }
                })
                .collect()
        };
        run(&self.transformer.backbone, &inputs?, self.threads, finish)
    }

    fn not_finite(&self) -> EncodeError {
        EncodeError::BadOutput {
            model: self.identity.name.clone(),
            source: VectorsError::NotFinite { row: 0 },
        }
    }
}

impl SparseEncoder for SparseTextEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn term(&self, term: u32) -> String {
        let text = self.transformer.tokenizer.text(term);
        text.unwrap_or_else(|| format!("term {term}"))
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<SparseVector>, EncodeError> {
        let together: fn(f32, f32) -> f32 = match (&self.head, role) {
            (Head::Unicoil(_), Role::Query) => |a, b| a + b,
            _ => f32::max,
        };
        let all = self.weights(texts, role)?.into_iter();
        Ok(all
            .map(|weights| {
                let scaled = weights.into_iter().map(|(t, w)| (t, w * PARTS));
                SparseVector::new(scaled, together)
            })
            .collect())
    }
}

impl Head {
    fn load(
        folder: &ModelFolder,
        transformer: &Transformer,
        weights: &mut Weights,
    ) -> Result<Self, LoadError> {
        let hidden = transformer.backbone.hidden();
        let found = HEADS.iter().find(|names| {
            weights
                .find_prefix(&format!("{}.weight", names.dense))
                .is_ok()
        });
        if let Some(names) = found {
            return Splade::load(folder, transformer, weights, names).map(Self::Splade);
        }
        if weights.find_prefix(&format!("{REGRESSION}.weight")).is_ok() {
            return Linear::load(weights, REGRESSION, hidden, 1, true).map(Self::Unicoil);
        }
        Err(invalid(
            weights.path(),
            "it has no head that weighs terms: neither that of a masked language model \
             (SPLADE) nor 'tok_proj' (uniCOIL); --sparse needs such a model",
        ))
    }

    /// Terms with their weights above 0.
    fn weights(&self, ids: &[u32], states: &[f32], hidden: usize) -> Vec<(u32, f32)> {
        match self {
            Self::Splade(head) => head.weights(states, hidden),
            Self::Unicoil(linear) => {
                let mut weights = Vec::new();
                linear.apply(states, &mut weights, 1);
                let tokens = ids.iter().copied().zip(weights).skip(1);
                // NaN stays, and is refused.
                tokens.filter(|&(_, w)| w > 0.0 || w.is_nan()).collect()
            }
        }
    }
}

impl Splade {
    fn load(
        folder: &ModelFolder,
        transformer: &Transformer,
        weights: &mut Weights,
        names: &Names,
    ) -> Result<Self, LoadError> {
        let path = folder.file("config.json");
        let config: Config = folder.json("config.json", "it says how the head computes")?;
        let pooling: PoolingConfig = folder.json_optional(POOLING)?.unwrap_or_default();
        let unknown = |what: &str, found: &str, known: &str| {
            let message = format!("the {what} '{found}' is not known; known is {known}");
            Err(invalid(&folder.file(POOLING), message))
        };
        let sum = match pooling.pooling_strategy.as_deref() {
            None | Some("max") => false,
            Some("sum") => true,
            Some(other) => return unknown("pooling_strategy", other, "max and sum"),
        };
        if let Some(other) = pooling.activation_function.as_deref()
            && other != "relu"
        {
            return unknown("activation_function", other, "relu");
        }
        let hidden = transformer.backbone.hidden();
        let vocabulary = transformer.backbone.vocabulary();
        let eps = config.layer_norm_eps.unwrap_or(1e-12);
        let dense = Linear::load(weights, names.dense, hidden, hidden, true)?;
        let norm = LayerNorm::load(weights, names.norm, hidden, true, eps)?;
        let [bias, other] = names.bias;
        let bias = if weights.has(bias) { bias } else { other };
        let bias = weights.tensor(bias, &[vocabulary])?;
        let table = if weights.has(names.decoder) {
            weights.tensor(names.decoder, &[vocabulary, hidden])?
        } else {
            weights.find_prefix(WORDS)?;
            weights.tensor(WORDS, &[vocabulary, hidden])?
        };
        Ok(Self {
            dense,
            activation: match names.activation {
                Some(activation) => activation,
                None => Activation::named(config.hidden_act.as_deref().unwrap_or("gelu"), &path)?,
            },
            norm,
            decoder: Linear::new(table, Some(bias), hidden),
            sum,
        })
    }

    fn weights(&self, states: &[f32], hidden: usize) -> Vec<(u32, f32)> {
        let vocabulary = self.decoder.outputs();
        let mut all = vec![0.0f32; vocabulary];
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        for states in states.chunks(ROWS * hidden) {
            self.dense.apply(states, &mut rows, 1);
            self.activation.apply(&mut rows);
            self.norm.apply(&mut rows);
            self.decoder.apply(&rows, &mut logits, 1);
            for logits in logits.chunks_exact(vocabulary) {
                for (w, &x) in all.iter_mut().zip(logits) {
                    if self.sum {
                        *w += x.max(0.0).ln_1p();
                    } else if x > *w || x.is_nan() {
                        *w = x;
                    }
                }
            }
        }
        let weight = |w: f32| if self.sum { w } else { w.ln_1p() };
        let terms = (0u32..).zip(all).filter(|&(_, w)| w != 0.0);
        terms.map(|(term, w)| (term, weight(w))).collect()
    }
}
