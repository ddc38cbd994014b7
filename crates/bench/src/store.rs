//! A store of texts that are not files, for measuring.

use std::path::Path;

use keyfold_core::{Encoder, EncoderIdentity, Progress, Role};
use keyfold_data::Passage;
use keyfold_search::codebook::Bits;
use keyfold_search::store::{FileRecord, FileState, Rows, Writer, WriterOptions};

use crate::{BenchError, BenchOptions};

/// Texts that are encoded at a time.
const BATCH: usize = 256;

/// A text to be found.
pub(crate) struct Text {
    pub(crate) heading: String,
    pub(crate) body: String,
}

/// Writes `texts` as the passages of a new store, in order, so that the id of a
/// passage is the place of its text. Gives the number of vectors.
pub(crate) fn write(
    folder: &Path,
    texts: &[Text],
    encoder: &dyn Encoder,
    bits: Bits,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<u64, BenchError> {
    let writing = WriterOptions {
        bits: Some(bits),
        ..writing(options)
    };
    let encode = |batch: &[Text]| encoded(batch, encoder);
    write_items(
        folder,
        encoder.identity(),
        texts,
        encode,
        &writing,
        progress,
    )
}

/// Texts as passages with their vectors.
pub(crate) fn encoded(texts: &[Text], encoder: &dyn Encoder) -> Result<Batch, BenchError> {
    let passages: Vec<Passage> = texts.iter().map(passage).collect();
    let searchable: Vec<String> = passages.iter().map(|p| p.searchable().0).collect();
    let views: Vec<&str> = searchable.iter().map(String::as_str).collect();
    let vectors = encoder.encode(&views, Role::Document)?;
    let counts: Vec<usize> = vectors.iter().map(|v| v.rows()).collect();
    let rows = vectors.into_iter().flat_map(|v| v.into_vec()).collect();
    Ok((passages, counts, rows))
}

/// How the stores of experiments are written.
pub(crate) fn writing(options: &BenchOptions) -> WriterOptions {
    WriterOptions {
        seed: options.seed,
        threads: options.thread_count(),
        ..WriterOptions::default()
    }
}

/// The passages of some items, how many vectors each has, and the vectors.
pub(crate) type Batch = (Vec<Passage>, Vec<usize>, Vec<f32>);

/// Writes `items` as the passages of a new store, in order; `prepare` makes
/// passages and vectors of some of them. Gives the number of vectors.
pub(crate) fn write_items<T>(
    folder: &Path,
    identity: &EncoderIdentity,
    items: &[T],
    prepare: impl Fn(&[T]) -> Result<Batch, BenchError>,
    options: &WriterOptions,
    progress: &dyn Progress,
) -> Result<u64, BenchError> {
    let mut writer = Writer::open(folder, identity, options)?;
    let mut tokens = 0;
    progress.start("index", "passages", Some(items.len() as u64));
    for (number, batch) in items.chunks(BATCH).enumerate() {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let (passages, counts, rows) = prepare(batch)?;
        if number == 0 {
            // The codebook is sized for what is to come, judged by the first items.
            let mean = counts.iter().sum::<usize>() / counts.len().max(1);
            writer.expect_tokens((mean * items.len()) as u64);
        }
        let key = format!("texts/{number}");
        writer.begin_file(&key);
        writer.add_passages("text", 0, &passages, &counts, Rows::Raw(&rows), &[])?;
        writer.end_file(FileRecord {
            key,
            size: 0,
            modified: 0,
            hash: None,
            state: FileState::Read("text".to_owned()),
        })?;
        tokens += counts.iter().sum::<usize>() as u64;
        progress.advance(batch.len() as u64);
    }
    writer.commit()?;
    writer.merge(progress)?;
    progress.finish();
    Ok(tokens)
}

/// A text as a passage.
pub(crate) fn passage(text: &Text) -> Passage {
    Passage {
        text: text.body.clone(),
        headings: match text.heading.as_str() {
            "" => Vec::new(),
            heading => vec![heading.to_owned()],
        },
        lines: 0..0,
        part: None,
        bytes: 0..0,
    }
}

/// The model that an experiment measures.
pub(crate) fn encoder(options: &BenchOptions) -> Result<Box<dyn Encoder>, BenchError> {
    let name = options
        .model
        .as_deref()
        .unwrap_or(keyfold_text::builtin::BUILTIN);
    Ok(keyfold_text::load(name, &load_options(options))?)
}

pub(crate) fn load_options(options: &BenchOptions) -> keyfold_text::LoadOptions {
    keyfold_text::LoadOptions {
        threads: options.threads,
    }
}

/// Bytes of all files below `folder`.
pub(crate) fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |e: std::fs::DirEntry| match e.metadata() {
        Ok(m) if m.is_dir() => size_of(&e.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
