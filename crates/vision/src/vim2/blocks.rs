//! The mixers of ViM2.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData, activation};
use keyfold_nn::checkpoint::NamedTensor;
use keyfold_nn::mixers::{Mamba, MambaConfig, S6, S6Config};
use keyfold_nn::ops::{self, ConvShape, Course};
use keyfold_nn::{LayerNorm, Linear, ModelError, random};
use keyfold_sequence::mamba_mixer::Grid;

use super::{Origin, Vim2Config, part};
use crate::VisionError;

/// Rows and columns of the convolution.
const KERNEL: usize = 3;

/// What the four scans are called in a folder's weights: along rows and back, along columns and back.
const COURSES: [&str; 4] = ["rows", "rows_back", "columns", "columns_back"];

/// The rows of a batch of square pictures, and the orders in which they are scanned.
pub(super) struct Places {
    /// First rows of the pictures' rows, and the order by columns.
    grid: Grid,
    /// First rows of the pictures.
    pictures: Vec<usize>,
    /// For each row of the convolution, the place that each place takes; the number of places stands
    /// for none.
    shifted: [Vec<u32>; KERNEL],
}

impl Places {
    pub(super) fn new(pictures: usize, side: usize) -> Self {
        let all = pictures * side * side;
        let shifted = std::array::from_fn(|kernel| {
            let from = |at: usize| {
                let row = (at / side) % side + kernel;
                // One row up is `kernel` 0.
                match (1..=side).contains(&row) {
                    true => (at + kernel * side - side) as u32,
                    false => all as u32,
                }
            };
            (0..all).map(from).collect()
        });
        Self {
            grid: Grid::new((0..pictures).map(|_| [side, side])),
            pictures: (0..=pictures).map(|p| p * side * side).collect(),
            shifted,
        }
    }
}

/// A mixer of places.
#[derive(Module, Debug)]
pub(super) struct Place {
    norm: LayerNorm,
    in_proj: Linear,
    /// `[channels, 9]`.
    conv: Param<Tensor<2>>,
    conv_bias: Param<Tensor<1>>,
    scans: Vec<S6>,
    out_proj: Linear,
}

impl Place {
    pub(super) fn from(
        width: usize,
        d_state: usize,
        name: &str,
        from: &Origin,
        device: &Device,
    ) -> Result<Self, VisionError> {
        let of = |part: &str| format!("{name}.{part}");
        let taps = KERNEL * KERNEL;
        let (conv, bias) = match from {
            Origin::Seed(seed) => {
                let deviation = (3.0 * taps as f32).sqrt().recip();
                let seed = part(*seed, &of("conv"));
                (
                    random::normal(seed, width * taps, deviation),
                    vec![0.0; width],
                )
            }
            Origin::Weights(weights) => {
                let read = |name: &str, shape: &[usize]| weights.tensor(&of(name), shape);
                (
                    read("conv.weight", &[width, 1, KERNEL, KERNEL]).map_err(ModelError::from)?,
                    read("conv.bias", &[width]).map_err(ModelError::from)?,
                )
            }
        };
        let config = S6Config {
            channels: width,
            d_state,
            dt_rank: width.div_ceil(16),
        };
        let scans = COURSES.iter().map(|course| {
            let name = of(&format!("scans.{course}"));
            let deviation = (3.0 * width as f32).sqrt().recip();
            match from {
                Origin::Seed(seed) => S6::init(&config, deviation, part(*seed, &name), device),
                Origin::Weights(weights) => S6::load(&config, weights, &name, device),
            }
        });
        Ok(Self {
            norm: from.norm(&of("norm"), width, device)?,
            in_proj: from.linear(&of("in_proj"), [width, 2 * width], device)?,
            conv: Param::from_data(TensorData::new(conv, [width, taps]), device),
            conv_bias: Param::from_data(TensorData::new(bias, [width]), device),
            scans: scans.collect::<Result<_, _>>()?,
            out_proj: from.linear(&of("out_proj"), [width, width], device)?,
        })
    }

    pub(super) fn forward(&self, x: Tensor<2>, places: &Places) -> Tensor<2> {
        let width = x.dims()[1];
        let both = self.in_proj.forward(self.norm.forward(x.clone()));
        let u = both.clone().narrow(1, 0, width);
        let z = both.narrow(1, width, width);
        let u = activation::silu(self.convolved(u, places));
        let turned = ops::rows(u.clone(), &places.grid.by_token);
        let scan = |course: usize, u: &Tensor<2>| {
            let way = Course {
                backward: course % 2 == 1,
                strict: false,
            };
            self.scans[course].forward(u.clone(), &places.pictures, way)
        };
        let by_rows = scan(0, &u) + scan(1, &u);
        let by_columns = scan(2, &turned) + scan(3, &turned);
        let y = by_rows + ops::rows(by_columns, &places.grid.by_channel);
        x + self.out_proj.forward(ops::silu_mul(z, y))
    }

