//! `keyfold model share`: a language model whose layers share the matrices of their attention.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use keyfold_compress::masa::{MasaConfig, Shared};
use keyfold_kernels::Team;
use keyfold_lm::model::{Decoder, LinearName};
use keyfold_lm::perplexity::{PerplexityOptions, Protocol, perplexity};
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::shared_weights::{Calibration, save, share};
use keyfold_lm::store::CacheType;
use keyfold_lm::{ModelFile, SpecialTokens};
use serde_json::json;

use crate::args::Globals;
use crate::commands::lm::setup::path;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Make a language model smaller: its layers share the matrices of their attention
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold model share MODEL.gguf --method masa --keep 0.7 --text notes.txt --out smaller
  keyfold model share MODEL --method masa --keep 0.7 --text notes.txt --out smaller --measure other.txt
  keyfold model share MODEL --method masa --keep 1/3 --no-residual --out smaller

MASA needs no training: in each group of layers the matrices of one kind become mixtures of a few \
atoms, and what those miss is told by low-rank pairs that lose least of the outputs on the text. \
What is kept counts atoms, mixtures and pairs against the numbers of the projections that are \
shared; all other weights stay as they are.
Measure the result (--measure, or keyfold lm perplexity) before you use it.")]
pub(super) struct ShareArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, or a hub name
    #[arg(value_name = "MODEL")]
    model: String,
    /// How
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// Share of the numbers of the shared projections that stays, as 0.7 or 1/3
    #[arg(long, value_name = "SHARE", default_value = "0.8")]
    keep: Keep,
    /// Folder for the smaller model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which projections: qkv, or qkvo with the output, which compresses worst
    #[arg(long, value_name = "TYPES", default_value = "qkv")]
    types: TypesArg,
    /// Groups of layers that follow each other
    #[arg(long, value_name = "N", default_value_t = 4)]
    groups: usize,
    /// Atoms of each group and kind [default: half of what stays, without pairs all of it]
    #[arg(long, value_name = "N")]
    atoms: Option<usize>,
    /// A text file to see inputs and drifts on; some pages
    #[arg(long, value_name = "FILE", required_unless_present = "no_residual")]
    text: Option<PathBuf>,
    /// Tokens of the text that are read at most
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Atoms alone, no low-rank pairs; needs no text
    #[arg(long)]
    no_residual: bool,
    /// A text file on which the perplexity before and after is told; another one than --text
    #[arg(long, value_name = "FILE")]
    measure: Option<PathBuf>,
    /// --measure: tokens of a window, of which the second half counts; 16 windows at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
}

/// The most windows that are measured.
const WINDOWS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Dictionaries of matrices across layers
    Masa,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypesArg {
    /// Queries, keys and values
    Qkv,
    /// The output of attention as well
    Qkvo,
}

impl TypesArg {
    fn names(self) -> &'static [LinearName] {
        let all = &[LinearName::Q, LinearName::K, LinearName::V, LinearName::O];
        match self {
            Self::Qkv => &all[..3],
            Self::Qkvo => all,
        }
    }
}

/// A share, as a number or a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Keep(f64);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |x: &str| x.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            None => number(text),
            Some((a, b)) => number(a).zip(number(b)).map(|(a, b)| a / b),
        };
        match value {
            Some(share) if share > 0.0 && share < 1.0 => Ok(Self(share)),
            _ => Err("give a share above 0 and below 1, as 0.7 or 1/3".to_owned()),
        }
    }
}

pub(super) fn run(args: &ShareArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let Method::Masa = args.method;
    let progress = StderrProgress::new(globals.quiet, 20);
    let file = ModelFile::open(&path(&args.model)?)?;
    let team = Arc::new(Team::new(globals.threads.map_or(0, usize::from)));
    let names = args.types.names();
    // Before the long work, so that a text that is missing is told at once.
    let before = measure(args, &file, &team, &progress)?;
    let seen = match &args.text {
        Some(text) => Some(calibrate(&file, text, args, &team, &progress)?),
        None => None,
    };
    let config = MasaConfig {
        groups: args.groups,
        keep: args.keep.0,
        atoms: args.atoms,
        residual: !args.no_residual,
    };
    let made = share(&file, names, &config, seen.as_ref(), &progress)?;
    let written = save(&file, names, &made, &args.out)?;
    let after = match before {
        None => None,
        Some(_) => measure(args, &ModelFile::open(&args.out)?, &team, &progress)?,
    };
    report(globals, &written, &made, names, before.zip(after))?;
    Ok(Outcome::Done)
}

