//! Folding the vectors of a model that was not trained for it.

use keyfold_core::{Encoder, Progress, Role, Vectors};
use keyfold_search::candidates::{CandidateOptions, Method, nearest};
use keyfold_search::codebook::Bits;
use keyfold_search::fold::{Fold, Folding};
use keyfold_search::store::{Snapshot, WriterOptions};
use serde_json::{Value, json};

use super::super::search::Collection;
use super::quality;
use crate::plot::Line;
use crate::quality::{bootstrap, mean};
use crate::report::Table;
use crate::store::{self, Text};
use crate::{BenchError, BenchOptions, Scale};

/// What the token-pooling paper measured for documents alone: factor, change in percent.
const PUBLISHED: [(usize, f64); 3] = [(2, 0.6), (4, -3.0), (6, -9.3)];

/// All ways that were measured.
pub(super) struct PostHoc {
    model: String,
    measured: Vec<Measured>,
    /// The vectors of the documents.
    pub(super) rows: Vec<Vectors>,
    seed: u64,
}

struct Measured {
    folding: Folding,
    bits: Bits,
    /// Vectors and bytes of a document.
    vectors: f64,
    bytes: f64,
    /// nDCG@10 by query.
    documents: Vec<f64>,
    /// The same with folded queries, and the vectors of a query.
    both: (Vec<f64>, f64),
}

fn ways(scale: Scale) -> Vec<(Option<Fold>, Bits, bool)> {
    let specs: &[&str] = match scale {
        Scale::Smoke => &["c4x8", "ward:2"],
        _ => &[
            "c50",
            "c25",
            "c8x32",
            "c4x8",
            "ward:2",
            "ward:3",
            "ward:4",
            "ward:6",
            "space:2",
            "space:4",
            "tail:8x32",
            "tail:4x8",
        ],
    };
    let fold = |spec: &&str| spec.parse::<Fold>().ok();
    let plain = specs.iter().filter_map(fold);
    let mut ways = vec![(None, Bits::Four, false)];
    ways.extend(plain.map(|fold| (Some(fold), Bits::Four, false)));
    // Whether the length of a mean helps needs a store that keeps it.
    for raw in [false, true] {
        ways.push((Some(Fold::Clusters(8, 32)), Bits::Eight, raw));
    }
    ways
}

pub(super) fn run(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<PostHoc, BenchError> {
    let encoder = store::encoder(options)?;
    let rows = encode(&collection.documents, &*encoder, progress)?;
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let queries: Vec<(&str, Vectors)> = queries
        .iter()
        .zip(encoder.encode(&queries, Role::Query)?)
        .map(|(text, rows)| (*text, rows))
        .collect();
    let mut measured = Vec::new();
    for (fold, bits, raw) in ways(options.scale) {
        let folding = Folding {
            fold,
            queries: false,
            raw,
        };
        let of = measure(
            (folding, bits),
            collection,
            &*encoder,
            &rows,
            &queries,
            options,
            progress,
        )?;
        measured.push(of);
    }
    Ok(PostHoc {
        model: encoder.identity().name.clone(),
        measured,
        rows,
        seed: options.seed,
    })
}

fn encode(
    documents: &[Text],
    encoder: &dyn Encoder,
    progress: &dyn Progress,
) -> Result<Vec<Vectors>, BenchError> {
    let mut rows = Vec::new();
    progress.start("encode", "documents", Some(documents.len() as u64));
    for batch in documents.chunks(64) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let texts: Vec<String> = batch
            .iter()
            .map(|t| store::passage(t).searchable().0)
            .collect();
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        rows.extend(encoder.encode(&views, Role::Document)?);
        progress.advance(batch.len() as u64);
    }
    progress.finish();
    Ok(rows)
}

