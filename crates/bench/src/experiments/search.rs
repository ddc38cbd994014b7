//! Search by words, by meaning and by both on a judged collection, beside the
//! single vectors of a sentence encoder.
//!
//! The collection is a folder with `documents.jsonl` (`id`, `title`, `text`),
//! `queries.jsonl` (`id`, `text`) and `relevance.tsv` (a header line, then at
//! least `query_id`, `document_id` and, in a column named `gain`, how relevant
//! the document is; larger is better). With `--pairs`, a file of the STS benchmark, the rank
//! correlation of likeness with people's scores is told too.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use keyfold_core::{Encoder, Progress, Role, Vectors};
use keyfold_kernels as kernels;
use keyfold_search::codebook::{Bits, Codebook};
use keyfold_search::engine::{Mode, SearchOptions, rank_all};
use keyfold_search::fuse::{FusionOptions, Ranked, reciprocal_rank};
use keyfold_search::store::Snapshot;
use serde::Deserialize;
use serde_json::json;

use super::plaid_check::{self, Checked};
use crate::quality::{Relevant, average_precision, bootstrap, mean, ndcg, recall};
use crate::report::{Report, Table, reached};
use crate::store::{self, Text};
use crate::sts::Sts;
use crate::trained::searchable;
use crate::{BenchError, BenchOptions, Experiment, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "search",
    about: "nDCG@10, recall@100 and MAP by words, by meaning and by both, beside a sentence encoder",
    run,
};

/// Share of the sentence encoder's nDCG@10 that the small model is to have.
const AIM: f64 = 0.92;
/// How many times as fast it is to read.
const FASTER: f64 = 10.0;
/// Documents that are ranked for every query.
const DEPTH: usize = 1000;

/// Documents, queries, and which belong together.
pub(crate) struct Collection {
    pub(crate) documents: Vec<Text>,
    pub(crate) queries: Vec<String>,
    /// For every query, gain by place of the document.
    pub(crate) relevant: Vec<Relevant>,
}

/// One method's results, a number for each query.
struct Measured {
    name: String,
    ndcg: Vec<f64>,
    recall: Vec<f64>,
    precision: Vec<f64>,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let collection = match &options.data {
        Some(folder) => read(folder)?,
        None => fixture()?,
    };
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let encoder = store::encoder(options)?;
    let sts = options.pairs.as_deref().map(Sts::read).transpose()?;
    let folder = tempfile::tempdir()?;
    let mut methods = Vec::new();
    let mut words = Vec::new();
    let mut losses = Vec::new();
    let rows = encoder.encode(&queries, Role::Query)?;
    let texts = searchable(&collection.documents);
    let (reader, documents) = Reader::of(&*encoder, &texts, sts.as_ref(), progress)?;
    let mut readers = vec![reader];
    let tens = plaid_check::truth(&documents, &rows);
    let mut plaid = Vec::new();
    for bits in [Bits::Four, Bits::Two, Bits::Eight] {
        let place = folder.path().join(bits.number().to_string());
        store::write(
            &place,
            &collection.documents,
            &*encoder,
            bits,
            options,
            progress,
        )?;
        let snapshot = Snapshot::open(&place)?;
        plaid.push(plaid_check::check(&snapshot, &rows, &tens, options)?);
        let modes: &[Mode] = match bits {
            Bits::Four => &[Mode::Lexical, Mode::Meaning, Mode::Both],
            _ => &[Mode::Meaning],
        };
        for &mode in modes {
            let search = SearchOptions {
                k: DEPTH,
                mode,
                ..SearchOptions::default()
            };
            let ranked = rank_all(&snapshot, &queries, Some(&*encoder), &search)?;
            let lists: Vec<Vec<usize>> = ranked
                .into_iter()
                .map(|r| r.ranked.iter().map(|p| p.passage as usize).collect())
                .collect();
            if mode == Mode::Lexical {
                words.clone_from(&lists);
            }
            let name = match (mode, bits) {
                (Mode::Lexical, _) => "lexical (BM25)".to_owned(),
                (Mode::Both, _) => "both".to_owned(),
                (Mode::Meaning, _) => format!("meaning, {} bits", bits.number()),
            };
            methods.push(measure(name, &lists, &collection));
        }
        losses.push((bits, loss(&collection, &*encoder, bits, options)?));
    }
    if let Some(teacher) = &options.teacher {
        let teacher = keyfold_text::load(teacher, &store::load_options(options))?;
        let (reader, documents) = Reader::of(&*teacher, &texts, sts.as_ref(), progress)?;
        let lists = single_vectors(&*teacher, &documents, &queries)?;
        let fused: Vec<Vec<usize>> = lists.iter().zip(&words).map(|(a, b)| fused(a, b)).collect();
        methods.push(measure("sentence encoder".to_owned(), &lists, &collection));
        let name = "sentence encoder with lexical".to_owned();
        methods.push(measure(name, &fused, &collection));
        readers.push(reader);
    }
    report(&methods, &losses, &plaid, &readers, options)
}

