//! The language-model engine: a decoder whose cache is a place of lookup.
//!
//! A query meets the keys of its context, some keys are selected, their values are
//! read. What is stored, which rows are read, which rows survive, how a prompt is
//! read and how a weight is multiplied are five [roles]; a policy names one value of
//! each, so that methods combine instead of multiplying.

pub mod roles;
