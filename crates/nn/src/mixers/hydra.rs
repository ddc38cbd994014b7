//! The layer of Hydra, which sees a text from both sides.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers. The equations are in `keyfold_sequence::hydra`, which computes
//! the same without gradients.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conv, EPS, Source, check_two_sided, heads, part, rates, refused};
use crate::ModelError;
use crate::checkpoint::NamedTensor;
use crate::ops::{self, ConvShape, Course, SsdInputs};

/// Sizes of a layer; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HydraConfig {
    /// `D`.
    pub d_model: usize,
    /// `N`.
    pub d_state: usize,
    /// Width of the convolution, odd.
    pub d_conv: usize,
    /// `Di / D`.
    pub expand: usize,
    /// `P`.
    pub headdim: usize,
    /// `G`.
    pub ngroups: usize,
    /// Whether both directions read and write the state alike: the quasiseparable mixer among
    /// the authors' matrix mixers, whose heads all share one group.
    pub shared: bool,
}

impl Default for HydraConfig {
    fn default() -> Self {
        Self {
            d_model: 768,
            d_state: 64,
            d_conv: 7,
            expand: 2,
            headdim: 64,
            ngroups: 1,
            shared: false,
        }
    }
}

impl HydraConfig {
    /// `Di` and `H`.
    fn sizes(&self) -> Result<(usize, usize), ModelError> {
        let di = self.expand * self.d_model;
        if di == 0 || self.d_state == 0 {
            return Err(refused("d_model, expand and d_state must be at least 1"));
        }
        let heads = heads(di, self.headdim)?;
        if self.ngroups == 0 || !heads.is_multiple_of(self.ngroups) {
            return Err(refused(format!(
                "ngroups {} does not divide {heads} heads",
                self.ngroups
            )));
        }
        check_two_sided(self.d_conv)?;
        Ok((di, heads))
    }
}

/// A layer of Hydra.
#[derive(Module, Debug)]
pub struct Hydra {
    in_proj: Param<Tensor<2>>,
    conv1d: Conv,
    dt_bias: Param<Tensor<1>>,
    a_log: Param<Tensor<1>>,
    d: Param<Tensor<1>>,
    fc_d: Param<Tensor<2>>,
    norm: Param<Tensor<1>>,
    out_proj: Param<Tensor<2>>,
    groups: usize,
    shared: bool,
}

drawn_or_read!(Hydra, HydraConfig);

impl Hydra {
    pub(crate) fn from(
        config: &HydraConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (di, heads) = config.sizes()?;
        let d = config.d_model;
        let sides = if config.shared { 1 } else { 2 };
        let channels = di + sides * 2 * config.ngroups * config.d_state;
        let inner = inner(config.shared);
        let name = |part: &str| format!("{inner}{part}");
        Ok(Self {
            in_proj: source.normal("in_proj.weight", [di + channels + 2 * heads, d], device)?,
            conv1d: source.conv("conv1d", channels, config.d_conv, device)?,
            dt_bias: source.dt_bias(&name("dt_bias"), heads, device)?,
            a_log: source.vector(&name("A_log"), vec![0.0; heads], device)?,
            d: source.vector(&name("D"), vec![1.0; heads], device)?,
            fc_d: source.normal(&name("fc_D.weight"), [heads, di], device)?,
            norm: source.vector("norm.weight", vec![1.0; di], device)?,
            out_proj: source.normal("out_proj.weight", [d, di], device)?,
            groups: config.ngroups,
            shared: config.shared,
        })
    }

    /// `[rows, d_model]` to the same; each position sees all of its text.
    pub fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        let (di, heads) = (self.norm.dims()[0], self.d.dims()[0]);
        let rows = u.dims()[0];
        let channels = self.in_proj.dims()[0] - di - 2 * heads;
        let sides = if self.shared { 1 } else { 2 };
        let states = (channels - di) / (2 * sides);
        let shape = ConvShape {
            ahead: self.conv1d.width() / 2,
            silu: true,
        };
        let convolved = |from: usize, len: usize| {
            let x = part(&u, &self.in_proj, di + from..di + from + len);
            self.conv1d.part(x, from..from + len, starts, shape)
        };
        let x = convolved(0, di);
        let read_and_written = |side: usize| {
            let first = di + 2 * states * side;
            [convolved(first, states), convolved(first + states, states)]
        };
        let ahead = read_and_written(0);
        let back = match self.shared {
            true => ahead.clone(),
            false => read_and_written(1),
        };
        let scans = [ahead, back].into_iter().enumerate().map(|(side, [b, c])| {
            let first = di + channels + side * heads;
            let dt = part(&u, &self.in_proj, first..first + heads);
            let inputs = SsdInputs {
                x: x.clone(),
                dt: ops::softplus(dt, self.dt_bias.val()),
                a: rates(&self.a_log),
                b,
                c,
                d: None,
                groups: self.groups,
            };
            let course = Course {
                backward: side == 1,
                strict: true,
            };
            ops::ssd_scan(inputs, starts, course)
        });
        let diagonal = ops::linear(x.clone(), self.fc_d.val(), Some(self.d.val()));
        let by_head =
            x.clone().reshape([rows, heads, di / heads]) * diagonal.reshape([rows, heads, 1]);
        let y = scans.fold(by_head.reshape([rows, di]), |sum, y| sum + y);
        let normed = ops::rms_norm(y, self.norm.val(), EPS);
        let z = part(&u, &self.in_proj, 0..di);
        ops::linear(ops::silu_mul(z, normed), self.out_proj.val(), None)
    }

    /// The tensors as `prefix.in_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| format!("{prefix}.{part}");
        let inner = |part: &str| format!("{prefix}.{}{part}", inner(self.shared));
        let mut all = vec![
            NamedTensor::new(name("in_proj.weight"), &self.in_proj.val()),
            NamedTensor::new(inner("dt_bias"), &self.dt_bias.val()),
            NamedTensor::new(inner("A_log"), &self.a_log.val()),
            NamedTensor::new(inner("D"), &self.d.val()),
            NamedTensor::new(inner("fc_D.weight"), &self.fc_d.val()),
            NamedTensor::new(name("norm.weight"), &self.norm.val()),
            NamedTensor::new(name("out_proj.weight"), &self.out_proj.val()),
        ];
        all.extend(self.conv1d.tensors(&name("conv1d")));
        all
    }
}

/// Where the authors' quasiseparable mixer keeps what Hydra has in the layer itself.
fn inner(shared: bool) -> &'static str {
    if shared { "matrix_mixer." } else { "" }
}
