//! Labels that lie in a file of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{RowsError, npy};

/// The labels of rows, one for each: a `.npy` array of numbers or texts with one axis,
/// else a text file with one label a line. Whole numbers are spelt without a point.
///
/// # Errors
/// When the file cannot be read, has another shape or holds no label.
pub fn read_labels(path: &Path) -> Result<Vec<String>, RowsError> {
    let name = path.display().to_string();
    let io = |source| RowsError::io(&name, source);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let labels = match path.extension().is_some_and(|e| e == "npy") {
        true => array(&mut file, &name)?,
        false => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(io)?;
            text.lines().map(|line| line.trim().to_owned()).collect()
        }
    };
    if labels.is_empty() {
        return Err(RowsError::Empty { name });
    }
    if let Some(row) = labels.iter().position(String::is_empty) {
        return Err(RowsError::format(
            &name,
            format!("row {} has an empty label", row + 1),
        ));
    }
    Ok(labels)
}

fn array(input: &mut dyn Read, name: &str) -> Result<Vec<String>, RowsError> {
    let header = npy::header(input, name)?;
    let rows = match header.shape[..] {
        [rows] | [rows, 1] => rows,
        _ => {
            return Err(RowsError::format(
                name,
                format!("labels need one axis, but its shape is {:?}", header.shape),
            ));
        }
    };
    // Characters of 4 bytes, or bytes; both filled up with zeros.
    let texts = |kind: &str| -> Option<usize> {
        let (order, rest) = header.descr.split_at_checked(1)?;
        (order != ">").then_some(rest.strip_prefix(kind)?.parse().ok()?)
    };
    let (characters, bytes) = (texts("U"), texts("S"));
    let number = npy::kind(&header.descr);
    let size = match (characters, bytes, number) {
        (Some(n), ..) => n.saturating_mul(4),
        (_, Some(n), _) => n,
        (.., Some((kind, _))) => kind.size(),
        _ => {
            return Err(RowsError::format(
                name,
                format!("its type '{}' is neither number nor text", header.descr),
            ));
        }
    };
    let wanted = rows.saturating_mul(size);
    let mut all = Vec::new();
    input
        .take(wanted as u64)
        .read_to_end(&mut all)
        .map_err(|source| RowsError::io(name, source))?;
    if all.len() < wanted {
        return Err(RowsError::format(name, "it is cut off"));
    }
    if let Some((kind, big_endian)) = number {
        let mut numbers = Vec::new();
        kind.decode(big_endian, &all, &mut numbers);
        return Ok(numbers.iter().map(f32::to_string).collect());
    }
    let label = |raw: &[u8]| -> String {
        let text: String = match characters {
            Some(_) => {
                let codes = raw
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| u32::from_le_bytes(*b));
                codes
                    .map(|c| char::from_u32(c).unwrap_or('\u{fffd}'))
                    .collect()
            }
            None => String::from_utf8_lossy(raw).into_owned(),
        };
        text.trim_end_matches('\0').to_owned()
    };
    Ok(all.chunks_exact(size.max(1)).map(label).collect())
}

/// Numbers of the classes, and the classes in order: by value where all labels are
/// numbers, else by letter.
pub fn class_numbers(labels: &[String]) -> (Vec<usize>, Vec<String>) {
    let distinct: BTreeSet<&String> = labels.iter().collect();
    let mut classes: Vec<&String> = distinct.into_iter().collect();
    let values: Option<Vec<f64>> = classes.iter().map(|c| c.parse().ok()).collect();
    if let Some(values) = values {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        classes = order.into_iter().map(|i| classes[i]).collect();
    }
    let place: BTreeMap<&String, usize> = classes.iter().copied().zip(0..).collect();
    let numbers = labels.iter().map(|label| place[label]).collect();
    (numbers, classes.into_iter().cloned().collect())
}
