//! Searching a store: by words, by meaning, or by both.

mod present;

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use keyfold_core::{Encoder, Role, SparseVector, Vectors};

use crate::bm25::Bm25;
use crate::candidates::{self, CandidateOptions, MeaningTimings, Method};
use crate::codebook::Bits;
use crate::error::{BINARY, SearchError};
use crate::explain::{QueryRows, WordMatch};
use crate::feedback::{Feedback, VectorFeedback};
use crate::filter::{Allowed, Filters};
use crate::fuse::{self, Fuse, FusionOptions, Ranked};
use crate::lexical::Words;
use crate::rerank::Reranker;
use crate::score;
use crate::sparse::SparseRetriever;
use crate::store::{Segment, Snapshot};

/// Of longer queries only so many rows are searched for by meaning.
pub const MAX_QUERY_ROWS: usize = 512;

/// By what to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By words.
    Lexical,
    /// By meaning.
    Meaning,
    /// By both, fused.
    #[default]
    Both,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "lexical" => Ok(Mode::Lexical),
            "meaning" => Ok(Mode::Meaning),
            "both" => Ok(Mode::Both),
            _ => Err(format!("'{s}' is no mode: choose lexical, meaning or both")),
        }
    }
}

/// How to search.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchOptions {
    /// How many passages to give, at most.
    pub k: usize,
    /// By what to search.
    pub mode: Mode,
    /// Which passages may be found.
    pub filters: Filters,
    /// How words count.
    pub bm25: Bm25,
    /// How passages are found by meaning.
    pub candidates: CandidateOptions,
    /// What a second search learns from the first.
    pub feedback: Feedback,
    /// How both lists become one.
    pub fusion: FusionOptions,
    /// Whether hits say which words met.
    pub explain: bool,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self {
            k: 10,
            mode: Mode::default(),
            filters: Filters::default(),
            bm25: Bm25::default(),
            candidates: CandidateOptions::default(),
            feedback: Feedback::default(),
            fusion: FusionOptions::default(),
            explain: false,
        }
    }
}

/// The models that a search uses.
#[derive(Clone, Copy, Default)]
pub struct Models<'a> {
    /// The model of the store; searching by words alone needs none.
    pub encoder: Option<&'a dyn Encoder>,
    /// Learnt weights of terms, in the place of BM25.
    pub sparse: Option<&'a SparseRetriever<'a>>,
    /// A cross-encoder that makes the last order.
    pub reranker: Option<&'a Reranker<'a>>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchResult {
    /// The passages, best first.
    pub hits: Vec<Hit>,
    /// What a person should know of the search, in a sentence.
    pub note: Option<String>,
    /// How many passages a reranker read.
    pub calls: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Hit {
    /// Its id in the store.
    pub passage_id: u64,
    /// Where its file is.
    pub path: PathBuf,
    /// The key of its file (see [`StoredPassage::key`](crate::store::StoredPassage::key)).
    pub key: String,
    /// Format of its file.
    pub format: String,
    /// Headings above it, outermost first.
    pub headings: Vec<String>,
    /// Lines of the file, first and one past the last, counted from 1; empty
    /// where the format has no lines.
    pub lines: Range<u32>,
    /// Page, chapter, row or message, counted from 1.
    pub part: Option<u32>,
    /// Bytes of the file; empty where the format is packed.
    pub bytes: Range<u64>,
    /// The text.
    pub text: String,
    /// How well it fits: BM25 (or the sum of learnt weights), MaxSim, or the fused
    /// score, by mode; the cross-encoder's where one made the order. Scores of one
    /// list fall; scores of different lists do not compare.
    pub score: f32,
    /// Its place in the lexical list, if it is there.
    pub lexical: Option<Place>,
    /// Its place in the list by meaning, if it is there.
    pub meaning: Option<Place>,
    /// The bytes of `text` that matched best: whole words, sorted, without overlap.
    pub highlights: Vec<Range<usize>>,
    /// Which words met, where that was asked for; pairs by meaning in the order
    /// of the query, then lexical ones.
    pub explanation: Option<Vec<WordMatch>>,
}

/// A place in a retriever's list.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Place {
    /// Counted from 1.
    pub rank: usize,
    /// The retriever's score: BM25 or MaxSim.
    pub score: f32,
}

