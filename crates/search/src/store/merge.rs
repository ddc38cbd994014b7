//! Merging segments, so that searching visits few of them and deleted passages
//! give their room back.
//!
//! Segments of similar size are merged when there are [`FAN`] of them, so a row
//! is copied a number of times that grows with the logarithm of the store. A
//! segment of which [`DEAD_SHARE`] is deleted is written anew. When the store has
//! grown [`GROWTH`]-fold since its codebook was made, all segments are merged and
//! coded with a new one. Rows are streamed from the old maps to the new file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keyfold_core::Progress;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::SEGMENTS;
use super::directory::open_folder;
use super::files::FileRecord;
use super::known::Place;
use super::manifest::{CodebookEntry, SegmentEntry};
use super::rows::{CODED_AT_ONCE, NewRows, Rows, write_codebook};
use super::segment::SegmentFile;
use super::snapshot::{live_records, open_codebooks};
use super::writer::{Writer, set_codebooks};
use crate::codebook::{Codebook, centroids_for};
use crate::error::SearchError;

/// Segments of one size that are merged into one.
const FAN: usize = 4;
/// A segment is written anew when more than this share of its passages is dead.
const DEAD_SHARE: f64 = 0.3;
/// A new codebook is made when there are this many times the tokens that the old
/// one was made for.
const GROWTH: u64 = 8;
/// Sample rows that a centroid needs.
const POINTS_PER_CENTROID: usize = 4;
/// Segments of fewer passages than this count as equally small.
const SMALL: u64 = 256;

/// Size of a segment, in passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    live: u64,
    dead: u64,
}

/// The segments that should be merged next, by index; none if all is well.
fn choose(sizes: &[Size]) -> Option<Vec<usize>> {
    let mut tiers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (i, size) in sizes.iter().enumerate() {
        let dead = size.dead as f64 > DEAD_SHARE * (size.dead + size.live) as f64;
        if dead {
            return Some(vec![i]);
        }
        let tier = (size.live / SMALL)
            .checked_ilog(FAN as u64)
            .map_or(0, |t| t + 1);
        tiers.entry(tier).or_default().push(i);
    }
    let tier = tiers.into_values().find(|tier| tier.len() >= FAN)?;
    // Passages are counted in 32 bits.
    let passages: u64 = tier.iter().map(|&i| sizes[i].live).sum();
    (passages < u64::from(u32::MAX)).then_some(tier)
}

/// A segment that is merged.
struct Source {
    file: SegmentFile,
    codebook: Option<Arc<Codebook>>,
    live: Vec<(u32, FileRecord)>,
}

impl Writer {
    /// Merges the segments that should be merged, each merge being a commit of
    /// its own; uncommitted changes are committed first. Stops early, with all
    /// that is done kept, when the user asks to.
    pub fn merge(&mut self, progress: &dyn Progress) -> Result<(), SearchError> {
        self.commit()?;
        if let Some(tokens) = self.outgrown() {
            self.merge_all_anew(tokens, progress)?;
        }
        while let Some(group) = self.next_vectors() {
            let codebook = self
                .rows
                .codebook_entry()
                .cloned()
                .zip(self.rows.codebook().cloned());
            if !self.merge_vectors(&group, codebook, progress)? {
                return Ok(());
            }
        }
        while !progress.cancelled() {
            let segments = self.lexical_segments()?;
            let sizes: Vec<Size> = segments
                .iter()
                .map(|s| Size {
                    live: u64::from(s.num_docs()),
                    dead: u64::from(s.num_deleted_docs()),
                })
                .collect();
            let Some(group) = choose(&sizes) else { break };
            let ids: Vec<_> = group.into_iter().map(|i| segments[i].id()).collect();
            drop(segments);
            self.merge_lexical(&ids)?;
        }
        Ok(())
    }

    fn next_vectors(&self) -> Option<Vec<u64>> {
        let pending = self.pending();
        let segments = &pending.next.segments;
        let sizes: Vec<Size> = segments
            .iter()
            .map(|s| Size {
                live: u64::from(s.passages - s.dead_passages),
                dead: u64::from(s.dead_passages),
            })
            .collect();
        Some(
            choose(&sizes)?
                .into_iter()
                .map(|i| segments[i].number)
                .collect(),
        )
    }

