//! Arrays whose numbers lie in the pickle itself.

use super::{Id, LONGEST, Pickle, Value};

/// An array as a pickle that holds its numbers itself describes it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::weights) enum ArrayPlan<'a> {
    Torch {
        /// The storage, as `torch.save` wrote it before version 1.6.
        storage: &'a [u8],
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    },
    Numpy {
        /// Little-endian.
        bytes: &'a [u8],
        /// `f4`, `f8`.
        dtype: &'a str,
        shape: Vec<usize>,
        /// Whether numbers lie together along the first dimension, not the last.
        by_column: bool,
    },
}

impl Pickle {
    /// Every array that the values of the dictionary hold, in order, by key.
    pub(in crate::weights) fn arrays(&self) -> Result<Vec<(String, Vec<ArrayPlan<'_>>)>, String> {
        let entries = self
            .entries(self.root)
            .ok_or("it does not hold a dictionary")?;
        // A short pickle can name one list, or one long key, time and again.
        let mut room = LONGEST as usize;
        let mut all = Vec::with_capacity(entries.len());
        for (name, id) in entries {
            room = room
                .checked_sub(name.len())
                .ok_or("its names are longer than those of any checkpoint")?;
            let mut found = Vec::new();
            self.find_arrays(id, 2, &mut room, &mut found)
                .ok_or_else(|| format!("'{name}': its description of an array is damaged"))?;
            all.push((name.to_owned(), found));
        }
        Ok(all)
    }

    /// Bytes of all numbers, and of whatever else is kept as bytes.
    pub(in crate::weights) fn bytes_held(&self) -> usize {
        let held = |value: &Value| match value {
            Value::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        self.values.iter().map(held).sum()
    }

    /// The arrays of a tuple or list, and of those in it down to `depth`; looks at up to
    /// `room` values.
    fn find_arrays<'a>(
        &'a self,
        id: Id,
        depth: usize,
        room: &mut usize,
        to: &mut Vec<ArrayPlan<'a>>,
    ) -> Option<()> {
        *room = room.checked_sub(1)?;
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) if depth > 0 => items
                .iter()
                .try_for_each(|&item| self.find_arrays(item, depth - 1, room, to)),
            Value::Call { state, .. } => {
                let Some((function, arguments)) = self.call(id) else {
                    return Some(());
                };
                match (function.rsplit([' ', '.']).next()?, arguments) {
                    ("_rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
                        let (_, arguments) = self.call(storage)?;
                        to.push(ArrayPlan::Torch {
                            storage: self.as_bytes(*arguments.first()?)?,
                            offset: self.as_size(offset)?,
                            shape: self.as_sizes(shape)?,
                            strides: self.as_sizes(strides)?,
                        });
                    }
                    ("_frombuffer", &[bytes, dtype, shape, order, ..]) => {
                        let by_column = match self.as_text(order)? {
                            "C" => false,
                            "F" => true,
                            _ => return None,
                        };
                        to.push(self.numpy(bytes, dtype, shape, by_column)?);
                    }
                    ("_reconstruct", _) => {
                        let Value::Tuple(state) = &self.values[(*state)?] else {
                            return None;
                        };
                        let &[_, shape, dtype, by_column, bytes, ..] = state.as_slice() else {
                            return None;
                        };
                        let by_column = self.as_int(by_column)? != 0;
                        to.push(self.numpy(bytes, dtype, shape, by_column)?);
                    }
                    _ => {}
                }
                Some(())
            }
            _ => Some(()),
        }
    }

    fn numpy(&self, bytes: Id, dtype: Id, shape: Id, by_column: bool) -> Option<ArrayPlan<'_>> {
        let (_, arguments) = self.call(dtype)?;
        if self.is_big_endian(dtype) {
            return None;
        }
        Some(ArrayPlan::Numpy {
            bytes: self.as_bytes(bytes)?,
            dtype: self.as_text(*arguments.first()?)?,
            shape: self.as_sizes(shape)?,
            by_column,
        })
    }

    /// Whether a dtype is filled with `(version, '>', ...)`.
    fn is_big_endian(&self, dtype: Id) -> bool {
        let Value::Call {
            state: Some(state), ..
        } = self.values[dtype]
        else {
            return false;
        };
        match &self.values[state] {
            Value::Tuple(state) => state
                .get(1)
                .is_some_and(|&order| self.as_text(order) == Some(">")),
            _ => false,
        }
    }

    fn as_bytes(&self, id: Id) -> Option<&[u8]> {
        match &self.values[id] {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}
