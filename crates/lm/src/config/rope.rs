//! Rotary position embedding (Su and others, 2021, RoFormer: Enhanced Transformer with
//! Rotary Position Embedding) and the ways to stretch it to longer texts.
//!
//! Pair `i` of a query or key at position `p` is turned by `p * f_i`, `f_i = theta^(-2i/d)`.
//! Stretching changes the frequencies:
//!
//! - linear (Chen and others, 2023): `f / factor`;
//! - dynamic NTK (2023, without a paper): a greater theta, by the length of the text;
//! - YaRN (Peng and others, 2023): slow pairs as linear, fast ones kept, a ramp between,
//!   and scores sharpened;
//! - Llama 3 (Dubey and others, 2024): the same idea, with the ramp over wavelengths;
//! - divisors: what GGUF files hold of the last one, ready made.

use std::f64::consts::PI;

use super::{Architecture, Config, Fields, MOST_CONTEXT};
use crate::error::LmError;
use crate::file::Gguf;

/// How a model rotates queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How many numbers of a head are turned, from the first on; even. The rest stays.
    pub dims: usize,
    /// Pairs are `(2i, 2i + 1)`, else `(i, i + dims / 2)`.
    pub interleaved: bool,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
    /// Per layer, whether it rotates at all.
    pub layers: Vec<bool>,
}

/// How rotary embedding is stretched to longer texts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Theta grows with the text, once it is longer than `original`.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The length that the model was trained on.
        original: usize,
    },
    /// Long waves are divided, short ones kept.
    Llama3 {
        /// By how much.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length that the model was trained on.
        original: usize,
    },
    /// Slow pairs are divided, fast ones kept.
    Yarn {
        /// By how much.
        factor: f64,
        /// The length that the model was trained on.
        original: usize,
        /// Pairs that turn more often within `original` are kept.
        beta_fast: f64,
        /// Pairs that turn less often within `original` are divided.
        beta_slow: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Whether the ends of the ramp are whole pairs.
        truncate: bool,
    },
    /// What each frequency is divided by, `[dims / 2]`.
    Divisors(Vec<f32>),
}

/// The sizes that rotary embedding depends on.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) head_dim: usize,
    pub(super) max_position_embeddings: usize,
}

impl Rope {
    /// From `rope_theta` and `rope_scaling`, or from `rope_parameters`, which newer files
    /// hold in place of both.
    pub(super) fn from_json(
        fields: &Fields,
        architecture: Architecture,
        sizes: Sizes,
        layers: Vec<bool>,
    ) -> Result<Self, LmError> {
        let inner = match fields.object("rope_parameters")? {
            Some(inner) => Some(inner),
            None => fields.object("rope_scaling")?,
        };
        let either = |name: &str| match inner.map(|inner| inner.positive(name)).transpose()? {
            Some(Some(value)) => Ok(Some(value)),
            _ => fields.positive(name),
        };
        let default_theta = match architecture {
            Architecture::SmolLm3 => 2e6,
            _ => 1e4,
        };
        let theta = either("rope_theta")?.unwrap_or(default_theta);
        check_theta(fields, "rope_theta", theta)?;
        let dims = match either("partial_rotary_factor")? {
            Some(part) if part > 1.0 => {
                return Err(fields.wrong("partial_rotary_factor", format!("is {part}, above 1")));
            }
            Some(part) => (sizes.head_dim as f64 * part) as usize,
            None => sizes.head_dim,
        };
        check_dims(fields, "head_dim", dims)?;
        let scaling = match inner {
            Some(inner) => scaling_from_json(&inner, fields, sizes.max_position_embeddings)?,
            None => RopeScaling::None,
        };
        Ok(Self {
            theta,
            dims,
            interleaved: false,
            scaling,
            layers,
        })
    }