    /// The number of tokens, if it is far above what the codebook was made for and
    /// a new one would have at least twice the centroids.
    fn outgrown(&self) -> Option<u64> {
        if !self.row_options.uses_centroids() {
            return None;
        }
        let tokens = self.committed_tokens();
        if tokens <= self.rows.codebook_entry()?.tokens.saturating_mul(GROWTH) {
            return None;
        }
        // The memory bounds the sample, and the sample the centroids.
        let o = self.row_options;
        let sample = o.memory / size_of::<f32>() / o.dim;
        let possible = centroids_for(tokens).min(sample / POINTS_PER_CENTROID);
        (possible >= 2 * self.rows.codebook()?.count()).then_some(tokens)
    }

    /// Makes a codebook from a sample of all rows and merges all segments with it.
    fn merge_all_anew(&mut self, tokens: u64, progress: &dyn Progress) -> Result<(), SearchError> {
        let group: Vec<u64> = self
            .pending()
            .next
            .segments
            .iter()
            .map(|s| s.number)
            .collect();
        let sources = self.sources(&group)?;
        let sample = self.sample(&sources)?;
        drop(sources);
        let o = self.row_options;
        if sample.is_empty() || progress.cancelled() {
            return Ok(());
        }
        let codebook = Codebook::train(&sample, o.dim, o.bits, tokens, o.seed, o.threads).map_err(
            |source| SearchError::Codebook {
                store: self.store.clone(),
                source,
            },
        )?;
        drop(sample);
        let number = self.take_number();
        let entry = write_codebook(&self.store, &codebook, number, tokens)?;
        self.merge_vectors(&group, Some((entry, Arc::new(codebook))), progress)?;
        Ok(())
    }

    /// Rows of live passages drawn at random, as many as the memory allows.
    fn sample(&self, sources: &[Source]) -> Result<Vec<f32>, SearchError> {
        let mut passages = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            if source.codebook.is_none() {
                continue;
            }
            for (file, _) in &source.live {
                passages.extend(source.file.passages_of(*file)?.map(|local| (i, local)));
            }
        }
        passages.shuffle(&mut StdRng::seed_from_u64(self.row_options.seed));
        let mut rows = Vec::new();
        for (i, local) in passages {
            if size_of_val(&rows[..]) >= self.row_options.memory {
                break;
            }
            let source = &sources[i];
            if let Some(codebook) = &source.codebook {
                let range = source.file.rows_of(local)?;
                let codes = source.file.codes(range.clone())?;
                codebook.decode(codes, source.file.packed(range)?, &mut rows);
            }
        }
        Ok(rows)
    }

    fn sources(&self, numbers: &[u64]) -> Result<Vec<Source>, SearchError> {
        let manifest = self.pending().next.clone();
        let codebooks = open_codebooks(&self.store, &manifest)?;
        let folder = open_folder(&self.store.join(SEGMENTS))?;
        let mut sources = Vec::new();
        for entry in manifest
            .segments
            .iter()
            .filter(|s| numbers.contains(&s.number))
        {
            let file = SegmentFile::open(&self.store, &folder, entry)?;
            let live = live_records(&file, entry)?;
            let codebook = entry
                .codebook
                .and_then(|number| match self.rows.codebook_entry() {
                    // The one in use, so that rows are seen to need no new coding.
                    Some(newest) if newest.number == number => self.rows.codebook().cloned(),
                    _ => codebooks.get(&number).cloned(),
                });
            sources.push(Source {
                file,
                codebook,
                live,
            });
        }
        Ok(sources)
    }

    /// Replaces the segments with these numbers by one that is coded with
    /// `codebook`, and commits; false if the user asked to stop before it was done.
    fn merge_vectors(
        &mut self,
        numbers: &[u64],
        codebook: Option<(CodebookEntry, Arc<Codebook>)>,
        progress: &dyn Progress,
    ) -> Result<bool, SearchError> {
        let sources = self.sources(numbers)?;
        let mut rows = NewRows::new(&self.store, self.row_options, codebook.clone());
        let mut moved: HashMap<String, u32> = HashMap::new();
        for (i, file, record) in in_order_of_ids(&sources)? {
            if progress.cancelled() {
                return Ok(false);
            }
            copy_passages(&sources[i], file, &mut rows)?;
            moved.insert(record.key.clone(), rows.end_file(record)?);
        }
        let number = self.take_number();
        let entry = rows.finish(number)?;
        drop(rows);
        self.replace(numbers, entry, codebook)?;
        for (key, file) in moved {
            if let Some(known) = self.files.get_mut(&key) {
                known.place = Place {
                    segment: Some(number),
                    file,
                };
            }
        }
        Ok(true)
    }

    /// Commits a merge.
    fn replace(
        &mut self,
        old: &[u64],
        new: Option<SegmentEntry>,
        codebook: Option<(CodebookEntry, Arc<Codebook>)>,
    ) -> Result<(), SearchError> {
        let mut pending = self.pending();
        let segments = &mut pending.next.segments;
        segments.retain(|s| !old.contains(&s.number));
        segments.extend(new);
        if let Some(encodings) = &mut pending.next.encodings {
            encodings.segments.retain(|s| !old.contains(&s.0));
        }
        set_codebooks(
            &mut pending.next,
            codebook.as_ref().map(|(entry, _)| entry.clone()),
        );
        drop(pending);
        if let Some((entry, codebook)) = codebook {
            self.rows.set_codebook(entry, codebook);
        }
        self.publish()
    }
}

