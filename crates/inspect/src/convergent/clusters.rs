//! Groups of units of both networks, by hierarchical spectral clustering.
//!
//! The units of both are the nodes of one graph whose edges weigh `|C_ij|`. A group is cut
//! in two where the second eigenvector of its normalised Laplacian
//! `I - D^(-1/2) S D^(-1/2)` is best split into two means (Shi and Malik 2000; Ng, Jordan and
//! Weiss 2001), and the group whose cut costs least (the least second eigenvalue) is cut next.

use faer::Mat;
use serde::Serialize;

use super::Correlations;
use crate::{InspectError, algebra};

/// Units that go together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// Units of the first network.
    pub a: Vec<usize>,
    /// Units of the second network.
    pub b: Vec<usize>,
    /// Mean absolute correlation of pairs inside; 1 for a unit alone.
    pub coherence: f64,
}

/// A group that may be cut.
struct Group {
    nodes: Vec<usize>,
    /// What a cut costs, and its two sides.
    cut: Option<(f64, Vec<usize>, Vec<usize>)>,
}

/// Cuts the units of both networks into `count` groups, the largest first; fewer where units
/// are fewer.
///
/// # Errors
/// When `count` is 0, or a decomposition fails.
pub fn clusters(c: &Correlations, count: usize) -> Result<Vec<Cluster>, InspectError> {
    if count == 0 {
        return Err(InspectError::settings("ask for at least one cluster"));
    }
    let nodes = (0..c.all.nrows()).collect();
    let mut groups = vec![group(c, nodes)?];
    while groups.len() < count {
        let cost = |g: &Group| g.cut.as_ref().map_or(f64::INFINITY, |cut| cut.0);
        let places = 0..groups.len();
        let next = places.min_by(|i, j| cost(&groups[*i]).total_cmp(&cost(&groups[*j])));
        let Some((at, (_, left, right))) = next.and_then(|at| Some((at, groups[at].cut.take()?)))
        else {
            break;
        };
        groups[at] = group(c, left)?;
        groups.push(group(c, right)?);
    }
    let n = c.a.live.len();
    let told = |g: &Group| {
        let of = |units: &[usize], from: usize, to: usize| {
            let inside = g.nodes.iter().filter(|i| (from..to).contains(*i));
            inside.map(|i| units[i - from]).collect::<Vec<usize>>()
        };
        Cluster {
            a: of(&c.a.live, 0, n),
            b: of(&c.b.live, n, c.all.nrows()),
            coherence: coherence(c, &g.nodes),
        }
    };
    let mut out: Vec<Cluster> = groups.iter().map(told).collect();
    out.sort_by_key(|c| std::cmp::Reverse(c.a.len() + c.b.len()));
    Ok(out)
}

fn coherence(c: &Correlations, nodes: &[usize]) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0usize);
    for (at, i) in nodes.iter().enumerate() {
        for j in &nodes[..at] {
            sum += c.all[(*i, *j)].abs();
            pairs += 1;
        }
    }
    if pairs == 0 { 1.0 } else { sum / pairs as f64 }
}

fn group(c: &Correlations, nodes: Vec<usize>) -> Result<Group, InspectError> {
    let n = nodes.len();
    if n < 2 {
        return Ok(Group { nodes, cut: None });
    }
    let weight = |i: usize, j: usize| c.all[(nodes[i], nodes[j])].abs();
    let degree = |i: usize| (0..n).map(|j| weight(i, j)).sum::<f64>();
    let scale: Vec<f64> = (0..n).map(|i| 1.0 / degree(i).sqrt()).collect();
    let laplacian = Mat::from_fn(n, n, |i, j| {
        f64::from(u8::from(i == j)) - scale[i] * weight(i, j) * scale[j]
    });
    let (values, vectors) = algebra::eigen(laplacian.as_ref())?;
    let place: Vec<f64> = (0..n).map(|i| vectors[(i, 1)] * scale[i]).collect();
    let (left, right) = two_means(&place);
    let nodes_of = |side: &[usize]| side.iter().map(|i| nodes[*i]).collect::<Vec<usize>>();
    let cut = Some((values[1], nodes_of(&left), nodes_of(&right)));
    Ok(Group { nodes, cut })
}

/// The split of numbers into two that have the least squares within: exact, by trying each
/// place in their order. Both sides have at least one.
fn two_means(x: &[f64]) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|i, j| x[*i].total_cmp(&x[*j]));
    let total: f64 = x.iter().sum();
    let (mut best, mut most, mut sum) = (1, f64::NEG_INFINITY, 0.0);
    for at in 1..x.len() {
        sum += x[order[at - 1]];
        let (left, right) = (at as f64, (x.len() - at) as f64);
        // What lies between the means; what is within is the rest.
        let between = sum * sum / left + (total - sum).powi(2) / right;
        if between > most {
            (best, most) = (at, between);
        }
    }
    let (mut left, mut right) = (order[..best].to_vec(), order[best..].to_vec());
    left.sort_unstable();
    right.sort_unstable();
    (left, right)
}
