//! A decoder: its weights, and one layer after the other.
//!
//! ```text
//! h  = embed(tokens)
//! h += W_o attention(rope(W_q n), rope(W_k n), W_v n)      n = norm(h)
//! h += W_down (silu(W_gate m) * W_up m)                    m = norm(h)
//! logits = W_head norm(h)
//! ```
//!
//! GPT-2 has learned positions instead of rotary ones, a plain feed-forward layer, layer
//! norms and biases. What attention reads is a matter of the [roles](crate::roles); this
//! file knows none of the methods.

use crate::LmError;
use crate::config::{Activation, Config, Norm, Positions, Rope, RopeScaling, rope_frequencies};
use crate::linear::{DenseLinear, Linear, apply_several};
use crate::{ModelFile, Tensor};
use keyfold_kernels::Team;
use keyfold_kernels::attention::{Rotation, rotate};
use keyfold_kernels::blocks::Activations;

/// A norm over the hidden state (or over a head's vector).
struct NormWeights {
    kind: Norm,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl NormWeights {
    /// Normalises rows in place.
    fn apply(&self, rows: &mut [f32]) {
        match self.kind {
            Norm::Rms => keyfold_kernels::rms_norm(rows, self.weight.len(), &self.weight, self.eps),
            Norm::Layer => keyfold_kernels::layer_norm(
                rows,
                self.weight.len(),
                &self.weight,
                self.bias.as_deref(),
                self.eps,
            ),
        }
    }
}

/// The linear maps of a layer, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinearName {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the feed-forward layer; absent where it is not gated.
    Gate,
    /// Into the feed-forward layer.
    Up,
    /// Out of it.
    Down,
}

impl LinearName {
    /// All, in order.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The tensor's name after `model.layers.N.`, without `.weight`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// Weights of a layer.
pub struct Layer {
    attention_norm: NormWeights,
    mlp_norm: NormWeights,
    head_norms: Option<[NormWeights; 2]>,
    /// By [`LinearName`].
    linears: [Option<Box<dyn Linear>>; 7],
}

impl Layer {
    /// One of its linear maps.
    pub fn linear(&self, name: LinearName) -> Option<&dyn Linear> {
        self.linears[name as usize].as_deref()
    }
}

/// A language model, ready to be read with. Sessions share it.
pub struct Decoder {
    config: Config,
    embedding: Tensor,
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    norm: NormWeights,
    head: DenseLinear,
    fingerprint: u64,
}

/// Rotary angles of a chunk: `[n, rotated / 2]` each.
#[derive(Debug, Default)]
pub struct Angles {
    inv_freq: Vec<f32>,
    scale: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Decoder {
    /// Takes the weights of a file. They stay where they are; nothing is copied but norms and biases.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(file: &ModelFile) -> Result<Self, LmError> {
        let config = file.config().clone();
        let (hidden, vocab) = (config.dims.hidden, config.dims.vocab);
        let embedding = file.expect("model.embed_tokens.weight", &[vocab, hidden])?;
        let positions = match config.positions {
            Positions::Learned => {
                let shape = [config.max_position_embeddings, hidden];
                Some(file.expect("model.embed_positions.weight", &shape)?)
            }
            Positions::Rope(_) => None,
        };
        let layers: Result<_, _> = (0..config.dims.layers)
            .map(|layer| load_layer(file, &config, layer))
            .collect();
        let norm = load_norm(file, &config, config.norm, "model.norm", hidden)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => file.expect("lm_head.weight", &[vocab, hidden])?,
        };
        let head = dense(file, "lm_head.weight", head, None)?;
        let fingerprint = fingerprint(file)?;
        Ok(Self {
            config,
            embedding,
            positions,
            layers: layers?,
            norm,
            head,
            fingerprint,
        })
    }

