//! Everything is a lookup: index a folder, search it by meaning.
//!
//! This crate gathers what users of the library need, under one name; each part
//! has its own crate.
//!
//! ```
//! use keyfold::core::NoProgress;
//! use keyfold::search::engine::{self, SearchOptions};
//! use keyfold::search::index::{self, IndexOptions};
//! use keyfold::search::store::Snapshot;
//! use keyfold::text::{LoadOptions, load};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let notes = folder.path().to_owned();
//! std::fs::write(notes.join("a.md"), "Water the tomatoes every morning.")?;
//! std::fs::write(notes.join("b.md"), "The crew stays tied to the deck.")?;
//!
//! // Read a folder into a store.
//! let encoder = load("builtin", &LoadOptions::default())?;
//! let store = notes.join(".keyfold");
//! index::update(&store, &[notes], &*encoder, &IndexOptions::default(), &NoProgress)?;
//!
//! // Search it.
//! let snapshot = Snapshot::open(&store)?;
//! let found = engine::search(
//!     &snapshot,
//!     "keep vegetables healthy",
//!     Some(&*encoder),
//!     &SearchOptions::default(),
//! )?;
//! assert!(found.hits[0].path.ends_with("a.md"));
//! # Ok(())
//! # }
//! ```

/// Models made smaller.
pub use keyfold_compress as compress;
/// The nouns that all crates speak: vectors, encoders, progress.
pub use keyfold_core as core;
/// Files in, passages out.
pub use keyfold_data as data;
/// Dictionaries: few atoms, sparse codes.
pub use keyfold_dictionary as dictionary;
/// Looking inside models.
pub use keyfold_inspect as inspect;
/// Arithmetic on slices.
pub use keyfold_kernels as kernels;
/// Classes and numbers from rows of features.
pub use keyfold_predict as predict;
/// The store and the search engine.
pub use keyfold_search as search;
/// Text encoders.
pub use keyfold_text as text;
