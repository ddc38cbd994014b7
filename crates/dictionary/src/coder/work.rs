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
    /// Products of the rest with the atoms in use.
    pub(super) near: Vec<f32>,
    pub(super) block: Block,
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
            near: Vec::new(),
            block: Block::default(),
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
        self.block.len = 0;
    }
}

/// The Gram matrix of the atoms in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Block {
    /// `[stride, stride]`, of which `len` rows and columns are in use.
    numbers: Vec<f32>,
    stride: usize,
    len: usize,
}

impl Block {
    /// Takes in the atoms that are new in `active`; `gram` has rows of `n`. Those before must be
    /// the same as at the last call.
    pub(super) fn grow(&mut self, gram: &[f32], n: usize, active: &[u32]) {
        if active.len() > self.stride {
            self.stride = (2 * active.len()).max(16);
            self.numbers.clear();
            self.numbers.resize(self.stride * self.stride, 0.0);
            self.len = 0;
        }
        for i in self.len..active.len() {
            let row = &gram[active[i] as usize * n..][..n];
            for (j, other) in active[..=i].iter().enumerate() {
                let product = row[*other as usize];
                self.numbers[i * self.stride + j] = product;
                self.numbers[j * self.stride + i] = product;
            }
        }
        self.len = active.len();
    }

    /// All numbers, and those of a row.
    pub(super) fn rows(&self) -> (&[f32], usize) {
        (&self.numbers, self.stride)
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
