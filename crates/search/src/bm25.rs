//! BM25 with parameters of its own, over the postings of the lexical index.
//!
//! `score(p) = sum over words t of w_t idf_t tf / (tf + k1 (1 - b + b len / avglen))`
//! with `idf = ln(1 + (N - df + 0.5) / (df + 0.5))`: Lucene's form, without the
//! factor `k1 + 1`, which changes no order. As in Lucene, lengths above 40 words
//! are rounded down to what fits into a byte.
//!
//! The lexical index has one pair of parameters built in and skips blocks of
//! postings by it. Any other pair is scored here, posting by posting: time grows
//! with the postings of the words, not with the wanted passages.

use tantivy::postings::Postings;
use tantivy::query::Bm25StatisticsProvider;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocAddress, DocSet, Searcher, SegmentReader, TERMINATED, Term};

use keyfold_kernels::TopK;

use crate::filter::BitSet;
use crate::fuse::Ranked;

/// What the lexical index has built in.
const INDEX_K1: f32 = 1.2;
const INDEX_B: f32 = 0.75;

/// How words count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bm25 {
    /// How slowly a word that comes again saturates; from 0.
    pub k1: f32,
    /// How much long passages are held back; from 0 to 1.
    pub b: f32,
    /// What a word in a heading is worth beyond its place among the words of the
    /// passage; 0 for nothing. On Cranfield, 0.25 to 0.5 is best.
    pub headings: f32,
    /// What a word in the name of the file is worth; 0 for nothing.
    pub name: f32,
}

impl Default for Bm25 {
    fn default() -> Self {
        Self {
            k1: INDEX_K1,
            b: INDEX_B,
            headings: 0.5,
            name: 0.5,
        }
    }
}

impl Bm25 {
    /// As Anserini and Pyserini count: k1 0.9, b 0.4, one field.
    pub fn anserini() -> Self {
        Self {
            k1: 0.9,
            b: 0.4,
            headings: 0.0,
            name: 0.0,
        }
    }

    /// Whether the lexical index can score it by itself.
    pub(crate) fn is_of_index(&self) -> bool {
        self.k1 == INDEX_K1 && self.b == INDEX_B
    }
}

/// The `k` passages of the greatest score among those allowed, best first.
/// `passage` is the field with the ids of passages.
pub(crate) fn best(
    searcher: &Searcher,
    passage: Field,
    terms: &[(Term, f32)],
    bm25: &Bm25,
    k: usize,
    allowed: Option<&BitSet>,
) -> tantivy::Result<Vec<Ranked>> {
    let weighted = weighted(searcher, terms)?;
    let mut top = TopK::new(k);
    for segment in searcher.segment_readers() {
        let scores = segment_scores(segment, &weighted, bm25)?;
        let name = searcher.schema().get_field_name(passage);
        let ids = segment.fast_fields().u64(name)?;
        for (doc, &score) in (0..).zip(&scores) {
            if score <= 0.0 || score < top.threshold() || segment.is_deleted(doc) {
                continue;
            }
            if let Some(id) = ids.first(doc)
                && allowed.is_none_or(|a| a.contains(id as usize))
            {
                top.push(score, id);
            }
        }
    }
    let ranked = top.into_sorted().into_iter();
    Ok(ranked
        .map(|(score, passage)| Ranked { passage, score })
        .collect())
}

/// What each term adds to the score of one document.
pub(crate) fn parts(
    searcher: &Searcher,
    terms: &[(Term, f32)],
    bm25: &Bm25,
    document: DocAddress,
) -> tantivy::Result<Vec<f32>> {
    let segment = searcher.segment_reader(document.segment_ord);
    let part = |term: &Weighted<'_>| {
        let index = segment.inverted_index(term.term.field())?;
        let postings = index.read_postings(term.term, IndexRecordOption::WithFreqs)?;
        let Some(mut postings) = postings.filter(|p| p.doc() <= document.doc_id) else {
            return Ok(0.0);
        };
        if postings.seek(document.doc_id) != document.doc_id {
            return Ok(0.0);
        }
        let lengths = segment.get_fieldnorms_reader(term.term.field())?;
        Ok(term.score(bm25, &postings, lengths.fieldnorm(document.doc_id)))
    };
    weighted(searcher, terms)?.iter().map(part).collect()
}

/// A term as the collection knows it.
struct Weighted<'a> {
    term: &'a Term,
    /// Its weight in the query times idf.
    weight: f32,
    /// The average length of its field.
    average: f32,
}

impl Weighted<'_> {
    /// The score of the document at which `postings` stand.
    fn score(&self, bm25: &Bm25, postings: &impl Postings, length: u32) -> f32 {
        let tf = postings.term_freq() as f32;
        let norm = bm25.k1 * (1.0 - bm25.b + bm25.b * length as f32 / self.average);
        self.weight * tf / (tf + norm)
    }
}

fn weighted<'a>(
    searcher: &Searcher,
    terms: &'a [(Term, f32)],
) -> tantivy::Result<Vec<Weighted<'a>>> {
    let total = searcher.total_num_docs()?;
    let one = |(term, weight): &'a (Term, f32)| {
        let frequency = searcher.doc_freq(term)?;
        let rest = total.saturating_sub(frequency) as f32;
        let idf = (1.0 + (rest + 0.5) / (frequency as f32 + 0.5)).ln();
        let tokens = searcher.total_num_tokens(term.field())?;
        let average = tokens as f32 / total.max(1) as f32;
        Ok(Weighted {
            term,
            weight: weight * idf,
            average: average.max(1.0),
        })
    };
    terms.iter().map(one).collect()
}

/// The scores of all documents of a segment, deleted ones included.
fn segment_scores(
    segment: &SegmentReader,
    terms: &[Weighted<'_>],
    bm25: &Bm25,
) -> tantivy::Result<Vec<f32>> {
    let mut scores = vec![0.0; segment.max_doc() as usize];
    for term in terms {
        let index = segment.inverted_index(term.term.field())?;
        let postings = index.read_postings(term.term, IndexRecordOption::WithFreqs)?;
        let Some(mut postings) = postings else {
            continue;
        };
        let lengths = segment.get_fieldnorms_reader(term.term.field())?;
        let mut doc = postings.doc();
        while doc != TERMINATED {
            scores[doc as usize] += term.score(bm25, &postings, lengths.fieldnorm(doc));
            doc = postings.advance();
        }
    }
    Ok(scores)
}
