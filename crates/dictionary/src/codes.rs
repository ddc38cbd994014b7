//! Sparse codes: for each row the atoms that it uses, and how much.

use keyfold_kernels as kernels;

/// Codes of rows, row after row.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    n_components: usize,
    /// Where each row begins; one more than rows.
    starts: Vec<usize>,
    atoms: Vec<u32>,
    values: Vec<f32>,
}

impl Codes {
    /// No rows yet, over this many atoms.
    pub fn new(n_components: usize) -> Self {
        Self {
            n_components,
            starts: vec![0],
            atoms: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The numbers that are not 0 of dense codes `[rows, n_components]`.
    ///
    /// # Panics
    /// When `dense` is no whole number of rows.
    pub fn from_dense(dense: &[f32], n_components: usize) -> Self {
        assert!(
            dense.len().is_multiple_of(n_components.max(1)),
            "codes are no whole rows"
        );
        let mut codes = Self::new(n_components);
        for row in dense.chunks_exact(n_components.max(1)) {
            let pairs = row.iter().enumerate().filter(|(_, x)| **x != 0.0);
            codes.push(pairs.map(|(j, x)| (j as u32, *x)));
        }
        codes
    }

    /// Appends a row; what is 0 is left out.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = (u32, f32)>) {
        for (atom, value) in row {
            if value != 0.0 {
                self.atoms.push(atom);
                self.values.push(value);
            }
        }
        self.starts.push(self.atoms.len());
    }

    /// Appends the rows of another.
    pub(crate) fn append(&mut self, other: &Self) {
        let before = self.atoms.len();
        self.starts
            .extend(other.starts[1..].iter().map(|s| s + before));
        self.atoms.extend_from_slice(&other.atoms);
        self.values.extend_from_slice(&other.values);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of atoms that a code may use.
    pub fn n_components(&self) -> usize {
        self.n_components
    }

    /// Atoms and values of row `i`.
    ///
    /// # Panics
    /// Past the last row.
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = self.starts[i]..self.starts[i + 1];
        (&self.atoms[range.clone()], &self.values[range])
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        (0..self.len()).map(|i| self.row(i))
    }

    /// Mutable values, as the atoms lie; for learners that change codes in place.
    pub(crate) fn value_mut(&mut self, i: usize, place: usize) -> &mut f32 {
        &mut self.values[self.starts[i] + place]
    }

    /// Atoms in use over all rows.
    pub fn non_zeros(&self) -> usize {
        self.values.len()
    }

    /// Atoms in use per row, in the mean.
    pub fn mean_active(&self) -> f64 {
        self.non_zeros() as f64 / self.len().max(1) as f64
    }

    /// Sum of the absolute values.
    pub fn l1(&self) -> f64 {
        self.values.iter().map(|x| f64::from(x.abs())).sum()
    }

    /// In how many rows each atom is used.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.n_components];
        self.atoms.iter().for_each(|a| uses[*a as usize] += 1);
        uses
    }

    /// All numbers, `[rows, n_components]`.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.len() * self.n_components];
        for (row, (atoms, values)) in dense
            .chunks_exact_mut(self.n_components.max(1))
            .zip(self.iter())
        {
            for (atom, value) in atoms.iter().zip(values) {
                row[*atom as usize] = *value;
            }
        }
        dense
    }

    /// Twice as many atoms: what is negative becomes positive at the atom's number plus
    /// `n_components`.
    pub fn split_sign(mut self) -> Self {
        let n = self.n_components as u32;
        for (atom, value) in self.atoms.iter_mut().zip(&mut self.values) {
            if *value < 0.0 {
                *atom += n;
                *value = -*value;
            }
        }
        self.n_components *= 2;
        self
    }

    /// The rows that the codes stand for: `codes · components`, `[rows, width]`.
    ///
    /// # Panics
    /// When `components` is not `[n_components, width]`.
    pub fn decode(&self, components: &[f32], width: usize) -> Vec<f32> {
        assert_eq!(
            components.len(),
            self.n_components * width,
            "shape of the components"
        );
        let mut rows = vec![0.0; self.len() * width];
        for (row, (atoms, values)) in rows.chunks_exact_mut(width.max(1)).zip(self.iter()) {
            kernels::gather_add(row, components, atoms, values);
        }
        rows
    }
}
