//! Rows with labels that the user names: files of rows, and folders of texts.

use std::path::{Path, PathBuf};

use anyhow::Context;
use keyfold_core::{Encoder, EncoderIdentity, Progress, Role};
use keyfold_data::rows::{
    Missing, RowOptions, RowReader, Rows, RowsError, StreamFormat, read_labels,
};
use keyfold_data::{WalkOptions, read, walk};
use keyfold_predict::Table;
use serde::{Deserialize, Serialize};

use crate::args::Globals;
use crate::failure::wrong_use;
use crate::{model, place, update};

/// How rows are read.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct InputArgs {
    /// The column of a table that is told, by name or number from 1
    #[arg(long, value_name = "COLUMN")]
    pub(super) label: Option<String>,
    /// A file with one label for each row: .npy, or a line each
    #[arg(long, value_name = "FILE", conflicts_with = "label")]
    pub(super) labels: Option<PathBuf>,
    /// A column of a table that is left out, by name or number from 1 (repeatable)
    #[arg(long, value_name = "COLUMN")]
    ignore: Vec<String>,
    /// The tensor of a .safetensors file, array of an .npz or column of lists of a Parquet file
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Leave out rows with missing or infinite numbers, instead of refusing them
    #[arg(long)]
    skip_missing: bool,
}

/// Rows, and what is known of them.
pub(super) struct Examples {
    pub(super) x: Table,
    /// What each row is, where that is known.
    pub(super) labels: Option<Vec<String>>,
    /// What people call a row.
    pub(super) names: Vec<String>,
    /// What is kept with a model, and must be alike for other rows.
    pub(super) notes: Notes,
}

/// What is kept with a model of the rows that it learned from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Notes {
    /// Names of the columns, where they have names.
    pub(super) columns: Vec<String>,
    /// The label column, where it was one.
    pub(super) label: Option<String>,
    /// The encoder of texts.
    pub(super) encoder: Option<EncoderIdentity>,
}

/// Reads what the user named. `known`: what a model was fitted on; rows are brought into
/// its order of columns.
pub(super) fn read_examples(
    data: &Path,
    args: &InputArgs,
    encoder: Option<&str>,
    known: Option<&Notes>,
    globals: &Globals,
    progress: &dyn Progress,
) -> anyhow::Result<Examples> {
    if data != Path::new("-") {
        place::canonical(data)?;
    }
    let examples = match data.is_dir() {
        true => texts(data, args, encoder, known, globals, progress)?,
        false => rows(data, args, known)?,
    };
    let of_texts = known.map(|notes| notes.encoder.is_some());
    if of_texts.is_some_and(|texts| texts != examples.notes.encoder.is_some()) {
        return Err(wrong_use(match of_texts {
            Some(true) => "the model was fitted on texts; name a folder of texts",
            _ => "the model was fitted on rows of numbers; name a file of rows",
        }));
    }
    Ok(examples)
}

fn rows(data: &Path, args: &InputArgs, known: Option<&Notes>) -> anyhow::Result<Examples> {
    let options = |label: Option<String>| RowOptions {
        label,
        ignore: args.ignore.clone(),
        tensor: args.tensor.clone(),
        missing: match args.skip_missing {
            true => Missing::Skip,
            false => Missing::Refuse,
        },
        ..RowOptions::default()
    };
    let open = |label: Option<String>| -> Result<RowReader, RowsError> {
        match data == Path::new("-") {
            true => {
                let input = Box::new(std::io::stdin());
                let options = options(label);
                RowReader::stream(input, "standard input", StreamFormat::Detect, &options)
            }
            false => RowReader::open(data, &options(label)),
        }
    };
    // A model knows its label column, which new rows may have or not.
    let remembered = known.and_then(|notes| notes.label.clone());
    let by_itself = args.label.is_none() && args.labels.is_none() && data != Path::new("-");
    let reader = match remembered {
        Some(label) if by_itself && label.parse::<usize>().is_err() => {
            open(Some(label)).or_else(|_| open(None))?
        }
        _ => open(args.label.clone())?,
    };
    let rows = reader.read_all()?;
    let labels = match &args.labels {
        Some(path) => Some(read_labels(path)?),
        None if rows.labels.is_empty() => None,
        None => Some(rows.labels.clone()),
    };
    if let Some(labels) = &labels
        && labels.len() != rows.len()
    {
        return Err(wrong_use(format!(
            "{} labels for {} rows; each row needs one{}",
            labels.len(),
            rows.len(),
            match args.skip_missing {
                true => " (rows that are left out have no label in a file of labels)",
                false => "",
            }
        )));
    }
    let (width, values) = in_order(&rows, known)?;
    let columns = match known {
        Some(notes) => notes.columns.clone(),
        None => rows.columns.to_vec(),
    };
    Ok(Examples {
        x: Table::from_f32(width, &values)?,
        names: (1..=rows.len()).map(|i| i.to_string()).collect(),
        labels,
        notes: Notes {
            columns,
            label: args.label.clone(),
            encoder: None,
        },
    })
}

