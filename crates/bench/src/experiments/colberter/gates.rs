//! Learnt gates in the toy encoder: `A_w` the mean of the unit rows of a word's tokens,
//! in documents times `g_w = relu(10 (w . A_w + b))`, with `weight` times the mean of
//! `g` added to the loss. The factor lets gates learn faster than the encoder: they
//! have far to go in few steps.
//!
//! The encoder is first trained without gates; then gates and encoder together, once
//! for each weight.

use keyfold_core::{Progress, Role};
use keyfold_kernels::{self as kernels, MaxSim, top_k};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::super::search::Collection;
use crate::plot::Line;
use crate::quality::{mean, ndcg};
use crate::report::{Table, reached};
use crate::toy::{self, FEATURES, Groups, Text, Tower, TrainOptions, World, parts, train};
use crate::{BenchError, BenchOptions, Scale};

/// Length of a row.
const DIM: usize = 32;
const BATCH: usize = 64;
/// Weights of the gates in the loss.
const WEIGHTS: [f32; 3] = [0.01, 0.1, 1.0];
/// How much faster gates learn.
const FASTER: f32 = 10.0;
/// Share of the words that is dropped to compare gates with chance.
const DROPPED: f64 = 0.3;
/// Draws by chance.
const DRAWS: u64 = 3;
/// Words that say little by themselves.
const FUNCTION_WORDS: &str =
    "the of and a in to is for are with by at on as was that this an be it from or which were";
/// Words whose gates are shown.
const SHOWN: usize = 12;
/// Bytes of a row in a store: 32 numbers of 8 bits, scale, centroid, id.
const ROW_BYTES: f64 = (DIM + 2 + 2 + 4) as f64;

/// See the head of the module.
#[derive(Clone)]
struct GatedTower {
    /// `[FEATURES, DIM]`, then `w` (`[DIM]`) and `b`.
    parameters: Vec<f32>,
    gated: bool,
    /// What a document's mean gate counts in the loss.
    penalty: f32,
}

struct Tape {
    unit: Vec<f32>,
    norms: Vec<f32>,
    groups: Groups,
    /// `[words, DIM]`.
    means: Vec<f32>,
    /// Of documents with gates.
    gates: Option<Vec<f32>>,
}

impl GatedTower {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let width = (3.0 / FEATURES as f32).sqrt();
        let mut parameters: Vec<f32> = (0..FEATURES * DIM)
            .map(|_| rng.random_range(-width..width))
            .collect();
        parameters.extend((0..DIM).map(|_| rng.random_range(-0.01..0.01)));
        // Gates begin open, as in the publication.
        parameters.push(1.0 / FASTER);
        Self {
            parameters,
            gated: false,
            penalty: 0.0,
        }
    }

    fn gated(&self, weight: f32) -> Self {
        Self {
            gated: true,
            penalty: weight / BATCH as f32,
            ..self.clone()
        }
    }

    fn gate(&self) -> (&[f32], f32) {
        let (w, b) = self.parameters[FEATURES * DIM..].split_at(DIM);
        (w, b[0])
    }
}

impl Tower for GatedTower {
    type Tape = Tape;

    fn dim(&self) -> usize {
        DIM
    }

    fn forward(&self, text: &Text, role: Role) -> (Vec<f32>, Tape) {
        let weights = &self.parameters[..FEATURES * DIM];
        let mut unit = parts::linear(&text.features, weights, FEATURES, DIM);
        let norms = parts::normalize(&mut unit, DIM);
        let groups = Groups::of_words(&text.words);
        let means = groups.means(&unit, DIM);
        let mut rows = means.clone();
        let gates = (self.gated && role == Role::Document).then(|| {
            let (w, b) = self.gate();
            let gate = |row: &mut [f32]| {
                let g = FASTER * (kernels::dot(row, w) + b).max(0.0);
                row.iter_mut().for_each(|x| *x *= g);
                g
            };
            rows.chunks_exact_mut(DIM).map(gate).collect()
        });
        let tape = Tape {
            unit,
            norms,
            groups,
            means,
            gates,
        };
        (rows, tape)
    }

