//! Feedback and interpolation on a judged collection, in the table of the paper:
//! To Interpolate or not to Interpolate: PRF, Dense and Sparse Retrievers (Li et
//! al., SIGIR 2022).
//!
//! Sparse retrievers: BM25 as Anserini has it (k1 0.9, b 0.4), the same with RM3,
//! and a model that weighs terms where one is given (`--sparse`). Dense
//! retrievers: token vectors of the default encoder, the single vectors of latent
//! semantic analysis, learnt from the collection itself, and those of a sentence
//! encoder (`--teacher`). All runs go through the engine; every passage is scored.

mod report;
mod sweep;

use std::cell::RefCell;

use keyfold_core::{Encoder, Progress};
use keyfold_search::bm25::Bm25;
use keyfold_search::candidates::Method;
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, Models, Rankings, SearchOptions, rank_with};
use keyfold_search::feedback::{Feedback, Rm3, VectorFeedback};
use keyfold_search::fuse::{self, Fuse, Interpolation, Ranked};
use keyfold_search::sparse::SparseRetriever;
use keyfold_search::store::Snapshot;
use keyfold_text::SparseTextEncoder;
use serde_json::{Value, json};

use super::search::{Collection, fixture, read};
use crate::lsa::{self, Lsa};
use crate::quality::{Relevant, average_precision, mean, ndcg, recall};
use crate::report::Report;
use crate::store;
use crate::{BenchError, BenchOptions, Experiment};
use sweep::{Sweep, Tried};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "prf-interpolation",
    about: "feedback of vectors and interpolation with sparse scores before and after it; --sweep \
            finds the weights",
    run,
};

/// Length of the lists, as in the paper.
const DEPTH: usize = 1000;
const LSA_DIM: usize = 150;

/// What the specification's own run gave on Cranfield with similar parts: LSA of
/// 150 dimensions, BM25 with k1 1.5 and b 0.75, weight 0.1 of the sparse list. MAP,
/// nDCG@10, recall@100.
const REFERENCE: [(&str, [f64; 3]); 6] = [
    (BM25, [0.287, 0.367, 0.725]),
    ("dense", [0.346, 0.417, 0.803]),
    ("PRF, average", [0.368, 0.434, 0.808]),
    ("before", [0.375, 0.442, 0.815]),
    ("after", [0.369, 0.432, 0.818]),
    ("both", [0.373, 0.437, 0.822]),
];
const REFERENCE_WEIGHT: f32 = 0.1;
const BM25: &str = "BM25";

/// The rows of the paper's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Dense,
    Average,
    Rocchio,
    NoFeedback,
    Before,
    After,
    Both,
}

const ROWS: [Row; 7] = [
    Row::Dense,
    Row::Average,
    Row::Rocchio,
    Row::NoFeedback,
    Row::Before,
    Row::After,
    Row::Both,
];

impl Row {
    fn name(self) -> &'static str {
        match self {
            Row::Dense => "dense",
            Row::Average => "PRF, average",
            Row::Rocchio => "PRF, Rocchio",
            Row::NoFeedback => "interpolated, no PRF",
            Row::Before => "before",
            Row::After => "after",
            Row::Both => "both",
        }
    }

    /// Whether the sparse list has a part in it.
    fn is_mixed(self) -> bool {
        !matches!(self, Row::Dense | Row::Average | Row::Rocchio)
    }

    fn feedback(self) -> Option<VectorFeedback> {
        match self {
            Row::Dense | Row::NoFeedback => None,
            Row::Rocchio => Some(VectorFeedback::rocchio()),
            _ => Some(VectorFeedback::average()),
        }
    }
}

/// A dense retriever, with its store.
struct Dense {
    name: String,
    encoder: Box<dyn Encoder>,
    snapshot: Snapshot,
    _folder: tempfile::TempDir,
}

/// Measures of a run, a number for each query.
struct Measured {
    map: Vec<f64>,
    ndcg: Vec<f64>,
    recall: Vec<f64>,
}

