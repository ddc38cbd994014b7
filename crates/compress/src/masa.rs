//! MASA: layers share the matrices of their attention.
//!
//! M. Zhussip, D. Shopkhoev, A. Ali and S. Lefkimmiatis, 2026, Share Your Attention: Transformer
//! Weight Sharing via Matrix-based Dictionary Learning. Each kind of projection (queries, keys,
//! values, output) has a dictionary of `S` matrices, of which the `L` layers are mixtures:
//!
//! ```text
//! W_l ≈ Σ_s c_ls D_s  (+ U_l V_l)         D_s as large as W_l
//! ```
//!
//! so `S / L` of the weights stay. Two ways to get there:
//!
//! - A model that is trained is compressed ([`compress`]), with no further training. Layers that
//!   follow each other form groups, cut where what the model would say changes most
//!   ([`groups`]). In each group the atoms are the greatest principal directions of the matrices
//!   ([`matrix_pca`]). On a text each layer's mixture is fitted anew to its *outputs*; the paper
//!   keeps the one that is nearest to the matrix. What is left is told by a low-rank pair that loses
//!   least of the outputs ([`residual`]); ranks go where singular values, as shares of a matrix's
//!   outputs, are greatest a number.
//! - A model is trained so from the beginning ([`train`], with the feature `train`).
//!
//! Matrices are `[out, in]`, row-major. Cost of the first: `L² out in` for products of all pairs,
//! and for each matrix a Cholesky decomposition and an SVD, `O(in³ + out² in)`, and products of `S`
//! atoms with moments, `S out in²`.

mod pca;
mod residual;
#[cfg(feature = "train")]
pub mod train;

use std::ops::Range;

use keyfold_core::Progress;

use crate::CompressError;
pub use pca::{Atoms, matrix_pca};
pub use residual::{Pair, Whitened, residual};

/// Which projections are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Types {
    /// Queries, keys and values: the output compresses worst.
    Qkv,
    /// The output as well.
    Qkvo,
}

/// How a model is compressed.
#[derive(Debug, Clone, PartialEq)]
pub struct MasaConfig {
    /// Groups of layers that follow each other.
    pub groups: usize,
    /// Share of the numbers of the projections that stays, above 0 and below 1.
    pub keep: f64,
    /// Atoms of each group and kind; none leaves it to [`ATOM_SHARE`]. With 0 nothing is shared, and
    /// each matrix is of low rank by itself.
    pub atoms: Option<usize>,
    /// Whether what atoms cannot say is told by low-rank pairs.
    pub residual: bool,
}

impl Default for MasaConfig {
    fn default() -> Self {
        Self {
            groups: 4,
            keep: 0.8,
            atoms: None,
            residual: true,
        }
    }
}

/// Share of the numbers that go to atoms where there are pairs as well.
pub const ATOM_SHARE: f64 = 0.5;

/// One kind of projection in all layers.
pub struct Projection<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// The matrices, `[out, in]` each.
    pub layers: Vec<Vec<f32>>,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub columns: usize,
    /// The mean of `x xᵀ` over the inputs of each layer, `[in, in]`, or nothing; needed for pairs.
    pub moments: Vec<&'a [f64]>,
}

/// A kind of projection in a group of layers, compressed.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// Which of the projections.
    pub projection: usize,
    /// The layers.
    pub layers: Range<usize>,
    /// Rows and columns of a matrix.
    pub shape: [usize; 2],
    /// Matrices and mixtures.
    pub atoms: Atoms,
    /// What is added in each layer; of rank 0 where nothing is.
    pub pairs: Vec<Pair>,
    /// Of each layer `|W - Ŵ| / |W|`.
    pub errors: Vec<f64>,
    /// Of each layer the same of the outputs; empty without a text.
    pub output_errors: Vec<f64>,
}

impl Shared {
    /// Numbers that it takes.
    pub fn numbers(&self) -> usize {
        let pairs = self.pairs.iter().map(|p| p.up.len() + p.down.len());
        self.atoms.matrices.len() + self.atoms.coefficients.len() + pairs.sum::<usize>()
    }

    /// The matrix of one of its layers (from 0 within the group).
    pub fn matrix(&self, layer: usize) -> Vec<f32> {
        let mut out = self.atoms.mixture(layer);
        self.pairs[layer].add_to(&mut out);
        out
    }
}