    fn backward(&self, text: &Text, tape: &Tape, mut grad: Vec<f32>) -> Vec<f32> {
        let mut of_gate = vec![0.0; DIM + 1];
        if let Some(gates) = &tape.gates {
            let (w, _) = self.gate();
            let penalty = self.penalty / gates.len().max(1) as f32;
            let rows = grad.chunks_exact_mut(DIM).zip(tape.means.chunks_exact(DIM));
            for ((grad, mean), &g) in rows.zip(gates) {
                let slope = match g > 0.0 {
                    true => FASTER * (kernels::dot(grad, mean) + penalty),
                    false => 0.0,
                };
                for (((x, m), w), of_w) in grad.iter_mut().zip(mean).zip(w).zip(&mut of_gate) {
                    *x = g * *x + slope * w;
                    *of_w += slope * m;
                }
                of_gate[DIM] += slope;
            }
        }
        let mut grad = tape.groups.means_backward(&grad, tape.norms.len(), DIM);
        parts::normalize_backward(&mut grad, &tape.unit, &tape.norms, DIM);
        let mut all = parts::linear_backward(&text.features, &grad, FEATURES, DIM);
        all.extend(of_gate);
        all
    }

    fn parameters(&mut self) -> &mut [f32] {
        &mut self.parameters
    }
}

pub(super) struct Gates {
    pub(super) by_weight: Table,
    pub(super) by_word: Table,
    pub(super) values: Value,
    trials: Vec<Trial>,
}

/// One weight, means over the seeds.
#[derive(serde::Serialize)]
struct Trial {
    weight: f32,
    /// Different words of a document.
    words: f64,
    /// Share of the words whose gate is 0: of function words, of all others, of all.
    closed_function: f64,
    closed_others: f64,
    closed: f64,
    /// nDCG@10 without gates, with all words, without those of gate 0, without the
    /// [`DROPPED`] share of the lowest gates, and without as many by chance.
    ungated: f64,
    all: f64,
    open: f64,
    lowest: f64,
    chance: f64,
}

impl Gates {
    pub(super) fn lines(&self) -> Vec<Line> {
        let line = |name: &str, point: &dyn Fn(&Trial) -> (f64, f64)| {
            (
                format!("toy encoder, {name}"),
                self.trials.iter().map(point).collect(),
            )
        };
        vec![line("words with open gates", &|t| {
            (t.words * (1.0 - t.closed) * ROW_BYTES, t.open)
        })]
    }

    pub(super) fn findings(&self, most_lost: f64) -> Vec<String> {
        let Some(best) = self
            .trials
            .iter()
            .max_by(|a, b| a.lowest.total_cmp(&b.lowest))
        else {
            return Vec::new();
        };
        let first = self
            .trials
            .iter()
            .all(|t| t.closed_function > t.closed_others);
        let (lost, by_chance) = (best.all - best.lowest, best.all - best.chance);
        vec![
            format!(
                "gates close for function words before others at every weight: {} (at {}: {:.0} % of \
                 their places against {:.0} % of the others')",
                reached(first),
                best.weight,
                100.0 * best.closed_function,
                100.0 * best.closed_others
            ),
            format!(
                "dropping {:.0} % of the words by gates changes nDCG@10 by {:+.4}, by chance by {:+.4} \
                 (weight {}; aim: less than {most_lost} lost by gates, clearly more by chance): {}",
                100.0 * DROPPED,
                -lost,
                -by_chance,
                best.weight,
                reached(lost < most_lost && by_chance > lost.max(0.0) + most_lost / 2.0)
            ),
        ]
    }
}

