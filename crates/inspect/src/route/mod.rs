//! Hulls, triangulations and tours of points in a plane: written by a pointer network, and found
//! exactly.
//!
//! [`keyfold_sequence::pointer`] is the network (Vinyals, Fortunato and Jaitly 2015: Pointer
//! Networks). Here are its teachers ([`geometry`], [`tours`]), what an answer is worth beside the
//! truth ([`Worth`]), the training ([`training`]) and models that are trained already
//! ([`RouteModel`]). The same network sorts numbers, and learns from examples of any other task
//! ([`examples`]). For real tours a search is better than a network, and the best known tour is
//! always told beside the network's.

pub mod examples;
pub mod geometry;
mod model;
pub mod tours;
pub mod training;
mod worth;

use keyfold_sequence::pointer::beam::Task;

use crate::InspectError;
pub use model::{Pointed, RouteModel, Solved};
pub use worth::{Worth, in_place, worth};

/// The most points that are taken.
pub const MOST_POINTS: usize = 10_000;

/// Points in a plane, all finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Points(Vec<[f64; 2]>);

impl Points {
    /// Takes points whose numbers are finite.
    ///
    /// # Errors
    /// When one is not, or there are more than [`MOST_POINTS`].
    pub fn new(points: Vec<[f64; 2]>) -> Result<Self, InspectError> {
        if points.len() > MOST_POINTS {
            return Err(InspectError::settings(format!(
                "{} points are too many; a network that points reads up to {MOST_POINTS}",
                points.len()
            )));
        }
        for (row, point) in points.iter().enumerate() {
            if let Some(column) = point.iter().position(|x| !x.is_finite()) {
                return Err(InspectError::NotFinite {
                    what: "the points".into(),
                    row: row + 1,
                    column: column + 1,
                    found: point[column] as f32,
                });
            }
        }
        // No negative zero, which would be sorted apart from the other.
        Ok(Self(
            points.into_iter().map(|p| p.map(|x| x + 0.0)).collect(),
        ))
    }

    /// The points.
    pub fn all(&self) -> &[[f64; 2]] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The points without those that stand where an earlier one does, and of each point the number
    /// of the first that stands there, among those that are kept.
    pub fn distinct(&self) -> (Self, Vec<usize>) {
        let bits = |p: &[f64; 2]| p.map(f64::to_bits);
        let mut first = std::collections::HashMap::new();
        let mut kept = Vec::new();
        let numbers = self.0.iter().map(|point| {
            *first.entry(bits(point)).or_insert_with(|| {
                kept.push(*point);
                kept.len() - 1
            })
        });
        let numbers = numbers.collect();
        (Self(kept), numbers)
    }

    /// What a network reads: the points themselves where they lie in the unit square, in which
    /// networks learn, else moved and scaled into it, both directions alike.
    fn for_network(&self) -> Vec<f32> {
        let bounds = |axis: usize| {
            let values = self.0.iter().map(|p| p[axis]);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            })
        };
        let (x, y) = (bounds(0), bounds(1));
        let inside = |(low, high): (f64, f64)| low >= 0.0 && high <= 1.0;
        let wide = (x.1 / 2.0 - x.0 / 2.0).max(y.1 / 2.0 - y.0 / 2.0);
        let each = |value: f64, (low, high): (f64, f64)| match inside(x) && inside(y) {
            true => value as f32,
            // Halves, since the difference of two finite numbers may not be finite.
            false if wide > 0.0 => (0.5 + (value / 2.0 - (low / 4.0 + high / 4.0)) / wide) as f32,
            false => 0.5,
        };
        let points = self.0.iter();
        points
            .flat_map(|p| [each(p[0], x), each(p[1], y)])
            .collect()
    }
}

/// The right answer for points that are all distinct, with places from 0: corners of the hull,
/// triangles one after the other, or the best known tour.
///
/// # Errors
/// When there are too few points for the task, or all lie on a line and that has no answer.
pub fn truth(points: &Points, task: Task, seed: u64) -> Result<Vec<usize>, InspectError> {
    match task {
        Task::Hull => geometry::hull(points),
        Task::Delaunay => Ok(geometry::delaunay(points)?.concat()),
        Task::Tour => Ok(tours::best_known(points, seed)?.order),
        Task::Sort | Task::Custom => Err(not_of_a_plane(task)),
    }
}

/// What a network learns to write: places from 1, and the first again where the answer is a ring.
pub fn target(answer: &[usize], task: Task) -> Vec<usize> {
    let places = answer.iter().map(|place| place + 1);
    let closing = match task {
        Task::Hull | Task::Tour => answer.first().map(|place| place + 1),
        Task::Delaunay | Task::Sort | Task::Custom => None,
    };
    places.chain(closing).collect()
}

fn not_of_a_plane(task: Task) -> InspectError {
    InspectError::settings(format!("{task} is no task of points in a plane"))
}

/// The places of numbers in rising order, from 0; of equal ones the first stands first.
pub fn sorted(numbers: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    order
}

#[cfg(test)]
mod tests;
