//! The union of posting lists: what each list adds to the scores of documents.

/// Adds `weight * impacts[i]` to `scores[docs[i] - first]` for every `i`; sums stop at
/// the greatest number.
///
/// # Panics
/// When there are not as many impacts as documents, or a document is not among the
/// scores.
pub fn add_postings(scores: &mut [u32], first: u32, docs: &[u32], impacts: &[u16], weight: u16) {
    assert_eq!(
        docs.len(),
        impacts.len(),
        "add_postings: impacts of documents"
    );
    for (&doc, &impact) in docs.iter().zip(impacts) {
        // Two numbers of 16 bits cannot overflow 32.
        let product = u32::from(weight) * u32::from(impact);
        let score = &mut scores[doc.wrapping_sub(first) as usize];
        *score = score.saturating_add(product);
    }
}

/// Adds `weight * greatest[i]` to `bounds[i]` for every `i`; sums stop at the greatest
/// number.
///
/// # Panics
/// When there are not as many of both.
pub fn add_scaled(bounds: &mut [u32], greatest: &[u16], weight: u16) {
    assert_eq!(bounds.len(), greatest.len(), "add_scaled: lengths");
    for (bound, &impact) in bounds.iter_mut().zip(greatest) {
        *bound = bound.saturating_add(u32::from(weight) * u32::from(impact));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_add_up_to_products(
            lists in proptest::collection::vec(
                (proptest::collection::btree_map(7u32..90, 0u16..=u16::MAX, 0..60), 0u16..=u16::MAX),
                0..5,
            ),
        ) {
            let mut scores = vec![0; 83];
            let mut exact = vec![0u64; 83];
            for (list, weight) in &lists {
                let docs: Vec<u32> = list.keys().copied().collect();
                let impacts: Vec<u16> = list.values().copied().collect();
                add_postings(&mut scores, 7, &docs, &impacts, *weight);
                for (doc, impact) in list {
                    exact[*doc as usize - 7] += u64::from(*weight) * u64::from(*impact);
                }
            }
            for (found, exact) in scores.iter().zip(exact) {
                prop_assert_eq!(u64::from(*found), exact.min(u32::MAX.into()));
            }
            let greatest: Vec<u16> = scores.iter().map(|s| *s as u16).collect();
            let mut bounds = scores.clone();
            add_scaled(&mut bounds, &greatest, 3);
            for ((bound, score), impact) in bounds.iter().zip(&scores).zip(greatest) {
                prop_assert_eq!(*bound, score.saturating_add(3 * u32::from(impact)));
            }
        }
    }

    #[test]
    #[should_panic]
    fn a_document_without_a_score_is_an_error() {
        add_postings(&mut [0; 4], 2, &[1], &[1], 1);
    }
}
