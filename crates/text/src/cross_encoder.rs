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
//! The checkpoints of ANNCUR (Yadav et al., EMNLP 2022) have `[CLS]`'s pooler with
//! `additional_linear`, or no head at all: then the score is the product of states at
//! marks in both texts; see `crate::entity_pairs`, which also says how both kinds read
//! a pair.
//!
//! Cost: a run of the transformer for each pair.

use keyfold_core::{EncodeError, EncoderIdentity, ModelFolder, PairScorer, VectorsError};

use crate::LoadOptions;
use crate::backbone::{Activation, Linear, Packed};
use crate::entity_pairs::Marks;
use crate::error::{LoadError, invalid};
use crate::load::{Transformer, identity};
use crate::run::{Input, run, thread_count};
use keyfold_core::weights::Weights;

/// A model that scores pairs of texts.
pub struct CrossEncoder {
    identity: EncoderIdentity,
    transformer: Transformer,
    /// None where states at marks are compared.
    head: Option<Head>,
    /// How pairs are read, if not as usual.
    marks: Option<Marks>,
    threads: usize,
}

/// What makes a number of the first token's state.
struct Head {
    inner: Linear,
    activation: Activation,
    classifier: Linear,
}

/// Names of the parts of a head.
struct Names {
    inner: &'static str,
    activation: Activation,
    classifier: &'static str,
}

/// A tensor that ANNCUR's checkpoints have and others have not.
const ENTITIES: &str = "bert_model.embeddings.word_embeddings.weight";

const HEADS: [Names; 4] = [
    Names {
        inner: "bert_model.pooler.dense",
        activation: Activation::Tanh,
        classifier: "additional_linear",
    },
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
        let of_entities = weights.find_prefix(ENTITIES).is_ok();
        let marks = match of_entities {
            true => Some(Marks::find(&folder, &transformer.tokenizer)?),
            false => None,
        };
        if of_entities && transformer.backbone.longest() < Marks::positions() {
            return Err(invalid(
                weights.path(),
                format!(
                    "it has {} positions; pairs of a mention and an entity take {}",
                    transformer.backbone.longest(),
                    Marks::positions()
                ),
            ));
        }
        if of_entities && !weights.has("additional_linear.weight") {
            return Ok(Self {
                identity: identity(&folder, names, 1)?,
                transformer,
                head: None,
                marks,
                threads: thread_count(options.threads),
            });
        }
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
            head: Some(Head {
                classifier: Linear::load(&weights, head.classifier, hidden, labels, true)?,
                inner,
                activation: head.activation,
            }),
            transformer,
            marks,
            threads: thread_count(options.threads),
        })
    }

    /// The score of every pair of a pack.
    fn scores(&self, pack: &Packed, states: &[f32]) -> Vec<f32> {
        let hidden = self.transformer.backbone.hidden();
        let Some(head) = &self.head else {
            let pairs = pack.sequences.iter().zip(self.marks.iter().cycle());
            return pairs
                .map(|(pair, marks)| {
                    let rows = pair.start..pair.start + pair.len;
                    let states = &states[rows.start * hidden..rows.end * hidden];
                    marks.score(&pack.ids[rows], pair.second, states, hidden)
                })
                .collect();
        };
        let mut first = Vec::with_capacity(pack.sequences.len() * hidden);
        for pair in &pack.sequences {
            first.extend_from_slice(&states[pair.start * hidden..(pair.start + 1) * hidden]);
        }
        let (mut inner, mut labels) = (Vec::new(), Vec::new());
        head.inner.apply(&first, &mut inner, 1);
        head.activation.apply(&mut inner);
        head.classifier.apply(&inner, &mut labels, 1);
        match head.classifier.outputs() {
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
            let tokenizer = &self.transformer.tokenizer;
            if let Some(marks) = &self.marks {
                return marks.input(tokenizer, first, second);
            }
            let (ids, second) = tokenizer.pair(first, second)?;
            Ok(Input {
                visible: ids.len(),
                ids,
                second,
                gap: 0,
            })
        };
        let inputs: Result<Vec<Input>, EncodeError> = pairs.iter().map(input).collect();
        let finish = |_: &[usize], pack: &Packed, states: Vec<f32>| {
            let scores = self.scores(pack, &states);
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
