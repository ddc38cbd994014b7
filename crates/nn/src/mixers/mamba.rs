//! The layer of Mamba.
//!
//! A. Gu and T. Dao, 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces.
//! `Di = expand · D` channels, `N` state numbers of each, `R` the rank of the steps:
//!
//! ```text
//! x, z = W_in u                  x = silu(conv(x))
//! δ, B, C = W_x x                Δ = softplus(W_dt δ + b_dt)      A = -exp(A_log)
//! out = W_out (scan(x, Δ, A, B, C, D) silu(z))
//! ```
//!
//! Time and memory grow with the number of positions.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conv, S6, S6Config, Scanned, Source, part, refused};
use crate::ModelError;
use crate::checkpoint::NamedTensor;
use crate::ops::{self, ConvShape, Course};

/// Sizes of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MambaConfig {
    /// `D`.
    pub d_model: usize,
    /// `N`.
    pub d_state: usize,
    /// Width of the convolution.
    pub d_conv: usize,
    /// `Di / D`.
    pub expand: usize,
    /// `R`; 0 stands for a sixteenth of `d_model`.
    pub dt_rank: usize,
}

impl Default for MambaConfig {
    /// mamba-130m.
    fn default() -> Self {
        Self {
            d_model: 768,
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: 0,
        }
    }
}

impl MambaConfig {
    /// `Di` and `R`.
    fn sizes(&self) -> Result<(usize, usize), ModelError> {
        let di = self.expand * self.d_model;
        if di == 0 || self.d_state == 0 || self.d_conv == 0 {
            return Err(refused(
                "d_model, expand, d_state and d_conv must be at least 1",
            ));
        }
        let rank = match self.dt_rank {
            0 => self.d_model.div_ceil(16),
            rank => rank,
        };
        Ok((di, rank))
    }
}

/// A layer of Mamba.
#[derive(Module, Debug)]
pub struct Mamba {
    in_proj: Param<Tensor<2>>,
    conv1d: Conv,
    s6: S6,
    out_proj: Param<Tensor<2>>,
}

drawn_or_read!(Mamba, MambaConfig);

impl Mamba {
    pub(crate) fn from(
        config: &MambaConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (channels, dt_rank) = config.sizes()?;
        let d = config.d_model;
        let s6 = S6Config {
            channels,
            d_state: config.d_state,
            dt_rank,
        };
        Ok(Self {
            in_proj: source.normal("in_proj.weight", [2 * channels, d], device)?,
            conv1d: source.conv("conv1d", channels, config.d_conv, device)?,
            s6: S6::from(&s6, source, device)?,
            out_proj: source.normal("out_proj.weight", [d, channels], device)?,
        })
    }

    /// `[rows, d_model]` to the same; each position sees itself and those before it in its text.
    pub fn forward(&self, u: Tensor<2>, starts: &[usize]) -> Tensor<2> {
        let Scanned { z, y, .. } = self.scan(u, starts);
        self.finish(z, y)
    }

    /// Up to the scan.
    pub(crate) fn scan(&self, u: Tensor<2>, starts: &[usize]) -> Scanned {
        let di = self.s6.channels();
        let shape = ConvShape {
            ahead: 0,
            silu: true,
        };
        let x = self
            .conv1d
            .part(part(&u, &self.in_proj, 0..di), 0..di, starts, shape);
        Scanned {
            z: part(&u, &self.in_proj, di..2 * di),
            y: self.s6.forward(x.clone(), starts, Course::default()),
            x,
        }
    }

    /// From what the scan gave on.
    pub(crate) fn finish(&self, z: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        ops::linear(ops::silu_mul(z, y), self.out_proj.val(), None)
    }

    /// The tensors as `prefix.in_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| format!("{prefix}.{part}");
        let mut all = vec![
            NamedTensor::new(name("in_proj.weight"), &self.in_proj.val()),
            NamedTensor::new(name("out_proj.weight"), &self.out_proj.val()),
        ];
        all.extend(self.s6.tensors(prefix));
        all.extend(self.conv1d.tensors(&name("conv1d")));
        all
    }
}
