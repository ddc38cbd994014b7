//! The layers of a Mamba model.

use std::collections::BTreeMap;

use keyfold_kernels::Team;
use keyfold_kernels::blocks::{Activations, dequantize};
use keyfold_kernels::scan::{
    CausalConv, Rows, SSD_CHUNK, Selective, Ssd, selective_scan, ssd_scan,
};

use super::config::{MambaConfig, Mixer};
use super::tensors::Tensors;
use crate::Tensor;
use crate::error::{LmError, tensor as wrong_tensor};
use crate::linear::{DenseLinear, Linear};

/// Changes step sizes before a scan, or looks at them: a step of 0 passes a token over.
pub trait StepFilter {
    /// Steps `[n, channels]` (Mamba) or `[n, heads]` (Mamba-2) of the next tokens in a layer.
    fn steps(&mut self, layer: usize, steps: &mut [f32]);
}

/// Leaves steps as they are.
pub(super) struct Unchanged;

impl StepFilter for Unchanged {
    fn steps(&mut self, _: usize, _: &mut [f32]) {}
}

/// A language model, ready to be read with. Sessions share it.
pub struct MambaLm {
    config: MambaConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: DenseLinear,
    fingerprint: u64,
}

struct Layer {
    norm: Vec<f32>,
    in_proj: DenseLinear,
    conv: CausalConv,
    kind: Kind,
    /// Of Mamba `[d_state, d_inner]`, of Mamba-2 `[heads]`: rates of decay, below 0.
    a: Vec<f32>,
    d: Vec<f32>,
    dt_bias: Vec<f32>,
    out_proj: DenseLinear,
}

enum Kind {
    One {
        x_proj: DenseLinear,
        dt_proj: DenseLinear,
    },
    Two {
        norm: Vec<f32>,
    },
}

/// All that a model keeps of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct MambaState {
    pub(super) layers: Vec<LayerState>,
}

/// What a layer keeps: the last inputs of its convolution, and the state of its scan.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerState {
    pub(super) conv: Vec<f32>,
    pub(super) ssm: Vec<f32>,
}

impl MambaState {
    /// Bytes that it takes, whatever the text's length.
    pub fn bytes(&self) -> u64 {
        let numbers = self.layers.iter().map(|l| l.conv.len() + l.ssm.len());
        4 * numbers.sum::<usize>() as u64
    }
}

/// Room for a pass; grown once.
#[derive(Default)]
pub(super) struct Buffers {
    h: Vec<f32>,
    x: Activations,
    projected: Vec<f32>,
    convolved: Vec<f32>,
    selected: Vec<f32>,
    steps: Vec<f32>,
    inner: Activations,
    added: Vec<f32>,
    /// The first layer whose step sizes were not finite.
    pub(super) odd_steps: Option<usize>,
    pub(super) logits: Vec<f32>,
}

/// Notes the first layer whose steps are not finite.
fn note_steps(steps: &[f32], layer: usize, odd: &mut Option<usize>) {
    if odd.is_none() && !steps.iter().all(|step| step.is_finite()) {
        *odd = Some(layer);
    }
}

/// Tensors by name: their shapes and numbers.
pub type Numbers = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tensors of a model under its authors' names, with their shapes.
pub fn tensor_shapes(config: &MambaConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner, n) = (config.d_model, config.d_inner, config.d_state);
    let (channels, steps) = (config.conv_channels(), config.steps());
    let table = vec![config.vocab_size, hidden];
    let mut all = vec![
        ("embedding.weight".to_owned(), table.clone()),
        ("norm_f.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_embeddings {
        all.push(("lm_head.weight".to_owned(), table));
    }
    for layer in 0..config.n_layer {
        let mut put = |name: &str, shape: &[usize]| {
            all.push((format!("layers.{layer}.{name}"), shape.to_vec()));
        };
        put("norm.weight", &[hidden]);
        put("mixer.conv1d.weight", &[channels, 1, config.d_conv]);
        put("mixer.out_proj.weight", &[hidden, inner]);
        let in_rows = match config.mixer {
            Mixer::One { dt_rank } => {
                put("mixer.x_proj.weight", &[dt_rank + 2 * n, inner]);
                put("mixer.dt_proj.weight", &[inner, dt_rank]);
                put("mixer.dt_proj.bias", &[inner]);
                put("mixer.A_log", &[inner, n]);
                put("mixer.D", &[inner]);
                2 * inner
            }
            Mixer::Two { d_has_hdim, .. } => {
                put("mixer.dt_bias", &[steps]);
                put("mixer.A_log", &[steps]);
                put("mixer.D", &[if d_has_hdim { inner } else { steps }]);
                put("mixer.norm.weight", &[inner]);
                inner + channels + steps
            }
        };
        put("mixer.in_proj.weight", &[in_rows, hidden]);
        if config.conv_bias {
            put("mixer.conv1d.bias", &[channels]);
        }
        if config.bias {
            put("mixer.in_proj.bias", &[in_rows]);
            put("mixer.out_proj.bias", &[hidden]);
        }
    }
    all
}

