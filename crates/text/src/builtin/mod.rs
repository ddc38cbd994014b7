//! The encoder that comes with Keyfold, so that nothing has to be downloaded.
//!
//! It gives one key per word piece: a static vector from a table of bytes,
//! mixed lightly with its neighbours and with the whole text, and
//! scaled to length one. Word pieces without a letter or digit give no key. In a
//! query the key of a word piece has the length
//! `ln((N + 1) / (n + 1)) / ln(N + 1)`, where `n` of the `N` texts that it was
//! trained on hold the piece: rare words say more about what is looked for
//! (inverse document frequency; Sparck Jones 1972, A statistical interpretation of
//! term specificity and its application in retrieval). The
//! weights are distilled from a sentence encoder by `keyfold train builtin` (see
//! [`crate::distill`] and docs/model.md).

pub(crate) mod mixer;
pub(crate) mod words;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use half::f16;
use keyfold_core::{EncodeError, Encoder, EncoderIdentity, ModelFolder, Role, Vectors};
use keyfold_kernels as kernels;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tokenizers::Tokenizer;

use crate::error::{LoadError, invalid};
use crate::run::thread_count;
use crate::tokenize::quietly;
pub use mixer::MixerConfig;
use mixer::{Mixer, Space};
use words::Kept;

/// What the encoder that is part of this library is called.
pub const BUILTIN: &str = "builtin";
/// Value of `model_type` in `config.json` that names this kind of encoder.
pub(crate) const MODEL_TYPE: &str = "keyfold_token_mixer";
/// Tokens that one thread works on at a time: the activations stay in its cache.
const PACK: usize = 256;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";

/// An encoder of this kind, from the binary or from a folder.
pub struct TokenMixerEncoder {
    identity: EncoderIdentity,
    tokenizer: Tokenizer,
    /// Words that were read before, for each thread that is not at work; none
    /// where words do not stand for themselves.
    kept: Option<Mutex<Vec<Kept>>>,
    /// Which token ids give a key.
    is_key: Vec<bool>,
    table: TokenTable,
    /// Length of a token's key in a query, `[vocab]`.
    query_weight: Vec<f32>,
    mixer: Mixer,
    threads: usize,
}

/// The token vectors as signed bytes `[vocab, hidden]` with a scale per row.
pub(crate) struct TokenTable {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f16>,
}

impl TokenTable {
    /// The table that is nearest to `rows` `[vocab, dim]`.
    pub(crate) fn quantize(rows: &[f32], dim: usize) -> Self {
        let mut codes = Vec::with_capacity(rows.len());
        let mut scales = Vec::with_capacity(rows.len() / dim);
        for row in rows.chunks_exact(dim) {
            let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let scale = f16::from_f32(largest / 127.0);
            let inverse = match scale.to_f32() {
                s if s > 0.0 => 1.0 / s,
                _ => 0.0,
            };
            codes.extend(
                row.iter()
                    .map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8),
            );
            scales.push(scale);
        }
        Self { codes, scales }
    }

    /// All vectors, `[vocab, dim]`.
    pub(crate) fn rows(&self, dim: usize) -> Vec<f32> {
        let ids: Vec<u32> = (0..self.scales.len() as u32).collect();
        let mut rows = Vec::with_capacity(self.codes.len());
        self.look_up(&ids, dim, &mut rows);
        rows
    }

    /// Appends the vectors of `ids` to `out`.
    fn look_up(&self, ids: &[u32], dim: usize, out: &mut Vec<f32>) {
        for &id in ids {
            let id = id as usize;
            let scale = self.scales[id].to_f32();
            let row = &self.codes[id * dim..(id + 1) * dim];
            out.extend(row.iter().map(|&c| f32::from(c) * scale));
        }
    }
}

/// Loads the encoder that is part of this library; `threads` 0 means all of the
/// machine's.
///
/// # Errors
/// None on a sound build: the model is compiled in.
pub fn load(threads: usize) -> Result<TokenMixerEncoder, LoadError> {
    TokenMixerEncoder::from_files(BUILTIN, Path::new("(built in)"), &FILES, threads)
}

const FILES: Files<'_> = Files {
    config: include_bytes!("../../model/config.json"),
    weights: include_bytes!("../../model/model.safetensors"),
    tokenizer: include_bytes!("../../model/tokenizer.json"),
};

