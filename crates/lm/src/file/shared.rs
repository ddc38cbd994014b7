//! Projections that layers share (MASA, `keyfold model share`): made whole when a model is opened.
//!
//! A file holds in place of `model.layers.L.ROLE.weight`, for layers `A` to `B` of a group:
//!
//! ```text
//! masa.A-B.ROLE.atoms          [S, out, in]      matrices that the group shares
//! masa.A-B.ROLE.coefficients   [B - A + 1, S]    the mixture of each layer
//! masa.L.ROLE.up  .down        [out, r], [r, in] what is added in layer L, if anything
//! ```
//!
//! and layer `L` has `W = Σ_s c_s D_s + up · down`; a group without atoms has a pair in every layer.
//! It is computed once and kept in 16 bits, so that the model then runs as any other.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use half::f16;
use keyfold_kernels::blocks::BlockType;
use keyfold_kernels::{Matrix, axpy, product};

use super::tensor::Tensor;
use crate::error::{LmError, tensor as wrong_tensor};

/// Begins the names of what layers share.
pub(super) const PREFIX: &str = "masa.";

/// The most numbers of a matrix that is told by a pair alone, which is as small as its sides.
const MOST_NUMBERS: usize = 1 << 30;

/// The name of the atoms, or of the coefficients, of a group of layers.
pub(crate) fn group_name(layers: &RangeInclusive<usize>, role: &str, what: &str) -> String {
    format!("{PREFIX}{}-{}.{role}.{what}", layers.start(), layers.end())
}

/// The name of one of a layer's pair of thin matrices.
pub(crate) fn pair_name(layer: usize, role: &str, what: &str) -> String {
    format!("{PREFIX}{layer}.{role}.{what}")
}

/// Layers and role in the name of atoms.
fn read_atoms_name(name: &str) -> Option<(RangeInclusive<usize>, &str)> {
    let (layers, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let role = rest.strip_suffix(".atoms")?;
    let (first, last) = layers.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last - first < 1 << 16).then_some((first..=last, role))
}

/// Layer and role in the name of the first half of a pair.
fn read_up_name(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    Some((layer.parse().ok()?, rest.strip_suffix(".up")?))
}

/// Takes what layers share out of `stored` and gives the whole matrices by their canonical names.
/// `needed` gives all tensors of the model with their shapes; nothing else is made.
pub(crate) fn expand(
    path: &Path,
    stored: &mut BTreeMap<String, Tensor>,
    needed: impl FnOnce() -> Vec<(String, Vec<usize>)>,
) -> Result<Vec<(String, Tensor)>, LmError> {
    let (left, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(stored)
        .into_iter()
        .partition(|(name, _)| name.starts_with(PREFIX));
    *stored = rest;
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let mut reading = Reading {
        path,
        left,
        needed: needed().into_iter().collect(),
    };
    let mut whole = Vec::new();
    for name in reading.names(".atoms") {
        whole.extend(reading.group(&name)?);
    }
    // Pairs that belong to atoms are taken by now.
    for name in reading.names(".up") {
        whole.push(reading.alone(&name)?);
    }
    match reading.left.keys().next() {
        None => Ok(whole),
        Some(name) => Err(reading.wrong(name, "belongs to no atoms")),
    }
}

/// What is left of a file while its matrices are made whole.
struct Reading<'a> {
    path: &'a Path,
    left: BTreeMap<String, Tensor>,
    /// Shapes of the model's tensors.
    needed: BTreeMap<String, Vec<usize>>,
}

