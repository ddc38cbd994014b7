//! Arrays in a file of `pickle.dump`: a dictionary of tuples and lists of PyTorch's tensors
//! and NumPy's arrays, whose numbers lie in the pickle itself. Nothing in it is run.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::numbers::{Kind, to_f32};
use super::pickle::{ArrayPlan, Pickle};
use super::{WeightsError, invalid, io};

/// Numbers and how they are arranged.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Length of every dimension; none for a single number.
    pub shape: Vec<usize>,
    /// Row-major.
    pub numbers: Vec<f32>,
}

/// The arrays of a pickled dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct PickledArrays {
    entries: Vec<(String, Vec<Array>)>,
}

impl PickledArrays {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no pickle of a dictionary, or damaged.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = File::open(path).map_err(|e| io(path, e))?;
        Self::read(&mut BufReader::new(file))
            .map_err(|e| invalid(path, format!("its pickle is damaged: {e}")))
    }

    fn read(input: &mut impl Read) -> Result<Self, String> {
        let pickle = Pickle::read_with_numbers(input)?;
        let plans = pickle.arrays()?;
        let mut entries = Vec::with_capacity(plans.len());
        // Arrays may share a storage, but not so that a small file fills the memory.
        let mut room = pickle.bytes_held();
        for (name, plans) in plans {
            let mut arrays = Vec::with_capacity(plans.len());
            for plan in &plans {
                let array = array(plan).ok_or_else(|| format!("'{name}' holds a damaged array"))?;
                room = room
                    .checked_sub(array.numbers.len())
                    .ok_or_else(|| format!("'{name}' shares its numbers too often"))?;
                arrays.push(array);
            }
            entries.push((name, arrays));
        }
        Ok(Self { entries })
    }

    /// The arrays under a key, in their order.
    pub fn get(&self, name: &str) -> Option<&[Array]> {
        let found = self.entries.iter().find(|entry| entry.0 == name);
        found.map(|entry| entry.1.as_slice())
    }

    /// The keys, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.0.as_str())
    }
}

fn array(plan: &ArrayPlan) -> Option<Array> {
    match plan {
        ArrayPlan::Numpy {
            bytes,
            dtype,
            shape,
            by_column,
        } => {
            let kind = match *dtype {
                "f4" => Kind::F32,
                "f8" => Kind::F64,
                "f2" => Kind::F16,
                "i8" => Kind::I64,
                _ => return None,
            };
            let numbers = to_f32(kind, bytes);
            if count(shape)? != numbers.len() {
                return None;
            }
            Some(Array {
                numbers: match by_column {
                    true => pick(&numbers, 0, shape, &by_column_strides(shape))?,
                    false => numbers,
                },
                shape: shape.clone(),
            })
        }
        ArrayPlan::Torch {
            storage,
            offset,
            shape,
            strides,
        } => {
            let numbers = stored(storage)?;
            Some(Array {
                numbers: pick(&numbers, *offset, shape, strides)?,
                shape: shape.clone(),
            })
        }
    }
}

fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// How far apart the numbers of every dimension are where those of the first lie together.
fn by_column_strides(shape: &[usize]) -> Vec<usize> {
    let mut step = 1;
    let stride = |size: &usize| {
        let own = step;
        step *= size;
        own
    };
    shape.iter().map(stride).collect()
}

/// The numbers of a storage as `torch.save` wrote it before version 1.6: three pickles that say
/// nothing of it, its description, the list of its key, how many numbers, and they.
fn stored(bytes: &[u8]) -> Option<Vec<f32>> {
    let mut rest = bytes;
    for _ in 0..3 {
        Pickle::read(&mut rest).ok()?;
    }
    let (class, len) = Pickle::read(&mut rest).ok()?.storage()?;
    Pickle::read(&mut rest).ok()?;
    let kind = match class.as_str() {
        "FloatStorage" => Kind::F32,
        "DoubleStorage" => Kind::F64,
        "HalfStorage" => Kind::F16,
        "BFloat16Storage" => Kind::Bf16,
        "LongStorage" => Kind::I64,
        _ => return None,
    };
    let (_, numbers) = rest.split_at_checked(8)?;
    let numbers = numbers.get(..len.checked_mul(kind.size())?)?;
    Some(to_f32(kind, numbers))
}

/// The numbers of a tensor, row-major.
fn pick(numbers: &[f32], offset: usize, shape: &[usize], strides: &[usize]) -> Option<Vec<f32>> {
    let total = count(shape)?;
    if shape.len() != strides.len() || total > numbers.len() {
        return None;
    }
    let at = |i: usize| -> Option<f32> {
        let (mut rest, mut place) = (i, offset);
        for (&size, &stride) in shape.iter().zip(strides).rev() {
            place = place.checked_add((rest % size).checked_mul(stride)?)?;
            rest /= size;
        }
        numbers.get(place).copied()
    };
    (0..total).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
        std::fs::read(format!("{folder}{name}")).unwrap()
    }

    #[test]
    fn what_pickle_dump_wrote_is_read() {
        for protocol in [2, 4, 5] {
            let bytes = fixture(&format!("arrays-{protocol}.pickle"));
            let arrays = PickledArrays::read(&mut &bytes[..]).unwrap();
            assert_eq!(arrays.names().collect::<Vec<_>>(), ["a", "b"]);
            let a = arrays.get("a").unwrap();
            let numbers: Vec<&[f32]> = a.iter().map(|x| &x.numbers[..]).collect();
            // A tensor in double precision, a turned one, a list of one array.
            assert_eq!(numbers[0], [0.5, 1.5, 2.5]);
            assert_eq!(numbers[1], [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
            assert_eq!(
                (numbers[2], &a[2].shape[..]),
                (&[-1.0, 2.0][..], &[2, 1][..])
            );
            assert_eq!(arrays.get("b").unwrap()[0].numbers, [7.0]);
            assert!(arrays.get("c").is_none());
        }
    }

    /// A dictionary with NumPy's `[[0, 1, 2], [3, 4, 5]]`, whose numbers lie by column.
    fn by_column(byte_order: &[u8]) -> Vec<u8> {
        let numbers = [0f32, 3.0, 1.0, 4.0, 2.0, 5.0].map(f32::to_le_bytes);
        [
            &b"}X\x01\x00\x00\x00acnumpy.core.numeric\n_frombuffer\n(C\x18"[..],
            numbers.as_flattened(),
            b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR(K\x03X\x01\x00\x00\x00",
            byte_order,
            b"tbK\x02K\x03\x86X\x01\x00\x00\x00FtRs.",
        ]
        .concat()
    }

    #[test]
    fn numbers_that_lie_by_column_are_put_in_rows() {
        let arrays = PickledArrays::read(&mut &by_column(b"<")[..]).unwrap();
        let array = &arrays.get("a").unwrap()[0];
        assert_eq!(array.shape, [2, 3]);
        assert_eq!(array.numbers, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        // The bytes of a number the other way round are refused.
        assert!(PickledArrays::read(&mut &by_column(b">")[..]).is_err());
    }

    #[test]
    fn damaged_files_are_errors() {
        let bytes = fixture("arrays-5.pickle");
        for end in 0..bytes.len() {
            assert!(PickledArrays::read(&mut &bytes[..end]).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn no_change_makes_it_panic(at: prop::sample::Index, to: u8, protocol in 0usize..3) {
            let mut bytes = fixture(&format!("arrays-{}.pickle", [2, 4, 5][protocol]));
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = PickledArrays::read(&mut &bytes[..]);
        }
    }
}
