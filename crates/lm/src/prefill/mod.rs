//! How a prompt is read.
//!
//! | method | reads |
//! |---|---|
//! | [`dense`] | everything |
//! | [`power`] | blocks that a fixed mask shows |
//! | [`hyper`] | keys that hash near to the query, and a sample of the others |

pub mod dense;
pub mod hyper;
pub mod power;
mod runs;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Some of a model's layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layers {
    /// All of them.
    #[default]
    All,
    /// So many first ones.
    First(usize),
    /// So many last ones.
    Last(usize),
    /// Those of odd number, from 0.
    Odd,
    /// Those of even number, from 0.
    Even,
}

impl Layers {
    /// Whether `layer` of `layers` is one of them.
    pub fn contains(self, layer: usize, layers: usize) -> bool {
        match self {
            Self::All => true,
            Self::First(n) => layer < n,
            Self::Last(n) => layer + n >= layers,
            Self::Odd => layer % 2 == 1,
            Self::Even => layer.is_multiple_of(2),
        }
    }
}

impl FromStr for Layers {
    type Err = Refusal;

    /// `all`, `first:4`, `last:12`, `odd` or `even`.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refuse = || {
            Refusal::setting(
                "layers",
                format!("{text:?} names no layers: write all, first:4, last:12, odd or even"),
            )
        };
        let count = |n: &str| n.parse().map_err(|_| refuse());
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            None if text == "odd" => Ok(Self::Odd),
            None if text == "even" => Ok(Self::Even),
            Some(("first", n)) => count(n).map(Self::First),
            Some(("last", n)) => count(n).map(Self::Last),
            _ => Err(refuse()),
        }
    }
}