/// Where the time of a search went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Encoding the query.
    pub encode: Duration,
    /// Deciding what may be found.
    pub filter: Duration,
    /// Searching by words; with feedback, twice.
    pub lexical: Duration,
    /// Searching by meaning; with feedback, the second time.
    pub meaning: MeaningTimings,
    /// Reranking.
    pub rerank: Duration,
    /// With feedback of vectors: the first search by meaning, and learning from it.
    pub feedback: Duration,
    /// Reading the hits, aligning and marking their words.
    pub present: Duration,
    /// All of it.
    pub total: Duration,
}

/// The lists of both retrievers and what became of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rankings {
    /// By words, best first; empty in the mode without it.
    pub lexical: Vec<Ranked>,
    /// By meaning, best first; empty in the mode without it.
    pub meaning: Vec<Ranked>,
    /// The final list, at most `k` long.
    pub ranked: Vec<Ranked>,
    /// How many passages a reranker read.
    pub calls: usize,
    /// What the list by words is of.
    asked: Asked,
    /// Where the time went.
    pub timings: Timings,
}

/// What was searched for by words.
#[derive(Debug, Clone, PartialEq)]
enum Asked {
    /// Words as the index knows them, with their weights; feedback included.
    Words(Vec<(String, f32)>),
    /// Terms of a model that weighs them.
    Terms(SparseVector),
}

impl Default for Asked {
    fn default() -> Self {
        Self::Words(Vec::new())
    }
}

/// Searches a snapshot.
///
/// `query` is plain text; what stands in double quotes must occur. `encoder` must
/// be the model of the store; searching by words alone needs none.
///
/// Refuses an empty query, a wrong or missing model and filters that are no
/// globs; fails where the store is damaged.
pub fn search(
    snapshot: &Snapshot,
    query: &str,
    encoder: Option<&dyn Encoder>,
    options: &SearchOptions,
) -> Result<SearchResult, SearchError> {
    let models = Models {
        encoder,
        ..Models::default()
    };
    search_with(snapshot, query, &models, options)
}

/// [`search`] with more models than that of the store.
pub fn search_with(
    snapshot: &Snapshot,
    query: &str,
    models: &Models<'_>,
    options: &SearchOptions,
) -> Result<SearchResult, SearchError> {
    let start = Instant::now();
    let looked_for = LookedFor::new(snapshot, query, models, options)?;
    let rankings = looked_for.rank(snapshot, options)?;
    let mut timings = rankings.timings;
    let presenting = Instant::now();
    let mut hits = Vec::with_capacity(rankings.ranked.len());
    for ranked in &rankings.ranked {
        hits.push(looked_for.present(snapshot, &rankings, *ranked, options)?);
    }
    timings.present = presenting.elapsed();
    timings.total = start.elapsed();
    Ok(SearchResult {
        hits,
        note: looked_for.note(),
        calls: rankings.calls,
        timings,
    })
}

/// The lists of a search without its hits; for measuring. As [`search`] otherwise.
pub fn rank(
    snapshot: &Snapshot,
    query: &str,
    encoder: Option<&dyn Encoder>,
    options: &SearchOptions,
) -> Result<Rankings, SearchError> {
    let models = Models {
        encoder,
        ..Models::default()
    };
    rank_with(snapshot, query, &models, options)
}

/// [`rank`] with more models than that of the store.
pub fn rank_with(
    snapshot: &Snapshot,
    query: &str,
    models: &Models<'_>,
    options: &SearchOptions,
) -> Result<Rankings, SearchError> {
    let start = Instant::now();
    let looked_for = LookedFor::new(snapshot, query, models, options)?;
    let mut rankings = looked_for.rank(snapshot, options)?;
    rankings.timings.total = start.elapsed();
    Ok(rankings)
}

/// [`rank`] for many queries, one after the other, in their order.
pub fn rank_all(
    snapshot: &Snapshot,
    queries: &[&str],
    encoder: Option<&dyn Encoder>,
    options: &SearchOptions,
) -> Result<Vec<Rankings>, SearchError> {
    let rank = |query: &&str| rank(snapshot, query, encoder, options);
    queries.iter().map(rank).collect()
}

