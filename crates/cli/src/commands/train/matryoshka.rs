//! `keyfold train matryoshka-kv`.

use std::path::PathBuf;
use std::sync::Arc;

use keyfold_kernels::Team;
use keyfold_lm::store::matryoshka::{TrainingConfig, Watched, principal, train};
use keyfold_lm::{Decoder, ModelFile, SpecialTokens};

use super::training::{NOTES, TrainingArgs};
use crate::args::Globals;
use crate::commands::lm;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Train the bases in which a language model's cache is kept in fewer numbers
///
/// Starts from principal components of keys and values on the text, and turns them so that the
/// model reads well at every rank, all its weights as they are (MatryoshkaKV). OUT then has
/// bases.safetensors for --cache matryoshka:FILE, with all numbers; 'keyfold lm calibrate --cache
/// matryoshka --bases FILE' shares out fewer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train matryoshka-kv --model MODEL.gguf --data book.txt --out run \\
      --recipe recipes/matryoshka-kv-small.toml
  keyfold lm calibrate --cache matryoshka --bases run/bases.safetensors --cache-keep 0.4 \\
      --text book.txt --model MODEL.gguf --out bases.safetensors
  keyfold lm chat --model MODEL.gguf --cache matryoshka:bases.safetensors")]
pub(super) struct MatryoshkaArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, or a hub name
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// A text file
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// A basis for each query head, as the authors have it, where query heads share keys and
    /// values; the cache then holds a shared head once for each of them
    #[arg(long)]
    per_query_head: bool,
    #[command(flatten)]
    training: TrainingArgs,
}

/// Tokens that principal components are found on, at most.
const SEEN: usize = 16_384;

pub(super) fn run(args: &MatryoshkaArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let defaults = TrainingConfig {
        seed: globals.seed,
        ..TrainingConfig::default()
    };
    let data = std::slice::from_ref(&args.data);
    let Some(config) = args.training.settings(&defaults, data)? else {
        return Ok(Outcome::Done);
    };
    let text = std::fs::read(&args.data)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", args.data.display())))?;
    let file = ModelFile::open(&lm::setup::path(&args.model)?)?;
    let text = String::from_utf8_lossy(&text);
    let tokens = file.tokenizer()?.encode(&text, SpecialTokens::Plain)?;
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let file = lm::bases::fitting(file, None, args.per_query_head, &progress)?;
    let decoder = Arc::new(Decoder::load(&file)?);
    let team = Arc::new(Team::new(globals.threads.map_or(0, usize::from)));
    let seen = &tokens[..tokens.len().min(SEEN)];
    let windows: Vec<&[u32]> = seen.chunks(config.length.max(1)).collect();
    let start = principal(&decoder, &windows, config.around, &team, &progress)?;
    args.training.watch(globals, "matryoshka-kv", |place| {
        let place = Watched {
            out: place.out,
            resume: place.resume,
            progress: place.progress,
            watch: place.watch,
        };
        train(&file, &tokens, &start, &config, place).map(|(report, _)| report)
    })
}
