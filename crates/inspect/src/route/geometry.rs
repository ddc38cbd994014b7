//! Convex hulls, Delaunay triangulations and polygons.
//!
//! Which side of a line a point lies on is decided exactly (Shewchuk 1997: Adaptive Precision
//! Floating-Point Arithmetic; the crate `robust`), so hulls are right for points that are nearly on
//! a line as well. Triangulations are those of the crate `delaunator`.

use robust::{Coord, orient2d};

use super::Points;
use crate::InspectError;

fn coord(p: [f64; 2]) -> Coord<f64> {
    Coord { x: p[0], y: p[1] }
}

/// Above 0 when `c` lies to the left of the way from `a` to `b`; 0 on the line.
pub fn side(a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> f64 {
    orient2d(coord(a), coord(b), coord(c))
}

/// Why points have no hull and no triangles.
fn too_few(distinct: usize) -> InspectError {
    InspectError::settings(match distinct {
        0..3 => format!(
            "{distinct} distinct points are too few: a hull and triangles need three that are not \
             on a line"
        ),
        _ => {
            format!("all {distinct} points lie on one line, so they have no hull and no triangles")
        }
    })
}

/// The corners of the convex hull, counter-clockwise from the one that stands first in the input.
/// Points on an edge are no corners (Andrew 1979: monotone chain).
///
/// # Errors
/// When fewer than three points are distinct, or all lie on a line.
pub fn hull(points: &Points) -> Result<Vec<usize>, InspectError> {
    let all = points.all();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| {
        let by = all[a][0].total_cmp(&all[b][0]);
        by.then(all[a][1].total_cmp(&all[b][1])).then(a.cmp(&b))
    });
    order.dedup_by(|b, a| all[*a] == all[*b]);
    let lower = chain(all, order.iter().copied());
    let upper = chain(all, order.iter().rev().copied());
    let mut corners = [
        &lower[..lower.len().saturating_sub(1)],
        &upper[..upper.len().saturating_sub(1)],
    ]
    .concat();
    if corners.len() < 3 {
        return Err(too_few(order.len()));
    }
    let first = (0..corners.len()).min_by_key(|i| corners[*i]).unwrap_or(0);
    corners.rotate_left(first);
    Ok(corners)
}

/// The lower side of points that come from left to right.
fn chain(all: &[[f64; 2]], order: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for next in order {
        while let [.., a, b] = kept[..]
            && side(all[a], all[b], all[next]) <= 0.0
        {
            kept.pop();
        }
        kept.push(next);
    }
    kept
}

/// The triangles of the Delaunay triangulation, each three points in the order of the input, sorted
/// by the coordinates of their incentres.
///
/// # Errors
/// When fewer than three points are distinct, or all lie on a line.
pub fn delaunay(points: &Points) -> Result<Vec<[usize; 3]>, InspectError> {
    let all = points.all();
    let sites: Vec<delaunator::Point> = all
        .iter()
        .map(|p| delaunator::Point { x: p[0], y: p[1] })
        .collect();
    let corners = delaunator::triangulate(&sites).triangles;
    let mut triangles: Vec<[usize; 3]> = corners
        .chunks_exact(3)
        .map(|t| {
            let mut t = [t[0], t[1], t[2]];
            t.sort_unstable();
            t
        })
        .collect();
    if triangles.is_empty() {
        let (distinct, _) = points.distinct();
        return Err(too_few(distinct.len()));
    }
    triangles.sort_by(|a, b| {
        let [a, b] = [a, b].map(|t| incentre(t.map(|i| all[i])));
        a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1]))
    });
    Ok(triangles)
}

/// The centre of the circle within a triangle.
fn incentre([a, b, c]: [[f64; 2]; 3]) -> [f64; 2] {
    let [of_a, of_b, of_c] = [distance(b, c), distance(a, c), distance(a, b)];
    let around = of_a + of_b + of_c;
    [0, 1].map(|axis| (of_a * a[axis] + of_b * b[axis] + of_c * c[axis]) / around)
}

/// How far two points are apart.
pub fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// The area within a polygon that does not cross itself.
pub fn area(points: &Points, corners: &[usize]) -> f64 {
    let at = |i: usize| points.all()[corners[i % corners.len()]];
    let twice: f64 = (0..corners.len())
        .map(|i| at(i)[0] * at(i + 1)[1] - at(i + 1)[0] * at(i)[1])
        .sum();
    twice.abs() / 2.0
}

/// Whether a polygon has three corners or more, and its edges meet at these alone.
pub fn is_simple(points: &Points, corners: &[usize]) -> bool {
    let (all, count) = (points.all(), corners.len());
    let edge = |i: usize| [all[corners[i]], all[corners[(i + 1) % count]]];
    let apart = |i: usize, j: usize| j > i + 1 && !(i == 0 && j == count - 1);
    count >= 3
        && (0..count).all(|i| {
            (0..count).all(|j| !apart(i, j) || !cross(edge(i), edge(j)))
                // Neighbours may not lie on each other.
                && !folded(edge(i), edge((i + 1) % count)[1])
        })
}

/// Whether two edges have a point in common.
fn cross([a, b]: [[f64; 2]; 2], [c, d]: [[f64; 2]; 2]) -> bool {
    let sides = [side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)];
    if sides == [0.0; 4] {
        let overlap = |axis: usize| {
            let (low, high) = (a[axis].min(b[axis]), a[axis].max(b[axis]));
            low <= c[axis].max(d[axis]) && c[axis].min(d[axis]) <= high
        };
        return overlap(0) && overlap(1);
    }
    let apart = |x: f64, y: f64| (x > 0.0 && y > 0.0) || (x < 0.0 && y < 0.0);
    !apart(sides[0], sides[1]) && !apart(sides[2], sides[3])
}

/// Whether the way from the end of an edge to `c` goes back along it.
fn folded([a, b]: [[f64; 2]; 2], c: [f64; 2]) -> bool {
    let back = (c[0] - b[0]) * (a[0] - b[0]) + (c[1] - b[1]) * (a[1] - b[1]);
    side(a, b, c) == 0.0 && back > 0.0
}
