//! Eigenvalues and eigenvectors of a symmetric matrix.

/// Most rotations for one eigenvalue; two or three are usual.
const MOST: usize = 100;

/// Eigenvalues of a symmetric matrix, ascending, with their eigenvectors.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    /// `[n, n]`, one eigenvector a row.
    pub(super) vectors: Vec<f64>,
}

/// The eigenvalues of the symmetric `matrix` `[n, n]`; none where it is not finite.
///
/// Householder's reduction to three diagonals, then the QL algorithm with implicit shifts
/// (Bowdler, Martin, Reinsch, Wilkinson 1968). Columns are kept as rows, so that inner
/// loops run along memory.
pub(super) fn eigen(matrix: &[f64], n: usize) -> Option<Eigen> {
    if n == 0 || matrix.len() != n * n || matrix.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut v = matrix.to_vec();
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    tridiagonal(&mut v, &mut d, &mut e);
    diagonal(&mut v, &mut d, &mut e)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| d[a].total_cmp(&d[b]));
    Some(Eigen {
        values: order.iter().map(|&i| d[i]).collect(),
        vectors: order
            .iter()
            .flat_map(|&i| v[i * n..(i + 1) * n].to_vec())
            .collect(),
    })
}

/// To the diagonal `d` and its neighbour `e`; row `j` of `v` becomes column `j` of the
/// transformation.
fn tridiagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64]) {
    let n = d.len();
    for j in 0..n {
        d[j] = v[j * n + n - 1];
    }
    for i in (1..n).rev() {
        let scale: f64 = d[..i].iter().map(|x| x.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = v[j * n + i - 1];
                v[j * n + i] = 0.0;
                v[i * n + j] = 0.0;
            }
        } else {
            for x in &mut d[..i] {
                *x /= scale;
                h += *x * *x;
            }
            let f = d[i - 1];
            let g = if f > 0.0 { -h.sqrt() } else { h.sqrt() };
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                v[i * n + j] = f;
                let column = &v[j * n..j * n + i];
                let mut g = e[j] + column[j] * f;
                for k in j + 1..i {
                    g += column[k] * d[k];
                    e[k] += column[k] * f;
                }
                e[j] = g;
            }
            let mut f = 0.0;
            for (e, d) in e[..i].iter_mut().zip(&d[..i]) {
                *e /= h;
                f += *e * d;
            }
            let half = f / (h + h);
            for (e, d) in e[..i].iter_mut().zip(&d[..i]) {
                *e -= half * d;
            }
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                let column = &mut v[j * n..j * n + i];
                for k in j..i {
                    column[k] -= f * e[k] + g * d[k];
                }
                d[j] = column[i - 1];
                v[j * n + i] = 0.0;
            }
        }
        d[i] = h;
    }
    for i in 0..n - 1 {
        v[i * n + n - 1] = v[i * n + i];
        v[i * n + i] = 1.0;
        let h = d[i + 1];
        let (before, next) = v.split_at_mut((i + 1) * n);
        let next = &mut next[..i + 1];
        if h != 0.0 {
            for (d, x) in d.iter_mut().zip(&*next) {
                *d = x / h;
            }
            for column in before.chunks_exact_mut(n) {
                let column = &mut column[..i + 1];
                let g: f64 = column.iter().zip(&*next).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(&*d).for_each(|(x, d)| *x -= g * d);
            }
        }
        next.fill(0.0);
    }
    for j in 0..n {
        d[j] = std::mem::replace(&mut v[j * n + n - 1], 0.0);
    }
    v[n * n - 1] = 1.0;
    e[0] = 0.0;
}

