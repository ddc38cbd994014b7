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
//! and layer `L` has `W = Σ_s c_s D_s + up · down`. It is computed once and kept in 16 bits, so that
//! the model then runs as any other.

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

/// Takes what layers share out of `stored` and gives the whole matrices by their canonical names.
pub(crate) fn expand(
    path: &Path,
    stored: &mut BTreeMap<String, Tensor>,
) -> Result<Vec<(String, Tensor)>, LmError> {
    let mut shared = BTreeMap::new();
    while let Some(name) = stored.keys().find(|n| n.starts_with(PREFIX)).cloned() {
        if let Some(tensor) = stored.remove(&name) {
            shared.insert(name, tensor);
        }
    }
    let atoms: Vec<String> = shared
        .keys()
        .filter(|n| n.ends_with(".atoms"))
        .cloned()
        .collect();
    let mut whole = Vec::new();
    for name in atoms {
        let Some((layers, role)) = read_atoms_name(&name) else {
            return Err(wrong_tensor(path, &name, "names no layers and projection"));
        };
        let Some(atoms) = shared.remove(&name) else {
            continue;
        };
        whole.extend(expand_group(
            path,
            &name,
            &atoms,
            layers,
            role,
            &mut shared,
        )?);
    }
    match shared.keys().next() {
        None => Ok(whole),
        Some(name) => Err(wrong_tensor(path, name, "belongs to no atoms")),
    }
}

fn expand_group(
    path: &Path,
    name: &str,
    atoms: &Tensor,
    layers: RangeInclusive<usize>,
    role: &str,
    shared: &mut BTreeMap<String, Tensor>,
) -> Result<Vec<(String, Tensor)>, LmError> {
    let &[count, rows, columns] = atoms.shape() else {
        let what = format!("is {:?}; atoms are [atoms, out, in]", atoms.shape());
        return Err(wrong_tensor(path, name, what));
    };
    let numbers = atoms.to_f32();
    let of_mixture = group_name(&layers, role, "coefficients");
    let of_layers = layers.end() - layers.start() + 1;
    let coefficients = take(path, shared, &of_mixture, &[of_layers, count])?
        .ok_or_else(|| wrong_tensor(path, &of_mixture, "is missing; its atoms are there"))?
        .to_f32();
    let mut whole = Vec::new();
    for (layer, mixture) in layers.zip(coefficients.chunks_exact(count)) {
        let mut matrix = vec![0.0; rows * columns];
        for (c, atom) in mixture.iter().zip(numbers.chunks_exact(rows * columns)) {
            axpy(&mut matrix, *c, atom);
        }
        let up_name = pair_name(layer, role, "up");
        if let Some(up) = shared.get(&up_name) {
            let rank = up.row_len();
            let up = take(path, shared, &up_name, &[rows, rank])?;
            let down_name = pair_name(layer, role, "down");
            let down = take(path, shared, &down_name, &[rank, columns])?;
            let (Some(up), Some(down)) = (up, down) else {
                return Err(wrong_tensor(
                    path,
                    &down_name,
                    "is missing; its other half is there",
                ));
            };
            let (up, down) = (up.to_f32(), down.to_f32());
            let (up, down) = (Matrix::new(&up, rank), Matrix::new(&down, columns));
            product(&mut matrix, columns, up, down, 1.0, true, 1);
        }
        let halves = matrix.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes());
        let tensor = Tensor::in_memory(BlockType::F16, vec![rows, columns], halves.collect());
        whole.push((format!("model.layers.{layer}.{role}.weight"), tensor));
    }
    Ok(whole)
}

/// Takes a tensor that must have this shape, where it is there.
fn take(
    path: &Path,
    shared: &mut BTreeMap<String, Tensor>,
    name: &str,
    shape: &[usize],
) -> Result<Option<Tensor>, LmError> {
    match shared.remove(name) {
        Some(tensor) if tensor.shape() != shape => {
            let what = format!("is {:?}; its atoms ask for {shape:?}", tensor.shape());
            Err(wrong_tensor(path, name, what))
        }
        found => Ok(found),
    }
}
