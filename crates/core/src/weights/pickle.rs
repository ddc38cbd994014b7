//! A reader of the pickles inside PyTorch checkpoints that runs nothing.
//!
//! A pickle is a program for a stack machine. This one knows the instructions
//! that build numbers, strings, tuples, lists and dictionaries; a call is only
//! noted, and only the few functions that rebuild a tensor are then understood
//! ([`Pickle::tensors`]). Whatever else a pickle calls stays a name without effect.
//!
//! Values lie in one list and refer to each other by place, so that a deep or
//! circular pickle is no deep or circular structure here.

use std::collections::HashMap;
use std::io::Read;

/// A value by its place in the list.
type Id = usize;

/// Longest pickle of a checkpoint, in bytes, and the most values that any can make.
/// Real ones have about 200 bytes per tensor.
const LONGEST: u64 = 1 << 22;

/// Longest pickle that holds its numbers itself, in bytes.
const LONGEST_WITH_NUMBERS: u64 = 1 << 31;

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

/// An array as a pickle that holds its numbers itself describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ArrayPlan<'a> {
    Torch {
        /// The storage, as `torch.save` wrote it before version 1.6.
        storage: &'a [u8],
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    },
    Numpy {
        bytes: &'a [u8],
        /// `f4`, `f8`.
        dtype: &'a str,
        shape: Vec<usize>,
    },
}

impl Pickle {
    /// Reads one pickle and leaves `input` behind its end.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, String> {
        Self::read_up_to(input, LONGEST)
    }

    /// The same for a pickle that holds arrays of numbers itself.
    pub(super) fn read_with_numbers(input: &mut impl Read) -> Result<Self, String> {
        Self::read_up_to(input, LONGEST_WITH_NUMBERS)
    }

    fn read_up_to(input: &mut impl Read, longest: u64) -> Result<Self, String> {
        Machine {
            input: input.take(longest),
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
        .run()
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
        let Value::Persistent(reference) = self.values[storage] else {
            return None;
        };
        // ('storage', class, key, device, number of elements, ...)
        let Value::Tuple(reference) = &self.values[reference] else {
            return None;
        };
        let [tag, class, key, _device, len, ..] = reference.as_slice() else {
            return None;
        };
        let Value::Global(class) = &self.values[*class] else {
            return None;
        };
        if self.as_text(*tag)? != "storage" {
            return None;
        }
        Some(TensorPlan {
            storage: self.as_text(*key)?.to_owned(),
            class: class.rsplit([' ', '.']).next()?.to_owned(),
            storage_len: self.as_size(*len)?,
            offset: self.as_size(offset)?,
            shape: self.as_sizes(shape)?,
            strides: self.as_sizes(strides)?,
        })
    }

    /// Every array that the values of the dictionary hold, in order, by key.
    pub(super) fn arrays(&self) -> Result<Vec<(String, Vec<ArrayPlan<'_>>)>, String> {
        let entries = self
            .entries(self.root)
            .ok_or("it does not hold a dictionary")?;
        let arrays = |(name, id): (&str, Id)| {
            let mut found = Vec::new();
            self.find_arrays(id, 2, &mut found)
                .ok_or_else(|| format!("'{name}': its description of an array is damaged"))?;
            Ok((name.to_owned(), found))
        };
        entries.into_iter().map(arrays).collect()
    }

    /// The arrays of a tuple or list, and of those in it down to `depth`.
    fn find_arrays<'a>(&'a self, id: Id, depth: usize, to: &mut Vec<ArrayPlan<'a>>) -> Option<()> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) if depth > 0 => {
                let mut items = items.iter();
                items.try_for_each(|&item| self.find_arrays(item, depth - 1, to))
            }
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
                    ("_frombuffer", &[bytes, dtype, shape, ..]) => {
                        to.push(self.numpy(bytes, dtype, shape)?);
                    }
                    ("_reconstruct", _) => {
                        let Value::Tuple(state) = &self.values[(*state)?] else {
                            return None;
                        };
                        let &[_, shape, dtype, _, bytes, ..] = state.as_slice() else {
                            return None;
                        };
                        to.push(self.numpy(bytes, dtype, shape)?);
                    }
                    _ => {}
                }
                Some(())
            }
            _ => Some(()),
        }
    }

    fn numpy(&self, bytes: Id, dtype: Id, shape: Id) -> Option<ArrayPlan<'_>> {
        let (_, arguments) = self.call(dtype)?;
        Some(ArrayPlan::Numpy {
            bytes: self.as_bytes(bytes)?,
            dtype: self.as_text(*arguments.first()?)?,
            shape: self.as_sizes(shape)?,
        })
    }

    /// The storage that the pickle refers to as a whole: its class and how many numbers.
    pub(super) fn storage(&self) -> Option<(String, usize)> {
        let Value::Persistent(reference) = self.values[self.root] else {
            return None;
        };
        let Value::Tuple(reference) = &self.values[reference] else {
            return None;
        };
        let &[_, class, _, _, len, ..] = reference.as_slice() else {
            return None;
        };
        let Value::Global(class) = &self.values[class] else {
            return None;
        };
        let class = class.rsplit([' ', '.']).next()?.to_owned();
        Some((class, self.as_size(len)?))
    }

    fn as_bytes(&self, id: Id) -> Option<&[u8]> {
        match &self.values[id] {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
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
            Value::Tuple(items) | Value::List(items) => {
                items.iter().map(|&i| self.as_size(i)).collect()
            }
            _ => None,
        }
    }
}

