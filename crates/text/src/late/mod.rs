//! Late interaction: one vector per token, compared by MaxSim (ColBERT: Khattab
//! and Zaharia 2020; XTR: Lee et al. 2023), in the layouts of PyLate, of the
//! Stanford code and of XTR.
//!
//! A marker token after the first token says which side a text is on. A query
//! is filled up with mask tokens, which look at its words and become soft
//! expansion terms; a document's rows for skipped words (punctuation) are left
//! out. The backbone's hidden states go through one or more linear heads and
//! are scaled to length one.
//!
//! Two things are as the reference has them and may surprise:
//! - A skipped word that is not in the vocabulary stands for the unknown token,
//!   so that every unknown token of a document is left out. (The 32 punctuation
//!   marks are all in BERT's vocabularies, but not in every vocabulary.)
//! - Byte-level vocabularies have other tokens for `.` and ` .`; only the exact
//!   tokens are skipped.
//!
//! One thing is not: where a ModernBERT model does not say whether it expands
//! queries, it does not. Those were trained with an attention under which the
//! expansion rows came out as zeros.

mod settings;

use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, ModelFolder, Role, Vectors};
use keyfold_kernels as kernels;

use crate::LoadOptions;
use crate::backbone::{Backbone, Linear, Packed};
use crate::dense::Dense;
use crate::error::{LoadError, invalid};
use crate::load::{Transformer, identity};
use crate::run::{Input, run, thread_count};
use crate::sentence::vectors;
use keyfold_core::weights::Weights;
pub(crate) use settings::Layout;
use settings::Settings;
#[cfg(feature = "train")]
pub(crate) use settings::punctuation;

/// A text encoder with one vector per token.
pub struct LateInteractionEncoder {
    identity: EncoderIdentity,
    transformer: Transformer,
    heads: Vec<Dense>,
    query: Side,
    document: Side,
    /// The token that fills up queries, if they are, and whether it is seen.
    expansion: Option<u32>,
    attend: bool,
    /// Ids whose rows are left out of documents, ascending.
    skip: Vec<u32>,
    prompt: String,
    threads: usize,
    trained_fold: Option<String>,
}

/// What differs between queries and documents.
#[derive(Debug, Clone, Copy)]
struct Side {
    marker: Option<u32>,
    /// Most tokens, marker included.
    length: usize,
}

/// A tokenised text with what becomes of its rows.
struct Prepared {
    input: Input,
    spans: Vec<Option<Range<usize>>>,
    /// Rows that come out.
    keep: Vec<bool>,
}

impl LateInteractionEncoder {
    /// Loads a folder in one of the layouts.
    ///
    /// # Errors
    /// When the folder is no late-interaction model, or a file is missing,
    /// damaged or does not fit the others; the error names the file.
    pub fn load(folder: &ModelFolder, options: &LoadOptions) -> Result<Self, LoadError> {
        match Layout::of(folder)? {
            Some(layout) => Self::load_layout(folder, layout, options),
            None => Err(invalid(
                &folder.path,
                "it is not a late-interaction model: neither modules.json nor config.json names \
                 a linear head over tokens",
            )),
        }
    }

    pub(crate) fn load_layout(
        folder: &ModelFolder,
        layout: Layout,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let settings = Settings::read(folder, layout)?;
        let mut names = settings.names.clone();
        let transformer = Transformer::load(
            folder,
            &settings.transformer,
            settings.lowercase,
            &mut names,
        )?;
        let mut width = transformer.backbone.hidden();
        let mut heads = Vec::new();
        if layout == Layout::Stanford {
            let weights = Weights::open(folder, "")?;
            let outputs = weights
                .shape("linear.weight")?
                .first()
                .copied()
                .unwrap_or(0);
            let linear = Linear::load(&weights, "linear", width, outputs, false)?;
            heads.push(Dense::plain(linear));
        }
        for path in &settings.heads {
            let head = Dense::load(folder, path, width, &mut names)?;
            width = head.outputs();
            heads.push(head);
        }
        let dim = heads.last().map_or(width, Dense::outputs);
        if dim == 0 {
            return Err(invalid(&folder.path, "its linear head has no outputs"));
        }
        let tokenizer = &transformer.tokenizer;
        let side = |marker: &str, length: usize| -> Result<Side, LoadError> {
            let id = match marker {
                "" => None,
                _ => Some(tokenizer.id(marker).ok_or_else(|| {
                    invalid(
                        tokenizer.path(),
                        format!(
                            "the marker '{marker}' is not one of its tokens; save the model \
                             again with PyLate, which adds it"
                        ),
                    )
                })?),
            };
            Ok(Side {
                marker: id,
                length: length.min(transformer.backbone.longest()),
            })
        };
        let expand = settings
            .expand
            .unwrap_or(!matches!(transformer.backbone, Backbone::ModernBert(_)));
        let expansion = if expand {
            Some(expansion_token(&transformer)?)
        } else {
            None
        };
        let unknown = tokenizer.role_id("unk_token", &["[UNK]", "<unk>"]);
        let mut skip: Vec<u32> = settings
            .skip
            .iter()
            .filter_map(|word| tokenizer.id(word).or(unknown))
            .collect();
        if layout == Layout::Xtr {
            // Padding that stands in the text: a zero vector in the reference.
            skip.extend(tokenizer.id("<pad>"));
        }
        skip.sort_unstable();
        skip.dedup();
        Ok(Self {
            query: side(&settings.query_marker, settings.query_length)?,
            document: side(&settings.document_marker, settings.document_length)?,
            identity: identity(folder, names, dim)?,
            heads,
            expansion,
            attend: settings.attend,
            skip,
            prompt: settings.prompt,
            threads: thread_count(options.threads),
            trained_fold: trained_fold(folder)?,
            transformer,
        })
    }