/// The weights in a folder, or the built-in ones, and the tokenizer's file.
pub(crate) fn weights(folder: Option<&ModelFolder>) -> Result<(Weights, Vec<u8>), LoadError> {
    let (path, config, weights, tokenizer) = match folder {
        None => (
            Path::new("(built in)"),
            FILES.config.to_vec(),
            FILES.weights.to_vec(),
            FILES.tokenizer.to_vec(),
        ),
        Some(folder) => (
            folder.path.as_path(),
            folder.read(CONFIG, "it gives the shape of the network")?,
            folder.read(WEIGHTS, "it holds the weights")?,
            folder.read(TOKENIZER, "it turns text into tokens")?,
        ),
    };
    let config = read_config(path, &config)?;
    let weights =
        read_weights(&config, &weights).map_err(|what| invalid(&path.join(WEIGHTS), what))?;
    Ok((weights, tokenizer))
}

fn read_config(folder: &Path, bytes: &[u8]) -> Result<MixerConfig, LoadError> {
    let config: MixerConfig =
        serde_json::from_slice(bytes).map_err(|e| invalid(&folder.join(CONFIG), e.to_string()))?;
    check(&config).map_err(|what| invalid(&folder.join(CONFIG), what))?;
    Ok(config)
}

/// The contents of a model folder of this kind.
struct Files<'a> {
    config: &'a [u8],
    weights: &'a [u8],
    tokenizer: &'a [u8],
}

impl TokenMixerEncoder {
    /// Loads an encoder that `keyfold train builtin` has written.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not fit the others; the error
    /// names the file.
    pub fn load(folder: &ModelFolder, threads: usize) -> Result<Self, LoadError> {
        let files = Files {
            config: &folder.read(CONFIG, "it gives the shape of the network")?,
            weights: &folder.read(WEIGHTS, "it holds the weights")?,
            tokenizer: &folder.read(TOKENIZER, "it turns text into tokens")?,
        };
        Self::from_files(&folder.name, &folder.path, &files, threads)
    }

    fn from_files(
        name: &str,
        folder: &Path,
        files: &Files<'_>,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let config = read_config(folder, files.config)?;
        let Weights {
            table,
            query_weight,
            mixer,
        } = read_weights(&config, files.weights)
            .map_err(|what| invalid(&folder.join(WEIGHTS), what))?;
        let tokenizer = read_tokenizer(files.tokenizer)
            .map_err(|what| invalid(&folder.join(TOKENIZER), what))?;
        let is_key = keys(&tokenizer, config.vocab_size)
            .map_err(|what| invalid(&folder.join(TOKENIZER), what))?;
        let mut hasher = blake3::Hasher::new();
        for bytes in [files.config, files.weights, files.tokenizer] {
            hasher.update(blake3::hash(bytes).as_bytes());
        }
        Ok(Self {
            identity: EncoderIdentity {
                name: name.to_owned(),
                hash: hasher.finalize().to_hex().to_string(),
                dim: config.output_size,
            },
            kept: words::reads_words_alone(&tokenizer).then(Mutex::default),
            tokenizer,
            is_key,
            table,
            query_weight,
            mixer,
            threads: thread_count(threads),
        })
    }

    /// Token ids of a text and the bytes that they stand for.
    fn tokens(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), EncodeError> {
        let encoding = quietly(|| self.tokenizer.encode(text, false));
        let encoding = encoding.map_err(|reason| self.tokenizer_failed(reason))?;
        let limit = self.mixer.config.max_length;
        let ids = encoding.get_ids().iter().copied().take(limit).collect();
        let offsets = encoding.get_offsets().iter().take(limit);
        Ok((ids, offsets.map(|&(from, to)| from..to).collect()))
    }

    /// Token ids of a text.
    fn ids(&self, text: &str, kept: &mut Kept) -> Result<Vec<u32>, EncodeError> {
        let limit = self.mixer.config.max_length;
        let ids = match &self.kept {
            Some(_) => kept.ids(&self.tokenizer, text, limit),
            None => words::pieces(&self.tokenizer, text),
        };
        let mut ids = ids.map_err(|reason| self.tokenizer_failed(reason))?;
        ids.truncate(limit);
        Ok(ids)
    }

    fn tokenizer_failed(&self, reason: String) -> EncodeError {
        EncodeError::Tokenizer {
            model: self.identity.name.clone(),
            reason,
        }
    }

    /// Takes the words that another thread left, or none.
    fn take_kept(&self) -> Kept {
        let shelf = self.kept.as_ref().and_then(|shelf| shelf.lock().ok());
        shelf.and_then(|mut shelf| shelf.pop()).unwrap_or_default()
    }

