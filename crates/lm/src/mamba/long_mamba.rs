//! LongMamba: prompts far longer than a Mamba model was trained on, without training.
//!
//! Z. Ye et al., 2025, LongMamba: Enhancing Mamba's Long Context Capabilities via
//! Training-Free Receptive Field Enlargement.
//!
//! Over `S` tokens the memory of a head fades by `exp(A ΣΔ)`. Heads that still hold what
//! they read after the length of training are *global*; on a longer text they lose it, since
//! the sum grows with `S`. In those heads tokens with small steps are passed over
//! (`Δ = 0`), so many that the sum is about that of the training length again:
//!
//! ```text
//! global       exp(A Σ_{t<=L0} Δ_t) > θ                    on a calibration text of L0 tokens
//! threshold(S) the step after those that, taken from the largest on, sum to Σ_{t<=L0} Δ_t,
//!              among L0 sorted steps stretched to S
//! Δ_t = Δ_t where Δ_t > threshold(S), else 0               in global heads, prompts alone
//! ```
//!
//! Before that, the `clamp` percent of largest steps of the calibration text are set to the
//! least of them, so that a few outliers do not use up the sum; this also keeps at least about
//! that share of tokens however long the text is, so that the sums agree only while `S / L0`
//! is moderate. The cost is a comparison for each token and global head.
//!
//! Mamba has no heads: there a channel stands for one, with the slowest of its decays (the
//! paper speaks of channels and state numbers, its code of heads alone; this is our reading).

mod method;

use std::path::Path;

use keyfold_core::Progress;
use serde::{Deserialize, Serialize};

use super::config::Mixer;
use super::model::{MambaLm, StepFilter};
use super::session::MambaSession;
use crate::LmError;
use crate::error::{invalid, io};

use method::Prompt;

pub use method::Method;

/// Lengths that thresholds are kept for, in thousands of tokens when `length` is 2,000.
const LENGTHS: [usize; 25] = [
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 44, 54, 64, 80, 96, 120, 144, 168, 192,
];

/// How steps of several windows become one threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregate {
    /// Their mean.
    Avg,
    /// The largest.
    Max,
}

/// How a model is calibrated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LongMambaConfig {
    /// Tokens of a window, the length that the model was trained on.
    pub length: usize,
    /// Windows of that length that a calibration text is read in.
    pub windows: usize,
    /// Heads that hold more than this share after `length` tokens are global.
    pub theta: f32,
    /// Percent of the largest steps that are set to the least of them; 0 leaves all.
    pub clamp: f32,
    /// How windows are joined.
    pub agg: Aggregate,
}

impl LongMambaConfig {
    /// The paper's values for a model of this kind.
    pub fn for_mixer(mixer: Mixer) -> Self {
        let (theta, clamp) = match mixer {
            Mixer::One { .. } => (1e-30, 20.0),
            Mixer::Two { .. } => (0.05, 5.0),
        };
        Self {
            length: 2_000,
            windows: 5,
            theta,
            clamp,
            agg: Aggregate::Avg,
        }
    }

    /// Prompts below this stay as they are.
    fn shortest(&self) -> usize {
        self.length.saturating_mul(3) / 2
    }

    /// Why a prompt of so many tokens stays as it is, to be told to the user; none where it is
    /// long enough to be changed.
    pub fn too_short(&self, prompt: usize) -> Option<String> {
        let shortest = self.shortest();
        (prompt < shortest).then(|| {
            format!("--long changes prompts from {shortest} tokens on; this one has {prompt}")
        })
    }

    fn check(&self) -> Result<(), LmError> {
        let what = if self.length == 0 || self.windows == 0 {
            "length and windows must be at least 1"
        } else if !(0.0..1.0).contains(&self.theta) {
            "theta must be from 0 to below 1"
        } else if !(0.0..=100.0).contains(&self.clamp) {
            "clamp is a percentage, from 0 to 100"
        } else {
            return Ok(());
        };
        Err(LmError::Input { what: what.into() })
    }
}

