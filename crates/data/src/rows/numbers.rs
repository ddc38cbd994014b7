//! Numbers in files, and looking ahead in a stream.

use std::io::{self, BufRead, BufReader, Read};

use half::{bf16, f16};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Kind {
    /// Bytes of one number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Appends the numbers of `bytes`, a whole number of them.
    pub(super) fn decode(self, big_endian: bool, bytes: &[u8], out: &mut Vec<f32>) {
        macro_rules! numbers {
            ($read:expr) => {
                for_each(bytes, big_endian, out, $read)
            };
        }
        match self {
            Self::F64 => numbers!(|b| f64::from_le_bytes(b) as f32),
            Self::F32 => numbers!(f32::from_le_bytes),
            Self::F16 => numbers!(|b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => numbers!(|b| bf16::from_le_bytes(b).to_f32()),
            Self::I64 => numbers!(|b| i64::from_le_bytes(b) as f32),
            Self::I32 => numbers!(|b| i32::from_le_bytes(b) as f32),
            Self::I16 => numbers!(|b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => numbers!(|b| f32::from(i8::from_le_bytes(b))),
            Self::U64 => numbers!(|b| u64::from_le_bytes(b) as f32),
            Self::U32 => numbers!(|b| u32::from_le_bytes(b) as f32),
            Self::U16 => numbers!(|b| f32::from(u16::from_le_bytes(b))),
            Self::U8 => numbers!(|b: [u8; 1]| f32::from(b[0])),
            Self::Bool => numbers!(|b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
        }
    }
}

fn for_each<const N: usize>(
    bytes: &[u8],
    big_endian: bool,
    out: &mut Vec<f32>,
    number: impl Fn([u8; N]) -> f32,
) {
    let (whole, _) = bytes.as_chunks::<N>();
    match big_endian {
        false => out.extend(whole.iter().map(|b| number(*b))),
        true => out.extend(whole.iter().map(|b| {
            let mut turned = *b;
            turned.reverse();
            number(turned)
        })),
    }
}

/// The first bytes of a stream, which stay in it; fewer where it is shorter.
pub(super) fn peek<R: Read>(input: &mut BufReader<R>, count: usize) -> io::Result<Vec<u8>> {
    let first = input.fill_buf()?;
    if first.len() >= count || first.is_empty() {
        return Ok(first[..count.min(first.len())].to_vec());
    }
    // A pipe may give a byte or two at first; whatever it gives decides, since more
    // cannot be asked for without taking what is there.
    Ok(first.to_vec())
}
