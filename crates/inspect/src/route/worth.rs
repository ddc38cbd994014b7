//! What an answer is worth beside the truth.

use std::collections::HashSet;

use keyfold_sequence::pointer::beam::Task;

use super::{Points, geometry, tours};

/// What an answer is worth. Which fields are there depends on the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worth {
    /// Whether the answer is the true one: a polygon up to its beginning and direction, the same
    /// set of triangles, a tour that is as short as the best known one.
    pub right: bool,
    /// Whether it is an answer at all: a polygon that does not cross itself, triangles of the
    /// points, every point visited once.
    pub valid: bool,
    /// Of a hull the share of the true area, where the answer is valid; of a triangulation the share
    /// of the true triangles; of a tour its length by that of the best known one, 1 or more; of
    /// another answer the share of places that are right.
    pub share: Option<f64>,
}

/// What `answer` is worth beside `truth`, both with places from 0 and rings not closed.
pub fn worth(points: &Points, task: Task, answer: &[usize], truth: &[usize]) -> Worth {
    match task {
        Task::Hull => hull(points, answer, truth),
        Task::Delaunay => triangles(answer, truth),
        Task::Tour => tour(points, answer, truth),
        Task::Sort | Task::Custom => in_place(answer, truth),
    }
}

/// An answer that has to be the truth place by place; the share is that of places that are right.
pub fn in_place(answer: &[usize], truth: &[usize]) -> Worth {
    let same = answer.iter().zip(truth).filter(|(a, b)| a == b).count();
    Worth {
        right: answer == truth,
        valid: answer.len() == truth.len(),
        share: Some(same as f64 / truth.len().max(1) as f64),
    }
}

fn hull(points: &Points, answer: &[usize], truth: &[usize]) -> Worth {
    let valid = geometry::is_simple(points, answer);
    Worth {
        right: same_ring(answer, truth),
        valid,
        share: valid.then(|| geometry::area(points, answer) / geometry::area(points, truth)),
    }
}

/// Whether two rings are one, wherever they begin and whichever way they go.
fn same_ring(a: &[usize], b: &[usize]) -> bool {
    let canonical = |ring: &[usize]| {
        let mut ring = ring.to_vec();
        let first = (0..ring.len()).min_by_key(|i| ring[*i]).unwrap_or(0);
        ring.rotate_left(first);
        if let [_, rest @ ..] = &mut ring[..]
            && rest.first() > rest.last()
        {
            rest.reverse();
        }
        ring
    };
    a.len() == b.len() && canonical(a) == canonical(b)
}

fn triangles(answer: &[usize], truth: &[usize]) -> Worth {
    let set = |places: &[usize]| -> HashSet<[usize; 3]> {
        let each = places.chunks_exact(3).map(|t| {
            let mut t = [t[0], t[1], t[2]];
            t.sort_unstable();
            t
        });
        each.collect()
    };
    let (found, wanted) = (set(answer), set(truth));
    let common = found.intersection(&wanted).count();
    let whole = |t: &[usize; 3]| t[0] < t[1] && t[1] < t[2];
    Worth {
        right: found == wanted,
        valid: answer.len().is_multiple_of(3) && !found.is_empty() && found.iter().all(whole),
        share: Some(common as f64 / wanted.len().max(1) as f64),
    }
}

fn tour(points: &Points, answer: &[usize], truth: &[usize]) -> Worth {
    let mut visited = answer.to_vec();
    visited.sort_unstable();
    let valid = visited.iter().copied().eq(0..points.len());
    let best = tours::length(points, truth);
    let share = tours::length(points, answer) / best;
    Worth {
        right: valid && share <= 1.0 + 1e-9,
        valid,
        share: (valid && best > 0.0).then_some(share),
    }
}