/// The live files of some segments in the order of their passages' ids, as
/// (segment, file, record), so that the ids of the merged segment ascend.
fn in_order_of_ids(sources: &[Source]) -> Result<Vec<(usize, u32, &FileRecord)>, SearchError> {
    let mut files = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        for (file, record) in &source.live {
            let passages = source.file.passages_of(*file)?;
            // Files without passages may stand anywhere.
            let first = if passages.is_empty() {
                0
            } else {
                source.file.id_of(passages.start)?
            };
            files.push((first, i, *file, record));
        }
    }
    files.sort_by_key(|&(first, i, file, _)| (first, i, file));
    Ok(files
        .into_iter()
        .map(|(_, i, file, record)| (i, file, record))
        .collect())
}

/// Copies the passages of a file, some thousand rows at a time.
fn copy_passages(source: &Source, file: u32, out: &mut NewRows) -> Result<(), SearchError> {
    let passages = source.file.passages_of(file)?;
    let mut local = passages.start;
    while local < passages.end {
        let id = source.file.id_of(local)?;
        let first = source.file.rows_of(local)?.start;
        let mut counts = Vec::new();
        let mut last = first;
        while local < passages.end && last - first < CODED_AT_ONCE {
            let rows = source.file.rows_of(local)?;
            counts.push(rows.end - rows.start);
            last = rows.end;
            local += 1;
        }
        match &source.codebook {
            Some(codebook) => {
                let codes = source.file.codes(first..last)?;
                let packed = source.file.packed(first..last)?;
                let ids = source.file.row_ids(first..last)?;
                out.passages(id, &counts, Rows::Coded(codebook, codes, packed), ids)?;
            }
            None => out.passages(id, &counts, Rows::Raw(&[]), &[])?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(live: u64, dead: u64) -> Size {
        Size { live, dead }
    }

    #[test]
    fn merges_what_is_of_one_size_or_half_dead() {
        assert_eq!(choose(&[size(10, 0), size(20, 0), size(9000, 0)]), None);
        let small = [
            size(10, 0),
            size(9000, 0),
            size(200, 0),
            size(30, 0),
            size(1, 0),
        ];
        assert_eq!(choose(&small), Some(vec![0, 2, 3, 4]));
        assert_eq!(choose(&[size(1000, 400), size(600, 400)]), Some(vec![1]));
        assert_eq!(choose(&[size(0, 1)]), Some(vec![0]));
        assert_eq!(choose(&[size(0, 0)]), None);
    }

    #[test]
    fn many_commits_leave_few_segments_and_little_copying() {
        // One segment of 100 passages after another.
        let mut sizes: Vec<Size> = Vec::new();
        let mut copied = 0;
        for _ in 0..1000 {
            sizes.push(size(100, 0));
            while let Some(group) = choose(&sizes) {
                let live = group.iter().map(|&i| sizes[i].live).sum();
                copied += live;
                for &i in group.iter().rev() {
                    sizes.remove(i);
                }
                sizes.push(size(live, 0));
            }
        }
        assert!(sizes.len() < 25, "{} segments", sizes.len());
        assert!(copied < 100_000 * 8, "{copied} passages copied");
    }
}
