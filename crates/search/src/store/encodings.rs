//! Encodings of fixed length (MUVERA): one short code for each passage, beside the
//! segments, if the user asked for them.
//!
//! ```text
//! encodings/C.kfe    the coder: parameters, planes, projections, quantizer
//! encodings/C-S.kff  the codes that coder C made of the passages of segment S
//! ```
//!
//! Both are sealed, written once, and named by the manifest with their seals. The
//! codes of a segment follow from its rows, so a merge needs no code of its own:
//! the new segment is encoded like any other. A segment without codes (the writer
//! was stopped) is encoded the next time; until then the store is searched
//! without encodings.
//!
//! Body of the codes: 64 bytes `"KFFDEC1\n"`, coder u64, segment u64, passages u32,
//! bytes of a block u32, zeros; then the blocks, 64 passages each.

use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use keyfold_core::{EncoderIdentity, Progress, atomic};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use tantivy::directory::MmapDirectory;

use super::ENCODINGS;
use super::directory::open_folder;
use super::manifest::{EncodingsEntry, Manifest, coder_file, codes_file};
use super::seal::{Seal, SealWriter, Sealed, u32_at, u64_at};
use super::segment::{Segment, open_sealed};
use super::snapshot::open_segments;
use super::writer::{Writer, WriterOptions};
use crate::candidates::Tuned;
use crate::candidates::fde::{BLOCK, FdeCoder, FdeOptions};
use crate::codebook::Bits;
use crate::error::{BINARY, SearchError};

const MAGIC: &[u8; 8] = b"KFFDEC1\n";
const HEADER: usize = 64;
/// A new coder is made when the store has this many times the passages that the
/// old one was made for.
const GROWTH: u64 = 8;
/// Blocks that are encoded before they are written.
const AT_ONCE: usize = 32;

/// The codes of the passages of a segment, open.
#[derive(Debug)]
pub struct Encodings {
    coder: Arc<FdeCoder>,
    codes: Sealed,
}

impl Encodings {
    /// What made them, and prepares queries for them.
    pub fn coder(&self) -> &Arc<FdeCoder> {
        &self.coder
    }

    /// The codes of some blocks of 64 passages.
    pub fn blocks(&self, blocks: Range<usize>) -> Result<&[u8], SearchError> {
        let size = self.coder.block_bytes();
        self.codes
            .read(HEADER + blocks.start * size..HEADER + blocks.end * size)
            .map_err(|e| SearchError::read(self.codes.path(), e))
    }

    /// Opens the codes of a segment and checks that they fit it.
    fn open(
        store: &Path,
        folder: &MmapDirectory,
        entry: &EncodingsEntry,
        coder: &Arc<FdeCoder>,
        (segment, seal): (u64, Seal),
        passages: usize,
    ) -> Result<Self, SearchError> {
        let name = codes_file(entry.number, segment);
        let path = store.join(ENCODINGS).join(&name);
        let codes = open_sealed(folder, &name, path.clone())?;
        let damaged = |what: &str| SearchError::Damaged {
            path: path.clone(),
            what: what.to_owned(),
        };
        if codes.seal() != seal {
            return Err(damaged("it is not the file that the manifest names"));
        }
        let size = coder.block_bytes();
        let blocks = passages.div_ceil(BLOCK);
        if codes.length() != HEADER + blocks * size {
            return Err(damaged(
                "its length is not that of the codes of its segment",
            ));
        }
        let header = codes
            .read(0..HEADER)
            .map_err(|e| SearchError::read(&path, e))?;
        let fits = &header[..8] == MAGIC
            && u64_at(header, 8) == entry.number
            && u64_at(header, 16) == segment
            && u32_at(header, 24) as usize == passages
            && u32_at(header, 28) as usize == size;
        if !fits {
            return Err(damaged("it does not belong to its segment"));
        }
        Ok(Self {
            coder: coder.clone(),
            codes,
        })
    }

    /// Checks every byte.
    pub(super) fn verify(&self) -> Result<(), SearchError> {
        let bytes = self.codes.read(0..self.codes.length());
        bytes
            .map(|_| ())
            .map_err(|e| SearchError::read(self.codes.path(), e))
    }
}