impl MambaLm {
    pub(super) fn new(config: MambaConfig, tensors: &Tensors) -> Result<Self, LmError> {
        let (vocab, hidden) = (config.vocab_size, config.d_model);
        let embedding = tensors.matrix("embedding.weight", [vocab, hidden])?;
        let layers: Result<_, _> = (0..config.n_layer)
            .map(|layer| Layer::new(&config, tensors, layer))
            .collect();
        let norm = tensors.numbers("norm_f.weight", &[hidden])?;
        let head = match config.tie_embeddings {
            true => embedding.clone(),
            false => tensors.matrix("lm_head.weight", [vocab, hidden])?,
        };
        let head = dense(tensors, "lm_head.weight", head, None)?;
        let layers = layers?;
        tensors.refuse_others(config.architecture(), "lm_head.weight")?;
        let fingerprint = keyfold_core::seed_of(&format!("{config:?}{}", tensors.heads()));
        Ok(Self {
            config,
            embedding,
            layers,
            norm,
            head,
            fingerprint,
        })
    }

    /// A model of numbers in memory, by the names of [`tensor_shapes`].
    ///
    /// # Errors
    /// When one is missing, of another shape, unknown, or not finite.
    pub fn from_numbers(config: MambaConfig, numbers: Numbers) -> Result<Self, LmError> {
        Self::new(config, &Tensors::from_numbers(numbers))
    }

    /// Its sizes.
    pub fn config(&self) -> &MambaConfig {
        &self.config
    }

    /// Tells this model's weights from another's: what a saved state is bound to.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Rates of decay of a layer, below 0: `[d_state, d_inner]` of Mamba, `[heads]` of Mamba-2.
    pub fn rates(&self, layer: usize) -> &[f32] {
        &self.layers[layer].a
    }

    /// Bytes of weights that one token reads.
    pub fn weight_bytes(&self) -> u64 {
        let layer = |l: &Layer| {
            let of_kind = match &l.kind {
                Kind::One { x_proj, dt_proj } => {
                    x_proj.bytes_read() + dt_proj.bytes_read() + 4 * l.a.len() as u64
                }
                Kind::Two { .. } => 0,
            };
            l.in_proj.bytes_read() + l.out_proj.bytes_read() + of_kind
        };
        self.layers.iter().map(layer).sum::<u64>() + self.head.bytes_read()
    }

    /// The state before a text.
    pub fn empty_state(&self) -> MambaState {
        let config = &self.config;
        let layer = |l: &Layer| LayerState {
            conv: vec![0.0; l.conv.state_len()],
            ssm: vec![0.0; config.d_inner * config.d_state],
        };
        MambaState {
            layers: self.layers.iter().map(layer).collect(),
        }
    }

    /// Sends tokens (below `vocab_size`) through all layers.
    pub(super) fn pass(
        &self,
        tokens: &[u32],
        state: &mut MambaState,
        b: &mut Buffers,
        filter: &mut dyn StepFilter,
        team: &Team,
    ) {
        let hidden = self.config.d_model;
        b.h.resize(tokens.len() * hidden, 0.0);
        for (&token, h) in tokens.iter().zip(b.h.chunks_exact_mut(hidden)) {
            let row = self.embedding.bytes().len() / self.config.vocab_size;
            let bytes = &self.embedding.bytes()[token as usize * row..][..row];
            dequantize(self.embedding.kind(), bytes, h);
        }
        let layers = self.layers.iter().zip(&mut state.layers).enumerate();
        for (i, (layer, state)) in layers {
            layer.pass(i, &self.config, state, b, filter, team);
        }
    }

    /// Logits of some of the last pass's tokens.
    pub(super) fn logits(&self, rows: std::ops::Range<usize>, b: &mut Buffers, team: &Team) {
        let hidden = self.config.d_model;
        let h = &b.h[rows.start * hidden..rows.end * hidden];
        fill_normed(&self.norm, self.config.norm_eps, h, &mut b.x, team);
        b.logits.resize(rows.len() * self.config.vocab_size, 0.0);
        self.head.apply(&mut b.x, &mut b.logits, true, team);
    }
}

fn fill_normed(weight: &[f32], eps: f32, h: &[f32], x: &mut Activations, team: &Team) {
    let width = weight.len();
    let rows = x.fill(h.len() / width, width);
    let norm = |first: usize, rows: &mut [f32]| {
        rows.copy_from_slice(&h[first..first + rows.len()]);
        keyfold_kernels::rms_norm(rows, width, weight, eps);
    };
    match rows.len() == width {
        true => norm(0, rows),
        false => team.split(rows, width, norm),
    }
}

