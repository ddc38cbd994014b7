//! MambaMixer: layers that select over tokens and over channels, and average what earlier ones gave.
//!
//! A. Behrouz, M. Santacatterina and R. Zabih, 2024, MambaMixer: Efficient Selective State Space
//! Models with Dual Token and Channel Selection. With `y_T(0) = y_C(0)` the input, layer `ℓ` is
//!
//! ```text
//! x_T = Σ_{i<ℓ} α_i y_T(i) + Σ_{i<ℓ} β_i y_C(i)        y_T(ℓ) = tokens(x_T)
//! x_C = Σ_{i≤ℓ} θ_i y_T(i) + Σ_{i<ℓ} γ_i y_C(i)        y_C(ℓ) = channels(x_C)
//! ```
//!
//! where `tokens` scans every channel's tokens from the first to the last, and `channels` scans
//! every token's channels from both ends. Here is what of it has no weights: how the averages
//! begin, and in which order rows are scanned. The layers, with their gradients, are in
//! `keyfold_nn::mixers`. Time and memory grow with tokens times channels.

use serde::{Deserialize, Serialize};

/// How the outputs of earlier layers are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Averaging {
    /// Weights that are learned, through a softmax; they begin alike.
    #[default]
    Softmax,
    /// Weights that are learned, as they are (the paper's). They begin as a plain stack of layers.
    Raw,
    /// A plain stack: each mixer reads what the one before it gave, and nothing is learned.
    Plain,
}

impl Averaging {
    /// What `count` weights begin as; `kept` is the one that a plain stack would read, if it reads
    /// any. Nothing where nothing is learned.
    pub fn start(self, count: usize, kept: Option<usize>) -> Option<Vec<f32>> {
        match self {
            Self::Softmax => Some(vec![1.0 / count as f32; count]),
            Self::Raw => {
                let one = |i| if kept == Some(i) { 1.0 } else { 0.0 };
                Some((0..count).map(one).collect())
            }
            Self::Plain => None,
        }
    }
}

/// The rows of a batch of items, each with its own number of channels and of tokens, and the two
/// orders in which they are scanned. Rows of an item lie channel after channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// First rows of the channels, and at the end the number of rows.
    pub token_starts: Vec<usize>,
    /// The row that stands at each place when they lie token after token.
    pub by_token: Vec<u32>,
    /// First places of the tokens in that order, and at the end the number of rows.
    pub channel_starts: Vec<usize>,
    /// The place in that order at which each row stands.
    pub by_channel: Vec<u32>,
}

impl Grid {
    /// Of items with so many channels and tokens.
    pub fn new(items: impl IntoIterator<Item = [usize; 2]>) -> Self {
        let mut grid = Self {
            token_starts: vec![0],
            by_token: Vec::new(),
            channel_starts: vec![0],
            by_channel: Vec::new(),
        };
        for [channels, tokens] in items {
            let first = grid.by_token.len();
            let place =
                |row: usize, column: usize, width: usize| (first + row * width + column) as u32;
            for token in 0..tokens {
                let rows = (0..channels).map(|channel| place(channel, token, tokens));
                grid.by_token.extend(rows);
                grid.channel_starts.push(grid.by_token.len());
            }
            for channel in 0..channels {
                let places = (0..tokens).map(|token| place(token, channel, channels));
                grid.by_channel.extend(places);
                grid.token_starts.push(grid.by_channel.len());
            }
        }
        grid
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.by_token.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_turned_within_their_item() {
        let grid = Grid::new([[2, 3], [1, 2]]);
        assert_eq!(grid.by_token, [0, 3, 1, 4, 2, 5, 6, 7]);
        assert_eq!(grid.token_starts, [0, 3, 6, 8]);
        assert_eq!(grid.channel_starts, [0, 2, 4, 6, 7, 8]);
    }

    proptest! {
        #[test]
        fn turning_twice_gives_the_rows_back(items in prop::collection::vec([0usize..6, 0usize..6], 0..5)) {
            let grid = Grid::new(items.iter().copied());
            prop_assert_eq!(grid.rows(), items.iter().map(|[c, t]| c * t).sum::<usize>());
            for (row, &place) in grid.by_channel.iter().enumerate() {
                prop_assert_eq!(grid.by_token[place as usize], row as u32);
            }
            prop_assert_eq!(grid.token_starts.last(), Some(&grid.rows()));
            prop_assert_eq!(grid.channel_starts.last(), Some(&grid.rows()));
        }
    }

    #[test]
    fn averages_begin_alike_or_as_a_plain_stack() {
        assert_eq!(Averaging::Softmax.start(2, None), Some(vec![0.5, 0.5]));
        assert_eq!(Averaging::Raw.start(3, Some(2)), Some(vec![0.0, 0.0, 1.0]));
        assert_eq!(Averaging::Raw.start(2, None), Some(vec![0.0, 0.0]));
        assert_eq!(Averaging::Plain.start(2, Some(1)), None);
    }
}