fn calibrate(
    file: &ModelFile,
    text: &Path,
    args: &ShareArgs,
    team: &Arc<Team>,
    progress: &StderrProgress,
) -> anyhow::Result<Calibration> {
    let bytes = std::fs::read(text)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", text.display())))?;
    let whole = String::from_utf8_lossy(&bytes);
    let tokens = file.tokenizer()?.encode(&whole, SpecialTokens::Plain)?;
    if tokens.is_empty() {
        return Err(wrong_use(format!(
            "{} is empty; give a text",
            text.display()
        )));
    }
    let limit = file.config().context_limit().unwrap_or(usize::MAX);
    let tokens = &tokens[..tokens.len().min(args.tokens.max(1)).min(limit)];
    Ok(Calibration::read(
        file,
        tokens,
        args.types.names(),
        team,
        progress,
    )?)
}

/// The perplexity of a model on the text that was given for it, if one was.
fn measure(
    args: &ShareArgs,
    file: &ModelFile,
    team: &Arc<Team>,
    progress: &StderrProgress,
) -> anyhow::Result<Option<f64>> {
    let Some(path) = &args.measure else {
        return Ok(None);
    };
    let text = std::fs::read(path)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let tokenizer = file.tokenizer()?;
    let tokens = tokenizer.encode(&String::from_utf8_lossy(&text), SpecialTokens::Plain)?;
    let decoder = Arc::new(Decoder::load(file)?);
    let options = PerplexityOptions {
        context: args.context,
        windows: WINDOWS,
        protocol: Protocol::Prompt,
        prefix: tokenizer.prefix().to_vec(),
    };
    let mut session = || {
        let policy = Policy::dense(&decoder, CacheType::F16, args.context)?;
        anyhow::Ok(Session::new(Arc::clone(&decoder), policy, Arc::clone(team)))
    };
    let found = perplexity(&mut session, &tokens, &options, progress)?;
    Ok(Some(found.perplexity))
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

fn report(
    globals: &Globals,
    written: &Path,
    made: &[Shared],
    names: &[LinearName],
    perplexity: Option<(f64, f64)>,
) -> anyhow::Result<()> {
    let before: usize = made
        .iter()
        .map(|p| p.layers.len() * p.shape[0] * p.shape[1])
        .sum();
    let after: usize = made.iter().map(Shared::numbers).sum();
    let bytes = std::fs::metadata(written)?.len();
    let mut out = anstream::stdout().lock();
    if globals.json {
        let parts: Vec<_> = made
            .iter()
            .map(|part| {
                json!({
                    "projection": names[part.projection].path(),
                    "layers": [part.layers.start, part.layers.end - 1],
                    "atoms": part.atoms.count, "energy": part.atoms.energy,
                    "ranks": part.pairs.iter().map(|p| p.rank).collect::<Vec<_>>(),
                    "errors": part.errors, "output_errors": part.output_errors,
                })
            })
            .collect();
        let whole = json!({
            "file": written, "bytes": bytes, "numbers_before": before, "numbers": after, "parts": parts,
            "perplexity_before": perplexity.map(|p| p.0), "perplexity": perplexity.map(|p| p.1),
        });
        writeln!(out, "{whole:#}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<18} {:>8} {:>6} {:>9} {:>10} {:>9} {:>9}",
        "projection", "layers", "atoms", "energy, %", "mean rank", "error, %", "output, %"
    )?;
    for part in made {
        let ranks: Vec<f64> = part.pairs.iter().map(|p| p.rank as f64).collect();
        let output = match part.output_errors.is_empty() {
            true => String::new(),
            false => format!("{:.1}", 100.0 * mean(&part.output_errors)),
        };
        writeln!(
            out,
            "{:<18} {:>8} {:>6} {:>9.1} {:>10.1} {:>9.1} {output:>9}",
            names[part.projection].path(),
            format!("{}-{}", part.layers.start, part.layers.end - 1),
            part.atoms.count,
            100.0 * part.atoms.energy,
            mean(&ranks),
            100.0 * mean(&part.errors),
        )?;
    }
    writeln!(
        out,
        "{}: {:.2} of {:.2} million numbers of these projections stay ({:.1} %), {:.1} MB",
        written.display(),
        after as f64 / 1e6,
        before as f64 / 1e6,
        100.0 * after as f64 / before as f64,
        bytes as f64 / 1e6,
    )?;
    if let Some((before, after)) = perplexity {
        writeln!(out, "perplexity {after:.3}, before {before:.3}")?;
    }
    Ok(())
}
