//! `keyfold index`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::PossibleValuesParser;
use indicatif::{HumanBytes, HumanDuration};
use keyfold_core::{Encoder, Role};
use keyfold_data::{ChunkOptions, WalkOptions};
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::codebook::{Bits, QuantizationLoss};
use keyfold_search::fold::Folding;
use keyfold_search::index::{self, IndexOptions, IndexSummary};
use keyfold_search::store::{FileState, Segment, Snapshot, remove_encodings};
use serde::Serialize;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::given;
use crate::model::WordArgs;
use crate::output::terminal::{PATH, printable};
use crate::place;
use crate::progress::{StderrProgress, with_separators};
use crate::update;

/// Files that were not read and are named while indexing.
const NOTES: usize = 20;
/// Passages on which the loss of coding is measured.
const SAMPLE: usize = 64;

/// Read files into a store, or bring it up to date
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The store remembers PATHs, --glob, --type, --hidden, --no-ignore, --max-file-size and
--passage-tokens; later runs and searches use them again. Any of the options about files
replaces all of those that the store remembers. A file that was not read is tried again when it
changes, when a limit is given, or with --retry.

Examples:
  keyfold index ~/notes
  keyfold index ~/notes ~/papers --store ~/my-store --bits 2
  keyfold index . --glob '*.md' --glob '!drafts'
  keyfold index vectors --token-vectors")]
pub(crate) struct IndexArgs {
    /// Folders and files to read
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Where the store is [default: .keyfold in the first PATH or above it]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The model: builtin, a folder, or a hub name [default: that of the store, or builtin]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Read token vectors that you made instead of texts: PATH holds .npy files [vectors,
    /// numbers] of float32 or float16, one for each document; 'search --query-vectors' finds them
    #[arg(long, conflicts_with_all = ["model", "words", "keep_stopwords", "truncate"])]
    token_vectors: bool,
    /// Bits per number of a vector; fewer are smaller and less exact [default: 4; 8 where the
    /// model's vectors have any length; 1, which loses nothing, where they are binary codes]
    #[arg(long, value_name = "BITS", value_parser = PossibleValuesParser::new(["1", "2", "4", "8"]))]
    bits: Option<String>,
    /// Memory for what is not written yet
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory: ByteSize,
    /// Only files that match GLOB, as in .gitignore; `!` in front excludes (repeatable)
    #[arg(short, long, value_name = "GLOB", help_heading = "Which files")]
    glob: Vec<String>,
    /// Only files of this type, by ripgrep's names: md, rust, py, pdf, ... (repeatable)
    #[arg(
        short = 't',
        long = "type",
        value_name = "TYPE",
        help_heading = "Which files"
    )]
    types: Vec<String>,
    /// Also hidden files and folders
    #[arg(long, help_heading = "Which files")]
    hidden: bool,
    /// Also what .gitignore and the like leave out
    #[arg(long, help_heading = "Which files")]
    no_ignore: bool,
    /// Follow symbolic links
    #[arg(long, help_heading = "Which files")]
    follow: bool,
    /// Skip larger files [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Which files")]
    max_file_size: Option<ByteSize>,
    /// What a packed file may unpack to, and how much text one file may give [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_unpacked_size: Option<ByteSize>,
    /// Passages that one file may give [default: 1000000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_passages_per_file: Option<usize>,
    /// Time for reading one PDF file [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Limits", value_parser = humantime::parse_duration)]
    pdf_timeout: Option<Duration>,
    /// Memory for reading one PDF file [default: 1GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pdf_max_memory: Option<ByteSize>,
    /// Size of a passage, in tokens [default: 180]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(16..=4096))]
    passage_tokens: Option<u16>,
    /// Also give each passage an encoding of fixed length (MUVERA), for --candidates fde
    ///
    /// SPEC changes the encoding, as in --fde=reps=20,simhash=5,proj=16,pq=16x4; it may
    /// also name seed, sketch (dense, count, identity), fill (on, off), center (auto, on,
    /// off), final (none or a number) and pq=256x8. --fde=none removes the encodings.
    /// Without SPEC, those of the store are kept. Later runs keep them up to date.
    #[arg(long, value_name = "SPEC", num_args = 0..=1, require_equals = true,
          default_missing_value = "")]
    fde: Option<String>,
    /// Keep fewer vectors of each passage: a smaller store that is searched faster
    ///
    /// c8x32 and c4x8 keep 32 and 8 clusters of the vectors (8 and 4 of a query), c25 and
    /// c50 a quarter and half of them; ward:2 pools two vectors into one (ward:3, ...);
    /// tail:8x32 keeps the last 32 (8 of a query), space:2 every second; none keeps all.
    /// What that costs in accuracy is measured in docs/search.md. The store remembers it.
    #[arg(long, value_name = "SPEC", help_heading = "Folding")]
    fold: Option<String>,
    /// Fold queries too, for models that were trained with it
    #[arg(long, requires = "fold", help_heading = "Folding")]
    fold_queries: bool,
    /// Keep the lengths of the clusters' means, with --bits 8
    #[arg(long, requires = "fold", help_heading = "Folding")]
    raw_centroids: bool,
    /// Fold otherwise than the model was trained to be folded (see 'train crisp')
    #[arg(long, help_heading = "Folding")]
    force: bool,
    /// Try again to read the files that could not be read
    #[arg(long)]
    retry: bool,
    /// Make the store anew, whatever is there
    #[arg(long)]
    rebuild: bool,
    /// List all files that were not read, and why
    #[arg(long)]
    list_skipped: bool,
    #[command(flatten)]
    words: WordArgs,
}