    /// From the keys `ARCHITECTURE.rope.*` and the tensor `rope_freqs.weight`.
    pub(super) fn from_gguf(
        file: &Gguf,
        architecture: Architecture,
        sizes: Sizes,
        layers: Vec<bool>,
    ) -> Result<Self, LmError> {
        let fields = Fields::gguf(file);
        let key = |rest: &str| format!("{}.rope.{rest}", architecture.name());
        let dimension = key("dimension_count");
        let dims = fields
            .size(&dimension, sizes.head_dim)?
            .unwrap_or(sizes.head_dim);
        check_dims(&fields, &dimension, dims)?;
        let scaling = match divisors(file, dims)? {
            Some(divisors) => RopeScaling::Divisors(divisors),
            None => scaling_from_gguf(&fields, &key, sizes.max_position_embeddings)?,
        };
        let theta = fields.positive(&key("freq_base"))?.unwrap_or(1e4);
        check_theta(&fields, &key("freq_base"), theta)?;
        Ok(Self {
            theta,
            dims,
            // The converter re-orders the rows of these, so that neighbours are pairs.
            interleaved: matches!(architecture, Architecture::Llama | Architecture::SmolLm3),
            scaling,
            layers,
        })
    }
}

fn check_dims(fields: &Fields, name: &str, dims: usize) -> Result<(), LmError> {
    if dims >= 2 && dims.is_multiple_of(2) {
        return Ok(());
    }
    Err(fields.wrong(
        name,
        format!("gives {dims} rotated numbers; they must be pairs"),
    ))
}

fn check_theta(fields: &Fields, name: &str, theta: f64) -> Result<(), LmError> {
    if theta > 1.0 {
        return Ok(());
    }
    Err(fields.wrong(name, format!("is {theta}; it must be above 1")))
}

/// `rope_freqs.weight`, whose numbers must be above zero.
fn divisors(file: &Gguf, dims: usize) -> Result<Option<Vec<f32>>, LmError> {
    const NAME: &str = "rope_freqs.weight";
    let Some(tensor) = file.tensor(NAME) else {
        return Ok(None);
    };
    let wrong = |what: String| crate::error::tensor(file.path(), NAME, what);
    if tensor.shape() != [dims / 2] {
        return Err(wrong(format!(
            "is {:?}; it must be [{}]",
            tensor.shape(),
            dims / 2
        )));
    }
    let values = tensor.to_f32();
    match values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
        Some(odd) => Err(wrong(format!(
            "holds {odd}; its numbers must be above zero"
        ))),
        None => Ok(Some(values)),
    }
}

/// `0.1 * scale * ln(factor) + 1`: how much YaRN sharpens scores.
fn sharpening(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * scale * factor.ln() + 1.0
    }
}

fn scaling_from_json(inner: &Fields, outer: &Fields, max: usize) -> Result<RopeScaling, LmError> {
    let kind = match inner.text("rope_type")? {
        Some(kind) => Some(kind),
        None => inner.text("type")?,
    };
    let original = || -> Result<usize, LmError> {
        const NAME: &str = "original_max_position_embeddings";
        let outside = outer.size(NAME, MOST_CONTEXT)?;
        let inside = inner.size(NAME, MOST_CONTEXT)?;
        Ok(outside.or(inside).unwrap_or(max))
    };
    match kind.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: inner.need_positive("factor")?,
        }),
        Some("dynamic") => Ok(RopeScaling::Dynamic {
            factor: inner.need_positive("factor")?,
            original: max,
        }),
        Some("llama3") => {
            let (low, high) = ("low_freq_factor", "high_freq_factor");
            let (low_freq_factor, high_freq_factor) =
                (inner.need_positive(low)?, inner.need_positive(high)?);
            if high_freq_factor <= low_freq_factor {
                return Err(inner.wrong(high, format!("must be greater than '{low}'")));
            }
            Ok(RopeScaling::Llama3 {
                factor: inner.need_positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original: original()?,
            })
        }
        Some("yarn") => {
            let original = original()?;
            let factor = inner
                .positive("factor")?
                .unwrap_or(max as f64 / original as f64);
            let scales = (inner.positive("mscale")?, inner.positive("mscale_all_dim")?);
            let attention_factor = match (inner.positive("attention_factor")?, scales) {
                (Some(given), _) => given,
                (None, (Some(one), Some(all))) => sharpening(factor, one) / sharpening(factor, all),
                (None, _) => sharpening(factor, 1.0),
            };
            Ok(RopeScaling::Yarn {
                factor,
                original,
                beta_fast: inner.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: inner.positive("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: inner.flag("truncate")?.unwrap_or(true),
            })
        }
        Some(kind) => Err(inner.wrong(
            "rope_type",
            format!("is '{kind}'; default, linear, dynamic, llama3 and yarn are known"),
        )),
    }
}