/// The columns that a model knows, in its order, where both have names.
fn in_order(rows: &Rows, known: Option<&Notes>) -> anyhow::Result<(usize, Vec<f32>)> {
    let as_they_are = || Ok((rows.width, rows.values.clone()));
    let wanted = match known {
        Some(notes) if !notes.columns.is_empty() => &notes.columns,
        _ => return as_they_are(),
    };
    let numbered = |name: &String| {
        name.parse::<usize>()
            .ok()
            .filter(|n| (1..=rows.width).contains(n))
    };
    let unnamed = rows.columns.is_empty();
    // Columns with names, told by rows without: they can only be in the same order.
    if unnamed && !wanted.iter().all(|name| numbered(name).is_some()) {
        return as_they_are();
    }
    let place = |name: &String| {
        let found = match unnamed {
            true => numbered(name).map(|n| n - 1),
            false => rows.columns.iter().position(|c| c == name),
        };
        found.ok_or_else(|| {
            wrong_use(format!(
                "the rows have no column '{name}', which the model was fitted on"
            ))
        })
    };
    let places: Vec<usize> = wanted.iter().map(place).collect::<anyhow::Result<_>>()?;
    let values = rows.iter().flat_map(|row| places.iter().map(|&p| row[p]));
    Ok((places.len(), values.collect()))
}

/// Moves columns to the end; gives how many.
pub(super) fn covariates_last(examples: &mut Examples, wanted: &[String]) -> anyhow::Result<usize> {
    if wanted.is_empty() {
        return Ok(0);
    }
    let columns = &examples.notes.columns;
    let width = examples.x.columns();
    let place = |name: &String| -> anyhow::Result<usize> {
        let named = columns.iter().position(|c| c == name);
        let numbered = name.parse::<usize>().ok();
        let place = named.or_else(|| numbered.and_then(|n| n.checked_sub(1)));
        place
            .filter(|p| *p < width)
            .ok_or_else(|| wrong_use(format!("--covariates: there is no column '{name}'")))
    };
    let last: Vec<usize> = wanted.iter().map(place).collect::<anyhow::Result<_>>()?;
    let mut order: Vec<usize> = (0..width).filter(|i| !last.contains(i)).collect();
    let count = width - order.len();
    for place in last {
        if !order[width - count..].contains(&place) {
            order.push(place);
        }
    }
    let numbers = examples.x.numbers().chunks_exact(width);
    let numbers = numbers.flat_map(|row| order.iter().map(|&i| row[i]));
    examples.x = Table::new(width, numbers.collect())?;
    // Without names the order could not be told when the model is used.
    let names = match columns.is_empty() {
        true => (1..=width).map(|i| i.to_string()).collect::<Vec<_>>(),
        false => columns.clone(),
    };
    examples.notes.columns = order.iter().map(|&i| names[i].clone()).collect();
    Ok(count)
}

/// Texts that are encoded between looks at whether to stop.
const TOGETHER: usize = 64;