struct Machine<R> {
    input: std::io::Take<R>,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<R: Read> Machine<R> {
    fn run(mut self) -> Result<Pickle, String> {
        loop {
            let [code] = self.bytes()?;
            match code {
                // PROTO and FRAME say nothing that is needed here.
                0x80 => drop(self.bytes::<1>()?),
                0x95 => drop(self.bytes::<8>()?),
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle {
                        values: self.values,
                        root,
                    });
                }
                _ => self.step(code)?,
            }
            if self.values.len() as u64 > LONGEST {
                return Err("it makes more values than any checkpoint".to_owned());
            }
        }
    }

    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = *self.stack.last().ok_or("its stack is empty")?;
                self.stack.push(top);
            }
            // NONE
            b'N' => self.push(Value::Opaque),
            // NEWTRUE, NEWFALSE
            0x88 => self.push(Value::Int(1)),
            0x89 => self.push(Value::Int(0)),
            // BININT, BININT1, BININT2, LONG1, INT
            b'J' => {
                let int = i32::from_le_bytes(self.bytes()?);
                self.push(Value::Int(int.into()));
            }
            b'K' => {
                let [int] = self.bytes()?;
                self.push(Value::Int(int.into()));
            }
            b'M' => {
                let int = u16::from_le_bytes(self.bytes()?);
                self.push(Value::Int(int.into()));
            }
            0x8a => self.long()?,
            b'I' => {
                let line = self.line()?;
                let value = line.parse().map_or(Value::Opaque, Value::Int);
                self.push(value);
            }
            // BINFLOAT
            b'G' => {
                self.bytes::<8>()?;
                self.push(Value::Opaque);
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, BINSTRING, SHORT_BINSTRING
            b'X' | b'T' => {
                let len = u32::from_le_bytes(self.bytes()?).into();
                self.text(len)?;
            }
            0x8c | b'U' => {
                let [len] = self.bytes()?;
                self.text(len.into())?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.bytes()?);
                self.text(len)?;
            }
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => {
                let len = u32::from_le_bytes(self.bytes()?).into();
                self.raw(len)?;
            }
            b'C' => {
                let [len] = self.bytes()?;
                self.raw(len.into())?;
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(self.bytes()?);
                self.raw(len)?;
            }
            b')' | b't' | 0x85..=0x87 => self.tuple(code)?,
            b']' | b'l' | b'a' | b'e' => self.list(code)?,
            b'}' | b'd' | b's' | b'u' => self.dict(code)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(code)?,
            b'c' | 0x93 | b'R' | 0x81 | b'b' | b'Q' => self.object(code)?,
            _ => {
                return Err(format!(
                    "its instruction {code:#04x} is not one that checkpoints use"
                ));
            }
        }
        Ok(())
    }

    /// The bytes that a text `(text, 'latin1')` stands for.
    fn latin_1(&self, arguments: Id) -> Option<Vec<u8>> {
        let Value::Tuple(arguments) = &self.values[arguments] else {
            return None;
        };
        let &[text, codec] = arguments.as_slice() else {
            return None;
        };
        match (&self.values[text], &self.values[codec]) {
            (Value::Text(text), Value::Text(codec)) if codec == "latin1" => {
                text.chars().map(|c| u8::try_from(c).ok()).collect()
            }
            _ => None,
        }
    }

    /// LONG1: an integer of any length; longer than 8 bytes is none of ours.
    fn long(&mut self) -> Result<(), String> {
        let [len] = self.bytes()?;
        let mut digits = vec![0; len.into()];
        self.fill(&mut digits)?;
        let value = if digits.len() > 8 {
            Value::Opaque
        } else {
            let negative = digits.last().is_some_and(|d| d & 0x80 != 0);
            digits.resize(8, if negative { 0xff } else { 0 });
            let mut whole = [0; 8];
            whole.copy_from_slice(&digits);
            Value::Int(i64::from_le_bytes(whole))
        };
        self.push(value);
        Ok(())
    }

    fn tuple(&mut self, code: u8) -> Result<(), String> {
        let items = match code {
            // EMPTY_TUPLE, TUPLE
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            // TUPLE1, TUPLE2, TUPLE3
            _ => {
                let n = usize::from(code - 0x84);
                let at = self
                    .stack
                    .len()
                    .checked_sub(n)
                    .ok_or("its stack is empty")?;
                self.stack.split_off(at)
            }
        };
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn list(&mut self, code: u8) -> Result<(), String> {
        let items = match code {
            // EMPTY_LIST, LIST
            b']' => {
                self.push(Value::List(Vec::new()));
                return Ok(());
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
                return Ok(());
            }
            // APPEND, APPENDS
            b'a' => vec![self.pop()?],
            _ => self.pop_mark()?,
        };
        let list = self.top()?;
        if let Value::List(all) = &mut self.values[list] {
            all.extend(items);
        }
        Ok(())
    }

    fn dict(&mut self, code: u8) -> Result<(), String> {
        let items = match code {
            // EMPTY_DICT
            b'}' => {
                self.push(Value::Dict(Vec::new()));
                return Ok(());
            }
            // DICT, SETITEMS
            b'd' | b'u' => self.pop_mark()?,
            // SETITEM
            _ => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
        };
        let (pairs, _) = items.as_chunks::<2>();
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        if code == b'd' {
            let dict = Value::Dict(pairs.collect());
            self.push(dict);
            return Ok(());
        }
        let dict = self.top()?;
        if let Value::Dict(all) = &mut self.values[dict] {
            all.extend(pairs);
        }
        Ok(())
    }

    fn remember(&mut self, code: u8) -> Result<(), String> {
        match code {
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' | b'r' | 0x94 => {
                let key = match code {
                    b'q' => self.bytes::<1>()?[0].into(),
                    b'r' => u32::from_le_bytes(self.bytes()?).into(),
                    _ => self.memo.len() as u64,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            // BINGET, LONG_BINGET
            _ => {
                let key = match code {
                    b'h' => self.bytes::<1>()?[0].into(),
                    _ => u32::from_le_bytes(self.bytes()?).into(),
                };
                let id = self
                    .memo
                    .get(&key)
                    .ok_or("it recalls what it never noted")?;
                self.stack.push(*id);
            }
        }
        Ok(())
    }

    fn object(&mut self, code: u8) -> Result<(), String> {
        match code {
            // GLOBAL
            b'c' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.push(Value::Global(name));
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) =
                    (&self.values[name], &self.values[module])
                else {
                    return Err("it names a function by something that is no text".to_owned());
                };
                let name = format!("{module} {name}");
                self.push(Value::Global(name));
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let name = match &self.values[function] {
                    Value::Global(name) => name.as_str(),
                    _ => "",
                };
                let made = match name {
                    "collections OrderedDict" => Value::Dict(Vec::new()),
                    // How Python writes bytes before protocol 3.
                    "_codecs encode" => self.latin_1(arguments).map_or(Value::Opaque, Value::Bytes),
                    _ => Value::Call {
                        function,
                        arguments,
                        state: None,
                    },
                };
                self.push(made);
            }
            // BUILD: what an object is filled with.
            b'b' => {
                let (filling, object) = (self.pop()?, self.top()?);
                if let Value::Call { state, .. } = &mut self.values[object] {
                    *state = Some(filling);
                }
            }
            // BINPERSID
            _ => {
                let reference = self.pop()?;
                self.push(Value::Persistent(reference));
            }
        }
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, String> {
        Ok(self.stack.pop().ok_or("its stack is empty")?)
    }

    fn top(&self) -> Result<Id, String> {
        Ok(*self.stack.last().ok_or("its stack is empty")?)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let at = self.marks.pop().ok_or("it closes what it never opened")?;
        if at > self.stack.len() {
            return Err("its stack is empty".to_owned());
        }
        Ok(self.stack.split_off(at))
    }

    fn text(&mut self, len: u64) -> Result<(), String> {
        let text = String::from_utf8_lossy(&self.many(len)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn raw(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.many(len)?;
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    /// Reads `len` bytes; a length past the end costs no memory.
    fn many(&mut self, len: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let input = &mut self.input;
        let read = input.take(len).read_to_end(&mut bytes);
        match read {
            Ok(n) if n as u64 == len => Ok(bytes),
            Ok(_) => Err("it is cut off".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        loop {
            let [byte] = self.bytes()?;
            if byte == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte);
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.input.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
            _ => e.to_string(),
        })
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(pickle) = read(&bytes) {
                let _ = (pickle.tensors(), pickle.texts());
            }
        }

        #[test]
        fn no_program_makes_it_panic(program in proptest::collection::vec(
            proptest::sample::select(&b"(012NJKMX)t\x85\x86\x87]lae}dsuqrhjcR\x81bQ.\x93\x94\x88\x00\x01\x8a\n"[..]),
            0..60,
        )) {
            if let Ok(pickle) = read(&program) {
                let _ = (pickle.tensors(), pickle.texts());
            }
        }
    }
}
