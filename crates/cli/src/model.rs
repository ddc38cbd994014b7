//! Loading the model that a user names.

use std::path::Path;

use keyfold_core::{Encoder, SparseEncoder};
use keyfold_search::given::GivenVectors;
pub(crate) use keyfold_text::builtin::BUILTIN;
use keyfold_text::{
    ColberterEncoder, ColberterOptions, CrossEncoder, LoadOptions, Words, split_options,
};

use crate::args::Globals;
use crate::failure::wrong_use;

/// Options of models of whole words.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Whole words")]
pub(crate) struct WordArgs {
    /// Keep one vector for each different word: the same in lower case, or by its stem
    ///
    /// ColBERTer models do so anyway, in lower case. Of other models with a vector for each
    /// token, a word gets the mean of those of its pieces at all its places.
    #[arg(long, value_name = "HOW", value_parser = ["lower", "stem"])]
    words: Option<String>,
    /// ColBERTer models: keep the words that the model would remove from passages
    #[arg(long)]
    keep_stopwords: bool,
    /// ColBERTer models: leave out what is beyond the longest text, instead of refusing it
    #[arg(long)]
    truncate: bool,
}

impl WordArgs {
    /// Whether the user asked for anything.
    pub(crate) fn any(&self) -> bool {
        self.words.is_some() || self.keep_stopwords || self.truncate
    }

    /// The name of a model with these options, and those that it names already.
    pub(crate) fn name(&self, model: &str) -> anyhow::Result<String> {
        let (plain, named) = split_options(model);
        let mut options: ColberterOptions = named.unwrap_or("").parse().map_err(wrong_use)?;
        if let Some(words) = &self.words {
            options.words = Some(words.parse::<Words>().map_err(wrong_use)?);
        }
        options.keep_stopwords |= self.keep_stopwords;
        options.truncate |= self.truncate;
        Ok(format!("{plain}#{options}"))
    }
}

/// Loads the model `name`: [`BUILTIN`], a folder, or a hub name.
pub(crate) fn load(name: &str, globals: &Globals) -> anyhow::Result<Box<dyn Encoder>> {
    if let Some(given) = GivenVectors::by_name(name) {
        return Ok(Box::new(given));
    }
    Ok(keyfold_text::load(&remembered(name), &options(globals))?)
}

/// Loads the ColBERTer model `name`; none if it is of another kind.
pub(crate) fn load_colberter(
    name: &str,
    globals: &Globals,
) -> anyhow::Result<Option<ColberterEncoder>> {
    let name = remembered(name);
    Ok(keyfold_text::load_colberter(&name, &options(globals))?)
}

/// Loads a model that weighs terms: a folder, or a hub name.
pub(crate) fn load_sparse(name: &str, globals: &Globals) -> anyhow::Result<Box<dyn SparseEncoder>> {
    let name = remembered(name);
    Ok(keyfold_text::load_sparse(&name, &options(globals))?)
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
    let (plain, options) = split_options(name);
    let folder = Path::new(plain)
        .canonicalize()
        .ok()
        .filter(|path| path.is_dir());
    let whole = folder.and_then(|folder| folder.to_str().map(str::to_owned));
    match (whole, options) {
        (Some(whole), Some(options)) => format!("{whole}#{options}"),
        (Some(whole), None) => whole,
        (None, _) => name.to_owned(),
    }
}