/// A calibrated model: which heads are global, and how small a step they pass over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LongMamba {
    version: u32,
    model: String,
    config: LongMambaConfig,
    /// Lengths that there are thresholds for.
    lengths: Vec<usize>,
    layers: Vec<LongLayer>,
    /// What is done to prompts; no part of the calibration.
    #[serde(skip)]
    method: Method,
}

/// A layer of [`LongMamba`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LongLayer {
    /// What is left after the calibration length, of each head.
    pub kept: Vec<f32>,
    /// The sum of steps of each head.
    pub decay: Vec<f32>,
    /// By length, of each head: steps up to this are passed over.
    pub thresholds: Vec<Vec<f32>>,
    /// By length, of each head: the share of steps that this keeps.
    pub shares: Vec<Vec<f32>>,
}

/// 2: with `shares`.
const VERSION: u32 = 2;

/// Steps of every layer, as a model made them of a text.
#[derive(Default)]
pub struct StepRecorder {
    /// By layer `[n, heads]`.
    layers: Vec<Vec<f32>>,
}

impl StepRecorder {
    /// By layer, steps `[n, heads]` in the order of the tokens.
    pub fn layers(&self) -> &[Vec<f32>] {
        &self.layers
    }
}

impl StepFilter for StepRecorder {
    fn steps(&mut self, layer: usize, steps: &mut [f32]) {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, Vec::new());
        }
        self.layers[layer].extend_from_slice(steps);
    }
}

impl LongMamba {
    /// Calibrates a model on a text. `session` makes an empty session for each window.
    ///
    /// # Errors
    /// When the text is shorter than all windows, a setting is out of range, or the user stopped.
    pub fn calibrate(
        lm: &MambaLm,
        config: LongMambaConfig,
        session: &dyn Fn() -> MambaSession,
        tokens: &[u32],
        progress: &dyn Progress,
    ) -> Result<Self, LmError> {
        config.check()?;
        let windows = config.windows;
        let wanted = config.length.saturating_mul(windows);
        if tokens.len() < wanted {
            let what = format!(
                "the calibration text has {} tokens; {windows} windows of {} need {wanted}: give a longer text, fewer \
                 windows, or a smaller length",
                tokens.len(),
                config.length
            );
            return Err(LmError::Input { what });
        }
        let length = config.length;
        let mut found = Windows::new(lm, config);
        progress.start("calibrating", "windows", Some(windows as u64));
        // Spread over the text.
        let stride = tokens.len() / windows;
        for window in 0..windows {
            let text = &tokens[window * stride..][..length];
            let mut recorder = StepRecorder::default();
            if progress.cancelled() {
                progress.finish();
                return Err(LmError::Stopped);
            }
            session().observe(text, &keyfold_core::NoProgress, &mut recorder)?;
            found.add(&recorder);
            progress.advance(1);
        }
        progress.finish();
        Ok(found.join())
    }

    /// The same from steps that were recorded, each of `length` tokens.
    pub fn from_steps(lm: &MambaLm, config: LongMambaConfig, windows: &[StepRecorder]) -> Self {
        let mut found = Windows::new(lm, config);
        windows.iter().for_each(|window| found.add(window));
        found.join()
    }

    /// Layers.
    pub fn layers(&self) -> &[LongLayer] {
        &self.layers
    }

    /// Does something else to prompts than the paper says.
    #[must_use]
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// How it was calibrated.
    pub fn config(&self) -> &LongMambaConfig {
        &self.config
    }

    /// How many heads of a layer are global.
    pub fn global(&self, layer: usize) -> usize {
        let heads = 0..self.layers[layer].kept.len();
        heads.filter(|head| self.is_global(layer, *head)).count()
    }

    /// Whether a head of a layer is global.
    pub fn is_global(&self, layer: usize, head: usize) -> bool {
        self.layers[layer].kept[head] > self.config.theta
    }

    /// Up to which step a head passes tokens over, in a prompt of so many.
    pub fn threshold(&self, layer: usize, head: usize, prompt: usize) -> f32 {
        let nearest = self.nearest(prompt).unwrap_or(0);
        self.layers[layer].thresholds[nearest][head]
    }

    /// The length with thresholds that is nearest.
    fn nearest(&self, prompt: usize) -> Option<usize> {
        (0..self.lengths.len()).min_by_key(|&i| self.lengths[i].abs_diff(prompt))
    }

