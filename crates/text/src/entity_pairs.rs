//! Pairs as the cross-encoders of ANNCUR read them (Yadav et al., EMNLP 2022): a mention
//! in its context, and an entity with a title.
//!
//! ```text
//! [CLS] left [unused0] mention [unused1] right [SEP]    at positions from 0
//! title [unused2] description [SEP]                      at positions from 128
//! ```
//!
//! Both parts have at most 128 tokens; of the context, the nearest to the mention stay.
//! A query is a mention without context, unless it has the two marks of a mention
//! itself; of a document, the first line is the title, or what stands before its own
//! `[unused2]`.

use keyfold_core::{EncodeError, ModelFolder};

use crate::error::{LoadError, invalid};
use crate::run::Input;
use crate::tokenize::TextTokenizer;

/// Tokens of each part, special ones included.
const LONGEST: usize = 128;
const START: &str = "[unused0]";
const END: &str = "[unused1]";
const TITLE: &str = "[unused2]";

/// The tokens that pairs are made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    first: u32,
    last: u32,
    start: u32,
    end: u32,
    title: u32,
}

impl Marks {
    pub(crate) fn find(folder: &ModelFolder, tokenizer: &TextTokenizer) -> Result<Self, LoadError> {
        let id = |token: &str| {
            tokenizer.id(token).ok_or_else(|| {
                invalid(
                    tokenizer.path(),
                    format!(
                        "it has no token '{token}', which the weights in {} mark entities with; \
                         that of bert-base-uncased has it",
                        folder.path.display()
                    ),
                )
            })
        };
        Ok(Self {
            first: id("[CLS]")?,
            last: id("[SEP]")?,
            start: id(START)?,
            end: id(END)?,
            title: id(TITLE)?,
        })
    }

    /// The positions that a pair takes at most.
    pub(crate) fn positions() -> usize {
        2 * LONGEST - 1
    }

    pub(crate) fn input(
        &self,
        tokenizer: &TextTokenizer,
        query: &str,
        document: &str,
    ) -> Result<Input, EncodeError> {
        let (left, mention, right) = marked(query);
        let mut ids = vec![self.first];
        let mut mention = tokenizer.bare(mention)?;
        // Without its marks, and those at both ends.
        mention.truncate(LONGEST - 4);
        let left = tokenizer.bare(left)?;
        let mut right = tokenizer.bare(right)?;
        let (of_left, of_right) = quotas(mention.len() + 2, left.len(), right.len());
        ids.extend_from_slice(&left[left.len() - of_left.min(left.len())..]);
        ids.push(self.start);
        ids.append(&mut mention);
        ids.push(self.end);
        right.truncate(of_right);
        ids.append(&mut right);
        ids.push(self.last);

        let second = ids.len();
        let (title, text) = titled(document);
        let mut title = tokenizer.bare(title)?;
        // Its mark, and the last token.
        title.truncate(LONGEST - 3);
        ids.append(&mut title);
        ids.push(self.title);
        ids.extend(tokenizer.bare(text)?);
        ids.truncate(second + LONGEST - 2);
        ids.push(self.last);
        Ok(Input {
            visible: ids.len(),
            ids,
            second,
            gap: LONGEST - second,
        })
    }

    /// `<(h_start + h_end) / 2, h_title>` of a pair's states (`[tokens, hidden]`).
    pub(crate) fn score(&self, ids: &[u32], second: usize, states: &[f32], hidden: usize) -> f32 {
        let state = |at: Option<usize>| {
            let at = at.unwrap_or(0) * hidden;
            &states[at..at + hidden]
        };
        let find = |mark| ids.iter().position(|&id| id == mark);
        let title = ids[second..].iter().position(|&id| id == self.title);
        let title = state(title.map(|at| second + at));
        let sides = state(find(self.start)).iter().zip(state(find(self.end)));
        let pairs = sides.zip(title);
        pairs.map(|((a, b), t)| (a + b) / 2.0 * t).sum()
    }
}

/// How many tokens of the context stay on the left and on the right of `mention`
/// tokens, where each side has so many; what one side leaves, the other gets.
fn quotas(mention: usize, left: usize, right: usize) -> (usize, usize) {
    let of_left = ((LONGEST - mention) / 2).saturating_sub(1);
    let of_right = LONGEST - 2 - mention - of_left;
    if left <= of_left {
        (of_left, of_right + of_left - left)
    } else {
        (of_left + of_right.saturating_sub(right), of_right)
    }
}

/// Left context, mention and right context of a query.
fn marked(query: &str) -> (&str, &str, &str) {
    if let Some((left, rest)) = query.split_once(START)
        && let Some((mention, right)) = rest.split_once(END)
    {
        return (left, mention, right);
    }
    ("", query, "")
}

/// Title and text of a document.
fn titled(document: &str) -> (&str, &str) {
    let parts = document
        .split_once(TITLE)
        .or_else(|| document.split_once('\n'));
    parts.unwrap_or((document, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_gives_way_to_the_mention() {
        assert_eq!(quotas(4, 200, 200), (61, 61));
        // What one side lacks, the other gets.
        assert_eq!(quotas(4, 10, 200), (61, 112));
        assert_eq!(quotas(4, 200, 10), (112, 61));
        for mention in 2..=126 {
            for (left, right) in [(0, 0), (500, 500), (3, 500), (500, 3)] {
                let (of_left, of_right) = quotas(mention, left, right);
                let all = mention + left.min(of_left) + right.min(of_right) + 2;
                assert!(all <= LONGEST, "{mention} {left} {right}");
            }
        }
        assert_eq!(marked("a [unused0] b [unused1] c"), ("a ", " b ", " c"));
        assert_eq!(marked("a [unused1] b"), ("", "a [unused1] b", ""));
        assert_eq!(titled("one\ntwo\nthree"), ("one", "two\nthree"));
        assert_eq!(titled("one [unused2] two"), ("one ", " two"));
        assert_eq!(titled("one"), ("one", ""));
    }
}
