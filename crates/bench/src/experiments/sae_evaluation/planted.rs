//! Rows that are sums of known vectors: two names, an order, noise.

use keyfold_core::Progress;
use keyfold_dictionary::sae::{BiasInit, SaeConfig, SaeMethod};
use keyfold_inspect::sae_evaluation::scores::Scores;
use keyfold_inspect::sae_evaluation::{Attribute, SupervisedDictionary, train_sae, unexplained};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::random::normal;
use crate::report::Table as Shown;
use crate::{BenchError, BenchOptions, Scale};

const D: usize = 64;
const NAMES: usize = 40;

/// The autoencoder whose `b_dec` begins at 0 and not at the mean of rows.
const FROM_ZERO: &str = "l1 1.5, biases from 0";

/// What was found.
pub(super) struct Planted {
    pub(super) tables: Vec<Shown>,
    /// Unexplained variance of least-squares codes, mean codes and the autoencoder.
    pub(super) mse: f64,
    pub(super) mean: f64,
    pub(super) sae: f64,
    /// F1 of io before and after s was made larger, and of s.
    pub(super) occlusion: [f64; 4],
    /// Features that stand for one value of the order alone, and the best recall of them.
    pub(super) splitting: (usize, f64),
    pub(super) values: Value,
}

/// Rows, their attributes, and the same rows with another `io`.
struct Rows {
    rows: Vec<f32>,
    attributes: Vec<Attribute>,
    changed: Vec<f32>,
    new: Vec<usize>,
}

fn planted(count: usize, sizes: [f64; 3], seed: u64) -> Rows {
    let mut rng = StdRng::seed_from_u64(seed);
    let root = (D as f64).sqrt();
    let vectors = |rng: &mut StdRng, count: usize, size: f64| -> Vec<f32> {
        let one = |_| (size / root * f64::from(normal(rng))) as f32;
        (0..count * D).map(one).collect()
    };
    let codes = [
        vectors(&mut rng, NAMES, sizes[0]),
        vectors(&mut rng, NAMES, sizes[1]),
        vectors(&mut rng, 2, sizes[2]),
    ];
    let b = vectors(&mut rng, 1, 3.0);
    let mut of: [Vec<usize>; 3] = Default::default();
    let (mut rows, mut changed, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let io = rng.random_range(0..NAMES);
        let s = (io + rng.random_range(1..NAMES)) % NAMES;
        let pos = rng.random_range(0..2);
        let other = (io + rng.random_range(1..NAMES)) % NAMES;
        let noise = vectors(&mut rng, 1, 0.3);
        for j in 0..D {
            let rest = b[j] + codes[1][s * D + j] + codes[2][pos * D + j] + noise[j];
            rows.push(rest + codes[0][io * D + j]);
            changed.push(rest + codes[0][other * D + j]);
        }
        [io, s, pos]
            .into_iter()
            .zip(&mut of)
            .for_each(|(v, of)| of.push(v));
        new.push(other);
    }
    let [io, s, pos] = of;
    Rows {
        rows,
        attributes: vec![
            Attribute::numbered("io", NAMES, io),
            Attribute::numbered("s", NAMES, s),
            Attribute::numbered("io_pos", 2, pos),
        ],
        changed,
        new,
    }
}

