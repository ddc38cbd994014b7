//! TSM2: forecasts of many columns by a network that selects over time and over columns.
//!
//! A. Behrouz, M. Santacatterina and R. Zabih, 2024, MambaMixer: Efficient Selective State Space
//! Models with Dual Token and Channel Selection. `M` columns of `T` rows, `n` patches, `D` numbers
//! of a patch, `H` rows forecast:
//!
//! ```text
//! x  = (x - mean(x)) / (std(x) + 1e-5)              of each column in the window
//! h  = W_p patches(x, W_s static, W_f mixed(future)) + positions            [M n, D]
//! h  = layers of MambaMixer: along the patches of a column, along the columns of a patch
//! ŷ  = W_h norm2(norm1(h))                          norms over D, then over n
//! ŷ  = ŷ (std(x) + 1e-5) + mean(x)
//! ```
//!
//! Features that do not change (`[M, C_s]`) and columns whose coming `H` rows are known (`C_f`) each
//! become `T` more numbers before the patches; what is known is first mixed over its columns from
//! both ends. The authors published no code; sizes, norms and the names of tensors are those of the
//! replication whose errors came within a few percent of the paper's. Columns have no natural order,
//! but the scan over them has: another order gives another model. Time and memory grow with `M n`.

mod config;
mod forecaster;
mod train;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::weights::Weights;
use keyfold_nn::checkpoint::NamedTensor;
use keyfold_nn::mixers::{Mamba, MambaConfig, MambaMixer};
use keyfold_nn::{LayerNorm, Linear, ModelError, ops, random};
use keyfold_sequence::mamba_mixer::Grid;

use crate::SignalError;
pub use config::Tsm2Config;
pub use forecaster::{Forecaster, Learned};
pub use train::{Scaled, Tsm2Training, train};

/// What is added to deviations and to the variances of norms.
const EPS: f64 = 1e-5;

/// Windows that a model looks at together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inputs {
    /// Number of columns, `M`.
    pub columns: usize,
    /// Rows that are looked at, `[windows, M, T]`.
    pub contexts: Vec<f32>,
    /// What is known of the coming rows, `[windows, C_f, H]`.
    pub future: Vec<f32>,
    /// Features that do not change, `[M, C_s]`.
    pub statics: Vec<f32>,
}

/// A forecaster that can be trained.
#[derive(Module, Debug)]
pub struct Tsm2 {
    patch_embedding: Linear,
    /// `[n, D]`.
    pos_embed: Param<Tensor<2>>,
    statics: Option<Linear>,
    future: Option<Future>,
    mixer: MambaMixer,
    norm1: LayerNorm,
    norm2: LayerNorm,
    head: Linear,
    #[module(skip)]
    config: Tsm2Config,
}

/// What is known of the coming rows as `T` numbers.
#[derive(Module, Debug)]
struct Future {
    norm: LayerNorm,
    there: Mamba,
    back: Mamba,
    linear: Linear,
}

impl Future {
    /// `[windows C_f, H]` to `[windows, T]`.
    fn forward(&self, x: Tensor<2>, features: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        let starts: Vec<usize> = (0..=rows).step_by(features).collect();
        let normed = self.norm.forward(x.clone());
        let there = self.there.forward(normed.clone(), &starts);
        let back = self.back.forward(ops::reversed(normed, &starts), &starts);
        let mixed = x + there + ops::reversed(back, &starts);
        let joined = mixed.reshape([rows / features, features * width]);
        self.linear.forward(joined)
    }
}

/// A layer's deviation as PyTorch draws it.
fn deviation(inputs: usize) -> f32 {
    (3.0 * inputs as f32).sqrt().recip()
}

