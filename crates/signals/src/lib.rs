//! Series of numbers over time: tables are read, forecasters learn from them and tell how they go on.
//!
//! - [`Series`]: columns of numbers over the rows of a table,
//! - [`tsm2`]: a network that selects over time and over columns,
//! - [`linear`]: a linear forecaster, fitted in closed form,
//! - [`simple`]: the last value again, and the value of a period ago.
//!
//! Forecasters learn in units of a column's deviation ([`Scaler`]) and tell in its own.

mod error;
pub mod linear;
mod series;
pub mod simple;
mod times;
pub mod tsm2;
mod windows;

pub use error::SignalError;
pub use series::{Series, SeriesOptions, read_series};
pub use times::times_after;
pub use windows::{Errors, Scaler, Windows};
