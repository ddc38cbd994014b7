//! ViM2: classes of pictures by a network that selects over places and over channels.
//!
//! A. Behrouz, M. Santacatterina and R. Zabih, 2024, MambaMixer: Efficient Selective State Space
//! Models with Dual Token and Channel Selection. A picture becomes places of 4 by 4 points; stages
//! of layers follow, with places merged 2 by 2 between them:
//!
//! ```text
//! places(x)   = x + W_out (silu(z) Σ_d scan_d(silu(conv3x3(u))))      u, z = W_in norm(x)
//! channels(x) = x + there(norm(x)) + flip(back(flip(norm(x))))
//! ```
//!
//! The four scans `d` go along rows, along columns, and back. A layer is two mixers of places and one
//! of channels; what mixers read is the average of what earlier ones of the stage gave
//! (`keyfold_sequence::mamba_mixer`). There a place's channels are a sequence of `channel_width`
//! numbers at a time, so that the layer knows no size of pictures. Classes are told from the mean
//! over the places of the last stage. Time and memory grow with the number of places.
//!
//! The authors published no code: what the paper leaves open (norms before mixers, the width of a
//! step over channels, a gate as wide as its input) is our choice, and no weights of others load.

mod blocks;
mod classifier;
mod train;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::weights::Weights;
use keyfold_nn::checkpoint::NamedTensor;
use keyfold_nn::mixers::Averages;
use keyfold_nn::{LayerNorm, Linear, random};
use keyfold_sequence::mamba_mixer::Averaging;
use serde::{Deserialize, Serialize};

use crate::picture::{COLOURS, WIDEST};
use crate::{Picture, VisionError};
use blocks::{Channels, Place, Places};
pub use classifier::Classifier;
pub use train::{Vim2Training, train};

/// Rows and columns of points of a place.
const PATCH: usize = 4;

/// The most stages: places of the widest picture, merged as long as any are left.
const STAGES: usize = (WIDEST / PATCH).ilog2() as usize + 1;

/// What is added to the variances of norms.
const EPS: f64 = 1e-5;

/// Sizes of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vim2Config {
    /// Rows and columns of a picture.
    pub image_size: usize,
    /// Numbers of a place in each stage.
    pub dims: Vec<usize>,
    /// Layers of each stage.
    pub depths: Vec<usize>,
    /// Mixers of places in a layer.
    pub token_mixers: usize,
    /// Whether a layer mixes channels.
    pub channel_mixer: bool,
    /// Numbers of a step over channels.
    pub channel_width: usize,
    /// State numbers of a channel of a scan.
    pub d_state: usize,
    /// How earlier outputs are added up.
    pub averaging: Averaging,
    /// Number of classes; 0 is what the data has.
    pub num_classes: usize,
}

impl Default for Vim2Config {
    /// ViM2-T.
    fn default() -> Self {
        Self {
            image_size: 224,
            dims: vec![96, 192, 384, 768],
            depths: vec![1, 1, 3, 1],
            token_mixers: 2,
            channel_mixer: true,
            channel_width: 8,
            d_state: 16,
            averaging: Averaging::Softmax,
            num_classes: 1000,
        }
    }
}

impl Vim2Config {
    /// Places in a row of each stage.
    fn sides(&self) -> Vec<usize> {
        let first = self.image_size / PATCH;
        (0..self.dims.len()).map(|stage| first >> stage).collect()
    }

    fn check(&self) -> Result<(), VisionError> {
        let wrong = |what: String| Err(VisionError::Unfit(what));
        if self.dims.is_empty() || self.dims.len() != self.depths.len() {
            return wrong("dims and depths must have a number for each stage".into());
        }
        if self.dims.len() > STAGES || self.image_size > WIDEST {
            return wrong(format!(
                "image_size is {} and there are {} stages; {WIDEST} and {STAGES} are the most",
                self.image_size,
                self.dims.len()
            ));
        }
        for (field, size) in [
            ("token_mixers", self.token_mixers),
            ("channel_width", self.channel_width),
            ("d_state", self.d_state),
            ("num_classes", self.num_classes),
        ] {
            if size == 0 {
                return wrong(format!("{field} is 0"));
            }
        }
        if self.sides().last() == Some(&0) {
            return wrong(format!(
                "image_size is {}; {} stages need at least {}",
                self.image_size,
                self.dims.len(),
                PATCH << (self.dims.len() - 1)
            ));
        }
        match self
            .dims
            .iter()
            .find(|d| **d == 0 || *d % self.channel_width != 0)
        {
            Some(width) => wrong(format!(
                "channel_width {} does not divide dims {width}",
                self.channel_width
            )),
            None => Ok(()),
        }
    }
}

