//! Searching a store from end to end.

// A test ends where something is wrong.
#![allow(clippy::unwrap_used)]

mod candidates;
mod codebook;
mod encodings;
mod engine;
mod fast_plaid;
mod feedback;
mod rerank;
mod world;