/// Opens the coder of a store.
pub(super) fn open_coder(store: &Path, entry: &EncodingsEntry) -> Result<FdeCoder, SearchError> {
    let folder = open_folder(&store.join(ENCODINGS))?;
    let name = coder_file(entry.number);
    let path = store.join(ENCODINGS).join(&name);
    let file = open_sealed(&folder, &name, path.clone())?;
    let damaged = |what: String| SearchError::Damaged {
        path: path.clone(),
        what,
    };
    if file.seal() != entry.seal {
        return Err(damaged(
            "it is not the file that the manifest names".to_owned(),
        ));
    }
    let bytes = file
        .read(0..file.length())
        .map_err(|e| SearchError::read(&path, e))?;
    FdeCoder::from_bytes(bytes).map_err(|e| damaged(e.to_string()))
}

/// What opens the encodings of the segments of a commit.
pub(super) struct Opener<'a> {
    store: &'a Path,
    entry: Option<(&'a EncodingsEntry, Arc<FdeCoder>, MmapDirectory)>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(store: &'a Path, manifest: &'a Manifest) -> Result<Self, SearchError> {
        let Some(entry) = &manifest.encodings else {
            return Ok(Self { store, entry: None });
        };
        let coder = Arc::new(open_coder(store, entry)?);
        if coder.fde().dim() != manifest.encoder.dim {
            return Err(SearchError::Damaged {
                path: store.join(ENCODINGS).join(coder_file(entry.number)),
                what: "it encodes vectors of another length than the store has".to_owned(),
            });
        }
        let folder = open_folder(&store.join(ENCODINGS))?;
        Ok(Self {
            store,
            entry: Some((entry, coder, folder)),
        })
    }

    /// The encodings of a segment, if it has them.
    pub(super) fn open(
        &self,
        segment: u64,
        passages: usize,
    ) -> Result<Option<Encodings>, SearchError> {
        let Some((entry, coder, folder)) = &self.entry else {
            return Ok(None);
        };
        let Some(&coded) = entry.segments.iter().find(|s| s.0 == segment) else {
            return Ok(None);
        };
        Encodings::open(self.store, folder, entry, coder, coded, passages).map(Some)
    }
}

/// Whether the passages of a store are to be encoded, though it may not be so yet.
fn is_up_to_date(store: &Path, manifest: &Manifest, wanted: Option<&FdeOptions>) -> bool {
    let Some(entry) = &manifest.encodings else {
        return wanted.is_none();
    };
    if let Some(wanted) = wanted {
        match open_coder(store, entry) {
            Ok(coder) if coder.options() == wanted => {}
            _ => return false,
        }
    }
    let has = |number: u64| entry.segments.iter().any(|s| s.0 == number);
    let mut coded = manifest.segments.iter().filter(|s| s.codebook.is_some());
    coded.all(|s| has(s.number)) && passages(manifest) <= entry.passages.saturating_mul(GROWTH)
}

/// Live passages with rows.
fn passages(manifest: &Manifest) -> u64 {
    let live = |s: &super::manifest::SegmentEntry| u64::from(s.passages - s.dead_passages);
    let coded = manifest.segments.iter().filter(|s| s.codebook.is_some());
    coded.map(live).sum()
}

/// Encodes the passages of the store in the folder `store` that have no encoding
/// yet: if it has encodings, or if `wanted` asks for some. Other parameters than
/// the store's encode all passages anew. False if there was nothing to do.
///
/// Stops early, with whole segments kept, when the user asks to.
pub fn update_encodings(
    store: &Path,
    encoder: &EncoderIdentity,
    wanted: Option<&FdeOptions>,
    options: &WriterOptions,
    progress: &dyn Progress,
) -> Result<bool, SearchError> {
    let store = super::existing(store)?;
    if is_up_to_date(&store, &Manifest::read(&store)?, wanted) {
        return Ok(false);
    }
    Writer::open(&store, encoder, options)?.encode(wanted, progress)?;
    Ok(true)
}

