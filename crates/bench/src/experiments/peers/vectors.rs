//! Token vectors in a folder, as every engine reads them, and what is true of them.
//!
//! ```text
//! set.json                      {"dim": D}
//! documents.f32, queries.f32    rows of D numbers, one item after the other, little-endian
//! documents.u32, queries.u32    how many rows each item has
//! ```

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use keyfold_core::Progress;
use keyfold_kernels::{MaxSim, TopK, dot, norm, normalize_rows};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::BenchError;
use crate::quality::mean;

/// Documents that are looked at together.
const BATCH: usize = 2048;

/// Writes documents or queries, item by item.
pub(super) struct ItemWriter {
    rows: BufWriter<File>,
    counts: BufWriter<File>,
    dim: usize,
}

impl ItemWriter {
    pub(super) fn create(folder: &Path, name: &str, dim: usize) -> Result<Self, BenchError> {
        let set = serde_json::json!({ "dim": dim }).to_string();
        std::fs::write(folder.join("set.json"), set)?;
        let file = |ending| File::create(folder.join(format!("{name}.{ending}")));
        Ok(Self {
            rows: BufWriter::new(file("f32")?),
            counts: BufWriter::new(file("u32")?),
            dim,
        })
    }

    /// Adds an item of rows `[n, dim]`.
    pub(super) fn item(&mut self, rows: &[f32]) -> Result<(), BenchError> {
        for x in rows {
            self.rows.write_all(&x.to_le_bytes())?;
        }
        let count = (rows.len() / self.dim) as u32;
        self.counts.write_all(&count.to_le_bytes())?;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), BenchError> {
        self.rows.flush()?;
        Ok(self.counts.flush()?)
    }
}

/// Reads documents or queries, item by item.
pub(super) struct ItemReader {
    path: PathBuf,
    rows: BufReader<File>,
    counts: std::vec::IntoIter<usize>,
    pub(super) dim: usize,
}

impl ItemReader {
    pub(super) fn open(folder: &Path, name: &str) -> Result<Self, BenchError> {
        #[derive(serde::Deserialize)]
        struct Set {
            dim: usize,
        }
        let path = folder.join("set.json");
        let bytes = read(&path)?;
        let set: Set =
            serde_json::from_slice(&bytes).map_err(|e| BenchError::data(&path, e.to_string()))?;
        if set.dim == 0 {
            return Err(BenchError::data(
                &path,
                "vectors of no number; write the set again",
            ));
        }
        let bytes = read(&folder.join(format!("{name}.u32")))?;
        let counts: Vec<usize> = bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
            .collect();
        let path = folder.join(format!("{name}.f32"));
        let file = File::open(&path).map_err(|e| BenchError::data(&path, e.to_string()))?;
        Ok(Self {
            path,
            rows: BufReader::with_capacity(1 << 20, file),
            counts: counts.into_iter(),
            dim: set.dim,
        })
    }

    /// Items that are left.
    pub(super) fn left(&self) -> usize {
        self.counts.len()
    }

    /// The rows of the next `most` items one after the other, and how many each has;
    /// less at the end.
    pub(super) fn batch(&mut self, most: usize) -> Result<(Vec<f32>, Vec<usize>), BenchError> {
        let counts: Vec<usize> = self.counts.by_ref().take(most).collect();
        let mut bytes = vec![0; counts.iter().sum::<usize>() * self.dim * 4];
        self.rows.read_exact(&mut bytes).map_err(|e| {
            let what = match e.kind() {
                ErrorKind::UnexpectedEof => {
                    "it is shorter than its counts say; write the set again".to_owned()
                }
                _ => e.to_string(),
            };
            BenchError::data(&self.path, what)
        })?;
        let rows = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        Ok((rows, counts))
    }

