//! Encoders of about equal size, equal training: how well they guess masked bytes.

use burn::tensor::Device;
use keyfold_core::Progress;
use keyfold_nn::{MixerEncoder, MixerEncoderConfig, MixerKind, random};
use keyfold_text::masked_model::{MaskedModelConfig, Measured, train};
use keyfold_train::gradient::OptimConfig;
use serde_json::{Value, json};

use super::failed;
use crate::quality::mean;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale, trained};

/// Sizes of the comparison.
struct Sizes {
    hidden: usize,
    layers: usize,
    length: usize,
    batch: usize,
    steps: u64,
    seeds: u64,
    bytes: usize,
}

impl Sizes {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Smoke => Self {
                hidden: 16,
                layers: 1,
                length: 32,
                batch: 4,
                steps: 6,
                seeds: 1,
                bytes: 20_000,
            },
            Scale::Small => Self {
                hidden: 64,
                layers: 2,
                length: 64,
                batch: 16,
                steps: 400,
                seeds: 2,
                bytes: 400_000,
            },
            Scale::Full => Self {
                hidden: 128,
                layers: 4,
                length: 128,
                batch: 32,
                steps: 3000,
                seeds: 3,
                bytes: 2_000_000,
            },
        }
    }

    /// A layer of a mixer with about as many weights as the others have.
    fn model(&self, mixer: MixerKind) -> MixerEncoderConfig {
        let states = self.hidden / 4;
        let base = MixerEncoderConfig {
            matrix_mixer_type: mixer,
            hidden_size: self.hidden,
            num_hidden_layers: self.layers,
            max_position_embeddings: self.length,
            headdim: self.hidden / 2,
            d_state: states,
            // Four heads: as many as both directions of Hydra read and write.
            qk_dim: states / 2,
            ..MaskedModelConfig::default().model
        };
        match mixer {
            MixerKind::Mamba2 => MixerEncoderConfig {
                d_state: 2 * states,
                ..base
            },
            MixerKind::Mamba2Sum => MixerEncoderConfig { expand: 1, ..base },
            // Every head has a matrix.
            MixerKind::Dense => MixerEncoderConfig {
                headdim: self.hidden,
                ..base
            },
            _ => base,
        }
    }
}

/// What is said of a mixer.
fn about(mixer: MixerKind) -> &'static str {
    match mixer {
        MixerKind::Hydra => "Hydra",
        MixerKind::Quasiseparable => "quasiseparable",
        MixerKind::Mamba2Sum => "sum of two Mamba-2",
        MixerKind::Mamba2 => "Mamba-2, one side",
        MixerKind::Attention => "attention",
        MixerKind::LowRank => "low rank",
        MixerKind::Cauchy => "Cauchy",
        MixerKind::Vandermonde => "Vandermonde",
        MixerKind::Toeplitz => "Toeplitz",
        MixerKind::Dense => "dense",
    }
}

struct Found {
    mixer: MixerKind,
    weights: usize,
    /// Bits and accuracy by seed.
    bits: Vec<f64>,
    accuracy: Vec<f64>,
    seconds: f64,
}

