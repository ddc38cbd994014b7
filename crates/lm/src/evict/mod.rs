//! Which rows of a prompt survive.
//!
//! | method | keeps |
//! |---|---|
//! | [`look_m`] | text, the newest rows, and in them what the dropped image rows held |
//! | [`h2o`] | the rows that attention looked at most, and the newest |
//!
//! Both do their work once, when a prompt was read; what is written afterwards stays. A text
//! that goes on after it (another turn of a talk) is not thinned again.

pub mod h2o;
pub mod look_m;
mod merge;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::roles::KvStore;
pub use merge::Merge;

/// How many rows are kept, as shares of the prompt's rows, by the authors' names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ratios {
    /// Rows of the greatest attention ("heavy hitters").
    pub hh_ratio: f64,
    /// Newest rows.
    pub recent_ratio: f64,
}

impl Default for Ratios {
    fn default() -> Self {
        Self {
            hh_ratio: 0.1,
            recent_ratio: 0.1,
        }
    }
}

impl Ratios {
    /// Refuses shares outside of 0 to 1, and together more than all.
    fn validate(&self, method: &'static str) -> Result<(), Refusal> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let Self {
            hh_ratio,
            recent_ratio,
        } = *self;
        if share(hh_ratio) && share(recent_ratio) && hh_ratio + recent_ratio <= 1.0 + 1e-9 {
            return Ok(());
        }
        Err(Refusal::setting(
            method,
            format!(
                "shares of {hh_ratio} important and {recent_ratio} newest rows: each must be \
                 between 0 and 1, and together at most 1"
            ),
        ))
    }

    /// Important and newest rows of `rows`.
    fn sizes(&self, rows: usize) -> (usize, usize) {
        let of = |share: f64| (rows as f64 * share + 1e-9) as usize;
        (of(self.hh_ratio), of(self.recent_ratio))
    }
}

/// Whether rows were dropped already, so that a row is not its position.
fn thinned(layer: usize, kv_head: usize, store: &dyn KvStore) -> bool {
    let positions = store.positions(layer, kv_head);
    positions
        .last()
        .is_some_and(|&last| last as usize + 1 != positions.len())
}

/// The `count` of the rows `from` that have the greatest `mass`; of equal ones the earlier.
fn heaviest(mass: &[f32], from: impl Iterator<Item = u32>, count: usize) -> Vec<u32> {
    let mut rows: Vec<u32> = from.collect();
    rows.sort_by(|&a, &b| {
        mass[b as usize]
            .total_cmp(&mass[a as usize])
            .then(a.cmp(&b))
    });
    rows.truncate(count);
    rows
}
