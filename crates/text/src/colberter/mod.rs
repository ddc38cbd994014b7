//! ColBERTer: a vector for the whole text, and a small one for each of its words
//! (Hofstätter, Khattab, Althammer, Sertkan, Hanbury 2022: Introducing Neural Bag of
//! Whole-Words with ColBERTer).
//!
//! A BERT gives a hidden state `H[t]` (`[h]`) for every token. Then
//!
//! 1. `v = W_r H[0] + b_r`, the vector of the whole text (`[128]`);
//! 2. `T = W_c H + b_c`, small vectors of tokens (`[c]`, `c` = 32);
//! 3. `A_w` = the mean of `T` over all tokens at all places of the word `w` (words
//!    and their ids: `words`);
//! 4. in documents `g_w = relu(w_s . A_w + b_s)` and `A_w <- g_w A_w`; a word of
//!    gate 0 says nothing and is left out;
//! 5. where the checkpoint has a second compression, `A <- W_m A + b_m` (`[1]` in
//!    Uni-ColBERTer).
//!
//! `score = s <v_q, v_d> + (1 - s) sum over query words i of max over document words j
//! of <A_i, A_j>` with one learnt `s` (the logistic function of `score_merger`). Where
//! words must match exactly, the product of words with different ids is 0. Nothing
//! is scaled to length one.
//!
//! As an [`Encoder`] it gives `v` as rows of the width of a word (4 rows of 32, see
//! [`Encoder::whole_text_rows`]), then a row for every word, with ids. Query rows
//! carry the factors `s` and `1 - s`, so that the sum of the products is the score. A
//! model whose words have one number that must match exactly (Uni-ColBERTer) gives the
//! row `v` alone; its words are terms of a `SparseEncoder`, see [`ColberterTerms`].
//!
//! The released checkpoints hold neither the sizes of their backbone nor a tokenizer;
//! both are taken from the model that `bert_model` names: a folder within, another
//! folder, or a name in the hub's cache (the sizes of `distilbert-base-uncased` are
//! known).

mod config;
mod porter;
mod score;
mod terms;
#[cfg(feature = "train")]
pub mod train;
mod words;

use std::ops::Range;

use keyfold_core::{
    EncodeError, Encoder, EncoderIdentity, ModelFolder, ModelFolderError, Role, Vectors,
};

use crate::LoadOptions;
use crate::backbone::{Backbone, Linear, Packed};
use crate::error::{LoadError, invalid};
use crate::load::identity;
use crate::run::{Input, run, thread_count};
use crate::sentence::vectors;
use crate::tokenize::TextTokenizer;
pub use config::ColberterOptions;
pub(crate) use config::MODEL_TYPE;
use config::{Config, Sizes};
use keyfold_core::weights::Weights;
pub use score::{BagOfWords, PairScore, WholeWord};
pub use terms::ColberterTerms;
pub use words::{TextWord, Words, whole_words};
pub(crate) use words::{Word, words};

const CONFIG: &str = "config.json";
const DISTILBERT: &str = "distilbert-base-uncased";
/// [CLS], a word, [SEP].
const SHORTEST: usize = 3;

/// A ColBERTer model.
pub struct ColberterEncoder {
    identity: EncoderIdentity,
    backbone: Backbone,
    tokenizer: TextTokenizer,
    /// Most tokens of a text.
    longest: usize,
    sizes: Sizes,
    retrieval: Linear,
    compressor: Linear,
    gate: Option<Linear>,
    second: Option<Linear>,
    /// What the vector of the whole text counts, 0 to 1.
    merger: f32,
    /// Whether rows stand for words; else for tokens.
    whole_words: bool,
    exact: bool,
    options: ColberterOptions,
    threads: usize,
}

/// A text, ready for the backbone.
struct Prepared {
    input: Input,
    words: Vec<Word>,
}

