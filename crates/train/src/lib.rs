//! The one training loop of every model that learns here.
//!
//! Whatever makes steps is a [`Learner`]; it may stand on the tensor framework (with
//! the feature `gradient`, see [`gradient`]) or on slices alone. [`run`] gives each
//! the same: checkpoints from which a killed run goes on to the same weights, a file
//! of measurements, a plot of the curves, validation and early stopping, and errors
//! that say what to do when the loss stops being a number or the disk is full.
//!
//! A run is a folder:
//!
//! ```text
//! OUT/run.json           the settings, to which a resumed run must be true
//! OUT/metrics.jsonl      one line per measurement
//! OUT/curves.svg         loss and validation against steps
//! OUT/checkpoints/N/     what the learner saved after step N, with checksums
//! ```

mod checkpoint;
mod curves;
mod error;
#[cfg(feature = "gradient")]
pub mod gradient;
mod learner;
mod metrics;
pub mod order;
mod place;
pub mod recipe;
mod run;
mod schedule;

pub use error::{LearnError, TrainError};
pub use learner::{Learner, Step, Validation};
pub use metrics::Line;
pub use place::Place;
pub use run::{Ended, Report, RunConfig, Settings, agree, run};
pub use schedule::{Decay, Schedule};