/// Removes the encodings of a store; false if it has none.
pub fn remove_encodings(
    store: &Path,
    encoder: &EncoderIdentity,
    options: &WriterOptions,
) -> Result<bool, SearchError> {
    let store = super::existing(store)?;
    if Manifest::read(&store)?.encodings.is_none() {
        return Ok(false);
    }
    let mut writer = Writer::open(&store, encoder, options)?;
    writer.pending().next.encodings = None;
    writer.publish()?;
    Ok(true)
}

/// Sets how the store in the folder `store` is searched by meaning, or forgets it.
pub fn set_tuned(
    store: &Path,
    encoder: &EncoderIdentity,
    tuned: Option<&Tuned>,
    options: &WriterOptions,
) -> Result<(), SearchError> {
    let store = super::existing(store)?;
    let mut writer = Writer::open(&store, encoder, options)?;
    writer.pending().next.tuned = tuned.cloned();
    writer.publish()
}

impl Writer {
    /// Encodes what [`update_encodings`] says, and commits.
    pub fn encode(
        &mut self,
        wanted: Option<&FdeOptions>,
        progress: &dyn Progress,
    ) -> Result<(), SearchError> {
        self.commit()?;
        let manifest = self.pending().next.clone();
        if is_up_to_date(&self.store, &manifest, wanted) {
            return Ok(());
        }
        if manifest.whole_text_rows > 0 {
            return Err(SearchError::OtherComparison {
                what: "an encoding of fixed length (--fde, --candidates fde)".to_owned(),
                model: manifest.encoder.name,
                how: "whole texts and then words",
                instead: "leave it out: the vectors of whole texts are such encodings",
            });
        }
        if manifest.bits == Bits::One {
            return Err(SearchError::OtherComparison {
                what: "an encoding of fixed length (--fde, --candidates fde)".to_owned(),
                model: manifest.encoder.name,
                how: BINARY,
                instead: "leave it out: codes are such encodings",
            });
        }
        let folder = self.store.join(ENCODINGS);
        std::fs::create_dir_all(&folder).map_err(|e| SearchError::write(&folder, e))?;
        let segments = open_segments(&self.store, &manifest)?;
        let (mut entry, coder) = self.coder(&manifest, wanted, &segments)?;
        progress.start("encoding", "passages", Some(passages(&manifest)));
        for (number, segment) in &segments {
            if entry.segments.iter().any(|s| s.0 == *number) {
                progress.advance(segment.live_passages() as u64);
                continue;
            }
            let Some(seal) =
                self.encode_segment(entry.number, *number, segment, &coder, progress)?
            else {
                break;
            };
            entry.segments.push((*number, seal));
        }
        progress.finish();
        // Closed first, since files that are open cannot be removed everywhere.
        drop(segments);
        self.pending().next.encodings = Some(entry);
        self.publish()
    }

    /// The coder that the passages are to have, made if need be.
    fn coder(
        &mut self,
        manifest: &Manifest,
        wanted: Option<&FdeOptions>,
        segments: &[(u64, Segment)],
    ) -> Result<(EncodingsEntry, FdeCoder), SearchError> {
        let mut options = wanted.cloned();
        if let Some(entry) = &manifest.encodings
            && let Ok(coder) = open_coder(&self.store, entry)
        {
            let outgrown = passages(manifest) > entry.passages.saturating_mul(GROWTH);
            if !outgrown && options.as_ref().is_none_or(|o| o == coder.options()) {
                return Ok((entry.clone(), coder));
            }
            options.get_or_insert(coder.options().clone());
        }
        let options = options.unwrap_or_default();
        let o = self.row_options;
        let failed = |source| SearchError::Encodings {
            store: self.store.clone(),
            source,
        };
        options.config.check(o.dim).map_err(|e| failed(e.into()))?;
        let wanted = FdeCoder::sample_size(o.dim, &options, o.memory);
        let (rows, counts) = sample(segments, wanted, o.seed)?;
        let coder =
            FdeCoder::train(&rows, &counts, o.dim, &options, o.seed, o.threads).map_err(failed)?;
        let number = self.take_number();
        let path = self.store.join(ENCODINGS).join(coder_file(number));
        let write = || -> io::Result<Seal> {
            let mut sealed = SealWriter::new(Vec::new());
            sealed.write_all(&coder.to_bytes()?)?;
            let (seal, bytes) = sealed.finish()?;
            atomic::write(&path, &bytes)?;
            Ok(seal)
        };
        let entry = EncodingsEntry {
            number,
            seal: write().map_err(|e| SearchError::write(&path, e))?,
            passages: passages(manifest),
            segments: Vec::new(),
        };
        Ok((entry, coder))
    }