impl ColberterEncoder {
    /// Loads a checkpoint in the authors' layout.
    ///
    /// # Errors
    /// When the configuration has no sizes of compression, or a file is missing,
    /// damaged or does not fit the others; the error names the file.
    pub fn load(
        folder: &ModelFolder,
        chosen: ColberterOptions,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let path = folder.file(CONFIG);
        let config: Config = folder.json(CONFIG, "it has the sizes of the vectors")?;
        let sizes = config.sizes(&path)?;
        let base = Base::find(folder, &config)?;
        let mut weights = Weights::open(folder, "")?;
        let backbone = match &base.folder {
            Some(base) if base.file(CONFIG).is_file() => Backbone::load(base, "", &mut weights)?,
            _ if base.name == DISTILBERT => Backbone::distilbert_base(&path, &mut weights)?,
            _ => return Err(base.missing(folder, CONFIG, "the sizes of the backbone")),
        };
        let tokenizer_folder = [Some(folder), base.folder.as_ref()]
            .into_iter()
            .flatten()
            .find(|f| f.file("tokenizer.json").is_file())
            .ok_or_else(|| base.missing(folder, "tokenizer.json", "the tokens of the backbone"))?;
        let tokenizer = TextTokenizer::load(tokenizer_folder, "", false)?;
        tokenizer.require(&backbone, &weights)?;
        let longest = backbone
            .longest()
            .min(tokenizer.longest().unwrap_or(usize::MAX));
        if longest < SHORTEST {
            return Err(invalid(
                tokenizer.path(),
                format!("the longest text is {longest} tokens; it must be at least {SHORTEST}"),
            ));
        }
        // The heads stand beside the backbone, without its prefix.
        let heads = Weights::open(folder, "")?;
        let hidden = backbone.hidden();
        let head = |name: &str, inputs, outputs| Linear::load(&heads, name, inputs, outputs, true);
        let merger = heads.tensor("score_merger", &[1])?[0];
        let exact = config.compress_to_exact_mini_mode;
        let dim = match sizes.second.unwrap_or(sizes.token) {
            1 if exact => sizes.whole,
            width => width,
        };
        Ok(Self {
            identity: identify(folder, &base, &tokenizer, &weights, dim, chosen)?,
            longest,
            retrieval: head("compressor_retrieval", hidden, sizes.whole)?,
            compressor: head("compressor", hidden, sizes.token)?,
            gate: match config.use_contextualized_stopwords {
                true => Some(head("stop_word_reducer", sizes.token, 1)?),
                false => None,
            },
            second: match sizes.second {
                Some(outputs) => Some(head("mini_compressor", sizes.token, outputs)?),
                None => None,
            },
            merger: 1.0 / (1.0 + (-merger).exp()),
            whole_words: config.aggregate_unique_ids,
            exact,
            sizes,
            options: chosen,
            threads: thread_count(options.threads),
            backbone,
            tokenizer,
        })
    }

    /// What the vector of the whole text counts in the score, 0 to 1; the words count
    /// the rest.
    pub fn merger(&self) -> f32 {
        self.merger
    }

    /// Length of the vector of a word.
    pub fn word_dim(&self) -> usize {
        self.sizes.second.unwrap_or(self.sizes.token)
    }

    /// Whether the words have one number that must match exactly (Uni-ColBERTer).
    pub fn is_uni(&self) -> bool {
        self.exact && self.word_dim() == 1
    }

    /// Whether documents have gates, which remove words.
    pub fn has_gates(&self) -> bool {
        self.gate.is_some()
    }

    /// The vector of each text and those of all its words, removed ones included.
    ///
    /// # Errors
    /// When a text is too long, or the vectors are not finite.
    pub fn bags(&self, texts: &[&str], role: Role) -> Result<Vec<BagOfWords>, EncodeError> {
        let prepared = texts
            .iter()
            .map(|text| self.prepare(text))
            .collect::<Result<Vec<_>, _>>()?;
        let (inputs, words): (Vec<Input>, Vec<Vec<Word>>) =
            prepared.into_iter().map(|p| (p.input, p.words)).unzip();
        let finish = |places: &[usize], pack: &Packed, states: Vec<f32>| {
            let words: Vec<&[Word]> = places.iter().map(|&i| words[i].as_slice()).collect();
            self.finish(pack, &states, &words, role)
        };
        run(&self.backbone, &inputs, self.threads, finish)
    }

    /// The ids of the different words of a text, in the order in which they come.
    ///
    /// # Errors
    /// When the text is too long.
    pub fn word_ids(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let words = self.prepare(text)?.words;
        Ok(words.iter().map(|word| word.id).collect())
    }

    /// For each token of a text the id of its word, 0 for tokens of none.
    ///
    /// # Errors
    /// When the text is too long.
    pub fn token_words(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let prepared = self.prepare(text)?;
        let mut ids = vec![0; prepared.input.ids.len()];
        for word in &prepared.words {
            word.tokens.iter().for_each(|&row| ids[row] = word.id);
        }
        Ok(ids)
    }

