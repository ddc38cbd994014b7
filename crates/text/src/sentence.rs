//! Encoders that give one vector for a whole text: the sentence-transformers
//! layout (Reimers and Gurevych 2019).
//!
//! `modules.json` lists the parts: a transformer, a pooling, and linear heads
//! and normalisation where the model has them. A folder without that list is a
//! bare transformer and gets the mean of its tokens. Whatever the list says,
//! the vector is scaled to length one at the end, so that its dot product is
//! the cosine.

use std::collections::HashMap;
use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, ModelFolder, Role, Vectors};
use keyfold_kernels as kernels;
use serde::Deserialize;

use crate::LoadOptions;
use crate::backbone::{Backbone, Packed};
use crate::dense::Dense;
use crate::error::LoadError;
use crate::load::{Transformer, identity};
use crate::modules::{self, Module};
use crate::pooling::{Pool, Pooling};
use crate::run::{Input, run, thread_count};

/// A text encoder with one vector per text.
pub struct SentenceEncoder {
    identity: EncoderIdentity,
    transformer: Transformer,
    pooling: Pooling,
    heads: Vec<Head>,
    query_prompt: String,
    document_prompt: String,
    /// Tokens of each prompt that pooling leaves out.
    query_skip: usize,
    document_skip: usize,
    /// The token whose vector is the text's, where texts are put into a sentence with it.
    mask: Option<u32>,
    threads: usize,
}

/// What stands around a text whose vector is that of the mask.
const BEFORE: &str = "This sentence : \"";
const AFTER: [&str; 2] = ["\" means ", " . "];
/// Fewest tokens in which the sentence with the mask still has some of the text.
const LEAST_IN_SENTENCE: usize = 24;

enum Head {
    Dense(Dense),
    Normalize,
}

/// The part of `config_sentence_transformers.json` that says what is put before a text.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Prompts {
    #[serde(default)]
    prompts: Option<HashMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

impl Prompts {
    /// The default prompt, or nothing.
    pub(crate) fn default_prompt(&self) -> String {
        let name = self.default_prompt_name.as_deref();
        name.and_then(|name| self.named(&[name]))
            .unwrap_or_default()
    }

    /// The first of these prompts that is there and not empty.
    fn named(&self, names: &[&str]) -> Option<String> {
        let prompts = self.prompts.as_ref()?;
        names
            .iter()
            .filter_map(|name| prompts.get(*name)?.clone())
            .find(|prompt| !prompt.is_empty())
    }

    /// What stands before a text: the prompt of its side, else the default one.
    fn of(&self, role: Role) -> String {
        let of_side = match role {
            Role::Query => self.named(&["query"]),
            Role::Document => self.named(&["document", "passage", "corpus"]),
        };
        of_side.unwrap_or_else(|| self.default_prompt())
    }
}

pub(crate) const SENTENCE_CONFIG: &str = "config_sentence_transformers.json";

impl SentenceEncoder {
    /// Loads a folder in the sentence-transformers layout, or a bare transformer.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not fit the others; the error
    /// names the file.
    pub fn load(folder: &ModelFolder, options: &LoadOptions) -> Result<Self, LoadError> {
        let list = modules::read(folder)?;
        let mut names = Vec::new();
        if list.is_some() {
            names.push(modules::MODULES.to_owned());
        }
        let list = list.unwrap_or_else(|| {
            vec![Module::Transformer {
                path: String::new(),
            }]
        });
        let (first, rest) = list
            .split_first()
            .map_or((None, &[][..]), |(f, r)| (Some(f), r));
        let path = match first {
            Some(Module::Transformer { path }) => path.as_str(),
            _ => "",
        };
        let transformer = Transformer::load(folder, path, false, &mut names)?;
        let hidden = transformer.backbone.hidden();
        let mut pooling = None;
        let mut heads = Vec::new();
        let mut width = hidden;
        for module in rest {
            match module {
                Module::Pooling { path } if pooling.is_none() => {
                    let loaded = Pooling::load(folder, path, &mut names)?;
                    width = loaded.outputs(hidden);
                    pooling = Some(loaded);
                }
                Module::Dense { path } if pooling.is_some() => {
                    let dense = Dense::load(folder, path, width, &mut names)?;
                    width = dense.outputs();
                    heads.push(Head::Dense(dense));
                }
                Module::Normalize if pooling.is_some() => heads.push(Head::Normalize),
                _ => {
                    return Err(crate::error::invalid(
                        &folder.file(modules::MODULES),
                        "its modules are in an order that is not known: a Transformer, one \
                         Pooling, then Dense and Normalize",
                    ));
                }
            }
        }
        let prompts: Prompts = folder.json_optional(SENTENCE_CONFIG)?.unwrap_or_default();
        names.push(SENTENCE_CONFIG.to_owned());
        let mut encoder = Self {
            identity: identity(folder, names, width)?,
            pooling: pooling.unwrap_or_else(Pooling::mean),
            transformer,
            heads,
            query_prompt: prompts.of(Role::Query),
            document_prompt: prompts.of(Role::Document),
            query_skip: 0,
            document_skip: 0,
            mask: None,
            threads: thread_count(options.threads),
        };
        if !encoder.pooling.include_prompt {
            encoder.query_skip = encoder.prompt_tokens(Role::Query, folder)?;
            encoder.document_skip = encoder.prompt_tokens(Role::Document, folder)?;
        }
        if encoder.pooling.in_sentence {
            encoder.mask = Some(encoder.find_mask()?);
        }
        Ok(encoder)
    }

