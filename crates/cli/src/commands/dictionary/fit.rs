//! `keyfold dictionary fit`.

mod pairs;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use keyfold_core::Progress;
use keyfold_dictionary::batch::{self, BatchConfig};
use keyfold_dictionary::sae::layouts::{Layout, OPENAI_FILE, SaeFile};
use keyfold_dictionary::sae::{SaeConfig, SaeMethod, Training};
use keyfold_dictionary::{
    Dictionary, FrankWolfe, FrankWolfeConfig, Learner, Online, OnlineConfig, Saved, State,
};
use keyfold_train::{TrainError, recipe};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::input::{Chunks, Next, RowArgs, check_data, check_patch, patch};
use super::model::check_width;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;
use pairs::With;

/// Rows that are kept to measure on.
const MEASURED: usize = 4096;

/// How often the state of a long run is written.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// How a dictionary is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Orthonormal atoms from a stream, nothing to tune
    FrankWolfe,
    /// Atoms of the least lasso loss, from a stream
    Online,
    /// K-SVD, from all rows at once
    Ksvd,
    /// Method of optimal directions, from all rows at once
    Mod,
    /// Non-negative matrix factorisation, from all rows at once
    Nmf,
    /// Spherical k-means, from all rows at once
    KMeans,
    /// A sparse autoencoder, from a stream; also written as others read it (--layout)
    Sae,
}

/// Whose files a sparse autoencoder is written in, beside its own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Theirs {
    /// SAELens: cfg.json and sae_weights.safetensors
    Saelens,
    /// EleutherAI's sparsify: cfg.json and sae.safetensors; top-k
    Sparsify,
    /// OpenAI's sparse_autoencoder: autoencoder.pt; architecture=standard
    Openai,
}

impl Theirs {
    fn layout(self) -> Layout {
        match self {
            Self::Saelens => Layout::SaeLens,
            Self::Sparsify => Layout::Sparsify,
            Self::Openai => Layout::OpenAi,
        }
    }
}

/// Learn atoms from rows
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Streams are learned from as they come; the state is written every minute, at Ctrl-C and at the end, and \
--resume goes on from it, to the same bits as without the pause.

A sparse autoencoder: --set architecture=standard|topk|batchtopk|gated|jumprelu, d_sae, k, l1_coefficient, \
lr, batch_size; dead codes begin anew after the steps of resample_steps=[500,1000] (dead: unused for \
dead_feature_window steps). An unknown name is answered with the list.")]
pub(super) struct FitArgs {
    /// Files of rows (.npy, .npz, .csv, .tsv, .parquet, .safetensors), or - for standard input
    #[arg(required = true, value_name = "DATA")]
    data: Vec<PathBuf>,
    /// Folder for the dictionary
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How it is learned
    #[arg(long, default_value = "online")]
    method: Method,
    /// Number of atoms (default: as many as columns; sparse autoencoders eight times that)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    components: Option<u32>,
    /// Another value for a setting, as in alpha=0.2 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Times that files are gone through, by the methods for streams
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Read on as the file grows (.csv, .tsv, or bare floats with --width), until Ctrl-C; with --resume
    /// behind the rows that were learned from
    #[arg(long, conflicts_with = "epochs")]
    watch: bool,
    /// Go on with the dictionary in the folder, with its settings
    #[arg(long, conflicts_with_all = ["components", "set"])]
    resume: bool,
    /// Height and width of rows that are patches of pictures, for 'show'
    #[arg(long, value_name = "HxW", value_parser = patch)]
    patch: Option<[usize; 2]>,
    /// With --method sae: rows that are to be told from those of DATA, one for each (a transcoder)
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,
    /// With --method sae: the gradient of what a model answers by each row of DATA, as of 'model inspect
    /// --gradients' (attribution: features that matter to the answer)
    #[arg(long, value_name = "FILE", conflicts_with = "targets")]
    gradients: Option<PathBuf>,
    /// With --method sae: whose files are written as well
    #[arg(long, value_name = "WHOSE", default_value = "saelens")]
    layout: Theirs,
    #[command(flatten)]
    rows: RowArgs,
}

