//! `keyfold dictionary decode`.

use std::path::PathBuf;

use anyhow::bail;
use keyfold_data::rows::write_rows;
use keyfold_dictionary::Codes;

use super::input::RowArgs;
use super::model::Model;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Give back the rows that codes stand for
#[derive(Debug, clap::Args)]
pub(super) struct DecodeArgs {
    /// A folder of 'keyfold dictionary fit', or a sparse autoencoder of SAELens or sparsify
    dictionary: PathBuf,
    /// Codes that 'encode --out' wrote
    codes: PathBuf,
    /// File for the rows: .npy, .csv, .tsv or .safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    rows: RowArgs,
}

pub(super) fn run(args: &DecodeArgs, _globals: &Globals) -> anyhow::Result<Outcome> {
    let model = Model::load(&args.dictionary)?;
    let Some(dictionary) = model.plain() else {
        bail!(
            "{} takes rows apart from their scale or passes a part of them by, so that codes alone do \
             not give them back",
            args.dictionary.display()
        );
    };
    let codes = args.rows.open(&args.codes)?.read_all()?;
    if codes.width != dictionary.n_components() {
        return Err(wrong_use(format!(
            "{} holds codes of {} atoms, but the dictionary has {}",
            args.codes.display(),
            codes.width,
            dictionary.n_components()
        )));
    }
    let codes = Codes::from_dense(&codes.values, codes.width);
    write_rows(
        &args.out,
        &dictionary.inverse_transform(&codes)?,
        dictionary.width,
    )?;
    Ok(Outcome::Done)
}