    /// Leaves them for the next thread.
    fn put_kept(&self, kept: Kept) {
        if let Some(mut shelf) = self.kept.as_ref().and_then(|shelf| shelf.lock().ok()) {
            shelf.push(kept);
        }
    }

    /// Appends the keys of `texts` to `done`.
    fn encode_pack(
        &self,
        texts: &[Vec<u32>],
        role: Role,
        space: &mut Space,
        done: &mut Vec<Vectors>,
    ) -> Result<(), EncodeError> {
        let (h, o) = (self.mixer.config.hidden_size, self.mixer.config.output_size);
        space.x.clear();
        let mut starts = vec![0];
        for ids in texts {
            self.table.look_up(ids, h, &mut space.x);
            starts.push(space.x.len() / h);
        }
        self.mixer.forward(space, &starts, None);
        kernels::normalize_rows(&mut space.y, o);
        if role == Role::Query {
            for (id, row) in texts.iter().flatten().zip(space.y.chunks_exact_mut(o)) {
                let weight = self.query_weight[*id as usize];
                row.iter_mut().for_each(|x| *x *= weight);
            }
        }
        for (ids, text) in texts.iter().zip(starts.windows(2)) {
            let rows = space.y[text[0] * o..text[1] * o].chunks_exact(o);
            let mut keys = Vec::with_capacity(rows.len() * o);
            for (id, row) in ids.iter().zip(rows) {
                if self.is_key[*id as usize] {
                    keys.extend_from_slice(row);
                }
            }
            let vectors = Vectors::new(o, keys).map_err(|source| EncodeError::BadOutput {
                model: self.identity.name.clone(),
                source,
            })?;
            done.push(vectors);
        }
        Ok(())
    }
}

impl Encoder for TokenMixerEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let share = texts.len().div_ceil(self.threads).max(1);
        let work = |texts: &[&str]| -> Result<Vec<Vectors>, EncodeError> {
            let mut done = Vec::with_capacity(texts.len());
            let mut space = Space::default();
            let mut pack = Vec::new();
            let mut kept = self.take_kept();
            let mut size = 0;
            for text in texts {
                let ids = self.ids(text, &mut kept)?;
                size += ids.len();
                pack.push(ids);
                if size >= PACK {
                    self.encode_pack(&pack, role, &mut space, &mut done)?;
                    pack.clear();
                    size = 0;
                }
            }
            self.encode_pack(&pack, role, &mut space, &mut done)?;
            self.put_kept(kept);
            Ok(done)
        };
        if self.threads == 1 || texts.len() < 2 {
            return work(texts);
        }
        std::thread::scope(|scope| {
            let handles: Vec<_> = texts
                .chunks(share)
                .map(|texts| scope.spawn(move || work(texts)))
                .collect();
            let mut all = Vec::with_capacity(texts.len());
            for handle in handles {
                all.append(
                    &mut handle
                        .join()
                        .unwrap_or_else(|e| std::panic::resume_unwind(e))?,
                );
            }
            Ok(all)
        })
    }

    fn spans(&self, text: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let (ids, spans) = self.tokens(text)?;
        let keys = ids.iter().zip(spans);
        Ok(keys
            .filter(|(id, _)| self.is_key[**id as usize])
            .map(|(_, span)| text.get(span.clone()).map(|_| span))
            .collect())
    }
}

/// Bounds that no weights of a real model break, so that sizes multiply safely.
fn check(config: &MixerConfig) -> Result<(), String> {
    let sizes = [
        ("vocab_size", config.vocab_size, 1 << 22),
        ("hidden_size", config.hidden_size, 1 << 13),
        ("intermediate_size", config.intermediate_size, 1 << 14),
        ("output_size", config.output_size, 1 << 12),
        ("max_length", config.max_length, 1 << 20),
        ("kernel_size", config.kernel_size, 255),
        ("num_blocks", config.num_blocks, 64),
    ];
    for (name, value, most) in sizes {
        if value == 0 || value > most {
            return Err(format!("{name} is {value}; it must be from 1 to {most}"));
        }
    }
    if config.kernel_size.is_multiple_of(2) {
        return Err(format!(
            "kernel_size is {}; it must be odd",
            config.kernel_size
        ));
    }
    Ok(())
}