/// A network that can be trained.
#[derive(Module, Debug)]
pub struct Vim2 {
    stem: Linear,
    stem_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Linear,
    #[module(skip)]
    config: Vim2Config,
}

#[derive(Module, Debug)]
struct Stage {
    /// Norm and map of four places to one, but in the first stage.
    merge: Option<Merge>,
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Merge {
    norm: LayerNorm,
    linear: Linear,
}

#[derive(Module, Debug)]
struct Layer {
    averages: Averages,
    places: Vec<Place>,
    channels: Option<Channels>,
}

/// Where a network comes from: a seed or a folder's weights.
pub(crate) enum Origin<'a> {
    /// Random numbers.
    Seed(u64),
    /// Tensors by name.
    Weights(&'a Weights),
}

impl Origin<'_> {
    fn linear(
        &self,
        name: &str,
        [inputs, outputs]: [usize; 2],
        device: &Device,
    ) -> Result<Linear, VisionError> {
        Ok(match self {
            Self::Seed(seed) => {
                let deviation = (3.0 * inputs as f32).sqrt().recip();
                let seed = part(*seed, name);
                Linear::init(inputs, outputs, true, deviation, seed, device)
            }
            Self::Weights(weights) => Linear::load(weights, name, inputs, outputs, true, device)?,
        })
    }

    fn norm(&self, name: &str, width: usize, device: &Device) -> Result<LayerNorm, VisionError> {
        Ok(match self {
            Self::Seed(_) => LayerNorm::init(width, EPS, device),
            Self::Weights(weights) => LayerNorm::load(weights, name, width, EPS, device)?,
        })
    }
}

/// The seed of the part `name`.
fn part(seed: u64, name: &str) -> u64 {
    random::derive(seed, keyfold_core::seed_of(name))
}

impl Vim2 {
    /// A network with random weights.
    ///
    /// # Errors
    /// When the sizes make no sense.
    pub fn init(config: &Vim2Config, seed: u64, device: &Device) -> Result<Self, VisionError> {
        Self::from(config, &Origin::Seed(seed), device)
    }

    /// Reads `stem.weight` and so on.
    ///
    /// # Errors
    /// When the sizes make no sense, or a tensor is missing or of another shape.
    pub fn load(
        config: &Vim2Config,
        weights: &Weights,
        device: &Device,
    ) -> Result<Self, VisionError> {
        Self::from(config, &Origin::Weights(weights), device)
    }

