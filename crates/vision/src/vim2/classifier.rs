//! A trained network with the names of its classes.

use std::path::Path;

use burn::tensor::{Device, activation};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, ModelFolderError, atomic};
use keyfold_nn::{ModelError, checkpoint};
use serde::{Deserialize, Serialize};

use super::{Vim2, Vim2Config};
use crate::{Picture, VisionError};

const CONFIG: &str = "config.json";

/// config.json.
#[derive(Serialize, Deserialize)]
struct Described {
    model_type: String,
    #[serde(flatten)]
    sizes: Vim2Config,
    classes: Vec<String>,
}

/// A trained network with the names of its classes.
pub struct Classifier {
    model: Vim2,
    classes: Vec<String>,
}

impl Classifier {
    /// A network of these classes.
    pub fn new(model: Vim2, classes: Vec<String>) -> Self {
        Self { model, classes }
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// When it holds no such network, or its weights do not fit config.json.
    pub fn load(folder: &ModelFolder) -> Result<Self, VisionError> {
        let described: Described = folder
            .json(CONFIG, "it says what model this is")
            .map_err(ModelError::from)?;
        let wrong = |what: &str| {
            let error = ModelFolderError::Invalid {
                path: folder.file(CONFIG),
                what: what.to_owned(),
            };
            VisionError::Model(error.into())
        };
        if described.model_type != "vim2" {
            return Err(wrong("model_type is not 'vim2'"));
        }
        if described.classes.len() != described.sizes.num_classes {
            return Err(wrong("num_classes is not the number of the classes' names"));
        }
        let weights = Weights::open(folder, "").map_err(ModelError::from)?;
        Ok(Self {
            model: Vim2::load(&described.sizes, &weights, &Device::flex())?,
            classes: described.classes,
        })
    }

    /// Writes `model.safetensors` and `config.json` into a folder, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), VisionError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(write(folder))?;
        checkpoint::write(&folder.join("model.safetensors"), &self.model.tensors())?;
        let described = Described {
            model_type: "vim2".into(),
            sizes: self.model.config().clone(),
            classes: self.classes.clone(),
        };
        let path = folder.join(CONFIG);
        let json = serde_json::to_string_pretty(&described).unwrap_or_default();
        atomic::write(&path, json.as_bytes()).map_err(write(&path))?;
        Ok(())
    }

    /// The network.
    pub fn model(&self) -> &Vim2 {
        &self.model
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Probabilities of the classes of each picture.
    ///
    /// # Panics
    /// When a picture has another size than the network's.
    pub fn probabilities(&self, pictures: &[&Picture]) -> Vec<Vec<f32>> {
        if pictures.is_empty() {
            return Vec::new();
        }
        let found = activation::softmax(self.model.forward(pictures), 1);
        let numbers = checkpoint::numbers(&found);
        numbers
            .chunks_exact(self.classes.len())
            .map(<[f32]>::to_vec)
            .collect()
    }
}
