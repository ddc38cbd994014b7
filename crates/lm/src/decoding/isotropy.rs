//! How evenly a model's hidden states point in all directions.
//!
//! ```text
//! isotropy = 1 - (sum over texts of sum over i != j of cos(h_i, h_j)) / (sum over texts of n (n - 1))
//! ```
//!
//! with `h` the last hidden states, after the final norm, of texts cut at 256 tokens. Yixuan
//! Su and Nigel Collier (2023): Contrastive Search Is What You Need For Neural Text
//! Generation. Near 0 all states point one way (GPT-2 small: 0.10), and the penalty of
//! [contrastive search](super::ContrastiveSearch) says little.

use keyfold_core::{NoProgress, Progress};

use crate::LmError;
use crate::session::Session;

/// Tokens of a text that count.
pub const MOST_TOKENS: usize = 256;

/// Below this contrastive search is not advised.
pub const LEAST: f64 = 0.3;

/// The isotropy of a model on texts; `session` makes an empty session of at least
/// [`MOST_TOKENS`] for each. A stop asked for through `progress` ends with the texts so far.
///
/// # Errors
/// When no text has two tokens, or a session fails.
pub fn isotropy<E: From<LmError>>(
    session: &mut dyn FnMut() -> Result<Session, E>,
    texts: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<f64, E> {
    progress.start("reading texts", "texts", Some(texts.len() as u64));
    let (mut sum, mut pairs) = (0.0, 0);
    for text in texts {
        if progress.cancelled() {
            break;
        }
        let text = &text[..text.len().min(MOST_TOKENS)];
        if text.len() > 1 {
            let mut session = session()?;
            session.keep_hidden(true);
            session.prefill(text, &NoProgress)?;
            let (of_text, count) =
                cosine_sum(session.hidden(), session.hidden().len() / text.len());
            sum += of_text;
            pairs += count;
        }
        progress.advance(1);
    }
    progress.finish();
    if pairs == 0 {
        return Err(E::from(match progress.cancelled() {
            true => LmError::Stopped,
            false => LmError::Input {
                what: "no text has two tokens, so no two hidden states can be compared".into(),
            },
        }));
    }
    Ok(1.0 - sum / pairs as f64)
}

/// Of the hidden states `[n, hidden]` of one text the sum of cosines of all pairs of
/// different positions, and the number of pairs.
fn cosine_sum(states: &[f32], hidden: usize) -> (f64, u64) {
    let n = states.len() / hidden.max(1);
    let mut sum = vec![0.0f64; hidden];
    let mut own = 0.0;
    for row in states.chunks_exact(hidden) {
        let norm = f64::from(keyfold_kernels::norm(row)).max(f64::MIN_POSITIVE);
        let mut length = 0.0;
        for (s, &x) in sum.iter_mut().zip(row) {
            let unit = f64::from(x) / norm;
            *s += unit;
            length += unit * unit;
        }
        own += length;
    }
    // The square of a sum of vectors is the sum over all pairs, each with itself included.
    let all: f64 = sum.iter().map(|s| s * s).sum();
    (all - own, (n * n.saturating_sub(1)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isotropy_of_known_directions() {
        // Two equal directions and one opposite: cosines 1, -1, -1, twice each.
        let (sum, pairs) = cosine_sum(&[1.0, 0.0, 2.0, 0.0, -3.0, 0.0], 2);
        assert!((sum + 2.0).abs() < 1e-9);
        assert_eq!(pairs, 6);
    }
}
