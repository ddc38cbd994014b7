//! Gradients of the scan of Mamba-2, chunk by chunk from the last.
//!
//! With the names of the forward scan, `dS` the gradient of the state after the chunk,
//! `w = exp(l_q - l)`, `Λ_ij = exp(l_i - l_j)` for `i >= j`:
//!
//! ```text
//! dM = dY Xᵀ where i >= j      dX = Mᵀ dY + w B dSᵀ       E = dM M
//! dC = (dM Λ) B + exp(l) dY S         dB = (dM Λ)ᵀ C + w X dS
//! dl = rows(E) - columns(E) + exp(l) dY·(C Sᵀ) - v,       v = w X·(B dSᵀ)
//! dl_q += Σ v + exp(l_q) dS·S         da_t = Σ_{i>=t} dl_i
//! dΔ_t = A da_t + x_t · dX_t          dA = Σ_t Δ_t da_t   dx = Δ dX + D dY
//! dS before the chunk = exp(l_q) dS + (exp(l) dY)ᵀ C
//! ```
//!
//! Only the states before chunks are kept; all else is made once more.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::ssd::{Decays, Ssd, SsdShape, scaled};
use super::{Rows, Shared, SharedGradients, share};
use crate::Team;
use crate::matmul::{Matrix, product};

/// Gradients of what an [`Ssd`] reads, in its shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct SsdGradients {
    /// `[L, H P]`.
    pub x: Vec<f32>,
    /// `[L, H]`.
    pub dt: Vec<f32>,
    /// `[H]`.
    pub a: Vec<f32>,
    /// `[L, G N]`.
    pub b: Vec<f32>,
    /// `[L, G N]`.
    pub c: Vec<f32>,
    /// As `d`; empty where there is none.
    pub d: Vec<f32>,
}

/// Gradients from `dout` `[L, H P]`. `state` is the one before the first token; `dstate`
/// `[H, P, N]` holds the gradient of the state after the last (zeros if nothing reads it) and
/// afterwards that of `state`.
///
/// # Panics
/// When a shape does not fit or `chunk` is 0.
pub fn ssd_scan_backward(
    inputs: &Ssd,
    chunk: usize,
    state: &[f32],
    dout: &[f32],
    dstate: &mut [f32],
    team: &Team,
) -> SsdGradients {
    let shape = inputs.shape();
    let SsdShape { len, heads, .. } = shape;
    let per_head = shape.width * shape.states;
    assert!(chunk > 0, "ssd_scan_backward: chunks of no tokens");
    assert_eq!(state.len(), heads * per_head, "ssd_scan_backward: state");
    assert_eq!(dstate.len(), heads * per_head, "ssd_scan_backward: dstate");
    assert_eq!(
        dout.len(),
        len * heads * shape.width,
        "ssd_scan_backward: dout"
    );
    let mut out = SsdGradients {
        x: vec![0.0; dout.len()],
        dt: vec![0.0; len * heads],
        a: vec![0.0; heads],
        b: vec![0.0; len * inputs.b.width()],
        c: vec![0.0; len * inputs.b.width()],
        d: vec![0.0; inputs.d.map_or(0, <[f32]>::len)],
    };
    let parts = team.threads();
    // Heads of a group share b and c: each thread has sums of its own.
    let sums: Vec<Mutex<[Vec<f32>; 2]>> = (0..parts).map(|_| Mutex::default()).collect();
    let d_per_head = out.d.len() / heads;
    let shared = SharedGradients {
        x: Shared::new(&mut out.x),
        dt: Shared::new(&mut out.dt),
        a: Shared::new(&mut out.a),
        d: Shared::new(&mut out.d),
        state: Shared::new(dstate),
    };
    let dout = Rows::new(dout, heads * shape.width);
    team.run(|part| {
        let zeros = || vec![0.0; len * inputs.b.width()];
        let mut own_sums = [zeros(), zeros()];
        let mut work = Work::new(shape, chunk);
        for head in share(heads, part, parts) {
            let state = &state[head * per_head..][..per_head];
            // SAFETY: shares of heads do not overlap.
            let [da, dd, dstate] = unsafe {
                [
                    shared.a.slice(head, 1),
                    shared.d.slice(head * d_per_head, d_per_head),
                    shared.state.slice(head * per_head, per_head),
                ]
            };
            work.starts(inputs, chunk, head, state);
            for first in (0..len).step_by(chunk).rev() {
                let tokens = first..(first + chunk).min(len);
                let (dx, ddt) = work.chunk(
                    inputs,
                    head,
                    tokens.clone(),
                    chunk,
                    dout,
                    dstate,
                    &mut own_sums,
                    da,
                    dd,
                );
                for (t, dx) in tokens.clone().zip(dx.chunks_exact(shape.width)) {
                    // SAFETY: as above.
                    unsafe {
                        let at = (t * heads + head) * shape.width;
                        shared.x.slice(at, shape.width).copy_from_slice(dx);
                        shared.dt.slice(t * heads + head, 1)[0] = ddt[t - first];
                    }
                }
            }
        }
        *sums[part].lock().unwrap_or_else(PoisonError::into_inner) = own_sums;
    });
    for sums in sums {
        let [b, c] = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        crate::add_assign(&mut out.b, &b);
        crate::add_assign(&mut out.c, &c);
    }
    out
}