pub(super) fn run(args: &FitArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    check_data(&args.data)?;
    if args.epochs > 1 && args.data[0] == Path::new("-") {
        return Err(wrong_use("standard input can be gone through once only"));
    }
    let occupied = args.out.join("config.json").is_file();
    if occupied && !args.resume {
        return Err(wrong_use(format!(
            "{} holds a dictionary; go on with --resume, or choose another folder",
            args.out.display()
        )));
    }
    if args.resume && !occupied {
        return Err(wrong_use(format!(
            "{} holds no dictionary to go on with",
            args.out.display()
        )));
    }
    let with = match (&args.targets, &args.gradients) {
        (Some(path), _) => Some(With::Target(path)),
        (None, Some(path)) => Some(With::Gradient(path)),
        (None, None) => None,
    };
    if args.method != Method::Sae && (with.is_some() || args.layout != Theirs::Saelens) {
        return Err(wrong_use(
            "--targets, --gradients and --layout are for --method sae",
        ));
    }
    let streams = matches!(
        args.method,
        Method::FrankWolfe | Method::Online | Method::Sae
    );
    let one = args.data.len() == 1 && args.data[0] != Path::new("-");
    if args.watch && (with.is_some() || !streams || !one) {
        return Err(wrong_use(
            "--watch is for one file and a method for streams (frank-wolfe, online, sae)",
        ));
    }
    if let Some(with) = with {
        return pairs::learn(args, with, globals);
    }
    match args.method {
        Method::FrankWolfe | Method::Online | Method::Sae => stream(args, globals),
        _ if args.resume => Err(wrong_use(
            "this method learns from all rows at once, and cannot go on",
        )),
        Method::Ksvd => whole(args, globals, batch::Method::Ksvd),
        Method::Mod => whole(args, globals, batch::Method::Mod),
        Method::Nmf => whole(args, globals, batch::Method::Nmf),
        Method::KMeans => whole(args, globals, batch::Method::KMeans),
    }
}

/// Defaults, with the options and `--set` on top.
fn settings<C: Serialize + DeserializeOwned>(args: &FitArgs, defaults: &C) -> anyhow::Result<C> {
    recipe::settings(defaults, None, &args.set).map_err(|e| match e {
        TrainError::Config(what) => wrong_use(what),
        other => other.into(),
    })
}

/// A learner that goes on, or a new one for rows of `width`.
fn learner(args: &FitArgs, globals: &Globals, width: usize) -> anyhow::Result<Box<dyn Learner>> {
    if args.resume {
        let saved = Saved::load(&args.out)?;
        if args.method == Method::Sae {
            let training = by_rows(writable(args, Training::resume(&saved)?)?)?;
            check_width(width, training.sae().d_in)?;
            return Ok(Box::new(training));
        }
        check_width(width, saved.dictionary.width)?;
        return Ok(match args.method {
            Method::FrankWolfe => Box::new(FrankWolfe::resume(&saved)?),
            _ => Box::new(Online::resume(&saved)?),
        });
    }
    let (n_components, seed) = (args.components.map_or(0, |n| n as usize), globals.seed);
    Ok(match args.method {
        Method::FrankWolfe => {
            let defaults = FrankWolfeConfig {
                n_components,
                seed,
                ..FrankWolfeConfig::default()
            };
            Box::new(FrankWolfe::new(settings(args, &defaults)?, width)?)
        }
        Method::Sae => {
            let defaults = SaeConfig {
                d_sae: n_components,
                seed,
                ..SaeConfig::default()
            };
            let training = Training::new(settings(args, &defaults)?, width)?;
            Box::new(by_rows(writable(args, training)?)?)
        }
        _ => {
            let defaults = OnlineConfig {
                n_components,
                seed,
                ..OnlineConfig::default()
            };
            Box::new(Online::new(settings(args, &defaults)?, width)?)
        }
    })
}

/// The same, where the layout has a place for it; to be told so after learning is late.
fn writable(args: &FitArgs, training: Training) -> anyhow::Result<Training> {
    SaeFile::new(training.sae(), args.layout.layout())?;
    Ok(training)
}

/// The same, where rows are all that it learns from.
fn by_rows(training: Training) -> anyhow::Result<Training> {
    match training.config().architecture {
        SaeMethod::Attribution => Err(wrong_use(
            "architecture=attribution needs the gradients of a metric, --gradients FILE",
        )),
        _ => Ok(training),
    }
}

