//! `keyfold model sparsify`: a language model whose tokens read a part of its weights.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::BlockType;
use keyfold_lm::linear::r_sparse::search::{SearchConfig, Trials};
use keyfold_lm::linear::r_sparse::{
    self, Calibration, FoldOptions, Split, fold, read_splits, save,
};
use keyfold_lm::{Decoder, ModelFile, SpecialTokens};
use serde_json::json;

use crate::args::Globals;
use crate::commands::lm::setup::path;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Make a language model whose written tokens leave a part of its weights unread
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold model sparsify MODEL.gguf --method r-sparse --text notes.txt
  keyfold lm chat --model MODEL.gguf --weights r-sparse
  keyfold model sparsify MODEL.gguf --method r-sparse --text notes.txt --rho search --out DIR

R-Sparse needs no training: inputs that are large for a layer read their weights, the others are
told by a few singular values. Prompts are read with all weights. The result lies beside the
model, which stays as it is.")]
pub(super) struct SparsifyArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, or a hub name
    #[arg(value_name = "MODEL")]
    model: String,
    /// How
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// A text file to find thresholds on; a page or two is enough
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Where the result goes: a file, or a folder that is there [default: beside the model]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Share of the weights that stay unread
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    sparsity: f64,
    /// Share of what is read that goes to whole channels: a number, a file of pairs of rho and
    /// sparsity for every linear map (the authors' layout), or search
    #[arg(long, value_name = "SHARE|FILE|search", default_value = "0.95")]
    rho: Rho,
    /// Tokens that thresholds are found on
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// No token reads more than so many times the mean number of channels
    #[arg(long, value_name = "TIMES")]
    cap: Option<f64>,
    /// How weights are kept: same, f16, q8_0, q4_0, q4_1 or q4_k
    #[arg(long, value_name = "TYPE", default_value = "same")]
    keep: Keep,
    /// Count ranks of keys and values as the authors' script does, as if there were as many KV
    /// heads as query heads
    #[arg(long)]
    authors_ranks: bool,
    /// search: tokens of the text after those for thresholds
    #[arg(long, value_name = "N", default_value_t = 512)]
    search_tokens: usize,
    /// search: how many are compared
    #[arg(long, value_name = "N", default_value_t = 16)]
    population: usize,
    /// search: how often the worse are replaced
    #[arg(long, value_name = "N", default_value_t = 6)]
    generations: usize,
}

/// How a model is made sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// By the size of inputs, and singular values for the rest (R-Sparse)
    RSparse,
}

#[derive(Debug, Clone, PartialEq)]
enum Rho {
    All(f64),
    File(PathBuf),
    Search,
}

impl FromStr for Rho {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(rho) => Self::All(rho),
            Err(_) if text == "search" => Self::Search,
            Err(_) => Self::File(text.into()),
        })
    }
}

/// How weights are kept; none as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep(Option<BlockType>);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "same" => None,
            "f16" => Some(BlockType::F16),
            "q8_0" => Some(BlockType::Q8_0),
            "q4_0" => Some(BlockType::Q4_0),
            "q4_1" => Some(BlockType::Q4_1),
            "q4_k" => Some(BlockType::Q4K),
            _ => return Err("choose same, f16, q8_0, q4_0, q4_1 or q4_k".to_owned()),
        }))
    }
}

pub(super) fn run(args: &SparsifyArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let Method::RSparse = args.method;
    let read = |path: &Path| {
        std::fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))
    };
    let text = read(&args.text)?;
    let progress = StderrProgress::new(globals.quiet, 20);
    let model = path(&args.model)?;
    let file = ModelFile::open(&model)?;
    let team = Arc::new(Team::new(globals.threads.map_or(0, usize::from)));
    let tokens = file.tokenizer()?.encode(&text, SpecialTokens::Plain)?;
    if tokens.is_empty() {
        let what = format!("{} is empty; give a text", args.text.display());
        return Err(wrong_use(what));
    }
    let limit = file.config().context_limit().unwrap_or(usize::MAX);
    let (calibrated, rest) = tokens.split_at(args.tokens.min(limit).clamp(1, tokens.len()));
    let split = |rho| Split {
        rho,
        sparsity: args.sparsity,
    };
    split(1.0).validate()?;
    let calibration = Calibration::read(&file, calibrated, &team)?;
    let mut searched = None;
    let splits = match &args.rho {
        Rho::All(rho) => vec![split(*rho)],
        Rho::File(path) => read_splits(&read(path)?)
            .with_context(|| format!("cannot use --rho {}", path.display()))?,
        Rho::Search => {
            // Of a short text the same tokens again.
            let rest = if rest.len() < 32 { calibrated } else { rest };
            let rest = &rest[..rest.len().min(args.search_tokens)];
            let windows = rest
                .chunks(256.min(limit))
                .filter(|w| w.len() > 1)
                .collect();
            let sparsity = args.sparsity;
            let trials = Trials::new(&file, &calibration, sparsity, windows, &team, &progress)?;
            let config = SearchConfig {
                sparsity,
                population: args.population,
                generations: args.generations,
                seed: globals.seed,
                ..SearchConfig::default()
            };
            let found = trials.search(&config, &progress)?;
            searched = Some((found.uniform_loss, found.loss));
            found.splits
        }
    };
    let options = FoldOptions {
        kind: args.keep.0,
        cap: args.cap,
        authors_rank: args.authors_ranks,
    };
    let folded = fold(&file, &calibration, &splits, &options, &progress)?;
    let own = r_sparse::beside(&model);
    let out = match &args.out {
        Some(folder) if folder.is_dir() => folder.join(own.file_name().unwrap_or_default()),
        Some(path) => path.clone(),
        None => own,
    };
    let fingerprint = Decoder::load(&file)?.fingerprint();
    save(&out, fingerprint, calibrated.len(), &folded)?;
    let bytes = std::fs::metadata(&out)?.len();
    let mean = |of: fn(&Split) -> f64| {
        folded.iter().map(|m| of(&m.split)).sum::<f64>() / folded.len().max(1) as f64
    };
    let mean_rho = mean(|split| split.rho);
    let mut stdout = anstream::stdout().lock();
    if globals.json {
        let whole = json!({
            "file": out, "bytes": bytes, "matrices": folded.len(), "tokens": calibrated.len(),
            "mean_rho": mean_rho, "sparsity": mean(|split| split.sparsity),
            "search": searched.map(|(uniform, found)| json!({"uniform_loss": uniform, "loss": found})),
        });
        writeln!(stdout, "{}", serde_json::to_string_pretty(&whole)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(
        stdout,
        "{}: {} matrices, {:.1} MB, thresholds from {} tokens, mean rho {mean_rho:.3}",
        out.display(),
        folded.len(),
        bytes as f64 / 1e6,
        calibrated.len(),
    )?;
    if let Some((uniform, found)) = searched {
        writeln!(
            stdout,
            "search: {found:.4} nats a token, {uniform:.4} with rho 0.95 for all"
        )?;
    }
    Ok(Outcome::Done)
}
