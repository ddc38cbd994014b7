//! Models that are trained to recall, and attention that recalls by construction.

use burn::tensor::Device;
use keyfold_core::{NoProgress, Progress};
use keyfold_nn::{HaxModel, HaxModelConfig, random};
use keyfold_sequence::hax::{self, Mode, Source, attend, select};
use keyfold_sequence::recall::{JointRecall, MultiQueryRecall, RecallText};
use keyfold_text::hax::{Answered, HaxConfig, HaxTask, train};
use keyfold_train::gradient::OptimConfig;
use serde_json::{Value, json};

use super::failed;
use crate::quality::mean;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale, trained};

/// What a model's attention looks at.
struct Way {
    name: &'static str,
    sources: &'static [Source],
    /// A model without attention is twice as wide.
    wide: bool,
}

const WAYS: [Way; 6] = [
    Way {
        name: "Mamba-2 alone, twice as wide",
        sources: &[],
        wide: true,
    },
    Way {
        name: "+ sliding window",
        sources: &[Source::SlidingWindow],
        wide: false,
    },
    Way {
        name: "+ dilated",
        sources: &[Source::Dilated],
        wide: false,
    },
    Way {
        name: "+ hashes",
        sources: &[Source::SignBinLsh],
        wide: false,
    },
    Way {
        name: "+ selected keys",
        sources: &[Source::KeySelection],
        wide: false,
    },
    Way {
        name: "+ both (HAX)",
        sources: &[Source::SignBinLsh, Source::KeySelection],
        wide: false,
    },
];

/// Sizes of the comparison.
struct Sizes {
    joint: JointRecall,
    hidden: usize,
    keys: usize,
    batch: usize,
    steps: u64,
    seeds: u64,
    asked: u64,
}

impl Sizes {
    fn of(scale: Scale) -> Self {
        let joint = |least, most, n_value| JointRecall {
            least,
            max_n_context: most,
            max_n_key: most,
            n_value,
        };
        match scale {
            Scale::Smoke => Self {
                joint: joint(1, 2, 4),
                hidden: 16,
                keys: 4,
                batch: 4,
                steps: 6,
                seeds: 1,
                asked: 8,
            },
            Scale::Small => Self {
                joint: joint(2, 3, 8),
                hidden: 32,
                keys: 16,
                batch: 32,
                steps: 1500,
                seeds: 1,
                asked: 500,
            },
            Scale::Full => Self {
                joint: joint(5, 6, 16),
                hidden: 64,
                keys: 16,
                batch: 32,
                steps: 6000,
                seeds: 3,
                asked: 2000,
            },
        }
    }

    fn config(&self, way: &Way, seed: u64) -> HaxConfig {
        HaxConfig {
            model: HaxModelConfig {
                sparse: hax::HaxConfig {
                    sparse_arch: way.sources.to_vec(),
                    sparse_keys: self.keys,
                    num_hash: 4,
                    data_max_length: self.joint.longest().next_multiple_of(self.keys),
                    mode: Mode::Causal,
                },
                hidden_size: if way.wide {
                    2 * self.hidden
                } else {
                    self.hidden
                },
                vocab_size: 0,
                ..HaxModelConfig::default()
            },
            joint_recall: self.joint.clone(),
            batch_size: self.batch,
            optim: OptimConfig {
                max_steps: self.steps,
                warmup_steps: self.steps / 12,
                learning_rate: 4e-3,
                ..HaxConfig::default().optim
            },
            seed,
            run: trained::unwatched(),
            ..HaxConfig::default()
        }
    }
}

/// Trains a model and asks it.
fn answered(
    config: &HaxConfig,
    texts: &[RecallText],
) -> Result<(Answered, usize, f64), BenchError> {
    let out = tempfile::tempdir()?;
    let clock = std::time::Instant::now();
    let folder = trained::train(out.path(), &NoProgress, |place| train("", config, place))?;
    let seconds = clock.elapsed().as_secs_f64();
    let model = HaxModel::load(&folder, &Device::flex()).map_err(failed)?;
    let weights = model.tensors().iter().map(|t| t.numbers.len()).sum();
    let found = Answered::of(&model, texts).ok_or_else(|| failed("nothing is asked"))?;
    Ok((found, weights, seconds))
}

/// Texts that no training draws.
fn texts(
    count: u64,
    seed: u64,
    text: impl Fn(u64) -> Result<RecallText, keyfold_sequence::SequenceError>,
) -> Result<Vec<RecallText>, BenchError> {
    let seed = random::derive(seed, 0x7e57);
    let all = (0..count).map(|i| text(random::derive(seed, i)));
    all.collect::<Result<_, _>>().map_err(failed)
}

