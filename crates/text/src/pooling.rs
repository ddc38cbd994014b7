//! From the vectors of a text's tokens to one vector, as sentence-transformers
//! does it. Several ways at once are set side by side, in a fixed order.

use keyfold_core::ModelFolder;
use serde::Deserialize;

use crate::error::{LoadError, invalid};
use keyfold_core::weights::join;

/// How a transformer without parts after it makes one vector of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The first token's vector, `[CLS]`.
    Cls,
    /// The mean of all tokens.
    Mean,
    /// The vector of the mask in `This sentence : "TEXT" means [MASK] .` (Jiang et al. 2022,
    /// *PromptBERT*, in the wording of DefSent+).
    Prompt,
}

impl Pool {
    /// Its name, as in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Prompt => "prompt",
        }
    }
}

/// One way to make one vector of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The first token's vector.
    First,
    Max,
    Mean,
    /// The sum divided by the root of the number of tokens.
    MeanSqrtLen,
    /// The mean with weights 1, 2, 3, ...
    WeightedMean,
    /// The last token's vector.
    Last,
}

/// The fields of `1_Pooling/config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default = "yes")]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default = "yes")]
    include_prompt: bool,
}

fn yes() -> bool {
    true
}

/// How a model pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pooling {
    modes: Vec<Mode>,
    /// False when the tokens of the prompt are left out.
    pub(crate) include_prompt: bool,
    /// The text is put into a sentence with a mask, whose vector is all that is pooled.
    pub(crate) in_sentence: bool,
}

impl Pooling {
    /// The mean of all tokens: what a folder without `modules.json` gets.
    pub(crate) fn mean() -> Self {
        Self::of(Pool::Mean)
    }

    pub(crate) fn of(pool: Pool) -> Self {
        Self {
            modes: vec![match pool {
                Pool::Cls => Mode::First,
                // Of a prompt there is one row: that of the mask.
                Pool::Mean | Pool::Prompt => Mode::Mean,
            }],
            include_prompt: true,
            in_sentence: pool == Pool::Prompt,
        }
    }

    /// Reads the pooling in folder `path` of a model and adds the file to `names`.
    pub(crate) fn load(
        folder: &ModelFolder,
        path: &str,
        names: &mut Vec<String>,
    ) -> Result<Self, LoadError> {
        let name = join(path, "config.json");
        let config: Config = folder.json(&name, "it says how tokens are pooled")?;
        // Written by `keyfold train defsent-plus`; sentence-transformers does not know it.
        if config.pooling_mode.as_deref() == Some(Pool::Prompt.name()) {
            names.push(name);
            return Ok(Self::of(Pool::Prompt));
        }
        let modes = match &config.pooling_mode {
            Some(one) => vec![Mode::named(one).ok_or_else(|| {
                invalid(
                    &folder.file(&name),
                    format!(
                        "pooling mode '{one}' is not known; known are cls, lasttoken, max, mean, \
                         mean_sqrt_len_tokens, prompt and weightedmean"
                    ),
                )
            })?],
            None => config.modes(),
        };
        if modes.is_empty() {
            return Err(invalid(
                &folder.file(&name),
                "no pooling mode is switched on",
            ));
        }
        names.push(name);
        Ok(Self {
            modes,
            include_prompt: config.include_prompt,
            in_sentence: false,
        })
    }

    /// Length of the vector that comes out of vectors of `hidden` numbers.
    pub(crate) fn outputs(&self, hidden: usize) -> usize {
        self.modes.len() * hidden
    }

    /// Pools the rows of `states` (`[tokens, hidden]`); the first `skipped` rows
    /// are those of the prompt, which do not count. Appends to `out`.
    pub(crate) fn apply(&self, states: &[f32], hidden: usize, skipped: usize, out: &mut Vec<f32>) {
        let rows = || states.chunks_exact(hidden).enumerate().skip(skipped);
        let counted = rows().len() as f32;
        for mode in &self.modes {
            let at = out.len();
            match mode {
                // The reference takes the first token even when it is the prompt's.
                Mode::First => match states.get(..hidden) {
                    Some(first) => out.extend_from_slice(first),
                    None => out.resize(at + hidden, 0.0),
                },
                Mode::Last => match rows().next_back() {
                    Some((_, last)) => out.extend_from_slice(last),
                    None => out.resize(at + hidden, 0.0),
                },
                Mode::Max => {
                    let start = if rows().len() == 0 { 0.0 } else { f32::MIN };
                    out.resize(at + hidden, start);
                    for (_, row) in rows() {
                        let pairs = out[at..].iter_mut().zip(row);
                        pairs.for_each(|(o, x)| *o = o.max(*x));
                    }
                }
                Mode::Mean => weighted_sum(out, hidden, rows().map(|(_, r)| (1.0, r)), counted),
                Mode::MeanSqrtLen => {
                    weighted_sum(out, hidden, rows().map(|(_, r)| (1.0, r)), counted.sqrt())
                }
                Mode::WeightedMean => {
                    let total = rows().map(|(i, _)| (i + 1) as f32).sum();
                    let weighted = rows().map(|(i, r)| ((i + 1) as f32, r));
                    weighted_sum(out, hidden, weighted, total);
                }
            }
        }
    }
}

/// Appends `(Σ w x) / divisor`.
fn weighted_sum<'a>(
    out: &mut Vec<f32>,
    hidden: usize,
    rows: impl Iterator<Item = (f32, &'a [f32])>,
    divisor: f32,
) {
    let at = out.len();
    out.resize(at + hidden, 0.0);
    for (weight, row) in rows {
        let pairs = out[at..].iter_mut().zip(row);
        pairs.for_each(|(o, x)| *o += weight * x);
    }
    let divisor = divisor.max(1e-9);
    out[at..].iter_mut().for_each(|o| *o /= divisor);
}

impl Config {
    /// In the order in which the vectors are set side by side.
    fn modes(&self) -> Vec<Mode> {
        [
            (self.pooling_mode_cls_token, Mode::First),
            (self.pooling_mode_max_tokens, Mode::Max),
            (self.pooling_mode_mean_tokens, Mode::Mean),
            (self.pooling_mode_mean_sqrt_len_tokens, Mode::MeanSqrtLen),
            (self.pooling_mode_weightedmean_tokens, Mode::WeightedMean),
            (self.pooling_mode_lasttoken, Mode::Last),
        ]
        .into_iter()
        .filter_map(|(on, mode)| on.then_some(mode))
        .collect()
    }
}

impl Mode {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "cls" => Self::First,
            "max" => Self::Max,
            "mean" => Self::Mean,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLen,
            "weightedmean" => Self::WeightedMean,
            "lasttoken" => Self::Last,
            _ => return None,
        })
    }
}
