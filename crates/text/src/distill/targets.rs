//! What the student shall learn: the teacher's hidden states of every token of
//! the training texts, projected to the size of a key.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use half::f16;
use keyfold_core::{Encoder, Progress, atomic};
use keyfold_kernels as kernels;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{DistillConfig, DistillError};
use crate::SentenceEncoder;

/// Texts that the teacher reads at a time.
const TEXTS: usize = 256;
/// Tokens from which the principal axes are found.
const AXES_FROM: usize = 200_000;
/// A token's start vector is its mean state where it was seen so often.
const SEEN: u32 = 3;

/// Token ids, the teacher's projected states, and start vectors for the table.
pub struct Targets {
    /// Ids of all texts, one after the other, without special tokens.
    pub ids: Vec<u32>,
    /// First token of every text, and the end.
    pub starts: Vec<usize>,
    /// `[tokens, output_size]`
    pub states: Vec<f16>,
    /// `[vocab, hidden_size]`
    pub table: Vec<f32>,
}

impl Targets {
    /// Runs the teacher over `texts`, or takes the result of an earlier run over
    /// the same texts from `cache`. This is the long part of a distillation.
    pub fn make(
        teacher: &SentenceEncoder,
        texts: &[String],
        config: &DistillConfig,
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, DistillError> {
        let key = key(teacher, texts, config);
        if let Some(targets) = Self::read(cache, Some(&key)) {
            progress.note(&format!(
                "using the teacher's states in {}",
                cache.display()
            ));
            return Ok(targets);
        }
        let targets = Self::run(teacher, texts, config, progress)?;
        let io = |source| DistillError::Io {
            path: cache.to_owned(),
            source,
        };
        let bytes = targets
            .to_bytes(&key, config)
            .map_err(|e| io(std::io::Error::other(e)))?;
        atomic::write(cache, &bytes).map_err(io)?;
        Ok(targets)
    }

    fn run(
        teacher: &SentenceEncoder,
        texts: &[String],
        config: &DistillConfig,
        progress: &dyn Progress,
    ) -> Result<Self, DistillError> {
        let (h, o) = (config.hidden_size, config.output_size);
        let mut axes: Option<Axes> = None;
        let mut waiting: Vec<f32> = Vec::new();
        let mut all = Self {
            ids: Vec::new(),
            starts: vec![0],
            states: Vec::new(),
            table: Vec::new(),
        };
        let mut sums: HashMap<u32, (u32, Vec<f32>)> = HashMap::new();
        progress.start("teacher reads", "texts", Some(texts.len() as u64));
        for chunk in texts.chunks(TEXTS) {
            if progress.cancelled() {
                return Err(DistillError::Cancelled);
            }
            let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
            for (ids, states) in teacher.token_states(&chunk)? {
                // The first and the last token are the special ones.
                let inner = 1..ids.len().saturating_sub(1).max(1);
                let width = states.dim();
                let rows = &states.as_slice()[inner.start * width..inner.end * width];
                for (&id, row) in ids[inner.clone()].iter().zip(rows.chunks_exact(width)) {
                    let (count, sum) = sums.entry(id).or_insert_with(|| (0, vec![0.0; width]));
                    *count += 1;
                    kernels::add_assign(sum, row);
                }
                all.ids.extend(&ids[inner]);
                all.starts.push(all.ids.len());
                match &axes {
                    Some(axes) => axes.project(rows, o, &mut all.states),
                    None => waiting.extend(rows),
                }
                if axes.is_none() && waiting.len() >= AXES_FROM * width {
                    let found = Axes::find(&waiting, width, h.min(width), config.seed);
                    found.project(&waiting, o, &mut all.states);
                    waiting = Vec::new();
                    axes = Some(found);
                }
            }
            progress.advance(chunk.len() as u64);
        }
        progress.finish();
        let width = sums.values().next().map_or(0, |(_, sum)| sum.len());
        if all.ids.is_empty() {
            return Err(DistillError::NoText);
        }
        let axes = axes.unwrap_or_else(|| {
            let found = Axes::find(&waiting, width, h.min(width), config.seed);
            found.project(&waiting, o, &mut all.states);
            found
        });
        all.table = start_table(teacher, &axes, &sums, config, progress)?;
        Ok(all)
    }

    /// How rare each token is, `[vocab]`: `ln((N + 1) / (n + 1)) / ln(N + 1)` of a
    /// token that `n` of the `N` texts hold; one for a token of none.
    pub(super) fn rarity(&self, vocab_size: usize) -> Vec<f32> {
        let texts = self.starts.len() - 1;
        let mut holding = vec![0u32; vocab_size];
        for text in self.starts.windows(2) {
            let held: BTreeSet<u32> = self.ids[text[0]..text[1]].iter().copied().collect();
            held.iter().for_each(|&id| holding[id as usize] += 1);
        }
        let most = (texts as f32 + 1.0).ln().max(f32::MIN_POSITIVE);
        let rarity = |&n: &u32| 1.0 - (n as f32 + 1.0).ln() / most;
        holding.iter().map(rarity).collect()
    }

    fn to_bytes(&self, key: &str, config: &DistillConfig) -> Result<Vec<u8>, String> {
        let le = |x: u32| x.to_le_bytes();
        let ids: Vec<u8> = self.ids.iter().flat_map(|&x| le(x)).collect();
        let starts: Vec<u8> = self
            .starts
            .iter()
            .flat_map(|&x| (x as u64).to_le_bytes())
            .collect();
        let states: Vec<u8> = self.states.iter().flat_map(|x| x.to_le_bytes()).collect();
        let table: Vec<u8> = self.table.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (o, h) = (config.output_size, config.hidden_size);
        let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes);
        let tensors = [
            ("ids", view(Dtype::U32, vec![self.ids.len()], &ids)),
            ("starts", view(Dtype::U64, vec![self.starts.len()], &starts)),
            ("states", view(Dtype::F16, vec![self.ids.len(), o], &states)),
            (
                "table",
                view(Dtype::F32, vec![self.table.len() / h, h], &table),
            ),
        ];
        let tensors = tensors
            .into_iter()
            .map(|(name, view)| view.map(|v| (name, v)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        let metadata = HashMap::from([("key".to_owned(), key.to_owned())]);
        safetensors::serialize(tensors, Some(metadata)).map_err(|e| e.to_string())
    }

    /// Reads what [`Targets::make`] has kept; nothing when it is not there, not
    /// whole, or (where a key is given) of other texts.
    pub fn read(path: &Path, key: Option<&str>) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let found = header.metadata().as_ref()?.get("key")?;
        if key.is_some_and(|key| key != found) {
            return None;
        }
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let data = |name| file.tensor(name).ok().map(|t| t.data());
        Some(Self {
            ids: quads(data("ids")?).map(u32::from_le_bytes).collect(),
            starts: data("starts")?
                .chunks_exact(8)
                .map(|b| b.iter().rev().fold(0, |x, &b| x << 8 | usize::from(b)))
                .collect(),
            states: data("states")?
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]))
                .collect(),
            table: quads(data("table")?).map(f32::from_le_bytes).collect(),
        })
    }
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