pub(super) fn joint(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<(String, f64)>), BenchError> {
    let sizes = Sizes::of(options.scale);
    let asked = texts(sizes.asked, options.seed, |seed| sizes.joint.text(seed))?;
    let mut table = Table::new(
        &format!(
            "joint recall of {} to {} contexts and keys, {} values (by chance {:.0} %): 2 layers of width {}, {} keys, {} steps of {} texts, {} seeds",
            sizes.joint.least,
            sizes.joint.max_n_key,
            sizes.joint.n_value,
            100.0 / sizes.joint.n_value as f64,
            sizes.hidden,
            sizes.keys,
            sizes.steps,
            sizes.batch,
            sizes.seeds
        ),
        &["model", "weights", "right, %", "by seed", "loss", "seconds"],
    );
    let (mut values, mut bars, mut right) = (Vec::new(), Vec::new(), Vec::new());
    progress.start("joint recall", "models", Some(WAYS.len() as u64));
    for way in &WAYS {
        let (mut accuracies, mut losses) = (Vec::new(), Vec::new());
        let (mut weights, mut seconds) = (0, 0.0);
        for seed in 0..sizes.seeds {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let config = sizes.config(way, options.seed + seed);
            let (found, count, took) = answered(&config, &asked)?;
            accuracies.push(found.accuracy);
            losses.push(found.loss);
            (weights, seconds) = (count, seconds + took);
        }
        let by_seed: Vec<String> = accuracies
            .iter()
            .map(|a| format!("{:.0}", 100.0 * a))
            .collect();
        table.row([
            way.name.to_owned(),
            weights.to_string(),
            format!("{:.1}", 100.0 * mean(&accuracies)),
            by_seed.join(" "),
            format!("{:.3}", mean(&losses)),
            format!("{seconds:.0}"),
        ]);
        values.push(json!({
            "model": way.name, "weights": weights, "accuracy": accuracies, "loss": losses, "seconds": seconds,
        }));
        bars.push((way.name.to_owned(), 100.0 * mean(&accuracies)));
        right.push(mean(&accuracies));
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let [alone, window, dilated, hashes, selected, both] = right[..] else {
        return Ok((json!(values), bars));
    };
    let fixed = window.max(dilated).max(alone);
    findings.push(format!(
        "claim: hashes with selected keys recall jointly better than any pattern that does not look at the content, and better than a wider model alone; measured {:.1} % beside {:.1} % at best of these: {}. Hashes alone {:.1} %, selected keys alone {:.1} %.",
        100.0 * both,
        100.0 * fixed,
        reached(both > fixed),
        100.0 * hashes,
        100.0 * selected
    ));
    Ok((json!(values), bars))
}

/// Sizes of multi-query recall.
struct QuerySizes {
    task: MultiQueryRecall,
    /// Numbers of pairs that are told.
    pairs: [usize; 2],
    /// A small and a large number of state numbers.
    states: [usize; 2],
    hidden: usize,
    batch: usize,
    steps: u64,
    asked: u64,
}

impl QuerySizes {
    fn of(scale: Scale) -> Self {
        // Nothing stands between the questions: of so few tokens any others would tell other
        // values of the same keys, and no model could know which is meant.
        let task = |vocab_size, input_seq_len| MultiQueryRecall {
            vocab_size,
            input_seq_len,
            random_non_queries: false,
            ..MultiQueryRecall::default()
        };
        match scale {
            Scale::Smoke => Self {
                task: task(40, 16),
                pairs: [1, 2],
                states: [4, 8],
                hidden: 16,
                batch: 4,
                steps: 6,
                asked: 8,
            },
            Scale::Small => Self {
                task: task(80, 64),
                pairs: [4, 16],
                states: [4, 32],
                hidden: 32,
                batch: 32,
                steps: 2000,
                asked: 500,
            },
            Scale::Full => Self {
                task: task(256, 64),
                pairs: [4, 16],
                states: [4, 64],
                hidden: 64,
                batch: 64,
                steps: 3000,
                asked: 2000,
            },
        }
    }

    fn config(&self, pairs: usize, state_size: usize, sources: &[Source], seed: u64) -> HaxConfig {
        HaxConfig {
            task: HaxTask::MultiQueryRecall,
            multi_query_recall: self.task(pairs),
            model: HaxModelConfig {
                sparse: hax::HaxConfig {
                    sparse_arch: sources.to_vec(),
                    sparse_keys: 16,
                    num_hash: 4,
                    ..hax::HaxConfig::default()
                },
                state_size,
                hidden_size: self.hidden,
                vocab_size: 0,
                ..HaxModelConfig::default()
            },
            batch_size: self.batch,
            optim: OptimConfig {
                max_steps: self.steps,
                warmup_steps: self.steps / 20,
                learning_rate: 4e-3,
                ..HaxConfig::default().optim
            },
            seed,
            run: trained::unwatched(),
            ..HaxConfig::default()
        }
    }

    fn task(&self, num_kv_pairs: usize) -> MultiQueryRecall {
        MultiQueryRecall {
            num_kv_pairs,
            ..self.task.clone()
        }
    }
}

/// Multi-query recall of few and many pairs: a small state, a large one, and a small one with
/// attention.
pub(super) fn queries(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let sizes = QuerySizes::of(options.scale);
    let mut table = Table::new(
        &format!(
            "multi-query recall in texts of {} from {} tokens: 2 layers of width {}, {} steps of {} texts",
            sizes.task.input_seq_len, sizes.task.vocab_size, sizes.hidden, sizes.steps, sizes.batch
        ),
        &[
            "pairs",
            "model",
            "state numbers",
            "right, %",
            "loss",
            "seconds",
        ],
    );
    let [small, large] = sizes.states;
    let ways: [(&str, usize, &[Source]); 3] = [
        ("Mamba-2 alone", small, &[]),
        ("Mamba-2 alone", large, &[]),
        (
            "with both (HAX)",
            small,
            &[Source::SignBinLsh, Source::KeySelection],
        ),
    ];
    let mut values = Vec::new();
    let models = sizes.pairs.len() * ways.len();
    progress.start("multi-query recall", "models", Some(models as u64));
    for pairs in sizes.pairs {
        let task = sizes.task(pairs);
        let asked = texts(sizes.asked, options.seed, |seed| task.text(seed))?;
        let mut right = Vec::new();
        for (name, state_size, sources) in ways {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let config = sizes.config(pairs, state_size, sources, options.seed);
            let (found, _, seconds) = answered(&config, &asked)?;
            table.row([
                pairs.to_string(),
                name.to_owned(),
                state_size.to_string(),
                format!("{:.1}", 100.0 * found.accuracy),
                format!("{:.3}", found.loss),
                format!("{seconds:.0}"),
            ]);
            values.push(json!({
                "pairs": pairs, "model": name, "state_size": state_size,
                "accuracy": found.accuracy, "loss": found.loss, "seconds": seconds,
            }));
            right.push(100.0 * found.accuracy);
            progress.advance(1);
        }
        findings.push(format!(
            "multi-query recall of {pairs} pairs: {:.1} % with {small} state numbers, {:.1} % with {large}, {:.1} % with {small} and HAX; expected above 95 % of few pairs, and a small state to recall less of many: {}.",
            right[0],
            right[1],
            right[2],
            if right[0] < right[1] - 1.0 { "it does" } else { "it does not" }
        ));
    }
    progress.finish();
    tables.push(table);
    Ok(json!(values))
}

/// Vectors that name key and context: what hashed attention answers without training.
pub(super) fn built(
    options: &BenchOptions,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let task = JointRecall {
        least: 4,
        max_n_context: 6,
        max_n_key: 6,
        n_value: 16,
    };
    let texts = texts(
        if options.scale == Scale::Smoke {
            4
        } else {
            100
        },
        options.seed,
        |seed| task.text(seed),
    )?;
    let mut values = Vec::new();
    for mode in [Mode::Compat, Mode::Causal] {
        let config = hax::HaxConfig {
            sparse_arch: vec![Source::SignBinLsh],
            sparse_keys: 32,
            mode,
            ..hax::HaxConfig::default()
        };
        let (mut right, mut asked) = (0, 0);
        for (number, text) in texts.iter().enumerate() {
            let named = Named::new(&task, text);
            let seed = random::derive(options.seed, number as u64);
            let hashes = random::normal(seed, Named::DIM * config.num_hash, 1.0);
            let chosen = select(&config, &named.q, &named.k, Named::DIM, &hashes, &[]);
            let chosen = chosen.map_err(failed)?;
            let out = attend(&named.q, &named.k, &named.v, Named::DIM, &chosen).map_err(failed)?;
            for &(at, answer) in &text.asked {
                let row = &out[at as usize * task.n_value..][..task.n_value];
                let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                right += usize::from(best == Some(answer as usize - 10));
                asked += 1;
            }
        }
        values.push(100.0 * right as f64 / f64::from(asked.max(1)));
    }
    findings.push(format!(
        "without training, hashed attention over vectors that name key and context answers {:.1} % with the released means (over the whole text), {:.1} % with means of what came so far, which hash a key and its later query about different means.",
        values[0], values[1]
    ));
    Ok(json!({"compat": values[0], "causal": values[1]}))
}

/// Queries, keys and values of a text of joint recall.
struct Named {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Named {
    /// A number for each key in each context.
    const DIM: usize = 36;

    fn new(task: &JointRecall, text: &RecallText) -> Self {
        let t = text.tokens.len();
        let keys_from = 10 + task.n_value;
        let contexts_from = keys_from + task.max_n_key;
        let [mut q, mut k] = [vec![0.0; t * Self::DIM], vec![0.0; t * Self::DIM]];
        let mut v = vec![0.0; t * task.n_value];
        let mut context = 0;
        for at in 0..t - 1 {
            let (token, next) = (text.tokens[at] as usize, text.tokens[at + 1] as usize);
            if token >= contexts_from {
                context = token - contexts_from;
            } else if token >= keys_from {
                let name = context * task.max_n_key + token - keys_from;
                if at < t / 2 {
                    k[(at + 1) * Self::DIM + name] = 30.0;
                    v[(at + 1) * task.n_value + next - 10] = 1.0;
                } else {
                    q[at * Self::DIM + name] = 30.0;
                }
            }
        }
        Self { q, k, v }
    }
}