    /// Its sizes and settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Replaces a linear map by one of the same shape (weights that are folded).
    ///
    /// # Errors
    /// When the layer has no such map or the shapes differ.
    pub fn replace(
        &mut self,
        layer: usize,
        name: LinearName,
        by: Box<dyn Linear>,
    ) -> Result<(), LmError> {
        let old = self.layers.get(layer).and_then(|l| l.linear(name));
        let shape = old.map(|l| (l.rows(), l.cols()));
        if shape != Some((by.rows(), by.cols())) {
            let what = format!(
                "layer {layer} has no {} of {} x {}",
                name.path(),
                by.rows(),
                by.cols()
            );
            return Err(LmError::Input { what });
        }
        self.layers[layer].linears[name as usize] = Some(by);
        Ok(())
    }

    /// Tells this model's weights from another's: what a saved prompt is bound to.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Bytes of weights that one decoded token reads.
    pub fn weight_bytes(&self) -> u64 {
        let linears = self.layers.iter().flat_map(|l| l.linears.iter().flatten());
        linears.map(|l| l.bytes_read()).sum::<u64>() + self.head.bytes_read()
    }

    /// Writes the embeddings `[n, hidden]` of tokens (which are below `vocab`).
    pub(crate) fn embed(&self, tokens: &[u32], positions: &[u32], out: &mut [f32]) {
        let hidden = self.config.dims.hidden;
        let mut learned = vec![0.0; if self.positions.is_some() { hidden } else { 0 }];
        for ((&token, &position), out) in tokens
            .iter()
            .zip(positions)
            .zip(out.chunks_exact_mut(hidden))
        {
            read_row(&self.embedding, token as usize, out);
            if let Some(table) = &self.positions {
                read_row(table, position as usize, &mut learned);
                keyfold_kernels::add_assign(out, &learned);
            }
        }
    }

    /// Fills `x` with `norm(h)`, before attention or (`mlp`) before the feed-forward layer.
    pub(crate) fn normed(
        &self,
        layer: usize,
        mlp: bool,
        h: &[f32],
        x: &mut Activations,
        team: &Team,
    ) {
        let layer = &self.layers[layer];
        let norm = if mlp {
            &layer.mlp_norm
        } else {
            &layer.attention_norm
        };
        fill_normed(norm, h, self.config.dims.hidden, x, team);
    }

    /// Fills `x` with the final norm of `h`.
    pub(crate) fn final_norm(&self, h: &[f32], x: &mut Activations, team: &Team) {
        fill_normed(&self.norm, h, self.config.dims.hidden, x, team);
    }

    /// `out` `[n, rows]` of a linear map that every layer has.
    pub(crate) fn linear(
        &self,
        layer: usize,
        name: LinearName,
        x: &mut Activations,
        out: &mut Vec<f32>,
        decoding: bool,
        team: &Team,
    ) {
        self.linears(layer, [name], x, [out], decoding, team);
    }

    /// [`linear`](Self::linear) of several maps that read the same `x`.
    pub(crate) fn linears<const N: usize>(
        &self,
        layer: usize,
        names: [LinearName; N],
        x: &mut Activations,
        outs: [&mut Vec<f32>; N],
        decoding: bool,
        team: &Team,
    ) {
        let maps = names.map(|name| match self.layers[layer].linear(name) {
            Some(map) => map,
            None => unreachable!("loaded in load_layer: {name:?}"),
        });
        let mut maps_left = maps.iter();
        let outs = outs.map(|out| {
            let rows = maps_left.next().map_or(0, |map| map.rows());
            out.resize(x.rows() * rows, 0.0);
            out.as_mut_slice()
        });
        apply_several(maps, x, outs, decoding, team);
    }

    /// Normalises the vectors of every query and key head, where the model does that.
    pub(crate) fn head_norms(&self, layer: usize, q: &mut [f32], k: &mut [f32]) {
        if let Some([of_q, of_k]) = &self.layers[layer].head_norms {
            of_q.apply(q);
            of_k.apply(k);
        }
    }

