//! Loading the model that a user names.

use std::path::Path;

use keyfold_core::Encoder;

use crate::args::Globals;

/// The name of the model inside the binary.
pub(crate) const BUILTIN: &str = "builtin";

/// Loads the model `name`: [`BUILTIN`], a folder, or a hub name.
pub(crate) fn load(name: &str, globals: &Globals) -> anyhow::Result<Box<dyn Encoder>> {
    let options = keyfold_text::LoadOptions {
        threads: globals.threads.map_or(0, usize::from),
    };
    // A folder is remembered by its whole path, so that it is found from everywhere.
    let folder = Path::new(name)
        .canonicalize()
        .ok()
        .filter(|path| path.is_dir());
    let name = folder.as_deref().and_then(Path::to_str).unwrap_or(name);
    Ok(keyfold_text::load(name, &options)?)
}
