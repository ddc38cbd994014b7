//! Loading the model that a user names.

use std::path::Path;

use keyfold_core::Encoder;
pub(crate) use keyfold_text::builtin::BUILTIN;
use keyfold_text::{CrossEncoder, LoadOptions, SparseTextEncoder};

use crate::args::Globals;

/// Loads the model `name`: [`BUILTIN`], a folder, or a hub name.
pub(crate) fn load(name: &str, globals: &Globals) -> anyhow::Result<Box<dyn Encoder>> {
    Ok(keyfold_text::load(&remembered(name), &options(globals))?)
}

/// Loads a model that weighs terms: a folder, or a hub name.
pub(crate) fn load_sparse(name: &str, globals: &Globals) -> anyhow::Result<SparseTextEncoder> {
    Ok(SparseTextEncoder::load(name, &options(globals))?)
}

/// Loads a model that reads pairs: a folder, or a hub name.
pub(crate) fn load_cross_encoder(name: &str, globals: &Globals) -> anyhow::Result<CrossEncoder> {
    Ok(CrossEncoder::load(name, &options(globals))?)
}

fn options(globals: &Globals) -> LoadOptions {
    LoadOptions {
        threads: globals.threads.map_or(0, usize::from),
    }
}

/// What a store remembers of a model's name: a folder by its whole path, so that
/// it is found from everywhere.
fn remembered(name: &str) -> String {
    if name == BUILTIN {
        return name.to_owned();
    }
    let folder = Path::new(name)
        .canonicalize()
        .ok()
        .filter(|path| path.is_dir());
    folder
        .and_then(|folder| folder.to_str().map(str::to_owned))
        .unwrap_or_else(|| name.to_owned())
}