impl Tsm2 {
    /// A model with random weights.
    ///
    /// # Errors
    /// When the sizes make no sense.
    pub fn init(config: &Tsm2Config, seed: u64, device: &Device) -> Result<Self, SignalError> {
        config.check()?;
        let (t, h, d, n) = (
            config.seq_len,
            config.pred_len,
            config.d_model,
            config.patches(),
        );
        let part = |part: u64| random::derive(seed, part);
        let linear = |inputs: usize, outputs: usize, seed: u64| {
            Linear::init(inputs, outputs, true, deviation(inputs), seed, device)
        };
        let positions = TensorData::new(random::normal(part(1), n * d, 0.02), [n, d]);
        let future = match config.future_features {
            0 => None,
            features => {
                let mamba =
                    |seed| Mamba::init(&Self::of_future(config), deviation(h), seed, device);
                Some(Future {
                    norm: LayerNorm::init(h, EPS, device),
                    there: mamba(part(2))?,
                    back: mamba(part(3))?,
                    linear: linear(features * h, t, part(4)),
                })
            }
        };
        Ok(Self {
            patch_embedding: linear(config.patch_len, d, part(0)),
            pos_embed: Param::from_data(positions, device),
            statics: (config.static_features > 0)
                .then(|| linear(config.static_features, t, part(5))),
            future,
            mixer: MambaMixer::init(&config.mixer(), deviation(d), part(6), device)?,
            norm1: LayerNorm::init(d, EPS, device),
            norm2: LayerNorm::init(n, EPS, device),
            head: linear(n * d, h, part(7)),
            config: config.clone(),
        })
    }

    /// Reads `patch_embedding.weight` and so on.
    ///
    /// # Errors
    /// When the sizes make no sense, or a tensor is missing or of another shape.
    pub fn load(
        config: &Tsm2Config,
        weights: &Weights,
        device: &Device,
    ) -> Result<Self, SignalError> {
        config.check()?;
        let (t, h, d, n) = (
            config.seq_len,
            config.pred_len,
            config.d_model,
            config.patches(),
        );
        let linear = |name: &str, inputs: usize, outputs: usize| {
            Linear::load(weights, name, inputs, outputs, true, device)
        };
        let norm = |name: &str, width: usize| LayerNorm::load(weights, name, width, EPS, device);
        let future = match config.future_features {
            0 => None,
            features => {
                let mamba =
                    |name: &str| Mamba::load(&Self::of_future(config), weights, name, device);
                Some(Future {
                    norm: norm("future_norm", h)?,
                    there: mamba("future_mixer_fwd")?,
                    back: mamba("future_mixer_bwd")?,
                    linear: linear("future_embedding", features * h, t)?,
                })
            }
        };
        let positions = weights
            .tensor("pos_embed", &[1, n, d])
            .map_err(ModelError::from)?;
        Ok(Self {
            patch_embedding: linear("patch_embedding", config.patch_len, d)?,
            pos_embed: Param::from_data(TensorData::new(positions, [n, d]), device),
            statics: match config.static_features {
                0 => None,
                features => Some(linear("static_embedding", features, t)?),
            },
            future,
            mixer: MambaMixer::load(&config.mixer(), weights, "", device)?,
            norm1: norm("norm_2d.norm1", d)?,
            norm2: norm("norm_2d.norm2", n)?,
            head: linear("head", n * d, h)?,
            config: config.clone(),
        })
    }

    fn of_future(config: &Tsm2Config) -> MambaConfig {
        MambaConfig {
            d_model: config.pred_len,
            d_state: config.d_state,
            d_conv: config.d_conv,
            expand: config.expand,
            dt_rank: 0,
        }
    }

    /// Its sizes.
    pub fn config(&self) -> &Tsm2Config {
        &self.config
    }