pub(super) fn measure(
    collection: &Collection,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Gates, BenchError> {
    let (steps, seeds) = match options.scale {
        Scale::Smoke => ((6, 4), 1),
        Scale::Small => ((300, 200), 2),
        Scale::Full => ((2000, 1000), 5),
    };
    let world = World::new(&collection.documents, &collection.queries, options.seed);
    let total = seeds * (steps.0 + WEIGHTS.len() * steps.1);
    progress.start("learn gates", "batches", Some(total as u64));
    let mut runs: Vec<Vec<Run>> = WEIGHTS.iter().map(|_| Vec::new()).collect();
    for seed in 0..seeds as u64 {
        let seed = options.seed.wrapping_add(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut learn = |tower: &mut GatedTower, steps| {
            let how = TrainOptions {
                steps,
                threads: options.thread_count(),
                ..TrainOptions::default()
            };
            train(tower, || world.batch(BATCH, &mut rng), &how, progress)
        };
        let mut plain = GatedTower::new(seed);
        learn(&mut plain, steps.0)?;
        for (weight, runs) in WEIGHTS.iter().zip(&mut runs) {
            let mut tower = plain.gated(*weight);
            learn(&mut tower, steps.1)?;
            let evaluation = Evaluation {
                world: &world,
                collection,
                threads: options.thread_count(),
            };
            runs.push(evaluation.run(&plain, &tower, seed));
        }
    }
    progress.finish();
    let trials: Vec<Trial> = WEIGHTS
        .iter()
        .zip(&runs)
        .map(|(&weight, runs)| Trial::of(weight, runs))
        .collect();
    let (by_word, words) = by_word(&world, collection, &runs);
    Ok(Gates {
        by_weight: by_weight(&trials),
        by_word,
        values: json!({ "trials": trials, "words": words }),
        trials,
    })
}

/// A trained tower on the collection.
struct Run {
    /// Word and gate of every row of every document.
    gates: Vec<Vec<(u32, f32)>>,
    function: Vec<u32>,
    /// As in [`Trial`].
    quality: [f64; 5],
}

struct Evaluation<'a> {
    world: &'a World,
    collection: &'a Collection,
    threads: usize,
}

impl Evaluation<'_> {
    fn run(&self, plain: &GatedTower, tower: &GatedTower, seed: u64) -> Run {
        let documents = &self.world.documents;
        let encoded = toy::in_parallel(documents, self.threads, |text| {
            let (rows, tape) = tower.forward(text, Role::Document);
            let words = tape.groups.0.iter().map(|group| text.words[group[0]]);
            let gates: Vec<(u32, f32)> = words.zip(tape.gates.unwrap_or_default()).collect();
            (rows, gates)
        });
        let (rows, gates): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let queries = toy::encode(tower, &self.world.queries, Role::Query, self.threads);
        // Every row of every document, with its gate.
        let mut places: Vec<(f32, usize, usize)> = Vec::new();
        for (d, gates) in gates.iter().enumerate() {
            places.extend(gates.iter().enumerate().map(|(i, &(_, g))| (g, d, i)));
        }
        // Ties, as among closed gates, fall by chance.
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6a7e);
        places.shuffle(&mut rng);
        let dropped = (places.len() as f64 * DROPPED) as usize;
        let without = |places: &[(f32, usize, usize)]| {
            let mut keep: Vec<Vec<bool>> = gates.iter().map(|g| vec![true; g.len()]).collect();
            places.iter().for_each(|&(_, d, i)| keep[d][i] = false);
            let kept: Vec<Vec<f32>> = rows
                .iter()
                .zip(&keep)
                .map(|(rows, keep)| {
                    let rows = rows.chunks_exact(DIM).zip(keep);
                    rows.filter(|(_, keep)| **keep)
                        .flat_map(|(r, _)| r)
                        .copied()
                        .collect()
                })
                .collect();
            self.ndcg(&queries, &kept)
        };
        let all = without(&[]);
        let chance: Vec<f64> = (0..DRAWS)
            .map(|_| {
                places.shuffle(&mut rng);
                without(&places[..dropped])
            })
            .collect();
        let closed: Vec<_> = places.iter().filter(|p| p.0 <= 0.0).copied().collect();
        let open = without(&closed);
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        let lowest = without(&places[..dropped]);
        let plain_rows = toy::encode(plain, documents, Role::Document, self.threads);
        let plain_queries = toy::encode(plain, &self.world.queries, Role::Query, self.threads);
        let ungated = self.ndcg(&plain_queries, &plain_rows);
        Run {
            gates,
            function: function_words(self.world),
            quality: [ungated, all, open, lowest, mean(&chance)],
        }
    }

    fn ndcg(&self, queries: &[Vec<f32>], documents: &[Vec<f32>]) -> f64 {
        let numbers: Vec<usize> = (0..queries.len()).collect();
        let each = toy::in_parallel(&numbers, self.threads, |&q| {
            let mut scorer = MaxSim::new(&queries[q], DIM);
            let scores: Vec<f32> = documents.iter().map(|d| scorer.score(d)).collect();
            let best = top_k(&scores, 10);
            let list: Vec<usize> = best.into_iter().map(|(_, i)| i as usize).collect();
            ndcg(&list, &self.collection.relevant[q], 10)
        });
        mean(&each)
    }
}