fn apply(linear: &DenseLinear, x: &mut Activations, out: &mut Vec<f32>, team: &Team) {
    out.resize(x.rows() * linear.rows(), 0.0);
    linear.apply(x, out, true, team);
}

fn dense(
    tensors: &Tensors,
    name: &str,
    weight: Tensor,
    bias: Option<Vec<f32>>,
) -> Result<DenseLinear, LmError> {
    DenseLinear::new(weight, bias).map_err(|e| wrong_tensor(tensors.path(), name, e.to_string()))
}

impl Layer {
    fn new(config: &MambaConfig, tensors: &Tensors, layer: usize) -> Result<Self, LmError> {
        let at = |name: &str| format!("layers.{layer}.{name}");
        let numbers = |name: &str, shape: &[usize]| tensors.numbers(&at(name), shape);
        let linear = |name: &str, shape: [usize; 2], bias: bool| {
            let weight = at(&format!("mixer.{name}.weight"));
            let bias = match bias {
                true => Some(numbers(&format!("mixer.{name}.bias"), &shape[..1])?),
                false => None,
            };
            dense(tensors, &weight, tensors.matrix(&weight, shape)?, bias)
        };
        let (hidden, inner, n) = (config.d_model, config.d_inner, config.d_state);
        let channels = config.conv_channels();
        let (a_len, d_len) = match config.mixer {
            Mixer::One { .. } => (vec![inner, n], inner),
            Mixer::Two { d_has_hdim, .. } => {
                let heads = config.heads();
                (vec![heads], if d_has_hdim { inner } else { heads })
            }
        };
        // GGUF files hold the rate itself.
        let a = match tensors.has(&at("mixer.A")) {
            true => numbers("mixer.A", &a_len)?,
            false => {
                let mut a = numbers("mixer.A_log", &a_len)?;
                a.iter_mut().for_each(|a| *a = -a.exp());
                a
            }
        };
        if let Some(odd) = a.iter().find(|a| !(a.is_finite() && **a <= 0.0)) {
            let what = format!("gives the rate {odd}; rates are finite and not above 0");
            return Err(wrong_tensor(tensors.path(), &at("mixer.A_log"), what));
        }
        let (in_rows, a, kind) = match config.mixer {
            Mixer::One { dt_rank } => {
                let kind = Kind::One {
                    x_proj: linear("x_proj", [dt_rank + 2 * n, inner], false)?,
                    dt_proj: linear("dt_proj", [inner, dt_rank], false)?,
                };
                // By state number, then channel.
                let a = (0..n * inner).map(|i| a[i % inner * n + i / inner]);
                (2 * inner, a.collect(), kind)
            }
            Mixer::Two { .. } => {
                let norm = numbers("mixer.norm.weight", &[inner])?;
                (inner + channels + config.heads(), a, Kind::Two { norm })
            }
        };
        let conv_bias = match config.conv_bias {
            true => numbers("mixer.conv1d.bias", &[channels])?,
            false => vec![0.0; channels],
        };
        // GGUF files call both kinds' bias alike.
        let dt_bias = match (&kind, tensors.has(&at("mixer.dt_proj.bias"))) {
            (Kind::One { .. }, true) => numbers("mixer.dt_proj.bias", &[inner])?,
            _ => numbers("mixer.dt_bias", &[config.steps()])?,
        };
        let conv = numbers("mixer.conv1d.weight", &[channels, 1, config.d_conv])?;
        Ok(Self {
            norm: numbers("norm.weight", &[hidden])?,
            in_proj: linear("in_proj", [in_rows, hidden], config.bias)?,
            conv: CausalConv::new(&conv, conv_bias),
            kind,
            a,
            d: numbers("mixer.D", &[d_len])?,
            dt_bias,
            out_proj: linear("out_proj", [hidden, inner], config.bias)?,
        })
    }

    fn pass(
        &self,
        index: usize,
        config: &MambaConfig,
        state: &mut LayerState,
        b: &mut Buffers,
        filter: &mut dyn StepFilter,
        team: &Team,
    ) {
        fill_normed(&self.norm, config.norm_eps, &b.h, &mut b.x, team);
        apply(&self.in_proj, &mut b.x, &mut b.projected, team);
        let n = b.x.rows();
        match &self.kind {
            Kind::One { .. } => self.mix_one(index, config, state, b, filter, n, team),
            Kind::Two { norm } => self.mix_two(index, config, norm, state, b, filter, n, team),
        }
        apply(&self.out_proj, &mut b.inner, &mut b.added, team);
        keyfold_kernels::add_assign(&mut b.h, &b.added);
    }