    fn prepare(&self, text: &str) -> Result<Prepared, EncodeError> {
        let cut = self.options.truncate;
        let tokens = self
            .tokenizer
            .raw_tokens(text, self.longest, cut)?
            .map_err(|tokens| EncodeError::TooLong {
                model: self.identity.name.clone(),
                tokens,
                most: self.longest,
            })?;
        let words = if self.whole_words {
            words(text, &tokens.spans, self.options.words.unwrap_or_default())?
        } else {
            let tokens = tokens.ids.iter().zip(&tokens.spans).enumerate();
            tokens
                .map(|(row, (&id, span))| Word {
                    text: self.tokenizer.text(id).unwrap_or_default(),
                    id,
                    span: span.clone().unwrap_or(0..0),
                    tokens: vec![row],
                })
                .collect()
        };
        Ok(Prepared {
            input: Input::text(tokens.ids),
            words,
        })
    }

    /// Compresses, aggregates, gates and compresses again, in this order.
    fn finish(
        &self,
        pack: &Packed,
        states: &[f32],
        words: &[&[Word]],
        role: Role,
    ) -> Result<Vec<BagOfWords>, EncodeError> {
        let (hidden, c) = (self.backbone.hidden(), self.sizes.token);
        let firsts = pack.sequences.iter();
        let firsts: Vec<f32> = firsts
            .flat_map(|text| &states[text.start * hidden..(text.start + 1) * hidden])
            .copied()
            .collect();
        let (mut whole, mut tokens) = (Vec::new(), Vec::new());
        self.retrieval.apply(&firsts, &mut whole, 1);
        self.compressor.apply(states, &mut tokens, 1);
        let texts = pack.sequences.iter().zip(words);
        let texts = texts.zip(whole.chunks_exact(self.sizes.whole));
        texts
            .map(|((text, words), whole)| {
                let tokens = &tokens[text.start * c..(text.start + text.len) * c];
                let (rows, gates) = self.word_rows(tokens, words, role);
                // NaN and infinity are refused, in either part.
                let name = &self.identity.name;
                let whole = vectors(name, self.sizes.whole, whole.to_vec())?.into_vec();
                let rows = vectors(name, self.word_dim(), rows)?;
                Ok(BagOfWords::new(whole, words, &rows, gates.as_deref()))
            })
            .collect()
    }

    /// The vectors of the words of a text, `[words, word_dim]`, and their gates.
    fn word_rows(
        &self,
        tokens: &[f32],
        words: &[Word],
        role: Role,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let c = self.sizes.token;
        let mut rows = vec![0.0; words.len() * c];
        for (row, word) in rows.chunks_exact_mut(c).zip(words) {
            for &token in &word.tokens {
                let token = &tokens[token * c..(token + 1) * c];
                row.iter_mut().zip(token).for_each(|(r, t)| *r += t);
            }
            let n = word.tokens.len() as f32;
            row.iter_mut().for_each(|r| *r /= n);
        }
        let mut gates = None;
        if let (Some(gate), Role::Document) = (&self.gate, role) {
            let mut g = Vec::new();
            gate.apply(&rows, &mut g, 1);
            for (row, g) in rows.chunks_exact_mut(c).zip(&mut g) {
                *g = g.max(0.0);
                row.iter_mut().for_each(|r| *r *= *g);
            }
            gates = Some(g);
        }
        if let Some(second) = &self.second {
            let mut small = Vec::new();
            second.apply(&rows, &mut small, 1);
            rows = small;
        }
        (rows, gates)
    }

    /// Whether a word is indexed.
    fn keeps(&self, word: &WholeWord) -> bool {
        self.options.keep_stopwords || !word.is_removed()
    }

