//! The likeliest answer, found with a beam, and the rules that answers of a task keep.
//!
//! A beam holds the best `width` beginnings. Each step makes all of them longer by every place that
//! the rules allow, and keeps the best; the score of an answer is the sum of `log p` over its
//! places, `p` being shared among the allowed ones. What a rule forbids can so not be written:
//! a tour always visits every point once.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::{Encoded, PointerNetwork, State};
use crate::SequenceError;

/// What a network answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The corners of the convex hull, counter-clockwise from the one that stands first in the
    /// input, and that one again.
    Hull,
    /// The triangles of the Delaunay triangulation: three points each in the order of the input,
    /// sorted by their incentres.
    Delaunay,
    /// The shortest tour, from the first point and back to it.
    Tour,
    /// All points, the smallest first; they are numbers.
    Sort,
    /// What examples show: points of any width, places in any order.
    Custom,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 5] = [
        Self::Hull,
        Self::Delaunay,
        Self::Tour,
        Self::Sort,
        Self::Custom,
    ];

    /// Those of points in a plane.
    pub const PLANE: [Self; 3] = [Self::Hull, Self::Delaunay, Self::Tour];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hull => "hull",
            Self::Delaunay => "delaunay",
            Self::Tour => "tour",
            Self::Sort => "sort",
            Self::Custom => "custom",
        }
    }

    /// The most places of an answer for `n` points.
    pub fn longest(self, n: usize) -> usize {
        match self {
            Self::Hull | Self::Tour => n + 1,
            Self::Delaunay => 3 * (2 * n).saturating_sub(5).max(1),
            Self::Sort => n,
            Self::Custom => 6 * n,
        }
    }

    /// Which places (0 is the end) may follow those of `answer`.
    pub fn allowed(self, n: usize, answer: &[usize]) -> Vec<bool> {
        if answer.len() >= self.longest(n) {
            return only(n, 0);
        }
        match self {
            Self::Hull => hull(n, answer),
            Self::Tour => tour(n, answer),
            Self::Delaunay => delaunay(n, answer),
            Self::Sort => fresh(n, answer),
            Self::Custom => vec![true; n + 1],
        }
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|task| task.name() == s);
        named
            .ok_or_else(|| format!("'{s}' is no task: choose hull, delaunay, tour, sort or custom"))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn only(n: usize, place: usize) -> Vec<bool> {
    (0..=n).map(|j| j == place).collect()
}

/// Points that do not stand in `answer`; the end is not among them.
fn fresh(n: usize, answer: &[usize]) -> Vec<bool> {
    let mut allowed = vec![true; n + 1];
    allowed[0] = false;
    answer.iter().for_each(|&place| allowed[place] = false);
    allowed
}

/// Three corners at least; then new ones, the first again, or the end.
fn hull(n: usize, answer: &[usize]) -> Vec<bool> {
    let closed = answer.len() > 1 && answer.first() == answer.last();
    if closed {
        return only(n, 0);
    }
    let mut allowed = fresh(n, answer);
    if answer.len() >= 3.min(n) {
        allowed[0] = true;
        allowed[answer[0]] = true;
    }
    allowed
}

/// Every point once, then the first again.
fn tour(n: usize, answer: &[usize]) -> Vec<bool> {
    match answer.len().cmp(&n) {
        Ordering::Less => fresh(n, answer),
        Ordering::Equal => only(n, answer[0]),
        Ordering::Greater => only(n, 0),
    }
}

/// Places of a triangle rise; the end comes after a whole one.
fn delaunay(n: usize, answer: &[usize]) -> Vec<bool> {
    let of_triangle = answer.len() % 3;
    let least = match of_triangle {
        0 => 1,
        _ => answer[answer.len() - 1] + 1,
    };
    // There must be room for the points that follow.
    let most = n.saturating_sub(2 - of_triangle);
    let mut allowed: Vec<bool> = (0..=n).map(|j| (least..=most).contains(&j)).collect();
    allowed[0] = of_triangle == 0 && !answer.is_empty();
    allowed
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Places from 1, without the end.
    pub places: Vec<usize>,
    /// The sum of `log p` over places and end.
    pub log_probability: f64,
    /// Whether the network wrote the end; else it was stopped at the longest that an answer may
    /// be.
    pub ended: bool,
}

