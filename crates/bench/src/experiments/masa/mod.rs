//! MASA: layers that share the matrices of their attention.
//!
//! M. Zhussip et al., 2026. Two questions. Small decoders of bytes are trained from scratch: whole,
//! with shared atoms, with layers that use one matrix together, and with matrices of low rank, the
//! last three with as many weights of attention. And a model that is trained is compressed, without
//! further training: by atoms and pairs, by atoms alone, and by low rank in each matrix alone, at
//! the same number of weights. `--data TEXT` is read in place of the project's own guides, and
//! `--model FILE` is compressed as well.

mod compress;
mod scratch;

use keyfold_core::Progress;
use keyfold_nn::LlamaConfig;
use serde_json::json;

use crate::plot;
use crate::report::Report;
use crate::{BenchError, BenchOptions, Experiment, Scale};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "masa",
    about: "layers that share matrices: trained so, and a trained model compressed (--model, --data)",
    run,
};

const GUIDES: [&str; 6] = [
    include_str!("../../../../../docs/search.md"),
    include_str!("../../../../../docs/training.md"),
    include_str!("../../../../../docs/language-models.md"),
    include_str!("../../../../../docs/PERFORMANCE.md"),
    include_str!("../../../../../docs/FORMATS.md"),
    include_str!("../../../../../docs/sequence.md"),
];

/// Sizes of an experiment.
struct Sizes {
    hidden: usize,
    length: usize,
    windows: usize,
    steps: u64,
    seeds: u64,
}

fn sizes(scale: Scale) -> Sizes {
    match scale {
        Scale::Smoke => Sizes {
            hidden: 32,
            length: 64,
            windows: 4,
            steps: 6,
            seeds: 1,
        },
        Scale::Small => Sizes {
            hidden: 64,
            length: 64,
            windows: 16,
            steps: 500,
            seeds: 2,
        },
        Scale::Full => Sizes {
            hidden: 128,
            length: 128,
            windows: 32,
            steps: 3000,
            seeds: 3,
        },
    }
}

fn config(sizes: &Sizes) -> LlamaConfig {
    LlamaConfig {
        hidden_size: sizes.hidden,
        intermediate_size: 2 * sizes.hidden,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: sizes.hidden / 4,
        max_position_embeddings: 512,
        ..LlamaConfig::default()
    }
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let text = match &options.data {
        Some(path) => std::fs::read(path).map_err(|e| BenchError::data(path, e.to_string()))?,
        None => GUIDES.concat().into_bytes(),
    };
    let sizes = sizes(options.scale);
    let cut = text.len() * 9 / 10;
    if text.len() - cut < 4 * (sizes.length + 1) {
        return Err(BenchError::data(
            "masa",
            format!("{} bytes of text are too few", text.len()),
        ));
    }
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let data = Data {
        learned: &text[..cut],
        held: &text[cut..],
    };
    let (scratch, bars, dense) =
        scratch::run(options, &sizes, &data, progress, &mut tables, &mut findings)?;
    let compressed = compress::small(
        options,
        &sizes,
        &dense,
        &data,
        progress,
        &mut tables,
        &mut findings,
    )?;
    let given = compress::given(options, progress, &mut tables, &mut findings)?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"from_scratch": scratch, "compressed_small": compressed, "compressed_given": given}),
        svg: plot::bars("Trained from scratch", "bits per byte", &bars, None)?,
    })
}

struct Data<'a> {
    learned: &'a [u8],
    held: &'a [u8],
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}
