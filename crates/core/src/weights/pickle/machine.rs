//! The stack machine that a pickle is a program for.

use std::collections::HashMap;
use std::io::Read;

use super::{Id, LONGEST, Pickle, Value};

/// Runs a pickle of up to `longest` bytes and leaves `input` behind its end.
pub(super) fn run(input: &mut impl Read, longest: u64) -> Result<Pickle, String> {
    Machine {
        input: input.take(longest),
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        room: longest,
    }
    .run()
}

struct Machine<R> {
    input: std::io::Take<R>,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Bytes that may still be copied: an instruction of a few bytes can copy a long text.
    room: u64,
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
                self.copied(name.len())?;
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
                if let Value::Bytes(bytes) = &made {
                    self.copied(bytes.len())?;
                }
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

    /// Notes that an instruction copied `len` bytes that stood in the pickle before.
    fn copied(&mut self, len: usize) -> Result<(), String> {
        self.room = self
            .room
            .checked_sub(len as u64)
            .ok_or("it copies its texts more often than any checkpoint")?;
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