/// A score, a beginning, and the place that follows it with the row of its state.
type Following<'a> = (f64, &'a Beginning, Option<(usize, usize)>);

struct Beginning {
    places: Vec<usize>,
    score: f64,
    ended: bool,
}

impl PointerNetwork {
    /// The likeliest answer for points `[n, input_size]` that a beam of `width` finds. With `rules` it keeps
    /// to those of the task; without, every place may follow every other.
    ///
    /// # Errors
    /// When there is no point, a number is not finite, or the beam has no room.
    pub fn answer(
        &self,
        points: &[f32],
        task: Task,
        width: usize,
        rules: bool,
    ) -> Result<Answer, SequenceError> {
        if width == 0 {
            return Err(SequenceError::Refused(
                "a beam holds at least 1 answer".into(),
            ));
        }
        let encoded = self.encode(points)?;
        let n = points.len() / self.config.input_size;
        if task == Task::Delaunay && rules && n < 3 {
            return Err(SequenceError::Refused(format!(
                "a triangle needs 3 points, there are {n}"
            )));
        }
        let mut beam = vec![Beginning {
            places: Vec::new(),
            score: 0.0,
            ended: false,
        }];
        let mut state = State::of(&encoded, 1);
        for _ in 0..=task.longest(n) {
            if beam.iter().all(|b| b.ended) {
                break;
            }
            let allowed = |places: &[usize]| match rules {
                true => task.allowed(n, places),
                false => vec![true; n + 1],
            };
            (beam, state) = self.longer(points, &encoded, beam, state, width, &allowed);
        }
        let best = beam.into_iter().next();
        let best = best.ok_or_else(|| SequenceError::Refused("no answer is allowed".into()))?;
        Ok(Answer {
            places: best.places,
            log_probability: best.score,
            ended: best.ended,
        })
    }

    /// The best beginnings that are a place longer; those that have ended stay. The state has a row
    /// for each beginning that has not.
    fn longer(
        &self,
        points: &[f32],
        encoded: &Encoded,
        beam: Vec<Beginning>,
        mut state: State,
        width: usize,
        allowed: &dyn Fn(&[usize]) -> Vec<bool>,
    ) -> (Vec<Beginning>, State) {
        let going: Vec<&Beginning> = beam.iter().filter(|b| !b.ended).collect();
        let inputs: Vec<f32> = going
            .iter()
            .flat_map(|b| self.input(points, b.places.last().copied()))
            .copied()
            .collect();
        let scores = self.step(encoded, &inputs, &mut state);
        let places = scores.len() / going.len();
        let mut found: Vec<Following> = Vec::new();
        found.extend(beam.iter().filter(|b| b.ended).map(|b| (b.score, b, None)));
        for (row, (beginning, scores)) in going.iter().zip(scores.chunks_exact(places)).enumerate()
        {
            let allowed = allowed(&beginning.places);
            for (place, log_p) in log_softmax(scores, &allowed) {
                found.push((beginning.score + log_p, beginning, Some((place, row))));
            }
        }
        // A stable sort: of equal ones the first stays, so that answers do not depend on chance.
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.truncate(width);
        let mut rows = Vec::new();
        let next = found.into_iter().map(|(score, beginning, next)| {
            let mut places = beginning.places.clone();
            match next {
                None | Some((0, _)) => {}
                Some((place, row)) => {
                    places.push(place);
                    rows.push(row);
                }
            }
            Beginning {
                places,
                score,
                ended: !matches!(next, Some((1.., _))),
            }
        });
        let next: Vec<Beginning> = next.collect();
        (next, state.pick(&rows, self.config.hidden_size))
    }
}

/// The logarithms of the softmax over the allowed places.
fn log_softmax(scores: &[f32], allowed: &[bool]) -> Vec<(usize, f64)> {
    let kept = scores.iter().zip(allowed).enumerate();
    let kept: Vec<(usize, f64)> = kept
        .filter(|(_, (_, allowed))| **allowed)
        .map(|(place, (score, _))| (place, f64::from(*score)))
        .collect();
    let greatest = kept.iter().map(|k| k.1).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = kept.iter().map(|k| (k.1 - greatest).exp()).sum();
    let norm = greatest + total.ln();
    kept.into_iter()
        .map(|(place, s)| (place, s - norm))
        .collect()
}