    /// Forecasts `[windows M, H]`. Numbers are left out by the seed `learning`; without it none are.
    ///
    /// # Panics
    /// When lengths do not fit the sizes.
    pub fn forward(&self, inputs: &Inputs, learning: Option<u64>) -> Tensor<2> {
        let (t, d, n) = (
            self.config.seq_len,
            self.config.d_model,
            self.config.patches(),
        );
        let series = inputs.contexts.len() / t;
        assert_eq!(series * t, inputs.contexts.len(), "length of the contexts");
        assert_eq!(series % inputs.columns, 0, "number of the contexts");
        let drop = |x: Tensor<2>, part: u64| match learning {
            Some(seed) => ops::dropout(x, self.config.dropout, random::derive(seed, part)),
            None => x,
        };
        let (x, means, deviations) = normed(&inputs.contexts, t);
        let device = self.pos_embed.val().device();
        let column = |numbers: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(numbers, [series, 1]), &device)
        };
        let patches = self.patches(self.lengthened(x, inputs, &device));
        let positions: Vec<u32> = (0..series).flat_map(|_| 0..n as u32).collect();
        let embedded =
            self.patch_embedding.forward(patches) + ops::rows(self.pos_embed.val(), &positions);
        let windows = series / inputs.columns;
        let grid = Grid::new((0..windows).map(|_| [inputs.columns, n]));
        let seed = learning.map(|seed| random::derive(seed, 2));
        let h = self.mixer.forward(drop(embedded, 0), &grid, seed);
        let h = self
            .norm1
            .forward(h)
            .reshape([series, n, d])
            .swap_dims(1, 2);
        let h = self.norm2.forward(h.reshape([series * d, n]));
        let h = h
            .reshape([series, d, n])
            .swap_dims(1, 2)
            .reshape([series, n * d]);
        self.head.forward(drop(h, 1)) * column(deviations) + column(means)
    }

    /// Contexts with what the features add behind them, `[windows M, length]`.
    fn lengthened(&self, x: Vec<f32>, inputs: &Inputs, device: &Device) -> Tensor<2> {
        let (t, columns) = (self.config.seq_len, inputs.columns);
        let series = x.len() / t;
        let tensor = |numbers: Vec<f32>, width: usize| {
            let rows = numbers.len() / width;
            Tensor::<2>::from_data(TensorData::new(numbers, [rows, width]), device)
        };
        let mut parts = vec![tensor(x, t)];
        if let Some(linear) = &self.statics {
            let features = self.config.static_features;
            assert_eq!(inputs.statics.len(), columns * features, "static features");
            let each = linear.forward(tensor(inputs.statics.clone(), features));
            let ids: Vec<u32> = (0..series).map(|s| (s % columns) as u32).collect();
            parts.push(ops::rows(each, &ids));
        }
        if let Some(future) = &self.future {
            let (features, h) = (self.config.future_features, self.config.pred_len);
            assert_eq!(
                inputs.future.len(),
                series / columns * features * h,
                "future"
            );
            let each = future.forward(tensor(inputs.future.clone(), h), features);
            let ids: Vec<u32> = (0..series).map(|s| (s / columns) as u32).collect();
            parts.push(ops::rows(each, &ids));
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 1),
        }
    }

    /// The patches of rows of numbers, `[rows n, patch_len]`.
    fn patches(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, length] = x.dims();
        let (p, stride, n) = (
            self.config.patch_len,
            self.config.stride,
            self.config.patches(),
        );
        let ids = (0..rows).flat_map(|row| {
            let first = move |patch: usize| row * length + patch * stride;
            (0..n).flat_map(move |patch| (0..p).map(move |i| (first(patch) + i) as u32))
        });
        let ids: Vec<u32> = ids.collect();
        ops::rows(x.reshape([rows * length, 1]), &ids).reshape([rows * n, p])
    }

    /// Names and weights of every layer's averages.
    pub fn averages(&self) -> Vec<Vec<(&'static str, Vec<f32>)>> {
        self.mixer.averages()
    }

    /// The tensors by the names of the replication.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut all = self.patch_embedding.tensors("patch_embedding");
        let mut positions = NamedTensor::new("pos_embed", &self.pos_embed.val());
        positions.shape.insert(0, 1);
        all.push(positions);
        if let Some(linear) = &self.statics {
            all.extend(linear.tensors("static_embedding"));
        }
        if let Some(future) = &self.future {
            all.extend(future.norm.tensors("future_norm"));
            all.extend(future.there.tensors("future_mixer_fwd"));
            all.extend(future.back.tensors("future_mixer_bwd"));
            all.extend(future.linear.tensors("future_embedding"));
        }
        all.extend(self.mixer.tensors(""));
        all.extend(self.norm1.tensors("norm_2d.norm1"));
        all.extend(self.norm2.tensors("norm_2d.norm2"));
        all.extend(self.head.tensors("head"));
        all
    }
}

/// Rows of `width` by their own mean and deviation; means and deviations.
fn normed(rows: &[f32], width: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (mut x, mut means, mut deviations) = (Vec::with_capacity(rows.len()), vec![], vec![]);
    for row in rows.chunks_exact(width) {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
        let squares = row.iter().map(|x| (f64::from(*x) - mean).powi(2));
        // Unbiased, as in the replication.
        let deviation = (squares.sum::<f64>() / (width - 1) as f64).sqrt() + EPS;
        let scaled = row
            .iter()
            .map(|x| ((f64::from(*x) - mean) / deviation) as f32);
        x.extend(scaled);
        means.push(mean as f32);
        deviations.push(deviation as f32);
    }
    (x, means, deviations)
}
