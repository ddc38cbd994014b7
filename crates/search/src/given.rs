//! Token vectors that were made elsewhere, in the place of a model: each document is a
//! `.npy` file of its rows, and so is a query.
//!
//! [`GivenVectors`] stands where a model stands. Indexing reads the rows of documents
//! itself (see [`Encoder::reads_rows`]); the text of such a document is the name of its
//! file. Of a text it makes no rows: what a query means must be given.

use std::ops::Range;

use keyfold_core::{EncodeError, Encoder, EncoderIdentity, Role, Vectors};

/// What stands in a store as the name of the model, before the length of the rows.
const NAME: &str = "token-vectors:";

/// The hash of what such rows are; a new one where their reading changes.
const VERSION: &str = "1";

/// Rows of documents and of a query, made elsewhere.
#[derive(Debug, Clone)]
pub struct GivenVectors {
    identity: EncoderIdentity,
    query: Option<Vectors>,
}

impl GivenVectors {
    /// Of rows of so many numbers.
    pub fn new(dim: usize) -> Self {
        Self {
            identity: EncoderIdentity {
                name: format!("{NAME}{dim}"),
                hash: VERSION.to_owned(),
                dim,
            },
            query: None,
        }
    }

    /// Those of a store, by the name of its model; none if it has a model.
    pub fn by_name(name: &str) -> Option<Self> {
        let dim = name.strip_prefix(NAME)?.parse().ok()?;
        (dim > 0).then(|| Self::new(dim))
    }

    /// With the rows of the query that will be asked for.
    pub fn with_query(self, rows: Vectors) -> Self {
        Self {
            query: Some(rows),
            ..self
        }
    }
}

impl Encoder for GivenVectors {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn encode(&self, texts: &[&str], role: Role) -> Result<Vec<Vectors>, EncodeError> {
        let none = || Vectors::new(self.identity.dim, Vec::new());
        let rows = || match (&self.query, role) {
            (Some(query), Role::Query) => Ok(query.clone()),
            _ => none().map_err(|source| EncodeError::BadOutput {
                model: self.identity.name.clone(),
                source,
            }),
        };
        texts.iter().map(|_| rows()).collect()
    }

    fn spans(&self, _: &str, _: Role) -> Result<Vec<Option<Range<usize>>>, EncodeError> {
        Ok(Vec::new())
    }

    fn reads_rows(&self) -> bool {
        true
    }
}
