//! A dictionary or sparse autoencoder that the user names.

use std::path::Path;

use keyfold_data::rows::Rows;
use keyfold_dictionary::sae::layouts::SaeFile;
use keyfold_dictionary::{Coder, Codes, Dictionary, DictionaryError, Saved};

use crate::failure::wrong_use;

/// What codes rows.
pub(super) enum Model {
    /// A folder of `keyfold dictionary fit`.
    Ours(Box<Saved>),
    /// A sparse autoencoder, of ours or others.
    Sae(Box<SaeFile>),
}

/// Refuses rows of another width: many of one width may be as many numbers as fewer of another.
pub(super) fn check_width(found: usize, expected: usize) -> Result<(), DictionaryError> {
    match found == expected {
        true => Ok(()),
        false => Err(DictionaryError::Width { expected, found }),
    }
}

impl Model {
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        if path.join("config.json").is_file() {
            let saved = Saved::load(path)?;
            if saved.method() != "sae" {
                return Ok(Self::Ours(Box::new(saved)));
            }
        }
        Ok(Self::Sae(Box::new(SaeFile::load(path)?)))
    }

    pub(super) fn n_components(&self) -> usize {
        match self {
            Self::Ours(saved) => saved.dictionary.n_components(),
            Self::Sae(file) => file.sae.d_sae,
        }
    }

    /// The atoms and their length.
    pub(super) fn atoms(&self) -> (&[f32], usize) {
        match self {
            Self::Ours(saved) => (&saved.dictionary.components, saved.dictionary.width),
            Self::Sae(file) => (&file.sae.w_dec, file.sae.d_out),
        }
    }

    /// Codes rows in another way than the dictionary was learned with.
    pub(super) fn code_by(&mut self, coder: Coder) -> anyhow::Result<()> {
        match self {
            Self::Ours(saved) => saved.dictionary.coder = coder,
            Self::Sae(_) => {
                return Err(wrong_use(
                    "a sparse autoencoder codes by its encoder; --coder is for other dictionaries",
                ));
            }
        }
        Ok(())
    }

    /// Numbers of the rows that are coded.
    fn width(&self) -> usize {
        match self {
            Self::Ours(saved) => saved.dictionary.width,
            Self::Sae(file) => file.sae.d_in,
        }
    }

    pub(super) fn encode(&self, rows: &Rows) -> Result<Codes, DictionaryError> {
        check_width(rows.width, self.width())?;
        match self {
            Self::Ours(saved) => saved.dictionary.transform(&rows.values),
            Self::Sae(file) => file.sae.encode(&rows.values),
        }
    }

    /// As a plain dictionary, whose rows follow from codes alone.
    pub(super) fn plain(&self) -> Option<Dictionary> {
        match self {
            Self::Ours(saved) => Some(saved.dictionary.clone()),
            Self::Sae(file) => file.sae.plain_decoder(),
        }
    }

    /// Has a line to say before rows are coded.
    pub(super) fn warning(&self) -> Option<&'static str> {
        match self {
            Self::Sae(file) if file.needs_input_scale => Some(
                "this autoencoder was trained on rows multiplied by a number that its folder does not \
                 hold (expected_average_only_in); multiply yours first",
            ),
            _ => None,
        }
    }
}