pub(crate) fn read_tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    let mut tokenizer = quietly(|| Tokenizer::from_bytes(bytes))
        .map_err(|reason| format!("it is not a tokenizer: {reason}"))?;
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Which ids have a letter or a digit in their text, and are no special token.
pub(crate) fn keys(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<bool>, String> {
    let special = tokenizer.get_added_tokens_decoder();
    let mut keys = vec![false; vocab_size];
    for (text, id) in tokenizer.get_vocab(true) {
        let Some(key) = keys.get_mut(id as usize) else {
            return Err(format!(
                "token '{text}' has the number {id}, but the model has vectors for {vocab_size}; \
                 the files do not belong together"
            ));
        };
        let is_special = special.get(&id).is_some_and(|t| t.special);
        *key = !is_special && text.chars().any(char::is_alphanumeric);
    }
    Ok(keys)
}

/// What `model.safetensors` holds.
pub(crate) struct Weights {
    pub(crate) table: TokenTable,
    pub(crate) query_weight: Vec<f32>,
    pub(crate) mixer: Mixer,
}

fn read_weights(config: &MixerConfig, bytes: &[u8]) -> Result<Weights, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("it is damaged: {e}"))?;
    let (v, h) = (config.vocab_size, config.hidden_size);
    let codes = tensor(&file, "embeddings.weight", &[v, h], Dtype::I8)?;
    let scales = tensor(&file, "embeddings.scale", &[v], Dtype::F16)?;
    let table = TokenTable {
        codes: codes.iter().map(|&b| b as i8).collect(),
        scales: halves(scales).collect(),
    };
    let query_weight = tensor(&file, "query.weight", &[v], Dtype::F16)?;
    let query_weight: Vec<f32> = halves(query_weight).map(f16::to_f32).collect();
    if query_weight.iter().any(|&w| !(w.is_finite() && w >= 0.0)) {
        return Err("tensor 'query.weight' holds numbers that are no lengths".to_owned());
    }
    let mut mixer = Mixer::zeros(config);
    for (name, shape, data) in mixer.tensors_mut() {
        let bytes = tensor(&file, &name, &shape, Dtype::F16)?;
        data.clear();
        data.extend(halves(bytes).map(f16::to_f32));
        if data.iter().any(|x| !x.is_finite()) {
            return Err(format!("tensor '{name}' holds numbers that are not finite"));
        }
    }
    if table.scales.iter().any(|s| !s.is_finite()) {
        return Err("tensor 'embeddings.scale' holds numbers that are not finite".to_owned());
    }
    Ok(Weights {
        table,
        query_weight,
        mixer,
    })
}

fn tensor<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    shape: &[usize],
    dtype: Dtype,
) -> Result<&'a [u8], String> {
    let view = file
        .tensor(name)
        .map_err(|_| format!("it has no tensor '{name}'"))?;
    if view.shape() != shape || view.dtype() != dtype {
        return Err(format!(
            "tensor '{name}' is {:?} {:?}, but the configuration asks for {dtype:?} {shape:?}",
            view.dtype(),
            view.shape()
        ));
    }
    Ok(view.data())
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = f16> + '_ {
    bytes
        .chunks_exact(2)
        .map(|b| f16::from_le_bytes([b[0], b[1]]))
}

fn halved(numbers: &[f32]) -> Vec<u8> {
    let half = |&x: &f32| f16::from_f32(x).to_le_bytes();
    numbers.iter().flat_map(half).collect()
}

/// The weights as the bytes of a safetensors file.
pub(crate) fn write_weights(weights: &mut Weights) -> Result<Vec<u8>, String> {
    let Weights {
        table,
        query_weight,
        mixer,
    } = weights;
    let (v, h) = (mixer.config.vocab_size, mixer.config.hidden_size);
    let mut all: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = vec![
        (
            "embeddings.weight".to_owned(),
            vec![v, h],
            Dtype::I8,
            table.codes.iter().map(|&c| c as u8).collect(),
        ),
        (
            "embeddings.scale".to_owned(),
            vec![v],
            Dtype::F16,
            table.scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        ),
        (
            "query.weight".to_owned(),
            vec![v],
            Dtype::F16,
            halved(query_weight),
        ),
    ];
    for (name, shape, data) in mixer.tensors_mut() {
        all.push((name, shape, Dtype::F16, halved(data)));
    }
    let views = all
        .iter()
        .map(|(name, shape, dtype, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect::<Result<HashMap<_, _>, _>>()
        .map_err(|e| e.to_string())?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}
