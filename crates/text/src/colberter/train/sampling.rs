//! Topic-aware, balanced batches: what is no answer to a query, and which queries go
//! together.

use keyfold_kernels::kmeans::{KMeansConfig, kmeans};
use keyfold_kernels::{dot, matmul_nt, top_k};
use rand::Rng;
use rand::rngs::StdRng;

use super::teacher::Teacher;

/// Texts that are no answer, for each query: the nearest ones, thinned out.
const CANDIDATES: usize = 16;
/// Of so many nearest texts.
const NEAREST: usize = 200;
/// Ranges of margins from which negatives come equally often.
const BINS: usize = 10;
/// Queries of a topic, about.
const TOPIC: usize = 200;
/// Queries that are compared with all documents at once.
const BLOCK: usize = 64;

/// For each query the documents of `given`, and of the nearest by the teacher some that
/// are not held out, with their margins, ascending.
pub(super) fn candidates(
    teacher: &Teacher,
    positive: &[usize],
    given: &[Vec<usize>],
    held: &std::collections::HashSet<usize>,
    documents: usize,
) -> Vec<Vec<(usize, f32)>> {
    let dim = teacher.dim;
    let mut all = Vec::with_capacity(positive.len());
    for (block, queries) in teacher.queries.chunks(BLOCK * dim).enumerate() {
        let n = queries.len() / dim;
        let mut scores = vec![0.0; n * documents];
        matmul_nt(
            &mut scores,
            queries,
            &teacher.documents,
            n,
            documents,
            dim,
            0,
        );
        for (i, row) in scores.chunks_exact(documents).enumerate() {
            let query = block * BLOCK + i;
            let answer = positive[query];
            let mut found = given[query].clone();
            let near = top_k(row, NEAREST.min(documents)).into_iter();
            let near: Vec<usize> = near
                .map(|(_, d)| d as usize)
                .filter(|d| *d != answer && !held.contains(d))
                .collect();
            let step = near.len().div_ceil(CANDIDATES).max(1);
            found.extend(near.into_iter().step_by(step));
            found.retain(|d| *d != answer);
            let mut found: Vec<(usize, f32)> = found
                .into_iter()
                .map(|d| (d, row[answer] - row[d]))
                .collect();
            if found.is_empty() {
                // All others are held out: any other text will do.
                let other = (0..documents).find(|d| *d != answer).unwrap_or(answer);
                found.push((other, row[answer] - row[other]));
            }
            found.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            found.dedup();
            all.push(found);
        }
    }
    all
}

/// A document of a margin that is drawn from equal ranges.
pub(super) fn balanced(candidates: &[(usize, f32)], rng: &mut StdRng) -> usize {
    let (low, high) = (candidates[0].1, candidates[candidates.len() - 1].1);
    let width = (high - low) / BINS as f32;
    let bin = |margin: f32| match width > 0.0 {
        true => (((margin - low) / width) as usize).min(BINS - 1),
        false => 0,
    };
    let mut bins: Vec<usize> = candidates.iter().map(|c| bin(c.1)).collect();
    bins.dedup();
    let chosen = bins[rng.random_range(0..bins.len())];
    let inside: Vec<usize> = candidates
        .iter()
        .filter(|c| bin(c.1) == chosen)
        .map(|c| c.0)
        .collect();
    inside[rng.random_range(0..inside.len())]
}

/// The queries of each topic: clusters of the teacher's vectors.
pub(super) fn topics(teacher: &Teacher, learn: &[usize], seed: u64) -> Vec<Vec<usize>> {
    let k = (learn.len() / TOPIC).max(1);
    let dim = teacher.dim;
    let rows: Vec<f32> = learn
        .iter()
        .flat_map(|q| teacher.query(*q))
        .copied()
        .collect();
    let centroids = kmeans(&rows, dim, &KMeansConfig::new(k, seed), 0);
    let mut topics = vec![Vec::new(); centroids.len() / dim];
    for (query, row) in learn.iter().zip(rows.chunks_exact(dim)) {
        let far = |c: &[f32]| dot(c, row) - 0.5 * dot(c, c);
        let nearest = centroids.chunks_exact(dim).enumerate();
        let nearest = nearest.max_by(|a, b| far(a.1).total_cmp(&far(b.1)));
        topics[nearest.map_or(0, |(i, _)| i)].push(*query);
    }
    topics.retain(|topic| !topic.is_empty());
    topics
}
