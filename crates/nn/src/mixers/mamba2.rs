//! The layer of Mamba-2.
//!
//! T. Dao and A. Gu, 2024, Transformers are SSMs. `Di = expand · D = H P` channels in `H` heads,
//! `N` state numbers of each channel, one group of heads:
//!
//! ```text
//! z, x, B, C, dt = W_in u        x, B, C = silu(conv(x, B, C))
//! y = scan(x, softplus(dt + b_dt), -exp(A_log), B, C, D)
//! out = W_out norm(y silu(z))
//! ```
//!
//! Time and memory grow with the number of positions.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conv, EPS, Scanned, Source, heads, part, rates, refused};
use crate::checkpoint::NamedTensor;
use crate::ops::{self, ConvShape, Course, SsdInputs};
use crate::{ModelError, random};

/// Sizes of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mamba2Config {
    /// `D`.
    pub d_model: usize,
    /// `N`.
    pub d_state: usize,
    /// Width of the convolution.
    pub d_conv: usize,
    /// `Di / D`.
    pub expand: usize,
    /// `P`.
    pub headdim: usize,
}

impl Default for Mamba2Config {
    /// mamba2-130m.
    fn default() -> Self {
        Self {
            d_model: 768,
            d_state: 128,
            d_conv: 4,
            expand: 2,
            headdim: 64,
        }
    }
}

impl Mamba2Config {
    /// `Di` and `H`.
    pub(crate) fn sizes(&self) -> Result<(usize, usize), ModelError> {
        let di = self.expand * self.d_model;
        if di == 0 || self.d_state == 0 || self.d_conv == 0 {
            return Err(refused(
                "d_model, expand, d_state and d_conv must be at least 1",
            ));
        }
        Ok((di, heads(di, self.headdim)?))
    }
}

/// A layer of Mamba-2.
#[derive(Module, Debug)]
pub struct Mamba2 {
    in_proj: Param<Tensor<2>>,
    conv1d: Conv,
    dt_bias: Param<Tensor<1>>,
    a_log: Param<Tensor<1>>,
    d: Param<Tensor<1>>,
    norm: Param<Tensor<1>>,
    out_proj: Param<Tensor<2>>,
}

drawn_or_read!(Mamba2, Mamba2Config);

impl Mamba2 {
    pub(crate) fn from(
        config: &Mamba2Config,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (di, heads) = config.sizes()?;
        let (d, n) = (config.d_model, config.d_state);
        Ok(Self {
            in_proj: source.normal("in_proj.weight", [2 * di + 2 * n + heads, d], device)?,
            conv1d: source.conv("conv1d", di + 2 * n, config.d_conv, device)?,
            dt_bias: source.dt_bias("dt_bias", heads, device)?,
            a_log: source.tensor("A_log", [heads], device, |_, seed| {
                let rate = |i| 1.0 + 15.0 * random::unit(seed, i);
                (0..heads as u64).map(|i| rate(i).ln() as f32).collect()
            })?,
            d: source.vector("D", vec![1.0; heads], device)?,
            norm: source.vector("norm.weight", vec![1.0; di], device)?,
            out_proj: source.normal("out_proj.weight", [d, di], device)?,
        })
    }

    /// `[rows, d_model]` to the same; each position sees itself and those before it in its text.
    pub fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        let Scanned { z, y, .. } = self.scan(u, starts);
        self.finish(z, y)
    }

    /// Up to the scan.
    pub(crate) fn scan(&self, u: Tensor<2>, starts: &[usize]) -> Scanned {
        let (di, heads) = (self.norm.dims()[0], self.d.dims()[0]);
        let n = (self.in_proj.dims()[0] - 2 * di - heads) / 2;
        let shape = ConvShape {
            ahead: 0,
            silu: true,
        };
        let convolved = |from: usize, len: usize| {
            let x = part(&u, &self.in_proj, di + from..di + from + len);
            self.conv1d.part(x, from..from + len, starts, shape)
        };
        let x = convolved(0, di);
        let dt = part(&u, &self.in_proj, 2 * di + 2 * n..2 * di + 2 * n + heads);
        let inputs = SsdInputs {
            x: x.clone(),
            dt: ops::softplus(dt, self.dt_bias.val()),
            a: rates(&self.a_log),
            b: convolved(di, n),
            c: convolved(di + n, n),
            d: Some(self.d.val()),
            groups: 1,
        };
        Scanned {
            z: part(&u, &self.in_proj, 0..di),
            x,
            y: ops::ssd_scan(inputs, starts, Course::default()),
        }
    }

    /// From what the scan gave on.
    pub(crate) fn finish(&self, z: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let normed = ops::rms_norm(ops::silu_mul(z, y), self.norm.val(), EPS);
        ops::linear(normed, self.out_proj.val(), None)
    }

    /// The tensors as `prefix.in_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| format!("{prefix}.{part}");
        let mut all = vec![
            NamedTensor::new(name("in_proj.weight"), &self.in_proj.val()),
            NamedTensor::new(name("dt_bias"), &self.dt_bias.val()),
            NamedTensor::new(name("A_log"), &self.a_log.val()),
            NamedTensor::new(name("D"), &self.d.val()),
            NamedTensor::new(name("norm.weight"), &self.norm.val()),
            NamedTensor::new(name("out_proj.weight"), &self.out_proj.val()),
        ];
        all.extend(self.conv1d.tensors(&name("conv1d")));
        all
    }
}
