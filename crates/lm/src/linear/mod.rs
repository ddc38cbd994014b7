//! How weights are multiplied.

mod dense;
pub mod r_sparse;

pub use dense::DenseLinear;

use keyfold_kernels::Team;
use keyfold_kernels::blocks::{Activations, Product, matmul_from, matvec_several};
use r_sparse::RSparseLinear;

/// `y = W x + b`, however `W` is kept.
pub trait Linear: Send + Sync {
    /// Length of `y`.
    fn rows(&self) -> usize;

    /// Length of `x`.
    fn cols(&self) -> usize;

    /// `out` `[n, rows]` for the `n` rows of `x`. `decoding`: a token is being made; a prompt
    /// is always multiplied whole.
    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team);

    /// Bytes that one token reads while decoding.
    fn bytes_read(&self) -> u64;

    /// Itself, where maps of the same input can be handed to the threads together.
    fn way(&self) -> Way<'_> {
        Way::Other
    }
}

/// How a map multiplies.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// With all weights.
    Dense(&'a DenseLinear),
    /// With the weights of large inputs.
    RSparse(&'a RSparseLinear),
    /// In a way of its own.
    Other,
}

/// [`Linear::apply`] of several maps to the same `x`. Those of one kind are handed to the threads
/// once, for a token that is made: handing out takes microseconds, as a small product does.
pub fn apply_several<const N: usize>(
    maps: [&dyn Linear; N],
    x: &mut Activations,
    mut outs: [&mut [f32]; N],
    decoding: bool,
    team: &Team,
) {
    if let Some(maps) = all(maps, |way| match way {
        Way::RSparse(map) if decoding && x.rows() == 1 => Some(map),
        _ => None,
    }) {
        maps.iter().for_each(|map| map.count_anew());
        return r_sparse::decode(maps, x.values(), outs, team);
    }
    if let Some(maps) = all(maps, |way| match way {
        Way::Dense(map) if x.rows() < matmul_from(map.weight().kind()) => Some(map),
        _ => None,
    }) {
        let mut rest = outs.iter_mut();
        let mut products = maps.map(|map| match rest.next() {
            Some(out) => Product::new(map.matrix(), out),
            None => unreachable!("as many outputs as maps"),
        });
        matvec_several(&mut products, x, team);
        for (map, out) in maps.iter().zip(outs) {
            if let Some(bias) = map.bias() {
                keyfold_kernels::add_bias(out, bias);
            }
        }
        return;
    }
    for (map, out) in maps.into_iter().zip(outs) {
        map.apply(x, out, decoding, team);
    }
}

/// What `of` takes of all maps; none where it does not take one.
fn all<'a, T: Copy, const N: usize>(
    maps: [&'a dyn Linear; N],
    of: impl Fn(Way<'a>) -> Option<T>,
) -> Option<[T; N]> {
    let found = maps.map(|map| of(map.way()));
    if found.iter().any(Option::is_none) {
        return None;
    }
    Some(found.map(|one| one.unwrap_or_else(|| unreachable!("seen above"))))
}
