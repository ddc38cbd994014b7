//! One vector of fixed length for each passage, whose inner products with the
//! encoding of a query follow MaxSim: the passages to score are found by one scan
//! over short codes, without visiting token vectors.
//!
//! MUVERA (Dhulipala, Hadian, Jayaram, Lee, Mirrokni 2024, *Multi-Vector
//! Retrieval via Fixed Dimensional Encodings*). `k` random planes cut space into
//! `B = 2^k` cells (SimHash), so near vectors mostly share one. For each of `R`
//! repetitions, each cell `c` and a projection `S` to `p` numbers,
//!
//! ```text
//! query     F_q[r, c] = Σ  S_r q   over its vectors q in cell c of repetition r
//! document  F_d[r, c] = mean S_r x over its vectors x in cell c of repetition r
//! <F_q, F_d> / R ≈ Σ_q max_x <q, x>
//! ```
//!
//! A cell of a document without vectors is 0, or gets the vector whose side of
//! the planes differs least (`fill_empty_partitions`). A last count sketch can
//! shorten the whole. Length `R·B·p`, or `F`.
//!
//! *Centring* (not in the paper): token vectors of many encoders share a large
//! mean `μ`, which puts them into the same cells and fills the projections. With
//! a mean, `x - μ` takes the place of `x`, and `q - |q| μ` that of `q`. Taking `μ` from
//! documents alone would keep the order by MaxSim exactly (`<q, x - μ> = <q, x> -
//! <q, μ>`); taking it from queries too neglects `<μ, x - μ>`, which is small, and
//! removes most of the noise of the projection, as measured.
//!
//! Cost of a document of `n` vectors: `2·n·d·R·(k + p)` operations in two matrix
//! products, and `R·B·p` numbers written.

mod coder;
mod config;
mod draw;
mod libstdcxx;
mod options;
mod scan;

use std::borrow::Cow;

use keyfold_kernels::{add_assign, matmul_nt, norm, simhash_cells, simhash_sides};

pub(crate) use coder::BLOCK;
pub use coder::{CoderError, FdeCoder};
pub use config::{CENTER_FROM, Choice, FdeConfig, FdeError, Generator, Projection};
use draw::Draw;
pub use options::FdeOptions;
pub(crate) use scan::scan;

/// Makes encodings; one for documents and queries alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Fde {
    config: FdeConfig,
    dim: usize,
    /// `[dim]`; empty without centring.
    mean: Vec<f32>,
    /// `[repetitions * planes, dim]`
    planes: Vec<f32>,
    /// `[repetitions * width, dim]`; empty for the identity.
    projections: Vec<f32>,
    /// For every coordinate its place in the final projection, and its sign.
    last: Vec<(u32, f32)>,
}

/// A query's encoding, which is 0 in most cells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueryFde {
    /// Coordinates of a block.
    pub width: usize,
    /// The blocks that are not 0, ascending.
    pub blocks: Vec<u32>,
    /// Their coordinates, `[blocks.len(), width]`.
    pub values: Vec<f32>,
}

impl QueryFde {
    /// The inner product with a document's encoding; not divided by the number
    /// of repetitions.
    ///
    /// # Panics
    /// When the document's encoding is shorter.
    pub fn dot(&self, document: &[f32]) -> f32 {
        let blocks = self
            .blocks
            .iter()
            .zip(self.values.chunks_exact(self.width.max(1)));
        blocks
            .map(|(&b, values)| {
                let at = b as usize * self.width;
                keyfold_kernels::dot(values, &document[at..][..self.width])
            })
            .sum()
    }

    /// All `len` coordinates.
    pub fn to_dense(&self, len: usize) -> Vec<f32> {
        let mut dense = vec![0.0; len];
        let blocks = self
            .blocks
            .iter()
            .zip(self.values.chunks_exact(self.width.max(1)));
        for (&b, values) in blocks {
            dense[b as usize * self.width..][..self.width].copy_from_slice(values);
        }
        dense
    }
}

