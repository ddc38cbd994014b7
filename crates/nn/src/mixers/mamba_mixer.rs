//! Layers of MambaMixer: tokens and channels are mixed in turn, and every mixer reads an average
//! of what all before it gave.
//!
//! A. Behrouz, M. Santacatterina and R. Zabih, 2024, MambaMixer: Efficient Selective State Space
//! Models with Dual Token and Channel Selection; the equations are in
//! `keyfold_sequence::mamba_mixer`. A mixer is Mamba behind a norm, beside its input:
//!
//! ```text
//! tokens(x)   = x + mamba(norm(x))                              along the tokens of each channel
//! channels(x) = x + there(norm(x)) + flip(back(flip(norm(x))))  along the channels of each token
//! ```
//!
//! In the place of the second, two linear maps with GELU between them may mix the channels (the paper's
//! TSM2-MLP, to compare with): `x + down(gelu(up(norm(x))))` for each number of a row, which fixes how
//! many channels there are.
//!
//! Tensors have the names of the replication whose numbers came near the paper's
//! (n8thantran/mambamixer-replication): the authors published no code.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation};
use keyfold_sequence::mamba_mixer::{Averaging, Grid};
use serde::{Deserialize, Serialize};

use super::{Mamba, MambaConfig, Source, even, refused};
use crate::checkpoint::{NamedTensor, numbers};
use crate::{LayerNorm, Linear, ModelError, ops, random};

/// Sizes of a stack of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MambaMixerConfig {
    /// Length of a row.
    pub d_model: usize,
    /// State numbers of a channel of Mamba.
    pub d_state: usize,
    /// Width of the convolutions.
    pub d_conv: usize,
    /// Channels of Mamba for each number of a row.
    pub expand: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// How earlier outputs are added up.
    pub averaging: Averaging,
    /// Whether channels are mixed as well.
    pub channel_mixer: bool,
    /// 0, or the number of channels: linear maps then mix them in the place of scans.
    pub mlp_channels: usize,
    /// Share of a mixer's numbers that learning leaves out.
    pub dropout: f64,
}

impl Default for MambaMixerConfig {
    /// Of forecasts of ETT.
    fn default() -> Self {
        Self {
            d_model: 32,
            d_state: 16,
            d_conv: 4,
            expand: 2,
            num_layers: 2,
            averaging: Averaging::Softmax,
            channel_mixer: true,
            mlp_channels: 0,
            dropout: 0.3,
        }
    }
}

/// The weights by which a layer adds up what earlier ones gave.
#[derive(Module, Debug)]
pub struct Averages {
    alpha: Option<Param<Tensor<1>>>,
    beta: Option<Param<Tensor<1>>>,
    theta: Option<Param<Tensor<1>>>,
    gamma: Option<Param<Tensor<1>>>,
    softmax: bool,
    channels: bool,
}

impl Averages {
    /// Of layer `layer`, from 0, as they begin; without mixers of channels, when not `channels`,
    /// there are weights of tokens alone.
    ///
    /// # Errors
    /// None; other layers can fail where they are made.
    pub fn init(
        averaging: Averaging,
        layer: usize,
        channels: bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::from(
            averaging,
            layer,
            channels,
            &mut Source::drawn(0.0, 0),
            device,
        )
    }

