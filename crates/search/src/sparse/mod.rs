//! A learnt sparse retriever: a model weighs the terms of queries and passages,
//! and an inverted index finds the passages.
//!
//! `score(q, p) = sum over shared terms of (weight in q) * (impact in p)`, with
//! whole numbers for weights (uniCOIL: Lin and Ma 2021; SPLADE: Formal, Piwowarski,
//! Clinchant 2021; DeepImpact: Mallia et al. 2021). The terms are the word pieces
//! of the model.
//!
//! The index of a model lies beside the commits of a store. It is brought up to
//! date when it is opened: passages that came are encoded, those that went are left
//! out. Cost: encoding every passage once; 6 bytes for a posting; a search reads
//! the postings of the query's terms in those blocks of passages that can still hold
//! one of the best.

mod bounds;
mod index;

use keyfold_core::{EncodeError, Progress, Role, SparseEncoder, SparseVector};

use crate::error::SearchError;
use crate::filter::{Allowed, BitSet};
use crate::fuse::Ranked;
use crate::store::Snapshot;
use crate::store::beside::{self, Kind, Owner};
use index::ImpactIndex;

const IMPACTS: Kind = Kind {
    magic: b"KFIMPACT",
    version: 1,
    folder: "impacts",
};
/// Passages that are encoded at a time.
const BATCH: usize = 64;
/// Passages after which the index is written, so that a stopped run loses little.
const WRITE_EVERY: usize = 8192;

/// A sparse model with its index of the passages of one snapshot.
pub struct SparseRetriever<'a> {
    encoder: &'a dyn SparseEncoder,
    index: ImpactIndex,
    live: BitSet,
}

impl<'a> SparseRetriever<'a> {
    /// Opens the index of a model in the store of a snapshot and brings it up to
    /// date. None if the user stopped it; what is done by then is kept.
    ///
    /// Where the store cannot be written, the index serves this process only, and
    /// `progress` is told.
    pub fn open(
        snapshot: &Snapshot,
        encoder: &'a dyn SparseEncoder,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, SearchError> {
        let owner = Owner::new(snapshot, &encoder.identity().hash);
        let path = owner.path(snapshot.store(), &IMPACTS);
        let mut index = match beside::read(&path, &IMPACTS)? {
            Some((header, body)) => ImpactIndex::from_parts(header, &body, &owner),
            None => None,
        }
        .unwrap_or_default();
        let ids = beside::live_passages(snapshot)?;
        let mut live = BitSet::default();
        ids.iter().for_each(|&id| live.insert(id as usize));
        let new: Vec<u64> = ids.iter().copied().filter(|&id| !index.holds(id)).collect();
        let gone = index.len() + new.len() > ids.len();
        if !new.is_empty() {
            progress.start("weigh terms", "passages", Some(new.len() as u64));
        }
        let mut complete = true;
        for part in new.chunks(WRITE_EVERY) {
            let added = encode(snapshot, encoder, part, progress)?;
            complete = added.len() == part.len();
            index = index.with(&added, &live);
            save(&index, &path, &owner, progress)?;
            if !complete {
                break;
            }
        }
        if !new.is_empty() {
            progress.finish();
        } else if gone {
            index = index.with(&[], &live);
            save(&index, &path, &owner, progress)?;
        }
        Ok(complete.then_some(Self {
            encoder,
            index,
            live,
        }))
    }

    /// Number of passages that can be found.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no passage can be found.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of (passage, term) pairs.
    pub fn postings(&self) -> usize {
        self.index.postings()
    }

    /// The weights of a query's terms.
    pub fn weigh(&self, query: &str) -> Result<SparseVector, EncodeError> {
        let found = self.encoder.encode(&[query], Role::Query)?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// The `k` passages of the greatest score among those allowed, best first;
    /// passages that share no term with the query are not found.
    pub fn nearest(
        &self,
        query: &SparseVector,
        k: usize,
        allowed: Option<&Allowed>,
    ) -> Vec<Ranked> {
        let mut best = match allowed {
            Some(allowed) => bounds::best(&self.index, query, k, &allowed.ids()),
            None => bounds::best(&self.index, query, k, &self.live),
        };
        best.iter_mut().for_each(|r| r.score *= self.unit());
        best
    }
}

impl SparseRetriever<'_> {
    /// What a product of two weights of 1 stands for.
    fn unit(&self) -> f32 {
        let unit = self.encoder.unit();
        unit * unit
    }

    /// What each term of a query adds to the score of a passage, greatest first.
    pub(crate) fn parts(&self, query: &SparseVector, id: u64) -> Vec<(String, f32)> {
        let mut parts = self.index.parts_of(query, id);
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let text = |(term, score)| (self.encoder.term(term), score * self.unit());
        parts.into_iter().map(text).collect()
    }
}

/// The weights of passages; fewer than asked for if the user stopped it.
fn encode(
    snapshot: &Snapshot,
    encoder: &dyn SparseEncoder,
    ids: &[u64],
    progress: &dyn Progress,
) -> Result<Vec<(u64, SparseVector)>, SearchError> {
    let mut all = Vec::with_capacity(ids.len());
    for batch in ids.chunks(BATCH) {
        if progress.cancelled() {
            break;
        }
        let texts = texts(snapshot, batch)?;
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        all.extend(
            batch
                .iter()
                .copied()
                .zip(encoder.encode(&views, Role::Document)?),
        );
        progress.advance(batch.len() as u64);
    }
    Ok(all)
}

/// What is searched of each passage; empty for one that went meanwhile.
pub(crate) fn texts(snapshot: &Snapshot, ids: &[u64]) -> Result<Vec<String>, SearchError> {
    let text = |&id: &u64| {
        let stored = snapshot.passage(id)?;
        Ok(stored.map_or_else(String::new, |s| s.passage.searchable().0))
    };
    ids.iter().map(text).collect()
}

fn save(
    index: &ImpactIndex,
    path: &std::path::Path,
    owner: &Owner,
    progress: &dyn Progress,
) -> Result<(), SearchError> {
    let (header, body) = index.parts(owner);
    match beside::write(path, &IMPACTS, &header, &body) {
        Err(e @ SearchError::Write { .. }) => {
            progress.note(&format!("the weights of terms serve this search only: {e}"));
            Ok(())
        }
        other => other,
    }
}
