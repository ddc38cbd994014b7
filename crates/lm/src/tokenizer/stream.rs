//! Text of tokens that come one by one.

use super::Tokenizer;

/// What stands for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';
/// A character has four bytes at most, so only as many replacements at the end as this may
/// still become one.
const PENDING: usize = 3;
/// Ids that are held back at most; so many without a whole character are not text.
const MOST_HELD: usize = 64;
/// Ids of the context that are decoded with the first tokens: what is before a token
/// decides whether a blank begins it.
const CONTEXT: usize = 4;

/// Turns ids into text as they come, never showing a part of a character.
///
/// Several tokens may make one character, and what a token is written as may depend on
/// the one before it. So a few ids are decoded together: the text of `ids[..read]` is
/// known to be whole, and what the later ones add to it is new.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// How many of the ids are shown in whole.
    read: usize,
    /// How many bytes of the text of all ids were shown.
    shown: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, context: &[u32]) -> Self {
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        let shown = tokenizer.decode(&ids).len();
        Self {
            tokenizer,
            read: ids.len(),
            shown,
            ids,
        }
    }

    /// What the next id adds to the text: nothing while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids);
        let pending = text.chars().rev().take_while(|&c| c == REPLACEMENT).count();
        let held = match self.ids.len() - self.read {
            0..MOST_HELD => pending.min(PENDING) * REPLACEMENT.len_utf8(),
            _ => 0,
        };
        let whole = text.len() - held;
        let new = text.get(self.shown..whole).unwrap_or_default().to_owned();
        self.shown = self.shown.max(whole);
        if held == 0 {
            self.ids.drain(..self.read);
            self.read = self.ids.len();
            self.shown = self.tokenizer.decode(&self.ids).len();
        }
        new
    }

    /// What is left at the end: characters that were never completed, as U+FFFD.
    pub fn finish(self) -> String {
        let text = self.tokenizer.decode(&self.ids);
        text.get(self.shown..).unwrap_or_default().to_owned()
    }
}
