//! Which blocks of a context the tokens of a block see, whatever they are: the fixed masks
//! of PowerAttention and of what it is compared with.
//!
//! Lida Chen, Dong Xu, Chenxin An, Xintao Wang, Yikai Zhang, Jiangjie Chen, Zujie Liang, Feng
//! Wei, Jiaqing Liang, Yanghua Xiao, Wei Wang (2025): PowerAttention: Exponentially Scaling of
//! Receptive Fields for Effective Sparse Attention.
//!
//! Tokens are cut into blocks of `block`; with `b` = block of the query − block of the key, a
//! key at or before the query is seen
//!
//! ```text
//! power         b < window, or b a power of two, or the key's block is one of the first `sink`
//! window        b < 9, or sink
//! stride slash  b < 6, or b a multiple of the stride, or sink
//! dilated       b even and b < 20
//! LongNet       in one of the segments (s, r) = (8,1) (16,2) (32,4) (64,8) (128,16):
//!               the blocks lie in one segment of s blocks, and both are multiples of r
//! ```
//!
//! A query sees about `log2(n)` blocks of `n` under the power mask, and after `l` layers
//! every block nearer than `2^l` has reached it ([`Reach`]).
//!
//! The masks save time, not memory: every block is seen again later.

use serde::{Deserialize, Serialize};

/// Which blocks see which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockMask {
    /// Tokens of a block.
    pub block: usize,
    /// Blocks of the window, the query's own block included.
    pub window: usize,
    /// First blocks that all see.
    pub sink: usize,
    /// Which mask.
    pub pattern: Pattern,
}

impl Default for BlockMask {
    fn default() -> Self {
        Self {
            block: 256,
            window: 5,
            sink: 1,
            pattern: Pattern::Power,
        }
    }
}

/// Which mask; all but the first are what the paper compares with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Window, sink, and power-of-two distances.
    #[default]
    Power,
    /// Window and sink.
    Window,
    /// Window, sink, and multiples of a stride.
    StrideSlash(usize),
    /// Every second block among the twenty nearest.
    Dilated,
    /// Segments of growing length and dilation.
    LongNet,
}

impl BlockMask {
    /// The mask that the paper compares with at the same budget as the default.
    pub fn baseline(pattern: Pattern) -> Self {
        let (window, sink) = match pattern {
            Pattern::Power => (5, 1),
            Pattern::Window => (9, 1),
            Pattern::StrideSlash(_) => (6, 1),
            Pattern::Dilated => (20, 0),
            Pattern::LongNet => (1, 0),
        };
        Self {
            window,
            sink,
            pattern,
            ..Self::default()
        }
    }

    /// What makes no sense in it.
    pub fn problem(&self) -> Option<String> {
        if self.block == 0 {
            return Some("block = 0: a block must have a token".into());
        }
        if self.window == 0 {
            return Some("window = 0: a token must see its own block".into());
        }
        if self.pattern == Pattern::StrideSlash(0) {
            return Some("a stride must be at least 1 block".into());
        }
        None
    }

    /// Whether block `query` sees block `key` (of its own block, what is not after it).
    pub fn sees(&self, query: usize, key: usize) -> bool {
        let Some(apart) = query.checked_sub(key) else {
            return false;
        };
        let near = apart < self.window || key < self.sink;
        match self.pattern {
            Pattern::Power => near || apart.is_power_of_two(),
            Pattern::Window => near,
            Pattern::StrideSlash(stride) => near || apart.is_multiple_of(stride),
            Pattern::Dilated => apart.is_multiple_of(2) && apart < self.window,
            Pattern::LongNet => (0..5).any(|i| {
                let (segment, dilation) = (8usize << i, 1usize << i);
                (query ^ key) < segment && (query | key) & (dilation - 1) == 0
            }),
        }
    }

    /// Runs of blocks `[from, to)` that block `query` sees, ascending.
    pub fn runs(&self, query: usize) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for key in (0..=query).filter(|&key| self.sees(query, key)) {
            match runs.last_mut() {
                Some((_, to)) if *to == key => *to += 1,
                _ => runs.push((key, key + 1)),
            }
        }
        runs
    }
}

/// How far the newest of `blocks` blocks can see through layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reach {
    /// Layers after which nothing new is reached.
    pub layers: usize,
    /// Which part of the blocks is reached then.
    pub share: f64,
}

impl Reach {
    /// By breadth-first search from the last block.
    pub fn of(mask: &BlockMask, blocks: usize) -> Self {
        let mut reached = vec![false; blocks];
        let mut front: Vec<usize> = blocks.checked_sub(1).into_iter().collect();
        front.iter().for_each(|&block| reached[block] = true);
        let mut layers = 0;
        loop {
            let mut next = Vec::new();
            for &query in &front {
                let earlier = reached.iter_mut().enumerate().take(query);
                for (key, reached) in earlier.filter(|(key, _)| mask.sees(query, *key)) {
                    if !std::mem::replace(reached, true) {
                        next.push(key);
                    }
                }
            }
            if next.is_empty() {
                let count = reached.iter().filter(|&&r| r).count();
                let share = count as f64 / blocks.max(1) as f64;
                return Self { layers, share };
            }
            layers += 1;
            front = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(pattern: Pattern, blocks: usize) -> (usize, f64) {
        let reach = Reach::of(&BlockMask::baseline(pattern), blocks);
        (reach.layers, reach.share)
    }

    #[test]
    fn the_newest_block_reaches_all_in_as_many_layers_as_were_computed() {
        assert_eq!(reach(Pattern::Power, 128), (6, 1.0));
        assert_eq!(reach(Pattern::Power, 1024), (9, 1.0));
        assert_eq!(reach(Pattern::Window, 128), (16, 1.0));
        assert_eq!(reach(Pattern::Window, 1024), (128, 1.0));
        assert_eq!(reach(Pattern::StrideSlash(32), 128), (8, 1.0));
        assert_eq!(reach(Pattern::StrideSlash(256), 1024), (52, 1.0));
        assert_eq!(reach(Pattern::Dilated, 128).1, 0.5);
        assert_eq!(reach(Pattern::LongNet, 128), (6, 0.625));
    }

    #[test]
    fn at_32768_tokens_ten_blocks_are_seen() {
        let mask = BlockMask::default();
        let seen = |query: usize| (0..=query).filter(|&key| mask.sees(query, key)).count();
        assert_eq!(seen(127), 10);
        assert_eq!(
            mask.runs(127),
            [
                (0, 1),
                (63, 64),
                (95, 96),
                (111, 112),
                (119, 120),
                (123, 128)
            ]
        );
    }
}