impl Reading<'_> {
    fn wrong(&self, name: &str, what: impl Into<String>) -> LmError {
        wrong_tensor(self.path, name, what)
    }

    /// The names that are left with such an end.
    fn names(&self, end: &str) -> Vec<String> {
        let names = self.left.keys().filter(|name| name.ends_with(end));
        names.cloned().collect()
    }

    /// The matrices of a group of layers.
    fn group(&mut self, name: &str) -> Result<Vec<(String, Tensor)>, LmError> {
        let Some((layers, role)) = read_atoms_name(name) else {
            return Err(self.wrong(name, "names no layers and projection"));
        };
        let Some(atoms) = self.left.remove(name) else {
            return Ok(Vec::new());
        };
        let &[count, rows, columns] = atoms.shape() else {
            let what = format!("is {:?}; atoms are [atoms, out, in]", atoms.shape());
            return Err(self.wrong(name, what));
        };
        let of_mixture = group_name(&layers, role, "coefficients");
        let of_layers = layers.end() - layers.start() + 1;
        let coefficients = self
            .take(&of_mixture, &[of_layers, count])?
            .ok_or_else(|| self.wrong(&of_mixture, "is missing; its atoms are there"))?
            .to_f32();
        // Before anything is made: a short name can claim many layers.
        for layer in layers.clone() {
            let shape = self.shape(layer, role)?;
            if shape != [rows, columns] {
                let what = format!(
                    "is {:?}; the configuration asks for {shape:?}",
                    [rows, columns]
                );
                return Err(self.wrong(&matrix_name(layer, role), what));
            }
        }
        let numbers = atoms.to_f32();
        let mut whole = Vec::new();
        for (layer, mixture) in layers.zip(coefficients.chunks_exact(count)) {
            let mut matrix = vec![0.0; rows * columns];
            for (c, atom) in mixture.iter().zip(numbers.chunks_exact(rows * columns)) {
                axpy(&mut matrix, *c, atom);
            }
            if let Some(pair) = self.pair(layer, role, [rows, columns])? {
                add(&mut matrix, pair);
            }
            whole.push(self.whole(layer, role, [rows, columns], &matrix)?);
        }
        Ok(whole)
    }

    /// The matrix of a layer that has a pair and no atoms.
    fn alone(&mut self, name: &str) -> Result<(String, Tensor), LmError> {
        let Some((layer, role)) = read_up_name(name) else {
            return Err(self.wrong(name, "names no layer and projection"));
        };
        let [rows, columns] = self.shape(layer, role)?;
        let size = rows
            .checked_mul(columns)
            .filter(|size| *size <= MOST_NUMBERS);
        let Some(size) = size else {
            let what = format!("is a pair for {rows} x {columns} numbers, which are too many");
            return Err(self.wrong(name, what));
        };
        let Some(pair) = self.pair(layer, role, [rows, columns])? else {
            return Err(self.wrong(name, "is missing"));
        };
        let mut matrix = vec![0.0; size];
        add(&mut matrix, pair);
        self.whole(layer, role, [rows, columns], &matrix)
    }

    /// The shape that the model asks for.
    fn shape(&self, layer: usize, role: &str) -> Result<[usize; 2], LmError> {
        let name = matrix_name(layer, role);
        match self.needed.get(&name).map(Vec::as_slice) {
            Some(&[rows, columns]) => Ok([rows, columns]),
            _ => Err(self.wrong(&name, "is shared, and the model has no such matrix")),
        }
    }

    /// Takes both halves of what is added in a layer, if anything is.
    fn pair(
        &mut self,
        layer: usize,
        role: &str,
        [rows, columns]: [usize; 2],
    ) -> Result<Option<[Tensor; 2]>, LmError> {
        let up_name = pair_name(layer, role, "up");
        let Some(rank) = self.left.get(&up_name).map(Tensor::row_len) else {
            return Ok(None);
        };
        let up = self.take(&up_name, &[rows, rank])?;
        let down_name = pair_name(layer, role, "down");
        let down = self.take(&down_name, &[rank, columns])?;
        match (up, down) {
            (Some(up), Some(down)) => Ok(Some([up, down])),
            _ => Err(self.wrong(&down_name, "is missing; its other half is there")),
        }
    }

    /// A matrix in 16 bits, under its canonical name.
    fn whole(
        &self,
        layer: usize,
        role: &str,
        shape: [usize; 2],
        matrix: &[f32],
    ) -> Result<(String, Tensor), LmError> {
        let name = matrix_name(layer, role);
        let mut bytes = Vec::with_capacity(2 * matrix.len());
        for number in matrix {
            let half = f16::from_f32(*number);
            if !half.is_finite() {
                let what = format!("would hold {half}; what the layers share is damaged");
                return Err(self.wrong(&name, what));
            }
            bytes.extend_from_slice(&half.to_le_bytes());
        }
        let tensor = Tensor::in_memory(BlockType::F16, shape.to_vec(), bytes);
        Ok((name, tensor))
    }

    /// Takes a tensor that must have this shape, where it is there.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, LmError> {
        match self.left.remove(name) {
            Some(tensor) if tensor.shape() != shape => {
                let what = format!("is {:?} and must be {shape:?}", tensor.shape());
                Err(self.wrong(name, what))
            }
            found => Ok(found),
        }
    }
}

/// The canonical name of a projection's matrix.
fn matrix_name(layer: usize, role: &str) -> String {
    format!("model.layers.{layer}.{role}.weight")
}

/// Adds the product of a pair.
fn add(matrix: &mut [f32], [up, down]: [Tensor; 2]) {
    let (rank, columns) = (up.row_len(), down.row_len());
    let (up, down) = (up.to_f32(), down.to_f32());
    let (up, down) = (Matrix::new(&up, rank), Matrix::new(&down, columns));
    product(matrix, columns, up, down, 1.0, true, 1);
}
