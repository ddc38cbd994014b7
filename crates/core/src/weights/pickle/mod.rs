//! A reader of the pickles inside PyTorch checkpoints that runs nothing.
//!
//! A pickle is a program for a stack machine. This one knows the instructions
//! that build numbers, strings, tuples, lists and dictionaries; a call is only
//! noted, and only the few functions that rebuild a tensor are then understood
//! ([`Pickle::tensors`]). Whatever else a pickle calls stays a name without effect.
//!
//! Values lie in one list and refer to each other by place, so that a deep or
//! circular pickle is no deep or circular structure here.

mod arrays;
mod machine;

use std::collections::HashMap;
use std::io::Read;

pub(super) use arrays::ArrayPlan;

/// A value by its place in the list.
type Id = usize;

/// Longest pickle of a checkpoint, in bytes, and the most values that any can make.
/// Real ones have about 200 bytes per tensor.
const LONGEST: u64 = 1 << 22;

/// Longest pickle that holds its numbers itself, in bytes.
const LONGEST_WITH_NUMBERS: u64 = 1 << 31;

/// Most dimensions of a tensor; PyTorch and NumPy have no more.
const DIMENSIONS: usize = 64;

#[derive(Debug, Clone, PartialEq)]
enum Value {
    /// `None`, a float, or what a call would have given.
    Opaque,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class, `module name`.
    Global(String),
    /// A reference to data outside of the pickle.
    Persistent(Id),
    Call {
        function: Id,
        arguments: Id,
        /// What the result is filled with afterwards.
        state: Option<Id>,
    },
}

/// A number or text that a pickle holds beside tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
}