    /// `out` = feed-forward layer of `x`.
    pub(crate) fn mlp(
        &self,
        layer: usize,
        x: &mut Activations,
        buffers: &mut MlpBuffers,
        out: &mut Vec<f32>,
        decoding: bool,
        team: &Team,
    ) {
        let n = x.rows();
        let inner = buffers.inner.fill(n, self.config.intermediate_size);
        if self.config.gated_mlp {
            self.linears(
                layer,
                [LinearName::Gate, LinearName::Up],
                x,
                [&mut buffers.gate, &mut buffers.up],
                decoding,
                team,
            );
            let (gate, up, act) = (&buffers.gate, &buffers.up, self.config.hidden_act);
            team.split(inner, 1, |first, inner| {
                let span = first..first + inner.len();
                inner.copy_from_slice(&gate[span.clone()]);
                gate_by(act, inner, &up[span]);
            });
        } else {
            self.linear(layer, LinearName::Up, x, &mut buffers.up, decoding, team);
            inner.copy_from_slice(&buffers.up);
            activate(self.config.hidden_act, inner);
        }
        self.linear(
            layer,
            LinearName::Down,
            &mut buffers.inner,
            out,
            decoding,
            team,
        );
    }

    /// Logits `[n, vocab]` of normalised hidden states.
    pub(crate) fn logits(&self, x: &mut Activations, out: &mut Vec<f32>, team: &Team) {
        out.resize(x.rows() * self.config.dims.vocab, 0.0);
        self.head.apply(x, out, true, team);
    }

    /// The angles of `positions` in a text of `length` tokens.
    pub(crate) fn angles(&self, positions: &[u32], length: usize, angles: &mut Angles) {
        let dynamic = |r: &Rope| matches!(r.scaling, RopeScaling::Dynamic { .. });
        if angles.inv_freq.is_empty() || self.config.rope().is_some_and(dynamic) {
            (angles.inv_freq, angles.scale) = rope_frequencies(&self.config, length);
        }
        angles.cos.clear();
        angles.sin.clear();
        for &position in positions {
            for &f in &angles.inv_freq {
                let (sin, cos) = (position as f32 * f).sin_cos();
                angles.cos.push(cos * angles.scale);
                angles.sin.push(sin * angles.scale);
            }
        }
    }

    /// Rotates `x` `[n, heads, head_dim]` by the angles of its tokens, in layers that do so.
    pub(crate) fn rotate(&self, layer: usize, x: &mut [f32], angles: &Angles) {
        let Some(rope) = self.config.rope().filter(|r| r.layers[layer]) else {
            return;
        };
        let rotation = if rope.interleaved {
            Rotation::Interleaved
        } else {
            Rotation::Half
        };
        let half = angles.inv_freq.len();
        let tokens = angles.cos.len() / half.max(1);
        let width = x.len() / tokens.max(1);
        let (cos, sin) = (angles.cos.chunks_exact(half), angles.sin.chunks_exact(half));
        for (x, (cos, sin)) in x.chunks_exact_mut(width).zip(cos.zip(sin)) {
            rotate(x, self.config.dims.head_dim, cos, sin, rotation);
        }
    }
}

/// What the feed-forward layer needs room for.
#[derive(Default)]
pub(crate) struct MlpBuffers {
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Activations,
}