/// Learns from rows as they come.
fn stream(args: &FitArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let (mut made, mut width, mut saved) = (None, 0, Instant::now());
    // Some rows to measure on.
    let mut some: Vec<f32> = Vec::new();
    let mut stopped = false;
    // Rows of a watched file that were learned from before.
    let mut known = match args.watch && args.resume {
        true => Saved::load(&args.out)?.rows_taken(),
        false => 0,
    };
    progress.start("learn", "rows", None);
    'all: for _ in 0..args.epochs {
        for path in &args.data {
            let mut chunks = match args.watch {
                true => Chunks::watch(&args.rows, path)?,
                false => Chunks::open(&args.rows, path)?,
            };
            loop {
                if progress.cancelled() {
                    stopped = true;
                    break 'all;
                }
                let mut rows = match chunks.next()? {
                    Next::Rows(rows) => rows,
                    Next::Nothing => continue,
                    Next::End => break,
                };
                if made.is_none() {
                    width = rows.width;
                    check_patch(args.patch, width)?;
                    made = Some(learner(args, globals, width)?);
                }
                let Some(learner) = &mut made else { break };
                if rows.width != width {
                    return Err(wrong_use(format!(
                        "{} has rows of {} numbers, but those before have {width}",
                        path.display(),
                        rows.width
                    )));
                }
                let behind = known.min(rows.len() as u64);
                known -= behind;
                rows.values.drain(..behind as usize * width);
                if rows.values.is_empty() {
                    continue;
                }
                learner.partial_fit(&rows.values)?;
                progress.advance(rows.len() as u64);
                progress.status(&learner.status());
                if some.len() < MEASURED * width {
                    some.extend_from_slice(&rows.values);
                }
                if saved.elapsed() > SAVE_EVERY && learner.steps() > 0 {
                    save(args, &**learner)?;
                    saved = Instant::now();
                }
            }
        }
    }
    progress.finish();
    let Some(mut learner) = made else {
        // Ctrl-C before the first row.
        return Ok(Outcome::Interrupted);
    };
    if learner.steps() == 0 {
        // Fewer rows than a batch: they are all there is to learn from.
        learner.flush()?;
    }
    save(args, &*learner)?;
    let told = Told {
        method: args.method,
        steps: learner.steps(),
        status: learner.status(),
    };
    tell(args, globals, &told, &learner.dictionary()?, &some)?;
    Ok(match stopped {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

fn save(args: &FitArgs, learner: &dyn Learner) -> anyhow::Result<()> {
    let patch = args.patch.or_else(|| match args.resume {
        true => Saved::load(&args.out).ok().and_then(|saved| saved.patch),
        false => None,
    });
    learner
        .dictionary()?
        .save(&args.out, &learner.state(), patch)?;
    if args.method == Method::Sae {
        let training = Training::resume(&Saved::load(&args.out)?)?;
        let path = match args.layout {
            Theirs::Saelens | Theirs::Sparsify => args.out.clone(),
            Theirs::Openai => args.out.join(OPENAI_FILE),
        };
        SaeFile::new(training.sae(), args.layout.layout())?.save(&path)?;
    }
    Ok(())
}

/// Learns from all rows at once.
fn whole(args: &FitArgs, globals: &Globals, method: batch::Method) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let (mut rows, mut width) = (Vec::new(), 0);
    for path in &args.data {
        let read = args.rows.open(path)?.read_all()?;
        if width != 0 && read.width != width {
            return Err(wrong_use(format!(
                "{} has rows of {} numbers, but those before have {width}",
                path.display(),
                read.width
            )));
        }
        width = read.width;
        rows.extend(read.values);
    }
    check_patch(args.patch, width)?;
    let defaults = BatchConfig {
        n_components: args.components.map_or(0, |n| n as usize),
        seed: globals.seed,
        ..BatchConfig::default()
    };
    let config = settings(args, &defaults)?;
    let fitted = batch::fit(&rows, width, method, &config, &progress)?;
    let name = serde_json::to_value(method)?;
    let count = (rows.len() / width.max(1)) as u64;
    let state = State::finished(name.as_str().unwrap_or_default(), &config, count);
    fitted.dictionary.save(&args.out, &state, args.patch)?;
    let told = Told {
        method: args.method,
        steps: fitted.n_iter as u64,
        status: String::new(),
    };
    rows.truncate(MEASURED * width);
    tell(args, globals, &told, &fitted.dictionary, &rows)?;
    Ok(match progress.cancelled() {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

/// What is told of a run.
struct Told {
    method: Method,
    steps: u64,
    status: String,
}

/// Prints what was learned, with how well it codes some of the rows.
fn tell(
    args: &FitArgs,
    globals: &Globals,
    told: &Told,
    dictionary: &Dictionary,
    some: &[f32],
) -> anyhow::Result<()> {
    let method = told.method.to_possible_value();
    let method = method.as_ref().map_or("", |m| m.get_name());
    let rows = &some[..some.len() / dictionary.width.max(1) * dictionary.width];
    let (error, active) = match told.method {
        Method::Sae => (None, None),
        _ => {
            let codes = dictionary.transform(rows)?;
            (
                Some(dictionary.relative_error(rows)?),
                Some(codes.mean_active()),
            )
        }
    };
    let mut out = anstream::stdout().lock();
    if globals.json {
        let value = json!({
            "out": args.out,
            "method": method,
            "n_components": dictionary.n_components(),
            "n_features": dictionary.width,
            "steps": told.steps,
            "status": told.status,
            "relative_error": error,
            "atoms_per_row": active,
        });
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{}: {} atoms of {} numbers, by {method} in {} steps",
        args.out.display(),
        dictionary.n_components(),
        dictionary.width,
        told.steps
    )?;
    if let (Some(error), Some(active)) = (error, active) {
        writeln!(
            out,
            "  codes of {active:.1} atoms lose {:.2} % of the rows' energy",
            100.0 * error
        )?;
    } else {
        writeln!(out, "  {}", told.status)?;
    }
    Ok(())
}
