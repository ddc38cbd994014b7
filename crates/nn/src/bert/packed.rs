//! A batch of texts, as ids of tokens.

/// The tokens of several texts, one text after the other; nothing is padded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Ids of tokens.
    pub ids: Vec<u32>,
    /// For each token 0, or 1 in the second of two texts that are read together.
    pub types: Vec<u32>,
    /// For each token its row in the table of positions.
    pub positions: Vec<u32>,
    /// The first token of each text, and at the end the number of tokens.
    pub starts: Vec<usize>,
}

impl Packed {
    /// Number of texts.
    pub fn texts(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The first token of each text, where BERT's `[CLS]` stands.
    pub fn firsts(&self) -> Vec<u32> {
        let firsts = self.starts.windows(2).map(|t| t[0] as u32);
        firsts.collect()
    }
}
