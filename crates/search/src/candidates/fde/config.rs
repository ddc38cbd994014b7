//! What an encoding is made with.

use keyfold_kernels::MAX_PLANES;

/// Coordinates of an encoding, at most: 64 MB for a document.
const MOST_COORDINATES: usize = 1 << 24;

/// How vectors are shortened before they are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// Not at all.
    Identity,
    /// By a matrix of `±1/√p`, as in the paper.
    #[default]
    Dense,
    /// Each coordinate is added to one place with a random sign (a count sketch;
    /// the authors' code calls it AMS sketch).
    Count,
}

/// Vectors whose mean is at least this long are centred by [`Choice::Auto`].
/// Measured: without centring, vectors with a mean of .9 need 251 candidates for
/// what 32 do with it; vectors with a mean of .5 need 58 without and 91 with it.
pub const CENTER_FROM: f32 = 0.7;

/// Whether to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Where it is known to help.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

impl Choice {
    /// Whether vectors with this mean are to be centred.
    pub fn centers(self, mean: &[f32]) -> bool {
        match self {
            Choice::Auto => keyfold_kernels::norm(mean) >= CENTER_FROM,
            Choice::On => true,
            Choice::Off => false,
        }
    }
}

/// Where the random numbers of planes and projections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generator {
    /// ChaCha12, in an order that [`Fde::new`](super::Fde::new) states.
    #[default]
    ChaCha,
    /// GNU's C++ library, in the order of the authors' program: the same encodings as
    /// theirs to rounding, for a sketch that it has.
    Libstdcxx,
}

/// Parameters of an encoding. Names are the authors', the default is their
/// (20, 5, 16): 10,240 coordinates.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FdeConfig {
    /// `R`: how often space is cut into cells.
    pub num_repetitions: usize,
    /// `k`: planes that cut it, into `2^k` cells; at most 16.
    pub num_simhash_projections: usize,
    /// Repetition `r` draws its planes from a generator with seed `seed + r`, and
    /// its projection from another one with the same seed.
    pub seed: u64,
    /// How vectors are shortened.
    pub projection_type: Projection,
    /// `p`: numbers that are left of a vector; without meaning for
    /// [`Projection::Identity`].
    pub projection_dimension: usize,
    /// Whether a cell without a vector gets that of the nearest cell, in documents.
    pub fill_empty_partitions: bool,
    /// `F`: a count sketch shortens the whole encoding to so many coordinates.
    pub final_projection_dimension: Option<usize>,
    /// Who draws.
    #[serde(default)]
    pub generator: Generator,
}

impl Default for FdeConfig {
    fn default() -> Self {
        Self {
            num_repetitions: 20,
            num_simhash_projections: 5,
            seed: 42,
            projection_type: Projection::Dense,
            projection_dimension: 16,
            fill_empty_partitions: false,
            final_projection_dimension: None,
            generator: Generator::default(),
        }
    }
}

/// Why an encoding cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FdeError {
    /// No repetition, no coordinate of a vector, or no coordinate at all.
    #[error("an encoding needs {0} of at least 1")]
    Zero(&'static str),
    /// Too many planes.
    #[error(
        "{planes} planes make {cells} cells for each repetition, {bytes} bytes for each document; \
         at most {MAX_PLANES} planes are possible, and 3 to 6 are usual"
    )]
    Planes {
        /// Planes that were asked for.
        planes: usize,
        /// Cells that they make.
        cells: u128,
        /// Bytes of one document's encoding.
        bytes: u128,
    },
    /// The projection would make vectors longer.
    #[error("vectors of {dim} numbers cannot be projected to {projection}: at most to {dim}")]
    Longer {
        /// Length of a vector.
        dim: usize,
        /// Length that was asked for.
        projection: usize,
    },
    /// An encoding would take too much memory.
    #[error(
        "an encoding of {coordinates} coordinates takes {} MB for each document; take fewer \
         repetitions, planes or projected dimensions, at most {MOST_COORDINATES} coordinates",
        .coordinates / (1 << 18)
    )]
    Size {
        /// Coordinates before the final projection.
        coordinates: u128,
    },
    /// A matrix or vector has another length than the parameters ask for.
    #[error("{what}: {got} numbers where {wanted} belong")]
    Shape {
        /// Which one.
        what: &'static str,
        /// Numbers that it has.
        got: usize,
        /// Numbers that it must have.
        wanted: usize,
    },
    /// The authors' program has no dense projection.
    #[error(
        "rng=libstdcxx draws as the authors' program, which has sketch=count and sketch=identity"
    )]
    NoDense,
    /// A vector is no whole row or holds what is no number.
    #[error("a vector to encode holds NaN or infinity")]
    NotFinite,
}

impl FdeConfig {
    /// `B`: cells of a repetition.
    pub fn partitions(&self) -> usize {
        1 << self.num_simhash_projections.min(MAX_PLANES)
    }

    /// Numbers that are left of a vector of `dim`.
    pub fn width(&self, dim: usize) -> usize {
        match self.projection_type {
            Projection::Identity => dim,
            _ => self.projection_dimension,
        }
    }

    /// Coordinates of an encoding before the final projection.
    pub fn inner_len(&self, dim: usize) -> usize {
        self.num_repetitions * self.partitions() * self.width(dim)
    }

    /// Coordinates of an encoding of vectors of `dim` numbers.
    pub fn len(&self, dim: usize) -> usize {
        self.final_projection_dimension
            .unwrap_or_else(|| self.inner_len(dim))
    }

    /// Refuses parameters that make no encoding of vectors of `dim` numbers.
    pub fn check(&self, dim: usize) -> Result<(), FdeError> {
        for (n, what) in [
            (dim, "vectors"),
            (self.num_repetitions, "num_repetitions"),
            (self.width(dim), "projection_dimension"),
            (
                self.final_projection_dimension.unwrap_or(1),
                "final_projection_dimension",
            ),
        ] {
            if n == 0 {
                return Err(FdeError::Zero(what));
            }
        }
        let dense = self.projection_type == Projection::Dense;
        if dense && self.generator == Generator::Libstdcxx {
            return Err(FdeError::NoDense);
        }
        let planes = self.num_simhash_projections;
        let cells = 1u128 << planes.min(64);
        let coordinates = (self.num_repetitions as u128)
            .saturating_mul(cells)
            .saturating_mul(self.width(dim) as u128);
        if planes > MAX_PLANES {
            return Err(FdeError::Planes {
                planes,
                cells,
                bytes: coordinates.saturating_mul(4),
            });
        }
        if self.width(dim) > dim {
            return Err(FdeError::Longer {
                dim,
                projection: self.width(dim),
            });
        }
        let longest = self.final_projection_dimension.unwrap_or(0) as u128;
        let coordinates = coordinates.max(longest);
        if coordinates > MOST_COORDINATES as u128 {
            return Err(FdeError::Size { coordinates });
        }
        Ok(())
    }
}
