//! Files of weights, with the names of the authors' code.

use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::SoftmaxModel;
use crate::InspectError;

impl SoftmaxModel {
    /// Writes safetensors with the authors' names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let row = self.row();
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let parts = self
            .named()
            .map(|(name, numbers, shape)| (name, bytes(numbers), shape));
        let mut views = Vec::new();
        for (name, bytes, shape) in &parts {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes)
                .map_err(|e| InspectError::format(path, e.to_string()))?;
            views.push((name.as_str(), view));
        }
        let tasks = [("tasks".to_owned(), (row - self.d).to_string())];
        let bytes = safetensors::serialize(views, Some(tasks.into()))
            .map_err(|e| InspectError::format(path, e.to_string()))?;
        atomic::write(path, &bytes).map_err(|e| InspectError::io(path, e))
    }

    fn named(&self) -> [(String, &Vec<f32>, [usize; 2]); 4] {
        let (row, heads) = (self.row(), self.heads);
        let name = |part: &str| format!("attention_layer.{part}_proj.weight");
        [
            (name("q"), &self.q, [heads * row, row]),
            (name("k"), &self.k, [heads * row, row]),
            (name("v"), &self.v, [heads * row, row]),
            (name("o"), &self.o, [self.tasks, heads * row]),
        ]
    }

    /// Reads what [`save`](Self::save) wrote, or the authors' weights as safetensors.
    ///
    /// # Errors
    /// When the file is not there or does not hold such weights.
    pub fn load(path: &Path) -> Result<Self, InspectError> {
        let bytes = std::fs::read(path).map_err(|e| InspectError::io(path, e))?;
        let damaged = |what: String| InspectError::format(path, what);
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| damaged(format!("it is no safetensors file ({e})")))?;
        let read = |part: &str| {
            let name = format!("attention_layer.{part}_proj.weight");
            let view = file
                .tensor(&name)
                .map_err(|_| damaged(format!("it has no tensor '{name}'")))?;
            if view.dtype() != Dtype::F32 || view.shape().len() != 2 {
                return Err(damaged(format!("'{name}' is no matrix of 32-bit floats")));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
            match numbers.iter().all(|x| x.is_finite()) {
                true => Ok((numbers, view.shape().to_vec())),
                false => Err(damaged(format!(
                    "'{name}' holds numbers that are not finite"
                ))),
            }
        };
        let (q, shape) = read("q")?;
        let (k, v, o) = (read("k")?, read("v")?, read("o")?);
        let (inner, row, tasks) = (shape[0], shape[1], o.1[0]);
        let fits = row > tasks
            && tasks > 0
            && inner.is_multiple_of(row)
            && k.1 == shape
            && v.1 == shape
            && o.1[1] == inner;
        if !fits {
            return Err(damaged("its matrices do not fit together".to_owned()));
        }
        Ok(Self {
            d: row - tasks,
            tasks,
            heads: inner / row,
            q,
            k: k.0,
            v: v.0,
            o: o.0,
        })
    }
}