    /// The same transformer with another way to one vector and nothing after it.
    ///
    /// # Errors
    /// For [`Pool::Prompt`], when the tokenizer has no mask or the longest text is too short.
    pub fn with_pool(mut self, pool: Pool) -> Result<Self, LoadError> {
        self.pooling = Pooling::of(pool);
        self.heads.clear();
        (self.query_skip, self.document_skip) = (0, 0);
        self.mask = match pool {
            Pool::Prompt => Some(self.find_mask()?),
            Pool::Cls | Pool::Mean => None,
        };
        self.identity.dim = self.transformer.backbone.hidden();
        let changed = format!("{} {}", self.identity.hash, pool.name());
        self.identity.hash = blake3::hash(changed.as_bytes()).to_hex().to_string();
        Ok(self)
    }

    /// The same with at most `most` tokens of a text, special ones included; it must
    /// be at least 3.
    pub fn with_longest(mut self, most: usize) -> Self {
        self.transformer.longest = self.transformer.longest.min(most.max(3));
        let changed = format!("{} longest {most}", self.identity.hash);
        self.identity.hash = blake3::hash(changed.as_bytes()).to_hex().to_string();
        self
    }

    /// One vector per text as it is pooled, not scaled to length one and without the
    /// model's prompts: `[texts, dim]`.
    ///
    /// # Errors
    /// When the tokenizer fails or the vectors are not finite.
    pub fn pooled(&self, texts: &[&str]) -> Result<Vec<f32>, EncodeError> {
        let inputs = self.inputs("", texts)?;
        let (name, dim) = (&self.identity.name, self.identity.dim);
        let finish = |_: &[usize], pack: &Packed, states: Vec<f32>| {
            let pooled = self.pool(pack, &states, 0);
            let rows = pooled.chunks_exact(dim);
            rows.map(|row| vectors(name, dim, row.to_vec())).collect()
        };
        let rows = run(&self.transformer.backbone, &inputs, self.threads, finish)?;
        Ok(rows.into_iter().flat_map(Vectors::into_vec).collect())
    }

    /// How a layer of an encoder of Hydra mixes the positions of a text: the ids of its tokens, and
    /// the matrix `[tokens, tokens]` of one of its heads. Row `i` says how much of every position
    /// goes into position `i`.
    ///
    /// # Errors
    /// When the encoder is no Hydra, there is no such layer or head, or the text has more than
    /// 2,048 tokens.
    pub fn mixing(
        &self,
        text: &str,
        layer: usize,
        head: usize,
    ) -> Result<(Vec<u32>, Vec<f32>), LoadError> {
        let path = self.transformer.tokenizer.path();
        let refused = |what: String| crate::error::invalid(path, what);
        let Backbone::Hydra(hydra) = &self.transformer.backbone else {
            return Err(refused(
                "only encoders of Hydra mix by matrices that can be shown".into(),
            ));
        };
        let inputs = self
            .inputs("", &[text])
            .map_err(|e| refused(e.to_string()))?;
        let ids: Vec<u32> = inputs.into_iter().flat_map(|i| i.ids).collect();
        let matrix = hydra.matrix(&ids, layer, head);
        let matrix = matrix.map_err(|e| refused(e.to_string()))?;
        Ok((ids, matrix))
    }

