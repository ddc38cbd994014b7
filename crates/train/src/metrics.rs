//! `metrics.jsonl`: what was measured, one line each.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use keyfold_core::atomic;
use serde_json::{Map, Value, json};

use crate::{Step, Validation};

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// After this step.
    pub step: u64,
    /// Seconds of training until then, over all its runs.
    pub seconds: f64,
    /// What was measured.
    pub what: Measured,
}

/// What a line holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Means over the steps since the last line, and items per second.
    Training {
        /// The loss.
        loss: f64,
        /// Its parts.
        parts: Vec<(String, f64)>,
        /// The rate of the last step.
        learning_rate: f64,
        /// Items per second.
        per_second: f64,
    },
    /// On data that is not learned from.
    Validation {
        /// What decides.
        loss: f64,
        /// The rest.
        measures: Vec<(String, f64)>,
    },
}

impl Line {
    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("step".into(), json!(self.step));
        object.insert("seconds".into(), json!(self.seconds));
        match &self.what {
            Measured::Training {
                loss,
                parts,
                learning_rate,
                per_second,
            } => {
                object.insert("loss".into(), json!(loss));
                if !parts.is_empty() {
                    object.insert("parts".into(), pairs(parts));
                }
                object.insert("learning_rate".into(), json!(learning_rate));
                object.insert("per_second".into(), json!(per_second));
            }
            Measured::Validation { loss, measures } => {
                object.insert("validation".into(), json!(loss));
                if !measures.is_empty() {
                    object.insert("measures".into(), pairs(measures));
                }
            }
        }
        Value::Object(object)
    }

    fn read(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let read_pairs = |key: &str| -> Vec<(String, f64)> {
            let object = value[key].as_object().into_iter().flatten();
            object
                .filter_map(|(name, v)| Some((name.clone(), v.as_f64()?)))
                .collect()
        };
        let what = match value["validation"].as_f64() {
            Some(loss) => Measured::Validation {
                loss,
                measures: read_pairs("measures"),
            },
            None => Measured::Training {
                loss: value["loss"].as_f64()?,
                parts: read_pairs("parts"),
                learning_rate: value["learning_rate"].as_f64()?,
                per_second: value["per_second"].as_f64()?,
            },
        };
        Some(Self {
            step: value["step"].as_u64()?,
            seconds: value["seconds"].as_f64()?,
            what,
        })
    }
}

fn pairs(pairs: &[(String, f64)]) -> Value {
    Value::Object(pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect())
}

/// The file and all its lines.
pub(crate) struct Metrics {
    pub(crate) path: PathBuf,
    file: File,
    lines: Vec<Line>,
}

impl Metrics {
    /// Opens the file of a run that goes on after `step`: what stands there of later
    /// steps was done again, and a line that a kill cut short is no line.
    pub(crate) fn open(path: PathBuf, step: u64) -> io::Result<Self> {
        let mut lines = Vec::new();
        match std::fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                lines.extend(text.lines().filter_map(Line::read));
                lines.retain(|line| line.step <= step);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let mut text = String::new();
        for line in &lines {
            text.push_str(&format!("{}\n", line.json()));
        }
        atomic::write(&path, text.as_bytes())?;
        let file = File::options().append(true).open(&path)?;
        Ok(Self { path, file, lines })
    }

    pub(crate) fn push(&mut self, line: Line) -> io::Result<()> {
        let text = format!("{}\n", line.json());
        self.file.write_all(text.as_bytes())?;
        self.lines.push(line);
        Ok(())
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// Means over the steps since the last line.
#[derive(Debug, Default)]
pub(crate) struct Means {
    steps: u64,
    items: u64,
    loss: f64,
    parts: Vec<(String, f64)>,
    learning_rate: f64,
}

impl Means {
    pub(crate) fn add(&mut self, step: &Step) {
        self.steps += 1;
        self.items += step.items;
        self.loss += step.loss;
        self.learning_rate = step.learning_rate;
        for (name, value) in &step.parts {
            match self.parts.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None => self.parts.push(((*name).to_owned(), *value)),
            }
        }
    }

    /// The means, over `seconds`; nothing when there was no step.
    pub(crate) fn take(&mut self, seconds: f64) -> Option<Measured> {
        let means = std::mem::take(self);
        let steps = means.steps as f64;
        (means.steps > 0).then(|| Measured::Training {
            loss: means.loss / steps,
            parts: means
                .parts
                .into_iter()
                .map(|(name, sum)| (name, sum / steps))
                .collect(),
            learning_rate: means.learning_rate,
            per_second: means.items as f64 / seconds.max(1e-9),
        })
    }
}

impl From<&Validation> for Measured {
    fn from(validation: &Validation) -> Self {
        Self::Validation {
            loss: validation.loss,
            measures: validation
                .measures
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        }
    }
}

/// Where the measurements of the run in `folder` are.
pub(crate) fn file_of(folder: &Path) -> PathBuf {
    folder.join("metrics.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_a_torn_one_and_those_done_again_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(folder.path());
        let mut metrics = Metrics::open(path.clone(), 0).unwrap();
        let mut means = Means::default();
        for (number, loss) in [(1, 2.0), (2, 4.0)] {
            means.add(&Step {
                loss,
                parts: vec![("margin", loss / 2.0)],
                items: 10,
                learning_rate: 0.1 * number as f64,
            });
        }
        let what = means.take(4.0).unwrap();
        assert!(means.take(1.0).is_none());
        let at = |step| Line {
            step,
            seconds: step as f64,
            what: what.clone(),
        };
        metrics.push(at(2)).unwrap();
        let validation = Line {
            step: 2,
            seconds: 2.0,
            what: Measured::Validation {
                loss: 0.5,
                measures: vec![("ndcg".into(), 0.25)],
            },
        };
        metrics.push(validation.clone()).unwrap();
        metrics.push(at(4)).unwrap();
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"step\": 5, \"los");
        std::fs::write(&path, &text).unwrap();
        let again = Metrics::open(path.clone(), 3).unwrap();
        assert_eq!(again.lines(), [at(2), validation]);
        let Measured::Training {
            loss,
            parts,
            per_second,
            ..
        } = &again.lines()[0].what
        else {
            panic!("no training line");
        };
        assert_eq!((*loss, *per_second), (3.0, 5.0));
        assert_eq!(parts, &[("margin".to_owned(), 1.5)]);
    }
}
