//! The inverted index: for every term the passages that have it, and how much.
//!
//! ```text
//! ids             u64 for every passage, ascending
//! terms           u32, ascending
//! starts          u64: where the postings of each term begin, and where the last end
//! docs            u32 for every posting: the place of the passage in `ids`, ascending by term
//! impacts         u16 for every posting
//! ```

use std::ops::Range;

use keyfold_core::SparseVector;

use super::bounds::Bounds;
use crate::filter::BitSet;
use crate::store::beside::{Owner, take};

/// See the head of the module.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ImpactIndex {
    ids: Vec<u64>,
    terms: Vec<u32>,
    starts: Vec<u64>,
    docs: Vec<u32>,
    impacts: Vec<u16>,
    /// Made from the rest.
    bounds: Bounds,
}

/// What the file says before its body.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Header {
    owner: Owner,
    passages: u64,
    terms: u64,
    postings: u64,
}

impl ImpactIndex {
    /// Reads what [`ImpactIndex::parts`] gave; none if it belongs to something else
    /// or its numbers do not fit together.
    pub(crate) fn from_parts(header: Header, mut body: &[u8], owner: &Owner) -> Option<Self> {
        if header.owner != *owner {
            return None;
        }
        let body = &mut body;
        let index = Self {
            ids: take(body, header.passages)?,
            terms: take(body, header.terms)?,
            starts: take(body, header.terms.checked_add(1)?)?,
            docs: take(body, header.postings)?,
            impacts: take(body, header.postings)?,
            bounds: Bounds::default(),
        };
        let ordered = index.starts.is_sorted()
            && index.starts.last() == Some(&header.postings)
            && index.ids.is_sorted_by(|a, b| a < b)
            && index.terms.is_sorted_by(|a, b| a < b)
            && (0..index.terms.len()).all(|i| index.list(i).0.is_sorted_by(|a, b| a < b))
            && index.docs.iter().all(|&d| (d as usize) < index.ids.len());
        ordered.then(|| index.bounded())
    }

