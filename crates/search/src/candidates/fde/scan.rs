//! The passages whose encodings are most like the query's.

use keyfold_core::Vectors;
use keyfold_kernels::PqQuery;

use super::super::{Candidate, best_of, share};
use super::coder::BLOCK;
use crate::error::SearchError;
use crate::filter::Allowed;
use crate::store::Segment;

/// Blocks of passages that are scanned together.
const BLOCKS: usize = 64;

/// The `keep` passages of the greatest products, in the order of the store. All
/// segments must have encodings.
pub(crate) fn scan(
    segments: &[Segment],
    query: &Vectors,
    allowed: Option<&Allowed>,
    keep: usize,
    threads: usize,
) -> Result<Vec<Candidate>, SearchError> {
    let mut all = Vec::new();
    let mut prepared: Option<(*const super::FdeCoder, PqQuery)> = None;
    for (number, segment) in segments.iter().enumerate() {
        let encodings = segment.require_encodings()?;
        let coder = &**encodings.coder();
        let prepared = match &mut prepared {
            // One coder serves all segments of a store.
            Some((of, query)) if std::ptr::eq(*of, coder) => &*query,
            other => {
                let query = coder
                    .query(query.as_slice())
                    .map_err(|e| segment.refused(&e))?;
                &other.insert((coder, query)).1
            }
        };
        let blocks = segment.passages().div_ceil(BLOCK);
        let mut parts: Vec<usize> = (0..blocks).step_by(BLOCKS).collect();
        let found = share(&mut parts, threads, Vec::new, |scores, &mut first| {
            let part = first..(first + BLOCKS).min(blocks);
            scores.resize(part.len() * BLOCK, 0.0);
            prepared.scan(encodings.blocks(part)?, scores);
            let locals = (first * BLOCK) as u32..segment.passages() as u32;
            let scores = locals.zip(scores.iter().copied());
            Ok(best_of(segment, number, scores, allowed, keep))
        })?;
        all.extend(found.into_iter().flatten());
    }
    super::super::keep_best(&mut all, keep);
    super::super::sort_by_place(&mut all);
    Ok(all)
}
