//! Examples of a task of the user's own, in JSON Lines.
//!
//! ```text
//! {"points": [[0.1, 0.7], [0.4, 0.2], [0.9, 0.5]], "target": [2, 3]}
//! ```
//!
//! Points are rows of as many numbers in all lines; the target names them from 1, in the order in
//! which the network is to write them.

use std::collections::BTreeMap;
use std::path::Path;

use keyfold_sequence::pointer::beam::Task;
use keyfold_sequence::pointer::learn::Problem;
use serde::Deserialize;

use super::MOST_POINTS;
use crate::InspectError;

/// Every so many lines one is held out.
const HELD_OUT: usize = 10;

/// The most numbers of a point.
const WIDEST: usize = 1 << 14;

/// Examples that were read and make sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// Numbers of a point.
    pub width: usize,
    /// By the number of points.
    learned: BTreeMap<usize, Vec<Problem>>,
    /// Every tenth, which is never learned from.
    pub held_out: Vec<Problem>,
    /// Tells these examples from others.
    pub fingerprint: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    points: Vec<Vec<f32>>,
    target: Vec<usize>,
}

impl Examples {
    /// Reads a file.
    ///
    /// # Errors
    /// When a line is no example, points are ragged or not finite, a target names no point, or
    /// there are fewer than ten examples.
    pub fn read(path: &Path) -> Result<Self, InspectError> {
        let text = std::fs::read_to_string(path).map_err(|e| InspectError::io(path, e))?;
        let mut all = Vec::new();
        let mut width = None;
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let problem = problem(line, &mut width)
                .map_err(|what| InspectError::format(path, format!("line {}: {what}", i + 1)))?;
            all.push(problem);
        }
        let Some(width) = width.filter(|_| all.len() >= HELD_OUT) else {
            let what = format!(
                "it has {} examples; at least {HELD_OUT} are needed, of which every tenth is held out",
                all.len()
            );
            return Err(InspectError::format(path, what));
        };
        let mut examples = Self {
            width,
            learned: BTreeMap::new(),
            held_out: Vec::new(),
            fingerprint: blake3::hash(text.as_bytes()).to_hex().to_string(),
        };
        for (i, problem) in all.into_iter().enumerate() {
            match i % HELD_OUT == HELD_OUT - 1 {
                true => examples.held_out.push(problem),
                false => {
                    let points = problem.points.len() / width;
                    examples.learned.entry(points).or_default().push(problem);
                }
            }
        }
        Ok(examples)
    }

    /// The least and the most points of an example to learn from.
    pub fn points(&self) -> [usize; 2] {
        let mut counts = self.learned.keys().copied();
        let least = counts.next().unwrap_or(0);
        [least, counts.next_back().unwrap_or(least)]
    }

    /// How many are learned from.
    pub fn len(&self) -> usize {
        self.learned.values().map(Vec::len).sum()
    }

    /// Never: there are at least nine.
    pub fn is_empty(&self) -> bool {
        self.learned.is_empty()
    }

    /// All examples with as many points as number `place` (below [`len`](Self::len)) has.
    pub fn alike(&self, mut place: usize) -> &[Problem] {
        for group in self.learned.values() {
            if place < group.len() {
                return group;
            }
            place -= group.len();
        }
        &[]
    }
}

fn problem(line: &str, width: &mut Option<usize>) -> Result<Problem, String> {
    let Line { points, target } = serde_json::from_str(line).map_err(|e| {
        format!("it is no example like {{\"points\": [[0.1, 0.7]], \"target\": [1]}}: {e}")
    })?;
    let n = points.len();
    let Some(first) = points.first() else {
        return Err("it has no points".into());
    };
    let wanted = *width.get_or_insert(first.len());
    if wanted == 0 || wanted > WIDEST {
        return Err(format!(
            "its first point has {wanted} numbers; from 1 to {WIDEST} are possible"
        ));
    }
    if n > MOST_POINTS {
        return Err(format!(
            "it has {n} points; a network that points reads up to {MOST_POINTS}"
        ));
    }
    for (i, point) in points.iter().enumerate() {
        if point.len() != wanted {
            return Err(format!(
                "point {} has {} numbers, the first of the file {wanted}",
                i + 1,
                point.len()
            ));
        }
        if let Some(odd) = point.iter().find(|x| !x.is_finite()) {
            return Err(format!("point {} holds {odd}, no finite number", i + 1));
        }
    }
    if let Some(place) = target.iter().find(|place| **place == 0 || **place > n) {
        return Err(format!(
            "the target names point {place}; points are 1 to {n}"
        ));
    }
    let longest = Task::Custom.longest(n);
    if target.len() > longest {
        return Err(format!(
            "the target names {} points; for {n} points {longest} are the most",
            target.len()
        ));
    }
    Ok(Problem {
        points: points.concat(),
        target,
    })
}