    /// All items that are left.
    pub(super) fn all(mut self) -> Result<Vec<Vec<f32>>, BenchError> {
        let (rows, counts) = self.batch(usize::MAX)?;
        Ok(split(&rows, &counts, self.dim)
            .map(<[f32]>::to_vec)
            .collect())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BenchError> {
    std::fs::read(path).map_err(|e| BenchError::data(path, e.to_string()))
}

/// The rows of each item.
pub(super) fn split<'a>(
    mut rows: &'a [f32],
    counts: &'a [usize],
    dim: usize,
) -> impl Iterator<Item = &'a [f32]> {
    counts.iter().map(move |n| {
        let (item, rest) = rows.split_at(n * dim);
        rows = rest;
        item
    })
}

/// The `k` documents of the greatest MaxSim with each query.
pub(super) fn exact(
    folder: &Path,
    queries: &[Vec<f32>],
    k: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u64>>, BenchError> {
    let mut documents = ItemReader::open(folder, "documents")?;
    let dim = documents.dim;
    let mut best: Vec<TopK> = queries.iter().map(|_| TopK::new(k)).collect();
    progress.start("exact scores", "documents", Some(documents.left() as u64));
    let mut first = 0u64;
    while documents.left() > 0 {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let (rows, counts) = documents.batch(BATCH)?;
        best.par_iter_mut().zip(queries).for_each(|(best, query)| {
            let mut scorer = MaxSim::new(query, dim);
            for (id, item) in (first..).zip(split(&rows, &counts, dim)) {
                best.push(scorer.score(item), id);
            }
        });
        first += counts.len() as u64;
        progress.advance(counts.len() as u64);
    }
    progress.finish();
    let ids = |best: TopK| best.into_sorted().into_iter().map(|(_, id)| id).collect();
    Ok(best.into_iter().map(ids).collect())
}

/// How token vectors lie, all in means of cosines.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Spread {
    pub(super) documents: usize,
    pub(super) tokens: usize,
    /// A token and the one nearest to it in another of the first documents.
    pub(super) nearest: f64,
    /// Two tokens of one document.
    pub(super) within: f64,
    /// Any two tokens.
    pub(super) any: f64,
    /// Length of the mean of all tokens.
    pub(super) mean: f64,
}

/// Documents among which nearest tokens are looked for.
const SPREAD_DOCUMENTS: usize = 1400;
const SPREAD_TOKENS: usize = 500;

/// Looks at the first documents of a set.
pub(super) fn spread(folder: &Path, seed: u64) -> Result<Spread, BenchError> {
    let mut documents = ItemReader::open(folder, "documents")?;
    let dim = documents.dim;
    let all = documents.left();
    let tokens = documents.counts.as_slice().iter().sum();
    let (mut rows, counts) = documents.batch(SPREAD_DOCUMENTS)?;
    normalize_rows(&mut rows, dim);
    let row = |i: usize| &rows[i * dim..(i + 1) * dim];
    let n = rows.len() / dim;
    // The document of every row.
    let owner: Vec<usize> = (0..counts.len())
        .flat_map(|d| std::iter::repeat_n(d, counts[d]))
        .collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let sample: Vec<usize> = (0..SPREAD_TOKENS).map(|_| rng.random_range(0..n)).collect();
    let nearest = |&i: &usize| {
        let others = (0..n).filter(|&j| owner[j] != owner[i]);
        others
            .map(|j| f64::from(dot(row(i), row(j))))
            .fold(-1.0, f64::max)
    };
    let nearest: Vec<f64> = sample.par_iter().map(nearest).collect();
    let (mut within, mut any) = (Vec::new(), Vec::new());
    for &i in &sample {
        let start = owner.partition_point(|&d| d < owner[i]);
        let j = start + rng.random_range(0..counts[owner[i]]);
        if i != j {
            within.push(f64::from(dot(row(i), row(j))));
        }
        any.push(f64::from(dot(row(i), row(rng.random_range(0..n)))));
    }
    let mut sum = vec![0.0; dim];
    rows.chunks_exact(dim)
        .for_each(|r| keyfold_kernels::add_assign(&mut sum, r));
    Ok(Spread {
        documents: all,
        tokens,
        nearest: mean(&nearest),
        within: mean(&within),
        any: mean(&any),
        mean: f64::from(norm(&sum)) / n.max(1) as f64,
    })
}
