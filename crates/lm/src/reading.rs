//! What every text that a model reads can do, whether the model keeps a cache or a state.

use keyfold_core::Progress;

use crate::LmError;
use crate::session::{Report, Session};

/// A text so far: read on, step by step, with the logits of what may come next.
pub trait Reading {
    /// Tokens that the model knows.
    fn vocab(&self) -> usize;

    /// The tokens so far.
    fn tokens(&self) -> &[u32];

    /// Logits of the token after the last.
    fn logits(&self) -> &[f32];

    /// The same, to be changed in place by a sampler, and the tokens so far.
    fn logits_and_tokens(&mut self) -> (&mut [f32], &[u32]);

    /// Reads a prompt; [`logits`](Self::logits) are then those of the token after it.
    ///
    /// # Errors
    /// When the prompt is empty, holds a token that the model does not know or does not fit,
    /// or when the user asked to stop (what was read stays).
    fn prefill(&mut self, tokens: &[u32], progress: &dyn Progress) -> Result<(), LmError>;

    /// Reads a prompt and hands over the logits after every token of it (with the token's
    /// place in `tokens`).
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    fn score(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LmError>;

    /// Reads one more token.
    ///
    /// # Errors
    /// When the model does not know the token or there is no room for it.
    fn step(&mut self, token: u32) -> Result<(), LmError>;

    /// For how many tokens there is room; none where that has no end.
    fn context_left(&self) -> Option<usize>;

    /// What was done so far.
    fn report(&self) -> Report;

    /// Bytes that are kept of the text.
    fn cache_bytes(&self) -> u64;

    /// The session of a decoder with attention, for what only such a one can do.
    fn decoder_session(&mut self) -> Option<&mut Session>;
}

impl Reading for Session {
    fn vocab(&self) -> usize {
        self.decoder().config().dims.vocab
    }

    fn tokens(&self) -> &[u32] {
        self.tokens()
    }

    fn logits(&self) -> &[f32] {
        self.logits()
    }

    fn logits_and_tokens(&mut self) -> (&mut [f32], &[u32]) {
        self.logits_and_tokens()
    }

    fn prefill(&mut self, tokens: &[u32], progress: &dyn Progress) -> Result<(), LmError> {
        self.prefill(tokens, progress)
    }

    fn score(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LmError> {
        self.score(tokens, progress, each)
    }

    fn step(&mut self, token: u32) -> Result<(), LmError> {
        self.step(token)
    }

    fn context_left(&self) -> Option<usize> {
        self.context_left()
    }

    fn report(&self) -> Report {
        self.report()
    }

    fn cache_bytes(&self) -> u64 {
        self.cache_bytes()
    }

    fn decoder_session(&mut self) -> Option<&mut Session> {
        Some(self)
    }
}
