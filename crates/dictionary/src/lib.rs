//! Dictionaries: a row of numbers as a sum of few atoms.
//!
//! A [`Dictionary`] holds atoms, one per row, and codes rows with them in scikit-learn's
//! words ([`transform`](Dictionary::transform),
//! [`inverse_transform`](Dictionary::inverse_transform), `components`); how is a
//! [`Coder`]. What learns one from a stream is a [`Learner`] with `partial_fit`, whose
//! state can be saved after any row and taken up again:
//!
//! | learner | atoms |
//! |---|---|
//! | [`FrankWolfe`] | orthonormal; one pass, nothing to tune |
//! | [`Online`] | more or fewer than columns; least lasso loss |
//! | [`sae::Training`] | sparse autoencoder: codes by one matrix product |
//!
//! [`batch`] learns from rows that are all there: K-SVD, MOD, NMF, k-means. Rows that are not
//! finite, of another width or none are refused by name ([`DictionaryError`]).

pub mod batch;
mod coder;
mod codes;
mod dictionary;
pub mod draw;
mod error;
pub mod frank_wolfe;
mod learner;
mod linalg;
mod nmf;
mod online;
pub mod sae;
mod store;

pub use coder::{Coder, SparseCoder};
pub use codes::Codes;
pub use dictionary::Dictionary;
pub use error::DictionaryError;
pub use frank_wolfe::{FrankWolfe, FrankWolfeConfig, Schedule};
pub use learner::Learner;
pub use nmf::{NmfConfig, NmfFactors, nmf};
pub use online::{Online, OnlineConfig};
pub use store::{Saved, State};
