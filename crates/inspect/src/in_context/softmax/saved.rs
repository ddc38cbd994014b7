//! Files of weights, with the names of the authors' code.

use std::path::Path;

use super::SoftmaxModel;
use crate::{InspectError, weights};

impl SoftmaxModel {
    /// Writes safetensors with the authors' names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), InspectError> {
        let tensors = self
            .named()
            .map(|(name, numbers, shape)| (name, shape.to_vec(), &numbers[..]));
        let tasks = [("tasks".to_owned(), self.tasks.to_string())];
        weights::write(path, &tensors, Some(tasks.into()))
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
        let file = weights::parse(path, &bytes)?;
        let read = |part: &str| {
            let name = format!("attention_layer.{part}_proj.weight");
            let (numbers, shape) = weights::tensor(path, &file, &name)?;
            match shape.len() {
                2 => Ok((numbers, shape)),
                _ => Err(damaged(format!("'{name}' is no matrix"))),
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
