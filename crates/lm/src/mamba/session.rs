//! A text so far, and the state that a model keeps of it.

use std::sync::Arc;
use std::time::Instant;

use keyfold_core::Progress;
use keyfold_kernels::Team;

use super::long_mamba::LongMamba;
use super::model::{Buffers, MambaLm, MambaState, StepFilter, Unchanged};
use crate::LmError;
use crate::reading::Reading;
use crate::session::{Report, Session};

/// Tokens of a prompt that go through the layers together.
const CHUNK: usize = 512;

/// Rows of logits that are made at once when those of every token are wanted.
const LOGIT_ROWS: usize = 32;

/// Takes the place of a token and the logits after it.
type EachLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// A text so far.
pub struct MambaSession {
    lm: Arc<MambaLm>,
    team: Arc<Team>,
    tokens: Vec<u32>,
    state: MambaState,
    long: Option<Arc<LongMamba>>,
    report: Report,
    b: Buffers,
}

impl MambaSession {
    /// An empty text.
    pub fn new(lm: Arc<MambaLm>, team: Arc<Team>) -> Self {
        Self {
            state: lm.empty_state(),
            lm,
            team,
            tokens: Vec::new(),
            long: None,
            report: Report::default(),
            b: Buffers::default(),
        }
    }

    /// Reads prompts as [`LongMamba`] does, whose calibration belongs to the model.
    #[must_use]
    pub fn with_long(mut self, long: Option<Arc<LongMamba>>) -> Self {
        self.long = long;
        self
    }

    /// The model.
    pub fn lm(&self) -> &Arc<MambaLm> {
        &self.lm
    }

    /// What is kept of the text.
    pub fn state(&self) -> &MambaState {
        &self.state
    }

    /// Takes a saved text.
    pub(super) fn restore(&mut self, tokens: Vec<u32>, state: MambaState, logits: Vec<f32>) {
        self.tokens = tokens;
        self.state = state;
        self.b.logits = logits;
    }

    /// Reads a prompt and shows `filter` the step sizes of every layer, which it may change.
    ///
    /// # Errors
    /// As [`Reading::prefill`].
    pub fn observe(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        filter: &mut dyn StepFilter,
    ) -> Result<(), LmError> {
        self.read(tokens, progress, None, Some(filter))
    }

    fn read(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        mut each: Option<EachLogits>,
        mut filter: Option<&mut dyn StepFilter>,
    ) -> Result<(), LmError> {
        if tokens.is_empty() {
            let what = "the prompt is empty; give at least one token".into();
            return Err(LmError::Input { what });
        }
        self.check(tokens)?;
        let long = self.long.clone();
        // A saved beginning is a part of the prompt.
        let length = self.tokens.len() + tokens.len();
        let mut thresholds = long.as_ref().map(|long| long.filter(length));
        progress.start("reading the prompt", "tokens", Some(tokens.len() as u64));
        let start = Instant::now();
        let together = match &thresholds {
            Some(thresholds) if filter.is_none() && thresholds.whole() => tokens.len(),
            _ => CHUNK,
        };
        let last = tokens.len().div_ceil(together) - 1;
        for (i, part) in tokens.chunks(together).enumerate() {
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            let filter: &mut dyn StepFilter = match (&mut filter, &mut thresholds) {
                (Some(filter), _) => &mut **filter,
                (None, Some(thresholds)) => thresholds,
                (None, None) => &mut Unchanged,
            };
            self.lm
                .pass(part, &mut self.state, &mut self.b, filter, &self.team);
            self.tokens.extend_from_slice(part);
            if let Some(each) = &mut each {
                for first in (0..part.len()).step_by(LOGIT_ROWS) {
                    let rows = first..(first + LOGIT_ROWS).min(part.len());
                    self.lm.logits(rows.clone(), &mut self.b, &self.team);
                    let logits = self.b.logits.chunks_exact(self.lm.config().vocab_size);
                    for (row, logits) in rows.zip(logits) {
                        each(i * together + row, logits);
                    }
                }
            }
            if i == last {
                let at = part.len() - 1;
                self.lm.logits(at..at + 1, &mut self.b, &self.team);
            }
            self.report.prompt_tokens += part.len() as u64;
            progress.advance(part.len() as u64);
        }
        self.report.prompt_time += start.elapsed();
        progress.finish();
        self.check_finite()
    }

    /// Refuses to go on with what is not a number: a state never loses it.
    fn check_finite(&self) -> Result<(), LmError> {
        let what = match self.b.odd_steps {
            Some(layer) => format!(
                "layer {layer} gives time steps that are not finite numbers: the weights are damaged"
            ),
            None if self.b.logits.iter().all(|l| l.is_finite()) => return Ok(()),
            None => "the model gives numbers that are not finite: its weights are damaged".into(),
        };
        Err(LmError::Input { what })
    }

    /// Whether `tokens` can follow.
    fn check(&self, tokens: &[u32]) -> Result<(), LmError> {
        let vocab = self.lm.config().vocab_size;
        match tokens.iter().find(|t| **t as usize >= vocab) {
            None => Ok(()),
            Some(bad) => Err(LmError::Input {
                what: format!("token {bad} is not one of the model's {vocab}"),
            }),
        }
    }
}

impl Reading for MambaSession {
    fn vocab(&self) -> usize {
        self.lm.config().vocab_size
    }

    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn logits(&self) -> &[f32] {
        &self.b.logits
    }

    fn logits_and_tokens(&mut self) -> (&mut [f32], &[u32]) {
        (&mut self.b.logits, &self.tokens)
    }

    fn prefill(&mut self, tokens: &[u32], progress: &dyn Progress) -> Result<(), LmError> {
        self.read(tokens, progress, None, None)
    }

    fn score(
        &mut self,
        tokens: &[u32],
        progress: &dyn Progress,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LmError> {
        self.read(tokens, progress, Some(each), None)
    }

    fn step(&mut self, token: u32) -> Result<(), LmError> {
        self.check(&[token])?;
        let start = Instant::now();
        self.lm.pass(
            &[token],
            &mut self.state,
            &mut self.b,
            &mut Unchanged,
            &self.team,
        );
        self.lm.logits(0..1, &mut self.b, &self.team);
        self.tokens.push(token);
        self.report.decoded_tokens += 1;
        self.report.decode_time += start.elapsed();
        self.report.weight_bytes += self.lm.weight_bytes();
        self.report.row_bytes += self.state.bytes();
        self.check_finite()
    }

    fn context_left(&self) -> Option<usize> {
        None
    }

    fn report(&self) -> Report {
        self.report
    }

    fn cache_bytes(&self) -> u64 {
        self.state.bytes()
    }

    fn decoder_session(&mut self) -> Option<&mut Session> {
        None
    }
}