/// A query, ready to be searched for.
struct LookedFor<'a> {
    text: &'a str,
    /// Its words, unless only the meaning counts.
    words: Option<Words<'a>>,
    /// The model and the query, unless only the words count or the model finds
    /// nothing in the query.
    meaning: Option<Meant<'a>>,
    /// Makes the last order, if there is one.
    reranker: Option<&'a Reranker<'a>>,
    /// Learnt weights in the place of BM25, unless only the meaning counts.
    sparse: Option<&'a SparseRetriever<'a>>,
    /// What must occur, if something is quoted.
    quoted: Option<Vec<u64>>,
    /// Whether rows meet only rows with the same id.
    exact_match: bool,
    encode: Duration,
}

impl<'a> LookedFor<'a> {
    fn new(
        snapshot: &'a Snapshot,
        query: &'a str,
        models: &Models<'a>,
        options: &SearchOptions,
    ) -> Result<Self, SearchError> {
        if query.trim().is_empty() {
            return Err(SearchError::EmptyQuery);
        }
        let words = Words::new(snapshot, query, &options.bm25)?;
        let quoted = words.with_phrases()?;
        let encoding = Instant::now();
        let meaning = match (options.mode, models.encoder) {
            (Mode::Lexical, _) => None,
            (_, None) => {
                return Err(SearchError::NoEncoder {
                    store: snapshot.store().to_owned(),
                    stored: snapshot.encoder().name.clone(),
                });
            }
            (_, Some(encoder)) => {
                snapshot.require_encoder(encoder.identity())?;
                require_comparison(snapshot, options)?;
                Meant::new(snapshot, encoder, query)?
            }
        };
        let usual = meaning.as_ref().is_some_and(|m| m.encoder.exact_match());
        Ok(Self {
            text: query,
            words: (options.mode != Mode::Meaning).then_some(words),
            meaning,
            reranker: models.reranker,
            sparse: models.sparse.filter(|_| options.mode != Mode::Meaning),
            quoted,
            exact_match: options.candidates.exact_match.unwrap_or(usual),
            encode: encoding.elapsed(),
        })
    }

    fn rank(&self, snapshot: &Snapshot, options: &SearchOptions) -> Result<Rankings, SearchError> {
        let mut rankings = Rankings::default();
        rankings.timings.encode = self.encode;
        let mut clock = Instant::now();
        let mut allowed = Allowed::new(snapshot, &options.filters)?;
        if let Some(ids) = &self.quoted {
            allowed = Some(Allowed::only(snapshot, allowed.as_ref(), ids)?);
        }
        rankings.timings.filter = candidates::lap(&mut clock);
        let allowed = allowed.as_ref();
        let wanted = self.reranker.map_or(options.k, Reranker::depth);
        let depth = match options.mode {
            Mode::Both => options.fusion.list_depth(wanted),
            _ => wanted,
        };
        (rankings.lexical, rankings.asked) = self.by_words(snapshot, depth, allowed, options)?;
        rankings.timings.lexical = candidates::lap(&mut clock);
        if let Some(meant) = &self.meaning {
            let nearest = |rows: &Vectors| {
                let candidates = CandidateOptions {
                    exact_match: Some(self.exact_match),
                    ..options.candidates.tuned(snapshot.tuned())
                };
                candidates::nearest(snapshot.segments(), rows, depth, allowed, &candidates)
            };
            (rankings.meaning, rankings.timings.meaning) = nearest(meant.rows())?;
            if snapshot.whole_text_rows() > 0 {
                self.compare_found_by_words(snapshot, meant.rows(), &mut rankings, options)?;
                rankings.meaning.truncate(depth);
            }
            if let Some(how) = &options.feedback.vector {
                let rows = learned(snapshot, meant.rows(), &rankings, how, options)?;
                rankings.timings.feedback = candidates::lap(&mut clock);
                (rankings.meaning, rankings.timings.meaning) = nearest(&rows)?;
            }
        }
        rankings.ranked = mixed(&rankings, options);
        if let Some(reranker) = self.reranker {
            clock = Instant::now();
            (rankings.ranked, rankings.calls) =
                reranker.rerank(snapshot, self.text, &rankings.ranked, allowed)?;
            rankings.timings.rerank = candidates::lap(&mut clock);
        }
        rankings.ranked.truncate(options.k);
        Ok(rankings)
    }

