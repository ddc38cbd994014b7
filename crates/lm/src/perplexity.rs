//! How well a model foresees a text.
//!
//! ```text
//! perplexity = exp(-mean over t of ln p(x_t | x_<t))
//! ```
//!
//! over windows that do not overlap. Two protocols: all of a window read as a prompt, its
//! second half counted; or the last tokens of each window decoded one by one and counted,
//! which is where selectors and folded caches are at work.

use crate::LmError;
use crate::reading::Reading;
use keyfold_core::{NoProgress, Progress};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The second half of each window, read as a prompt.
    Prompt,
    /// The last so many tokens of each window, decoded one by one.
    Decoded(usize),
}

/// How a text is cut and counted.
#[derive(Debug, Clone)]
pub struct PerplexityOptions {
    /// Tokens of a window, `prefix` included.
    pub context: usize,
    /// Windows at most.
    pub windows: usize,
    /// What is counted.
    pub protocol: Protocol,
    /// What every window begins with (a token for the beginning of texts).
    pub prefix: Vec<u32>,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean.
    pub perplexity: f64,
    /// Mean of `-ln p`.
    pub nats_per_token: f64,
    /// Of that mean, tokens taken as independent.
    pub standard_error: f64,
    /// Tokens that were counted.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

/// Measures a text. `session` makes an empty session for each window. A stop asked for
/// through `progress` ends with the windows so far.
///
/// # Errors
/// When the text is shorter than a window, a setting leaves nothing to count, or a session fails.
pub fn perplexity<R: Reading, E: From<LmError>>(
    session: &mut dyn FnMut() -> Result<R, E>,
    tokens: &[u32],
    options: &PerplexityOptions,
    progress: &dyn Progress,
) -> Result<Perplexity, E> {
    let fresh = options.context.saturating_sub(options.prefix.len());
    let counted = match options.protocol {
        Protocol::Prompt => fresh / 2,
        Protocol::Decoded(n) => n,
    };
    let fail = |what: String| E::from(LmError::Input { what });
    if counted == 0 || counted >= options.context || fresh < 2 {
        return Err(fail(format!(
            "a window of {} tokens of which {counted} are counted leaves nothing to read before them",
            options.context
        )));
    }
    let windows = (tokens.len() / fresh).min(options.windows);
    if windows == 0 {
        let have = tokens.len();
        return Err(fail(format!(
            "the text has {have} tokens; a window needs {fresh}: lower --context"
        )));
    }
    progress.start("reading windows", "windows", Some(windows as u64));
    let mut losses = Vec::with_capacity(windows * counted);
    for window in tokens.chunks_exact(fresh).take(windows) {
        if progress.cancelled() {
            break;
        }
        let text = [options.prefix.as_slice(), window].concat();
        let mut session = session()?;
        let found = match options.protocol {
            Protocol::Prompt => log_probabilities(&mut session, &text, &NoProgress)?,
            Protocol::Decoded(_) => decoded(&mut session, &text, counted)?,
        };
        losses.extend(found[found.len() - counted..].iter().map(|p| -p));
        progress.advance(1);
    }
    progress.finish();
    if losses.is_empty() {
        return Err(E::from(LmError::Stopped));
    }
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n;
    Ok(Perplexity {
        perplexity: mean.exp(),
        nats_per_token: mean,
        standard_error: (variance / n).sqrt(),
        tokens: losses.len(),
        windows: losses.len() / counted,
    })
}

/// `ln p` of every token but the first, given those before it; read as one prompt.
///
/// # Errors
/// As [`Reading::prefill`].
pub fn log_probabilities(
    session: &mut dyn Reading,
    tokens: &[u32],
    progress: &dyn Progress,
) -> Result<Vec<f64>, LmError> {
    let mut found = Vec::with_capacity(tokens.len());
    session.score(tokens, progress, &mut |at, logits| {
        if let Some(&next) = tokens.get(at + 1) {
            found.push(log_probability(logits, next));
        }
    })?;
    Ok(found)
}

/// `ln p` of the last `count` tokens, which are decoded one by one.
fn decoded(session: &mut dyn Reading, tokens: &[u32], count: usize) -> Result<Vec<f64>, LmError> {
    let (prompt, rest) = tokens.split_at(tokens.len() - count);
    let vocab = session.vocab();
    if let Some(bad) = rest.iter().find(|t| **t as usize >= vocab) {
        let what = format!("token {bad} is not one of the model's {vocab}");
        return Err(LmError::Input { what });
    }
    session.prefill(prompt, &NoProgress)?;
    let mut found = Vec::with_capacity(count);
    for (i, &token) in rest.iter().enumerate() {
        found.push(log_probability(session.logits(), token));
        if i + 1 < rest.len() {
            session.step(token)?;
        }
    }
    Ok(found)
}

/// `ln softmax(logits)[token]`.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - highest).exp()).sum();
    f64::from(logits[token as usize] - highest) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_of_known_logits() {
        let logits = [2.0f32.ln(), 0.0, 0.0];
        assert!((log_probability(&logits, 0) - 0.5f64.ln()).abs() < 1e-6);
        assert!((log_probability(&logits, 2) - 0.25f64.ln()).abs() < 1e-6);
        // Far below what f32 can exponentiate.
        assert!((log_probability(&[-500.0, 500.0], 0) + 1000.0).abs() < 1e-6);
    }
}