    fn from(config: &Vim2Config, from: &Origin, device: &Device) -> Result<Self, VisionError> {
        config.check()?;
        let dims = &config.dims;
        let mut stages = Vec::new();
        for (stage, (&width, &depth)) in dims.iter().zip(&config.depths).enumerate() {
            let place = format!("stages.{stage}");
            let merge = match stage {
                0 => None,
                _ => Some(Merge {
                    norm: from.norm(&format!("{place}.merge.norm"), 4 * dims[stage - 1], device)?,
                    linear: from.linear(
                        &format!("{place}.merge.linear"),
                        [4 * dims[stage - 1], width],
                        device,
                    )?,
                }),
            };
            let layers = (0..depth).map(|l| Layer::from(config, &place, l, width, from, device));
            stages.push(Stage {
                merge,
                layers: layers.collect::<Result<_, _>>()?,
            });
        }
        let last = dims[dims.len() - 1];
        Ok(Self {
            stem: from.linear("stem", [PATCH * PATCH * COLOURS, dims[0]], device)?,
            stem_norm: from.norm("stem_norm", dims[0], device)?,
            stages,
            norm: from.norm("norm", last, device)?,
            head: from.linear("head", [last, config.num_classes], device)?,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &Vim2Config {
        &self.config
    }

    /// Scores of the classes, `[pictures, classes]`.
    ///
    /// # Panics
    /// When a picture has another size.
    pub fn forward(&self, pictures: &[&Picture]) -> Tensor<2> {
        let sides = self.config.sides();
        let x = self.stem.forward(self.patches(pictures, sides[0]));
        let mut x = self.stem_norm.forward(x);
        for (stage, side) in self.stages.iter().zip(&sides) {
            if let Some(merge) = &stage.merge {
                x = merge.forward(x, pictures.len(), *side);
            }
            let places = Places::new(pictures.len(), *side);
            x = stage.forward(x, &places);
        }
        let [rows, width] = x.dims();
        let x = self.norm.forward(x);
        let each = x.reshape([pictures.len(), rows / pictures.len(), width]);
        self.head
            .forward(each.mean_dim(1).reshape([pictures.len(), width]))
    }

    /// Places as rows of their points, `[pictures side², 48]`.
    fn patches(&self, pictures: &[&Picture], side: usize) -> Tensor<2> {
        let width = PATCH * PATCH * COLOURS;
        let mut numbers = Vec::with_capacity(pictures.len() * side * side * width);
        for picture in pictures {
            assert_eq!(picture.side, self.config.image_size, "size of a picture");
            for place in 0..side * side {
                let (top, left) = (place / side * PATCH, place % side * PATCH);
                for row in top..top + PATCH {
                    let first = (row * picture.side + left) * COLOURS;
                    numbers.extend_from_slice(&picture.numbers[first..first + PATCH * COLOURS]);
                }
            }
        }
        let data = TensorData::new(numbers, [pictures.len() * side * side, width]);
        Tensor::from_data(data, &self.stem.weight.val().device())
    }

    /// The tensors as `stem.weight` and so on.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut all = self.stem.tensors("stem");
        all.extend(self.stem_norm.tensors("stem_norm"));
        for (number, stage) in self.stages.iter().enumerate() {
            let place = format!("stages.{number}");
            if let Some(merge) = &stage.merge {
                all.extend(merge.norm.tensors(&format!("{place}.merge.norm")));
                all.extend(merge.linear.tensors(&format!("{place}.merge.linear")));
            }
            for (l, layer) in stage.layers.iter().enumerate() {
                all.extend(layer.averages.tensors(&place, l));
                for (i, mixer) in layer.places.iter().enumerate() {
                    all.extend(mixer.tensors(&format!("{place}.token_mixers.{l}.{i}")));
                }
                if let Some(mixer) = &layer.channels {
                    all.extend(mixer.tensors(&format!("{place}.channel_mixers.{l}")));
                }
            }
        }
        all.extend(self.norm.tensors("norm"));
        all.extend(self.head.tensors("head"));
        all
    }
}

impl Layer {
    fn from(
        config: &Vim2Config,
        place: &str,
        layer: usize,
        width: usize,
        from: &Origin,
        device: &Device,
    ) -> Result<Self, VisionError> {
        let (averaging, channels) = (config.averaging, config.channel_mixer);
        let averages = match from {
            Origin::Seed(_) => Averages::init(averaging, layer, channels, device)?,
            Origin::Weights(w) => Averages::load(averaging, layer, channels, w, place, device)?,
        };
        let places = (0..config.token_mixers).map(|i| {
            let name = format!("{place}.token_mixers.{layer}.{i}");
            Place::from(width, config.d_state, &name, from, device)
        });
        let name = format!("{place}.channel_mixers.{layer}");
        let mixer = channels.then(|| Channels::from(config, width, &name, from, device));
        Ok(Self {
            averages,
            places: places.collect::<Result<_, _>>()?,
            channels: mixer.transpose()?,
        })
    }
}

impl Stage {
    fn forward(&self, x: Tensor<2>, places: &Places) -> Tensor<2> {
        let (mut tokens, mut channels) = (vec![x.clone()], vec![x]);
        for layer in &self.layers {
            let mut h = layer.averages.token_input(&tokens, &channels);
            for mixer in &layer.places {
                h = mixer.forward(h, places);
            }
            tokens.push(h);
            if let Some(mixer) = &layer.channels {
                let input = layer.averages.channel_input(&tokens, &channels);
                channels.push(mixer.forward(input));
            }
        }
        let mixes_channels = channels.len() == tokens.len();
        let outputs = if mixes_channels { channels } else { tokens };
        outputs[outputs.len() - 1].clone()
    }
}

impl Merge {
    /// Four places to one, `side` of them in a row afterwards; a last odd row or column is left out.
    fn forward(&self, x: Tensor<2>, pictures: usize, side: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        let before = (rows / pictures.max(1)).isqrt();
        let mut ids = Vec::with_capacity(pictures * side * side * 4);
        for picture in 0..pictures {
            for place in 0..side * side {
                let (top, left) = (2 * (place / side), 2 * (place % side));
                for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let at = (picture * before + top + row) * before + left + column;
                    ids.push(at as u32);
                }
            }
        }
        let four = keyfold_nn::ops::rows(x, &ids);
        let four = four.reshape([pictures * side * side, 4 * width]);
        self.linear.forward(self.norm.forward(four))
    }
}