    /// The header and the body of its file.
    pub(crate) fn parts(&self, owner: &Owner) -> (Header, [&[u8]; 5]) {
        let starts: &[u64] = if self.starts.is_empty() {
            &[0]
        } else {
            &self.starts
        };
        let header = Header {
            owner: owner.clone(),
            passages: self.ids.len() as u64,
            terms: self.terms.len() as u64,
            postings: self.docs.len() as u64,
        };
        let body = [
            bytemuck::cast_slice(&self.ids),
            bytemuck::cast_slice(&self.terms),
            bytemuck::cast_slice(starts),
            bytemuck::cast_slice(&self.docs),
            bytemuck::cast_slice(&self.impacts),
        ];
        (header, body)
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn postings(&self) -> usize {
        self.docs.len()
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// This index with `added` passages (ids that it does not hold), without those
    /// that are not live.
    pub(crate) fn with(&self, added: &[(u64, SparseVector)], live: &BitSet) -> Self {
        let all = self.ids.iter().copied().chain(added.iter().map(|a| a.0));
        let mut ids: Vec<u64> = all.filter(|&id| live.contains(id as usize)).collect();
        ids.sort_unstable();
        let place = |id: u64| ids.binary_search(&id).ok().map(|i| i as u32);
        // All postings as (term, place, impact), old and new, in order.
        let mut all: Vec<(u32, u32, u16)> = Vec::with_capacity(self.docs.len());
        let places: Vec<Option<u32>> = self.ids.iter().map(|&id| place(id)).collect();
        for (i, &term) in self.terms.iter().enumerate() {
            for p in self.range(i) {
                if let Some(place) = places[self.docs[p] as usize] {
                    all.push((term, place, self.impacts[p]));
                }
            }
        }
        for (id, vector) in added {
            if let Some(place) = place(*id) {
                let entries = vector.entries().iter();
                all.extend(entries.map(|&(term, impact)| (term, place, impact)));
            }
        }
        all.sort_unstable();
        let mut index = Self {
            ids,
            docs: all.iter().map(|p| p.1).collect(),
            impacts: all.iter().map(|p| p.2).collect(),
            ..Self::default()
        };
        for (i, &(term, _, _)) in all.iter().enumerate() {
            if index.terms.last() != Some(&term) {
                index.terms.push(term);
                index.starts.push(i as u64);
            }
        }
        index.starts.push(all.len() as u64);
        index.bounded()
    }

    fn range(&self, term: usize) -> Range<usize> {
        self.starts[term] as usize..self.starts[term + 1] as usize
    }

    /// The place of a term, if a passage has it.
    pub(crate) fn place(&self, term: u32) -> Option<usize> {
        self.terms.binary_search(&term).ok()
    }

    /// The passages that have the term at a place, as places in [`Self::ids`], and
    /// how much.
    pub(crate) fn list(&self, place: usize) -> (&[u32], &[u16]) {
        let range = self.range(place);
        (&self.docs[range.clone()], &self.impacts[range])
    }

    pub(crate) fn ids(&self) -> &[u64] {
        &self.ids
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    fn bounded(mut self) -> Self {
        let lists = (0..self.terms.len()).map(|i| self.list(i));
        self.bounds = Bounds::new(self.ids.len(), lists);
        self
    }

    /// What each term of a query adds to the score of a passage.
    pub(crate) fn parts_of(&self, query: &SparseVector, id: u64) -> Vec<(u32, f32)> {
        let Ok(doc) = self.ids.binary_search(&id) else {
            return Vec::new();
        };
        let part = |&(term, weight): &(u32, u16)| {
            let (docs, impacts) = self.list(self.place(term)?);
            let at = docs.binary_search(&(doc as u32)).ok()?;
            Some((term, f32::from(weight) * f32::from(impacts[at])))
        };
        query.entries().iter().filter_map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuse::Ranked;
    use crate::sparse::bounds::best;

    fn vector(entries: &[(u32, u16)]) -> SparseVector {
        SparseVector::new(entries.iter().map(|&(t, w)| (t, f32::from(w))), f32::max)
    }

    fn all(ids: impl IntoIterator<Item = u64>) -> BitSet {
        let mut set = BitSet::default();
        ids.into_iter().for_each(|id| set.insert(id as usize));
        set
    }

    fn arbitrary() -> impl Strategy<Value = SparseVector> {
        proptest::collection::vec((0u32..12, 0u16..500), 0..8).prop_map(|e| vector(&e))
    }

    proptest! {
        #[test]
        fn finds_what_products_with_every_passage_find(
            passages in proptest::collection::vec(arbitrary(), 0..20),
            query in arbitrary(), k in 1usize..6, cut in 0usize..20, dead in 0u64..20,
        ) {
            let added: Vec<(u64, SparseVector)> = (3..).zip(passages).collect();
            let cut = cut.min(added.len());
            let live = all(added.iter().map(|a| a.0).filter(|&id| id != dead));
            // In two steps, as documents come, through a file.
            let first = ImpactIndex::default().with(&added[..cut], &all(added.iter().map(|a| a.0)));
            let index = first.with(&added[cut..], &live);
            let mut expected: Vec<Ranked> = added.iter()
                .filter(|a| a.0 != dead)
                .map(|(id, v)| Ranked { passage: *id, score: v.dot(&query) as f32 })
                .filter(|r| r.score > 0.0)
                .collect();
            crate::fuse::sort(&mut expected);
            expected.truncate(k);
            prop_assert_eq!(best(&index, &query, k, &live), expected);
            prop_assert_eq!(index.with(&[], &live), index);
        }
    }

    #[test]
    fn a_passage_that_is_not_allowed_is_not_found() {
        let index = ImpactIndex::default().with(
            &[(1, vector(&[(5, 9)])), (2, vector(&[(5, 3)]))],
            &all([1, 2]),
        );
        let found = best(&index, &vector(&[(5, 1)]), 5, &all([2]));
        assert_eq!(
            found,
            [Ranked {
                passage: 2,
                score: 3.0
            }]
        );
        assert_eq!(best(&index, &vector(&[(4, 1)]), 5, &all([1, 2])), []);
        assert_eq!(best(&index, &SparseVector::default(), 5, &all([1, 2])), []);
    }
}