    /// The longest prompt that there are thresholds for: half as long again as the last length.
    pub fn longest(&self) -> usize {
        self.lengths.last().map_or(0, |l| l.saturating_mul(3) / 2)
    }

    /// Refuses a prompt that is longer than what there are thresholds for, unless those of the
    /// longest shall do.
    ///
    /// # Errors
    /// When it is, and `extrapolate` is not given.
    pub fn check(&self, prompt: usize, extrapolate: bool) -> Result<(), LmError> {
        let longest = self.longest();
        if extrapolate || prompt <= longest {
            return Ok(());
        }
        let what = format!(
            "the prompt has {prompt} tokens, and the calibration has thresholds for up to {longest}; --extrapolate \
             takes those of its longest prompt"
        );
        Err(LmError::Input { what })
    }

    /// What the filter does to a prompt, or why it does nothing: to be told to the user.
    pub fn note(&self, prompt: usize) -> String {
        let heads: usize = self.layers.iter().map(|l| l.kept.len()).sum();
        let global: usize = (0..self.layers.len()).map(|l| self.global(l)).sum();
        if let Some(why) = self.config.too_short(prompt) {
            return why;
        }
        if prompt > self.longest() {
            return format!(
                "the prompt has {prompt} tokens; thresholds were made for up to {}, and those of the longest are used",
                self.longest()
            );
        }
        format!("{global} of {heads} heads are global and pass over small steps")
    }

    /// Changes the steps of a prompt of so many tokens. Other methods than the paper's want all of a
    /// layer's steps at once.
    pub fn filter(&self, prompt: usize) -> Thresholds<'_> {
        Thresholds {
            long: self,
            at: self
                .nearest(prompt)
                .filter(|_| prompt >= self.config.shortest()),
        }
    }

    /// Writes the calibration as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), LmError> {
        let json = serde_json::to_vec(self).map_err(|e| invalid(path, e.to_string()))?;
        keyfold_core::atomic::write(path, &json).map_err(|source| LmError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a calibration that was made for `lm`.
    ///
    /// # Errors
    /// When the file is damaged, of another version, or of another model.
    pub fn load(path: &Path, lm: &MambaLm) -> Result<Self, LmError> {
        let bytes = std::fs::read(path).map_err(|e| io(path, e))?;
        let long: Self = serde_json::from_slice(&bytes)
            .map_err(|e| invalid(path, format!("it is no calibration of LongMamba: {e}")))?;
        let heads = lm.config().steps();
        let whole = |l: &LongLayer| {
            l.kept.len() == heads
                && l.decay.len() == heads
                && l.thresholds.len() == long.lengths.len()
                && l.shares.len() == long.lengths.len()
                && l.thresholds
                    .iter()
                    .chain(&l.shares)
                    .all(|t| t.len() == heads)
        };
        if long.version != VERSION {
            return Err(invalid(
                path,
                "it is of another version of keyfold; calibrate again",
            ));
        }
        if long.model != format!("{:016x}", lm.fingerprint()) {
            return Err(invalid(
                path,
                "it was made with another model; calibrate again",
            ));
        }
        let known = !long.lengths.is_empty() && long.config.check().is_ok();
        let layers = long.layers.len() == lm.config().n_layer;
        if !known || !layers || !long.layers.iter().all(whole) {
            return Err(invalid(path, "it is damaged; calibrate again"));
        }
        Ok(long)
    }
}

/// What windows of a text tell of every layer. Their steps, which can take gigabytes, are not
/// kept.
struct Windows<'a> {
    lm: &'a MambaLm,
    config: LongMambaConfig,
    lengths: Vec<usize>,
    /// By layer, of each window.
    layers: Vec<Vec<LongLayer>>,
}

impl<'a> Windows<'a> {
    fn new(lm: &'a MambaLm, config: LongMambaConfig) -> Self {
        Self {
            lengths: LENGTHS.iter().map(|k| k * config.length / 2).collect(),
            layers: vec![Vec::new(); lm.config().n_layer],
            lm,
            config,
        }
    }

