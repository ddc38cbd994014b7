//! One or many vectors for one item.

/// The keys of one item: `rows` vectors of `dim` numbers, row-major `[rows, dim]`.
///
/// A passage has one row per token, a whole-sentence encoder gives one row, an
/// item without content has none.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    dim: usize,
    data: Vec<f32>,
    ids: Option<Vec<u32>>,
}

/// Why numbers do not make [`Vectors`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VectorsError {
    /// `dim` is zero.
    #[error("vectors need at least one dimension")]
    ZeroDim,
    /// The numbers do not divide into whole rows.
    #[error("{len} numbers do not divide into rows of {dim}")]
    Ragged {
        /// How many numbers were given.
        len: usize,
        /// The length of a row.
        dim: usize,
    },
    /// A number is NaN or infinite.
    #[error("row {row} holds a number that is not finite")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
}

impl Vectors {
    /// Wraps row-major numbers `[rows, dim]`; refuses ragged rows, NaN and infinity.
    pub fn new(dim: usize, data: Vec<f32>) -> Result<Self, VectorsError> {
        if dim == 0 {
            return Err(VectorsError::ZeroDim);
        }
        if !data.len().is_multiple_of(dim) {
            return Err(VectorsError::Ragged {
                len: data.len(),
                dim,
            });
        }
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            return Err(VectorsError::NotFinite { row: i / dim });
        }
        Ok(Self {
            dim,
            data,
            ids: None,
        })
    }

    /// Gives every row an id by which it is known again, of a word for instance; 0
    /// for rows that have none.
    ///
    /// # Panics
    /// When there are not as many ids as rows.
    pub fn with_ids(mut self, ids: Vec<u32>) -> Self {
        assert_eq!(
            ids.len(),
            self.rows(),
            "Vectors::with_ids: one id for each row"
        );
        self.ids = Some(ids);
        self
    }

    /// The ids of the rows, if they have some.
    pub fn ids(&self) -> Option<&[u32]> {
        self.ids.as_deref()
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.dim
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Row `i`; panics past the end, as slices do.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.dim)
    }

    /// All numbers, row-major.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// Gives the numbers back, row-major.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Scales every row to length one; rows of (nearly) zero length stay as they are.
    pub fn normalized(mut self) -> Self {
        for row in self.data.chunks_exact_mut(self.dim) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 1e-12 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_rows_of_numbers() {
        assert_eq!(Vectors::new(0, vec![]), Err(VectorsError::ZeroDim));
        assert_eq!(
            Vectors::new(2, vec![1.0; 3]),
            Err(VectorsError::Ragged { len: 3, dim: 2 })
        );
        assert_eq!(
            Vectors::new(2, vec![1.0, 2.0, 3.0, f32::NAN]),
            Err(VectorsError::NotFinite { row: 1 })
        );
    }

    #[test]
    fn rows_keep_their_order_and_can_be_normalized() {
        let v = Vectors::new(2, vec![3.0, 4.0, 0.0, 0.0])
            .unwrap()
            .normalized();
        assert_eq!(v.rows(), 2);
        assert_eq!(v.row(0), [0.6, 0.8]);
        assert_eq!(v.row(1), [0.0, 0.0]);
        assert_eq!(v.iter().count(), 2);
    }
}