impl Measured {
    fn new(lists: &Lists, relevant: &[Relevant]) -> Self {
        let ids = |list: &Vec<Ranked>| list.iter().map(|r| r.passage as usize).collect();
        let lists: Vec<Vec<usize>> = lists.iter().map(ids).collect();
        let each = |f: &dyn Fn(&[usize], &Relevant) -> f64| -> Vec<f64> {
            let pairs = lists.iter().zip(relevant);
            pairs.map(|(list, relevant)| f(list, relevant)).collect()
        };
        Self {
            map: each(&average_precision),
            ndcg: each(&|l, r| ndcg(l, r, 10)),
            recall: each(&|l, r| recall(l, r, 100)),
        }
    }

    fn cells(&self) -> [String; 3] {
        [&self.map, &self.ndcg, &self.recall].map(|m| format!("{:.4}", mean(m)))
    }

    fn json(&self) -> Value {
        json!({"map": mean(&self.map), "ndcg@10": mean(&self.ndcg), "recall@100": mean(&self.recall)})
    }
}

/// One line of the results.
struct Line {
    dense: String,
    sparse: String,
    row: Row,
    measured: Measured,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let collection = match &options.data {
        Some(folder) => read(folder)?,
        None => fixture()?,
    };
    let sparse_model = match &options.sparse {
        Some(name) => Some(SparseTextEncoder::load(
            name,
            &store::load_options(options),
        )?),
        None => None,
    };
    let denses = denses(&collection, options, progress)?;
    let mut bench = Bench {
        collection,
        options,
        progress,
        lines: Vec::new(),
        sparse_alone: Vec::new(),
        sweeps: Vec::new(),
        times: RefCell::default(),
    };
    for dense in &denses {
        // The stores hold the same passages by the same numbers, so that weights that
        // were made for one serve all.
        copy_impacts(&denses[0].snapshot, &dense.snapshot)?;
        let learnt = match &sparse_model {
            Some(model) => SparseRetriever::open(&dense.snapshot, model, progress)?,
            None => None,
        };
        if sparse_model.is_some() && learnt.is_none() {
            return Err(BenchError::Cancelled);
        }
        let sparses = sparses(learnt.as_ref());
        let (once, each) = if options.sweep { sweep::runs() } else { (0, 0) };
        let rows = (3 + once + sparses.len() * (1 + each)) as u64;
        progress.start(&dense.name, "runs", Some(rows));
        let by_meaning = bench.by_meaning(dense)?;
        let tried = match options.sweep {
            true => Some(Tried::new(&bench, dense, by_meaning.dense.clone())?),
            false => None,
        };
        for sparse in &sparses {
            let lexical = bench.sparse_lists(dense, sparse, Bm25::anserini())?;
            bench.measure(dense, sparse, &lexical, &by_meaning)?;
            if let Some(tried) = &tried {
                let found = tried.sweep(&bench, dense, sparse, &lexical)?;
                bench.sweeps.extend(found);
            }
        }
        progress.finish();
    }
    let reference = match denses.iter().find(|d| d.name == LSA) {
        Some(lsa) => Some(bench.reference(lsa)?),
        None => None,
    };
    bench.report(reference)
}

const LSA: &str = "LSA";

