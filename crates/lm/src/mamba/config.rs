//! What a Mamba model is, from `config.json` (as `state-spaces` and as Transformers write it)
//! or GGUF metadata.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::config::{Field, Fields};
use crate::error::{LmError, invalid};
use crate::file::Gguf;

/// The most layers, and the longest vectors, that a file may claim.
const MOST_LAYERS: usize = 4_096;
const MOST_WIDTH: usize = 1 << 24;
const MOST_STATE: usize = 1 << 16;
/// The most numbers that the state of all layers may have: a file of a few megabytes can ask
/// for any number, since it grows with the product of two sides.
const MOST_NUMBERS: usize = 1 << 30;
const MOST_TOKENS: usize = 1 << 26;
/// The widest convolution.
const MOST_CONV: usize = 1 << 10;

/// What mixes tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// Mamba: a decay for every channel and state number.
    One {
        /// Length of the vector that step sizes are made of.
        dt_rank: usize,
    },
    /// Mamba-2: a decay for every head.
    Two {
        /// Channels of a head.
        headdim: usize,
        /// Groups of heads that share B and C.
        ngroups: usize,
        /// Step sizes are kept within these.
        dt_limit: (f32, f32),
        /// Whether what goes past the state has a weight for each channel, not each head.
        d_has_hdim: bool,
    },
}

/// Sizes of a Mamba model, under the names of its authors.
#[derive(Debug, Clone, PartialEq)]
pub struct MambaConfig {
    /// Length of the hidden state.
    pub d_model: usize,
    /// Layers.
    pub n_layer: usize,
    /// Tokens, those that only fill up the matrix included.
    pub vocab_size: usize,
    /// Channels of a mixer.
    pub d_inner: usize,
    /// Numbers of state that a channel has.
    pub d_state: usize,
    /// Width of the convolution.
    pub d_conv: usize,
    /// What mixes tokens.
    pub mixer: Mixer,
    /// Whether the matrices around the mixer have biases.
    pub bias: bool,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// What is added under the root of every norm.
    pub norm_eps: f32,
    /// Whether the output matrix is the embedding.
    pub tie_embeddings: bool,
    /// What begins a text.
    pub bos_token_id: Option<u32>,
    /// What ends a text.
    pub eos_token_ids: Vec<u32>,
}

impl MambaConfig {
    /// Whether `config.json` describes a model that is read here.
    pub(super) fn is_mamba(json: &[u8]) -> bool {
        let Ok(map) = parse(json) else {
            return false;
        };
        match map.get("model_type").and_then(Json::as_str) {
            Some(name) => matches!(name, "mamba" | "mamba2"),
            None => map.contains_key("ssm_cfg"),
        }
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// When a field is missing, out of range or unknown here.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self, LmError> {
        let map = parse(json).map_err(|e| invalid(path, format!("it is no JSON object: {e}")))?;
        let fields = Fields::json(path, &map);
        let config = match fields.text("model_type")? {
            None => authors(&fields)?,
            Some(name) => transformers(&fields, &name)?,
        };
        config.checked(&fields)
    }

    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_gguf(file: &Gguf) -> Result<Self, LmError> {
        let fields = Fields::gguf(file);
        let name = fields.text("general.architecture")?.unwrap_or_default();
        let key = |rest: &str| format!("{name}.{rest}");
        let vocab = file
            .shape("token_embd.weight")
            .and_then(|s| s.first().copied());
        let d_inner = fields.need(&key("ssm.inner_size"), MOST_WIDTH)?;
        let rank = fields.need(&key("ssm.time_step_rank"), MOST_WIDTH)?;
        if fields.flag(&key("ssm.dt_b_c_rms"))? == Some(true) {
            return Err(fields.wrong(&key("ssm.dt_b_c_rms"), "is true, which is not known"));
        }
        let mixer = match name.as_str() {
            "mamba" => Mixer::One { dt_rank: rank },
            // There the rank is the number of heads.
            "mamba2" => Mixer::Two {
                headdim: d_inner / rank,
                ngroups: fields
                    .size(&key("ssm.group_count"), MOST_WIDTH)?
                    .unwrap_or(1),
                dt_limit: (0.0, f32::INFINITY),
                d_has_hdim: false,
            },
            _ => return Err(fields.wrong("general.architecture", unknown(&name))),
        };
        let config = Self {
            d_model: fields.need(&key("embedding_length"), MOST_WIDTH)?,
            n_layer: fields.need(&key("block_count"), MOST_LAYERS)?,
            vocab_size: vocab.unwrap_or(0),
            d_inner,
            d_state: fields.need(&key("ssm.state_size"), MOST_STATE)?,
            d_conv: fields.need(&key("ssm.conv_kernel"), MOST_CONV)?,
            mixer,
            bias: false,
            conv_bias: true,
            norm_eps: fields.epsilon(&key("attention.layer_norm_rms_epsilon"), Some(1e-5))?,
            tie_embeddings: !file.has("output.weight"),
            bos_token_id: fields.token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: fields.tokens("tokenizer.ggml.eos_token_id")?,
        };
        config.checked(&fields)
    }

