//! Numbers of a training, in the file of a checkpoint.

use std::path::Path;

use keyfold_train::LearnError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const STATE: &str = "state.safetensors";

/// Writes named numbers into the folder of a checkpoint.
pub(crate) fn save(folder: &Path, parts: &[(&str, &[f32])]) -> Result<(), LearnError> {
    let path = folder.join(STATE);
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|(_, numbers)| numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views = parts.iter().zip(&bytes).map(|((name, numbers), bytes)| {
        TensorView::new(Dtype::F32, vec![numbers.len()], bytes).map(|view| (*name, view))
    });
    let failed = |e: safetensors::SafeTensorError| std::io::Error::other(e.to_string());
    let views: Result<Vec<_>, _> = views.collect();
    let file = views.and_then(|views| safetensors::serialize(views, None));
    let written = file
        .map_err(failed)
        .and_then(|file| std::fs::write(&path, file));
    written.map_err(LearnError::io(&path))
}

/// Takes up numbers that [`save`] wrote, as many as there are places for.
pub(crate) fn load(folder: &Path, parts: &mut [(&str, &mut [f32])]) -> Result<(), LearnError> {
    let path = folder.join(STATE);
    let bytes = std::fs::read(&path).map_err(LearnError::io(&path))?;
    let unfit = |what: String| LearnError::State {
        path: path.clone(),
        what,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| unfit(e.to_string()))?;
    for (name, numbers) in parts {
        let view = file.tensor(name).map_err(|e| unfit(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != [numbers.len()] {
            return Err(unfit(format!("tensor '{name}' is of another size")));
        }
        let fours = view.data().as_chunks::<4>().0.iter();
        for (number, bytes) in numbers.iter_mut().zip(fours) {
            *number = f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}
