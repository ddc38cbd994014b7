//! The scores of anchor queries against all passages, kept with a store.
//!
//! ```text
//! ids             u64 for every passage, ascending
//! scores          f32 [passages, queries]
//! ```
//!
//! The queries are in the header, and which passages have estimated scores.

use std::path::Path;
use std::time::{Duration, Instant};

use keyfold_core::{EncodeError, PairScorer, Progress};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::index::sample;

use super::cur::{AnchorScores, Inverse, NewItems};
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
/// How often the scores are written, so that a run that is killed loses little.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Passages that estimates for new ones are learnt from, at most.
const LEARN_FROM: usize = 1000;

/// Scores of anchor queries against the passages of one snapshot.
pub struct Anchors {
    queries: Vec<String>,
    ids: Vec<u64>,
    scores: AnchorScores,
    estimated: usize,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Header {
    owner: Owner,
    queries: Vec<String>,
    passages: u64,
    /// The passages that only some of the queries have scored, ascending.
    #[serde(default)]
    estimated: Vec<u64>,
}

/// The scores so far: of `ids`, ascending, `[ids, queries]`.
#[derive(Default)]
struct Table {
    ids: Vec<u64>,
    scores: Vec<f32>,
    estimated: Vec<u64>,
}

impl Anchors {
    /// Opens the scores of a model in the store of a snapshot and brings them up to
    /// date. `queries`, where given, are the anchor queries; others than before
    /// begin anew. Passages that come later are scored by `few` of the queries where
    /// given, and their other scores estimated (see [`AnchorScores::for_new_items`]),
    /// once twice as many passages are scored by all; such passages stay estimated.
    /// None if the user stopped it; what is done by then is kept.
    ///
    /// Refuses a store without such scores where no queries are given. Where the
    /// store cannot be written, the scores serve this process only, and `progress`
    /// is told.
    pub fn open(
        snapshot: &Snapshot,
        scorer: &dyn PairScorer,
        queries: Option<&[String]>,
        few: Option<usize>,
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
        let mut changed = table.keep(&live, r);
        let estimates = match few {
            Some(few) if !new.is_empty() => table.for_new_items(few, r),
            _ => None,
        };
        let every: Vec<usize> = (0..r).collect();
        let asked = estimates.as_ref().map_or(&every[..], NewItems::queries);
        if !new.is_empty() {
            let calls = new.len() * asked.len();
            progress.start("score anchors", "calls", Some(calls as u64));
        }
        let save = |table: &Table| save(table, &queries, &path, &owner, progress);
        let mut written = Instant::now();
        let mut failed: Option<EncodeError> = None;
        let mut stopped = false;
        for batch in new.chunks(BATCH.div_ceil(asked.len())) {
            stopped = progress.cancelled();
            if stopped {
                break;
            }
            let texts = texts(snapshot, batch)?;
            let pairs: Vec<(&str, &str)> = texts
                .iter()
                .flat_map(|text| asked.iter().map(|&q| (queries[q].as_str(), text.as_str())))
                .collect();
            match scorer.score(&pairs) {
                Ok(scores) => table.add(batch, &scores, estimates.as_ref()),
                Err(e) => {
                    // Ctrl-C ends a program that scores as well.
                    stopped = progress.cancelled();
                    failed = Some(e);
                    break;
                }
            }
            progress.advance(pairs.len() as u64);
            changed = true;
            if written.elapsed() >= WRITE_EVERY {
                save(&table.sorted(r))?;
                written = Instant::now();
            }
        }
        let table = table.sorted(r);
        if changed {
            save(&table)?;
        }
        if !new.is_empty() {
            progress.finish();
        }
        match failed {
            _ if stopped => return Ok(None),
            Some(e) => return Err(e.into()),
            None => {}
        }
        let estimated = table.estimated.len();
        let scores = AnchorScores::new(table.scores, r).ok_or_else(|| SearchError::Rerank {
            what: format!(
                "model '{}' gave scores that are no numbers; its weights may be damaged",
                scorer.identity().name
            ),
        })?;
        Ok(Some(Self {
            ids: table.ids,
            scores,
            estimated,
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

    /// How many of them only some of the queries have scored.
    pub fn estimated(&self) -> usize {
        self.estimated
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
        let is_live = |id: &u64| live.binary_search(id).is_ok();
        for (id, row) in old.ids.into_iter().zip(old.scores.chunks_exact(queries)) {
            if is_live(&id) {
                self.ids.push(id);
                self.scores.extend_from_slice(row);
            }
        }
        self.estimated = old.estimated;
        self.estimated.retain(is_live);
        self.ids.len() < before
    }

    /// How `few` of the queries tell the scores of new passages, if that saves calls
    /// and enough passages are scored by all.
    fn for_new_items(&self, few: usize, queries: usize) -> Option<NewItems> {
        let rows = self.ids.iter().zip(self.scores.chunks_exact(queries));
        let known: Vec<&[f32]> = rows
            .filter(|(id, _)| self.estimated.binary_search(id).is_err())
            .map(|(_, row)| row)
            .collect();
        if few == 0 || few >= queries || known.len() < 2 * few {
            return None;
        }
        let mut rng = SmallRng::seed_from_u64(0);
        let learnt = sample(&mut rng, known.len(), LEARN_FROM.min(known.len()));
        let scores: Vec<f32> = learnt
            .iter()
            .flat_map(|i| known[i].iter().copied())
            .collect();
        let items: Vec<usize> = (0..learnt.len()).collect();
        let mut asked = sample(&mut rng, queries, few).into_vec();
        asked.sort_unstable();
        let scores = AnchorScores::new(scores, queries)?;
        Some(scores.for_new_items(&asked, &items, Inverse::default()))
    }

    /// Adds passages with their scores, by all queries or by those of `estimates`.
    fn add(&mut self, ids: &[u64], scores: &[f32], estimates: Option<&NewItems>) {
        self.ids.extend_from_slice(ids);
        let Some(estimates) = estimates else {
            self.scores.extend_from_slice(scores);
            return;
        };
        self.estimated.extend_from_slice(ids);
        for scores in scores.chunks_exact(estimates.queries().len()) {
            self.scores.extend(estimates.estimate(scores));
        }
    }

    /// The same, ascending.
    fn sorted(&self, queries: usize) -> Self {
        let mut order: Vec<usize> = (0..self.ids.len()).collect();
        order.sort_by_key(|&i| self.ids[i]);
        let row = |&i: &usize| self.scores[i * queries..(i + 1) * queries].iter().copied();
        let mut estimated = self.estimated.clone();
        estimated.sort_unstable();
        Self {
            scores: order.iter().flat_map(row).collect(),
            ids: order.iter().map(|&i| self.ids[i]).collect(),
            estimated,
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
        let estimated = header.estimated;
        let sound = ids.is_sorted_by(|a, b| a < b)
            && estimated.is_sorted_by(|a, b| a < b)
            && scores.iter().all(|s| s.is_finite());
        (sound && header.owner == *owner).then_some(Table {
            ids,
            scores,
            estimated,
        })
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
        estimated: table.estimated.clone(),
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