/// The result of reading one pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorPlan {
    /// Key of the storage that holds its numbers.
    pub(super) storage: String,
    /// PyTorch's class of that storage, `FloatStorage`.
    pub(super) class: String,
    /// Numbers in the storage.
    pub(super) storage_len: usize,
    /// First number of the tensor.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Pickle {
    /// Reads one pickle and leaves `input` behind its end.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, String> {
        machine::run(input, LONGEST)
    }

    /// The same for a pickle that holds arrays of numbers itself.
    pub(super) fn read_with_numbers(input: &mut impl Read) -> Result<Self, String> {
        machine::run(input, LONGEST_WITH_NUMBERS)
    }

    /// The strings of the list that the pickle holds, if it is one.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        let Value::List(items) = &self.values[self.root] else {
            return None;
        };
        items
            .iter()
            .map(|&i| self.as_text(i).map(str::to_owned))
            .collect()
    }

    /// The tensors of the dictionary that the pickle holds, by name; or of the
    /// one inside it that training programs call `state_dict`.
    pub(super) fn tensors(&self) -> Result<HashMap<String, TensorPlan>, String> {
        let entries = self
            .entries(self.root)
            .ok_or("it does not hold a dictionary of tensors")?;
        for wrapper in ["state_dict", "model_state_dict"] {
            if let Some((_, inner)) = entries.iter().find(|(name, _)| *name == wrapper)
                && let Some(inner) = self.entries(*inner)
            {
                return self.plans(&inner);
            }
        }
        self.plans(&entries)
    }

    /// The whole numbers and texts of the dictionary that the pickle holds, by name; those
    /// of a dictionary inside it after its name and a point.
    pub(super) fn scalars(&self) -> Vec<(String, Scalar)> {
        let mut all = Vec::new();
        for (name, id) in self.entries(self.root).unwrap_or_default() {
            match self.entries(id) {
                Some(inner) => {
                    let inner = inner.into_iter();
                    all.extend(inner.map(|(part, id)| (format!("{name}.{part}"), id)));
                }
                None => all.push((name.to_owned(), id)),
            }
        }
        let scalar = |(name, id): (String, Id)| {
            let value = match &self.values[id] {
                Value::Int(int) => Scalar::Int(*int),
                Value::Text(text) => Scalar::Text(text.clone()),
                _ => return None,
            };
            Some((name, value))
        };
        all.into_iter().filter_map(scalar).collect()
    }

    fn plans(&self, entries: &[(&str, Id)]) -> Result<HashMap<String, TensorPlan>, String> {
        let mut plans = HashMap::new();
        for (name, id) in entries {
            // What is no tensor (a step counter, a configuration) is passed over.
            if let Some(plan) = self.tensor(*id).map_err(|e| format!("'{name}': {e}"))? {
                plans.insert((*name).to_owned(), plan);
            }
        }
        Ok(plans)
    }

    /// The entries with a string as key. An OrderedDict is a call whose result
    /// the entries were set on.
    fn entries(&self, id: Id) -> Option<Vec<(&str, Id)>> {
        let Value::Dict(entries) = &self.values[id] else {
            return None;
        };
        Some(
            entries
                .iter()
                .filter_map(|&(key, value)| Some((self.as_text(key)?, value)))
                .collect(),
        )
    }

    fn tensor(&self, id: Id) -> Result<Option<TensorPlan>, String> {
        let id = match self.call(id) {
            Some(("torch._utils _rebuild_parameter", [data, ..])) => *data,
            _ => id,
        };
        match self.call(id) {
            Some((
                "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor",
                [storage, offset, shape, strides, ..],
            )) => self
                .plan(*storage, *offset, *shape, *strides)
                .map(Some)
                .ok_or_else(|| "its description of a tensor is damaged".to_owned()),
            _ => Ok(None),
        }
    }

    /// The function's name and the arguments, if the value is what a call would give.
    fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Value::Call {
            function,
            arguments,
            ..
        } = self.values[id]
        else {
            return None;
        };
        match (&self.values[function], &self.values[arguments]) {
            (Value::Global(name), Value::Tuple(arguments)) => Some((name, arguments)),
            _ => None,
        }
    }

    fn plan(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Option<TensorPlan> {
        let (class, key, storage_len) = self.storage_of(storage)?;
        Some(TensorPlan {
            storage: key.to_owned(),
            class,
            storage_len,
            offset: self.as_size(offset)?,
            shape: self.as_sizes(shape)?,
            strides: self.as_sizes(strides)?,
        })
    }

    /// The storage that the pickle refers to as a whole: its class and how many numbers.
    pub(super) fn storage(&self) -> Option<(String, usize)> {
        let (class, _, len) = self.storage_of(self.root)?;
        Some((class, len))
    }

    /// Class, key and count of numbers of the storage that a value refers to.
    fn storage_of(&self, id: Id) -> Option<(String, &str, usize)> {
        let Value::Persistent(reference) = self.values[id] else {
            return None;
        };
        // ('storage', class, key, device, number of elements, ...)
        let Value::Tuple(reference) = &self.values[reference] else {
            return None;
        };
        let &[tag, class, key, _device, len, ..] = reference.as_slice() else {
            return None;
        };
        let Value::Global(class) = &self.values[class] else {
            return None;
        };
        if self.as_text(tag)? != "storage" {
            return None;
        }
        let class = class.rsplit([' ', '.']).next()?.to_owned();
        Some((class, self.as_text(key)?, self.as_size(len)?))
    }

    fn as_text(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn as_int(&self, id: Id) -> Option<i64> {
        match self.values[id] {
            Value::Int(int) => Some(int),
            _ => None,
        }
    }

    fn as_size(&self, id: Id) -> Option<usize> {
        self.as_int(id)?.try_into().ok()
    }

    fn as_sizes(&self, id: Id) -> Option<Vec<usize>> {
        // torch.Size((2, 3)) is a call.
        let id = match self.call(id) {
            Some((_, [inner])) => *inner,
            _ => id,
        };
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) if items.len() <= DIMENSIONS => {
                items.iter().map(|&i| self.as_size(i)).collect()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Pickle, String> {
        Pickle::read(&mut &bytes[..])
    }

    #[test]
    fn a_call_to_anything_else_has_no_effect() {
        // os.system("true"), the classic of hostile pickles.
        let pickle = read(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.").unwrap();
        assert!(pickle.tensors().unwrap_err().contains("dictionary"));
        // The same as the value of a dictionary's entry.
        let pickle = read(b"}X\x01\x00\x00\x00acos\nsystem\n(X\x04\x00\x00\x00truetRs.").unwrap();
        assert_eq!(pickle.tensors().unwrap(), HashMap::new());
    }

    #[test]
    fn damaged_pickles_are_errors() {
        for bytes in [
            &b""[..],
            b".",
            b"}",
            b"t.",
            b"\x87.",
            b"h\x05.",
            b"X\xff\xff\xff\x7fabc",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa",
            b"cos\nsys",
            b"(0t.",
            b"\x00.",
        ] {
            read(bytes).unwrap_err();
        }
    }

    #[test]
    fn depth_and_circles_are_harmless() {
        let mut deep = vec![b')'];
        deep.extend([0x85; 2_000_000]);
        deep.push(b'.');
        assert!(read(&deep).unwrap().tensors().is_err());
        // A list that holds itself, and a parameter that holds itself.
        assert!(read(b"]q\x00h\x00a.").unwrap().texts().is_none());
        let own = b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n]q\x00h\x00aRs.";
        assert_eq!(read(own).unwrap().tensors().unwrap(), HashMap::new());
    }

    #[test]
    fn what_is_named_over_and_over_takes_no_memory() {
        // One text of 64 KiB, and 200 calls that make bytes of it.
        let mut program = b"c_codecs\nencode\nq\x00X\x00\x00\x01\x00".to_vec();
        program.extend([b'a'; 1 << 16]);
        program.extend(b"q\x01X\x06\x00\x00\x00latin1q\x02");
        program.extend(b"h\x00h\x01h\x02\x86R".repeat(200));
        program.push(b'.');
        assert!(read(&program).unwrap_err().contains("copies"));
        // A list of 3,000 times one list of 3,000.
        let nones = b"N".repeat(3_000);
        let recalled = b"h\x00".repeat(3_000);
        let lists = [
            &b"("[..],
            &nones[..],
            b"lq\x000}X\x01\x00\x00\x00a(",
            &recalled[..],
            b"ls.",
        ];
        assert!(read(&lists.concat()).unwrap().arrays().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(pickle) = read(&bytes) {
                let _ = (pickle.tensors(), pickle.texts(), pickle.arrays());
            }
        }

        #[test]
        fn no_program_makes_it_panic(program in proptest::collection::vec(
            proptest::sample::select(&b"(012NJKMX)t\x85\x86\x87]lae}dsuqrhjcR\x81bQ.\x93\x94\x88\x00\x01\x8a\n"[..]),
            0..60,
        )) {
            if let Ok(pickle) = read(&program) {
                let _ = (pickle.tensors(), pickle.texts(), pickle.arrays());
            }
        }
    }
}