/// To the diagonal alone; the rows of `v` become eigenvectors.
fn diagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64]) -> Option<()> {
    let n = d.len();
    e.copy_within(1.., 0);
    e[n - 1] = 0.0;
    let (mut shifted, mut size) = (0.0, 0.0f64);
    for l in 0..n {
        size = size.max(d[l].abs() + e[l].abs());
        let small = |x: f64| x.abs() <= f64::EPSILON * size;
        let m = (l..n).find(|&m| small(e[m]))?;
        let mut rounds = 0;
        while m > l && !small(e[l]) {
            rounds += 1;
            if rounds > MOST {
                return None;
            }
            let g = d[l];
            let p = (d[l + 1] - g) / (2.0 * e[l]);
            let r = if p < 0.0 { -p.hypot(1.0) } else { p.hypot(1.0) };
            d[l] = e[l] / (p + r);
            d[l + 1] = e[l] * (p + r);
            let (after, h) = (d[l + 1], g - d[l]);
            d[l + 2..].iter_mut().for_each(|x| *x -= h);
            shifted += h;
            let mut p = d[m];
            let (mut c, mut c2, mut c3) = (1.0, 1.0, 1.0);
            let (mut s, mut s2) = (0.0, 0.0);
            let second = e[l + 1];
            for i in (l..m).rev() {
                (c3, c2, s2) = (c2, c, s);
                let (g, h) = (c * e[i], c * p);
                let r = p.hypot(e[i]);
                e[i + 1] = s * r;
                s = e[i] / r;
                c = p / r;
                p = c * d[i] - s * g;
                d[i + 1] = h + s * (c * g + s * d[i]);
                let (low, high) = v.split_at_mut((i + 1) * n);
                for (a, b) in low[i * n..].iter_mut().zip(&mut high[..n]) {
                    let h = *b;
                    *b = s * *a + c * h;
                    *a = c * *a - s * h;
                }
            }
            p = -s * s2 * c3 * second * e[l] / after;
            e[l] = s * p;
            d[l] = c * p;
        }
        d[l] += shifted;
        e[l] = 0.0;
    }
    Some(())
}

/// `a bᵀ`, both `[n, n]`.
pub(super) fn times_transposed(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let rows = a.chunks_exact(n);
    let products = rows.flat_map(|a| b.chunks_exact(n).map(move |b| product(a, b)));
    products.collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, which the compiler keeps in one register.
    let mut sums = [0.0; 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// `aᵀ b`, both `[n, n]`.
pub(super) fn transposed_times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
        for (out, a) in out.chunks_exact_mut(n).zip(a) {
            out.iter_mut().zip(b).for_each(|(x, b)| *x += a * b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn eigenvectors_give_the_matrix_back(
            n in 1usize..12,
            numbers in prop::collection::vec(-2f64..2.0, 144),
            rank in 1usize..12,
        ) {
            // Of any rank up to n, so that values repeat.
            let mut factor = numbers[..n * n].to_vec();
            factor.chunks_exact_mut(n).skip(rank).for_each(|row| row.fill(0.0));
            let matrix = transposed_times(&factor, &factor, n);
            let found = eigen(&matrix, n).unwrap();
            prop_assert!(found.values.is_sorted());
            let unit = times_transposed(&found.vectors, &found.vectors, n);
            for (at, x) in unit.iter().enumerate() {
                let expected = f64::from(u8::from(at / n == at % n));
                prop_assert!((x - expected).abs() < 1e-9, "{x}");
            }
            let mut scaled = found.vectors.clone();
            for (row, value) in scaled.chunks_exact_mut(n).zip(&found.values) {
                row.iter_mut().for_each(|x| *x *= value);
            }
            let again = transposed_times(&found.vectors, &scaled, n);
            for (a, b) in again.iter().zip(&matrix) {
                prop_assert!((a - b).abs() < 1e-8, "{a} {b}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_has_no_eigenvalues() {
        assert!(eigen(&[f64::NAN], 1).is_none());
        assert!(eigen(&[], 0).is_none());
        let zero = eigen(&[0.0; 9], 3).unwrap();
        assert_eq!(zero.values, [0.0; 3]);
    }
}