    /// Heads; 0 where the mixer has none.
    pub fn heads(&self) -> usize {
        match self.mixer {
            Mixer::One { .. } => 0,
            Mixer::Two { headdim, .. } => self.d_inner / headdim,
        }
    }

    /// What has a step size of its own: heads, or else channels.
    pub fn steps(&self) -> usize {
        match self.mixer {
            Mixer::One { .. } => self.d_inner,
            Mixer::Two { .. } => self.heads(),
        }
    }

    /// Channels of the convolution.
    pub fn conv_channels(&self) -> usize {
        match self.mixer {
            Mixer::One { .. } => self.d_inner,
            Mixer::Two { ngroups, .. } => self.d_inner + 2 * ngroups * self.d_state,
        }
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        match self.mixer {
            Mixer::One { .. } => "mamba",
            Mixer::Two { .. } => "mamba2",
        }
    }

    fn checked(self, fields: &Fields) -> Result<Self, LmError> {
        if self.vocab_size == 0 {
            return Err(fields.wrong("vocab_size", "is missing, and there is no embedding"));
        }
        if let Mixer::Two {
            headdim, ngroups, ..
        } = self.mixer
        {
            if headdim == 0 || !self.d_inner.is_multiple_of(headdim) {
                let what = format!(
                    "is {headdim}, which does not divide {} channels",
                    self.d_inner
                );
                return Err(fields.wrong("headdim", what));
            }
            if ngroups == 0 || !self.heads().is_multiple_of(ngroups) {
                let what = format!("is {ngroups}, which does not divide {} heads", self.heads());
                return Err(fields.wrong("ngroups", what));
            }
        }
        let numbers = self
            .n_layer
            .saturating_mul(self.d_inner)
            .saturating_mul(self.d_state);
        if numbers > MOST_NUMBERS {
            let what = format!(
                "is {}; with {} channels in {} layers the state would have more than {MOST_NUMBERS} numbers",
                self.d_state, self.d_inner, self.n_layer
            );
            return Err(fields.wrong("d_state", what));
        }
        Ok(self)
    }
}

fn unknown(name: &str) -> String {
    format!("is '{name}'; the state-space models that can be read are mamba and mamba2")
}

/// Python writes an infinite limit as `Infinity`, which is no JSON.
fn parse(json: &[u8]) -> Result<Map<String, Json>, serde_json::Error> {
    serde_json::from_slice(json).or_else(|e| {
        let text = String::from_utf8_lossy(json);
        let finite = text.replace("Infinity", "3.4e38");
        serde_json::from_str(&finite).map_err(|_| e)
    })
}

/// `config.json` as the authors write it: `d_model`, `n_layer`, `ssm_cfg`.
fn authors(fields: &Fields) -> Result<MambaConfig, LmError> {
    let d_model = fields.need("d_model", MOST_WIDTH)?;
    let empty = Map::new();
    let ssm = fields.object("ssm_cfg")?;
    let ssm = ssm.unwrap_or_else(|| Fields::json(fields.path, &empty));
    for (name, meaning) in [
        ("attn_layer_idx", "attention layers"),
        ("d_intermediate", "feed-forward layers"),
    ] {
        let there = fields.whole_numbers(name)?.unwrap_or_default();
        if there.iter().any(|&n| n != 0) || (name == "attn_layer_idx" && !there.is_empty()) {
            return Err(fields.wrong(
                name,
                format!("asks for {meaning}, which are not known here"),
            ));
        }
    }
    if fields.flag("rms_norm")? == Some(false) {
        return Err(fields.wrong("rms_norm", "is false; only RMS norms are known"));
    }
    let expand = ssm.size("expand", MOST_CONV)?.unwrap_or(2);
    let d_inner = expand.saturating_mul(d_model);
    let layer = ssm.text("layer")?.unwrap_or_else(|| "Mamba1".into());
    let (mixer, d_state) = match layer.as_str() {
        "Mamba1" => {
            let dt_rank = match ssm.get("dt_rank")? {
                None | Some(Field::Text(_)) => d_model.div_ceil(16),
                Some(_) => ssm.need("dt_rank", MOST_WIDTH)?,
            };
            (Mixer::One { dt_rank }, 16)
        }
        "Mamba2" => {
            for (name, wanted) in [("rmsnorm", true), ("norm_before_gate", false)] {
                if ssm.flag(name)?.is_some_and(|is| is != wanted) {
                    return Err(ssm.wrong(name, format!("is {}, which is not known", !wanted)));
                }
            }
            if ssm.size("d_ssm", MOST_WIDTH)?.is_some_and(|d| d != d_inner) {
                return Err(ssm.wrong(
                    "d_ssm",
                    "asks for channels beside the mixer, which are not known",
                ));
            }
            let mixer = Mixer::Two {
                headdim: ssm.size("headdim", MOST_WIDTH)?.unwrap_or(64),
                ngroups: ssm.size("ngroups", MOST_WIDTH)?.unwrap_or(1),
                dt_limit: limit(&ssm, "dt_limit")?,
                d_has_hdim: ssm.flag("D_has_hdim")?.unwrap_or(false),
            };
            (mixer, 128)
        }
        other => {
            let what = format!("is '{other}'; Mamba1 and Mamba2 are known");
            return Err(ssm.wrong("layer", what));
        }
    };
    let multiple = fields
        .size("pad_vocab_size_multiple", 1 << 20)?
        .unwrap_or(8);
    Ok(MambaConfig {
        d_model,
        n_layer: fields.need("n_layer", MOST_LAYERS)?,
        vocab_size: fields
            .need("vocab_size", MOST_TOKENS)?
            .next_multiple_of(multiple),
        d_inner,
        d_state: ssm.size("d_state", MOST_STATE)?.unwrap_or(d_state),
        d_conv: ssm.size("d_conv", MOST_CONV)?.unwrap_or(4),
        mixer,
        bias: ssm.flag("bias")?.unwrap_or(false),
        conv_bias: ssm.flag("conv_bias")?.unwrap_or(true),
        norm_eps: 1e-5,
        tie_embeddings: fields.flag("tie_embeddings")?.unwrap_or(true),
        bos_token_id: fields.token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
    })
}