/// Two rankings as one, as search by both fuses them.
fn fused(first: &[usize], second: &[usize]) -> Vec<usize> {
    let ranked = |list: &[usize]| -> Vec<Ranked> {
        let one = |&passage: &usize| Ranked {
            passage: passage as u64,
            score: 0.0,
        };
        list.iter().map(one).collect()
    };
    let fused = reciprocal_rank(
        &[&ranked(first), &ranked(second)],
        FusionOptions::default().constant,
    );
    fused.into_iter().map(|r| r.passage as usize).collect()
}

fn measure(name: String, lists: &[Vec<usize>], collection: &Collection) -> Measured {
    let each = |f: &dyn Fn(&[usize], &Relevant) -> f64| -> Vec<f64> {
        let pairs = lists.iter().zip(&collection.relevant);
        pairs.map(|(list, relevant)| f(list, relevant)).collect()
    };
    Measured {
        name,
        ndcg: each(&|l, r| ndcg(l, r, 10)),
        recall: each(&|l, r| recall(l, r, 100)),
        precision: each(&average_precision),
    }
}

/// What coding the documents' vectors costs in accuracy.
fn loss(
    collection: &Collection,
    encoder: &dyn Encoder,
    bits: Bits,
    options: &BenchOptions,
) -> Result<Option<keyfold_search::codebook::QuantizationLoss>, BenchError> {
    let texts: Vec<&str> = collection
        .documents
        .iter()
        .take(200)
        .map(|d| d.body.as_str())
        .collect();
    let vectors = encoder.encode(&texts, Role::Document)?;
    let rows: Vec<f32> = vectors.into_iter().flat_map(|v| v.into_vec()).collect();
    let dim = encoder.identity().dim;
    let tokens = (rows.len() / dim) as u64;
    // Learned from one half, measured on the other.
    let half = rows.len() / dim / 2 * dim;
    let threads = options.thread_count();
    let codebook = Codebook::train(&rows[..half], dim, bits, tokens, options.seed, threads)
        .map_err(|e| BenchError::data("the collection", e.to_string()))?;
    Ok(codebook.loss(&rows[half..], threads))
}

/// An encoder by itself.
struct Reader {
    name: String,
    documents_a_second: f64,
    /// 100 times the rank correlation with people's scores.
    spearman: Option<f64>,
}

impl Reader {
    /// Reads the documents, and pairs of sentences if there are some; gives the documents'
    /// vectors.
    fn of(
        encoder: &dyn Encoder,
        texts: &[String],
        sts: Option<&Sts>,
        progress: &dyn Progress,
    ) -> Result<(Self, Vec<Vectors>), BenchError> {
        let name = encoder.identity().name.clone();
        progress.start(&name, "documents", Some(texts.len() as u64));
        let mut documents = Vec::new();
        let clock = Instant::now();
        for batch in texts.chunks(64) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let views: Vec<&str> = batch.iter().map(String::as_str).collect();
            documents.extend(encoder.encode(&views, Role::Document)?);
            progress.advance(batch.len() as u64);
        }
        let seconds = clock.elapsed().as_secs_f64();
        progress.finish();
        let reader = Self {
            name,
            documents_a_second: texts.len() as f64 / seconds,
            spearman: sts.map(|sts| sts.measure_any(encoder)).transpose()?,
        };
        Ok((reader, documents))
    }
}

/// Rankings of documents by the cosine of whole-text vectors.
fn single_vectors(
    teacher: &dyn Encoder,
    documents: &[Vectors],
    queries: &[&str],
) -> Result<Vec<Vec<usize>>, BenchError> {
    let dim = teacher.identity().dim;
    let queries = teacher.encode(queries, Role::Query)?;
    Ok(queries
        .iter()
        .map(|q| {
            let scores: Vec<f32> = documents
                .iter()
                .map(|d| kernels::maxsim(q.as_slice(), d.as_slice(), dim))
                .collect();
            let best = kernels::top_k(&scores, DEPTH);
            best.into_iter().map(|(_, i)| i as usize).collect()
        })
        .collect())
}