    /// The convolution of 3 by 3, zeros beyond the picture: one along the rows for each of its rows,
    /// moved to where it is read.
    fn convolved(&self, x: Tensor<2>, places: &Places) -> Tensor<2> {
        let [rows, width] = x.dims();
        let device = x.device();
        let shape = ConvShape {
            ahead: KERNEL / 2,
            silu: false,
        };
        let starts = &places.grid.token_starts;
        let none = Tensor::<2>::zeros([1, width], &device);
        let parts = places.shifted.iter().enumerate().map(|(row, shifted)| {
            let taps = self.conv.val().narrow(1, row * KERNEL, KERNEL);
            let no_bias = Tensor::<1>::zeros([width], &device);
            let part = ops::depthwise_conv(x.clone(), taps, no_bias, starts, shape);
            ops::rows(Tensor::cat(vec![part, none.clone()], 0), shifted)
        });
        let sum = parts.reduce(|a, b| a + b);
        let bias = self.conv_bias.val().reshape([1, width]);
        sum.unwrap_or_else(|| Tensor::zeros([rows, width], &device)) + bias
    }

    pub(super) fn tensors(&self, name: &str) -> Vec<NamedTensor> {
        let of = |part: &str| format!("{name}.{part}");
        let mut conv = NamedTensor::new(of("conv.weight"), &self.conv.val());
        conv.shape = vec![conv.shape[0], 1, KERNEL, KERNEL];
        let mut all = vec![
            conv,
            NamedTensor::new(of("conv.bias"), &self.conv_bias.val()),
        ];
        all.extend(self.norm.tensors(&of("norm")));
        all.extend(self.in_proj.tensors(&of("in_proj")));
        for (course, scan) in COURSES.iter().zip(&self.scans) {
            all.extend(scan.tensors(&of(&format!("scans.{course}"))));
        }
        all.extend(self.out_proj.tensors(&of("out_proj")));
        all
    }
}

/// A mixer of the channels of each place by itself.
#[derive(Module, Debug)]
pub(super) struct Channels {
    norm: LayerNorm,
    there: Mamba,
    back: Mamba,
    width: usize,
}

impl Channels {
    pub(super) fn from(
        config: &Vim2Config,
        width: usize,
        name: &str,
        from: &Origin,
        device: &Device,
    ) -> Result<Self, VisionError> {
        let sizes = MambaConfig {
            d_model: config.channel_width,
            d_state: config.d_state,
            ..MambaConfig::default()
        };
        let mamba = |side: &str| {
            let name = format!("{name}.{side}");
            let deviation = (3.0 * config.channel_width as f32).sqrt().recip();
            match from {
                Origin::Seed(seed) => Mamba::init(&sizes, deviation, part(*seed, &name), device),
                Origin::Weights(weights) => Mamba::load(&sizes, weights, &name, device),
            }
        };
        Ok(Self {
            norm: from.norm(&format!("{name}.norm"), width, device)?,
            there: mamba("there")?,
            back: mamba("back")?,
            width: config.channel_width,
        })
    }

    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, width] = x.dims();
        let steps = width / self.width;
        let starts: Vec<usize> = (0..=rows).map(|row| row * steps).collect();
        let u = self
            .norm
            .forward(x.clone())
            .reshape([rows * steps, self.width]);
        let there = self.there.forward(u.clone(), &starts);
        let back = self.back.forward(ops::reversed(u, &starts), &starts);
        let mixed = there + ops::reversed(back, &starts);
        x + mixed.reshape([rows, width])
    }

    pub(super) fn tensors(&self, name: &str) -> Vec<NamedTensor> {
        let mut all = self.norm.tensors(&format!("{name}.norm"));
        all.extend(self.there.tensors(&format!("{name}.there")));
        all.extend(self.back.tensors(&format!("{name}.back")));
        all
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::module::conv2d;
    use burn::tensor::ops::ConvOptions;
    use keyfold_nn::checkpoint::numbers;

    use super::*;

    #[test]
    fn the_convolution_is_that_of_the_framework() {
        let device = Device::flex();
        let (pictures, side, width) = (2, 5, 3);
        let place = Place::from(width, 2, "x", &Origin::Seed(4), &device).unwrap();
        let rows = pictures * side * side;
        let data = TensorData::new(random::normal(1, rows * width, 1.0), [rows, width]);
        let x = Tensor::<2>::from_data(data, &device);
        let ours = place.convolved(x.clone(), &Places::new(pictures, side));
        let weight = place.conv.val().reshape([width, 1, KERNEL, KERNEL]);
        let x = x
            .reshape([pictures, side, side, width])
            .permute([0, 3, 1, 2]);
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], width);
        let theirs = conv2d(x, weight, Some(place.conv_bias.val()), options);
        let theirs = theirs.permute([0, 2, 3, 1]).reshape([rows, width]);
        for (a, b) in numbers(&ours).iter().zip(numbers(&theirs)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
