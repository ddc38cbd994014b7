//! SentencePiece BPE (Kudo and Richardson, 2018, SentencePiece: A simple and language
//! independent subword tokenizer) from GGUF metadata.
//!
//! Blanks are written as U+2581. Beginning with single characters, the neighbours whose
//! joined piece has the best score are joined, until no two join to a piece. A character
//! without a piece becomes the tokens of its bytes, `<0xNN>`. Costs `n log n` for `n`
//! characters.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{SpecialTokens, Vocabulary, token_kind};
use crate::config::Fields;
use crate::error::LmError;
use crate::file::Gguf;

const BLANK: &str = "\u{2581}";

/// A vocabulary of scored pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    tokens: Vec<Token>,
    /// Ids of what text can become: not of control tokens.
    pieces: HashMap<String, u32>,
    /// Ids of control tokens.
    controls: HashMap<String, u32>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    add_space_prefix: bool,
    /// Finds tokens that are never cut, without the control tokens and with them.
    plain: Marks,
    parsing: Marks,
}

#[derive(Debug)]
struct Token {
    text: String,
    score: f32,
    kind: i32,
}

/// Tokens to be found in a text as they are.
#[derive(Debug)]
struct Marks {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

impl Marks {
    fn new(tokens: &[Token], kinds: &[i32]) -> Result<Self, aho_corasick::BuildError> {
        let wanted = |token: &Token| kinds.contains(&token.kind) && !token.text.is_empty();
        let found = (0..).zip(tokens).filter(|(_, token)| wanted(token));
        let (ids, texts): (Vec<u32>, Vec<&str>) = found.map(|(id, t)| (id, &*t.text)).unzip();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)?;
        Ok(Self { finder, ids })
    }
}