/// Room for a chunk of a head.
struct Work {
    shape: SsdShape,
    decays: Decays,
    /// States before every chunk.
    starts: Vec<f32>,
    between: Vec<f32>,
    gram: Vec<f32>,
    dm: Vec<f32>,
    /// `X`, and its gradient.
    xs: Vec<f32>,
    dxs: Vec<f32>,
    dy: Vec<f32>,
    /// `[q, P]`.
    read: Vec<f32>,
    /// `[q, N]`.
    states: Vec<f32>,
    dl: Vec<f64>,
    ddt: Vec<f32>,
}

impl Work {
    fn new(shape: SsdShape, chunk: usize) -> Self {
        let q = chunk.min(shape.len);
        let (square, wide) = (vec![0.0; q * q], vec![0.0; q * shape.width]);
        Self {
            shape,
            decays: Decays::default(),
            starts: Vec::new(),
            between: square.clone(),
            gram: square.clone(),
            dm: square,
            xs: wide.clone(),
            dxs: wide.clone(),
            dy: wide.clone(),
            read: wide,
            states: vec![0.0; q * shape.states],
            dl: vec![0.0; q],
            ddt: vec![0.0; q],
        }
    }

    /// Makes the states before every chunk.
    fn starts(&mut self, inputs: &Ssd, chunk: usize, head: usize, state: &[f32]) {
        let SsdShape {
            len,
            width,
            states: n,
            ..
        } = self.shape;
        let mut state = state.to_vec();
        self.starts.clear();
        for first in (0..len).step_by(chunk) {
            self.starts.extend_from_slice(&state);
            let part = inputs.tokens(first..(first + chunk).min(len));
            let [x, b, _] = part.head(self.shape, head);
            self.decays.fill(part.dt, head, part.a[head]);
            let xs = &mut self.xs[..part.x.len() * width];
            scaled(xs, x, |t| part.dt.row(t)[head] * self.decays.to_end[t]);
            state.iter_mut().for_each(|s| *s *= self.decays.whole);
            let written = Matrix::new(xs, width).t();
            product(&mut state, n, written, b.matrix(), 1.0, true, 1);
        }
    }