impl Fde {
    /// Draws planes and projections for vectors of `dim` numbers; `mean` is taken
    /// from vectors if given.
    ///
    /// Of each repetition the planes are drawn plane by plane from N(0, 1), the
    /// dense projection row by row. A count sketch draws for every coordinate its
    /// place, then its sign. All three begin with a fresh generator each.
    pub fn new(dim: usize, config: FdeConfig, mean: Option<&[f32]>) -> Result<Self, FdeError> {
        config.check(dim)?;
        let mut planes = Vec::new();
        let mut projections = Vec::new();
        for r in 0..config.num_repetitions {
            let draw = || Draw::new(&config, r);
            let mut normal = draw();
            let count = config.num_simhash_projections * dim;
            planes.extend((0..count).map(|_| normal.normal()));
            projections.extend(projection(dim, &config, &mut draw()));
        }
        let mut draw = Draw::new(&config, 0);
        let len = config.final_projection_dimension.unwrap_or(0);
        let inner = if len == 0 { 0 } else { config.inner_len(dim) };
        let last = (0..inner).map(|_| draw.place_and_sign(len)).collect();
        Self::with_matrices(dim, config, mean, planes, projections, last)
    }

    /// With given planes `[R·k, dim]`, projections `[R·p, dim]` (empty for the
    /// identity) and final projection (for every coordinate a place below `F` and
    /// a factor; empty without one).
    pub fn with_matrices(
        dim: usize,
        config: FdeConfig,
        mean: Option<&[f32]>,
        planes: Vec<f32>,
        projections: Vec<f32>,
        last: Vec<(u32, f32)>,
    ) -> Result<Self, FdeError> {
        config.check(dim)?;
        let r = config.num_repetitions;
        let of_identity = config.projection_type == Projection::Identity;
        let mean = mean.unwrap_or_default();
        let f = config.final_projection_dimension;
        for (what, got, wanted) in [
            ("mean", mean.len(), if mean.is_empty() { 0 } else { dim }),
            (
                "planes",
                planes.len(),
                r * config.num_simhash_projections * dim,
            ),
            (
                "projections",
                projections.len(),
                if of_identity {
                    0
                } else {
                    r * config.width(dim) * dim
                },
            ),
            (
                "final projection",
                last.len(),
                f.map_or(0, |_| config.inner_len(dim)),
            ),
        ] {
            if got != wanted {
                return Err(FdeError::Shape { what, got, wanted });
            }
        }
        let numbers = mean.iter().chain(&planes).chain(&projections);
        let placed =
            |&(place, sign): &(u32, f32)| (place as usize) < f.unwrap_or(0) && sign.is_finite();
        if !numbers.into_iter().all(|x| x.is_finite()) || !last.iter().all(placed) {
            return Err(FdeError::NotFinite);
        }
        Ok(Self {
            config,
            dim,
            mean: mean.to_vec(),
            planes,
            projections,
            last,
        })
    }

    /// The parameters.
    pub fn config(&self) -> &FdeConfig {
        &self.config
    }