    /// The ids of a text's tokens as the transformer gets them.
    #[cfg(feature = "train")]
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let inputs = self.inputs("", &[text])?;
        Ok(inputs.into_iter().flat_map(|i| i.ids).collect())
    }

    /// The id of a word that is one token, as it stands within a sentence.
    #[cfg(feature = "train")]
    pub(crate) fn word_id(&self, word: &str) -> Result<Option<u32>, EncodeError> {
        let tokenizer = &self.transformer.tokenizer;
        let ids = tokenizer.bare(&format!(" {word}"))?;
        let unknown = tokenizer.role_id("unk_token", &["[UNK]", "<unk>"]);
        Ok(match ids[..] {
            [id] if Some(id) != unknown => Some(id),
            _ => None,
        })
    }

    fn find_mask(&self) -> Result<u32, LoadError> {
        let tokenizer = &self.transformer.tokenizer;
        let error = |what: &str| crate::error::invalid(tokenizer.path(), what);
        if self.transformer.longest < LEAST_IN_SENTENCE {
            return Err(error(
                "its longest text is too short for pooling by prompt; choose cls or mean",
            ));
        }
        let mask = tokenizer.role_id("mask_token", &["[MASK]", "<mask>"]);
        mask.ok_or_else(|| error("it has no mask token for pooling by prompt; choose cls or mean"))
    }

    /// Ids and last hidden states `[tokens, hidden]` of each text's tokens, the
    /// special ones included, as they come out of the transformer: not pooled,
    /// not normalised, without a prompt.
    ///
    /// # Errors
    /// When the tokenizer fails or the states are not finite.
    pub fn token_states(&self, texts: &[&str]) -> Result<Vec<(Vec<u32>, Vectors)>, EncodeError> {
        let inputs = self.inputs("", texts)?;
        let hidden = self.transformer.backbone.hidden();
        let name = &self.identity.name;
        run(
            &self.transformer.backbone,
            &inputs,
            self.threads,
            |places, pack, states| {
                let texts = places.iter().zip(&pack.sequences);
                texts
                    .map(|(&i, text)| {
                        let rows = &states[text.start * hidden..(text.start + text.len) * hidden];
                        Ok((inputs[i].ids.clone(), vectors(name, hidden, rows.to_vec())?))
                    })
                    .collect()
            },
        )
    }

    /// The text of every token, by id.
    pub fn vocabulary(&self) -> Vec<String> {
        self.transformer.tokenizer.vocabulary()
    }

    fn prompt(&self, role: Role) -> (&str, usize) {
        match role {
            Role::Query => (&self.query_prompt, self.query_skip),
            Role::Document => (&self.document_prompt, self.document_skip),
        }
    }

    /// How many tokens the prompt alone makes, without a special one at the end.
    fn prompt_tokens(&self, role: Role, folder: &ModelFolder) -> Result<usize, LoadError> {
        let (prompt, _) = self.prompt(role);
        if prompt.is_empty() {
            return Ok(0);
        }
        let tokenizer = &self.transformer.tokenizer;
        let tokens = tokenizer
            .tokens_with_spans("", prompt, self.transformer.longest)
            .map_err(|e| crate::error::invalid(&folder.file("tokenizer.json"), e.to_string()))?;
        let special = tokens.spans.last().is_some_and(Option::is_none);
        Ok(tokens.ids.len() - usize::from(special))
    }

    fn inputs(&self, prompt: &str, texts: &[&str]) -> Result<Vec<Input>, EncodeError> {
        texts
            .iter()
            .map(|text| {
                let limit = self.transformer.longest;
                let tokenizer = &self.transformer.tokenizer;
                let Some(mask) = self.mask else {
                    return Ok(Input::text(tokenizer.tokens(prompt, text, limit)?.ids));
                };
                let mask = tokenizer.text(mask).unwrap_or_default();
                let (before, after) = (format!("{BEFORE}{prompt}"), AFTER.join(&mask));
                let ids = tokenizer.between(&before, text, &after, limit)?;
                Ok(Input::text(ids))
            })
            .collect()
    }

    /// One vector per text of a pack, row-major, of any length.
    fn pool(&self, pack: &Packed, states: &[f32], skip: usize) -> Vec<f32> {
        let hidden = self.transformer.backbone.hidden();
        let mut pooled = Vec::new();
        for text in &pack.sequences {
            let mut rows = &states[text.start * hidden..(text.start + text.len) * hidden];
            if let Some(mask) = self.mask {
                let ids = &pack.ids[text.start..text.start + text.len];
                // The last one: the text may have masks of its own.
                let at = ids.iter().rposition(|&id| id == mask).unwrap_or(0);
                rows = &rows[at * hidden..(at + 1) * hidden];
            }
            self.pooling.apply(rows, hidden, skip, &mut pooled);
        }
        let mut width = self.pooling.outputs(hidden);
        for head in &self.heads {
            match head {
                Head::Dense(dense) => {
                    pooled = dense.apply(&pooled, 1);
                    width = dense.outputs();
                }
                Head::Normalize => kernels::normalize_rows(&mut pooled, width),
            }
        }
        pooled
    }
}

/// Wraps numbers; NaN and infinity become an error that names the model.
pub(crate) fn vectors(model: &str, dim: usize, data: Vec<f32>) -> Result<Vectors, EncodeError> {
    Vectors::new(dim, data).map_err(|source| EncodeError::BadOutput {
        model: model.to_owned(),
        source,
    })
}

impl Encoder for SentenceEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let (prompt, skip) = self.prompt(role);
        let inputs = self.inputs(prompt, texts)?;
        let dim = self.identity.dim;
        let finish = |_: &[usize], pack: &Packed, states: Vec<f32>| {
            let mut pooled = self.pool(pack, &states, skip);
            kernels::normalize_rows(&mut pooled, dim);
            let rows = pooled.chunks_exact(dim);
            rows.map(|row| vectors(&self.identity.name, dim, row.to_vec()))
                .collect()
        };
        run(&self.transformer.backbone, &inputs, self.threads, finish)
    }

    fn spans(&self, _text: &str, _role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        Ok(vec![None])
    }
}
