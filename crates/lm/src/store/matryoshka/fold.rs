//! The basis of values inside the output projection.

use super::{Bases, Ranks};
use crate::linear::{DenseLinear, Linear};
use crate::model::{LinearName, load_linear};
use crate::{Decoder, LmError, ModelFile, Tensor};
use keyfold_kernels::blocks::{Activations, quantize};
use keyfold_kernels::{Team, matmul_nt_strided};
use std::cell::RefCell;

/// Puts the bases of values into the output projections: `W' = W U_V` for each query head, cut
/// to its rank, and `b' = b + W μ_V`. A [`MatryoshkaStore`](super::MatryoshkaStore) of this
/// decoder must be `folded`. False, with nothing changed, where the weights are packed: turned
/// ones would lie in other blocks.
///
/// # Errors
/// When bases or ranks are of another model, or a tensor cannot be read.
pub fn fold_output(
    decoder: &mut Decoder,
    file: &ModelFile,
    bases: &Bases,
    ranks: &Ranks,
) -> Result<bool, LmError> {
    let dims = decoder.config().dims;
    bases.check(&dims)?;
    ranks.check(&dims)?;
    let mut projections = Vec::with_capacity(dims.layers);
    for layer in 0..dims.layers {
        match load_linear(file, layer, LinearName::O)? {
            Some(linear) if linear.weight().kind().block_len() == 1 => projections.push(linear),
            _ => return Ok(false),
        }
    }
    let (d, wide) = (dims.head_dim, dims.heads * dims.head_dim);
    for (layer, linear) in projections.iter().enumerate() {
        let weight = linear.weight();
        let numbers = weight.to_f32();
        let of_head = |head: usize| layer * dims.kv_heads + head / dims.group();
        let columns: Vec<u32> = (0..dims.heads)
            .flat_map(|head| (0..ranks.values[of_head(head)]).map(move |k| (head * d + k) as u32))
            .collect();
        let mut folded = vec![0.0; dims.hidden * columns.len()];
        let mut bias = vec![0.0; dims.hidden];
        if let Some(own) = linear.bias() {
            bias.copy_from_slice(own);
        }
        let mut at = 0;
        for head in 0..dims.heads {
            let (basis, rank) = (&bases.values[of_head(head)], ranks.values[of_head(head)]);
            let from = &numbers[head * d..];
            let (out, stride) = (&mut folded[at..], columns.len());
            matmul_nt_strided(
                out,
                stride,
                from,
                wide,
                &basis.directions,
                d,
                dims.hidden,
                rank,
                d,
            );
            for (bias, row) in bias.iter_mut().zip(numbers.chunks_exact(wide)) {
                *bias += keyfold_kernels::dot(&row[head * d..(head + 1) * d], &basis.mean);
            }
            at += rank;
        }
        let kind = weight.kind();
        let mut bytes = vec![0; folded.len() * kind.block_bytes()];
        quantize(kind, &folded, &mut bytes);
        let tensor = Tensor::in_memory(kind, vec![dims.hidden, columns.len()], bytes);
        let inner = DenseLinear::new(tensor, Some(bias)).map_err(|e| LmError::Input {
            what: format!("matryoshka: {e}"),
        })?;
        let by = FoldedOutput {
            inner,
            columns,
            wide,
        };
        decoder.replace(layer, LinearName::O, Box::new(by))?;
    }
    Ok(true)
}

/// An output projection of the leading numbers of every head.
struct FoldedOutput {
    inner: DenseLinear,
    /// Places of these numbers in its input.
    columns: Vec<u32>,
    /// Length of its input.
    wide: usize,
}

thread_local! {
    static COMPACT: RefCell<Activations> = RefCell::default();
}

impl Linear for FoldedOutput {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn cols(&self) -> usize {
        self.wide
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team) {
        COMPACT.with_borrow_mut(|compact| {
            let to = compact.fill(x.rows(), self.columns.len());
            let rows = x.values().chunks_exact(self.wide);
            for (row, to) in rows.zip(to.chunks_exact_mut(self.columns.len())) {
                for (to, &column) in to.iter_mut().zip(&self.columns) {
                    *to = row[column as usize];
                }
            }
            self.inner.apply(compact, out, decoding, team);
        });
    }

    fn bytes_read(&self) -> u64 {
        self.inner.bytes_read()
    }
}
