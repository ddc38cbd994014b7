//! What coding a row needs, kept from row to row.

/// Scratch of one thread.
pub(super) struct Work {
    pub(super) products: Vec<f32>,
    /// Products of the row with all atoms, before anything is in use.
    pub(super) given: Vec<f32>,
    pub(super) sizes: Vec<f32>,
    /// Rows of as many numbers as there are atoms.
    pub(super) table: Vec<f32>,
    /// Atoms in use, in the order in which they came.
    pub(super) active: Vec<u32>,
    /// Whether an atom is in use.
    pub(super) used: Vec<bool>,
    pub(super) values: Vec<f32>,
    pub(super) factors: Vec<f32>,
    pub(super) triangle: Triangle,
}

impl Work {
    pub(super) fn new(n_components: usize) -> Self {
        Self {
            products: Vec::new(),
            given: Vec::new(),
            sizes: Vec::new(),
            table: Vec::new(),
            active: Vec::new(),
            used: vec![false; n_components],
            values: Vec::new(),
            factors: Vec::new(),
            triangle: Triangle::default(),
        }
    }

    /// Forgets the last row; `given` are the products of the next.
    pub(super) fn begin(&mut self, given: &[f32]) {
        self.given.clear();
        self.given.extend_from_slice(given);
        self.reset();
    }

    /// Forgets the last row.
    pub(super) fn reset(&mut self) {
        self.active
            .iter()
            .for_each(|a| self.used[*a as usize] = false);
        self.active.clear();
        self.values.clear();
        self.factors.clear();
        self.triangle.clear();
    }
}

/// A lower triangle, row by row: the Cholesky factor of a Gram matrix that grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Triangle {
    numbers: Vec<f64>,
    rows: usize,
}

impl Triangle {
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
        self.rows = 0;
    }

    pub(super) fn row(&self, i: usize) -> &[f64] {
        &self.numbers[i * (i + 1) / 2..][..=i]
    }

    /// Appends a row whose products with those before it are `products`, with its own
    /// last; false, and nothing done, where it depends on those before.
    pub(super) fn push(&mut self, products: impl Iterator<Item = f64>) -> bool {
        let start = self.numbers.len();
        self.numbers.extend(products);
        let own = self.numbers[start + self.rows];
        let mut rest = own;
        for i in 0..self.rows {
            let (before, new) = self.numbers.split_at_mut(start);
            let row = &before[i * (i + 1) / 2..][..=i];
            let sum: f64 = row[..i].iter().zip(&*new).map(|(a, b)| a * b).sum();
            new[i] = (new[i] - sum) / row[i];
            rest -= new[i] * new[i];
        }
        if rest.is_nan() || rest <= 1e-6 * own {
            self.numbers.truncate(start);
            return false;
        }
        self.numbers[start + self.rows] = rest.sqrt();
        self.rows += 1;
        true
    }

    /// Solves `L Lᵀ x = b` in place.
    pub(super) fn solve(&self, b: &mut [f64]) {
        for i in 0..self.rows {
            let row = self.row(i);
            let sum: f64 = row[..i].iter().zip(&*b).map(|(a, b)| a * b).sum();
            b[i] = (b[i] - sum) / row[i];
        }
        for i in (0..self.rows).rev() {
            let row = self.row(i);
            b[i] /= row[i];
            let x = b[i];
            b[..i].iter_mut().zip(row).for_each(|(b, l)| *b -= l * x);
        }
    }
}

/// The place of the number largest in absolute value, or largest of all when `positive`;
/// the first of equal ones. Eight at a time, as the compiler makes vectors of it.
pub(super) fn largest(numbers: &[f32], positive: bool) -> usize {
    let size = |x: f32| if positive { x } else { x.abs() };
    let mut most = [f32::NEG_INFINITY; 16];
    let (blocks, rest) = numbers.as_chunks::<16>();
    for block in blocks {
        for (most, x) in most.iter_mut().zip(block) {
            let x = size(*x);
            *most = if x > *most { x } else { *most };
        }
    }
    let rest = rest.iter().map(|x| size(*x));
    let most = most
        .into_iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, f32::max);
    numbers.iter().position(|x| size(*x) == most).unwrap_or(0)
}
