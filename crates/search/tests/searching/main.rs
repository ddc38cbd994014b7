//! Searching a store from end to end.

mod candidates;
mod codebook;
mod engine;
mod world;