    /// Length of a vector to encode.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What is taken from every vector; empty without centring.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Coordinates of an encoding.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.config.len(self.dim)
    }

    /// Coordinates that are 0 together in a query: of a cell, or all after a final
    /// projection.
    pub fn block_width(&self) -> usize {
        match self.config.final_projection_dimension {
            Some(f) => f,
            None => self.config.width(self.dim),
        }
    }

    /// The encoding of a document's vectors (`[n, dim]`); 0 of none. Refuses
    /// what is not finite.
    pub fn document(&self, rows: &[f32]) -> Result<Vec<f32>, FdeError> {
        let mut out = vec![0.0; self.len()];
        self.documents(rows, &[rows.len() / self.dim], &mut out)?;
        Ok(out)
    }

    /// The encodings of several documents, `counts[i]` of the rows being those of
    /// document `i`, into `out` (`[counts.len(), len]`). One thread. Refuses rows
    /// that are not finite, or not as many as the counts say.
    pub fn documents(
        &self,
        rows: &[f32],
        counts: &[usize],
        out: &mut [f32],
    ) -> Result<(), FdeError> {
        let n: usize = counts.iter().sum();
        self.require("document vectors", rows.len(), n * self.dim)?;
        self.require("encodings", out.len(), counts.len() * self.len())?;
        let hashed = self.hash(rows, false)?;
        let inner_len = self.config.inner_len(self.dim);
        let mut inner = vec![0.0; if self.last.is_empty() { 0 } else { inner_len }];
        let mut first = 0;
        for (&count, out) in counts.iter().zip(out.chunks_exact_mut(self.len())) {
            let range = first..first + count;
            first += count;
            if self.last.is_empty() {
                self.average(&hashed, range, out);
            } else {
                self.average(&hashed, range, &mut inner);
                out.fill(0.0);
                for (x, &(place, sign)) in inner.iter().zip(&self.last) {
                    out[place as usize] += sign * x;
                }
            }
        }
        Ok(())
    }

    /// The encoding of a query's vectors (`[n, dim]`, of any length). Refuses what
    /// is not finite.
    pub fn query(&self, rows: &[f32]) -> Result<QueryFde, FdeError> {
        self.require(
            "query vectors",
            rows.len(),
            rows.len() / self.dim * self.dim,
        )?;
        let hashed = self.hash(rows, true)?;
        let (width, cells) = (hashed.width, self.config.partitions());
        let n = rows.len() / self.dim;
        let mut query = QueryFde {
            width,
            ..QueryFde::default()
        };
        let mut order: Vec<(u16, usize)> = Vec::with_capacity(n);
        for r in 0..self.config.num_repetitions {
            order.clear();
            order.extend((0..n).map(|t| (hashed.cell(t, r), t)));
            order.sort_unstable();
            for of_cell in order.chunk_by(|a, b| a.0 == b.0) {
                query
                    .blocks
                    .push((r * cells) as u32 + u32::from(of_cell[0].0));
                let start = query.values.len();
                query.values.resize(start + width, 0.0);
                for &(_, t) in of_cell {
                    add_assign(&mut query.values[start..], hashed.projected(t, r));
                }
            }
        }
        Ok(match self.config.final_projection_dimension {
            None => query,
            Some(f) => self.shorten(&query, f),
        })
    }

    /// The final projection of a query.
    fn shorten(&self, query: &QueryFde, f: usize) -> QueryFde {
        let mut values = vec![0.0; f];
        for (&b, block) in query
            .blocks
            .iter()
            .zip(query.values.chunks_exact(query.width))
        {
            let last = &self.last[b as usize * query.width..];
            for (x, &(place, sign)) in block.iter().zip(last) {
                values[place as usize] += sign * x;
            }
        }
        QueryFde {
            width: f,
            blocks: vec![0],
            values,
        }
    }

    fn require(&self, what: &'static str, got: usize, wanted: usize) -> Result<(), FdeError> {
        if got == wanted {
            return Ok(());
        }
        Err(FdeError::Shape { what, got, wanted })
    }

    /// Cells and projections of all vectors.
    fn hash<'a>(&self, rows: &'a [f32], of_query: bool) -> Result<Hashed<'a>, FdeError> {
        if !rows.iter().all(|x| x.is_finite()) {
            return Err(FdeError::NotFinite);
        }
        let (dim, c) = (self.dim, &self.config);
        let n = rows.len() / dim;
        let rows = self.centred(rows, of_query);
        let planes = c.num_repetitions * c.num_simhash_projections;
        let mut products = vec![0.0; n * planes];
        matmul_nt(&mut products, &rows, &self.planes, n, planes, dim, 1);
        let mut cells = vec![0; n * c.num_repetitions];
        simhash_cells(
            &products,
            c.num_simhash_projections,
            c.num_repetitions,
            &mut cells,
        );

        let width = c.width(dim);
        let (projected, stride) = if self.projections.is_empty() {
            (rows, 0)
        } else {
            let columns = c.num_repetitions * width;
            let mut projected = vec![0.0; n * columns];
            matmul_nt(&mut projected, &rows, &self.projections, n, columns, dim, 1);
            (projected.into(), width)
        };
        Ok(Hashed {
            repetitions: c.num_repetitions,
            cells,
            projected,
            row: if stride == 0 {
                dim
            } else {
                c.num_repetitions * width
            },
            stride,
            width,
        })
    }

    /// Vectors without the mean. Those of a query lose as much more of it as they
    /// are longer than those of documents, which have length 1.
    fn centred<'a>(&self, rows: &'a [f32], of_query: bool) -> Cow<'a, [f32]> {
        if self.mean.is_empty() {
            return rows.into();
        }
        let mut centred = rows.to_vec();
        for row in centred.chunks_exact_mut(self.dim) {
            let scale = if of_query { norm(row) } else { 1.0 };
            for (x, mean) in row.iter_mut().zip(&self.mean) {
                *x -= scale * mean;
            }
        }
        centred.into()
    }

    /// Averages the vectors `range` by cell into `out` (`[R, B, width]`).
    fn average(&self, hashed: &Hashed<'_>, range: std::ops::Range<usize>, out: &mut [f32]) {
        out.fill(0.0);
        let (cells, width) = (self.config.partitions(), hashed.width);
        let mut counts = vec![0u32; cells];
        let mut nearest = vec![0; cells];
        for (r, out) in out.chunks_exact_mut(cells * width).enumerate() {
            counts.fill(0);
            for t in range.clone() {
                let cell = usize::from(hashed.cell(t, r));
                counts[cell] += 1;
                add_assign(&mut out[cell * width..][..width], hashed.projected(t, r));
            }
            for (&count, out) in counts.iter().zip(out.chunks_exact_mut(width)) {
                if count > 1 {
                    let scale = 1.0 / count as f32;
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
            if self.config.fill_empty_partitions && !range.is_empty() {
                hashed.nearest(range.clone(), r, &mut nearest);
                for (cell, out) in out.chunks_exact_mut(width).enumerate() {
                    if counts[cell] == 0 {
                        let sides = usize::from(simhash_sides(cell as u16));
                        let row = (nearest[sides] & ROW) as usize;
                        out.copy_from_slice(hashed.projected(range.start + row, r));
                    }
                }
            }
        }
    }
}

/// The part of an entry of [`Hashed::nearest`] that numbers the vector.
const ROW: u64 = (1 << 48) - 1;

/// What is known of some vectors.
struct Hashed<'a> {
    repetitions: usize,
    /// `[n, repetitions]`
    cells: Vec<u16>,
    /// Their projections, `[n, row]`, that of repetition `r` at `r * stride`.
    projected: Cow<'a, [f32]>,
    row: usize,
    stride: usize,
    width: usize,
}

