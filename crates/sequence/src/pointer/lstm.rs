//! A layer of long short-term memory (Hochreiter and Schmidhuber 1997) over several sequences at
//! once, with its gradient.
//!
//! ```text
//! i, f, o = σ(W_ih x + b_ih + W_hh h + b_hh)      g = tanh(of its own part)
//! c ← f c + i g                                   h ← o tanh(c)
//! ```
//!
//! Sequences stand in the order of their lengths, the longest first: step `t` is a matrix of the
//! `counts[t]` sequences that are that long, one row each, and all steps stand one after the
//! other. Nothing is padded.

use std::ops::Range;

use keyfold_kernels::learn::add_columns;
use keyfold_kernels::{Matrix, add_bias, product, sigmoid, tanh};

/// The weights of a layer, as PyTorch stores them: gates in the order i, f, g, o.
pub(super) struct Lstm<'a> {
    pub(super) input_size: usize,
    pub(super) hidden_size: usize,
    /// `[4 H, input_size]`.
    pub(super) weight_ih: &'a [f32],
    /// `[4 H, H]`.
    pub(super) weight_hh: &'a [f32],
    /// `[4 H]`.
    pub(super) bias_ih: &'a [f32],
    /// `[4 H]`.
    pub(super) bias_hh: &'a [f32],
}

/// What a run leaves for the backward pass.
pub(super) struct Tape {
    counts: Vec<usize>,
    /// States before the first step, `[counts[0], H]`.
    first_hidden: Vec<f32>,
    first_cell: Vec<f32>,
    /// After the functions, `[rows, 4 H]`.
    gates: Vec<f32>,
    /// `[rows, H]`.
    cells: Vec<f32>,
    /// tanh of the cells.
    cell_tanh: Vec<f32>,
    /// The results, `[rows, H]`.
    pub(super) hidden: Vec<f32>,
    h: usize,
}

/// The gradients of a run. Both biases have the same.
pub(super) struct LstmGradient {
    pub(super) weight_ih: Vec<f32>,
    pub(super) weight_hh: Vec<f32>,
    pub(super) bias: Vec<f32>,
    /// By the states before the first step.
    pub(super) first_hidden: Vec<f32>,
    pub(super) first_cell: Vec<f32>,
    /// By the inputs of the first step, `[counts[0], input_size]`.
    pub(super) first_input: Vec<f32>,
}

impl Tape {
    /// Rows of step `t`.
    fn rows(&self, t: usize) -> Range<usize> {
        let from: usize = self.counts[..t].iter().sum();
        from..from + self.counts[t]
    }

    fn last_rows(&self) -> Range<usize> {
        let t = self.counts.len().saturating_sub(1);
        let rows = self.rows(t);
        rows.start * self.h..rows.end * self.h
    }

    /// The results of the last step.
    pub(super) fn last_hidden(&self) -> &[f32] {
        &self.hidden[self.last_rows()]
    }

    /// The cells after the last step.
    pub(super) fn last_cell(&self) -> &[f32] {
        &self.cells[self.last_rows()]
    }

    /// The results before each row, `[rows, H]`.
    fn hidden_before(&self) -> Vec<f32> {
        let mut before = Vec::with_capacity(self.hidden.len());
        for (t, count) in self.counts.iter().enumerate() {
            let source = match t.checked_sub(1) {
                None => &self.first_hidden[..],
                Some(t) => &self.hidden[self.rows(t).start * self.h..],
            };
            before.extend_from_slice(&source[..count * self.h]);
        }
        before
    }
}

