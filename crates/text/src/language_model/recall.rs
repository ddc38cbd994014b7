//! Records `abcXYZ;`, a key in small letters and a value in capitals, and later questions
//! `?abcXYZ;`: what a model can answer only by looking back. Between records may stand words
//! that do not matter. Nothing stands between key and value: with a sign there, the letters
//! of the key would have to be carried over it, which takes many times as long to learn.
//!
//! A question repeats its record, so that from its second letter on every byte of it can be
//! known; these bytes alone count in the loss, for the others are drawn at random. Windows
//! hold 2 to 64 records, few as often as many, and then only questions: few are easy to tell
//! apart, and a model that looks back among few soon does so among many.

use std::ops::Range;

use keyfold_nn::random;

/// Bytes of a key and of a value.
const KEY: usize = 3;
const VALUE: usize = 3;

/// The text of a record.
fn record_text(key: &[u8], value: &[u8]) -> Vec<u8> {
    [key, value, b";"].concat()
}

/// Makes one window of records and questions.
pub struct Recall {
    seed: u64,
    drawn: u64,
    answers: Vec<Range<usize>>,
}

impl Recall {
    /// A window that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: 0,
            answers: Vec::new(),
        }
    }

    fn below(&mut self, count: usize) -> usize {
        self.drawn += 1;
        (random::unit(self.seed, self.drawn) * count as f64) as usize
    }

    fn word(&mut self, len: usize, from: &[u8]) -> Vec<u8> {
        (0..len).map(|_| from[self.below(from.len())]).collect()
    }

    /// `bytes` bytes as tokens. A third of what follows the first record are questions, and
    /// all after the last.
    pub fn tokens(&mut self, bytes: usize) -> Vec<u32> {
        let mut text: Vec<u8> = Vec::with_capacity(bytes + 32);
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let most = 2usize << self.below(6);
        while text.len() < bytes {
            let ask = records.len() >= most || (!records.is_empty() && self.below(3) == 0);
            if ask {
                let which = self.below(records.len());
                let (key, value) = records[which].clone();
                text.push(b'?');
                let from = text.len() + KEY;
                text.extend(record_text(&key, &value));
                self.answers.push(from..from + VALUE);
            } else {
                let key = self.word(KEY, b"abcdefghijklmnopqrstuvwxyz");
                let value = self.word(VALUE, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ");
                text.extend(record_text(&key, &value));
                records.push((key, value));
            }
            if self.below(4) == 0 {
                let len = 2 + self.below(8);
                text.extend(self.word(len, b"etaoinshr "));
                text.push(b'\n');
            }
        }
        text.truncate(bytes);
        self.answers.retain(|answer| answer.end <= bytes);
        text.into_iter().map(u32::from).collect()
    }

    /// The bytes of what [`tokens`](Self::tokens) gave that can be known from those before
    /// them: of every answered question all but its mark and its first letter, up to the value's
    /// last.
    pub fn known(&self) -> impl Iterator<Item = usize> {
        self.answers
            .iter()
            .flat_map(|answer| answer.start - KEY + 1..answer.end)
    }

    /// Where the bytes of the answers lie in what [`tokens`](Self::tokens) gave.
    pub fn answers(&self) -> impl Iterator<Item = Range<usize>> {
        self.answers.iter().cloned()
    }
}
