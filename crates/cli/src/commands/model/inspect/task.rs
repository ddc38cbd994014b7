//! A task with known attributes, and what a model answers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use keyfold_core::Progress;
use keyfold_inspect::sae_evaluation::Attribute;
use keyfold_lm::decoding::argmax;
use keyfold_lm::session::{HookPoint, Observer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Deserialize;

use super::super::activations::Subject;
use super::super::place::Part;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    prompt: String,
    answer: String,
    wrong: String,
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    counterfactuals: BTreeMap<String, WrittenChange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenChange {
    prompt: String,
    answer: String,
    value: String,
}

/// A prompt with one attribute changed.
struct Change {
    tokens: Vec<u32>,
    answer: u32,
    value: usize,
}

/// One prompt.
pub(super) struct Line {
    tokens: Vec<u32>,
    pub(super) answer: u32,
    wrong: u32,
    /// By attribute.
    pub(super) values: Vec<usize>,
    changes: Vec<Option<Change>>,
}

impl Line {
    /// Answer and value once an attribute is changed; those of the prompt where nothing says how.
    pub(super) fn changed(&self, attribute: usize) -> (u32, usize) {
        match &self.changes[attribute] {
            Some(change) => (change.answer, change.value),
            None => (self.answer, self.values[attribute]),
        }
    }
}

/// A place in a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) part: Part,
    pub(super) token: usize,
}

/// What a model answers.
pub(super) struct Answers {
    /// Activations, `[prompts, width]`, of each place.
    pub(super) rows: Vec<Vec<f32>>,
    /// Mean logit of the answer less that of the wrong one.
    pub(super) difference: f64,
    /// The likeliest token of each prompt.
    best: Vec<u32>,
}

impl Answers {
    pub(super) fn agreement(&self, other: &Self) -> f64 {
        let same = self.best.iter().zip(&other.best).filter(|(a, b)| a == b);
        same.count() as f64 / self.best.len().max(1) as f64
    }
}

pub(super) struct Task {
    lines: Vec<Line>,
    names: Vec<String>,
    /// By attribute: its values.
    values: Vec<Vec<String>>,
    /// Tokens of a prompt.
    pub(super) length: usize,
    /// Lines to learn from, and to test on.
    pub(super) learn: Vec<usize>,
    pub(super) test: Vec<usize>,
}

