//! Classes of small drawn pictures by ViM2, beside the nearest mean picture and with parts of the layers taken away.

use keyfold_core::{NoProgress, Progress};
use keyfold_sequence::mamba_mixer::Averaging;
use keyfold_train::gradient::OptimConfig;
use keyfold_vision::vim2::{Classifier, Vim2Config, Vim2Training, train};
use keyfold_vision::{Picture, Pictures};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::failed;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale, trained};

const CLASSES: [&str; 4] = ["disc", "ring", "square", "cross"];

struct Sizes {
    side: usize,
    learned: usize,
    measured: usize,
    steps: u64,
}

impl Sizes {
    fn of(scale: Scale) -> Self {
        let (side, learned, measured, steps) = match scale {
            Scale::Smoke => (16, 24, 16, 4),
            // Drawn pictures cost no time, and few would be learned by heart.
            Scale::Small => (32, 4000, 400, 800),
            Scale::Full => (64, 16_000, 1000, 4000),
        };
        Self {
            side,
            learned,
            measured,
            steps,
        }
    }

    fn training(&self, seed: u64) -> Vim2Training {
        let whole = Vim2Training::default();
        Vim2Training {
            model: Vim2Config {
                image_size: self.side,
                dims: vec![16, 32],
                depths: vec![1, 1],
                channel_width: 8,
                d_state: 8,
                num_classes: 0,
                ..Vim2Config::default()
            },
            held_out: 0.0,
            batch_size: 16,
            optim: OptimConfig {
                learning_rate: 3e-3,
                max_steps: self.steps,
                warmup_steps: self.steps / 16,
                accumulation: 1,
                ..whole.optim
            },
            seed,
            run: trained::unwatched(),
            ..whole
        }
    }
}

pub(super) fn run(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let sizes = Sizes::of(options.scale);
    let learned = drawn(sizes.learned, sizes.side, options.seed);
    let measured = drawn(sizes.measured, sizes.side, options.seed ^ 0x5eed);
    let mut table = Table::new(
        &format!(
            "{} drawn pictures of {} kinds, {} points a side: {} steps",
            sizes.learned,
            CLASSES.len(),
            sizes.side,
            sizes.steps
        ),
        &["network", "right, %", "weights", "seconds to learn"],
    );
    let mut values = Vec::new();
    let near = nearest_mean(&learned, &measured);
    table.row([
        "nearest mean picture".to_owned(),
        format!("{:.1}", 100.0 * near),
        "0".to_owned(),
        "0".to_owned(),
    ]);
    progress.start("pictures", "trainings", Some(3));
    for (name, averaging, channel_mixer) in [
        ("ViM2", Averaging::Raw, true),
        ("ViM2 without mixing of channels", Averaging::Raw, false),
        (
            "ViM2 without averages of earlier layers",
            Averaging::Plain,
            true,
        ),
    ] {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut config = sizes.training(options.seed);
        config.model.averaging = averaging;
        config.model.channel_mixer = channel_mixer;
        let clock = std::time::Instant::now();
        let out = tempfile::tempdir()?;
        let folder = trained::train(out.path(), &NoProgress, |place| {
            train(&learned, &config, place)
        })?;
        let seconds = clock.elapsed().as_secs_f64();
        let model = Classifier::load(&folder).map_err(failed)?;
        let right = accuracy(&model, &measured);
        let tensors = model.model().tensors();
        let weights: usize = tensors.iter().map(|t| t.numbers.len()).sum();
        table.row([
            name.to_owned(),
            format!("{:.1}", 100.0 * right),
            weights.to_string(),
            format!("{seconds:.0}"),
        ]);
        values.push(
            json!({"network": name, "accuracy": right, "weights": weights, "seconds": seconds}),
        );
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let right = |at: usize| values[at]["accuracy"].as_f64().unwrap_or(0.0);
    let chance = 1.0 / CLASSES.len() as f64;
    findings.push(format!(
        "pictures: ViM2 {:.1} % right beside {:.1} % of the nearest mean picture, and twice the {:.0} % of chance: {}; {:.1} % without mixing of channels, {:.1} % without averages. The paper's claim is of ImageNet (82.7 % of ViM2-T), which is not measured here.",
        100.0 * right(0),
        100.0 * near,
        100.0 * chance,
        reached(right(0) > near.max(2.0 * chance)),
        100.0 * right(1),
        100.0 * right(2),
    ));
    Ok(json!({"nearest_mean": near, "networks": values}))
}

fn accuracy(model: &Classifier, pictures: &Pictures) -> f64 {
    let mut right = 0;
    for part in pictures.all.chunks(16) {
        let shown: Vec<&Picture> = part.iter().map(|(picture, _)| picture).collect();
        for (p, (_, class)) in model.probabilities(&shown).iter().zip(part) {
            right += usize::from(p.iter().all(|x| *x <= p[*class]));
        }
    }
    right as f64 / pictures.all.len() as f64
}

/// How often the class is that of the mean picture which is nearest.
fn nearest_mean(learned: &Pictures, measured: &Pictures) -> f64 {
    let width = learned.all[0].0.numbers.len();
    let mut means = vec![vec![0.0f32; width]; CLASSES.len()];
    let mut counts = [0.0f32; CLASSES.len()];
    for (picture, class) in &learned.all {
        counts[*class] += 1.0;
        let sums = means[*class].iter_mut().zip(&picture.numbers);
        sums.for_each(|(sum, x)| *sum += x);
    }
    for (mean, count) in means.iter_mut().zip(counts) {
        mean.iter_mut().for_each(|x| *x /= count.max(1.0));
    }
    let distance =
        |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    let right = measured.all.iter().filter(|(picture, class)| {
        let own = distance(&picture.numbers, &means[*class]);
        means
            .iter()
            .all(|mean| own <= distance(&picture.numbers, mean))
    });
    right.count() as f64 / measured.all.len() as f64
}

/// Pictures of one shape each, anywhere, of any size and colour, on a grained ground.
fn drawn(count: usize, side: usize, seed: u64) -> Pictures {
    let mut rng = StdRng::seed_from_u64(seed);
    let all = (0..count).map(|i| {
        let class = i % CLASSES.len();
        (one(class, side, &mut rng), class)
    });
    Pictures {
        classes: CLASSES.map(str::to_owned).into(),
        all: all.collect(),
    }
}

fn one(class: usize, side: usize, rng: &mut StdRng) -> Picture {
    let wide = side as f64;
    let radius = rng.random_range(0.18..0.3) * wide;
    let [x, y]: [f64; 2] = std::array::from_fn(|_| rng.random_range(radius..wide - radius));
    let [ground, ink]: [[f64; 3]; 2] =
        std::array::from_fn(|_| std::array::from_fn(|_| rng.random_range(0.0..255.0)));
    let mut bytes = Vec::with_capacity(side * side * 3);
    for place in 0..side * side {
        let dx = ((place % side) as f64 + 0.5 - x) / radius;
        let dy = ((place / side) as f64 + 0.5 - y) / radius;
        let far = dx.hypot(dy);
        let inside = match class {
            0 => far < 1.0,
            1 => (0.55..1.0).contains(&far),
            2 => dx.abs().max(dy.abs()) < 0.9,
            _ => dx.abs().min(dy.abs()) < 0.3 && dx.abs().max(dy.abs()) < 1.0,
        };
        let colour = if inside { &ink } else { &ground };
        let grain = rng.random_range(-20.0..20.0);
        bytes.extend(colour.map(|c: f64| (c + grain).clamp(0.0, 255.0) as u8));
    }
    Picture::of_bytes(side, &bytes)
}