/// What indexing came to, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    store: PathBuf,
    model: String,
    bits: u32,
    read: usize,
    skipped: usize,
    failed: usize,
    unchanged: u64,
    removed: u64,
    passages_added: u64,
    tokens_added: u64,
    seconds: f64,
    complete: bool,
    /// Of the whole store.
    passages: u64,
    /// Of the whole store.
    tokens: u64,
    /// Bytes of all files of the store.
    store_bytes: u64,
    /// Bytes of the vectors by the number of tokens.
    bytes_per_token: Option<f64>,
    loss: Option<QuantizationLoss>,
    /// How vectors were folded, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    fold: Option<String>,
    /// How passages are encoded, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    fde: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_read: Option<Vec<NotRead>>,
}

/// A file that the store knows of and has no passages of.
#[derive(Serialize)]
struct NotRead {
    path: PathBuf,
    why: String,
    failed: bool,
}

pub(crate) fn run(args: &IndexArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let mut roots = Vec::new();
    for path in &args.paths {
        roots.push(place::canonical(path)?);
    }
    let store = place::locate(&args.paths[0], args.store.as_deref())?.store;
    update::path_filter(&roots[0], &args.glob, &args.types)?;
    let wanted = match args.fde.as_deref() {
        None | Some("" | "none") => None,
        Some(spec) => Some(spec.parse::<FdeOptions>().map_err(wrong_use)?),
    };
    let model = args.model.as_deref();
    let encoder = match args.token_vectors {
        true => Box::new(given::documents(&store, &roots)?),
        false => update::encoder_with(&store, model, &args.words, globals)?,
    };
    if let Some(wanted) = &wanted {
        let dim = encoder.identity().dim;
        wanted
            .config
            .check(dim)
            .map_err(|e| wrong_use(e.to_string()))?;
    }
    let progress = StderrProgress::new(globals.quiet, NOTES);
    let indexing = IndexOptions {
        fold: folding(args)?,
        ..options(args, globals)
    };
    let summary = index::update(&store, &roots, &*encoder, &indexing, &progress)?;
    if !summary.cancelled {
        encode(args, &store, &*encoder, wanted, &indexing, &progress)?;
    }
    if progress.hidden_notes() > 0 {
        progress.say(&format!(
            "{} more files were not read; --list-skipped names them all",
            progress.hidden_notes()
        ));
    }
    let snapshot = Snapshot::open(&store)?;
    let report = report(args, &summary, &snapshot, &*encoder)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write_report(&mut out, &report)?;
    }
    if summary.cancelled {
        progress.say("stopped: what was read until now is kept; the next run goes on from there");
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Done)
}

