//! Fields of a configuration, wherever they come from, read with their limits.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::{LmError, field};
use crate::file::Gguf;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Field {
    Flag(bool),
    Whole(i128),
    Number(f64),
    Text(String),
    List(Vec<Field>),
    /// An object, or a value that no field here has.
    Other,
}

impl Field {
    fn from_json(value: &Json) -> Option<Self> {
        Some(match value {
            Json::Null => return None,
            Json::Bool(flag) => Self::Flag(*flag),
            Json::Number(number) => match (number.as_i128(), number.as_f64()) {
                (Some(whole), _) => Self::Whole(whole),
                (None, Some(number)) => Self::Number(number),
                (None, None) => Self::Other,
            },
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(
                items
                    .iter()
                    .map(|item| Self::from_json(item).unwrap_or(Self::Other))
                    .collect(),
            ),
            Json::Object(_) => Self::Other,
        })
    }

    /// As a whole number, if it is one; configurations write some as `4096.0`.
    fn whole(&self) -> Option<i128> {
        match *self {
            Self::Whole(whole) => Some(whole),
            Self::Number(x) if x.fract() == 0.0 && x.abs() < 1e15 => Some(x as i128),
            _ => None,
        }
    }
}

/// Where fields are looked up.
#[derive(Clone, Copy)]
enum Source<'a> {
    Json(&'a Map<String, Json>),
    Gguf(&'a Gguf),
}

/// The fields of one file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    source: Source<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) fn json(path: &'a Path, map: &'a Map<String, Json>) -> Self {
        let source = Source::Json(map);
        Self { path, source }
    }

    pub(crate) fn gguf(file: &'a Gguf) -> Self {
        let path = file.path();
        let source = Source::Gguf(file);
        Self { path, source }
    }

    /// The fields of a nested object; none where it is absent.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, LmError> {
        let Source::Json(map) = self.source else {
            return Ok(None);
        };
        match map.get(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Object(inner)) => Ok(Some(Self::json(self.path, inner))),
            Some(_) => Err(self.wrong(name, "must be an object")),
        }
    }

    /// What an object, if it is there, holds as a type of its own.
    pub(crate) fn parsed<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, LmError> {
        let Source::Json(map) = self.source else {
            return Ok(None);
        };
        match map.get(name) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|e| self.wrong(name, format!("cannot be read: {e}"))),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<Field>, LmError> {
        match self.source {
            Source::Json(map) => Ok(map.get(name).and_then(Field::from_json)),
            Source::Gguf(file) => file.field(name),
        }
    }

    pub(crate) fn wrong(&self, name: &str, what: impl Into<String>) -> LmError {
        field(self.path, name, what)
    }

    /// A count from 1 to `most`.
    pub(crate) fn size(&self, name: &str, most: usize) -> Result<Option<usize>, LmError> {
        let Some(value) = self.get(name)? else {
            return Ok(None);
        };
        match value.whole() {
            Some(n) if n >= 1 && n <= most as i128 => Ok(Some(n as usize)),
            Some(n) => Err(self.wrong(name, format!("is {n}; it must be from 1 to {most}"))),
            None => Err(self.wrong(name, "must be a whole number")),
        }
    }

    /// A count that must be there.
    pub(crate) fn need(&self, name: &str, most: usize) -> Result<usize, LmError> {
        self.size(name, most)?
            .ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f64>, LmError> {
        let value = match self.get(name)? {
            None => return Ok(None),
            Some(Field::Whole(whole)) => whole as f64,
            Some(Field::Number(number)) => number,
            Some(_) => return Err(self.wrong(name, "must be a number")),
        };
        if value.is_finite() && value > 0.0 {
            Ok(Some(value))
        } else {
            Err(self.wrong(name, format!("is {value}; it must be above zero")))
        }
    }

    pub(crate) fn need_positive(&self, name: &str) -> Result<f64, LmError> {
        self.positive(name)?
            .ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// What is added under the root of a norm: above zero in single precision too.
    pub(crate) fn epsilon(&self, name: &str, default: Option<f64>) -> Result<f32, LmError> {
        let value = self.positive(name)?.or(default);
        let value = value.ok_or_else(|| self.wrong(name, "is missing"))?;
        match value as f32 {
            eps if eps > 0.0 && eps < 1.0 => Ok(eps),
            _ => Err(self.wrong(name, format!("is {value}; it must be between 0 and 1"))),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, LmError> {
        match self.get(name)? {
            None => Ok(None),
            Some(Field::Flag(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "must be true or false")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, LmError> {
        match self.get(name)? {
            None => Ok(None),
            Some(Field::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "must be a text")),
        }
    }

    /// A list of whole numbers; a single one stands for a list of one.
    pub(crate) fn whole_numbers(&self, name: &str) -> Result<Option<Vec<i128>>, LmError> {
        let items = match self.get(name)? {
            None => return Ok(None),
            Some(Field::List(items)) => items,
            Some(one) => vec![one],
        };
        let numbers: Option<Vec<i128>> = items.iter().map(Field::whole).collect();
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(name, "must hold whole numbers")),
        }
    }

    /// Ids of tokens, one or a list.
    pub(crate) fn tokens(&self, name: &str) -> Result<Vec<u32>, LmError> {
        let numbers = self.whole_numbers(name)?.unwrap_or_default();
        numbers
            .into_iter()
            // Some files say "none" as -1.
            .filter(|&n| n != -1)
            .map(|n| u32::try_from(n).map_err(|_| self.wrong(name, format!("is {n}, no token id"))))
            .collect()
    }

    pub(crate) fn token(&self, name: &str) -> Result<Option<u32>, LmError> {
        Ok(self.tokens(name)?.first().copied())
    }
}
