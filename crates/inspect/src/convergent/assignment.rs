//! The assignment of greatest sum.
//!
//! Rows are taken one after the other; each finds the shortest way to a free column through
//! the assignment so far, in prices that keep every step at 0 or above (Kuhn 1955; Jonker and
//! Volgenant 1987). Cost `n² m` for `n` rows and `m ≥ n` columns.

use faer::MatRef;

/// For each row its column, so that the sum of `scores` is greatest and no column is
/// taken twice. Where there are more rows than columns, some rows get none. Scores that
/// are not finite count as the least of all.
pub fn assign(scores: MatRef<'_, f64>) -> Vec<Option<usize>> {
    if scores.nrows() > scores.ncols() {
        let mut out = vec![None; scores.nrows()];
        for (column, row) in assign(scores.transpose()).into_iter().enumerate() {
            if let Some(row) = row {
                out[row] = Some(column);
            }
        }
        return out;
    }
    let (n, m) = (scores.nrows(), scores.ncols());
    let finite = (0..n).flat_map(|i| (0..m).map(move |j| scores[(i, j)]));
    let least = finite.filter(|x| x.is_finite()).fold(0.0, f64::min);
    let cost = |i: usize, j: usize| match scores[(i, j)] {
        x if x.is_finite() => -x,
        _ => -least,
    };
    // Place m stands for "where the new row comes from".
    let (mut row_price, mut column_price) = (vec![0.0; n], vec![0.0; m + 1]);
    let mut owner: Vec<Option<usize>> = vec![None; m + 1];
    for new in 0..n {
        owner[m] = Some(new);
        let mut at = m;
        let mut shortest = vec![f64::INFINITY; m];
        let mut from = vec![m; m];
        let mut seen = vec![false; m + 1];
        while let Some(row) = owner[at] {
            seen[at] = true;
            let (mut step, mut next) = (f64::INFINITY, m);
            for j in (0..m).filter(|j| !seen[*j]) {
                let reduced = cost(row, j) - row_price[row] - column_price[j];
                if reduced < shortest[j] {
                    (shortest[j], from[j]) = (reduced, at);
                }
                if shortest[j] < step {
                    (step, next) = (shortest[j], j);
                }
            }
            for j in 0..=m {
                if seen[j] {
                    if let Some(row) = owner[j] {
                        row_price[row] += step;
                    }
                    column_price[j] -= step;
                } else {
                    shortest[j] -= step;
                }
            }
            at = next;
        }
        while at != m {
            let before = from[at];
            owner[at] = owner[before];
            at = before;
        }
    }
    let mut out = vec![None; n];
    for (column, row) in owner[..m].iter().enumerate() {
        if let Some(row) = row {
            out[*row] = Some(column);
        }
    }
    out
}