    /// Gradients of one chunk of a head: those of x and dt; the others are added to what is
    /// handed over.
    #[allow(clippy::too_many_arguments)]
    fn chunk(
        &mut self,
        inputs: &Ssd,
        head: usize,
        tokens: Range<usize>,
        chunk: usize,
        dout: Rows,
        dstate: &mut [f32],
        sums: &mut [Vec<f32>; 2],
        da: &mut [f32],
        dd: &mut [f32],
    ) -> (&[f32], &[f32]) {
        let shape = self.shape;
        let SsdShape {
            width, states: n, ..
        } = shape;
        let q = tokens.len();
        let part = inputs.tokens(tokens.clone());
        let [x, b, c] = part.head(shape, head);
        let dy_rows = dout
            .part(tokens.clone())
            .narrow(head * width..(head + 1) * width);
        let start = &self.starts[tokens.start / chunk * width * n..][..width * n];
        let decays = &mut self.decays;
        decays.fill(part.dt, head, part.a[head]);
        let (between, gram, dm) = (
            &mut self.between[..q * q],
            &mut self.gram[..q * q],
            &mut self.dm[..q * q],
        );
        decays.between(between);
        product(gram, q, c.matrix(), b.matrix().t(), 1.0, false, 1);
        let (xs, dxs) = (&mut self.xs[..q * width], &mut self.dxs[..q * width]);
        let (dy, read) = (&mut self.dy[..q * width], &mut self.read[..q * width]);
        let states = &mut self.states[..q * n];
        let dl = &mut self.dl[..q];
        scaled(xs, x, |t| part.dt.row(t)[head]);
        scaled(dy, dy_rows, |_| 1.0);
        let per_group = shape.heads / shape.groups;
        let columns = head / per_group * n..(head / per_group + 1) * n;
        let step = shape.groups * n;

        // Through M.
        product(
            dm,
            q,
            Matrix::new(dy, width),
            Matrix::new(xs, width).t(),
            1.0,
            false,
            1,
        );
        dl.fill(0.0);
        for i in 0..q {
            for j in 0..=i {
                let at = i * q + j;
                let e = f64::from(dm[at] * between[at] * gram[at]);
                dl[i] += e;
                dl[j] -= e;
            }
        }
        // From here on dm holds dM Λ and gram holds M.
        for ((dm, gram), between) in dm.iter_mut().zip(gram.iter_mut()).zip(&*between) {
            *dm *= between;
            *gram *= between;
        }
        product(
            dxs,
            width,
            Matrix::new(gram, q).t(),
            Matrix::new(dy, width),
            1.0,
            false,
            1,
        );

        // Through the state after the chunk.
        let dstate_matrix = Matrix::new(dstate, n);
        product(read, width, b.matrix(), dstate_matrix.t(), 1.0, false, 1);
        let mut at_end = 0.0;
        for (t, dl) in dl.iter_mut().enumerate() {
            let row = t * width..(t + 1) * width;
            let w = decays.to_end[t];
            let v = f64::from(w * crate::dot(&xs[row.clone()], &read[row.clone()]));
            *dl -= v;
            at_end += v;
            for (dx, r) in dxs[row.clone()].iter_mut().zip(&read[row]) {
                *dx += w * r;
            }
        }
        at_end += f64::from(decays.whole * crate::dot(dstate, start));
        dl[q - 1] += at_end;

        // b: (dM Λ)ᵀ C + w X dS.
        product(states, n, Matrix::new(dm, q).t(), c.matrix(), 1.0, false, 1);
        for (xs, &w) in xs.chunks_exact_mut(width).zip(&decays.to_end) {
            xs.iter_mut().for_each(|x| *x *= w);
        }
        product(
            states,
            n,
            Matrix::new(xs, width),
            dstate_matrix,
            1.0,
            true,
            1,
        );
        add_columns(&mut sums[0], step, &columns, tokens.start, states);

        // Through the state before the chunk: exp(l) dY.
        product(
            read,
            width,
            c.matrix(),
            Matrix::new(start, n).t(),
            1.0,
            false,
            1,
        );
        for (t, dl) in dl.iter_mut().enumerate() {
            let row = t * width..(t + 1) * width;
            for (p, (dd_x, dy)) in x.row(t).iter().zip(&dy[row.clone()]).enumerate() {
                match &mut *dd {
                    [] => {}
                    [one] => *one += dd_x * dy,
                    each => each[p] += dd_x * dy,
                }
            }
            let from_start = decays.from_start[t];
            *dl += f64::from(from_start * crate::dot(&dy[row.clone()], &read[row.clone()]));
            let dt = part.dt.row(t)[head];
            self.ddt[t] = crate::dot(x.row(t), &dxs[row.clone()]);
            for (p, (dx, dy)) in dxs[row.clone()]
                .iter_mut()
                .zip(&dy[row.clone()])
                .enumerate()
            {
                *dx = dt * *dx + part.skip(shape, head, p) * dy;
            }
            dy[row].iter_mut().for_each(|dy| *dy *= from_start);
        }
        product(states, n, Matrix::new(dm, q), b.matrix(), 1.0, false, 1);
        product(
            states,
            n,
            Matrix::new(dy, width),
            Matrix::new(start, n),
            1.0,
            true,
            1,
        );
        add_columns(&mut sums[1], step, &columns, tokens.start, states);
        dstate.iter_mut().for_each(|s| *s *= decays.whole);
        product(
            dstate,
            n,
            Matrix::new(dy, width).t(),
            c.matrix(),
            1.0,
            true,
            1,
        );

        let (mut sum, mut rate) = (0.0, 0.0);
        for t in (0..q).rev() {
            sum += dl[t];
            self.ddt[t] += (f64::from(part.a[head]) * sum) as f32;
            rate += f64::from(part.dt.row(t)[head]) * sum;
        }
        da[0] += rate as f32;
        (&self.dxs[..q * width], &self.ddt[..q])
    }
}

/// Adds rows to some columns of a matrix.
fn add_columns(to: &mut [f32], step: usize, columns: &Range<usize>, first: usize, rows: &[f32]) {
    for (t, row) in rows.chunks_exact(columns.len()).enumerate() {
        let to = &mut to[(first + t) * step..][columns.clone()];
        crate::add_assign(to, row);
    }
}