fn function_words(world: &World) -> Vec<u32> {
    world.lexicon.read(FUNCTION_WORDS).words
}

impl Trial {
    fn of(weight: f32, runs: &[Run]) -> Self {
        let closed = |of: &dyn Fn(&Run, u32) -> bool| {
            let (mut closed, mut all) = (0usize, 0usize);
            for run in runs {
                for &(word, gate) in run.gates.iter().flatten() {
                    if of(run, word) {
                        all += 1;
                        closed += usize::from(gate <= 0.0);
                    }
                }
            }
            closed as f64 / all.max(1) as f64
        };
        let quality = |i: usize| mean(&runs.iter().map(|r| r.quality[i]).collect::<Vec<_>>());
        let words = runs
            .iter()
            .flat_map(|r| &r.gates)
            .map(Vec::len)
            .sum::<usize>();
        let documents: usize = runs.iter().map(|r| r.gates.len()).sum();
        Self {
            weight,
            words: words as f64 / documents.max(1) as f64,
            closed_function: closed(&|run, word| run.function.contains(&word)),
            closed_others: closed(&|run, word| !run.function.contains(&word)),
            closed: closed(&|_, _| true),
            ungated: quality(0),
            all: quality(1),
            open: quality(2),
            lowest: quality(3),
            chance: quality(4),
        }
    }
}

fn by_weight(trials: &[Trial]) -> Table {
    let lowest = format!("less {:.0} % by gate", 100.0 * DROPPED);
    let chance = format!("less {:.0} % by chance", 100.0 * DROPPED);
    let columns = [
        "weight of gates",
        "closed",
        "of function words",
        "of others",
        "nDCG@10 before gates",
        "all words",
        "open gates only",
        &lowest,
        &chance,
    ];
    let mut table = Table::new("learnt gates, toy encoder, means over seeds", &columns);
    let share = |x: f64| format!("{:.1} %", 100.0 * x);
    for t in trials {
        table.row([
            t.weight.to_string(),
            share(t.closed),
            share(t.closed_function),
            share(t.closed_others),
            format!("{:.4}", t.ungated),
            format!("{:.4}", t.all),
            format!("{:.4}", t.open),
            format!("{:.4}", t.lowest),
            format!("{:.4}", t.chance),
        ]);
    }
    table
}