impl Pieces {
    pub(super) fn read(
        file: &Gguf,
        fields: &Fields,
        vocabulary: &Vocabulary,
    ) -> Result<Self, LmError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let missing = || fields.wrong(SCORES, "is missing");
        let scores = file.numbers(SCORES)?.ok_or_else(missing)?;
        if scores.len() != vocabulary.tokens.len() {
            let what = format!(
                "has {} entries for {} tokens",
                scores.len(),
                vocabulary.tokens.len()
            );
            return Err(fields.wrong(SCORES, what));
        }
        if scores.iter().any(|score| score.is_nan()) {
            return Err(fields.wrong(SCORES, "holds NaN"));
        }
        let unknown = fields.token("tokenizer.ggml.unknown_token_id")?;
        let space = fields.flag("tokenizer.ggml.add_space_prefix")?;
        let tokens = vocabulary
            .iter()
            .zip(scores)
            .map(|((_, text, kind), score)| Token {
                text: text.to_owned(),
                score,
                kind,
            });
        Self::new(tokens.collect(), unknown, space.unwrap_or(true)).map_err(|what| {
            LmError::Tokenizer {
                path: vocabulary.path.to_owned(),
                what,
            }
        })
    }

    fn new(
        tokens: Vec<Token>,
        unknown: Option<u32>,
        add_space_prefix: bool,
    ) -> Result<Self, String> {
        let mut pieces = HashMap::new();
        let mut controls = HashMap::new();
        let mut bytes = Box::new([None; 256]);
        let mut named_unknown = None;
        for (id, token) in (0u32..).zip(&tokens) {
            match token.kind {
                token_kind::CONTROL => {
                    controls.insert(token.text.clone(), id);
                }
                token_kind::UNKNOWN => named_unknown = named_unknown.or(Some(id)),
                token_kind::BYTE => {
                    let byte = byte_of(&token.text).ok_or_else(|| {
                        format!("byte token '{}' is not written <0xNN>", token.text)
                    })?;
                    bytes[usize::from(byte)] = Some(id);
                }
                _ => {
                    if let Some(other) = pieces.insert(token.text.clone(), id) {
                        return Err(format!(
                            "token '{}' is there twice, as {other} and {id}",
                            token.text
                        ));
                    }
                }
            }
        }
        let unknown = unknown
            .filter(|&id| (id as usize) < tokens.len())
            .or(named_unknown);
        if unknown.is_none() && bytes.iter().any(Option::is_none) {
            return Err("it has neither a token for the unknown nor one for every byte".to_owned());
        }
        let marks = |kinds: &[i32]| Marks::new(&tokens, kinds).map_err(|e| e.to_string());
        Ok(Self {
            plain: marks(&[token_kind::USER_DEFINED])?,
            parsing: marks(&[token_kind::USER_DEFINED, token_kind::CONTROL])?,
            tokens,
            pieces,
            controls,
            bytes,
            unknown,
            add_space_prefix,
        })
    }

    pub(super) fn encode(&self, text: &str, special: SpecialTokens) -> Vec<u32> {
        let marks = match special {
            SpecialTokens::Plain => &self.plain,
            SpecialTokens::Parse => &self.parsing,
        };
        let mut ids = Vec::new();
        let mut at = 0;
        // A word at the beginning, and after a control token, is written like one in a
        // sentence: with a blank before it.
        let mut begins = true;
        for found in marks.finder.find_iter(text) {
            let id = marks.ids[found.pattern().as_usize()];
            let control = self.tokens[id as usize].kind == token_kind::CONTROL;
            if found.start() == 0 && !control && self.add_space_prefix {
                self.encode_symbol(BLANK, &mut ids);
            }
            self.encode_part(&text[at..found.start()], begins, &mut ids);
            ids.push(id);
            begins = control;
            at = found.end();
        }
        self.encode_part(&text[at..], begins, &mut ids);
        ids
    }

    /// Text without marked tokens.
    fn encode_part(&self, text: &str, begins: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if begins && self.add_space_prefix {
            BLANK
        } else {
            ""
        };
        let text = prefix.to_owned() + &text.replace(' ', BLANK);
        for symbol in self.join(&text) {
            self.encode_symbol(symbol, ids);
        }
    }

    /// A piece, or a character that is none.
    fn encode_symbol(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some(&id) = self.pieces.get(symbol) {
            ids.push(id);
            return;
        }
        let bytes: Option<Vec<u32>> = symbol.bytes().map(|b| self.bytes[usize::from(b)]).collect();
        match bytes {
            Some(bytes) => ids.extend(bytes),
            None => ids.extend(self.unknown),
        }
    }

    /// Cuts a text into the pieces that joining by score gives.
    fn join<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (from, c))| Symbol {
                from,
                to: from + c.len_utf8(),
                before: i.checked_sub(1),
                after: Some(i + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let mut queue = BinaryHeap::new();
        let offer = |symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<Pair>| {
            let Some(right) = symbols[left].after else {
                return;
            };
            let (from, to) = (symbols[left].from, symbols[right].to);
            if let Some(&id) = self.pieces.get(&text[from..to]) {
                let score = self.tokens[id as usize].score;
                queue.push(Pair {
                    score,
                    left,
                    len: to - from,
                });
            }
        };
        for left in 0..symbols.len() {
            offer(&symbols, left, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let left = symbols[pair.left];
            // One of the two was joined with another meanwhile.
            let Some(right) = left.after.filter(|_| left.to > left.from) else {
                continue;
            };
            if symbols[right].to - left.from != pair.len {
                continue;
            }
            symbols[pair.left].to = symbols[right].to;
            symbols[pair.left].after = symbols[right].after;
            if let Some(after) = symbols[right].after {
                symbols[after].before = Some(pair.left);
            }
            symbols[right].to = symbols[right].from;
            symbols[right].after = None;
            if let Some(before) = left.before {
                offer(&symbols, before, &mut queue);
            }
            offer(&symbols, pair.left, &mut queue);
        }
        let alive = symbols.iter().filter(|s| s.to > s.from);
        alive.map(|s| &text[s.from..s.to]).collect()
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for token in ids.iter().filter_map(|&id| self.tokens.get(id as usize)) {
            match token.kind {
                token_kind::CONTROL => {}
                token_kind::BYTE => bytes.extend(byte_of(&token.text)),
                token_kind::USER_DEFINED => bytes.extend(token.text.as_bytes()),
                _ => bytes.extend(token.text.replace(BLANK, " ").as_bytes()),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = match self.add_space_prefix {
            true => text.strip_prefix(' ').unwrap_or(&text),
            false => &text,
        };
        text.to_owned()
    }

    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.tokens.get(id as usize).map(|token| token.text.clone())
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        let known = self
            .pieces
            .get(token)
            .or_else(|| self.controls.get(token))
            .copied();
        known.or_else(|| self.bytes[usize::from(byte_of(token)?)])
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A part of the text, in a list of those that are left.
#[derive(Clone, Copy)]
struct Symbol {
    from: usize,
    to: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that join to a piece of `len` bytes.
struct Pair {
    score: f32,
    left: usize,
    len: usize,
}

impl Ord for Pair {
    /// The best score first, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score
            .then(other.left.cmp(&self.left))
            .then(self.len.cmp(&other.len))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests;
