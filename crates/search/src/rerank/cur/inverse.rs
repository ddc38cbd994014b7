//! Inverses of matrices that are given by their columns.

/// `(X'X + l I)^-1 X'`, `[k, r]`, by Cholesky; `x` holds the columns of `X`.
pub(super) fn ridge_inverse(x: &[f64], r: usize, k: usize, ridge: f64) -> Vec<f64> {
    let column = |i: usize| &x[i * r..(i + 1) * r];
    let mut a = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            a[i * k + j] = dot(column(i), column(j));
        }
    }
    let trace: f64 = (0..k).map(|i| a[i * k + i]).sum();
    // Never 0, or equal anchors would divide by it.
    let l = (ridge.max(1e-14) * trace / k.max(1) as f64).max(f64::MIN_POSITIVE);
    for i in 0..k {
        a[i * k + i] += l;
    }
    // L of A = L L', in place.
    for i in 0..k {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * k..i * k + j], &a[j * k..j * k + j]);
            let rest = a[i * k + j] - dot(row_i, row_j);
            a[i * k + j] = if i == j {
                rest.max(l).sqrt()
            } else {
                rest / a[j * k + j]
            };
        }
    }
    // The rows of X' are its columns: L Y = X', then L' U = Y.
    let mut u = x.to_vec();
    for i in 0..k {
        let (done, now) = u.split_at_mut(i * r);
        let now = &mut now[..r];
        for (j, row) in done.chunks_exact(r).enumerate() {
            let factor = a[i * k + j];
            now.iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
        }
        now.iter_mut().for_each(|x| *x /= a[i * k + i]);
    }
    for i in (0..k).rev() {
        let (now, done) = u[i * r..].split_at_mut(r);
        for (j, row) in (i + 1..k).zip(done.chunks_exact(r)) {
            let factor = a[j * k + i];
            now.iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
        }
        now.iter_mut().for_each(|x| *x /= a[i * k + i]);
    }
    u
}

/// The pseudo-inverse `[k, r]` of the matrix with these columns, by one-sided
/// Jacobi rotations: `X V = W` with orthogonal columns `w_i` of length `s_i`, so
/// `X^+ = V S^-2 W'`.
pub(super) fn pseudo_inverse(mut w: Vec<f64>, r: usize, k: usize) -> Vec<f64> {
    const CUT: f64 = 1e-15;
    let mut v = vec![0.0; k * k];
    (0..k).for_each(|i| v[i * k + i] = 1.0);
    for _sweep in 0..60 {
        let mut rotated = false;
        for i in 0..k {
            for j in i + 1..k {
                rotated |= rotate(&mut w, &mut v, i, j, r, k);
            }
        }
        if !rotated {
            break;
        }
    }
    let squares: Vec<f64> = w.chunks_exact(r).map(|c| dot(c, c)).collect();
    let largest = squares.iter().copied().fold(0.0, f64::max);
    let mut inverse = vec![0.0; k * r];
    for (i, &square) in squares.iter().enumerate() {
        if square <= 0.0 || square.sqrt() <= CUT * largest.sqrt() {
            continue;
        }
        for (row, out) in inverse.chunks_exact_mut(r).enumerate() {
            let factor = v[i * k + row] / square;
            out.iter_mut()
                .zip(&w[i * r..(i + 1) * r])
                .for_each(|(o, w)| *o += factor * w);
        }
    }
    inverse
}

/// Makes two columns orthogonal; false if they are.
fn rotate(w: &mut [f64], v: &mut [f64], i: usize, j: usize, r: usize, k: usize) -> bool {
    let (a, b) = (&w[i * r..(i + 1) * r], &w[j * r..(j + 1) * r]);
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    if ab.abs() <= 1e-15 * (aa * bb).sqrt() || ab == 0.0 {
        return false;
    }
    let z = (bb - aa) / (2.0 * ab);
    let t = z.signum() / (z.abs() + (1.0 + z * z).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = c * t;
    for (m, n) in [(w, r), (v, k)] {
        let (before, after) = m.split_at_mut(j * n);
        let pairs = before[i * n..(i + 1) * n].iter_mut().zip(&mut after[..n]);
        for (x, y) in pairs {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    proptest! {
        #[test]
        fn inverses_invert(r in 1usize..7, k in 1usize..7, seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let x: Vec<f64> = (0..r * k).map(|_| rng.random_range(-1.0..1.0)).collect();
            let u = pseudo_inverse(x.clone(), r, k);
            // X U X = X, whatever the shape.
            for i in 0..k {
                let mut column = vec![0.0; r];
                for m in 0..k {
                    let weight = dot(&u[m * r..(m + 1) * r], &x[i * r..(i + 1) * r]);
                    column.iter_mut().zip(&x[m * r..(m + 1) * r]).for_each(|(c, x)| *c += weight * x);
                }
                for (a, b) in column.iter().zip(&x[i * r..(i + 1) * r]) {
                    prop_assert!((a - b).abs() < 1e-7, "{} {}", a, b);
                }
            }
        }
    }
}