/// The words with the lowest and the highest gates, of those in at least a twentieth
/// of the documents, at the greatest weight.
fn by_word(world: &World, collection: &Collection, runs: &[Vec<Run>]) -> (Table, Value) {
    let mut sums: std::collections::HashMap<u32, (f64, usize)> = Default::default();
    let heaviest = &runs[WEIGHTS.len() - 1];
    for &(word, gate) in heaviest.iter().flat_map(|r| &r.gates).flatten() {
        let sum = sums.entry(word).or_default();
        sum.0 += f64::from(gate);
        sum.1 += 1;
    }
    let least = collection.documents.len() * heaviest.len() / 20;
    let mut names: Vec<(String, f64)> = spellings(world, collection)
        .into_iter()
        .filter_map(|(word, name)| {
            let &(sum, n) = sums.get(&word)?;
            (n > least).then(|| (name, sum / n as f64))
        })
        .collect();
    names.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let title = format!(
        "gates of frequent words, lowest and highest (weight {})",
        WEIGHTS[WEIGHTS.len() - 1]
    );
    let mut table = Table::new(&title, &["lowest", "gate", "highest", "gate"]);
    for (low, high) in names
        .iter()
        .zip(names.iter().rev())
        .take(SHOWN.min(names.len() / 2))
    {
        table.row([
            low.0.clone(),
            format!("{:.3}", low.1),
            high.0.clone(),
            format!("{:.3}", high.1),
        ]);
    }
    (table, json!(names))
}

/// The numbers of the collection's words with a spelling of each.
fn spellings(world: &World, collection: &Collection) -> std::collections::BTreeMap<u32, String> {
    let mut all = std::collections::BTreeMap::new();
    for document in &collection.documents {
        for word in document.body.split(|c: char| !c.is_alphanumeric()) {
            if let [number] = world.lexicon.read(word).words[..] {
                all.entry(number).or_insert_with(|| word.to_lowercase());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_differences() {
        let mut rng = StdRng::seed_from_u64(3);
        let text = Text {
            words: vec![4, 7, 4, 9, 7],
            features: (0..5 * FEATURES)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect(),
        };
        let slopes: Vec<f32> = (0..3 * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut tower = GatedTower::new(5).gated(0.5 * BATCH as f32);
        // The loss: any weighing of the rows, and the penalty.
        let loss = |tower: &GatedTower, role| {
            let (rows, tape) = tower.forward(&text, role);
            let gates = tape.gates.unwrap_or_default();
            let penalty = 0.5 * gates.iter().sum::<f32>() / gates.len().max(1) as f32;
            kernels::dot(&rows, &slopes) + penalty
        };
        for role in [Role::Query, Role::Document] {
            let (_, tape) = tower.forward(&text, role);
            let gradient = tower.backward(&text, &tape, slopes.clone());
            assert_eq!(gradient.len(), tower.parameters.len());
            let largest = gradient.iter().fold(0f32, |a, g| a.max(g.abs()));
            let step = 2e-3;
            for i in (0..gradient.len())
                .step_by(41)
                .chain(FEATURES * DIM..gradient.len())
            {
                let mut at = |shift: f32| {
                    tower.parameters[i] += shift;
                    let value = loss(&tower, role);
                    tower.parameters[i] -= shift;
                    value
                };
                let slope = (at(step) - at(-step)) / (2.0 * step);
                let error = (slope - gradient[i]).abs();
                assert!(error < 0.02 * largest, "{i}: {slope} {}", gradient[i]);
            }
        }
    }

    #[test]
    fn a_closed_gate_removes_its_word() {
        let mut tower = GatedTower::new(1).gated(0.1);
        let at = FEATURES * DIM;
        tower.parameters[at..].fill(0.0);
        let text = Text {
            words: vec![1],
            features: vec![0.5; FEATURES],
        };
        let (rows, tape) = tower.forward(&text, Role::Document);
        assert!(rows.iter().all(|x| *x == 0.0));
        assert_eq!(tape.gates, Some(vec![0.0]));
        let (rows, tape) = tower.forward(&text, Role::Query);
        assert!(rows.iter().any(|x| *x != 0.0) && tape.gates.is_none());
    }
}