/// `x *= act(gate)`, in the place of the gate.
fn gate_by(act: Activation, gate: &mut [f32], up: &[f32]) {
    if act == Activation::Silu {
        keyfold_kernels::silu_mul(gate, up);
    } else {
        activate(act, gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
    }
}

fn activate(act: Activation, x: &mut [f32]) {
    match act {
        Activation::Silu => keyfold_kernels::silu(x),
        Activation::Gelu => keyfold_kernels::gelu(x),
        Activation::GeluTanh => keyfold_kernels::gelu_tanh(x),
        Activation::Relu => keyfold_kernels::relu(x),
    }
}

fn fill_normed(norm: &NormWeights, h: &[f32], hidden: usize, x: &mut Activations, team: &Team) {
    let rows = x.fill(h.len() / hidden, hidden);
    if rows.len() == hidden {
        rows.copy_from_slice(h);
        norm.apply(rows);
        return;
    }
    team.split(rows, hidden, |first, rows| {
        rows.copy_from_slice(&h[first..first + rows.len()]);
        norm.apply(rows);
    });
}

fn read_row(table: &Tensor, row: usize, out: &mut [f32]) {
    let bytes = table.bytes();
    let row_bytes = bytes.len() / table.rows().max(1);
    keyfold_kernels::blocks::dequantize(
        table.kind(),
        &bytes[row * row_bytes..(row + 1) * row_bytes],
        out,
    );
}

fn load_norm(
    file: &ModelFile,
    config: &Config,
    kind: Norm,
    name: &str,
    len: usize,
) -> Result<NormWeights, LmError> {
    let weight = file.expect(&format!("{name}.weight"), &[len])?.to_f32();
    let bias = match kind {
        Norm::Layer => Some(file.expect(&format!("{name}.bias"), &[len])?.to_f32()),
        Norm::Rms => None,
    };
    Ok(NormWeights {
        kind,
        weight,
        bias,
        eps: config.norm_eps,
    })
}

fn dense(
    file: &ModelFile,
    name: &str,
    weight: Tensor,
    bias: Option<Vec<f32>>,
) -> Result<DenseLinear, LmError> {
    DenseLinear::new(weight, bias).map_err(|e| LmError::Tensor {
        path: file.path().to_owned(),
        tensor: name.to_owned(),
        what: e.to_string(),
    })
}

/// A linear map of a layer as the file has it; none where the architecture has none.
///
/// # Errors
/// When its tensor is missing or has another shape.
pub fn load_linear(
    file: &ModelFile,
    layer: usize,
    name: LinearName,
) -> Result<Option<DenseLinear>, LmError> {
    let config = file.config();
    let d = &config.dims;
    let (q, kv, inner) = (
        d.heads * d.head_dim,
        d.kv_heads * d.head_dim,
        config.intermediate_size,
    );
    let (shape, bias) = match name {
        LinearName::Q => ([q, d.hidden], config.qkv_bias),
        LinearName::K | LinearName::V => ([kv, d.hidden], config.qkv_bias),
        LinearName::O => ([d.hidden, q], config.output_bias),
        LinearName::Gate if !config.gated_mlp => return Ok(None),
        LinearName::Gate | LinearName::Up => ([inner, d.hidden], config.mlp_bias),
        LinearName::Down => ([d.hidden, inner], config.mlp_bias),
    };
    let name = format!("model.layers.{layer}.{}", name.path());
    let tensor = format!("{name}.weight");
    let weight = file.expect(&tensor, &shape)?;
    let bias = match bias {
        true => Some(file.expect(&format!("{name}.bias"), &shape[..1])?.to_f32()),
        false => None,
    };
    dense(file, &tensor, weight, bias).map(Some)
}

fn load_layer(file: &ModelFile, config: &Config, layer: usize) -> Result<Layer, LmError> {
    let d = &config.dims;
    let at = |name: &str| format!("model.layers.{layer}.{name}");
    let norm = |name: &str| load_norm(file, config, config.norm, &at(name), d.hidden);
    let mut linears = [const { None }; 7];
    for name in LinearName::ALL {
        let linear = load_linear(file, layer, name)?;
        linears[name as usize] = linear.map(|l| Box::new(l) as Box<dyn Linear>);
    }
    let head_norm = |name: &str| load_norm(file, config, Norm::Rms, &at(name), d.head_dim);
    let head_norms = match config.qk_norm {
        true => Some([
            head_norm("self_attn.q_norm")?,
            head_norm("self_attn.k_norm")?,
        ]),
        false => None,
    };
    Ok(Layer {
        attention_norm: norm("input_layernorm")?,
        mlp_norm: norm("post_attention_layernorm")?,
        head_norms,
        linears,
    })
}

/// A hash of the sizes and of the first bytes of every tensor.
fn fingerprint(file: &ModelFile) -> Result<u64, LmError> {
    let mut text = format!("{:?}", file.config());
    let mut names: Vec<&str> = file.names().collect();
    names.sort_unstable();
    for name in names {
        let tensor = file.tensor(name)?;
        let bytes = tensor.bytes();
        text.push_str(name);
        bytes[..bytes.len().min(64)]
            .iter()
            .for_each(|b| text.push(char::from(*b)));
    }
    Ok(keyfold_core::seed_of(&text))
}