    #[allow(clippy::too_many_arguments)]
    fn mix_one(
        &self,
        index: usize,
        config: &MambaConfig,
        state: &mut LayerState,
        b: &mut Buffers,
        filter: &mut dyn StepFilter,
        n: usize,
        team: &Team,
    ) {
        let Kind::One { x_proj, dt_proj } = &self.kind else {
            return;
        };
        let (inner, states, rank) = (config.d_inner, config.d_state, dt_proj.cols());
        let x = Rows::columns(&b.projected, 2 * inner, 0..inner);
        let z = Rows::columns(&b.projected, 2 * inner, inner..2 * inner);
        let convolved = b.inner.fill(n, inner);
        self.conv.forward(x, &mut state.conv, convolved, true, team);
        apply(x_proj, &mut b.inner, &mut b.selected, team);
        let width = rank + 2 * states;
        let deltas = b.x.fill(n, rank);
        for (delta, row) in deltas
            .chunks_exact_mut(rank)
            .zip(b.selected.chunks_exact(width))
        {
            delta.copy_from_slice(&row[..rank]);
        }
        apply(dt_proj, &mut b.x, &mut b.steps, team);
        self.finish_steps(&mut b.steps, (0.0, f32::INFINITY), team);
        note_steps(&b.steps, index, &mut b.odd_steps);
        filter.steps(index, &mut b.steps);
        b.convolved.clear();
        b.convolved.extend_from_slice(b.inner.values());
        let inputs = Selective {
            x: Rows::new(&b.convolved, inner),
            dt: Rows::new(&b.steps, inner),
            a: &self.a,
            b: Rows::columns(&b.selected, width, rank..rank + states),
            c: Rows::columns(&b.selected, width, rank + states..width),
            d: Some(&self.d),
        };
        let out = b.inner.fill(n, inner);
        selective_scan(&inputs, Some(z), &mut state.ssm, out, team);
    }

    #[allow(clippy::too_many_arguments)]
    fn mix_two(
        &self,
        index: usize,
        config: &MambaConfig,
        norm: &[f32],
        state: &mut LayerState,
        b: &mut Buffers,
        filter: &mut dyn StepFilter,
        n: usize,
        team: &Team,
    ) {
        let Mixer::Two {
            ngroups, dt_limit, ..
        } = config.mixer
        else {
            return;
        };
        let (inner, channels, heads) = (config.d_inner, self.conv.channels(), config.heads());
        let width = inner + channels + heads;
        let xbc = Rows::columns(&b.projected, width, inner..inner + channels);
        b.convolved.resize(n * channels, 0.0);
        self.conv
            .forward(xbc, &mut state.conv, &mut b.convolved, true, team);
        b.steps.clear();
        for row in b.projected.chunks_exact(width) {
            b.steps.extend_from_slice(&row[inner + channels..]);
        }
        self.finish_steps(&mut b.steps, dt_limit, team);
        note_steps(&b.steps, index, &mut b.odd_steps);
        filter.steps(index, &mut b.steps);
        let shared = ngroups * config.d_state;
        let inputs = Ssd {
            x: Rows::columns(&b.convolved, channels, 0..inner),
            dt: Rows::new(&b.steps, heads),
            a: &self.a,
            b: Rows::columns(&b.convolved, channels, inner..inner + shared),
            c: Rows::columns(&b.convolved, channels, inner + shared..channels),
            d: Some(&self.d),
            groups: ngroups,
        };
        let out = b.inner.fill(n, inner);
        ssd_scan(&inputs, SSD_CHUNK, &mut state.ssm, out, team);
        let z = Rows::columns(&b.projected, width, 0..inner);
        let gate = |first: usize, rows: &mut [f32]| {
            let mut gate = Vec::with_capacity(inner);
            for (i, row) in rows.chunks_exact_mut(inner).enumerate() {
                gate.clear();
                gate.extend_from_slice(z.row(first / inner + i));
                keyfold_kernels::silu_mul(&mut gate, row);
                row.copy_from_slice(&gate);
                let part = inner / ngroups;
                for (row, weight) in row.chunks_exact_mut(part).zip(norm.chunks_exact(part)) {
                    keyfold_kernels::rms_norm(row, part, weight, config.norm_eps);
                }
            }
        };
        match n {
            1 => gate(0, out),
            _ => team.split(out, inner, gate),
        }
    }

    /// `softplus(steps + bias)`, within limits.
    fn finish_steps(&self, steps: &mut [f32], (low, high): (f32, f32), team: &Team) {
        let width = self.dt_bias.len();
        let finish = |_: usize, steps: &mut [f32]| {
            keyfold_kernels::add_bias(steps, &self.dt_bias);
            keyfold_kernels::softplus(steps);
            if low > 0.0 || high < f32::INFINITY {
                steps.iter_mut().for_each(|s| *s = s.clamp(low, high));
            }
        };
        match steps.len() < 1 << 14 {
            true => finish(0, steps),
            false => team.split(steps, width, finish),
        }
    }
}