/// The dense retrievers that the options allow.
fn denses(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Vec<Dense>, BenchError> {
    let mut denses = Vec::new();
    let mut add = |name: &str, encoder: Box<dyn Encoder>, bits| -> Result<(), BenchError> {
        let folder = tempfile::tempdir()?;
        store::write(
            folder.path(),
            &collection.documents,
            &*encoder,
            bits,
            options,
            progress,
        )?;
        denses.push(Dense {
            name: name.to_owned(),
            encoder,
            snapshot: Snapshot::open(folder.path())?,
            _folder: folder,
        });
        Ok(())
    };
    add("token vectors", store::encoder(options)?, Bits::Four)?;
    if collection.documents.len() <= lsa::MOST_TEXTS {
        let texts: Vec<String> = (collection.documents.iter())
            .map(|d| format!("{}\n{}", d.heading, d.body))
            .collect();
        let lsa = Lsa::learn(&texts, LSA_DIM, options.seed, options.thread_count());
        add(LSA, Box::new(lsa), Bits::Eight)?;
    }
    if let Some(teacher) = &options.teacher {
        let encoder = keyfold_text::load(teacher, &store::load_options(options))?;
        add("sentence encoder", encoder, Bits::Eight)?;
    }
    Ok(denses)
}

/// What the rows without a sparse list find, for every query.
struct ByMeaning {
    dense: Lists,
    average: Lists,
    rocchio: Lists,
}

type Lists = Vec<Vec<Ranked>>;

fn sparses<'a>(learnt: Option<&'a SparseRetriever<'a>>) -> Vec<Sparse<'a>> {
    let words = |name: &str, rm3| Sparse {
        name: name.to_owned(),
        rm3,
        learnt: None,
    };
    let mut all = vec![words(BM25, None), words("BM25 + RM3", Some(Rm3::default()))];
    all.extend(learnt.map(|learnt| Sparse {
        name: "learnt weights".to_owned(),
        rm3: None,
        learnt: Some(learnt),
    }));
    all
}

/// Copies the weights of terms from one store to another that has none.
fn copy_impacts(from: &Snapshot, to: &Snapshot) -> Result<(), BenchError> {
    let [from, to] = [from, to].map(|snapshot| snapshot.store().join("impacts"));
    if !from.is_dir() || to.is_dir() {
        return Ok(());
    }
    std::fs::create_dir(&to)?;
    for entry in std::fs::read_dir(&from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// A sparse retriever.
struct Sparse<'a> {
    name: String,
    rm3: Option<Rm3>,
    learnt: Option<&'a SparseRetriever<'a>>,
}

struct Bench<'a> {
    collection: Collection,
    options: &'a BenchOptions,
    progress: &'a dyn Progress,
    lines: Vec<Line>,
    sparse_alone: Vec<(String, Measured)>,
    sweeps: Vec<Sweep>,
    /// What a search is, and its milliseconds.
    times: RefCell<Vec<(String, f64)>>,
}

impl Bench<'_> {
    /// Runs all queries; how long they took on average is remembered as `what`, the
    /// first time.
    fn rank(
        &self,
        what: String,
        dense: &Dense,
        sparse: &Sparse<'_>,
        options: &SearchOptions,
    ) -> Result<Vec<Rankings>, BenchError> {
        if self.progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let models = Models {
            encoder: Some(&*dense.encoder),
            sparse: sparse.learnt,
            ..Models::default()
        };
        let queries = self.collection.queries.iter();
        let rank = |q: &String| Ok(rank_with(&dense.snapshot, q, &models, options)?);
        let ranked: Vec<Rankings> = queries.map(rank).collect::<Result<_, BenchError>>()?;
        let mut times = self.times.borrow_mut();
        if !times.iter().any(|(known, _)| *known == what) {
            let seconds = ranked.iter().map(|r| r.timings.total.as_secs_f64());
            times.push((what, mean(&seconds.collect::<Vec<_>>()) * 1e3));
        }
        Ok(ranked)
    }

    fn options(&self, mode: Mode, feedback: Feedback, bm25: Bm25) -> SearchOptions {
        let mut options = SearchOptions {
            k: DEPTH,
            mode,
            bm25,
            feedback,
            ..SearchOptions::default()
        };
        options.candidates.method = Method::Exhaustive;
        options.candidates.threads = self.options.thread_count();
        options
    }

    /// The sparse list of every query.
    fn sparse_lists(
        &self,
        dense: &Dense,
        sparse: &Sparse<'_>,
        bm25: Bm25,
    ) -> Result<Lists, BenchError> {
        let feedback = Feedback {
            rm3: sparse.rm3,
            vector: None,
        };
        let options = self.options(Mode::Lexical, feedback, bm25);
        let ranked = self.rank(sparse.name.clone(), dense, sparse, &options)?;
        Ok(ranked.into_iter().map(|r| r.lexical).collect())
    }

    fn by_meaning(&self, dense: &Dense) -> Result<ByMeaning, BenchError> {
        let lists = |row: Row| self.by_meaning_after(dense, row.name(), row.feedback());
        Ok(ByMeaning {
            dense: lists(Row::Dense)?,
            average: lists(Row::Average)?,
            rocchio: lists(Row::Rocchio)?,
        })
    }

    /// The list by meaning, after feedback from itself if there is some.
    fn by_meaning_after(
        &self,
        dense: &Dense,
        name: &str,
        vector: Option<VectorFeedback>,
    ) -> Result<Lists, BenchError> {
        let feedback = Feedback { rm3: None, vector };
        let options = self.options(Mode::Meaning, feedback, Bm25::default());
        let what = format!("{}: {name}", dense.name);
        let ranked = self.rank(what, dense, &sparses(None)[0], &options)?;
        self.progress.advance(1);
        Ok(ranked.into_iter().map(|r| r.meaning).collect())
    }

    /// The list by meaning after feedback from the interpolated list.
    fn before(
        &self,
        dense: &Dense,
        sparse: &Sparse<'_>,
        weight: f32,
        bm25: Bm25,
        vector: Option<VectorFeedback>,
    ) -> Result<Lists, BenchError> {
        let feedback = Feedback {
            rm3: sparse.rm3,
            vector,
        };
        let mut options = self.options(Mode::Both, feedback, bm25);
        options.fusion.interpolation = mixing(weight);
        options.fusion.fuse = Fuse::Before;
        let what = format!("{}: before, with {}", dense.name, sparse.name);
        let ranked = self.rank(what, dense, sparse, &options)?;
        self.progress.advance(1);
        Ok(ranked.into_iter().map(|r| r.meaning).collect())
    }

    /// The rows of the paper's table.
    fn rows(
        &self,
        lexical: &Lists,
        by_meaning: &ByMeaning,
        before: &Lists,
        weight: f32,
    ) -> [Measured; 7] {
        let plain = |lists: &Lists| self.measured(lists);
        let mixed = |lists: &Lists| self.measured(&mixed(lexical, lists, weight));
        [
            plain(&by_meaning.dense),
            plain(&by_meaning.average),
            plain(&by_meaning.rocchio),
            mixed(&by_meaning.dense),
            plain(before),
            mixed(&by_meaning.average),
            mixed(before),
        ]
    }

    fn measured(&self, lists: &Lists) -> Measured {
        Measured::new(lists, &self.collection.relevant)
    }

    /// All rows at the default weight.
    fn measure(
        &mut self,
        dense: &Dense,
        sparse: &Sparse<'_>,
        lexical: &Lists,
        by_meaning: &ByMeaning,
    ) -> Result<(), BenchError> {
        if !self
            .sparse_alone
            .iter()
            .any(|(name, _)| *name == sparse.name)
        {
            let measured = self.measured(lexical);
            self.sparse_alone.push((sparse.name.clone(), measured));
        }
        let weight = Interpolation::default().weight;
        let feedback = Row::Before.feedback();
        let before = self.before(dense, sparse, weight, Bm25::anserini(), feedback)?;
        let measured = self.rows(lexical, by_meaning, &before, weight);
        self.lines
            .extend(ROWS.into_iter().zip(measured).map(|(row, measured)| Line {
                dense: dense.name.clone(),
                sparse: sparse.name.clone(),
                row,
                measured,
            }));
        Ok(())
    }

    /// The rows of [`REFERENCE`].
    fn reference(&self, lsa: &Dense) -> Result<Vec<(&'static str, Measured)>, BenchError> {
        let bm25 = Bm25 {
            k1: 1.5,
            b: 0.75,
            ..Bm25::anserini()
        };
        let plain = &sparses(None)[0];
        let lexical = self.sparse_lists(lsa, plain, bm25)?;
        let feedback = Row::Before.feedback();
        let before = self.before(lsa, plain, REFERENCE_WEIGHT, bm25, feedback)?;
        let rows = self.rows(&lexical, &self.by_meaning(lsa)?, &before, REFERENCE_WEIGHT);
        let mut all = vec![(BM25, self.measured(&lexical))];
        let wanted = [Row::Dense, Row::Average, Row::Before, Row::After, Row::Both];
        let rows = ROWS.into_iter().zip(rows);
        all.extend(
            rows.filter(|(row, _)| wanted.contains(row))
                .map(|(row, m)| (row.name(), m)),
        );
        Ok(all)
    }
}

fn mixed(lexical: &Lists, by_meaning: &Lists, weight: f32) -> Lists {
    let pairs = lexical.iter().zip(by_meaning);
    pairs
        .map(|(lexical, meaning)| fuse::interpolate(lexical, meaning, &mixing(weight)))
        .collect()
}

fn mixing(weight: f32) -> Interpolation {
    Interpolation {
        weight,
        depth: DEPTH,
        ..Interpolation::default()
    }
}