    fn add(&mut self, window: &StepRecorder) {
        let heads = self.lm.config().steps();
        for (layer, found) in self.layers.iter_mut().enumerate() {
            let steps = window.layers.get(layer).map_or(&[][..], |l| l);
            let rates = slowest(self.lm, layer);
            found.push(window_layer(
                &self.config,
                &self.lengths,
                steps,
                heads,
                &rates,
            ));
        }
    }

    fn join(self) -> LongMamba {
        let agg = self.config.agg;
        let layers = self.layers.iter().map(|windows| join(agg, windows));
        LongMamba {
            version: VERSION,
            model: format!("{:016x}", self.lm.fingerprint()),
            layers: layers.collect(),
            lengths: self.lengths,
            config: self.config,
            method: Method::default(),
        }
    }
}

/// Passes over tokens of one prompt.
pub struct Thresholds<'a> {
    long: &'a LongMamba,
    /// Which length; none where the prompt stays as it is.
    at: Option<usize>,
}

impl Thresholds<'_> {
    /// Whether it wants all of a layer's steps at once.
    pub(super) fn whole(&self) -> bool {
        self.at.is_some() && self.long.method.whole()
    }
}

impl StepFilter for Thresholds<'_> {
    fn steps(&mut self, layer: usize, steps: &mut [f32]) {
        let Some(at) = self.at else {
            return;
        };
        let heads = 0..self.long.layers[layer].kept.len();
        let global: Vec<usize> = heads
            .filter(|head| self.long.is_global(layer, *head))
            .collect();
        self.long.method.apply(&mut Prompt {
            steps,
            layer: &self.long.layers[layer],
            global: &global,
            at,
            length: self.long.config.length,
        });
    }
}

/// The rate of each head, or the slowest of each channel.
fn slowest(lm: &MambaLm, layer: usize) -> Vec<f32> {
    let rates = lm.rates(layer);
    let heads = lm.config().steps();
    (0..heads)
        .map(|h| {
            let own = rates.iter().skip(h).step_by(heads);
            own.copied().fold(f32::NEG_INFINITY, f32::max)
        })
        .collect()
}

/// A layer by one window of steps `[n, heads]`.
fn window_layer(
    config: &LongMambaConfig,
    lengths: &[usize],
    steps: &[f32],
    heads: usize,
    rates: &[f32],
) -> LongLayer {
    let mut layer = LongLayer {
        kept: Vec::new(),
        decay: Vec::new(),
        thresholds: vec![Vec::new(); lengths.len()],
        shares: vec![Vec::new(); lengths.len()],
    };
    for (head, &rate) in rates.iter().enumerate() {
        let mut own: Vec<f32> = steps.iter().skip(head).step_by(heads).copied().collect();
        own.sort_by(|a, b| b.total_cmp(a));
        let most = ((own.len() as f64 * f64::from(config.clamp) / 100.0) as usize).max(1);
        if let Some(&limit) = own.get(most - 1) {
            own[..most].fill(limit);
        }
        let sum: f64 = own.iter().map(|&s| f64::from(s)).sum();
        layer.decay.push(sum as f32);
        layer.kept.push((f64::from(rate) * sum).exp() as f32);
        let to = layer.thresholds.iter_mut().zip(&mut layer.shares);
        for ((thresholds, shares), &length) in to.zip(lengths) {
            // Nothing is passed over where the text is no longer than the calibration's.
            let (limit, share) = match length <= own.len() {
                true => (0.0, 1.0),
                false => threshold(&own, sum, length),
            };
            thresholds.push(limit);
            shares.push(share);
        }
    }
    layer
}

/// The step after those that sum to `sum`, among sorted steps stretched to `length`, and the share
/// of all that stand before it.
fn threshold(sorted: &[f32], sum: f64, length: usize) -> (f32, f32) {
    let mut total = 0.0;
    for at in 0..length {
        total += f64::from(stretched(sorted, length, at));
        if total > sum {
            let next = (at + 1).min(length - 1);
            return (stretched(sorted, length, next), next as f32 / length as f32);
        }
    }
    (0.0, 1.0)
}

