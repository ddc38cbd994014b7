//! Exact scores: MaxSim of a query with the coded rows of a passage,
//! `sum over query rows q of max over passage rows d of <q, d>`; for models with
//! vectors of whole texts see [`crate::whole_text`].

use std::ops::Range;
use std::sync::Arc;

use keyfold_core::Vectors;
use keyfold_kernels::MaxSim;

use crate::candidates::{Access, Candidate, CandidateOptions, share};
use crate::codebook::{Bits, Codebook, HammingQuery};
use crate::error::SearchError;
use crate::store::Segment;
use crate::whole_text::{self, WholeTextQuery};

/// A query, prepared for the codebooks of some segments.
pub(crate) struct Query {
    codebooks: Vec<Arc<Codebook>>,
    /// For every codebook the query rows, `[rows, width]`.
    rows: Vec<Vec<f32>>,
    /// For every segment the place of its codebook.
    of_segment: Vec<usize>,
    /// How whole texts and words are compared, where the model has both.
    whole_text: Option<WholeTextQuery>,
    /// How the rows of passages are reached.
    access: Access,
}

impl Query {
    /// With `options.exact_match`, rows meet only rows with the same id.
    pub(crate) fn new(segments: &[Segment], query: &Vectors, options: &CandidateOptions) -> Self {
        let exact_match = options.exact_match == Some(true);
        let mut codebooks: Vec<Arc<Codebook>> = Vec::new();
        let mut of_segment = Vec::with_capacity(segments.len());
        for segment in segments {
            let known = codebooks
                .iter()
                .position(|c| Arc::ptr_eq(c, segment.codebook()));
            of_segment.push(known.unwrap_or_else(|| {
                codebooks.push(segment.codebook().clone());
                codebooks.len() - 1
            }));
        }
        let widen = |c: &Arc<Codebook>| c.widen(query.as_slice());
        Self {
            rows: codebooks.iter().map(widen).collect(),
            codebooks,
            of_segment,
            whole_text: WholeTextQuery::new(segments, query, exact_match),
            access: options.access,
        }
    }

    /// The different codebooks with the query rows, `[rows, width]`, for each.
    pub(crate) fn by_codebook(&self) -> impl Iterator<Item = (&Codebook, &[f32])> {
        self.codebooks
            .iter()
            .map(|c| &**c)
            .zip(self.rows.iter().map(Vec::as_slice))
    }

    /// The place of a segment's codebook in [`Query::by_codebook`].
    pub(crate) fn codebook_of(&self, segment: usize) -> usize {
        self.of_segment[segment]
    }

    /// The codebook at a place and the query rows for it, `[rows, width]`.
    pub(crate) fn of_codebook(&self, place: usize) -> (&Codebook, &[f32]) {
        (&self.codebooks[place], &self.rows[place])
    }

    /// How whole texts and words are compared, where the model has both.
    pub(crate) fn whole_text(&self) -> Option<&WholeTextQuery> {
        self.whole_text.as_ref()
    }

    /// The coded bytes of some rows of a passage.
    pub(crate) fn packed<'a>(
        &self,
        segment: &'a Segment,
        rows: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], SearchError> {
        match self.access {
            Access::Mapped => segment.packed(rows),
            Access::Read => segment.read_packed(rows, buffer),
        }
    }

    /// Whether all that is searched are binary codes.
    pub(crate) fn is_binary(&self) -> bool {
        self.codebooks.iter().all(|c| c.bits() == Bits::One)
    }

    /// What a thread needs for exact scores, by codebook.
    fn scorers(&self) -> Vec<Scorer<'_>> {
        let scorer = |(codebook, rows): (&Codebook, &[f32])| match &self.whole_text {
            Some(query) => Scorer::WholeText(query, query.scorer(codebook)),
            None => match hamming(codebook, rows) {
                Some(query) => Scorer::Hamming(query),
                None => Scorer::MaxSim(MaxSim::new(rows, codebook.width())),
            },
        };
        self.by_codebook().map(scorer).collect()
    }
}

/// The query rows as binary codes, where both sides are such.
fn hamming(codebook: &Codebook, rows: &[f32]) -> Option<HammingQuery> {
    let binary = codebook.bits() == Bits::One;
    binary.then(|| HammingQuery::new(rows, codebook.width(), codebook.dim()))?
}

/// Compares passages with a query.
enum Scorer<'a> {
    Hamming(HammingQuery),
    MaxSim(MaxSim),
    WholeText(&'a WholeTextQuery, whole_text::Scorer),
}

impl Scorer<'_> {
    /// The score of the passage with these rows, at least one.
    fn score(
        &mut self,
        query: &Query,
        segment: &Segment,
        rows: Range<usize>,
        buffer: &mut Vec<u8>,
    ) -> Result<f32, SearchError> {
        match self {
            Self::Hamming(hamming) => Ok(hamming.score(query.packed(segment, rows, buffer)?)),
            Self::MaxSim(maxsim) => {
                let codes = segment.codes(rows.clone())?;
                let packed = query.packed(segment, rows, buffer)?;
                Ok(segment.codebook().maxsim(maxsim, codes, packed))
            }
            Self::WholeText(whole_text, scorer) => {
                let packed = query.packed(segment, rows.clone(), buffer)?;
                whole_text.score(scorer, segment, rows, packed)
            }
        }
    }
}

/// Sets the scores of candidates to their MaxSim, or to what the model has in its
/// place; minus infinity for passages without rows.
pub(crate) fn exact(
    segments: &[Segment],
    query: &Query,
    candidates: &mut [Candidate],
    threads: usize,
) -> Result<(), SearchError> {
    let score = |(scorers, buffer): &mut (Vec<Scorer<'_>>, _), c: &mut Candidate| {
        let segment = &segments[c.segment as usize];
        let rows = segment.rows(c.local)?;
        c.score = if rows.is_empty() {
            f32::NEG_INFINITY
        } else {
            scorers[query.codebook_of(c.segment as usize)].score(query, segment, rows, buffer)?
        };
        Ok(())
    };
    share(candidates, threads, || (query.scorers(), Vec::new()), score)?;
    Ok(())
}

/// The rows of a passage as they are read back from their codes, `[rows, dim]`.
pub(crate) fn decoded(segment: &Segment, local: u32) -> Result<Vec<f32>, SearchError> {
    let mut out = Vec::new();
    decode_into(segment, local, &mut out)?;
    Ok(out)
}

/// Appends [`decoded`] rows to `out`; how many they are.
pub(crate) fn decode_into(
    segment: &Segment,
    local: u32,
    out: &mut Vec<f32>,
) -> Result<usize, SearchError> {
    let rows = segment.rows(local)?;
    let codes = segment.codes(rows.clone())?;
    let packed = segment.packed(rows.clone())?;
    segment.codebook().decode(codes, packed, out);
    Ok(rows.len())
}