/// `config.json` as Transformers writes it.
fn transformers(fields: &Fields, name: &str) -> Result<MambaConfig, LmError> {
    let d_model = fields.need("hidden_size", MOST_WIDTH)?;
    let expand = fields.size("expand", MOST_CONV)?.unwrap_or(2);
    let two = name == "mamba2";
    let mut d_inner = expand.saturating_mul(d_model);
    let mixer = match name {
        "mamba" => {
            d_inner = fields
                .size("intermediate_size", MOST_WIDTH)?
                .unwrap_or(d_inner);
            let dt_rank = match fields.get("time_step_rank")? {
                None | Some(Field::Text(_)) => d_model.div_ceil(16),
                Some(_) => fields.need("time_step_rank", MOST_WIDTH)?,
            };
            Mixer::One { dt_rank }
        }
        "mamba2" => {
            let headdim = fields.size("head_dim", MOST_WIDTH)?.unwrap_or(64);
            let heads = fields.size("num_heads", MOST_WIDTH)?.unwrap_or(128);
            if heads.checked_mul(headdim) != Some(d_inner) {
                let what = format!("is {heads}; times 'head_dim' it must be {d_inner} channels");
                return Err(fields.wrong("num_heads", what));
            }
            if fields.flag("norm_before_gate")? == Some(true)
                && fields.flag("rms_norm")? == Some(false)
            {
                return Err(fields.wrong("rms_norm", "is false, which is not known"));
            }
            Mixer::Two {
                headdim,
                ngroups: fields.size("n_groups", MOST_WIDTH)?.unwrap_or(8),
                dt_limit: limit(fields, "time_step_limit")?,
                d_has_hdim: false,
            }
        }
        other => return Err(fields.wrong("model_type", unknown(other))),
    };
    Ok(MambaConfig {
        d_model,
        n_layer: fields.need("num_hidden_layers", MOST_LAYERS)?,
        vocab_size: fields.need("vocab_size", MOST_TOKENS)?,
        d_inner,
        d_state: fields
            .size("state_size", MOST_STATE)?
            .unwrap_or(if two { 128 } else { 16 }),
        d_conv: fields.size("conv_kernel", MOST_CONV)?.unwrap_or(4),
        mixer,
        bias: fields.flag("use_bias")?.unwrap_or(false),
        conv_bias: fields.flag("use_conv_bias")?.unwrap_or(true),
        norm_eps: fields.epsilon("layer_norm_epsilon", Some(1e-5))?,
        tie_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(!two),
        bos_token_id: fields.token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
    })
}

/// Limits of step sizes, a pair of numbers.
fn limit(fields: &Fields, name: &str) -> Result<(f32, f32), LmError> {
    let number = |field: &Field| match *field {
        Field::Whole(whole) => Some(whole as f32),
        Field::Number(number) => Some(number as f32),
        // Transformers writes infinity as an object.
        Field::Other => Some(f32::INFINITY),
        _ => None,
    };
    let all = match fields.get(name)? {
        None => return Ok((0.0, f32::INFINITY)),
        Some(Field::List(items)) => items.iter().map(number).collect::<Option<Vec<f32>>>(),
        Some(_) => None,
    };
    match all.as_deref() {
        Some(&[low, high]) if low >= 0.0 && low <= high => {
            Ok((low, if high >= 3e38 { f32::INFINITY } else { high }))
        }
        _ => Err(fields.wrong(name, "must be two numbers, the lower one first, from 0 on")),
    }
}