/// The texts of a folder, each as the mean of its vectors, with the folders right below as
/// labels.
fn texts(
    folder: &Path,
    args: &InputArgs,
    encoder: Option<&str>,
    known: Option<&Notes>,
    globals: &Globals,
    progress: &dyn Progress,
) -> anyhow::Result<Examples> {
    let then = known.and_then(|notes| notes.encoder.as_ref());
    let name = encoder.or(then.map(|e| e.name.as_str()));
    let encoder = model::load(name.unwrap_or(model::BUILTIN), globals)?;
    if let Some(then) = then
        && then.hash != encoder.identity().hash
    {
        return Err(wrong_use(format!(
            "the model was fitted on vectors of another encoder ('{}'); name it with --model, or fit \
             again",
            then.name
        )));
    }
    let options = update::options(globals).read;
    let mut found: Vec<(String, Option<String>, Vec<String>)> = Vec::new();
    for entry in walk(&[folder.to_owned()], &WalkOptions::default())? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                progress.note(&error.to_string());
                continue;
            }
        };
        let document = match read(&entry, &options) {
            Ok(document) => document,
            Err(error) => {
                progress.note(&error.to_string());
                continue;
            }
        };
        let class = entry.path.strip_prefix(folder).ok().and_then(|inside| {
            let mut parts = inside.components();
            let first = parts.next()?;
            parts.next()?;
            Some(first.as_os_str().to_string_lossy().into_owned())
        });
        let passages = document.passages.into_iter().map(|p| p.searchable().0);
        let shown = place::shown(&entry.path).display().to_string();
        found.push((shown, class, passages.collect()));
    }
    found.sort();
    progress.start("encoding", "texts", Some(found.len() as u64));
    let dim = encoder.identity().dim;
    let (mut numbers, mut names, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for some in found.chunks(TOGETHER) {
        if progress.cancelled() {
            return Err(keyfold_predict::PredictError::Cancelled.into());
        }
        for (name, class, passages) in some {
            match mean(&*encoder, passages)? {
                Some(mean) => {
                    numbers.extend(mean);
                    names.push(name.clone());
                    classes.push(class.clone());
                }
                None => progress.note(&format!("{name} has no words, and is left out")),
            }
        }
        progress.advance(some.len() as u64);
    }
    progress.finish();
    if names.is_empty() {
        return Err(wrong_use(format!(
            "{} has no texts; give a folder with one sub-folder of texts for each class",
            folder.display()
        )));
    }
    let labels = match &args.labels {
        Some(path) => Some(read_labels(path)?),
        None => classes.into_iter().collect(),
    };
    Ok(Examples {
        x: Table::new(dim, numbers).context("the encoder gave vectors that are no numbers")?,
        labels,
        names,
        notes: Notes {
            columns: Vec::new(),
            label: None,
            encoder: Some(encoder.identity().clone()),
        },
    })
}

/// The mean of all vectors of a text, of length one.
fn mean(encoder: &dyn Encoder, passages: &[String]) -> anyhow::Result<Option<Vec<f64>>> {
    let texts: Vec<&str> = passages.iter().map(String::as_str).collect();
    let mut sum = vec![0.0f64; encoder.identity().dim];
    let mut rows = 0;
    for vectors in encoder.encode(&texts, Role::Document)? {
        rows += vectors.rows();
        for row in vectors.iter() {
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, x)| *s += f64::from(*x));
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    if rows == 0 || length == 0.0 {
        return Ok(None);
    }
    sum.iter_mut().for_each(|x| *x /= length);
    Ok(Some(sum))
}

/// Labels as numbers, for a regression.
pub(super) fn targets(labels: &[String]) -> anyhow::Result<Vec<f64>> {
    let number = |(row, label): (usize, &String)| {
        let number = label.trim().parse::<f64>().ok();
        number.filter(|n| n.is_finite()).ok_or_else(|| {
            wrong_use(format!(
                "row {} has the label '{label}', which is no number; cs-bottleneck tells numbers",
                row + 1
            ))
        })
    };
    labels.iter().enumerate().map(number).collect()
}

/// The labels, which this command needs.
pub(super) fn needed(labels: Option<Vec<String>>) -> anyhow::Result<Vec<String>> {
    labels.ok_or_else(|| {
        wrong_use(
            "no labels: name the column with --label or a file with --labels; of texts, put those of \
             each class into a sub-folder of its own",
        )
    })
}
