//! Little-endian bytes to `f32`.

use std::io::{self, Read};

use half::{bf16, f16};

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    I64,
    F32,
    F16,
    Bf16,
}

impl Kind {
    /// Bytes of one number.
    pub(super) fn size(self) -> usize {
        match self {
            Kind::F64 | Kind::I64 => 8,
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
        }
    }
}

/// Reads `count` numbers.
pub(super) fn read(kind: Kind, input: &mut impl Read, count: usize) -> io::Result<Vec<f32>> {
    if kind == Kind::F32 && cfg!(target_endian = "little") {
        // Most of all weights: straight to where they are used.
        let mut numbers = vec![0.0f32; count];
        input.read_exact(bytemuck::cast_slice_mut(&mut numbers))?;
        return Ok(numbers);
    }
    let mut bytes = vec![0; count * kind.size()];
    input.read_exact(&mut bytes)?;
    Ok(to_f32(kind, &bytes))
}

/// Whole numbers from `bytes`; a rest that is no whole number is left out.
pub(super) fn to_f32(kind: Kind, bytes: &[u8]) -> Vec<f32> {
    match kind {
        Kind::F64 => map(bytes, |b| f64::from_le_bytes(b) as f32),
        Kind::I64 => map(bytes, |b| i64::from_le_bytes(b) as f32),
        Kind::F32 => map(bytes, f32::from_le_bytes),
        Kind::F16 => map(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Kind::Bf16 => map(bytes, |b| bf16::from_le_bytes(b).to_f32()),
    }
}

fn map<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (whole, _) = bytes.as_chunks::<N>();
    whole.iter().map(|b| number(*b)).collect()
}