impl Hashed<'_> {
    fn cell(&self, t: usize, r: usize) -> u16 {
        self.cells[t * self.repetitions + r]
    }

    fn projected(&self, t: usize, r: usize) -> &[f32] {
        &self.projected[t * self.row + r * self.stride..][..self.width]
    }

    /// For every combination of sides how many planes the nearest of the vectors
    /// `range` is away (from bit 48 on) and which one it is, counted within the
    /// range; the first of equals. Distances are sums over planes, so one pass for
    /// each plane finds them.
    fn nearest(&self, range: std::ops::Range<usize>, r: usize, nearest: &mut [u64]) {
        nearest.fill(u64::MAX >> 1);
        for (row, t) in range.enumerate() {
            let sides = usize::from(simhash_sides(self.cell(t, r)));
            nearest[sides] = nearest[sides].min(row as u64);
        }
        let mut plane = 1;
        while plane < nearest.len() {
            for pair in nearest.chunks_exact_mut(2 * plane) {
                let (a, b) = pair.split_at_mut(plane);
                for (a, b) in a.iter_mut().zip(b) {
                    let (old_a, old_b) = (*a, *b);
                    *a = old_a.min(old_b + ROW + 1);
                    *b = old_b.min(old_a + ROW + 1);
                }
            }
            plane *= 2;
        }
    }
}

/// The projection of one repetition, `[width, dim]`; empty for the identity.
fn projection(dim: usize, config: &FdeConfig, draw: &mut Draw) -> Vec<f32> {
    let width = config.projection_dimension;
    match config.projection_type {
        Projection::Identity => Vec::new(),
        Projection::Dense => {
            let unit = 1.0 / (width as f32).sqrt();
            (0..width * dim).map(|_| unit * draw.sign()).collect()
        }
        Projection::Count => {
            // As a matrix: multiplying with it is faster than adding one by one.
            let mut matrix = vec![0.0; width * dim];
            for d in 0..dim {
                let (place, sign) = draw.place_and_sign(width);
                matrix[place as usize * dim + d] = sign;
            }
            matrix
        }
    }
}

#[cfg(test)]
mod tests;
