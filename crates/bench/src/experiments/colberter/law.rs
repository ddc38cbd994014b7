//! How many vectors whole words leave, and what that costs.

use keyfold_core::{Encoder, Progress, Role};
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, SearchOptions, rank_all};
use keyfold_search::store::Snapshot;
use keyfold_text::builtin::BUILTIN;
use keyfold_text::{Words, whole_words};
use serde_json::{Value, json};

use super::super::search::Collection;
use crate::plot::Line;
use crate::quality::{mean, ndcg};
use crate::report::Table;
use crate::store;
use crate::{BenchError, BenchOptions};

/// ColBERT keeps rows of `[CLS]`, its marker and `[SEP]` besides those of word pieces.
const SPECIAL: f64 = 3.0;
/// Texts that a checkpoint reads at a time.
const BATCH: usize = 16;

pub(super) struct Law {
    pub(super) counts: Table,
    pub(super) quality: Table,
    pub(super) values: Value,
    pub(super) sizes: Sizes,
    /// Share of the tokens that is saved by whole words.
    pub(super) fewer: f64,
    pub(super) fewer_stems: f64,
    /// Share of the words that the gates of a checkpoint remove.
    pub(super) removed: Option<f64>,
    points: Vec<(String, Vec<(f64, f64)>)>,
}

/// Mean numbers of a passage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Rows of ColBERT: word pieces without punctuation, and three more.
    pub(super) tokens: f64,
    /// Different whole words.
    pub(super) words: f64,
}

impl Law {
    pub(super) fn lines(&self) -> Vec<Line> {
        self.points.clone()
    }
}