/// Cuts layers into `count` groups: `drifts` has one number between each two layers that follow
/// each other, and cuts are made at the largest.
///
/// # Errors
/// When there are fewer layers than groups, or no groups.
pub fn groups(drifts: &[f64], count: usize) -> Result<Vec<Range<usize>>, CompressError> {
    let layers = drifts.len() + 1;
    if count == 0 || count > layers {
        return Err(CompressError::Settings(format!(
            "{layers} layers cannot form {count} groups; choose from 1 to {layers}"
        )));
    }
    let mut order: Vec<usize> = (0..drifts.len()).collect();
    order.sort_by(|a, b| drifts[*b].total_cmp(&drifts[*a]).then(a.cmp(b)));
    let mut cuts: Vec<usize> = order[..count - 1].iter().map(|i| i + 1).collect();
    cuts.sort_unstable();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([layers]);
    Ok(starts.zip(ends).map(|(from, to)| from..to).collect())
}

/// The Kullback-Leibler divergence of two distributions, in nats: how far what a model would say
/// drifts from a layer to the next.
pub fn drift(p: &[f64], q: &[f64]) -> f64 {
    let each = p.iter().zip(q).filter(|(p, _)| **p > 0.0);
    each.map(|(p, q)| p * (p.ln() - q.max(f64::MIN_POSITIVE).ln()))
        .sum()
}

/// Compresses projections of a model whose layers drift by `drifts`.
///
/// # Errors
/// When a setting makes no sense or asks for more atoms than a group has layers, a matrix has
/// another shape than the first, a number is not finite, or pairs are wanted and there are no
/// moments; [`CompressError::Cancelled`] where `progress` asks to stop.
pub fn compress(
    config: &MasaConfig,
    projections: &[Projection],
    drifts: &[f64],
    progress: &dyn Progress,
) -> Result<Vec<Shared>, CompressError> {
    check(config, projections, drifts)?;
    let groups = groups(drifts, config.groups)?;
    let work: usize = projections.iter().map(|p| p.layers.len()).sum();
    progress.start("sharing weights", "matrices", Some(work as u64));
    let made = run(config, projections, &groups, progress);
    progress.finish();
    made
}

fn run(
    config: &MasaConfig,
    projections: &[Projection],
    groups: &[Range<usize>],
    progress: &dyn Progress,
) -> Result<Vec<Shared>, CompressError> {
    let all: usize = projections
        .iter()
        .map(|p| p.layers.len() * p.rows * p.columns)
        .sum();
    let mut left = config.keep * all as f64;
    let mut shared = Vec::new();
    // Of each part the sizes of its layers' outputs; none without a text.
    let mut sizes: Vec<Vec<f64>> = Vec::new();
    for (number, projection) in projections.iter().enumerate() {
        for layers in groups {
            let matrices: Vec<&[f32]> = projection.layers[layers.clone()]
                .iter()
                .map(Vec::as_slice)
                .collect();
            if progress.cancelled() {
                return Err(CompressError::Cancelled);
            }
            let mut atoms = matrix_pca(&matrices, atoms_of(config, matrices.len())?)?;
            let mut of_layers = Vec::new();
            for (within, layer) in layers.clone().enumerate() {
                if let Some(moments) = projection.moments.get(layer) {
                    let (matrix, columns) = (matrices[within], projection.columns);
                    let found = residual::mixture(&atoms, matrix, columns, moments)?;
                    let count = atoms.count;
                    atoms.coefficients[within * count..][..count].copy_from_slice(&found);
                    of_layers.push(residual::whole_size(matrix, columns, moments));
                }
            }
            sizes.push(of_layers);
            left -= (atoms.matrices.len() + atoms.coefficients.len()) as f64;
            shared.push(Shared {
                projection: number,
                layers: layers.clone(),
                shape: [projection.rows, projection.columns],
                pairs: vec![Pair::none(projection.rows, projection.columns); matrices.len()],
                atoms,
                errors: Vec::new(),
                output_errors: Vec::new(),
            });
            if !config.residual {
                progress.advance(matrices.len() as u64);
            }
        }
    }
    if config.residual {
        add_pairs(projections, &mut shared, &sizes, left, progress)?;
    }
    for (part, sizes) in shared.iter_mut().zip(&sizes) {
        measure(&projections[part.projection], part, sizes);
    }
    Ok(shared)
}

