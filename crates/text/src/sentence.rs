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
use crate::backbone::Packed;
use crate::dense::Dense;
use crate::error::LoadError;
use crate::load::{Transformer, identity};
use crate::modules::{self, Module};
use crate::pooling::Pooling;
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
    threads: usize,
}

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
            threads: thread_count(options.threads),
        };
        if !encoder.pooling.include_prompt {
            encoder.query_skip = encoder.prompt_tokens(Role::Query, folder)?;
            encoder.document_skip = encoder.prompt_tokens(Role::Document, folder)?;
        }
        Ok(encoder)
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
                let tokens = self.transformer.tokenizer.tokens(prompt, text, limit)?;
                Ok(Input::text(tokens.ids))
            })
            .collect()
    }

    /// One vector per text of a pack, row-major.
    fn pool(&self, pack: &Packed, states: &[f32], skip: usize) -> Vec<f32> {
        let hidden = self.transformer.backbone.hidden();
        let mut pooled = Vec::new();
        for text in &pack.sequences {
            let rows = &states[text.start * hidden..(text.start + text.len) * hidden];
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
        kernels::normalize_rows(&mut pooled, width);
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
            let pooled = self.pool(pack, &states, skip);
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