impl Task {
    pub(super) fn read(
        path: &Path,
        subject: &Subject,
        share: f64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
        let here = |number: usize, what: String| {
            wrong_use(format!("{}: line {number}: {what}", path.display()))
        };
        let mut written: Vec<(usize, Written)> = Vec::new();
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, l)| !l.trim().is_empty())
        {
            let read = serde_json::from_str(line).map_err(|e| here(number, e.to_string()))?;
            written.push((number, read));
        }
        let Some((_, first)) = written.first() else {
            return Err(wrong_use(format!("{} holds no prompts", path.display())));
        };
        let names: Vec<String> = first.attributes.keys().cloned().collect();
        let mut values: Vec<Vec<String>> = vec![Vec::new(); names.len()];
        for (number, line) in &written {
            if !line.attributes.keys().eq(&names) {
                return Err(here(
                    *number,
                    format!("its attributes are not {}", names.join(", ")),
                ));
            }
            for (values, value) in values.iter_mut().zip(line.attributes.values()) {
                if !values.contains(value) {
                    values.push(value.clone());
                }
            }
        }
        values.iter_mut().for_each(|v| v.sort());
        let mut task = Self {
            lines: Vec::new(),
            length: subject.tokens(&first.prompt)?.len(),
            names,
            values,
            learn: Vec::new(),
            test: Vec::new(),
        };
        for (number, line) in &written {
            let line = task
                .line(line, subject)
                .map_err(|e| here(*number, e.to_string()))?;
            task.lines.push(line);
        }
        task.split(share, seed)?;
        Ok(task)
    }

    fn line(&self, written: &Written, subject: &Subject) -> anyhow::Result<Line> {
        let tokens = |prompt: &str| -> anyhow::Result<Vec<u32>> {
            let tokens = subject.tokens(prompt)?;
            match tokens.len() == self.length {
                true => Ok(tokens),
                false => anyhow::bail!(
                    "a prompt of {} tokens; the first has {}, and all must have as many",
                    tokens.len(),
                    self.length
                ),
            }
        };
        let value = |attribute: usize, value: &str| {
            let known = self.values[attribute].iter().position(|v| v == value);
            known.with_context(|| {
                format!(
                    "no prompt has {} '{value}', so that nothing is known of it",
                    self.names[attribute]
                )
            })
        };
        if let Some(other) = written
            .counterfactuals
            .keys()
            .find(|n| !self.names.contains(n))
        {
            anyhow::bail!("a counterfactual of '{other}', which is no attribute");
        }
        let mut values = Vec::new();
        let mut changes = Vec::new();
        for (at, name) in self.names.iter().enumerate() {
            values.push(value(at, &written.attributes[name])?);
            changes.push(match written.counterfactuals.get(name) {
                None => None,
                Some(change) => Some(Change {
                    tokens: tokens(&change.prompt)?,
                    answer: subject.answer(&change.answer)?,
                    value: value(at, &change.value)?,
                }),
            });
        }
        Ok(Line {
            tokens: tokens(&written.prompt)?,
            answer: subject.answer(&written.answer)?,
            wrong: subject.answer(&written.wrong)?,
            values,
            changes,
        })
    }

    /// Draws the prompts to test on; every value that they have or change to must be learned.
    fn split(&mut self, share: f64, seed: u64) -> anyhow::Result<()> {
        let count = (self.lines.len() as f64 * share).round() as usize;
        if !(share > 0.0 && share < 1.0) || count == 0 || count == self.lines.len() {
            return Err(wrong_use(format!(
                "--test {share} of {} prompts leaves none to learn from or none to test",
                self.lines.len()
            )));
        }
        let mut order: Vec<usize> = (0..self.lines.len()).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        self.test = order.split_off(order.len() - count);
        self.learn = order;
        for (at, values) in self.values.iter().enumerate() {
            let learned: Vec<usize> = self
                .learn
                .iter()
                .map(|i| self.lines[*i].values[at])
                .collect();
            let needed = self.tests().flat_map(|l| [l.values[at], l.changed(at).1]);
            if let Some(value) = needed.into_iter().find(|v| !learned.contains(v)) {
                return Err(wrong_use(format!(
                    "no prompt that is learned from has {} '{}'; give more prompts, or hold fewer out (--test)",
                    self.names[at], values[value]
                )));
            }
        }
        Ok(())
    }

    pub(super) fn prompts(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn tests(&self) -> impl Iterator<Item = &Line> {
        self.test.iter().map(|i| &self.lines[*i])
    }

    pub(super) fn attributes(&self, lines: &[usize]) -> Vec<Attribute> {
        let named = self.names.iter().zip(&self.values).enumerate();
        let attribute = |(at, (name, values)): (usize, (&String, &Vec<String>))| Attribute {
            name: name.clone(),
            values: values.clone(),
            of: lines.iter().map(|i| self.lines[*i].values[at]).collect(),
        };
        named.map(attribute).collect()
    }

    pub(super) fn value_name(&self, attribute: &str, value: usize) -> &str {
        let at = self.names.iter().position(|n| n == attribute);
        at.and_then(|at| self.values[at].get(value))
            .map_or("?", String::as_str)
    }

    /// Activations and answers of prompts as they are.
    pub(super) fn rows(
        &self,
        subject: &Subject,
        at: &[Place],
        lines: &[usize],
        progress: &StderrProgress,
    ) -> anyhow::Result<Answers> {
        let asked = lines
            .iter()
            .map(|i| (&self.lines[*i], &self.lines[*i].tokens));
        self.ask(subject, at, asked, None, progress)
    }

    /// Activations and answers of the tests' counterfactuals; none where no line has one, and the
    /// prompt's own where a line has none.
    pub(super) fn counterfactuals(
        &self,
        subject: &Subject,
        at: &[Place],
        attribute: usize,
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Answers>> {
        if self.tests().all(|l| l.changes[attribute].is_none()) {
            return Ok(None);
        }
        let tokens = |l: &'_ Line| l.changes[attribute].as_ref().map(|c| c.tokens.clone());
        let changed: Vec<Vec<u32>> = self
            .tests()
            .map(|l| tokens(l).unwrap_or_else(|| l.tokens.clone()))
            .collect();
        Ok(Some(self.ask(
            subject,
            at,
            self.tests().zip(&changed),
            None,
            progress,
        )?))
    }

    /// Answers of the tests once the places hold these rows.
    pub(super) fn replaced(
        &self,
        subject: &Subject,
        at: &[Place],
        rows: &[Vec<f32>],
        progress: &StderrProgress,
    ) -> anyhow::Result<Answers> {
        self.ask(
            subject,
            at,
            self.tests().map(|l| (l, &l.tokens)),
            Some(rows),
            progress,
        )
    }

    fn ask<'l>(
        &self,
        subject: &Subject,
        at: &[Place],
        asked: impl Iterator<Item = (&'l Line, &'l Vec<u32>)>,
        replace: Option<&[Vec<f32>]>,
        progress: &StderrProgress,
    ) -> anyhow::Result<Answers> {
        let mut out = Answers {
            rows: vec![Vec::new(); at.len()],
            difference: 0.0,
            best: Vec::new(),
        };
        for (i, (line, tokens)) in asked.enumerate() {
            if progress.cancelled() {
                return Err(keyfold_lm::LmError::Stopped.into());
            }
            let mut look = Look {
                at,
                replace,
                prompt: i,
                rows: &mut out.rows,
            };
            let logits = subject.read(tokens, &mut look)?;
            let of = |token: u32| f64::from(logits[token as usize]);
            out.difference += of(line.answer) - of(line.wrong);
            out.best.push(argmax(&logits));
            progress.advance(1);
        }
        out.difference /= out.best.len().max(1) as f64;
        Ok(out)
    }

    /// The gradient of the answer's logit less the wrong one's by the rows of a place.
    pub(super) fn gradients(
        &self,
        subject: &Subject,
        at: &Place,
        lines: &[usize],
    ) -> anyhow::Result<Vec<f32>> {
        let lines = || lines.iter().map(|i| &self.lines[*i]);
        let tokens: Vec<u32> = lines().flat_map(|l| l.tokens.clone()).collect();
        let pairs: Vec<(u32, u32)> = lines().map(|l| (l.answer, l.wrong)).collect();
        subject.gradients(&tokens, &pairs, &at.part)
    }

    /// Share of the tests whose likeliest token is what `of` says.
    pub(super) fn share(&self, answers: &Answers, of: impl Fn(&Line) -> u32) -> f64 {
        let right = answers
            .best
            .iter()
            .zip(self.tests())
            .filter(|(best, line)| **best == of(line));
        right.count() as f64 / answers.best.len().max(1) as f64
    }
}

/// Keeps the rows of places, and puts others there.
struct Look<'a> {
    at: &'a [Place],
    /// `[prompts, width]` of each place.
    replace: Option<&'a [Vec<f32>]>,
    prompt: usize,
    rows: &'a mut [Vec<f32>],
}

impl Observer for Look<'_> {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        for (i, at) in self.at.iter().enumerate() {
            if at.part.point != point {
                continue;
            }
            let row = at.part.of(rows, at.token);
            if let Some(replace) = self.replace {
                let width = at.part.width;
                row.copy_from_slice(&replace[i][self.prompt * width..][..width]);
            }
            self.rows[i].extend_from_slice(row);
        }
    }
}
