//! One JSON value as lines of `outer.inner: value`. Values of a list stand in one
//! line, parted by commas; empty values are left out.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::Problem;
use crate::flow::clip;

/// A name is cut to this many bytes, and a path not extended past [`MAX_PATH`]: they
/// are repeated on every line.
const MAX_NAME: usize = 80;
const MAX_PATH: usize = 160;

pub(super) fn flatten(json: &str, max_bytes: u64) -> serde_json::Result<String> {
    flatten_named("", json, max_bytes)
}

/// The same with a name before all paths.
pub(super) fn flatten_named(name: &str, json: &str, max_bytes: u64) -> serde_json::Result<String> {
    let mut lines = Lines {
        text: String::new(),
        path: clip(name, MAX_NAME),
        list: List::None,
        max_bytes,
    };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    Flatten(&mut lines).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(lines.text)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    /// In a list whose line has not begun.
    Waiting,
    /// In a list whose line is the last one.
    Begun,
}

struct Lines {
    text: String,
    path: String,
    list: List,
    max_bytes: u64,
}

impl Lines {
    fn value<E: Error>(&mut self, value: &str) -> Result<(), E> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(());
        }
        if self.list == List::Begun {
            self.text.push_str(", ");
        } else {
            if !self.text.is_empty() {
                self.text.push('\n');
            }
            if !self.path.is_empty() {
                self.text.push_str(&self.path);
                self.text.push_str(": ");
            }
            if self.list == List::Waiting {
                self.list = List::Begun;
            }
        }
        self.text.push_str(value);
        if self.text.len() as u64 > self.max_bytes {
            return Err(E::custom(
                "its text is too large (raise --max-unpacked-size)",
            ));
        }
        Ok(())
    }

    fn extend_path(&mut self, name: &str) {
        if self.path.len() >= MAX_PATH {
            return;
        }
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(&clip(name, MAX_NAME));
    }
}

struct Flatten<'l>(&'l mut Lines);

impl<'de> DeserializeSeed<'de> for Flatten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flatten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.0.value(value)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.value(if value { "true" } else { "false" })
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.0.value(&value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.0.value(&value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.value(&value.to_string())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let outer = std::mem::replace(&mut self.0.list, List::Waiting);
        while list.next_element_seed(Flatten(&mut *self.0))?.is_some() {}
        // What follows begins a line of its own.
        self.0.list = match outer {
            List::None => List::None,
            _ => List::Waiting,
        };
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let outer = std::mem::replace(&mut self.0.list, List::None);
        let length = self.0.path.len();
        while let Some(name) = map.next_key::<Cow<str>>()? {
            self.0.extend_path(&name);
            map.next_value_seed(Flatten(&mut *self.0))?;
            self.0.path.truncate(length);
        }
        self.0.list = match outer {
            List::None => List::None,
            _ => List::Waiting,
        };
        Ok(())
    }
}

/// Calls for every element of a list, without keeping them.
pub(super) fn each_element<'t>(
    raw: &'t RawValue,
    call: &mut dyn FnMut(&'t RawValue) -> Result<(), Problem>,
) -> Result<(), Problem> {
    each(raw, &mut |_, element| call(element))
}

/// Calls for every name and value of an object, without keeping them.
pub(super) fn each_entry<'t>(
    raw: &'t RawValue,
    call: &mut dyn FnMut(&str, &'t RawValue) -> Result<(), Problem>,
) -> Result<(), Problem> {
    each(raw, call)
}

type Call<'c, 't> = &'c mut dyn FnMut(&str, &'t RawValue) -> Result<(), Problem>;

fn each<'t>(raw: &'t RawValue, call: Call<'_, 't>) -> Result<(), Problem> {
    let mut stopped = None;
    let visitor = Each {
        call,
        stopped: &mut stopped,
    };
    let done = serde_json::Deserializer::from_str(raw.get()).deserialize_any(visitor);
    match stopped {
        Some(problem) => Err(problem),
        None => done.map_err(|error| super::problem(&error)),
    }
}

struct Each<'c, 't> {
    call: Call<'c, 't>,
    /// Why the calls ended early.
    stopped: &'c mut Option<Problem>,
}

impl<'t> Each<'_, 't> {
    fn call<E: Error>(&mut self, name: &str, value: &'t RawValue) -> Result<(), E> {
        (self.call)(name, value).map_err(|problem| {
            *self.stopped = Some(problem);
            E::custom("stopped")
        })
    }
}

impl<'t> Visitor<'t> for Each<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list or an object")
    }

    fn visit_seq<A: SeqAccess<'t>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element::<&RawValue>()? {
            self.call("", element)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'t>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<str>>()? {
            let value = map.next_value::<&RawValue>()?;
            self.call(&name, value)?;
        }
        Ok(())
    }
}