/// Encodes passages as --fde says.
fn encode(
    args: &IndexArgs,
    store: &Path,
    encoder: &dyn Encoder,
    wanted: Option<FdeOptions>,
    options: &IndexOptions,
    progress: &StderrProgress,
) -> anyhow::Result<()> {
    if args.fde.as_deref() == Some("none") {
        remove_encodings(store, encoder.identity(), &update::writer_options(options))?;
        return Ok(());
    }
    let snapshot = Snapshot::open(store).ok();
    let before = snapshot.as_ref().and_then(Snapshot::encoded_with);
    let wanted = match args.fde.as_deref() {
        Some("") if before.is_none() => Some(FdeOptions::default()),
        _ => wanted,
    };
    if let (Some(before), Some(wanted)) = (before, &wanted)
        && before != wanted
    {
        progress.say(&format!(
            "the store is encoded with {before}; all passages are encoded anew with {wanted}"
        ));
    }
    update::encode(store, encoder, wanted.as_ref(), options, progress)?;
    Ok(())
}

/// What --fold and its companions say.
fn folding(args: &IndexArgs) -> anyhow::Result<Option<Folding>> {
    let fold = match args.fold.as_deref() {
        None => return Ok(None),
        Some("none") if args.fold_queries || args.raw_centroids => {
            return Err(wrong_use(
                "--fold none keeps all vectors, so --fold-queries and --raw-centroids mean nothing"
                    .to_owned(),
            ));
        }
        Some("none") => None,
        Some(spec) => Some(spec.parse().map_err(wrong_use)?),
    };
    Ok(Some(Folding {
        fold,
        queries: args.fold_queries,
        raw: args.raw_centroids,
    }))
}

fn options(args: &IndexArgs, globals: &Globals) -> IndexOptions {
    let mut options = update::options(globals);
    options.bits = args.bits.as_deref().map(|bits| match bits {
        "1" => Bits::One,
        "2" => Bits::Two,
        "8" => Bits::Eight,
        _ => Bits::Four,
    });
    options.memory = usize::try_from(args.memory.as_u64()).unwrap_or(usize::MAX);
    options.rebuild = args.rebuild;
    options.force = args.force;
    options.retry = args.retry
        || args.max_file_size.is_some()
        || args.max_unpacked_size.is_some()
        || args.max_passages_per_file.is_some()
        || args.pdf_timeout.is_some()
        || args.pdf_max_memory.is_some();
    let read = &mut options.read;
    let bytes = |size: Option<ByteSize>, default| size.map_or(default, |size| size.as_u64());
    read.max_file_size = bytes(args.max_file_size, read.max_file_size);
    read.max_unpacked_size = bytes(args.max_unpacked_size, read.max_unpacked_size);
    read.pdf_max_memory = bytes(args.pdf_max_memory, read.pdf_max_memory);
    read.max_passages_per_file = args
        .max_passages_per_file
        .unwrap_or(read.max_passages_per_file);
    read.pdf_timeout = args.pdf_timeout.unwrap_or(read.pdf_timeout);
    let says_which = !args.glob.is_empty()
        || !args.types.is_empty()
        || args.hidden
        || args.no_ignore
        || args.follow
        || args.max_file_size.is_some();
    options.walk = says_which.then(|| WalkOptions {
        globs: args.glob.clone(),
        types: args.types.clone(),
        hidden: args.hidden,
        ignore_files: !args.no_ignore,
        follow_links: args.follow,
        max_file_size: options.read.max_file_size,
    });
    options.chunk = args.passage_tokens.map(|tokens| {
        let default = ChunkOptions::default();
        let target = usize::from(tokens);
        ChunkOptions {
            target_tokens: target,
            max_tokens: target * default.max_tokens / default.target_tokens,
        }
    });
    options
}

fn report(
    args: &IndexArgs,
    summary: &IndexSummary,
    snapshot: &Snapshot,
    encoder: &dyn Encoder,
) -> anyhow::Result<Report> {
    let tokens = snapshot.token_count();
    let vectors = bytes_below(&snapshot.store().join("segments"));
    let not_read = if args.list_skipped {
        Some(not_read(snapshot)?)
    } else {
        None
    };
    Ok(Report {
        store: place::shown(snapshot.store()),
        model: snapshot.encoder().name.clone(),
        bits: snapshot.bits().number(),
        read: summary.files.read,
        skipped: summary.files.skipped,
        failed: summary.files.failed,
        unchanged: summary.unchanged,
        removed: summary.removed,
        passages_added: summary.passages,
        tokens_added: summary.tokens,
        seconds: summary.time.as_secs_f64(),
        complete: !summary.cancelled,
        passages: snapshot.passage_count(),
        tokens,
        store_bytes: bytes_below(snapshot.store()),
        bytes_per_token: (tokens > 0).then(|| vectors as f64 / tokens as f64),
        loss: if summary.passages > 0 {
            loss(snapshot, encoder)?
        } else {
            None
        },
        fold: (!snapshot.folding().is_none()).then(|| snapshot.folding().to_string()),
        fde: snapshot.encoded_with().map(ToString::to_string),
        not_read,
    })
}