    fn prepare(&self, text: &str, role: Role, with_spans: bool) -> Result<Prepared, EncodeError> {
        let side = match role {
            Role::Query => self.query,
            Role::Document => self.document,
        };
        let limit = side.length - usize::from(side.marker.is_some());
        let tokenizer = &self.transformer.tokenizer;
        let tokens = if with_spans {
            tokenizer.tokens_with_spans(&self.prompt, text, limit)?
        } else {
            tokenizer.tokens(&self.prompt, text, limit)?
        };
        let (mut ids, mut spans) = (tokens.ids, tokens.spans);
        if let Some(marker) = side.marker {
            let at = ids.len().min(1);
            ids.insert(at, marker);
            spans.insert(at, None);
        }
        let mut visible = ids.len();
        let mut keep = vec![true; ids.len()];
        match (role, self.expansion) {
            (Role::Query, Some(expansion)) => {
                ids.resize(side.length, expansion);
                spans.resize(side.length, None);
                keep.resize(side.length, true);
                if self.attend {
                    visible = side.length;
                }
            }
            (Role::Query, None) => {}
            (Role::Document, _) => {
                for (keep, id) in keep.iter_mut().zip(&ids) {
                    *keep = self.skip.binary_search(id).is_err();
                }
            }
        }
        Ok(Prepared {
            input: Input {
                second: ids.len(),
                gap: 0,
                ids,
                visible,
            },
            spans,
            keep,
        })
    }

    /// The vectors of the rows that stay, for each text of a pack.
    fn finish(&self, pack: &Packed, states: Vec<f32>, keep: &[&[bool]]) -> Vec<Vec<f32>> {
        let mut rows = states;
        for head in &self.heads {
            rows = head.apply(&rows, 1);
        }
        let dim = self.identity.dim;
        kernels::normalize_rows(&mut rows, dim);
        let texts = pack.sequences.iter().zip(keep);
        texts
            .map(|(text, keep)| {
                let rows = rows[text.start * dim..(text.start + text.len) * dim].chunks_exact(dim);
                let kept = rows.zip(*keep).filter(|(_, keep)| **keep);
                kept.flat_map(|(row, _)| row).copied().collect()
            })
            .collect()
    }
}

/// Where a model says how its rows were folded while it learnt.
pub(crate) const TRAINED_FOLD: &str = "crisp.json";

/// How the rows were folded while the model learnt, if they were.
fn trained_fold(folder: &ModelFolder) -> Result<Option<String>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Trained {
        fold: String,
    }
    let Some(Trained { fold }) = folder.json_optional(TRAINED_FOLD)? else {
        return Ok(None);
    };
    match fold.parse::<kernels::fold::Fold>() {
        Ok(_) => Ok(Some(fold)),
        Err(e) => Err(invalid(&folder.file(TRAINED_FOLD), e)),
    }
}

/// The token that fills up queries: the mask token, where there is none (T5,
/// decoders) the end of text, else the padding.
fn expansion_token(transformer: &Transformer) -> Result<u32, LoadError> {
    let tokenizer = &transformer.tokenizer;
    tokenizer
        .role_id("mask_token", &["[MASK]", "<mask>"])
        .or_else(|| tokenizer.role_id("eos_token", &["</s>"]))
        .or_else(|| tokenizer.role_id("pad_token", &["[PAD]", "<pad>"]))
        .ok_or_else(|| {
            invalid(
                tokenizer.path(),
                "it has no mask, end or padding token to fill up queries with",
            )
        })
}

impl Encoder for LateInteractionEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let prepared = texts
            .iter()
            .map(|text| self.prepare(text, role, false))
            .collect::<Result<Vec<_>, _>>()?;
        let (inputs, keep): (Vec<Input>, Vec<Vec<bool>>) =
            prepared.into_iter().map(|p| (p.input, p.keep)).unzip();
        let finish = |places: &[usize], pack: &Packed, states: Vec<f32>| {
            let keep: Vec<&[bool]> = places.iter().map(|&i| keep[i].as_slice()).collect();
            self.finish(pack, states, &keep)
                .into_iter()
                .map(|rows| vectors(&self.identity.name, self.identity.dim, rows))
                .collect()
        };
        run(&self.transformer.backbone, &inputs, self.threads, finish)
    }

    fn spans(&self, text: &str, role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let prepared = self.prepare(text, role, true)?;
        let rows = prepared.spans.into_iter().zip(prepared.keep);
        Ok(rows
            .filter_map(|(span, keep)| keep.then_some(span))
            .collect())
    }

    fn trained_fold(&self) -> Option<&str> {
        self.trained_fold.as_deref()
    }
}
