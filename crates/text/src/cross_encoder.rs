//! Cross-encoders: models of the BERT family that read a query and a document
//! together and give one number for the pair (Nogueira and Cho 2019), in the layout
//! of `transformers` and of sentence-transformers' `CrossEncoder`.
//!
//! The pair is one sequence (`[CLS] query [SEP] document [SEP]`); the state `h` of
//! the first token goes through the head: `w act(W h + b) + c`, where the inner
//! layer is BERT's pooler (tanh), RoBERTa's and MPNet's dense layer (tanh), or
//! DistilBERT's (relu). The score is the raw number; with two labels, the second
//! less the first, whose order is that of the probability.
//!
//! Cost: a run of the transformer for each pair.

use keyfold_core::{EncodeError, EncoderIdentity, ModelFolder, PairScorer, VectorsError};

use crate::LoadOptions;
use crate::backbone::{Activation, Linear, Packed};
use crate::error::{LoadError, invalid};
use crate::load::{Transformer, identity};
use crate::run::{Input, run, thread_count};
use crate::weights::Weights;

/// A model that scores pairs of texts.
pub struct CrossEncoder {
    identity: EncoderIdentity,
    transformer: Transformer,
    inner: Linear,
    activation: Activation,
    classifier: Linear,
    threads: usize,
}

/// Names of the parts of a head.
struct Names {
    inner: &'static str,
    activation: Activation,
    classifier: &'static str,
}

const HEADS: [Names; 3] = [
    Names {
        inner: "classifier.dense",
        activation: Activation::Tanh,
        classifier: "classifier.out_proj",
    },
    Names {
        inner: "pre_classifier",
        activation: Activation::Relu,
        classifier: "classifier",
    },
    Names {
        inner: "pooler.dense",
        activation: Activation::Tanh,
        classifier: "classifier",
    },
];

impl CrossEncoder {
    /// Loads what `name` stands for: a folder, or a hub name in the local hub cache,
    /// with a BERT-family model for sequence classification of one or two labels.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not fit the others, or the
    /// checkpoint has no such head; the error names the file.
    pub fn load(name: &str, options: &LoadOptions) -> Result<Self, LoadError> {
        let folder = ModelFolder::find(name)?;
        let mut names = Vec::new();
        let mut transformer = Transformer::load(&folder, "", false, &mut names)?;
        let longest = transformer.longest;
        transformer.tokenizer.limit_pairs(longest)?;
        let mut weights = Weights::open(&folder, "")?;
        let no_head = |weights: &Weights| {
            invalid(
                weights.path(),
                "it has no head for pairs of texts ('classifier'); --rerank needs a \
                 cross-encoder: a model for sequence classification",
            )
        };
        let head = HEADS
            .iter()
            .find(|names| {
                weights
                    .find_prefix(&format!("{}.weight", names.inner))
                    .is_ok()
            })
            .ok_or_else(|| no_head(&weights))?;
        let hidden = transformer.backbone.hidden();
        let inner = Linear::load(&weights, head.inner, hidden, hidden, true)?;
        let classifier = format!("{}.weight", head.classifier);
        if weights.find_prefix(&classifier).is_err() {
            return Err(no_head(&weights));
        }
        let labels = weights.shape(&classifier)?.first().copied().unwrap_or(0);
        if !(1..=2).contains(&labels) {
            return Err(invalid(
                weights.path(),
                format!(
                    "its head gives {labels} numbers for a pair; a cross-encoder for search \
                     gives one, or two (no, yes)"
                ),
            ));
        }
        Ok(Self {
            identity: identity(&folder, names, 1)?,
            classifier: Linear::load(&weights, head.classifier, hidden, labels, true)?,
            transformer,
            inner,
            activation: head.activation,
            threads: thread_count(options.threads),
        })
    }

    /// The score of every pair of a pack.
    fn head(&self, pack: &Packed, states: &[f32]) -> Vec<f32> {
        let hidden = self.transformer.backbone.hidden();
        let mut first = Vec::with_capacity(pack.sequences.len() * hidden);
        for pair in &pack.sequences {
            first.extend_from_slice(&states[pair.start * hidden..(pair.start + 1) * hidden]);
        }
        let (mut inner, mut labels) = (Vec::new(), Vec::new());
        self.inner.apply(&first, &mut inner, 1);
        self.activation.apply(&mut inner);
        self.classifier.apply(&inner, &mut labels, 1);
        match self.classifier.outputs() {
            2 => labels.chunks_exact(2).map(|l| l[1] - l[0]).collect(),
            _ => labels,
        }
    }
}

impl PairScorer for CrossEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>, EncodeError> {
        let input = |&(first, second): &(&str, &str)| {
            let (ids, second) = self.transformer.tokenizer.pair(first, second)?;
            Ok(Input {
                visible: ids.len(),
                ids,
                second,
            })
        };
        let inputs: Result<Vec<Input>, EncodeError> = pairs.iter().map(input).collect();
        let finish = |_: &[usize], pack: &Packed, states: Vec<f32>| {
            let scores = self.head(pack, &states);
            match scores.iter().position(|s| !s.is_finite()) {
                None => Ok(scores),
                Some(row) => Err(EncodeError::BadOutput {
                    model: self.identity.name.clone(),
                    source: VectorsError::NotFinite { row },
                }),
            }
        };
        run(&self.transformer.backbone, &inputs?, self.threads, finish)
    }
}
