//! A training as a learner whose state can be saved.

use super::gradients::weights_mut;
use super::{Losses, SaeConfig, SaeMethod, Training};
use crate::error::check_rows;
use crate::learner::{Learner, nothing_yet};
use crate::store::{Numbers, Saved, State};
use crate::{Coder, Dictionary, DictionaryError};

impl Training {
    /// Goes on from what was saved.
    ///
    /// # Errors
    /// When the saved state is of another method or does not fit its settings.
    pub fn resume(saved: &Saved) -> Result<Self, DictionaryError> {
        let config: SaeConfig = saved.settings("sae")?;
        let d_in = saved.f32s("d_in", 1)?[0] as usize;
        let mut this = Self::new(config, d_in)?;
        for (name, to) in [("first", &mut this.first), ("second", &mut this.second)] {
            let names = to
                .parts()
                .map(|(part, x)| (format!("{name}.{part}"), x.len()));
            for ((name, len), to) in names.into_iter().zip(to.parts_mut()) {
                *to = saved.f32s(&name, len)?;
            }
        }
        let names = this
            .first
            .parts()
            .map(|(part, x)| (format!("weight.{part}"), x.len()));
        for ((name, len), to) in names.into_iter().zip(weights_mut(&mut this.sae)) {
            if let Some(to) = to {
                *to = saved.f32s(&name, len)?;
            }
        }
        this.unused = saved.f32s("unused", this.sae.d_sae)?;
        this.threshold = saved.f64s("threshold", 1)?[0];
        if !this.config.resample_steps.is_empty() {
            this.resampled = saved.f64s("resampled", 1)?[0] as u64;
        }
        this.batches.waiting = saved.waiting(d_in)?;
        (this.steps, this.rows) = (saved.steps(), saved.rows());
        Ok(this)
    }
}

impl Learner for Training {
    fn partial_fit(&mut self, rows: &[f32]) -> Result<(), DictionaryError> {
        if self.config.architecture == SaeMethod::Attribution {
            return Err(DictionaryError::settings(
                "attribution learns from rows and gradients together, by its steps",
            ));
        }
        if self.config.d_out != 0 {
            return Err(DictionaryError::settings(
                "a transcoder learns from rows and targets together, by its steps",
            ));
        }
        let width = self.sae.d_in;
        check_rows(rows, width)?;
        let mut batches = std::mem::take(&mut self.batches);
        let done = batches.push(rows, width, |batch| self.step(batch, batch).map(|_| ()));
        self.batches = batches;
        done
    }

    fn flush(&mut self) -> Result<(), DictionaryError> {
        let waiting = std::mem::take(&mut self.batches.waiting);
        match waiting.is_empty() {
            true => Ok(()),
            false => self.step(&waiting, &waiting).map(|_| ()),
        }
    }

    /// The decoder as a plain dictionary; the encoder's codes come from [`Training::sae`].
    fn dictionary(&self) -> Result<Dictionary, DictionaryError> {
        if self.steps == 0 {
            return Err(nothing_yet());
        }
        let sae = self.sae();
        Ok(Dictionary {
            components: sae.w_dec,
            width: sae.d_out,
            mean: sae.b_dec,
            coder: Coder::TopK {
                k: self.config.k.clamp(1, sae.d_sae),
            },
        })
    }

    fn state(&self) -> State {
        let mut state = State::new("sae", &self.config, self.steps, self.rows);
        for (name, moments) in [("first", &self.first), ("second", &self.second)] {
            for (part, x) in moments.parts() {
                state = state.with(&format!("{name}.{part}"), Numbers::F32(x.clone()));
            }
        }
        let mut sae = self.sae.clone();
        let names = self.first.parts().map(|(part, _)| part);
        for (part, x) in names.into_iter().zip(weights_mut(&mut sae)) {
            if let Some(x) = x {
                let x = Numbers::F32(std::mem::take(x));
                state = state.with(&format!("weight.{part}"), x);
            }
        }
        if !self.config.resample_steps.is_empty() {
            let resampled = Numbers::F64(vec![self.resampled as f64]);
            state = state.with("resampled", resampled);
        }
        state
            .with("unused", Numbers::F32(self.unused.clone()))
            .with("threshold", Numbers::F64(vec![self.threshold]))
            .with("d_in", Numbers::F32(vec![self.sae.d_in as f32]))
            .with("waiting", Numbers::F32(self.batches.waiting.clone()))
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn status(&self) -> String {
        let Losses {
            unexplained,
            l0,
            dead,
            ..
        } = self.losses;
        format!("unexplained {unexplained:.4}, {l0:.1} codes, {dead} dead")
    }
}
