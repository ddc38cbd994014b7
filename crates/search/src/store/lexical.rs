//! The lexical index: its fields, and how a passage becomes a document of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyfold_data::Passage;
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, NumericOptions, STORED, STRING, Schema,
    TextFieldIndexing, TextOptions, Value,
};
use tantivy::{Index, TantivyDocument};

use super::words;
use crate::error::SearchError;

/// The fields of the lexical index. Every document is a passage.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// Passage id, u64, indexed and fast.
    pub passage: Field,
    /// Key of the file (see [`crate::store::Snapshot::path_of`]), one raw term.
    pub path: Field,
    /// Name of the file, analysed.
    pub name: Field,
    /// Heading trail, analysed.
    pub headings: Field,
    /// Heading trail and text, analysed, with positions. That headings are words
    /// among others finds more than their own field alone (nDCG@10 of BM25 on
    /// Cranfield: 0.375 against 0.362).
    pub body: Field,
    /// Time of the last change of the file, milliseconds since 1970 as i64, fast.
    pub modified: Field,
    /// Format of the file, one raw term, fast.
    pub format: Field,
    /// The passage as JSON, stored only.
    pub stored: Field,
}

/// A passage as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPassage {
    /// Its id in the store.
    pub id: u64,
    /// The key of its file: its path from the folder that holds the store, or
    /// its whole path if it lies elsewhere; `/` between folders.
    pub key: String,
    /// Where its file is.
    pub path: PathBuf,
    /// Format of its file.
    pub format: String,
    /// Last change of its file before it was read.
    pub modified: SystemTime,
    /// Text, headings and place.
    pub passage: Passage,
}

/// What a document of the index keeps for display.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored<P> {
    format: String,
    /// Nanoseconds since 1970.
    modified: i64,
    passage: P,
}

/// The schema and its fields.
pub(crate) fn schema() -> (Schema, Fields) {
    let mut b = Schema::builder();
    let number = NumericOptions::default() | INDEXED | FAST;
    let text = |positions| {
        TextOptions::default().set_indexing_options(
            TextFieldIndexing::default()
                .set_tokenizer(words::WORDS)
                .set_index_option(positions),
        )
    };
    let fields = Fields {
        passage: b.add_u64_field("passage", number.clone()),
        path: b.add_text_field("path", STRING | STORED),
        name: b.add_text_field("name", text(IndexRecordOption::WithFreqs)),
        headings: b.add_text_field("headings", text(IndexRecordOption::WithFreqsAndPositions)),
        body: b.add_text_field("body", text(IndexRecordOption::WithFreqsAndPositions)),
        modified: b.add_i64_field("modified", number),
        format: b.add_text_field("format", STRING | FAST),
        stored: b.add_text_field("stored", STORED),
    };
    (b.build(), fields)
}

/// Makes the analyzer known to an index.
pub(crate) fn register(index: &Index) {
    index.tokenizers().register(words::WORDS, words::analyzer());
}

/// The document of a passage; `key` and `format` are those of its file, and
/// `modified` its time in nanoseconds since 1970.
pub(crate) fn document(
    fields: &Fields,
    id: u64,
    key: &str,
    format: &str,
    modified: i64,
    passage: &Passage,
) -> Result<TantivyDocument, serde_json::Error> {
    let stored = serde_json::to_string(&Stored {
        format: format.to_owned(),
        modified,
        passage,
    })?;
    let name = key.rsplit('/').next().unwrap_or(key);
    let mut d = TantivyDocument::new();
    d.add_u64(fields.passage, id);
    d.add_text(fields.path, key);
    d.add_text(fields.name, name);
    d.add_text(fields.headings, passage.headings.join("\n"));
    d.add_text(fields.body, passage.searchable().0);
    d.add_i64(fields.modified, modified.div_euclid(1_000_000));
    d.add_text(fields.format, format);
    d.add_text(fields.stored, stored);
    Ok(d)
}

/// The passage that a stored document holds.
pub(crate) fn passage(
    store: &Path,
    fields: &Fields,
    id: u64,
    document: &TantivyDocument,
    path_of: impl Fn(&str) -> PathBuf,
) -> Result<StoredPassage, SearchError> {
    let damaged = |what: String| SearchError::Damaged {
        path: store.join(super::LEXICAL),
        what,
    };
    let text = |field| {
        document
            .get_first(field)
            .and_then(|v| v.as_value().as_str())
            .ok_or_else(|| damaged(format!("passage {id} has no content")))
    };
    let key = text(fields.path)?.to_owned();
    let stored: Stored<Passage> = serde_json::from_str(text(fields.stored)?)
        .map_err(|e| damaged(format!("passage {id}: {e}")))?;
    Ok(StoredPassage {
        id,
        path: path_of(&key),
        key,
        format: stored.format,
        modified: time(stored.modified),
        passage: stored.passage,
    })
}

/// Nanoseconds since 1970 of a time; clamped where they do not fit.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// The time that lies that many nanoseconds after (or before) 1970.
pub(crate) fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    let time = if nanoseconds >= 0 {
        UNIX_EPOCH.checked_add(distance)
    } else {
        UNIX_EPOCH.checked_sub(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}