/// Names everything that the targets depend on.
fn key(teacher: &SentenceEncoder, texts: &[String], config: &DistillConfig) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(teacher.identity().hash.as_bytes());
    for n in [config.hidden_size, config.output_size, config.seed as usize] {
        hasher.update(&(n as u64).to_le_bytes());
    }
    for text in texts {
        hasher.update(blake3::hash(text.as_bytes()).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// A start vector for every token: its mean state in the texts, or, where it is
/// rare, the mean state of its own letters as a text.
fn start_table(
    teacher: &SentenceEncoder,
    axes: &Axes,
    sums: &HashMap<u32, (u32, Vec<f32>)>,
    config: &DistillConfig,
    progress: &dyn Progress,
) -> Result<Vec<f32>, DistillError> {
    let h = config.hidden_size;
    let pieces = teacher.vocabulary();
    let mut table = vec![0.0; pieces.len() * h];
    progress.start("teacher reads", "tokens", Some(pieces.len() as u64));
    for (chunk, ids) in pieces.chunks(TEXTS).zip((0u32..).step_by(TEXTS)) {
        if progress.cancelled() {
            return Err(DistillError::Cancelled);
        }
        let texts: Vec<&str> = chunk.iter().map(|p| p.trim_start_matches("##")).collect();
        let states = teacher.token_states(&texts)?;
        for (id, (_, states)) in (ids..).zip(states) {
            let mean = match sums.get(&id) {
                Some((count, sum)) if *count >= SEEN => {
                    sum.iter().map(|x| x / *count as f32).collect()
                }
                _ => inner_mean(&states),
            };
            let row = &mut table[id as usize * h..(id as usize + 1) * h];
            axes.project_row(&mean, row);
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish();
    let square = table.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / table.len() as f64;
    let scale = 0.5 / square.sqrt().max(1e-12) as f32;
    table.iter_mut().for_each(|x| *x *= scale);
    Ok(table)
}

/// Mean of the rows without the first and the last (of all, where there are no others).
fn inner_mean(states: &keyfold_core::Vectors) -> Vec<f32> {
    let rows = states.rows();
    let inner = if rows > 2 { 1..rows - 1 } else { 0..rows };
    let mut mean = vec![0.0; states.dim()];
    for i in inner.clone() {
        kernels::add_assign(&mut mean, states.row(i));
    }
    let scale = 1.0 / inner.len().max(1) as f32;
    mean.iter_mut().for_each(|x| *x *= scale);
    mean
}

/// Principal axes of some rows, the widest first.
struct Axes {
    mean: Vec<f32>,
    /// `[axes, dim]`, orthonormal rows.
    axes: Vec<f32>,
}

/// Rounds of the orthogonal iteration; the widest axes settle after a few.
const ROUNDS: usize = 60;

impl Axes {
    /// The `count` widest axes of `rows` `[n, dim]`, by orthogonal iteration on
    /// their covariance: `Q ← orthonormalise(C Q)`.
    fn find(rows: &[f32], dim: usize, count: usize, seed: u64) -> Self {
        use rand::{Rng, SeedableRng};
        let n = rows.len() / dim.max(1);
        let mut mean = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            kernels::add_assign(&mut mean, row);
        }
        mean.iter_mut().for_each(|x| *x /= n.max(1) as f32);
        let mut transposed = vec![0.0; rows.len()];
        for (r, row) in rows.chunks_exact(dim).enumerate() {
            for (i, (x, m)) in row.iter().zip(&mean).enumerate() {
                transposed[i * n + r] = x - m;
            }
        }
        let mut covariance = vec![0.0; dim * dim];
        kernels::matmul_nt(&mut covariance, &transposed, &transposed, dim, dim, n, 1);
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut axes: Vec<f32> = (0..count * dim)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let mut next = vec![0.0; axes.len()];
        kernels::orthonormalize_rows(&mut axes, dim);
        for _ in 0..ROUNDS {
            kernels::matmul_nn(&mut next, &axes, &covariance, count, dim, dim, 1);
            std::mem::swap(&mut axes, &mut next);
            kernels::orthonormalize_rows(&mut axes, dim);
        }
        Self { mean, axes }
    }

    /// Coordinates of a row along the first `out.len()` axes; the rest of `out` becomes zero.
    fn project_row(&self, row: &[f32], out: &mut [f32]) {
        let dim = self.mean.len();
        let centred: Vec<f32> = row.iter().zip(&self.mean).map(|(x, m)| x - m).collect();
        out.fill(0.0);
        for (out, axis) in out.iter_mut().zip(self.axes.chunks_exact(dim)) {
            *out = kernels::dot(&centred, axis);
        }
    }

    fn project(&self, rows: &[f32], count: usize, out: &mut Vec<f16>) {
        let mut projected = vec![0.0; count];
        for row in rows.chunks_exact(self.mean.len()) {
            self.project_row(row, &mut projected);
            out.extend(projected.iter().map(|&x| f16::from_f32(x)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_those_of_the_widest_spread() {
        // Spread 10 along (3, 4, 0)/5, spread 1 along z, none along the third.
        let mut rows = Vec::new();
        for i in 0..50 {
            let (a, b) = ((i % 10) as f32 - 4.5, (i % 3) as f32 - 1.0);
            rows.extend([6.0 * a + 1.0, 8.0 * a + 2.0, b + 3.0]);
        }
        let axes = Axes::find(&rows, 3, 2, 0);
        let mut out = [0.0; 2];
        axes.project_row(&[1.0 + 6.0, 2.0 + 8.0, 3.0], &mut out);
        assert!((out[0].abs() - 10.0).abs() < 0.05, "{out:?}");
        axes.project_row(&[1.0, 2.0, 4.0], &mut out);
        assert!((out[1].abs() - 1.0).abs() < 0.05, "{out:?}");
    }
}