/// Writes a store and asks it all queries.
fn measure(
    (folding, bits): (Folding, Bits),
    collection: &Collection,
    encoder: &dyn Encoder,
    rows: &[Vectors],
    queries: &[(&str, Vectors)],
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Measured, BenchError> {
    let folder = tempfile::tempdir()?;
    let items: Vec<(&Text, &Vectors)> = collection.documents.iter().zip(rows).collect();
    let prepare = |batch: &[(&Text, &Vectors)]| {
        let mut passages = Vec::new();
        let mut counts = Vec::new();
        let mut all = Vec::new();
        for (text, rows) in batch {
            let passage = store::passage(text);
            let folded = folding.document((*rows).clone(), &passage.searchable().0);
            counts.push(folded.rows());
            all.extend(folded.into_vec());
            passages.push(passage);
        }
        Ok((passages, counts, all))
    };
    let writing = WriterOptions {
        bits: Some(bits),
        fold: Some(folding),
        ..store::writing(options)
    };
    let tokens = store::write_items(
        folder.path(),
        encoder.identity(),
        &items,
        prepare,
        &writing,
        progress,
    )?;
    let snapshot = Snapshot::open(folder.path())?;
    let search = CandidateOptions {
        method: Method::Exhaustive,
        threads: options.thread_count(),
        ..CandidateOptions::default()
    };
    let both = Folding {
        queries: true,
        ..folding
    };
    let mut lists = (Vec::new(), Vec::new());
    let mut query_rows = 0;
    for (text, rows) in queries {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let list = |rows: &Vectors| -> Result<Vec<usize>, BenchError> {
            let (found, _) = nearest(snapshot.segments(), rows, 10, None, &search)?;
            Ok(found.into_iter().map(|r| r.passage as usize).collect())
        };
        let folded = both.query(rows.clone(), text);
        query_rows += folded.rows();
        lists.0.push(list(rows)?);
        lists.1.push(list(&folded)?);
    }
    let documents = collection.documents.len().max(1) as f64;
    let vectors = store::size_of(&folder.path().join("segments"));
    Ok(Measured {
        folding,
        bits,
        vectors: tokens as f64 / documents,
        bytes: vectors as f64 / documents,
        documents: quality(&lists.0, collection),
        both: (
            quality(&lists.1, collection),
            query_rows as f64 / queries.len().max(1) as f64,
        ),
    })
}

impl Measured {
    fn name(&self) -> String {
        match self.bits {
            Bits::Four => self.folding.to_string(),
            bits => format!("{}, {bits} bits", self.folding),
        }
    }
}

impl PostHoc {
    fn whole(&self) -> &Measured {
        // The first way is the one that keeps all.
        &self.measured[0]
    }

    pub(super) fn table(&self) -> Table {
        let title = format!(
            "model '{}' as it is, stores of 4 bits: vectors and bytes of a document, nDCG@10 with whole and with folded queries",
            self.model
        );
        let columns = [
            "fold",
            "vectors",
            "bytes",
            "share",
            "nDCG@10",
            "change",
            "p",
            "of a query",
            "both",
        ];
        let mut table = Table::new(&title, &columns);
        let whole = self.whole();
        for m in &self.measured {
            let d = bootstrap(&whole.documents, &m.documents, self.seed);
            table.row([
                m.name(),
                format!("{:.1}", m.vectors),
                format!("{:.0}", m.bytes),
                format!("{:.3}", m.vectors / whole.vectors),
                format!("{:.4}", mean(&m.documents)),
                format!("{:+.1} %", self.change(m)),
                if m.folding.is_none() {
                    String::new()
                } else {
                    format!("{:.3}", d.p)
                },
                format!("{:.1}", m.both.1),
                format!("{:.4}", mean(&m.both.0)),
            ]);
        }
        table
    }

    /// Percent of the quality of whole documents.
    fn change(&self, m: &Measured) -> f64 {
        100.0 * (mean(&m.documents) / mean(&self.whole().documents).max(1e-9) - 1.0)
    }

    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for (factor, published) in PUBLISHED {
            let of = |m: &&Measured| m.folding.fold == Some(Fold::Ward(factor));
            if let Some(m) = self.measured.iter().find(of) {
                findings.push(format!(
                    "ward:{factor}, documents only: nDCG@10 {:+.1} % at {:.1} times fewer vectors; published for pooling: {published:+.1} % at {factor} times.",
                    self.change(m),
                    self.whole().vectors / m.vectors.max(1e-9),
                ));
            }
        }
        let raw: Vec<&Measured> = self
            .measured
            .iter()
            .filter(|m| m.bits == Bits::Eight)
            .collect();
        if let [unit, raw] = raw[..] {
            let d = bootstrap(&raw.documents, &unit.documents, self.seed);
            findings.push(format!(
                "Means as long as they are against means of length one (c8x32, 8 bits): nDCG@10 {:+.4}, 95 % of resamples from {:+.4} to {:+.4}.",
                d.mean, d.low, d.high
            ));
        }
        findings
    }

    /// For the plot: a line for each family.
    pub(super) fn lines(&self) -> Vec<Line> {
        type Family = (&'static str, fn(&Fold) -> bool);
        let families: [Family; 4] = [
            ("k-means clusters", |f| {
                matches!(f, Fold::Clusters(..) | Fold::Share(_))
            }),
            ("Ward clusters", |f| matches!(f, Fold::Ward(_))),
            ("every k-th", |f| matches!(f, Fold::Space(_))),
            ("the last", |f| matches!(f, Fold::Tail(..))),
        ];
        let line = |(name, is_of): Family, both: bool| {
            let quality = |m: &Measured| mean(if both { &m.both.0 } else { &m.documents });
            let of =
                |m: &&Measured| m.bits == Bits::Four && m.folding.fold.as_ref().is_none_or(is_of);
            let points = self.measured.iter().filter(of);
            let mut points: Vec<(f64, f64)> = points.map(|m| (m.bytes, quality(m))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let side = if both { ", queries too" } else { "" };
            (format!("{name}{side}"), points)
        };
        let mut lines: Vec<Line> = families.map(|f| line(f, false)).into();
        lines.extend(families[..2].iter().map(|f| line(*f, true)));
        lines
    }

    pub(super) fn values(&self) -> Value {
        let value = |m: &Measured| {
            json!({
                "fold": m.folding.to_string(),
                "bits": m.bits.number(),
                "vectors": m.vectors,
                "bytes": m.bytes,
                "ndcg": mean(&m.documents),
                "query_vectors": m.both.1,
                "ndcg_both": mean(&m.both.0),
            })
        };
        json!({
            "model": self.model,
            "ways": self.measured.iter().map(value).collect::<Vec<_>>(),
        })
    }
}
