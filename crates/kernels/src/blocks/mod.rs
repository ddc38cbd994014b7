//! Weights and cache rows as GGUF files hold them: blocks of 32 or 256 numbers with a
//! scale of their own, and products that read them without unpacking.
//!
//! | kind | numbers | bytes | a number is |
//! |---|---|---|---|
//! | `F32`, `F16`, `Bf16` | 1 | 4, 2, 2 | itself |
//! | `Q8_0` | 32 | 34 | `d q`, q in -128..128 |
//! | `Q4_0`, `Q5_0` | 32 | 18, 22 | `d (q - 8)`, `d (q - 16)` |
//! | `Q4_1`, `Q5_1` | 32 | 20, 24 | `d q + m` |
//! | `Q4K`, `Q5K` | 256 | 144, 176 | `d sc q - dmin mn`, sc and mn (6 bits) for each 32 |
//! | `Q6K` | 256 | 210 | `d sc (q - 32)`, sc (8 bits) for each 16 |
//!
//! Source: the block definitions of ggml; numbers agree to the bit with the `gguf`
//! package (see `parity/gguf_blocks.py`).
//!
//! While decoding, a token's time is that of reading the weights, so [`matvec`] rounds
//! the input to 8 bits (a scale for each 32) and multiplies integers: 1.2 to 2 ns for 32
//! weights on a core of 3.2 GHz, so that two threads are as fast as a memory of 22 GB/s
//! brings them. For a prompt [`matmul`] lays tiles of weights out anew for such integers where the
//! machine adds up products of bytes in fours (AVX-512 VNNI), and else unpacks them to `f32`; many
//! rows share the tiles.

mod channels;
mod decode;
mod dot;
mod encode;
mod input;
mod lanes;
mod product;
#[cfg(test)]
mod tests;

pub use channels::{
    ChannelSum, LowRank, SparseProduct, choose_channels, matmul_channels, sparse_products,
    sum_channels,
};
pub use decode::dequantize;
pub use encode::quantize;
pub use input::Activations;
pub use product::{Product, matmul, matmul_from, matmul_rounds, matvec, matvec_several};

/// How numbers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// How many numbers a block holds.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `len` numbers; `None` where they are no whole blocks or too many.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The name that GGUF files and their tools use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Whether numbers are integers with scales, so that products round their input.
    const fn is_packed(self) -> bool {
        self.block_len() > 1
    }
}

/// Why bytes are no matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// A row is no whole number of blocks.
    #[error("rows of {cols} numbers are no whole blocks of {}, which hold {}", kind.name(), kind.block_len())]
    Columns {
        /// How the numbers are packed.
        kind: BlockType,
        /// Numbers of a row.
        cols: usize,
    },
    /// There are too many or too few bytes.
    #[error("{rows} rows of {cols} numbers as {} are not {len} bytes", kind.name())]
    Length {
        /// How the numbers are packed.
        kind: BlockType,
        /// Rows.
        rows: usize,
        /// Numbers of a row.
        cols: usize,
        /// Bytes that were given.
        len: usize,
    },
}

/// A packed matrix `[rows, cols]`: one row for each output, its blocks along the inputs.
#[derive(Debug, Clone, Copy)]
pub struct BlockMatrix<'a> {
    kind: BlockType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> BlockMatrix<'a> {
    /// Takes `bytes` as `rows` rows of `cols` numbers.
    ///
    /// # Errors
    /// When rows are no whole blocks or the number of bytes is another.
    pub fn new(
        kind: BlockType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, BlocksError> {
        let row_bytes = kind
            .row_bytes(cols)
            .ok_or(BlocksError::Columns { kind, cols })?;
        if row_bytes.checked_mul(rows) != Some(bytes.len()) {
            let len = bytes.len();
            return Err(BlocksError::Length {
                kind,
                rows,
                cols,
                len,
            });
        }
        Ok(Self {
            kind,
            rows,
            cols,
            row_bytes,
            bytes,
        })
    }

    /// How the numbers are packed.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All bytes: what a product reads.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Unpacks a row (an embedding).
    ///
    /// # Panics
    /// When there is no such row or `out` does not have its length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        dequantize(self.kind, self.row(row), out);
    }
}
