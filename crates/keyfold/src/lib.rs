//! Everything is a lookup: index a folder, search it by meaning.
