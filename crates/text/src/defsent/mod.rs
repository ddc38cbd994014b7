//! DefSent+ (Liu 2024, *Improving sentence embeddings of language models by projecting
//! definition sentences into a quasi-isotropic or isotropic vector space of unlimited
//! dictionary entries*).
//!
//! For a user: a better sentence encoder from any BERT and a dictionary, without labels
//! (`keyfold train defsent-plus`), and the words that fit a description
//! (`keyfold text define`).
//!
//! ```text
//! e_w  = mean over the definitions d of entry w of pool(encoder(d))    frozen, [entries, hidden]
//! r    = act(W x + b),  x = pool(encoder(d))                           W, b: the pooler
//! loss = -log softmax(r Eᵀ)_w
//! ```
//!
//! Training goes in rounds ("progressive separate training"): the entries' vectors come from
//! the encoder of the round before, the training begins with the original one again. Before
//! the last round the vectors may be made independent ([`FastIca`]), times 100.

mod dictionary;
mod entries;
#[cfg(feature = "train")]
mod fast_ica;
#[cfg(feature = "train")]
mod isotropy;
#[cfg(feature = "train")]
mod model;
#[cfg(all(test, feature = "train"))]
mod parity;
#[cfg(feature = "train")]
mod rounds;
#[cfg(feature = "train")]
mod symmetric;
#[cfg(feature = "train")]
mod task;

pub use dictionary::{Dictionary, DictionaryError, Entry};
pub use entries::{EntriesError, ReverseDictionary, embed, embed_cached};
#[cfg(feature = "train")]
pub use fast_ica::{FastIca, IcaError, Sources, standardize};
#[cfg(feature = "train")]
pub use isotropy::{mean_cosine, partition_ratio};
#[cfg(feature = "train")]
pub use model::{DefSentModel, PoolerKind};
#[cfg(feature = "train")]
pub use rounds::{Classes, DefSentConfig, EntryVectors, IcaConfig, Round, Rounds, train};