impl Lstm<'_> {
    /// Runs over inputs `[rows, input_size]` from states `[counts[0], H]`.
    pub(super) fn run(
        &self,
        inputs: &[f32],
        counts: &[usize],
        first_hidden: Vec<f32>,
        first_cell: Vec<f32>,
    ) -> Tape {
        let h = self.hidden_size;
        let rows: usize = counts.iter().sum();
        let mut gates = vec![0.0; rows * 4 * h];
        let of_input = Matrix::new(self.weight_ih, self.input_size).t();
        let inputs = Matrix::new(inputs, self.input_size);
        product(&mut gates, 4 * h, inputs, of_input, 1.0, false, 1);
        add_bias(&mut gates, self.bias_ih);
        add_bias(&mut gates, self.bias_hh);
        let mut tape = Tape {
            counts: counts.to_vec(),
            first_hidden,
            first_cell,
            gates,
            cells: vec![0.0; rows * h],
            cell_tanh: Vec::new(),
            hidden: vec![0.0; rows * h],
            h,
        };
        tape.cell_tanh = tape.cells.clone();
        for t in 0..counts.len() {
            self.step(&mut tape, t);
        }
        tape
    }

    fn step(&self, tape: &mut Tape, t: usize) {
        let h = self.hidden_size;
        let rows = tape.rows(t);
        let count = rows.len();
        let (done, here) = tape.hidden.split_at_mut(rows.start * h);
        let (cells_done, cells) = tape.cells.split_at_mut(rows.start * h);
        let (before, cells_before) = match t.checked_sub(1) {
            None => (&tape.first_hidden[..], &tape.first_cell[..]),
            Some(last) => {
                let from = (rows.start - tape.counts[last]) * h;
                (&done[from..], &cells_done[from..])
            }
        };
        let gates = &mut tape.gates[rows.start * 4 * h..rows.end * 4 * h];
        let before = Matrix::strided(before, count, h, h);
        let of_hidden = Matrix::new(self.weight_hh, h).t();
        product(gates, 4 * h, before, of_hidden, 1.0, true, 1);
        let tanhs = &mut tape.cell_tanh[rows.start * h..rows.end * h];
        for (row, gates) in gates.chunks_exact_mut(4 * h).enumerate() {
            sigmoid(&mut gates[..2 * h]);
            tanh(&mut gates[2 * h..3 * h]);
            sigmoid(&mut gates[3 * h..]);
            let at = row * h..(row + 1) * h;
            let (i, rest) = gates.split_at(h);
            let (f, rest) = rest.split_at(h);
            let (g, o) = rest.split_at(h);
            let cells = &mut cells[at.clone()];
            let old = &cells_before[at.clone()];
            for (k, cell) in cells.iter_mut().enumerate() {
                *cell = f[k] * old[k] + i[k] * g[k];
            }
            let tanhs = &mut tanhs[at.clone()];
            tanhs.copy_from_slice(cells);
            tanh(tanhs);
            for (k, out) in here[at].iter_mut().enumerate() {
                *out = o[k] * tanhs[k];
            }
        }
    }

    /// Gradients of a run over `inputs`, from those by its results (`[rows, H]`) and by the
    /// states after the last step (`[last count, H]`).
    pub(super) fn backward(
        &self,
        tape: &Tape,
        inputs: &[f32],
        mut by_hidden: Vec<f32>,
        by_last: Option<(&[f32], &[f32])>,
    ) -> LstmGradient {
        let (h, d) = (self.hidden_size, self.input_size);
        let first = tape.counts.first().copied().unwrap_or(0);
        let mut by_gates = vec![0.0; tape.gates.len()];
        let mut by_cell = vec![0.0; first * h];
        if let Some((hidden, cell)) = by_last {
            keyfold_kernels::add_assign(&mut by_hidden[tape.last_rows()], hidden);
            by_cell[..cell.len()].copy_from_slice(cell);
        }
        let mut by_first_hidden = vec![0.0; first * h];
        for t in (0..tape.counts.len()).rev() {
            let rows = tape.rows(t);
            cell_backward(
                tape,
                t,
                &by_hidden[rows.start * h..rows.end * h],
                &mut by_cell,
                &mut by_gates[rows.start * 4 * h..rows.end * 4 * h],
            );
            let target = match t.checked_sub(1) {
                None => &mut by_first_hidden[..],
                Some(last) => &mut by_hidden[(rows.start - tape.counts[last]) * h..],
            };
            let gates = &by_gates[rows.start * 4 * h..rows.end * 4 * h];
            let of_hidden = Matrix::new(self.weight_hh, h);
            product(
                target,
                h,
                Matrix::new(gates, 4 * h),
                of_hidden,
                1.0,
                true,
                1,
            );
        }
        let gates = Matrix::new(&by_gates, 4 * h);
        let times = |other: &[f32], width: usize| {
            let mut out = vec![0.0; 4 * h * width];
            let other = Matrix::new(other, width);
            product(&mut out, width, gates.t(), other, 1.0, false, 1);
            out
        };
        let mut bias = vec![0.0; 4 * h];
        add_columns(&mut bias, &by_gates);
        let mut first_input = vec![0.0; first * d];
        let of_input = Matrix::new(self.weight_ih, d);
        product(
            &mut first_input,
            d,
            gates.rows(0..first),
            of_input,
            1.0,
            false,
            1,
        );
        LstmGradient {
            weight_ih: times(inputs, d),
            weight_hh: times(&tape.hidden_before(), h),
            bias,
            first_hidden: by_first_hidden,
            first_cell: by_cell,
            first_input,
        }
    }
}

/// Through the functions of step `t`: gradients by the sums before them, and by the cells before
/// the step, which take the place of those after it.
fn cell_backward(
    tape: &Tape,
    t: usize,
    by_hidden: &[f32],
    by_cell: &mut [f32],
    by_gates: &mut [f32],
) {
    let h = tape.h;
    let rows = tape.rows(t);
    let before = match t.checked_sub(1) {
        None => &tape.first_cell[..],
        Some(last) => &tape.cells[(rows.start - tape.counts[last]) * h..],
    };
    let gates = &tape.gates[rows.start * 4 * h..rows.end * 4 * h];
    let tanhs = &tape.cell_tanh[rows.start * h..rows.end * h];
    for (row, (gates, by_gates)) in gates
        .chunks_exact(4 * h)
        .zip(by_gates.chunks_exact_mut(4 * h))
        .enumerate()
    {
        let at = row * h..(row + 1) * h;
        let (tanhs, by_hidden) = (&tanhs[at.clone()], &by_hidden[at.clone()]);
        let (before, by_cell) = (&before[at.clone()], &mut by_cell[at]);
        let (i, rest) = gates.split_at(h);
        let (f, rest) = rest.split_at(h);
        let (g, o) = rest.split_at(h);
        let (by_i, rest) = by_gates.split_at_mut(h);
        let (by_f, rest) = rest.split_at_mut(h);
        let (by_g, by_o) = rest.split_at_mut(h);
        for k in 0..h {
            let by_c = by_cell[k] + by_hidden[k] * o[k] * (1.0 - tanhs[k] * tanhs[k]);
            by_i[k] = by_c * g[k] * i[k] * (1.0 - i[k]);
            by_f[k] = by_c * before[k] * f[k] * (1.0 - f[k]);
            by_g[k] = by_c * i[k] * (1.0 - g[k] * g[k]);
            by_o[k] = by_hidden[k] * tanhs[k] * o[k] * (1.0 - o[k]);
            by_cell[k] = by_c * f[k];
        }
    }
}