/// Bytes of the files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => bytes_below(&entry.path()),
            Ok(about) => about.len(),
            // Another process may be removing it.
            Err(_) => 0,
        })
        .sum()
}

/// What coding loses, on passages spread over the largest segment, which are
/// encoded once more for that.
fn loss(snapshot: &Snapshot, encoder: &dyn Encoder) -> anyhow::Result<Option<QuantizationLoss>> {
    let Some(segment) = snapshot.segments().iter().max_by_key(|s| s.tokens()) else {
        return Ok(None);
    };
    let texts = sample(snapshot, segment)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    for (vectors, text) in encoder
        .encode(&texts, Role::Document)?
        .into_iter()
        .zip(texts)
    {
        rows.extend(snapshot.folding().document(vectors, text).into_vec());
    }
    Ok(segment.codebook().loss(&rows, 1))
}

/// Passages spread over a segment, as the model sees them.
fn sample(snapshot: &Snapshot, segment: &Segment) -> anyhow::Result<Vec<String>> {
    let step = segment.passages().div_ceil(SAMPLE).max(1);
    let mut texts = Vec::new();
    for place in (0..segment.passages()).step_by(step) {
        // A segment has fewer than 2^32 passages; see its format.
        let id = segment.passage_id(place as u32)?;
        if let Some(stored) = snapshot.passage(id)? {
            texts.push(stored.passage.searchable().0);
        }
    }
    Ok(texts)
}

fn not_read(snapshot: &Snapshot) -> anyhow::Result<Vec<NotRead>> {
    let mut all = Vec::new();
    for file in snapshot.files()? {
        let (why, failed) = match file.state {
            FileState::Read(_) => continue,
            FileState::Skipped(why) => (why, false),
            FileState::Failed(why) => (why, true),
        };
        let path = place::shown(&snapshot.path_of(&file.key));
        all.push(NotRead { path, why, failed });
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

fn write_report(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for file in report.not_read.iter().flatten() {
        let path = printable(&file.path.to_string_lossy());
        let state = if file.failed { "failed" } else { "skipped" };
        writeln!(
            out,
            "{PATH}{path}{PATH:#}: {state}: {}",
            printable(&file.why)
        )?;
    }
    writeln!(
        out,
        "read {}, skipped {}, failed {}, unchanged {}, removed {} files in {}",
        report.read,
        report.skipped,
        report.failed,
        report.unchanged,
        report.removed,
        duration(report.seconds)
    )?;
    if report.passages_added > 0 {
        writeln!(
            out,
            "added {} passages, {} tokens: {} passages per second",
            with_separators(report.passages_added),
            with_separators(report.tokens_added),
            with_separators((report.passages_added as f64 / report.seconds.max(1e-9)) as u64)
        )?;
    }
    write!(
        out,
        "the store {} has {} passages, {}",
        printable(&report.store.to_string_lossy()),
        with_separators(report.passages),
        HumanBytes(report.store_bytes)
    )?;
    if let Some(bytes) = report.bytes_per_token {
        write!(
            out,
            "; vectors of model {} in {} bits take {bytes:.1} bytes per token",
            printable(&report.model),
            report.bits
        )?;
    }
    writeln!(out)?;
    if let Some(fold) = &report.fold {
        writeln!(out, "vectors are folded with --fold {fold}")?;
    }
    if let Some(fde) = &report.fde {
        writeln!(out, "passages are encoded with {fde}")?;
    }
    if let Some(loss) = &report.loss {
        writeln!(
            out,
            "coding keeps a mean cosine of {:.4}, and {:.1} % of the ten nearest vectors",
            loss.mean_cosine,
            100.0 * loss.top10_agreement
        )?;
    }
    Ok(())
}

fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.2} seconds")
    } else {
        HumanDuration(Duration::from_secs_f64(seconds)).to_string()
    }
}
