//! The scores of anchor queries against all passages, kept with a store.
//!
//! ```text
//! ids             u64 for every passage, ascending
//! scores          f32 [passages, queries]
//! ```
//!
//! The queries are in the header.

use std::path::Path;

use keyfold_core::{PairScorer, Progress};

use super::cur::AnchorScores;
use crate::error::SearchError;
use crate::sparse::texts;
use crate::store::Snapshot;
use crate::store::beside::{self, Kind, Owner, take};

const ANCHORS: Kind = Kind {
    magic: b"KFANCHOR",
    version: 1,
    folder: "anchors",
};
/// Pairs that are scored at a time, at least.
const BATCH: usize = 64;
/// Pairs after which the scores are written, so that a stopped run loses little.
const WRITE_EVERY: usize = 1 << 16;

/// Scores of anchor queries against the passages of one snapshot.
pub struct Anchors {
    queries: Vec<String>,
    ids: Vec<u64>,
    scores: AnchorScores,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Header {
    owner: Owner,
    queries: Vec<String>,
    passages: u64,
}

/// The scores so far: of `ids`, ascending, `[ids, queries]`.
#[derive(Default)]
struct Table {
    ids: Vec<u64>,
    scores: Vec<f32>,
}

impl Anchors {
    /// Opens the scores of a model in the store of a snapshot and brings them up to
    /// date. `queries`, where given, are the anchor queries; others than before
    /// begin anew. None if the user stopped it; what is done by then is kept.
    ///
    /// Refuses a store without such scores where no queries are given. Where the
    /// store cannot be written, the scores serve this process only, and `progress`
    /// is told.
    pub fn open(
        snapshot: &Snapshot,
        scorer: &dyn PairScorer,
        queries: Option<&[String]>,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, SearchError> {
        let owner = Owner::new(snapshot, &scorer.identity().hash);
        let path = owner.path(snapshot.store(), &ANCHORS);
        let stored = stored(&path, &owner)?;
        let (queries, mut table) = match (queries, stored) {
            (Some(asked), Some((queries, table))) if asked == queries => (queries, table),
            (Some(asked), _) => (asked.to_vec(), Table::default()),
            (None, Some(stored)) => stored,
            (None, None) => {
                return Err(SearchError::Rerank {
                    what: format!(
                        "the store {} has no scores of anchor queries for model '{}': give \
                         --anchor-queries FILE once, with a typical query in each line (a few \
                         hundred, at least twice as many as --anchors); the model then reads each \
                         of them with every passage",
                        snapshot.store().display(),
                        scorer.identity().name
                    ),
                });
            }
        };
        if queries.is_empty() {
            return Err(SearchError::Rerank {
                what: "there is no anchor query: --anchor-queries wants one in each line"
                    .to_owned(),
            });
        }
        let live = beside::live_passages(snapshot)?;
        let r = queries.len();
        let is_new = |id: &u64| table.ids.binary_search(id).is_err();
        let new: Vec<u64> = live.iter().copied().filter(is_new).collect();
        if !new.is_empty() {
            progress.start("score anchors", "passages", Some(new.len() as u64));
        }
        let save = |table: &Table| save(table, &queries, &path, &owner, progress);
        let mut changed = table.keep(&live, r);
        let mut unwritten = 0;
        let mut stopped = false;
        for batch in new.chunks(BATCH.div_ceil(r)) {
            stopped = progress.cancelled();
            if stopped {
                break;
            }
            let texts = texts(snapshot, batch)?;
            let pairs: Vec<(&str, &str)> = texts
                .iter()
                .flat_map(|text| queries.iter().map(move |q| (q.as_str(), text.as_str())))
                .collect();
            table.add(batch, &scorer.score(&pairs)?);
            progress.advance(batch.len() as u64);
            changed = true;
            unwritten += pairs.len();
            if unwritten >= WRITE_EVERY {
                save(&table.sorted(r))?;
                unwritten = 0;
            }
        }
        let table = table.sorted(r);
        if changed {
            save(&table)?;
        }
        if !new.is_empty() {
            progress.finish();
        }
        if stopped {
            return Ok(None);
        }
        let scores = AnchorScores::new(table.scores, r).ok_or_else(|| SearchError::Rerank {
            what: format!(
                "model '{}' gave scores that are no numbers; its weights may be damaged",
                scorer.identity().name
            ),
        })?;
        Ok(Some(Self {
            ids: table.ids,
            scores,
            queries,
        }))
    }

    /// The anchor queries.
    pub fn queries(&self) -> &[String] {
        &self.queries
    }

    /// The passages, ascending.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// Their scores.
    pub fn scores(&self) -> &AnchorScores {
        &self.scores
    }
}

impl Table {
    /// Leaves out all but these passages, which are ascending; true if some went.
    fn keep(&mut self, live: &[u64], queries: usize) -> bool {
        let before = self.ids.len();
        let old = std::mem::take(self);
        for (id, row) in old.ids.into_iter().zip(old.scores.chunks_exact(queries)) {
            if live.binary_search(&id).is_ok() {
                self.ids.push(id);
                self.scores.extend_from_slice(row);
            }
        }
        self.ids.len() < before
    }

    fn add(&mut self, ids: &[u64], scores: &[f32]) {
        self.ids.extend_from_slice(ids);
        self.scores.extend_from_slice(scores);
    }

    /// The same, ascending.
    fn sorted(&self, queries: usize) -> Self {
        let mut order: Vec<usize> = (0..self.ids.len()).collect();
        order.sort_by_key(|&i| self.ids[i]);
        let row = |&i: &usize| self.scores[i * queries..(i + 1) * queries].iter().copied();
        Self {
            scores: order.iter().flat_map(row).collect(),
            ids: order.iter().map(|&i| self.ids[i]).collect(),
        }
    }
}

/// The queries and scores in a file; none if it belongs to something else.
fn stored(path: &Path, owner: &Owner) -> Result<Option<(Vec<String>, Table)>, SearchError> {
    let Some((header, body)) = beside::read::<Header>(path, &ANCHORS)? else {
        return Ok(None);
    };
    let mut rest = &body[..];
    let table = (|| {
        let ids: Vec<u64> = take(&mut rest, header.passages)?;
        let numbers = header.passages.checked_mul(header.queries.len() as u64)?;
        let scores: Vec<f32> = take(&mut rest, numbers)?;
        let sound = ids.is_sorted_by(|a, b| a < b) && scores.iter().all(|s| s.is_finite());
        (sound && header.owner == *owner).then_some(Table { ids, scores })
    })();
    Ok(table.map(|table| (header.queries, table)))
}

fn save(
    table: &Table,
    queries: &[String],
    path: &Path,
    owner: &Owner,
    progress: &dyn Progress,
) -> Result<(), SearchError> {
    let header = Header {
        owner: owner.clone(),
        queries: queries.to_vec(),
        passages: table.ids.len() as u64,
    };
    let body = [
        bytemuck::cast_slice(&table.ids),
        bytemuck::cast_slice(&table.scores),
    ];
    match beside::write(path, &ANCHORS, &header, &body) {
        Err(e @ SearchError::Write { .. }) => {
            progress.note(&format!(
                "the scores of anchors serve this search only: {e}"
            ));
            Ok(())
        }
        other => other,
    }
}
