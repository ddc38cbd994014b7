//! Gradients of sparse autoencoders, by hand.
//!
//! Of all codes few are in use, so a row's part of a gradient is made for those alone: the
//! encoder's product is the only dense one of a step, the rest costs `d` for each code in
//! use. Parts are gathered by code, so that threads share no gradient. While many codes are in
//! use, as at the start of training, dense products are faster and are made instead.

use keyfold_kernels as kernels;
use rayon::prelude::*;

/// Parts of all codes from which on dense products are faster.
const DENSE: f64 = 0.1;

pub(super) fn is_dense(parts: usize, rows: usize, codes: usize) -> bool {
    parts as f64 > DENSE * rows as f64 * codes as f64
}

/// Codes of a batch that take part, row after row: those in use, and those near a
/// threshold.
#[derive(Debug, Clone, Default)]
pub(super) struct Active {
    /// Where each row begins; one more than rows.
    starts: Vec<usize>,
    pub(super) codes: Vec<u32>,
    /// What goes to the decoder.
    pub(super) values: Vec<f32>,
    /// The encoder's product.
    pub(super) products: Vec<f32>,
}

impl Active {
    pub(super) fn new() -> Self {
        Self {
            starts: vec![0],
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, code: u32, value: f32, product: f32) {
        self.codes.push(code);
        self.values.push(value);
        self.products.push(product);
    }

    pub(super) fn end_row(&mut self) {
        self.starts.push(self.codes.len());
    }

    /// Appends the rows of another.
    pub(super) fn append(&mut self, other: &Self) {
        let before = self.codes.len();
        self.starts
            .extend(other.starts[1..].iter().map(|s| s + before));
        self.codes.extend_from_slice(&other.codes);
        self.values.extend_from_slice(&other.values);
        self.products.extend_from_slice(&other.products);
    }

    fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Adds `values · table` to every row of `out`.
    pub(super) fn decode(&self, out: &mut [f32], table: &[f32], width: usize) {
        let d_sae = table.len() / width;
        if is_dense(self.codes.len(), self.rows(), d_sae) {
            let mut dense = vec![0.0; self.rows() * d_sae];
            for (row, range) in dense.chunks_exact_mut(d_sae).zip(self.starts.windows(2)) {
                for place in range[0]..range[1] {
                    row[self.codes[place] as usize] = self.values[place];
                }
            }
            let (dense, table) = (
                kernels::Matrix::new(&dense, d_sae),
                kernels::Matrix::new(table, width),
            );
            let threads = rayon::current_num_threads();
            return kernels::product(out, width, dense, table, 1.0, true, threads);
        }
        let rows = out.par_chunks_exact_mut(width).enumerate();
        rows.for_each(|(i, out)| {
            let range = self.starts[i]..self.starts[i + 1];
            let values = &self.values[range.clone()];
            kernels::gather_add(out, table, &self.codes[range], values);
        });
    }

    /// For each part the product of its row of `rows` with its code's row of `table`.
    pub(super) fn dots(&self, rows: &[f32], table: &[f32], width: usize) -> Vec<f32> {
        let d_sae = table.len() / width;
        if is_dense(self.codes.len(), self.rows(), d_sae) {
            let mut all = vec![0.0; self.rows() * d_sae];
            let threads = rayon::current_num_threads();
            kernels::matmul_nt(&mut all, rows, table, self.rows(), d_sae, width, threads);
            let rows = all.chunks_exact(d_sae).zip(self.starts.windows(2));
            let picked = rows.flat_map(|(row, range)| {
                self.codes[range[0]..range[1]]
                    .iter()
                    .map(|j| row[*j as usize])
            });
            return picked.collect();
        }
        let rows = rows.par_chunks_exact(width).enumerate();
        let parts: Vec<Vec<f32>> = rows
            .map(|(i, row)| {
                let codes = &self.codes[self.starts[i]..self.starts[i + 1]];
                let mut dots = vec![0.0; codes.len()];
                kernels::gather_dots(&mut dots, table, codes, row);
                dots
            })
            .collect();
        parts.concat()
    }

    /// The parts by code.
    pub(super) fn by_code(&self, d_sae: usize) -> ByCode {
        let mut starts = vec![0; d_sae + 1];
        self.codes.iter().for_each(|j| starts[*j as usize + 1] += 1);
        for j in 0..d_sae {
            starts[j + 1] += starts[j];
        }
        let mut next = starts.clone();
        let mut rows = vec![0; self.codes.len()];
        let mut places = vec![0; self.codes.len()];
        for (i, range) in self.starts.windows(2).enumerate() {
            for place in range[0]..range[1] {
                let at = &mut next[self.codes[place] as usize];
                (rows[*at], places[*at]) = (i as u32, place);
                *at += 1;
            }
        }
        ByCode {
            starts,
            rows,
            places,
        }
    }
}

/// For each code the rows that use it.
#[derive(Debug, Clone)]
pub(super) struct ByCode {
    starts: Vec<usize>,
    rows: Vec<u32>,
    /// Where in [`Active`] the part is.
    places: Vec<usize>,
}

impl ByCode {
    /// The places of one code's parts.
    pub(super) fn places(&self, code: usize) -> &[usize] {
        &self.places[self.starts[code]..self.starts[code + 1]]
    }

    /// Adds to each code's row of `out` (`[d_sae, width]`) the sum of its factors times
    /// rows of `table` (`[rows, width]`).
    pub(super) fn gather(&self, out: &mut [f32], table: &[f32], factors: &[f32], width: usize) {
        let (rows, d_sae) = (table.len() / width, out.len() / width);
        if is_dense(self.rows.len(), rows, d_sae) {
            let mut dense = vec![0.0; rows * d_sae];
            for j in 0..d_sae {
                let range = self.starts[j]..self.starts[j + 1];
                for (row, place) in self.rows[range.clone()].iter().zip(&self.places[range]) {
                    dense[*row as usize * d_sae + j] = factors[*place];
                }
            }
            let (dense, table) = (
                kernels::Matrix::new(&dense, d_sae),
                kernels::Matrix::new(table, width),
            );
            let threads = rayon::current_num_threads();
            return kernels::product(out, width, dense.t(), table, 1.0, true, threads);
        }
        let codes = out.par_chunks_exact_mut(width).enumerate();
        codes.for_each(|(j, out)| {
            let factors: Vec<f32> = self.places(j).iter().map(|p| factors[*p]).collect();
            let rows = &self.rows[self.starts[j]..self.starts[j + 1]];
            kernels::gather_add(out, table, rows, &factors);
        });
    }

    /// The sum of each code's factors.
    pub(super) fn sums(&self, factors: &[f32]) -> Vec<f32> {
        let codes = 0..self.starts.len() - 1;
        codes
            .map(|j| self.places(j).iter().map(|p| factors[*p]).sum())
            .collect()
    }
}
