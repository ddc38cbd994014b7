//! Files in, passages out.
//!
//! [`walk`](walk()) finds files, [`read`](read()) makes [`Passage`]s of one file.
//! What a file is follows from its name and its first bytes ([`Format`]); passages
//! follow the structure that the format has (headings, paragraphs, functions, rows)
//! and are cut to a size that encoders take ([`ChunkOptions`]). Whatever the bytes
//! are, reading ends, in memory bounded by [`ReadOptions`], with a [`Document`] or
//! with one line that says why not ([`ReadError`]).
//!
//! [`rows`] reads tables of numbers, for methods that learn from vectors.

pub mod chunk;
pub mod error;
pub mod format;
pub mod passage;
pub mod read;
pub mod rows;
pub mod tokens;
pub mod walk;

mod decode;
mod flow;
mod languages;

pub use chunk::ChunkOptions;
pub use error::{Notice, ReadError, WalkError};
pub use format::Format;
pub use passage::{FileEntry, Passage};
pub use read::{Document, ReadOptions, Summary, content_hash, pdf_worker_main, read, read_vectors};
pub use tokens::estimate_tokens;
pub use walk::{FilterError, PathFilter, Walk, WalkOptions, walk};