fn scaling_from_gguf(
    fields: &Fields,
    key: &dyn Fn(&str) -> String,
    max: usize,
) -> Result<RopeScaling, LmError> {
    let kind_key = key("scaling.type");
    let kind = fields.text(&kind_key)?;
    let factor = match fields.positive(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        // The key of old files, which knew the linear way only.
        None => fields.positive(&key("scale_linear"))?,
    };
    match (kind.as_deref(), factor) {
        (Some("none"), _) | (None | Some("linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => {
            let original = fields.size(&key("scaling.original_context_length"), MOST_CONTEXT)?;
            let sharper = fields.positive(&key("scaling.attn_factor"))?.unwrap_or(1.0);
            let fast = fields.positive(&key("scaling.yarn_beta_fast"))?;
            let slow = fields.positive(&key("scaling.yarn_beta_slow"))?;
            Ok(RopeScaling::Yarn {
                factor,
                original: original.unwrap_or(max),
                beta_fast: fast.unwrap_or(32.0),
                beta_slow: slow.unwrap_or(1.0),
                attention_factor: sharpening(factor, 1.0) * sharper,
                truncate: true,
            })
        }
        (Some("yarn"), None) => Err(fields.wrong(&key("scaling.factor"), "is missing")),
        (Some(kind), _) => Err(fields.wrong(
            &kind_key,
            format!("is '{kind}'; none, linear and yarn are known"),
        )),
    }
}

/// The frequency of every rotated pair, `[dims / 2]`, and what cosines and sines are
/// multiplied by. `length` is the length of the text so far, which only
/// [`RopeScaling::Dynamic`] heeds. Empty for models without rotary embedding.
pub fn rope_frequencies(config: &Config, length: usize) -> (Vec<f32>, f32) {
    let Some(rope) = config.rope() else {
        return (Vec::new(), 1.0);
    };
    let d = rope.dims as f64;
    let plain = |theta: f64| (0..rope.dims / 2).map(move |i| theta.powf(-2.0 * i as f64 / d));
    let narrow = |all: &mut dyn Iterator<Item = f64>| all.map(|f| f as f32).collect::<Vec<_>>();
    match &rope.scaling {
        RopeScaling::None => (narrow(&mut plain(rope.theta)), 1.0),
        RopeScaling::Linear { factor } => (narrow(&mut plain(rope.theta).map(|f| f / factor)), 1.0),
        &RopeScaling::Dynamic { factor, original } => {
            let stretch = length.max(original) as f64 / original as f64;
            let power = if rope.dims > 2 { d / (d - 2.0) } else { 1.0 };
            let theta = rope.theta * (factor * stretch - (factor - 1.0)).powf(power);
            (narrow(&mut plain(theta)), 1.0)
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original,
        } => {
            let original = original as f64;
            let stretched = |f: f64| {
                let wave = 2.0 * PI / f;
                if wave < original / high {
                    f
                } else if wave > original / low {
                    f / factor
                } else {
                    let kept = (original / wave - low) / (high - low);
                    (1.0 - kept) * f / factor + kept * f
                }
            };
            (narrow(&mut plain(rope.theta).map(stretched)), 1.0)
        }
        &RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            // The pair that turns `turns` times within the original length.
            let pair = |turns: f64| {
                d * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(d - 1.0));
            if low == high {
                high += 0.001;
            }
            let stretched = |(i, f): (usize, f64)| {
                let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * slow + f * (1.0 - slow)
            };
            let all = &mut plain(rope.theta).enumerate().map(stretched);
            (narrow(all), attention_factor as f32)
        }
        RopeScaling::Divisors(divisors) => {
            let divided = plain(rope.theta)
                .zip(divisors)
                .map(|(f, &by)| f / f64::from(by));
            (narrow(&mut divided.into_iter()), 1.0)
        }
    }
}