    /// Reads `prefix.alpha.LAYER` and so on.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(
        averaging: Averaging,
        layer: usize,
        channels: bool,
        weights: &keyfold_core::weights::Weights,
        prefix: &str,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut source = Source::read(weights, prefix);
        Self::from(averaging, layer, channels, &mut source, device)
    }

    fn from(
        averaging: Averaging,
        layer: usize,
        channels: bool,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut of = |name: &str, count: usize, kept: bool| {
            let start = averaging.start(count, kept.then(|| count - 1));
            let param = start.map(|start| source.vector(&format!("{name}.{layer}"), start, device));
            param.transpose()
        };
        let alpha = of("alpha", layer + 1, !channels)?;
        let (mut beta, mut theta, mut gamma) = (None, None, None);
        if channels {
            beta = of("beta", layer + 1, true)?;
            theta = of("theta", layer + 2, true)?;
            gamma = of("gamma", layer + 1, false)?;
        }
        Ok(Self {
            alpha,
            beta,
            theta,
            gamma,
            softmax: averaging == Averaging::Softmax,
            channels,
        })
    }

    /// What the mixer of tokens reads of the outputs of both kinds of mixers, the input first.
    ///
    /// # Panics
    /// When there are not as many outputs as weights.
    pub fn token_input(&self, tokens: &[Tensor<2>], channels: &[Tensor<2>]) -> Tensor<2> {
        let by_tokens = self.sum(&self.alpha, tokens);
        match self.channels {
            true => added(by_tokens, self.sum(&self.beta, channels), channels),
            false => added(by_tokens, None, tokens),
        }
    }

    /// What the mixer of channels reads, the output of this layer's mixer of tokens included.
    ///
    /// # Panics
    /// As [`token_input`](Self::token_input).
    pub fn channel_input(&self, tokens: &[Tensor<2>], channels: &[Tensor<2>]) -> Tensor<2> {
        let by_channels = self.sum(&self.gamma, channels);
        added(self.sum(&self.theta, tokens), by_channels, tokens)
    }

    fn sum(&self, weights: &Option<Param<Tensor<1>>>, outputs: &[Tensor<2>]) -> Option<Tensor<2>> {
        let weights = self.shares(weights.as_ref()?);
        assert_eq!(
            weights.dims()[0],
            outputs.len(),
            "an output for each weight"
        );
        let terms = outputs
            .iter()
            .enumerate()
            .map(|(i, y)| y.clone() * weights.clone().narrow(0, i, 1).reshape([1, 1]));
        terms.reduce(|a, b| a + b)
    }

    /// Weights as they are multiplied by.
    fn shares(&self, weights: &Param<Tensor<1>>) -> Tensor<1> {
        match self.softmax {
            true => activation::softmax(weights.val(), 0),
            false => weights.val(),
        }
    }

    /// Greek name and weights as they are multiplied by, for people who look into a model.
    pub fn told(&self) -> Vec<(&'static str, Vec<f32>)> {
        let learned = self.learned();
        let told = learned.map(|(name, weights)| (name, numbers(&self.shares(weights))));
        told.collect()
    }

    /// The tensors as `prefix.alpha.LAYER` and so on.
    pub fn tensors(&self, prefix: &str, layer: usize) -> Vec<NamedTensor> {
        let named = |(name, weights): (&str, &Param<Tensor<1>>)| {
            let name = super::under(prefix, &format!("{name}.{layer}"));
            NamedTensor::new(name, &weights.val())
        };
        self.learned().map(named).collect()
    }

    /// The weights that there are, by their Greek names.
    fn learned(&self) -> impl Iterator<Item = (&'static str, &Param<Tensor<1>>)> {
        let all = [
            ("alpha", &self.alpha),
            ("beta", &self.beta),
            ("theta", &self.theta),
            ("gamma", &self.gamma),
        ];
        let each = all.into_iter();
        each.filter_map(|(name, weights)| Some((name, weights.as_ref()?)))
    }
}

/// The sum of two sums; where there is none, the last of `outputs`.
fn added(a: Option<Tensor<2>>, b: Option<Tensor<2>>, outputs: &[Tensor<2>]) -> Tensor<2> {
    match (a, b) {
        (Some(a), Some(b)) => a + b,
        (Some(x), None) | (None, Some(x)) => x,
        (None, None) => outputs[outputs.len() - 1].clone(),
    }
}

#[derive(Module, Debug)]
struct Layer {
    averages: Averages,
    token_norm: LayerNorm,
    token_mixer: Mamba,
    channel: Option<Channel>,
}

#[derive(Module, Debug)]
struct Channel {
    norm: LayerNorm,
    mixer: ChannelMixer,
}

// A layer has one, and weights are elsewhere.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
enum ChannelMixer {
    /// Scans from both ends.
    Scans((Mamba, Mamba)),
    /// Maps up and down.
    Mlp((Linear, Linear)),
}

impl Channel {
    /// Rows that lie token after token.
    fn forward(&self, x: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        let x = self.norm.forward(x);
        match &self.mixer {
            ChannelMixer::Scans((there, back)) => {
                let there = there.forward(x.clone(), starts);
                let back = back.forward(ops::reversed(x, starts), starts);
                there + ops::reversed(back, starts)
            }
            ChannelMixer::Mlp((up, down)) => {
                let ([rows, width], [_, channels]) = (x.dims(), up.weight.dims());
                assert!(
                    starts.windows(2).all(|at| at[1] - at[0] == channels),
                    "items of the {channels} channels that linear maps are over"
                );
                let tokens = rows / channels;
                let x = x.reshape([tokens, channels, width]).swap_dims(1, 2);
                let x = down.forward(up.forward_gelu(x.reshape([tokens * width, channels])));
                let x = x.reshape([tokens, width, channels]).swap_dims(1, 2);
                x.reshape([rows, width])
            }
        }
    }

    fn tensors(&self, name: impl Fn(&str) -> String) -> Vec<NamedTensor> {
        let mut all = self.norm.tensors(&name("channel_norms"));
        match &self.mixer {
            ChannelMixer::Scans((there, back)) => {
                all.extend(there.tensors(&name("channel_mixers_fwd")));
                all.extend(back.tensors(&name("channel_mixers_bwd")));
            }
            ChannelMixer::Mlp((up, down)) => {
                all.extend(up.tensors(&name("channel_mlps_up")));
                all.extend(down.tensors(&name("channel_mlps_down")));
            }
        }
        all
    }
}