fn report(
    methods: &[Measured],
    losses: &[(Bits, Option<keyfold_search::codebook::QuantizationLoss>)],
    plaid: &[Checked],
    readers: &[Reader],
    options: &BenchOptions,
) -> Result<Report, BenchError> {
    let mut quality = Table::new("quality", &["method", "nDCG@10", "recall@100", "MAP"]);
    for m in methods {
        quality.row([
            m.name.clone(),
            format!("{:.4}", mean(&m.ndcg)),
            format!("{:.4}", mean(&m.recall)),
            format!("{:.4}", mean(&m.precision)),
        ]);
    }
    let mut coding = Table::new(
        "what coding vectors costs",
        &["bits", "mean cosine", "same ten nearest"],
    );
    for (bits, loss) in losses {
        let Some(loss) = loss else { continue };
        coding.row([
            bits.number().to_string(),
            format!("{:.4}", loss.mean_cosine),
            format!("{:.3}", loss.top10_agreement),
        ]);
    }
    let mut reading = Table::new(
        "encoders",
        &["encoder", "documents a second", "STS, Spearman"],
    );
    for reader in readers {
        reading.row([
            reader.name.clone(),
            plot::shown(reader.documents_a_second),
            reader.spearman.map_or(String::new(), |s| format!("{s:.1}")),
        ]);
    }
    let find = |name: &str| methods.iter().find(|m| m.name.starts_with(name));
    let mut findings = Vec::new();
    let mut differences = Vec::new();
    for (first, second) in [
        ("both", "lexical"),
        ("both", "sentence"),
        ("both", "sentence encoder with"),
        ("both", "meaning, 4"),
        ("meaning, 4", "lexical"),
    ] {
        let (Some(a), Some(b)) = (find(first), find(second)) else {
            continue;
        };
        let d = bootstrap(&a.ndcg, &b.ndcg, options.seed);
        findings.push(format!(
            "{} against {}: nDCG@10 {:+.4}, 95 % of resamples from {:+.4} to {:+.4}, p = {:.4}.",
            a.name, b.name, d.mean, d.low, d.high, d.p
        ));
        differences.push(json!({"first": a.name, "second": b.name, "difference": d}));
    }
    if let (Some(ours), Some(teacher)) = (find("meaning, 4"), find("sentence")) {
        let share = mean(&ours.ndcg) / mean(&teacher.ndcg);
        findings.push(format!(
            "Meaning alone has {:.1} % of the sentence encoder's nDCG@10; aim: at least {:.0} %, {}.",
            share * 100.0,
            AIM * 100.0,
            reached(share >= AIM)
        ));
        if let [ours, teacher] = readers {
            let times = ours.documents_a_second / teacher.documents_a_second;
            findings.push(format!(
                "{} reads documents {times:.1} times as fast as {}; aim: {FASTER:.0}, {}.",
                ours.name,
                teacher.name,
                reached(times >= FASTER)
            ));
        }
    } else {
        findings.push(
            "Give --teacher FOLDER to measure a sentence encoder on the same documents.".to_owned(),
        );
    }
    findings.extend(plaid_check::findings(plaid));
    let bars: Vec<(String, f64)> = methods
        .iter()
        .map(|m| (m.name.clone(), mean(&m.ndcg)))
        .collect();
    let values = json!({
        "methods": methods.iter().map(|m| json!({
            "name": m.name,
            "ndcg@10": mean(&m.ndcg),
            "recall@100": mean(&m.recall),
            "map": mean(&m.precision),
        })).collect::<Vec<_>>(),
        "queries": methods.first().map_or(0, |m| m.ndcg.len()),
        "differences": differences,
        "readers": readers.iter().map(|r| json!({
            "name": r.name, "documents_a_second": r.documents_a_second, "spearman": r.spearman,
        })).collect::<Vec<_>>(),
        "plaid": plaid.iter().map(|c| json!({
            "bits": c.bits,
            "same_as_stored": c.same_as_stored,
            "same_as_given": c.same_as_given,
            "recall": c.recall,
        })).collect::<Vec<_>>(),
        "coding": losses.iter().map(|(b, l)| json!({"bits": b.number(), "loss": l})).collect::<Vec<_>>(),
    });
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![quality, reading, coding, plaid_check::table(plaid)],
        findings,
        values,
        svg: plot::bars("Search quality", "nDCG@10", &bars, None)?,
    })
}

