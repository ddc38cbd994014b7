//! Token vectors of the user, in the place of a model.

use std::path::{Path, PathBuf};

use anyhow::Context;
use keyfold_core::{Encoder, Vectors};
use keyfold_data::rows::token_vectors;
use keyfold_data::{WalkOptions, walk};
use keyfold_search::engine::MAX_QUERY_ROWS;
use keyfold_search::given::GivenVectors;
use keyfold_search::store::Snapshot;

use crate::failure::wrong_use;

/// What reads the `.npy` files of these folders: rows as long as those of the store, or
/// of the first file.
pub(crate) fn documents(store: &Path, paths: &[PathBuf]) -> anyhow::Result<GivenVectors> {
    let stored = Snapshot::open(store).ok();
    let stored = stored.and_then(|s| GivenVectors::by_name(&s.encoder().name));
    if let Some(stored) = stored {
        return Ok(stored);
    }
    let found = walk(paths, &WalkOptions::default())?.filter_map(Result::ok);
    let npy = found.filter(|f| f.path.extension().is_some_and(|e| e == "npy"));
    let mut files: Vec<PathBuf> = npy.map(|f| f.path).collect();
    // What is no such file is named while indexing; one that is says the length.
    files.sort();
    let mut why = None;
    for file in &files {
        match read(file) {
            Ok(rows) => return Ok(GivenVectors::new(rows.dim())),
            Err(e) => why = why.or(Some(e)),
        }
    }
    let nothing = "--token-vectors finds no .npy file of token vectors: name a folder of files \
                   [vectors, numbers] of float32 or float16, one for each document";
    Err(match why {
        Some(e) => e.context(nothing),
        None => wrong_use(nothing),
    })
}

/// What stands for the model of a store of token vectors, with the query in `file`.
pub(crate) fn query(store: &Path, file: &Path) -> anyhow::Result<Box<dyn Encoder>> {
    let snapshot = Snapshot::open(store)?;
    let name = &snapshot.encoder().name;
    let Some(given) = GivenVectors::by_name(name) else {
        return Err(wrong_use(format!(
            "--query-vectors is for stores of 'keyfold index --token-vectors'; {} was made with \
             model '{name}', so say in words what you look for",
            store.display()
        )));
    };
    let rows = read(file)?;
    let dim = given.identity().dim;
    if rows.dim() != dim {
        return Err(wrong_use(format!(
            "{} has vectors of {} numbers, and the store has vectors of {dim}",
            file.display(),
            rows.dim()
        )));
    }
    if rows.rows() > MAX_QUERY_ROWS {
        return Err(wrong_use(format!(
            "{} has {} vectors, and a query has at most {MAX_QUERY_ROWS}",
            file.display(),
            rows.rows()
        )));
    }
    Ok(Box::new(given.with_query(rows)))
}

fn read(file: &Path) -> anyhow::Result<Vectors> {
    let name = file.display().to_string();
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    Ok(token_vectors(bytes, &name)?)
}
