//! Looking inside models.
//!
//! | question | module |
//! |---|---|
//! | which units of two networks are the same? | [`convergent`] |
//! | does a dictionary of features describe, steer and explain a model? | [`sae_evaluation`] |
//! | which algorithm does a model run on examples in its prompt? | [`in_context`] |
//! | what can one layer of attention learn? | [`random_features`] |
//! | how near to the best is the tour that a network points out? | [`route`] |
//!
//! Methods take rows of numbers, whichever model they come from; small models that are trained
//! to be looked into are part of the laboratories. Errors name what is wrong and what to do
//! ([`InspectError`]).

mod algebra;
pub mod convergent;
mod error;
pub mod in_context;
#[cfg(test)]
mod parity;
mod random;
pub mod random_features;
pub mod route;
pub mod sae_evaluation;
mod small_mamba;
mod small_transformer;
mod state;
mod weights;

pub use error::InspectError;