/// A linear map with bias, begun as PyTorch begins one.
fn linear(
    source: &mut Source,
    name: &str,
    [inputs, outputs]: [usize; 2],
    device: &Device,
) -> Result<Linear, ModelError> {
    let bound = (inputs as f64).sqrt().recip();
    let weight = source.tensor(
        &format!("{name}.weight"),
        [outputs, inputs],
        device,
        |_, seed| even(seed, outputs * inputs, bound),
    )?;
    let bias = source.tensor(&format!("{name}.bias"), [outputs], device, |_, seed| {
        even(seed, outputs, bound)
    })?;
    Ok(Linear {
        weight,
        bias: Some(bias),
    })
}

/// A stack of layers of MambaMixer.
#[derive(Module, Debug)]
pub struct MambaMixer {
    layers: Vec<Layer>,
    dropout: f64,
}

drawn_or_read!(MambaMixer, MambaMixerConfig);

impl MambaMixer {
    fn from(
        config: &MambaMixerConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        if config.num_layers == 0 {
            return Err(refused("num_layers is 0"));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(refused(format!(
                "dropout is {}; it must be at least 0 and below 1",
                config.dropout
            )));
        }
        if config.mlp_channels > 0 && !config.channel_mixer {
            return Err(refused(
                "linear maps over channels are asked for, and channel_mixer is false",
            ));
        }
        let d = config.d_model;
        let mamba = MambaConfig {
            d_model: d,
            d_state: config.d_state,
            d_conv: config.d_conv,
            expand: config.expand,
            dt_rank: 0,
        };
        let layers = (0..config.num_layers).map(|l| {
            let mixer = |name: &str, source: &mut Source| {
                Mamba::from(&mamba, &mut source.part(&format!("{name}.{l}")), device)
            };
            let averages =
                Averages::from(config.averaging, l, config.channel_mixer, source, device)?;
            let token_norm = source.layer_norm(&format!("token_norms.{l}"), d, device)?;
            let token_mixer = mixer("token_mixers", source)?;
            let channel = match config.channel_mixer {
                false => None,
                true => Some(Channel {
                    norm: source.layer_norm(&format!("channel_norms.{l}"), d, device)?,
                    mixer: match config.mlp_channels {
                        0 => ChannelMixer::Scans((
                            mixer("channel_mixers_fwd", source)?,
                            mixer("channel_mixers_bwd", source)?,
                        )),
                        channels => {
                            let inner = config.expand * channels;
                            let up = format!("channel_mlps_up.{l}");
                            let down = format!("channel_mlps_down.{l}");
                            ChannelMixer::Mlp((
                                linear(source, &up, [channels, inner], device)?,
                                linear(source, &down, [inner, channels], device)?,
                            ))
                        }
                    },
                }),
            };
            Ok::<_, ModelError>(Layer {
                averages,
                token_norm,
                token_mixer,
                channel,
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            dropout: config.dropout,
        })
    }

    /// `[rows, d_model]` to the same, of the items of `grid`. Numbers are left out by the seed
    /// `learning`; without it none are.
    ///
    /// # Panics
    /// When the grid has another number of rows, or linear maps over channels are of other items.
    pub fn forward(&self, x: Tensor<2>, grid: &Grid, learning: Option<u64>) -> Tensor<2> {
        assert_eq!(x.dims()[0], grid.rows(), "a row for each place of the grid");
        let drop = |x: Tensor<2>, part: u64| match learning {
            Some(seed) => ops::dropout(x, self.dropout, random::derive(seed, part)),
            None => x,
        };
        let (mut tokens, mut channels) = (vec![x.clone()], vec![x]);
        for (part, layer) in (0..).step_by(2).zip(&self.layers) {
            let input = layer.averages.token_input(&tokens, &channels);
            let normed = layer.token_norm.forward(input.clone());
            let mixed = layer.token_mixer.forward(normed, &grid.token_starts);
            tokens.push(input + drop(mixed, part));
            if let Some(channel) = &layer.channel {
                let input = layer.averages.channel_input(&tokens, &channels);
                let turned = ops::rows(input.clone(), &grid.by_token);
                let mixed = channel.forward(turned, &grid.channel_starts);
                let mixed = ops::rows(drop(mixed, part + 1), &grid.by_channel);
                channels.push(input + mixed);
            }
        }
        let last = self.layers.last().and_then(|layer| layer.channel.as_ref());
        let outputs = if last.is_some() { channels } else { tokens };
        outputs[outputs.len() - 1].clone()
    }

    /// Names and weights of every layer's averages, as they are multiplied by.
    pub fn averages(&self) -> Vec<Vec<(&'static str, Vec<f32>)>> {
        let layers = self.layers.iter();
        layers.map(|layer| layer.averages.told()).collect()
    }

    /// The tensors by the names of the replication, with `prefix` before them.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let mut all = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| super::under(prefix, &format!("{part}.{l}"));
            all.extend(layer.averages.tensors(prefix, l));
            all.extend(layer.token_norm.tensors(&name("token_norms")));
            all.extend(layer.token_mixer.tensors(&name("token_mixers")));
            if let Some(channel) = &layer.channel {
                all.extend(channel.tensors(name));
            }
        }
        all
    }
}