/// Number `at` of `length` that lie along the sorted ones, as PyTorch interpolates
/// (`align_corners` false).
fn stretched(sorted: &[f32], length: usize, at: usize) -> f32 {
    let scale = sorted.len() as f32 / length as f32;
    let place = ((at as f32 + 0.5) * scale - 0.5).max(0.0);
    let low = (place as usize).min(sorted.len() - 1);
    let high = (low + 1).min(sorted.len() - 1);
    let weight = place - low as f32;
    sorted[low] * (1.0 - weight) + sorted[high] * weight
}

/// Joins the windows of a layer.
fn join(agg: Aggregate, windows: &[LongLayer]) -> LongLayer {
    let over = |pick: &dyn Fn(&LongLayer) -> &Vec<f32>| -> Vec<f32> {
        let heads = windows.first().map_or(0, |w| pick(w).len());
        let each = |h: usize| windows.iter().map(move |w| (w, h));
        (0..heads)
            .map(|h| {
                let values = each(h).map(|(w, h)| pick(w)[h]);
                match agg {
                    Aggregate::Avg => values.sum::<f32>() / windows.len() as f32,
                    Aggregate::Max => values.fold(f32::NEG_INFINITY, f32::max),
                }
            })
            .collect()
    };
    let lengths = windows.first().map_or(0, |w| w.thresholds.len());
    LongLayer {
        kept: over(&|w| &w.kept),
        decay: over(&|w| &w.decay),
        thresholds: (0..lengths).map(|i| over(&|w| &w.thresholds[i])).collect(),
        shares: (0..lengths).map(|i| over(&|w| &w.shares[i])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a calibration and of a longer text from one distribution.
    fn lognormal(n: usize, seed: u64) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        (0..n)
            .map(|_| {
                let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
                let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                normal.exp() as f32
            })
            .collect()
    }

    fn config(clamp: f32) -> LongMambaConfig {
        LongMambaConfig {
            length: 2_000,
            windows: 1,
            theta: 0.0,
            clamp,
            agg: Aggregate::Avg,
        }
    }

    #[test]
    fn steps_that_are_kept_sum_to_those_of_the_calibration() {
        // One text has few of the largest steps: the mean of several agrees.
        let draws = 12;
        for (clamp, length, low, high) in [
            (0.0, 4_000, 0.9, 1.1),
            (0.0, 16_000, 0.9, 1.1),
            // The clamp keeps about its share of tokens, whatever the length.
            (20.0, 16_000, 3.0, 8.0),
        ] {
            let (mut ratio, mut share) = (0.0, 0.0);
            for seed in 0..draws {
                let steps = lognormal(2_000, seed);
                let sum: f64 = steps.iter().map(|&s| f64::from(s)).sum();
                let layer = window_layer(&config(clamp), &[length], &steps, 1, &[-1.0]);
                let limit = layer.thresholds[0][0];
                let longer = lognormal(length, 100 + seed);
                let kept = longer.iter().filter(|&&s| s > limit);
                let kept: Vec<f64> = kept.map(|&s| f64::from(s)).collect();
                ratio += kept.iter().sum::<f64>() / sum / draws as f64;
                share += kept.len() as f64 / length as f64 / draws as f64;
            }
            assert!(low < ratio && ratio < high, "{clamp} {length}: {ratio}");
            assert!(clamp == 0.0 || (share - 0.2).abs() < 0.02, "{share}");
        }
    }

    #[test]
    fn a_text_no_longer_than_the_calibration_keeps_all() {
        let layer = window_layer(
            &config(5.0),
            &[1_000, 2_000],
            &lognormal(2_000, 3),
            1,
            &[-0.1],
        );
        assert_eq!(layer.thresholds, [[0.0], [0.0]]);
    }

    #[test]
    fn what_is_kept_is_told_by_rate_and_sum_of_each_head() {
        let steps = [0.5, 1.0, 0.5, 3.0];
        let layer = window_layer(&config(0.0), &[10], &steps, 2, &[-1.0, -0.25]);
        assert_eq!(layer.decay, [1.0, 4.0]);
        assert!((layer.kept[0] - (-1f32).exp()).abs() < 1e-6);
        assert!((layer.kept[1] - (-1f32).exp()).abs() < 1e-6);
    }
}
