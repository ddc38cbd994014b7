//! Folding: fewer vectors for a text than its model gives, for a smaller and
//! faster store. The ways are in [`keyfold_kernels::fold`], since models that are
//! trained to be folded need them as well.

use std::fmt;

use keyfold_core::{EncoderIdentity, Vectors, seed_of};
pub use keyfold_kernels::fold::{Fold, Groups};
use keyfold_kernels::norm;

use crate::codebook::Bits;
use crate::error::{BINARY, SearchError};

/// How a store folds; it remembers this and folds all that it is given alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Folding {
    /// The way; none leaves all rows as they are.
    #[serde(with = "as_text")]
    pub fold: Option<Fold>,
    /// Fold queries too. For models that were trained with it.
    #[serde(default)]
    pub queries: bool,
    /// Leave the means as long as they are: shorter than one, the more so the
    /// less their rows agree. Only where the store keeps lengths, in 8 bits.
    #[serde(default)]
    pub raw: bool,
}

mod as_text {
    use super::Fold;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(f: &Option<Fold>, s: S) -> Result<S::Ok, S::Error> {
        match f {
            Some(fold) => s.collect_str(fold),
            None => s.serialize_str("none"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Fold>, D::Error> {
        match String::deserialize(d)?.as_str() {
            "none" => Ok(None),
            spec => spec.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

impl fmt::Display for Folding {
    /// As it is given on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fold {
            Some(fold) => write!(f, "{fold}")?,
            None => write!(f, "none")?,
        }
        for (yes, option) in [
            (self.queries, " --fold-queries"),
            (self.raw, " --raw-centroids"),
        ] {
            if yes {
                write!(f, "{option}")?;
            }
        }
        Ok(())
    }
}

impl Folding {
    /// True when all rows stay as they are.
    pub fn is_none(&self) -> bool {
        self.fold.is_none()
    }

    /// Refuses raw means where the store would scale them, and all folding where rows
    /// do not stand for tokens.
    pub(crate) fn require(
        &self,
        bits: Bits,
        model: &EncoderIdentity,
        whole_text_rows: usize,
    ) -> Result<(), SearchError> {
        if whole_text_rows > 0 && !self.is_none() {
            return Err(SearchError::OtherComparison {
                what: format!("--fold {self}"),
                model: model.name.clone(),
                how: "whole texts and then words",
                instead: "leave it out: a word has one vector already, wherever it stands",
            });
        }
        match bits {
            Bits::One if !self.is_none() => Err(SearchError::OtherComparison {
                what: format!("--fold {self}"),
                model: model.name.clone(),
                how: BINARY,
                instead: "leave it out: a passage has one code already",
            }),
            Bits::Two | Bits::Four if self.raw => Err(SearchError::RawCentroids { bits }),
            _ => Ok(()),
        }
    }

    /// Folds the rows of the document `text`.
    pub fn document(&self, rows: Vectors, text: &str) -> Vectors {
        let Some(fold) = self.fold else {
            return rows;
        };
        let dim = rows.dim();
        let groups = fold.groups(rows.as_slice(), dim, false, seed_of(text));
        let folded = vectors(groups.means(rows.as_slice(), dim), rows);
        if self.raw {
            folded
        } else {
            folded.normalized()
        }
    }

    /// Folds the rows of the query `text`, if queries are folded.
    ///
    /// Models whose rows are of length one were trained with the mean of a cluster,
    /// so that is what it becomes. Where rows weigh by their length, a cluster is one of
    /// directions and becomes the *sum* of its rows: with `q1` and `q2` near each
    /// other, `max <q1, d> + max <q2, d>` is near `max <q1 + q2, d>`, and the words keep
    /// their weights against those of other clusters.
    pub fn query(&self, rows: Vectors, text: &str) -> Vectors {
        let Some(fold) = self.fold.filter(|_| self.queries) else {
            return rows;
        };
        let dim = rows.dim();
        let group = |unit: &[f32]| fold.groups(unit, dim, true, seed_of(text));
        let is_unit = |row: &[f32]| (norm(row) - 1.0).abs() < 1e-3;
        let folded = if rows.iter().all(is_unit) {
            group(rows.as_slice()).means(rows.as_slice(), dim)
        } else {
            let directions = rows.clone().normalized();
            group(directions.as_slice()).sums(rows.as_slice(), dim)
        };
        vectors(folded, rows)
    }
}

/// `folded` as vectors; sums of finite numbers could only pass the greatest number
/// there is, and then `rows` stay.
fn vectors(folded: Vec<f32>, rows: Vectors) -> Vectors {
    Vectors::new(rows.dim(), folded).unwrap_or(rows)
}

#[cfg(test)]
mod tests;