pub(super) fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Planted, BenchError> {
    let (count, epochs, width) = match options.scale {
        Scale::Smoke => (1000, 6, 128),
        _ => (6000, 150, 512),
    };
    let known = planted(count, [4.0, 4.0, 2.0], options.seed);
    let mut table = Shown::new(
        "rows of known parts",
        &[
            "dictionary",
            "active",
            "unexplained",
            "F1 io / s / io_pos",
            "above 0.8",
            "specification",
        ],
    );
    let mut values = Vec::new();
    let mut supervised = Vec::new();
    for (name, least_squares, then) in [
        ("mean codes", false, "0.0105"),
        ("least-squares codes", true, "0.0027"),
    ] {
        let found = match least_squares {
            true => SupervisedDictionary::mse_codes(&known.rows, D, &known.attributes)?,
            false => SupervisedDictionary::mean_codes(&known.rows, D, &known.attributes)?,
        };
        let left = unexplained(&known.rows, &found.reconstruct(&known.attributes), D);
        let edited = edited(&known, &found);
        table.row([
            name.to_owned(),
            "3".to_owned(),
            format!("{left:.4}"),
            format!("an edit of io leaves {:.1} %", 100.0 * edited),
            String::new(),
            then.to_owned(),
        ]);
        values.push(json!({"dictionary": name, "unexplained": left, "edit_leaves": edited}));
        supervised.push(left);
    }
    let mut kept = Vec::new();
    let cases = [
        (
            "autoencoder, l1 1.5",
            1.5,
            4.0,
            "11.9, 0.092, 0.75 / 0.77 / 0.84, 11 / 24 / 2",
        ),
        ("autoencoder, l1 0.5", 0.5, 4.0, "35, -, 0.56 / 0.58 / 0.81"),
        ("l1 1.5, s of 5.5", 1.5, 5.5, "io 0.71, s 0.77"),
        ("l1 1.5, s of 8", 1.5, 8.0, ""),
        (FROM_ZERO, 1.5, 4.0, "as l1 1.5"),
    ];
    for (name, l1, size, then) in cases {
        let rows = match size == 4.0 {
            true => None,
            false => Some(planted(count, [4.0, size, 2.0], options.seed)),
        };
        let rows = rows.as_ref().unwrap_or(&known);
        let config = SaeConfig {
            architecture: SaeMethod::Standard,
            d_sae: width,
            l1_coefficient: l1,
            normalize_decoder: true,
            lr: 1e-3,
            batch_size: 512.min(count / 4),
            b_dec_init_method: match name {
                FROM_ZERO => BiasInit::Zeros,
                _ => BiasInit::Mean,
            },
            seed: options.seed,
            ..SaeConfig::default()
        };
        let sae = train_sae(&rows.rows, D, None, config, epochs, progress)?;
        let coded = sae.code(&rows.rows)?;
        let left = unexplained(&rows.rows, &coded.rows, D);
        let scores: Vec<Scores> = rows
            .attributes
            .iter()
            .map(|a| Scores::of(&coded.codes, a))
            .collect();
        let f1: Vec<f64> = scores.iter().map(Scores::mean_best).collect();
        let above: Vec<usize> = scores.iter().map(|s| s.meanings(0.8).len()).collect();
        let splitting = scores[2].splitting();
        let most = splitting.iter().max_by_key(|s| s.precise);
        let most = most.map_or((0, 0.0), |s| (s.precise, s.best_recall));
        table.row([
            name.to_owned(),
            format!("{:.1}", coded.codes.mean_active()),
            format!("{left:.4}"),
            format!("{:.2} / {:.2} / {:.2}", f1[0], f1[1], f1[2]),
            format!("{} / {} / {}", above[0], above[1], above[2]),
            then.to_owned(),
        ]);
        values.push(json!({
            "dictionary": name, "active": coded.codes.mean_active(), "unexplained": left, "f1": f1,
            "above": above, "splitting": splitting,
        }));
        kept.push((left, f1, most));
    }
    let splitting = kept
        .iter()
        .map(|k| k.2)
        .max_by_key(|m| m.0)
        .unwrap_or_default();
    Ok(Planted {
        tables: vec![table],
        mean: supervised[0],
        mse: supervised[1],
        sae: kept[0].0,
        occlusion: [kept[0].1[0], kept[3].1[0], kept[0].1[1], kept[3].1[1]],
        splitting,
        values: json!(values),
    })
}

/// What part of the distance to rows with another `io` is left after a supervised edit.
fn edited(known: &Rows, dictionary: &SupervisedDictionary) -> f64 {
    let (mut left, mut all) = (0.0, 0.0);
    let rows = known
        .rows
        .chunks_exact(D)
        .zip(known.changed.chunks_exact(D));
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    for (i, (row, target)) in rows.enumerate() {
        let mut moved = row.to_vec();
        dictionary.edit(&mut moved, 0, known.attributes[0].of[i], known.new[i]);
        left += distance(&moved, target);
        all += distance(row, target);
    }
    left / all
}