/// Atoms of a group of so many layers.
fn atoms_of(config: &MasaConfig, layers: usize) -> Result<usize, CompressError> {
    let atoms = match config.atoms {
        Some(atoms) => atoms,
        None if config.residual => (ATOM_SHARE * config.keep * layers as f64).round() as usize,
        // At least one, even where that keeps more than was asked for.
        None => ((config.keep * layers as f64).floor() as usize).max(1),
    };
    if atoms > layers {
        return Err(CompressError::Settings(format!(
            "{atoms} atoms for a group of {layers} layers are no saving; take fewer atoms or fewer groups"
        )));
    }
    Ok(atoms)
}

/// Gives the numbers that are left to pairs: one rank after the other to the matrix whose next
/// singular value, as a share of the size of its outputs, is greatest a number. Without that share
/// a layer whose outputs are small, as the first one's values, gets no rank and loses all of them.
fn add_pairs(
    projections: &[Projection],
    shared: &mut [Shared],
    sizes: &[Vec<f64>],
    left: f64,
    progress: &dyn Progress,
) -> Result<(), CompressError> {
    // Part, layer within it, singular values, and what a rank costs.
    let mut whitened: Vec<(usize, usize, Whitened, usize)> = Vec::new();
    for (number, part) in shared.iter().enumerate() {
        let projection = &projections[part.projection];
        for (within, layer) in part.layers.clone().enumerate() {
            if progress.cancelled() {
                return Err(CompressError::Cancelled);
            }
            let mut rest = projection.layers[layer].clone();
            keyfold_kernels::axpy(&mut rest, -1.0, &part.atoms.mixture(within));
            let found = residual(&rest, projection.columns, projection.moments[layer])?;
            let cost = projection.rows + projection.columns;
            whitened.push((number, within, found, cost));
            progress.advance(1);
        }
    }
    let mut gains: Vec<(f64, usize)> = Vec::new();
    for (at, (number, within, found, cost)) in whitened.iter().enumerate() {
        let size = sizes[*number][*within].sqrt();
        let worth = |s: &f64| (s / size / *cost as f64, at);
        gains.extend(found.values.iter().map(worth));
    }
    gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut ranks = vec![0; whitened.len()];
    let mut left = left;
    for (_, at) in gains {
        let cost = whitened[at].3 as f64;
        if left >= cost {
            ranks[at] += 1;
            left -= cost;
        }
    }
    for ((number, within, found, _), rank) in whitened.iter().zip(ranks) {
        shared[*number].pairs[*within] = found.pair(rank);
    }
    Ok(())
}

/// `sizes` are those of the layers' outputs, and none without a text.
fn measure(projection: &Projection, part: &mut Shared, sizes: &[f64]) {
    for (within, layer) in part.layers.clone().enumerate() {
        let whole = &projection.layers[layer];
        let mut rest = whole.clone();
        keyfold_kernels::axpy(&mut rest, -1.0, &part.matrix(within));
        let size = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        part.errors
            .push((size(&rest) / size(whole).max(f64::MIN_POSITIVE)).sqrt());
        if let (Some(moments), Some(size)) = (projection.moments.get(layer), sizes.get(within)) {
            let lost = residual::output_size(&rest, projection.columns, moments);
            part.output_errors.push((lost / size).sqrt());
        }
    }
}

fn check(
    config: &MasaConfig,
    projections: &[Projection],
    drifts: &[f64],
) -> Result<(), CompressError> {
    if !(config.keep > 0.0 && config.keep < 1.0) {
        return Err(CompressError::Settings(format!(
            "keep is {}; it must be above 0 and below 1",
            config.keep
        )));
    }
    for projection in projections {
        let size = projection.rows * projection.columns;
        if projection.layers.len() != drifts.len() + 1 {
            return Err(CompressError::Shape {
                what: format!("{}, by layers,", projection.name),
                found: projection.layers.len(),
                expected: drifts.len() + 1,
            });
        }
        for (layer, matrix) in projection.layers.iter().enumerate() {
            let what = || format!("{} of layer {layer}", projection.name);
            if matrix.len() != size || size == 0 {
                return Err(CompressError::Shape {
                    what: what(),
                    found: matrix.len(),
                    expected: size,
                });
            }
            if !matrix.iter().all(|x| x.is_finite()) {
                return Err(CompressError::NotFinite { what: what() });
            }
        }
        let moments = projection.columns * projection.columns;
        let whole = projection.moments.len() == projection.layers.len()
            && projection.moments.iter().all(|m| m.len() == moments);
        if !whole && (config.residual || !projection.moments.is_empty()) {
            return Err(CompressError::Settings(format!(
                "pairs need a text: the moments of {}'s inputs are missing",
                projection.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
