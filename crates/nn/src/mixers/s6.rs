//! The selective scan with what chooses its steps: the middle of Mamba's layer.
//!
//! A. Gu and T. Dao, 2023. `Di` channels, `N` state numbers of each, `R` the rank of the steps:
//!
//! ```text
//! δ, B, C = W_x x        Δ = softplus(W_dt δ + b_dt)        y = scan(x, Δ, -exp(A_log), B, C, D)
//! ```

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Source, even, part, rates, refused};
use crate::ModelError;
use crate::checkpoint::NamedTensor;
use crate::ops::{self, Course, SelectiveInputs};

/// Sizes of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S6Config {
    /// `Di`.
    pub channels: usize,
    /// `N`.
    pub d_state: usize,
    /// `R`.
    pub dt_rank: usize,
}

/// A scan that chooses what it keeps by what it reads.
#[derive(Module, Debug)]
pub struct S6 {
    x_proj: Param<Tensor<2>>,
    dt_proj: Param<Tensor<2>>,
    dt_bias: Param<Tensor<1>>,
    a_log: Param<Tensor<2>>,
    d: Param<Tensor<1>>,
}

drawn_or_read!(S6, S6Config);

impl S6 {
    pub(crate) fn from(
        config: &S6Config,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (di, n, rank) = (config.channels, config.d_state, config.dt_rank);
        if di == 0 || n == 0 || rank == 0 {
            return Err(refused("channels, d_state and dt_rank must be at least 1"));
        }
        let bound = (rank as f64).sqrt().recip();
        Ok(Self {
            x_proj: source.normal("x_proj.weight", [rank + 2 * n, di], device)?,
            dt_proj: source.tensor("dt_proj.weight", [di, rank], device, |_, seed| {
                even(seed, di * rank, bound)
            })?,
            dt_bias: source.dt_bias("dt_proj.bias", di, device)?,
            a_log: source.tensor("A_log", [di, n], device, |_, _| {
                (0..di * n).map(|i| ((i % n + 1) as f32).ln()).collect()
            })?,
            d: source.vector("D", vec![1.0; di], device)?,
        })
    }

    /// `Di`.
    pub(crate) fn channels(&self) -> usize {
        self.d.dims()[0]
    }

    /// `[rows, Di]` to the same.
    pub fn forward(&self, x: Tensor<2>, starts: &[usize], course: Course) -> Tensor<2> {
        let n = self.a_log.dims()[1];
        let rank = self.dt_proj.dims()[1];
        let of = |from: usize, len: usize| part(&x, &self.x_proj, from..from + len);
        let dt = ops::linear(of(0, rank), self.dt_proj.val(), None);
        let inputs = SelectiveInputs {
            dt: ops::softplus(dt, self.dt_bias.val()),
            a: rates(&self.a_log),
            b: of(rank, n),
            c: of(rank + n, n),
            d: Some(self.d.val()),
            x,
        };
        ops::selective_scan(inputs, starts, course)
    }

    /// The tensors as `prefix.x_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let name = |part: &str| format!("{prefix}.{part}");
        vec![
            NamedTensor::new(name("x_proj.weight"), &self.x_proj.val()),
            NamedTensor::new(name("dt_proj.weight"), &self.dt_proj.val()),
            NamedTensor::new(name("dt_proj.bias"), &self.dt_bias.val()),
            NamedTensor::new(name("A_log"), &self.a_log.val()),
            NamedTensor::new(name("D"), &self.d.val()),
        ]
    }
}
