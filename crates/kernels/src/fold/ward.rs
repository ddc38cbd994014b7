//! Token pooling as PyLate does it (Clavié, Chaffin, Adams 2024).
//!
//! The first row stays. Of the rest, `1 - <x, y>` is taken for the distance of two rows,
//! and clusters are joined by Ward's criterion (Ward 1963) in the form of Lance and
//! Williams (1967), where `s` are numbers of rows:
//!
//! ```text
//! d²(xy, z) = ((s_x + s_z) d²(x, z) + (s_y + s_z) d²(y, z) - s_z d²(x, y)) / (s_x + s_y + s_z)
//! ```
//!
//! until `max(n / factor, 1)` are left; joins as far apart as the last one count
//! too. Found with chains of nearest neighbours (Murtagh 1983): `O(n²)` time, and
//! `4 n²` bytes.

use crate::matmul_nt;

/// Rows at the start of a text that are kept as they are: PyLate's default, for the
/// mark of the model.
pub const PROTECTED: usize = 1;

/// Of rows that are not of length one, squared distances are cut here, so that no
/// sum of them is infinite.
const FARTHEST: f32 = 1e18;

/// The cluster of each of `rows` (`[n, dim]`), numbers below `n`.
pub(super) fn clusters(rows: &[f32], dim: usize, factor: usize) -> Vec<u32> {
    let n = rows.len() / dim;
    let protected = PROTECTED.min(n);
    let pooled = n - protected;
    let wanted = (pooled / factor).max(1);
    let mut parent: Vec<u32> = (0..n as u32).collect();
    if wanted >= pooled {
        return parent;
    }
    let mut joins = Tree::new(&rows[protected * dim..], dim).joins();
    joins.sort_by(|a, b| a.height.total_cmp(&b.height));
    // The last join that is needed, and those that are no higher.
    let height = joins[pooled - wanted - 1].height;
    for join in joins.iter().take_while(|j| j.height <= height) {
        let a = root(&mut parent, join.a + protected as u32);
        let b = root(&mut parent, join.b + protected as u32);
        parent[a.max(b) as usize] = a.min(b);
    }
    (0..n as u32).map(|i| root(&mut parent, i)).collect()
}

/// The first row of the cluster of a row.
fn root(parent: &mut [u32], mut i: u32) -> u32 {
    while parent[i as usize] != i {
        // Shortens the way for the next time.
        parent[i as usize] = parent[parent[i as usize] as usize];
        i = parent[i as usize];
    }
    i
}

/// Two clusters, each by one of its rows, that become one.
struct Join {
    a: u32,
    b: u32,
    /// Squared distance.
    height: f32,
}

/// Squared distances of clusters while they are joined.
struct Tree {
    n: usize,
    /// `[n, n]`; infinite with itself and with those that are gone.
    squares: Vec<f32>,
    /// Rows of each cluster; 0 when it is gone.
    sizes: Vec<f32>,
}

impl Tree {
    fn new(rows: &[f32], dim: usize) -> Self {
        let n = rows.len() / dim;
        let mut squares = vec![0.0; n * n];
        matmul_nt(&mut squares, rows, rows, n, n, dim, 1);
        squares
            .iter_mut()
            .for_each(|x| *x = (1.0 - *x).powi(2).min(FARTHEST));
        squares
            .iter_mut()
            .step_by(n + 1)
            .for_each(|x| *x = f32::INFINITY);
        Self {
            n,
            squares,
            sizes: vec![1.0; n],
        }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.squares[i * self.n..(i + 1) * self.n]
    }

    /// All joins, in the order in which chains find them.
    fn joins(mut self) -> Vec<Join> {
        let mut joins = Vec::with_capacity(self.n - 1);
        let mut chain: Vec<usize> = Vec::new();
        let mut first = 0;
        while joins.len() + 1 < self.n {
            if chain.is_empty() {
                while self.sizes[first] == 0.0 {
                    first += 1;
                }
                chain.push(first);
            }
            let end = chain[chain.len() - 1];
            let before = chain.len().checked_sub(2).map(|i| chain[i]);
            let next = self.nearest(end, before);
            if Some(next) == before {
                chain.truncate(chain.len() - 2);
                let (a, b) = (end.min(next), end.max(next));
                let height = self.row(a)[b];
                self.join(a, b);
                joins.push(Join {
                    a: a as u32,
                    b: b as u32,
                    height,
                });
            } else {
                chain.push(next);
            }
        }
        joins
    }

    /// The cluster nearest to `i`; of equals `preferred`, or the first.
    fn nearest(&self, i: usize, preferred: Option<usize>) -> usize {
        let row = self.row(i);
        let least = minimum(row);
        match preferred {
            Some(p) if row[p] <= least => p,
            // There is one: others are left.
            _ => row.iter().position(|&x| x <= least).unwrap_or(0),
        }
    }

    /// `b` takes `a` in, and `a` is gone.
    fn join(&mut self, a: usize, b: usize) {
        let n = self.n;
        let (sa, sb) = (self.sizes[a], self.sizes[b]);
        let between = self.row(a)[b];
        let (low, high) = self.squares.split_at_mut(b * n);
        let (of_a, of_b) = (&low[a * n..(a + 1) * n], &mut high[..n]);
        for ((to_b, &to_a), &s) in of_b.iter_mut().zip(of_a).zip(&self.sizes) {
            // Infinite with what is gone: it has the distance infinity to both.
            *to_b = ((sa + s) * to_a + (sb + s) * *to_b - s * between) / (sa + sb + s);
        }
        of_b[a] = f32::INFINITY;
        of_b[b] = f32::INFINITY;
        for i in 0..n {
            self.squares[i * n + b] = self.squares[b * n + i];
            self.squares[i * n + a] = f32::INFINITY;
        }
        self.squares[a * n..(a + 1) * n].fill(f32::INFINITY);
        self.sizes[a] = 0.0;
        self.sizes[b] = sa + sb;
    }
}

/// The least of some numbers; eight at a time, so that vector units can help.
fn minimum(numbers: &[f32]) -> f32 {
    let mut least = [f32::INFINITY; 8];
    let eights = numbers.chunks_exact(8);
    let rest = eights.remainder();
    for eight in eights {
        for (least, &x) in least.iter_mut().zip(eight) {
            *least = if x < *least { x } else { *least };
        }
    }
    let all = least.iter().chain(rest).copied();
    all.fold(f32::INFINITY, f32::min)
}