    /// Adds the passages that words found to the list by meaning, with their scores:
    /// vectors of whole texts may have missed them.
    fn compare_found_by_words(
        &self,
        snapshot: &Snapshot,
        rows: &Vectors,
        rankings: &mut Rankings,
        options: &SearchOptions,
    ) -> Result<(), SearchError> {
        let known: HashSet<u64> = rankings.meaning.iter().map(|r| r.passage).collect();
        let found = rankings.lexical.iter().map(|r| r.passage);
        let found: Vec<u64> = found.filter(|id| !known.contains(id)).collect();
        let how = CandidateOptions {
            exact_match: Some(self.exact_match),
            ..options.candidates
        };
        let scored = candidates::scores_of(snapshot.segments(), rows, &found, &how)?;
        rankings.meaning.extend(scored);
        fuse::sort(&mut rankings.meaning);
        Ok(())
    }

    /// The list by words, or by learnt weights; empty if only the meaning counts.
    fn by_words(
        &self,
        snapshot: &Snapshot,
        depth: usize,
        allowed: Option<&Allowed>,
        options: &SearchOptions,
    ) -> Result<(Vec<Ranked>, Asked), SearchError> {
        if let Some(sparse) = self.sparse {
            let terms = sparse.weigh(self.text)?;
            let found = sparse.nearest(&terms, depth, allowed);
            return Ok((found, Asked::Terms(terms)));
        }
        let Some(words) = &self.words else {
            return Ok(Default::default());
        };
        let search =
            |weights: &[(String, f32)], k| words.search(weights, k, allowed.map(Allowed::ids));
        let mut weights = words.weights();
        if let Some(rm3) = &options.feedback.rm3 {
            let found = search(&weights, rm3.passages)?;
            weights = rm3.learn(snapshot, words, &found)?;
        }
        Ok((search(&weights, depth)?, Asked::Words(weights)))
    }

    /// What to know of this search.
    fn note(&self) -> Option<String> {
        let meant = self.meaning.as_ref()?;
        let heads = meant.encoder.whole_text_rows();
        let only = heads > 0 && meant.query.rows.ids().is_some_and(|ids| ids.len() <= heads);
        only.then(|| {
            "the model finds no word in the query: passages are compared as a whole".to_owned()
        })
    }
}

/// A query as a model sees it.
struct Meant<'a> {
    encoder: &'a dyn Encoder,
    /// The rows with their words.
    query: QueryRows,
    /// The rows to search with, where the store folds those of queries.
    folded: Option<Vectors>,
}

impl<'a> Meant<'a> {
    /// None if the model finds nothing in `query`.
    fn new(
        snapshot: &Snapshot,
        encoder: &'a dyn Encoder,
        query: &str,
    ) -> Result<Option<Self>, SearchError> {
        let folding = snapshot.folding();
        Ok(query_rows(encoder, query)?.map(|rows| Self {
            encoder,
            folded: folding
                .queries
                .then(|| folding.query(rows.rows.clone(), query)),
            query: rows,
        }))
    }

    /// What is searched for.
    fn rows(&self) -> &Vectors {
        self.folded.as_ref().unwrap_or(&self.query.rows)
    }
}

/// The list of a search, out of those of both retrievers.
fn mixed(rankings: &Rankings, options: &SearchOptions) -> Vec<Ranked> {
    let (lexical, meaning) = (&rankings.lexical, &rankings.meaning);
    let fusion = &options.fusion;
    match (options.mode, fusion.fuse) {
        (Mode::Lexical, _) => lexical.clone(),
        (Mode::Meaning, _) => meaning.clone(),
        (Mode::Both, Fuse::Rank) => fuse::reciprocal_rank(&[lexical, meaning], fusion.constant),
        (Mode::Both, fuse) if fuse.after() => {
            fuse::interpolate(lexical, meaning, &fusion.interpolation)
        }
        (Mode::Both, _) => meaning.clone(),
    }
}

