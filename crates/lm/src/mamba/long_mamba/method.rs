//! Which steps of a prompt a global head keeps.
//!
//! The paper compares each step with a threshold that was made once. The released program can do
//! six other things, named as it names them; they look at all steps of the prompt at once, so that
//! it goes through each layer in one piece, and memory grows with it.

use super::LongLayer;

/// What is done to the steps of a prompt in a global head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Steps up to the calibration's threshold are passed over, as the paper has it.
    #[default]
    DtThre,
    /// The share of largest steps is kept that summed to the calibration's.
    Alpha,
    /// Steps from the first on that this share leaves out, and those that are as large.
    Offline,
    /// The largest steps are kept that sum to no more than the calibration's.
    Bound,
    /// All steps are scaled so that they sum to the calibration's.
    Norm,
    /// As many of the largest steps are kept as the calibration had tokens.
    ChannelwiseTopk,
    /// So many tokens are kept, the same in all global heads, by the length of their steps.
    AllTopk,
}

/// Steps `[n, heads]` of a prompt in one layer, of which the global heads are changed.
pub(super) struct Prompt<'a> {
    pub(super) steps: &'a mut [f32],
    pub(super) layer: &'a LongLayer,
    /// Heads that are changed.
    pub(super) global: &'a [usize],
    /// Which of the calibration's lengths the prompt is nearest to.
    pub(super) at: usize,
    /// Tokens of the calibration.
    pub(super) length: usize,
}

impl Method {
    /// Whether all steps of a prompt are looked at together.
    pub(crate) fn whole(self) -> bool {
        self != Self::DtThre
    }

    pub(super) fn apply(self, prompt: &mut Prompt) {
        match self {
            Self::DtThre => return prompt.keep_above_thresholds(),
            Self::AllTopk => return prompt.keep_tokens(),
            _ => {}
        }
        for &head in prompt.global {
            let own = prompt.column(head);
            let share = prompt.layer.shares[prompt.at][head];
            let sum = prompt.layer.decay[head];
            let count = own.len();
            let wanted = (count as f32 * share).min(count as f32);
            match self {
                Self::Alpha => prompt.keep_first(head, &falling(&own), wanted.ceil() as usize),
                Self::Offline => {
                    let place = (wanted as usize).min(count.saturating_sub(1));
                    if let Some(&least) = falling(&own).get(place) {
                        prompt.keep(head, |_, step| step >= own[least]);
                    }
                }
                Self::Bound => {
                    let order = falling(&own);
                    let mut total = 0.0;
                    let within = order.iter().take_while(|i| {
                        total += f64::from(own[**i]);
                        total as f32 <= sum
                    });
                    let count = within.count();
                    prompt.keep_first(head, &order, count);
                }
                Self::Norm => {
                    let factor = sum / own.iter().sum::<f32>();
                    // A sum of 0 has nothing to scale.
                    if factor.is_finite() {
                        prompt.each(head, |_, step| *step *= factor);
                    }
                }
                Self::ChannelwiseTopk => {
                    let kept = prompt.length.min(count) as f64 / count as f64;
                    let limit = quantile(&own, 1.0 - kept);
                    prompt.keep(head, |_, step| step > limit);
                }
                // Done above.
                Self::DtThre | Self::AllTopk => {}
            }
        }
    }
}

impl Prompt<'_> {
    fn heads(&self) -> usize {
        self.layer.kept.len()
    }

    fn column(&self, head: usize) -> Vec<f32> {
        let own = self.steps.iter().skip(head).step_by(self.heads());
        own.copied().collect()
    }

    fn each(&mut self, head: usize, mut change: impl FnMut(usize, &mut f32)) {
        let heads = self.heads();
        let own = self.steps.iter_mut().skip(head).step_by(heads);
        own.enumerate().for_each(|(i, step)| change(i, step));
    }

    /// Passes over what is not wanted.
    fn keep(&mut self, head: usize, wanted: impl Fn(usize, f32) -> bool) {
        self.each(head, |i, step| {
            if !wanted(i, *step) {
                *step = 0.0;
            }
        });
    }

    /// Keeps the first steps of an order.
    fn keep_first(&mut self, head: usize, order: &[usize], count: usize) {
        let mut wanted = vec![false; order.len()];
        order.iter().take(count).for_each(|&i| wanted[i] = true);
        self.keep(head, |i, _| wanted[i]);
    }

    fn keep_above_thresholds(&mut self) {
        let thresholds = &self.layer.thresholds[self.at];
        for &head in self.global {
            self.keep(head, |_, step| step > thresholds[head]);
        }
    }

    fn keep_tokens(&mut self) {
        let rows = self.steps.chunks_exact(self.heads());
        let length = |row: &[f32]| self.global.iter().map(|&h| row[h] * row[h]).sum::<f32>();
        let lengths: Vec<f32> = rows.map(length).collect();
        let order = falling(&lengths);
        for &head in self.global {
            self.keep_first(head, &order, self.length);
        }
    }
}

/// Places by falling number, the earlier of two alike first.
fn falling(numbers: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[b].total_cmp(&numbers[a]));
    order
}

/// The number below which a share of all lies, between two of them on a line.
fn quantile(numbers: &[f32], share: f64) -> f32 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f32::total_cmp);
    let place = share * (sorted.len().saturating_sub(1)) as f64;
    let at = |i: usize| sorted.get(i).or(sorted.last()).copied().unwrap_or(0.0);
    let low = at(place as usize);
    low + (at(place as usize + 1) - low) * place.fract() as f32
}
