use super::*;
use crate::builtin::mixer::{Mixer, MixerConfig};
use keyfold_core::NoProgress;
use keyfold_kernels as kernels;

/// Words of queries; word `i` of documents is token `WORDS + i` and means the same.
const WORDS: usize = 12;

fn student(seed: u64) -> Student {
    let config = MixerConfig {
        vocab_size: 2 * WORDS,
        hidden_size: 8,
        num_blocks: 1,
        kernel_size: 3,
        intermediate_size: 5,
        output_size: 6,
        max_length: 9,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let mut mixer = Mixer::zeros(&config);
    for (_, _, data) in mixer.tensors_mut() {
        data.iter_mut()
            .for_each(|x| *x = rng.random_range(-0.7..0.7));
    }
    let numbers = config.vocab_size * config.hidden_size;
    Student {
        table: (0..numbers).map(|_| rng.random_range(-1.0..1.0)).collect(),
        query_weight: (0..config.vocab_size)
            .map(|_| rng.random_range(0.3..1.0))
            .collect(),
        mixer,
        held_out_cosine: 0.0,
    }
}

/// A query of two words and a document of the same words and a third, in another order.
fn pairs(count: usize) -> RankingPairs {
    let mut rng = StdRng::seed_from_u64(3);
    let mut all = RankingPairs {
        queries: Vec::new(),
        documents: Vec::new(),
        query_vectors: Vec::new(),
        document_vectors: Vec::new(),
    };
    for _ in 0..count {
        let words = index::sample(&mut rng, WORDS, 3).into_vec();
        let token = |&word: &usize| (WORDS + word) as u32;
        all.queries
            .push(words[..2].iter().map(|&w| w as u32).collect());
        all.documents.push(words.iter().rev().map(token).collect());
        for (vectors, said) in [
            (&mut all.query_vectors, &words[..2]),
            (&mut all.document_vectors, &words[..]),
        ] {
            let scale = 1.0 / (said.len() as f32).sqrt();
            vectors.extend((0..WORDS).map(|w| if said.contains(&w) { scale } else { 0.0 }));
        }
    }
    all
}

fn config(fold: &str) -> DistillConfig {
    DistillConfig {
        threads: 2,
        ranking: RankingConfig {
            fold: fold.into(),
            batch_size: 8,
            pool: 16,
            steps: 150,
            warmup_steps: 10,
            learning_rate: 1e-2,
            table_learning_rate: 2e-2,
            temperature: 0.2,
            teacher_temperature: 0.2,
            ..RankingConfig::default()
        },
        ..DistillConfig::default()
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let (pairs, is_key) = (pairs(5), vec![true; 2 * WORDS]);
    let config = config("none").ranking;
    let stage = Stage {
        pairs: &pairs,
        is_key: &is_key,
        config: &config,
        threads: 2,
    };
    let chosen = [0, 1, 2, 3, 4];
    for fold in [None, Some(Fold::Space(2)), Some(Fold::Ward(2))] {
        let loss = |s: &Student| stage.gradients(s, &chosen, fold, 1).loss;
        let mut start = student(1);
        let found = stage.gradients(&start, &chosen, fold, 1);
        let step = 2e-3;
        let check = |name: &str, up: f64, down: f64, ours: f32| {
            let differences = (up - down) / f64::from(2.0 * step);
            assert!(
                (differences - f64::from(ours)).abs() < 2e-2 * (1.0 + differences.abs()),
                "{fold:?} {name}: {differences} by differences, {ours} by backward"
            );
        };
        let h = start.mixer.config.hidden_size;
        let mut table = vec![0.0; start.table.len()];
        for shard in &found.shards {
            for (id, row) in shard.ids.iter().zip(shard.tokens.chunks_exact(h)) {
                kernels::add_assign(&mut table[*id as usize * h..][..h], row);
            }
        }
        let moved = |at: usize, by: f32| {
            let mut moved = student(1);
            moved.table[at] += by;
            loss(&moved)
        };
        for (at, &ours) in table.iter().enumerate().step_by(5) {
            check("table", moved(at, step), moved(at, -step), ours);
        }
        for (&id, &ours) in &found.lengths {
            let moved = |by: f32| {
                let mut moved = student(1);
                moved.query_weight[id as usize] += by;
                loss(&moved)
            };
            check("length", moved(step), moved(-step), ours);
        }
        let tensors = start.mixer.tensors_mut().len();
        for tensor in 0..tensors {
            let mut sum = 0.0;
            for shard in &found.shards {
                sum += shard.mixer.clone().tensors_mut()[tensor].2[0];
            }
            let moved = |by: f32| {
                let mut moved = student(1);
                moved.mixer.tensors_mut()[tensor].2[0] += by;
                loss(&moved)
            };
            let name = start.mixer.tensors_mut()[tensor].0.clone();
            check(&name, moved(step), moved(-step), sum);
        }
    }
}

#[test]
fn a_student_learns_to_find_what_belongs_together() {
    let (pairs, is_key) = (pairs(400), vec![true; 2 * WORDS]);
    for fold in ["none", "c2x2"] {
        let learn = || {
            let mut student = student(2);
            let report = rank(&mut student, &pairs, &is_key, &config(fold), &NoProgress);
            (report.unwrap(), student)
        };
        let (report, student) = learn();
        assert!(report.before < 0.6, "{fold}: {report:?}");
        assert!(report.after > 0.85, "{fold}: {report:?}");
        // The same seed gives the same weights.
        let (again, other) = learn();
        assert_eq!(report, again);
        assert_eq!(student.table, other.table);
    }
}

#[test]
fn settings_without_sense_are_refused() {
    let (pairs, is_key) = (pairs(8), vec![true; 2 * WORDS]);
    let refuse = |change: &dyn Fn(&mut RankingConfig)| {
        let mut config = config("none");
        change(&mut config.ranking);
        rank(&mut student(0), &pairs, &is_key, &config, &NoProgress)
            .unwrap_err()
            .to_string()
    };
    assert!(refuse(&|c| c.temperature = 0.0).contains("temperature is 0"));
    assert!(refuse(&|c| c.batch_size = 1).contains("batch_size"));
    assert!(refuse(&|c| c.fold = "c0".into()).contains('0'));
}