pub(super) fn measure(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Law, BenchError> {
    let load = store::load_options(options);
    let checkpoint = match options.model.as_deref() {
        Some(name) => {
            let model = keyfold_text::load_colberter(name, &load)?;
            let none = || {
                BenchError::data(
                    name,
                    "it is no ColBERTer checkpoint; name one, or leave --model out",
                )
            };
            Some(model.ok_or_else(none)?)
        }
        None => None,
    };
    // Word pieces are those of BERT's vocabulary, which is the default encoder's.
    let pieces = keyfold_text::load(BUILTIN, &load)?;
    let texts: Vec<String> = collection
        .documents
        .iter()
        .map(|d| format!("{}\n{}", d.heading, d.body).trim().to_owned())
        .collect();
    let mut all = Counts::default();
    for text in &texts {
        all.add(text, &*pieces)?;
    }
    let mean_of = |count: usize| count as f64 / texts.len().max(1) as f64;
    let sizes = Sizes {
        tokens: mean_of(all.pieces) + SPECIAL,
        words: mean_of(all.words),
    };
    let kept = match &checkpoint {
        Some(model) => Some(kept(model, &texts, progress)?),
        None => None,
    };
    let mut counts = Table::new(
        "vectors of a passage, in the mean",
        &["kept", "vectors", "of the tokens", "bytes"],
    );
    let mut values = Vec::new();
    let whole = bytes(128, Bits::Eight);
    let mut row = |name: &str, vectors: f64, bytes: f64| {
        counts.row([
            name.to_owned(),
            format!("{vectors:.1}"),
            format!("{:.0} %", 100.0 * vectors / sizes.tokens),
            format!("{bytes:.0}"),
        ]);
        values.push(json!({ "kept": name, "vectors": vectors, "bytes": bytes }));
    };
    let tokens = sizes.tokens;
    row(
        "tokens of ColBERT, 128 numbers, 2 bits",
        tokens,
        tokens * bytes(128, Bits::Two),
    );
    row(
        "tokens of ColBERT, 32 numbers, 8 bits",
        tokens,
        tokens * bytes(32, Bits::Eight),
    );
    let of_words = |n: f64| n * (bytes(32, Bits::Eight) + 4.0) + whole;
    let stems = mean_of(all.stems);
    row(
        "whole words, 32 numbers, 8 bits",
        sizes.words,
        of_words(sizes.words),
    );
    row("their stems", stems, of_words(stems));
    let spoken = mean_of(all.spoken);
    row("whole words but punctuation", spoken, of_words(spoken));
    let mut removed = None;
    if let Some((kept, of)) = kept {
        row(
            "words that the checkpoint keeps",
            mean_of(kept),
            of_words(mean_of(kept)),
        );
        removed = Some(1.0 - kept as f64 / of.max(1) as f64);
    }
    row("the text itself, in bytes", 0.0, mean_of(all.bytes));

    let (quality, points, quality_values) = quality(collection, &*pieces, options, progress)?;
    Ok(Law {
        counts,
        quality,
        values: json!({ "counts": values, "quality": quality_values, "removed": removed }),
        sizes,
        fewer: 1.0 - sizes.words / tokens,
        fewer_stems: 1.0 - stems / tokens,
        removed,
        points,
    })
}

/// Bytes of a row in a store: its codes, and the number of its centroid.
fn bytes(dim: usize, bits: Bits) -> f64 {
    let scale = if bits == Bits::Eight { 2 } else { 0 };
    (dim * bits.number() as usize / 8 + scale + 2) as f64
}

#[derive(Default)]
struct Counts {
    pieces: usize,
    words: usize,
    stems: usize,
    /// Words with a letter or digit.
    spoken: usize,
    bytes: usize,
}

impl Counts {
    fn add(&mut self, text: &str, pieces: &dyn Encoder) -> Result<(), BenchError> {
        // The default encoder has rows for pieces with a letter or digit only.
        self.pieces += pieces.spans(text, Role::Document)?.len();
        let words = whole_words(text, Words::Lower)?;
        self.words += words.len();
        let spoken = words
            .iter()
            .filter(|w| w.text.contains(char::is_alphanumeric));
        self.spoken += spoken.count();
        self.stems += whole_words(text, Words::Stem)?.len();
        self.bytes += text.len();
        Ok(())
    }
}

/// Words that a checkpoint keeps, and all of them.
fn kept(
    model: &keyfold_text::ColberterEncoder,
    texts: &[String],
    progress: &dyn Progress,
) -> Result<(usize, usize), BenchError> {
    progress.start(
        "gates of the checkpoint",
        "passages",
        Some(texts.len() as u64),
    );
    let (mut kept, mut all) = (0, 0);
    for batch in texts.chunks(BATCH) {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        for bag in model.bags(&batch, Role::Document)? {
            all += bag.words.len();
            kept += bag.words.iter().filter(|w| !w.is_removed()).count();
        }
        progress.advance(batch.len() as u64);
    }
    progress.finish();
    Ok((kept, all))
}

type Quality = (Table, Vec<(String, Vec<(f64, f64)>)>, Value);

/// nDCG@10 of the default encoder's rows, and of their means by whole words.
fn quality(
    collection: &Collection,
    encoder: &dyn Encoder,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Quality, BenchError> {
    let mut table = Table::new(
        "the default encoder's vectors, put together by whole words (not trained for it)",
        &[
            "vectors",
            "bits",
            "rows per passage",
            "bytes per passage",
            "nDCG@10",
        ],
    );
    let load = store::load_options(options);
    let by_word = |how| keyfold_text::load(&format!("{BUILTIN}#words={how}"), &load);
    let (lower, stems) = (by_word("lower")?, by_word("stem")?);
    let ways: [(&str, &dyn Encoder); 3] = [
        ("word pieces", encoder),
        ("whole words", &*lower),
        ("stems", &*stems),
    ];
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let n = collection.documents.len().max(1) as f64;
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for (name, encoder) in ways {
        let mut line = Vec::new();
        for bits in [Bits::Two, Bits::Four, Bits::Eight] {
            let folder = tempfile::tempdir()?;
            let documents = &collection.documents;
            let rows = store::write(folder.path(), documents, encoder, bits, options, progress)?
                as f64
                / n;
            let snapshot = Snapshot::open(folder.path())?;
            let mut search = SearchOptions {
                mode: Mode::Meaning,
                ..SearchOptions::default()
            };
            search.candidates.exhaustive = true;
            search.candidates.threads = options.thread_count();
            let ranked = rank_all(&snapshot, &queries, Some(encoder), &search)?;
            let each = ranked
                .iter()
                .zip(&collection.relevant)
                .map(|(r, relevant)| {
                    let list: Vec<usize> = r.ranked.iter().map(|p| p.passage as usize).collect();
                    ndcg(&list, relevant, 10)
                });
            let quality = mean(&each.collect::<Vec<_>>());
            let bytes = rows * bytes(encoder.identity().dim, bits);
            table.row([
                name.to_owned(),
                bits.to_string(),
                format!("{rows:.1}"),
                format!("{bytes:.0}"),
                format!("{quality:.4}"),
            ]);
            values.push(json!({
                "vectors": name, "bits": bits.number(), "rows": rows, "bytes": bytes, "ndcg": quality,
            }));
            line.push((bytes, quality));
        }
        lines.push((format!("default encoder, {name}"), line));
    }
    Ok((table, lines, json!(values)))
}
