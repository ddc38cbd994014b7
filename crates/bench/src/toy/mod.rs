//! A small encoder of late interaction that trains in a minute on two cores, for
//! experiments about what is done with token vectors. No part of the product.
//!
//! Frozen features of words ([`Lexicon`]), trained parts with gradients by hand
//! ([`parts`]), put together as a [`Tower`] that turns a text into rows; two texts
//! are compared by the Chamfer similarity `Σ_i max_j <q_i, d_j>`, and [`train()`]
//! minimises the cross-entropy of the right document among those of its batch.
//!
//! A [`World`] is a collection with its lexicon and the pairs to train on.
//! [`TokenTower`] gives one row for each token, or for each group of tokens.
//! Another aggregation or a gate is another `Tower`.

mod lexicon;
pub(crate) mod parts;
mod tower;
mod train;
mod world;

pub(crate) use lexicon::{FEATURES, Lexicon, Text};
pub(crate) use parts::Groups;
pub(crate) use tower::{Reduce, TokenTower, Tower};
pub(crate) use train::{Pair, TrainOptions, encode, train};
pub(crate) use world::World;

/// Does `work` on all items, in `threads` parts; results in the order of the items.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let part = items.len().div_ceil(threads.max(1)).max(1);
    if part >= items.len() {
        return items.iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = items
            .chunks(part)
            .map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<R>>()))
            .collect();
        let done = running.into_iter().map(|t| match t.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.flatten().collect()
    })
}