    /// Writes the codes of a segment; none if the user asked to stop.
    fn encode_segment(
        &self,
        coder_number: u64,
        number: u64,
        segment: &Segment,
        coder: &FdeCoder,
        progress: &dyn Progress,
    ) -> Result<Option<Seal>, SearchError> {
        let path = self
            .store
            .join(ENCODINGS)
            .join(codes_file(coder_number, number));
        let passages = segment.passages();
        let blocks: Vec<usize> = (0..passages).step_by(BLOCK).collect();
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&coder_number.to_le_bytes());
        header.extend_from_slice(&number.to_le_bytes());
        header.extend_from_slice(&(passages as u32).to_le_bytes());
        header.extend_from_slice(&(coder.block_bytes() as u32).to_le_bytes());
        header.resize(HEADER, 0);
        // An error of ours ends the writing, and takes the place of the system's.
        let mut failure = None;
        let mut seal = None;
        let written = atomic::write_with(&path, |file| {
            let mut sealed = SealWriter::new(io::BufWriter::new(file));
            sealed.write_all(&header)?;
            for firsts in blocks.chunks(AT_ONCE) {
                if progress.cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                for block in code_blocks(segment, coder, firsts, self.row_options.threads) {
                    match block {
                        Ok(block) => sealed.write_all(&block)?,
                        Err(e) => {
                            failure = Some(e);
                            return Err(io::ErrorKind::Other.into());
                        }
                    }
                }
                progress.advance((firsts.len() * BLOCK).min(passages) as u64);
            }
            let (of_file, mut out) = sealed.finish()?;
            seal = Some(of_file);
            out.flush()
        });
        match (written, failure) {
            (_, Some(e)) => Err(e),
            (Ok(()), None) => Ok(seal),
            (Err(_), None) if progress.cancelled() => Ok(None),
            (Err(e), None) => Err(SearchError::write(&path, e)),
        }
    }
}

/// The codes of the blocks that begin with these passages.
fn code_blocks(
    segment: &Segment,
    coder: &FdeCoder,
    firsts: &[usize],
    threads: usize,
) -> Vec<Result<Vec<u8>, SearchError>> {
    let code = |&first: &usize| {
        let (mut rows, mut counts) = (Vec::new(), Vec::new());
        for local in first..(first + BLOCK).min(segment.passages()) {
            counts.push(crate::score::decode_into(segment, local as u32, &mut rows)?);
        }
        coder.block(&rows, &counts).map_err(|e| segment.refused(&e))
    };
    if threads <= 1 {
        return firsts.iter().map(code).collect();
    }
    firsts.par_iter().map(code).collect()
}

/// Rows of up to `wanted` live passages drawn at random, and how many each has.
fn sample(
    segments: &[(u64, Segment)],
    wanted: usize,
    seed: u64,
) -> Result<(Vec<f32>, Vec<usize>), SearchError> {
    let mut passages = Vec::new();
    for (i, (_, segment)) in segments.iter().enumerate() {
        passages.extend(segment.live().map(|local| (i, local)));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let (chosen, _) = passages.partial_shuffle(&mut rng, wanted);
    let (mut rows, mut counts) = (Vec::new(), Vec::new());
    for &mut (i, local) in chosen {
        counts.push(crate::score::decode_into(&segments[i].1, local, &mut rows)?);
    }
    Ok((rows, counts))
}