    fn rows(&self, bag: &BagOfWords, role: Role) -> Vectors {
        let dim = self.identity.dim;
        let (whole, words) = match role {
            _ if self.is_uni() => (1.0, 1.0),
            Role::Query => (self.merger, 1.0 - self.merger),
            Role::Document => (1.0, 1.0),
        };
        let mut rows: Vec<f32> = bag.whole.iter().map(|x| x * whole).collect();
        let heads = self.whole_text_rows();
        rows.resize(heads * dim, 0.0);
        let mut ids = vec![0; heads];
        if !self.is_uni() {
            for word in bag.words.iter().filter(|w| self.keeps(w)) {
                rows.extend(word.vector.iter().map(|x| x * words));
                ids.push(word.id);
            }
        }
        // All numbers were finite, and factors of at most 1 keep them so.
        let rows = Vectors::new(dim, rows).expect("whole rows of finite numbers");
        if self.is_uni() {
            rows
        } else {
            rows.with_ids(ids)
        }
    }
}

impl Encoder for ColberterEncoder {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let bags = self.bags(texts, role)?;
        Ok(bags.iter().map(|bag| self.rows(bag, role)).collect())
    }

    /// Of documents all words, those that the model removes included, since only a
    /// forward pass says which these are; see [`Encoder::spans_of_ids`].
    fn spans(&self, text: &str, _role: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let mut spans = vec![None; self.whole_text_rows()];
        if !self.is_uni() {
            let words = self.prepare(text)?.words.into_iter();
            spans.extend(words.map(|word| Some(word.span)));
        }
        Ok(spans)
    }

    fn whole_text_rows(&self) -> usize {
        self.sizes.whole.div_ceil(self.identity.dim)
    }

    fn exact_match(&self) -> bool {
        self.exact && !self.is_uni()
    }

    fn spans_of_ids(
        &self,
        text: &str,
        _role: Role,
        ids: &[u32],
    ) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        let words = self.prepare(text)?.words;
        let span = |id: &u32| {
            let word = words.iter().find(|word| word.id == *id && *id != 0);
            word.map(|word| word.span.clone())
        };
        Ok(ids.iter().map(span).collect())
    }
}

/// The model that a checkpoint was made from.
struct Base {
    name: String,
    folder: Option<ModelFolder>,
}

impl Base {
    /// Where `bert_model` is: a folder within the model's, another folder, the hub's
    /// cache, or nowhere.
    fn find(folder: &ModelFolder, config: &Config) -> Result<Self, LoadError> {
        let Some(name) = config.bert_model.clone().filter(|name| !name.is_empty()) else {
            return Err(invalid(
                &folder.file(CONFIG),
                "bert_model is missing; it names the model whose sizes and tokenizer are used",
            ));
        };
        let plain = !name.contains(['/', '\\']) && name != "..";
        let within = Some(folder.file(&name)).filter(|path| plain && path.is_dir());
        let folder = match within {
            Some(path) => Some(ModelFolder {
                name: name.clone(),
                path,
            }),
            None => ModelFolder::find(&name).ok(),
        };
        Ok(Self { name, folder })
    }

    /// A file that neither the model nor its base has.
    fn missing(&self, folder: &ModelFolder, file: &str, what: &str) -> LoadError {
        let name = &self.name;
        ModelFolderError::MissingFile {
            folder: self.folder.as_ref().unwrap_or(folder).path.clone(),
            file: file.to_owned(),
            why: format!(
                "{what} are those of '{name}' (bert_model in config.json), which is not here. Put \
                 its config.json and tokenizer.json into a folder '{}' beside the weights",
                name.rsplit('/').next().unwrap_or(name)
            ),
        }
        .into()
    }
}

fn identify(
    folder: &ModelFolder,
    base: &Base,
    tokenizer: &TextTokenizer,
    weights: &Weights,
    dim: usize,
    chosen: ColberterOptions,
) -> Result<EncoderIdentity, LoadError> {
    let mut names = vec![CONFIG.to_owned()];
    names.extend_from_slice(tokenizer.names());
    let mut hasher = blake3::Hasher::new();
    if let Some(base) = &base.folder {
        hasher.update(identity(base, names.clone(), dim)?.hash.as_bytes());
    }
    names.extend_from_slice(weights.names());
    let mut identity = identity(folder, names, dim)?;
    hasher.update(identity.hash.as_bytes());
    // What is cut off changes no vector of a text that is not.
    let counts = ColberterOptions {
        truncate: false,
        words: chosen.words.filter(|words| *words != Words::default()),
        ..chosen
    };
    hasher.update(counts.to_string().as_bytes());
    let shown = chosen.to_string();
    identity.hash = hasher.finalize().to_hex().to_string();
    if !shown.is_empty() {
        identity.name = format!("{}#{shown}", folder.name);
    }
    Ok(identity)
}
