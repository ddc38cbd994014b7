//! The linear heads after a backbone (`1_Dense` and so on):
//! `y = act(W x + b)`, plus `x` or `R x` where the head has a residual.

use keyfold_core::ModelFolder;
use keyfold_kernels as kernels;
use serde::Deserialize;

use crate::backbone::{Activation, Linear};
use crate::error::{LoadError, invalid};
use keyfold_core::weights::{Weights, join};

/// Longest vector that a head may make.
const MOST_FEATURES: usize = 1 << 16;

#[derive(Debug, Deserialize)]
struct Config {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
    #[serde(default)]
    use_residual: bool,
}

fn yes() -> bool {
    true
}

/// One head.
pub(crate) struct Dense {
    linear: Linear,
    activation: Activation,
    residual: Residual,
}

enum Residual {
    None,
    /// The input itself.
    Same,
    Projected(Linear),
}

impl Dense {
    /// Reads the head in folder `path` of a model, whose input has `inputs`
    /// features. The names of the files read are added to `names`.
    pub(crate) fn load(
        folder: &ModelFolder,
        path: &str,
        inputs: usize,
        names: &mut Vec<String>,
    ) -> Result<Self, LoadError> {
        let name = join(path, "config.json");
        let config: Config = folder.json(&name, "it says the shape of this linear head")?;
        let at = folder.file(&name);
        let outputs = config.out_features;
        if config.in_features != inputs {
            return Err(invalid(
                &at,
                format!(
                    "in_features is {}, but the part before gives {inputs} features",
                    config.in_features
                ),
            ));
        }
        if outputs == 0 || outputs > MOST_FEATURES {
            return Err(invalid(
                &at,
                format!("out_features is {outputs}; it must be between 1 and {MOST_FEATURES}"),
            ));
        }
        let weights = Weights::open(folder, path)?;
        let residual = match config.use_residual {
            false => Residual::None,
            true if inputs == outputs => Residual::Same,
            true => {
                Residual::Projected(Linear::load(&weights, "residual", inputs, outputs, false)?)
            }
        };
        let dense = Self {
            linear: Linear::load(&weights, "linear", inputs, outputs, config.bias)?,
            activation: match &config.activation_function {
                Some(named) => Activation::named(named, &at)?,
                None => Activation::Identity,
            },
            residual,
        };
        names.push(name);
        names.extend_from_slice(weights.names());
        Ok(dense)
    }

    /// A head without activation.
    pub(crate) fn plain(linear: Linear) -> Self {
        Self {
            linear,
            activation: Activation::Identity,
            residual: Residual::None,
        }
    }

    /// Length of the vectors that come out.
    pub(crate) fn outputs(&self) -> usize {
        self.linear.outputs()
    }

    /// `x` is `[rows, inputs]`; gives `[rows, outputs]`.
    pub(crate) fn apply(&self, x: &[f32], threads: usize) -> Vec<f32> {
        let mut y = Vec::new();
        self.linear.apply(x, &mut y, threads);
        self.activation.apply(&mut y);
        match &self.residual {
            Residual::None => {}
            Residual::Same => kernels::add_assign(&mut y, x),
            Residual::Projected(linear) => {
                let mut projected = Vec::new();
                linear.apply(x, &mut projected, threads);
                kernels::add_assign(&mut y, &projected);
            }
        }
        y
    }
}
