//! Ball carving: fewer query rows for exact scores, by adding up those that point the
//! same way (MUVERA, see [`super::fde`]).
//!
//! Row by row, a row joins the first group whose first row it is near (cosine at least
//! `t`), or begins a group; a group counts as the sum of its rows. As
//! `max over d of <q + q', d> <= max <q, d> + max <q', d>`, scores are at most those of
//! all rows, and equal where a group's rows meet the same row of the passage.

use keyfold_core::Vectors;
use keyfold_kernels::{add_assign, dot, norm};

/// The sums of the groups, in the order in which these begin.
pub(super) fn carve(query: &Vectors, nearness: f32) -> Vectors {
    let dim = query.dim();
    // The first row of each group, and the sum.
    let mut first: Vec<&[f32]> = Vec::new();
    let mut sums: Vec<f32> = Vec::new();
    for row in query.iter() {
        let near = |known: &&[f32]| dot(known, row) >= nearness * norm(known) * norm(row);
        match first.iter().position(near) {
            Some(group) => add_assign(&mut sums[group * dim..][..dim], row),
            None => {
                first.push(row);
                sums.extend_from_slice(row);
            }
        }
    }
    // Finite rows may add up to what is not; they stay as they were.
    Vectors::new(dim, sums).unwrap_or_else(|_| query.clone())
}

#[cfg(test)]
mod tests {
    use keyfold_kernels::maxsim;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_rows_become_one() {
        let query = Vectors::new(2, vec![1.0, 0.0, 0.0, 2.0, 0.9, 0.1, -1.0, 0.0]).unwrap();
        let carved = carve(&query, 0.7);
        assert_eq!(carved.as_slice(), [1.9, 0.1, 0.0, 2.0, -1.0, 0.0]);
        assert_eq!(carve(&query, 1.5), query);
    }

    proptest! {
        #[test]
        fn scores_do_not_rise_and_equal_rows_keep_them(
            rows in proptest::collection::vec(-1.0f32..1.0, 3..24),
            passage in proptest::collection::vec(-1.0f32..1.0, 12),
            nearness in 0.0f32..1.0,
        ) {
            let rows = &rows[..rows.len() / 3 * 3];
            let query = Vectors::new(3, rows.to_vec()).unwrap();
            let score = |q: &Vectors| maxsim(q.as_slice(), &passage, 3);
            prop_assert!(score(&carve(&query, nearness)) <= score(&query) + 1e-4);
            let twice = Vectors::new(3, [rows, rows].concat()).unwrap();
            let carved = carve(&twice, 0.9999);
            prop_assert!(carved.rows() <= query.rows());
            let exact = score(&carve(&query, 0.9999));
            prop_assert!((score(&carved) - 2.0 * exact).abs() < 1e-4);
        }
    }
}