#[derive(Deserialize)]
struct Document {
    id: serde_json::Value,
    #[serde(default)]
    title: String,
    #[serde(default)]
    text: String,
}

pub(crate) fn read(folder: &Path) -> Result<Collection, BenchError> {
    let open = |name: &str| -> Result<(PathBuf, String), BenchError> {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            BenchError::data(&path, format!(
                "{e}; the folder of a collection holds documents.jsonl, queries.jsonl and relevance.tsv"
            ))
        })?;
        Ok((path, text))
    };
    let (documents, queries, relevance) = (
        open("documents.jsonl")?,
        open("queries.jsonl")?,
        open("relevance.tsv")?,
    );
    collection(&documents, &queries, &relevance)
}

/// The little collection that is part of the project.
pub(super) fn fixture() -> Result<Collection, BenchError> {
    let file = |name: &str, text: &str| (PathBuf::from(name), text.to_owned());
    collection(
        &file(
            "documents.jsonl",
            include_str!("../../fixtures/mini/documents.jsonl"),
        ),
        &file(
            "queries.jsonl",
            include_str!("../../fixtures/mini/queries.jsonl"),
        ),
        &file(
            "relevance.tsv",
            include_str!("../../fixtures/mini/relevance.tsv"),
        ),
    )
}

type File = (PathBuf, String);

fn collection(
    documents: &File,
    queries: &File,
    relevance: &File,
) -> Result<Collection, BenchError> {
    let documents = lines(documents)?;
    let queries = lines(queries)?;
    let places = |list: &[Document]| -> HashMap<String, usize> {
        list.iter()
            .enumerate()
            .map(|(i, d)| (id(&d.id), i))
            .collect()
    };
    let (of_document, of_query) = (places(&documents), places(&queries));
    let mut relevant = vec![Relevant::new(); queries.len()];
    let (path, table) = relevance;
    let mut rows = table.lines();
    let head: Vec<&str> = rows.next().unwrap_or_default().split('\t').collect();
    let column = |name: &str| {
        head.iter().position(|h| *h == name).ok_or_else(|| {
            BenchError::data(path, format!("its first line names no column '{name}'"))
        })
    };
    let (query, document, gain) = (column("query_id")?, column("document_id")?, column("gain")?);
    for (number, row) in (2..).zip(rows) {
        let cells: Vec<&str> = row.split('\t').collect();
        let cell = |i: usize| cells.get(i).copied().unwrap_or_default();
        let unknown = |what: &str| BenchError::data(path, format!("line {number}: {what}"));
        let q = of_query
            .get(cell(query))
            .ok_or_else(|| unknown("no such query"))?;
        let d = of_document
            .get(cell(document))
            .ok_or_else(|| unknown("no such document"))?;
        let gain: f64 = cell(gain)
            .trim()
            .parse()
            .map_err(|_| unknown("gain is no number"))?;
        relevant[*q].insert(*d, gain);
    }
    // A query without any relevant document says nothing.
    let judged: Vec<bool> = relevant
        .iter()
        .map(|r| r.values().any(|&g| g > 0.0))
        .collect();
    let mut keep = judged.iter();
    relevant.retain(|_| *keep.next().unwrap_or(&false));
    let queries = queries.into_iter().zip(&judged).filter(|(_, j)| **j);
    Ok(Collection {
        documents: documents
            .into_iter()
            .map(|d| Text {
                heading: d.title.trim().to_owned(),
                body: d.text.trim().to_owned(),
            })
            .collect(),
        queries: queries.map(|(q, _)| q.text).collect(),
        relevant,
    })
}

fn id(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn lines(file: &File) -> Result<Vec<Document>, BenchError> {
    let (path, text) = file;
    let mut all = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(text.as_bytes()).lines()) {
        let line = line.map_err(|e| BenchError::data(path, e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        all.push(
            serde_json::from_str(&line)
                .map_err(|e| BenchError::data(path, format!("line {number}: {e}")))?,
        );
    }
    if all.is_empty() {
        return Err(BenchError::data(path, "it is empty"));
    }
    Ok(all)
}