pub(super) fn masked(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<(String, f64)>), BenchError> {
    let sizes = Sizes::of(options.scale);
    let text = match &options.data {
        None => made_up(sizes.bytes, options.seed),
        Some(path) => {
            let bytes = std::fs::read(path)
                .map_err(|e| BenchError::data(path, format!("cannot be read: {e}")))?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    let mut all = Vec::new();
    let total = MixerKind::ALL.len() as u64;
    progress.start("masked bytes", "mixers", Some(total));
    for mixer in MixerKind::ALL {
        let mut found = Found {
            mixer,
            weights: 0,
            bits: Vec::new(),
            accuracy: Vec::new(),
            seconds: 0.0,
        };
        for seed in 0..sizes.seeds {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            one(&sizes, &text, options.seed + seed, &mut found)?;
        }
        all.push(found);
        progress.advance(1);
    }
    progress.finish();
    Ok(report(&sizes, options, &all, tables, findings))
}

/// Trains and measures an encoder.
fn one(sizes: &Sizes, text: &str, seed: u64, found: &mut Found) -> Result<(), BenchError> {
    let config = MaskedModelConfig {
        model: sizes.model(found.mixer),
        length: sizes.length,
        batch_size: sizes.batch,
        optim: OptimConfig {
            learning_rate: 4e-3,
            max_steps: sizes.steps,
            warmup_steps: sizes.steps / 16,
            ..MaskedModelConfig::default().optim
        },
        seed,
        run: trained::unwatched(),
        ..MaskedModelConfig::default()
    };
    let out = tempfile::tempdir()?;
    let clock = std::time::Instant::now();
    let quiet = keyfold_core::NoProgress;
    let folder = trained::train(out.path(), &quiet, |place| train(text, &config, place))?;
    found.seconds += clock.elapsed().as_secs_f64();
    let model = MixerEncoder::load(&folder, &Device::flex()).map_err(failed)?;
    let tensors = model.tensors();
    found.weights = tensors.iter().map(|t| t.numbers.len()).sum();
    let cut = (text.len() as f64 * (1.0 - config.held_out)) as usize;
    let measured = Measured::of(&model, &text.as_bytes()[cut..], &config)?;
    let measured =
        measured.ok_or_else(|| failed("the text is too short to hold some of it out"))?;
    found.bits.push(measured.loss / std::f64::consts::LN_2);
    found.accuracy.push(measured.accuracy);
    Ok(())
}

fn report(
    sizes: &Sizes,
    options: &BenchOptions,
    all: &[Found],
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> (Value, Vec<(String, f64)>) {
    let what = match &options.data {
        Some(path) => path.display().to_string(),
        None => "made-up text".to_owned(),
    };
    let mut table = Table::new(
        &format!(
            "masked bytes of held-out {what}: {} layers of width {}, windows of {}, {} steps of {} windows, {} seeds",
            sizes.layers, sizes.hidden, sizes.length, sizes.steps, sizes.batch, sizes.seeds
        ),
        &[
            "mixer", "weights", "bits", "from", "to", "right, %", "seconds",
        ],
    );
    let (mut values, mut bars) = (Vec::new(), Vec::new());
    for found in all {
        let bits = mean(&found.bits);
        let least = found.bits.iter().copied().fold(f64::INFINITY, f64::min);
        let most = found.bits.iter().copied().fold(0.0, f64::max);
        table.row([
            about(found.mixer).to_owned(),
            found.weights.to_string(),
            format!("{bits:.3}"),
            format!("{least:.3}"),
            format!("{most:.3}"),
            format!("{:.1}", 100.0 * mean(&found.accuracy)),
            format!("{:.0}", found.seconds),
        ]);
        values.push(json!({
            "mixer": found.mixer.name(), "weights": found.weights, "bits": found.bits,
            "accuracy": found.accuracy, "seconds": found.seconds,
        }));
        bars.push((about(found.mixer).to_owned(), bits));
    }
    tables.push(table);
    let bits = |mixer: MixerKind| {
        let of = all.iter().find(|f| f.mixer == mixer);
        of.map_or(f64::NAN, |f| mean(&f.bits))
    };
    let (hydra, sum, one) = (
        bits(MixerKind::Hydra),
        bits(MixerKind::Mamba2Sum),
        bits(MixerKind::Mamba2),
    );
    findings.push(format!(
        "expected: Hydra below the sum of two scans, and that below one scan; measured {hydra:.3}, {sum:.3} and {one:.3} bits: {}.",
        reached(hydra < sum && sum < one)
    ));
    let others = all.iter().filter(|f| f.mixer != MixerKind::Hydra);
    let best = others.min_by(|a, b| mean(&a.bits).total_cmp(&mean(&b.bits)));
    if let Some(best) = best {
        findings.push(format!(
            "claim (GLUE): Hydra 84.3 beside 83.5 of BERT's attention; here {hydra:.3} bits beside {:.3} of the attention mixer, and the best of the others is {} with {:.3}.",
            bits(MixerKind::Attention),
            about(best.mixer),
            mean(&best.bits)
        ));
    }
    (json!(values), bars)
}

/// Sentences of a made-up language. Words belong to one of some topics; the mark at a sentence's
/// end is also the last letter of each of its words, so that it can be told from either side.
fn made_up(bytes: usize, seed: u64) -> String {
    const TOPICS: usize = 12;
    const WORDS: usize = 12;
    let mut drawn = 0;
    let mut below = |count: usize| {
        drawn += 1;
        (random::unit(seed, drawn) * count as f64) as usize
    };
    let (starts, vowels) = (b"bdfgklmnprstvz", b"aeiou");
    let words: Vec<String> = (0..TOPICS * WORDS)
        .map(|_| {
            let syllables = 1 + below(3);
            let letters = (0..syllables).flat_map(|_| {
                let syllable = [starts[below(starts.len())], vowels[below(vowels.len())]];
                syllable.map(char::from)
            });
            letters.collect()
        })
        .collect();
    let marks = [('n', '.'), ('s', '!'), ('r', '?')];
    let mut text = String::with_capacity(bytes + 100);
    let mut topic = 0;
    while text.len() < bytes {
        if below(3) == 0 {
            topic = below(TOPICS);
        }
        let (ending, mark) = marks[below(marks.len())];
        for place in 0..4 + below(5) {
            if place > 0 {
                text.push(' ');
            }
            // The first words of a topic are the most frequent.
            let most = below(WORDS);
            let word = below(1 + most);
            text.push_str(&words[topic * WORDS + word]);
            text.push(ending);
        }
        text.push(mark);
        text.push(' ');
    }
    text.truncate(bytes);
    text
}