/// The query's rows after feedback from the first lists of a search.
fn learned(
    snapshot: &Snapshot,
    query: &Vectors,
    rankings: &Rankings,
    how: &VectorFeedback,
    options: &SearchOptions,
) -> Result<Vectors, SearchError> {
    let mixed;
    let source = if options.mode == Mode::Both && options.fusion.fuse.before() {
        let interpolation = &options.fusion.interpolation;
        mixed = fuse::interpolate(&rankings.lexical, &rankings.meaning, interpolation);
        &mixed
    } else {
        &rankings.meaning
    };
    let rows = |list: &[Ranked]| -> Result<Vec<Vectors>, SearchError> {
        let mut all = Vec::with_capacity(list.len());
        for ranked in list {
            let rows = decoded(snapshot, ranked.passage)?;
            // Codes are of finite numbers, so only damage could make others.
            all.extend(rows.and_then(|rows| Vectors::new(query.dim(), rows).ok()));
        }
        Ok(all)
    };
    let best = rows(&source[..how.k.min(source.len())])?;
    let worst = rows(&source[source.len().saturating_sub(how.bottom())..])?;
    Ok(how.apply(query, &best, &worst))
}

/// The rows of a query, no more than are searched for; none if there is none.
fn query_rows(encoder: &dyn Encoder, query: &str) -> Result<Option<QueryRows>, SearchError> {
    let dim = encoder.identity().dim;
    let Some(rows) = encoder.encode(&[query], Role::Query)?.pop() else {
        return Ok(None);
    };
    let ids = rows.ids().map(<[u32]>::to_vec);
    let mut numbers = rows.into_vec();
    numbers.truncate(MAX_QUERY_ROWS * dim);
    let rows = Vectors::new(dim, numbers).map(|rows| match ids {
        Some(mut ids) => {
            ids.truncate(rows.rows());
            rows.with_ids(ids)
        }
        None => rows,
    });
    match rows {
        Ok(rows) if !rows.is_empty() => QueryRows::new(encoder, query, rows).map(Some),
        _ => Ok(None),
    }
}

/// The rows of a passage, as they are stored; none if it has none.
fn decoded(snapshot: &Snapshot, id: u64) -> Result<Option<Vec<f32>>, SearchError> {
    let rows = found(snapshot, id)?.map(|(segment, local)| score::decoded(segment, local));
    rows.transpose()
}

/// Where a passage is; none if it has no rows.
fn found(snapshot: &Snapshot, id: u64) -> Result<Option<(&Segment, u32)>, SearchError> {
    for segment in snapshot.segments() {
        if let Some(local) = segment.find(id)?.filter(|&local| segment.is_live(local)) {
            let rows = segment.rows(local)?;
            return Ok((!rows.is_empty()).then_some((segment, local)));
        }
    }
    Ok(None)
}

/// Refuses options that do not go with how the store's model compares texts.
fn require_comparison(snapshot: &Snapshot, options: &SearchOptions) -> Result<(), SearchError> {
    let candidates = &options.candidates;
    let refuse = |what: &str, how, instead| {
        Err(SearchError::OtherComparison {
            what: what.to_owned(),
            model: snapshot.encoder().name.clone(),
            how,
            instead,
        })
    };
    if snapshot.bits() == Bits::One {
        return match candidates.method {
            Method::Auto | Method::Exhaustive => Ok(()),
            _ => refuse("this --candidates", BINARY, "leave it out"),
        };
    }
    if snapshot.whole_text_rows() == 0 {
        let how = "token vectors, and has no vectors of whole texts";
        return match candidates.method {
            Method::Cls => refuse("--candidates cls", how, "leave it out"),
            _ if candidates.exact_match == Some(true) => refuse(
                "--exact-match",
                how,
                "index with a ColBERTer model, or leave it out",
            ),
            _ => Ok(()),
        };
    }
    let how = "whole texts and then words";
    match candidates.method {
        Method::Auto | Method::Cls | Method::Exhaustive => {}
        _ => {
            return refuse(
                "this --candidates",
                how,
                "use --candidates cls or exhaustive",
            );
        }
    }
    if options.feedback.vector.is_some() {
        return refuse("--feedback vector", how, "use --feedback rm3");
    }
    Ok(())
}
