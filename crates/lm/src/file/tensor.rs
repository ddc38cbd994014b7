//! A tensor that stays in its file.

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use keyfold_kernels::MappedFile;
use keyfold_kernels::blocks::{BlockType, dequantize};

use crate::error::{LmError, io};

/// The bytes of a model file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(MappedFile),
    Memory(Vec<u8>),
}

impl FileBytes {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, LmError> {
        let map = MappedFile::open(path).map_err(|e| io(path, e))?;
        Ok(Arc::new(Self::Mapped(map)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// A tensor of a model file: its type, its shape, and a hold on its bytes. A clone costs
/// nothing, and the file stays open as long as one of its tensors lives.
#[derive(Debug, Clone)]
pub struct Tensor {
    kind: BlockType,
    shape: Vec<usize>,
    file: Arc<FileBytes>,
    range: Range<usize>,
}

impl Tensor {
    /// A part of a file. The caller has checked that `range` lies in the file and is as
    /// long as the shape says.
    pub(crate) fn new(
        kind: BlockType,
        shape: Vec<usize>,
        file: Arc<FileBytes>,
        range: Range<usize>,
    ) -> Self {
        debug_assert_eq!(bytes_of(kind, &shape), Some(range.len()));
        debug_assert!(range.end <= file.len());
        Self {
            kind,
            shape,
            file,
            range,
        }
    }

    /// A tensor in memory of its own. The caller has checked that `bytes` are as long as the
    /// shape says.
    pub(crate) fn in_memory(kind: BlockType, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self::new(kind, shape, Arc::new(FileBytes::Memory(bytes)), range)
    }

    /// Numbers in memory; `None` where there are not as many as the shape says.
    pub(crate) fn from_f32(shape: Vec<usize>, numbers: &[f32]) -> Option<Self> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let fits = bytes_of(BlockType::F32, &shape) == Some(bytes.len());
        fits.then(|| Self::in_memory(BlockType::F32, shape, bytes))
    }

    /// How its numbers are stored.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// `[out, in]` for a matrix, `[n]` for a vector.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows of a matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Length of a row.
    pub fn row_len(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The stored bytes, row after row. They may begin at any address.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }

    /// All numbers, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        dequantize(self.kind, self.bytes(), &mut out);
        out
    }

    /// The first number that is NaN or infinite, if there is one. Reads the whole tensor.
    pub fn find_not_finite(&self) -> Option<f32> {
        let row_bytes = self.range.len() / self.rows();
        let mut row = vec![0.0; self.row_len()];
        self.bytes().chunks_exact(row_bytes).find_map(|bytes| {
            dequantize(self.kind, bytes, &mut row);
            row.iter().copied().find(|x| !x.is_finite())
        })
    }

    /// Some of its rows; some of its numbers if it is a vector (then not of a type in blocks).
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let unit = self.range.len() / self.shape[0];
        let range = self.range.start + rows.start * unit..self.range.start + rows.end * unit;
        Self::new(self.kind, shape, Arc::clone(&self.file), range)
    }

    /// A matrix made of some of its columns, which become rows (in memory of its own).
    pub(super) fn transposed(&self, columns: Range<usize>) -> Self {
        let (rows, width) = (self.rows(), self.row_len());
        let size = self.kind.block_bytes();
        let bytes = self.bytes();
        let mut out = Vec::with_capacity(columns.len() * rows * size);
        for column in columns.clone() {
            for row in 0..rows {
                let at = (row * width + column) * size;
                out.extend_from_slice(&bytes[at..at + size]);
            }
        }
        Self::in_memory(self.kind, vec![columns.len(), rows], out)
    }
}

/// How many bytes a tensor takes; none if its rows are no whole blocks, or too many.
pub(super) fn bytes_of(kind: BlockType, shape: &[usize]) -> Option<usize> {
    let (&row, outer) = shape.split_last()?;
    let rows = outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    kind.row_bytes(row)?.checked_mul(rows)
}
