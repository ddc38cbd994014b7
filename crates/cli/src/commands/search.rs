//! `keyfold search`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::ValueEnum;
use keyfold_core::Encoder;
use keyfold_data::WalkOptions;
use keyfold_search::SearchError;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::engine::{self, Mode, Models, SearchOptions};
use keyfold_search::filter::Filters;
use keyfold_search::index;
use keyfold_search::sparse::SparseRetriever;
use keyfold_search::store::Snapshot;
use serde::Serialize;

use crate::args::Globals;
use crate::candidates::{CandidateArgs, CandidatesArg};
use crate::failure::{Outcome, wrong_use};
use crate::mixing::MixArgs;
use crate::output::hits::{self, ShownHit};
use crate::output::passage::Layout;
use crate::output::terminal;
use crate::place::{self, Place};
use crate::progress::StderrProgress;
use crate::reranking::{RerankArgs, Spent};
use crate::{given, model, update, when};

/// Rows of a passage that are shown without --full.
const ROWS: usize = 6;

/// Find passages by what they mean and by their words
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold search \"plants before the frost\"
  keyfold search \"contracts that end this year\" ~/papers --type pdf --since 2024-01-01
  keyfold search \"boat in the wind\" notes -k 3 --explain
  keyfold search \"open questions\" . -l | xargs $EDITOR
  keyfold search \"wing flutter\" papers --feedback vector --fuse both
  keyfold search --query-vectors query.npy vectors")]
pub(crate) struct SearchArgs {
    /// What to look for; words "in double quotes" must occur
    #[arg(required_unless_present = "query_vectors")]
    query: Option<String>,
    /// Folder or file to search [default: the whole store with --store, else the current folder]
    path: Option<PathBuf>,
    /// Hits at most
    #[arg(short, long = "limit", value_name = "N", default_value = "10",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    k: u32,
    /// By words, by meaning, or by both
    #[arg(long, default_value = "both")]
    mode: ModeArg,
    /// Stores of token vectors (index --token-vectors): the query, a .npy file [vectors, numbers];
    /// QUERY is left out, or says words for the names of files
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    query_vectors: Option<PathBuf>,
    /// Say which word of the query met which word of the passage
    #[arg(long)]
    explain: bool,
    /// Print only the names of the files, best first
    #[arg(short = 'l', long, conflicts_with_all = ["explain", "full"])]
    files_with_matches: bool,
    /// Show passages whole
    #[arg(long)]
    full: bool,
    /// Only files that match GLOB, as in .gitignore; `!` in front excludes (repeatable)
    #[arg(short, long, value_name = "GLOB")]
    glob: Vec<String>,
    /// Only files of this type, by ripgrep's names: md, rust, py, pdf, ... (repeatable)
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only files changed since then: 2024-05-01, 7d, '2 weeks'
    #[arg(long, visible_alias = "newer-than", value_name = "TIME", value_parser = when::parse)]
    since: Option<SystemTime>,
    /// Only files changed before then
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    before: Option<SystemTime>,
    /// Search the store as it is, without reading what changed
    #[arg(long)]
    no_update: bool,
    /// Where the store is [default: .keyfold in PATH or above it]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The model: builtin, a folder, or a hub name [default: that of the store]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Also read hidden files and folders
    #[arg(long, conflicts_with = "no_update")]
    hidden: bool,
    /// Also read what .gitignore and the like leave out
    #[arg(long, conflicts_with = "no_update")]
    no_ignore: bool,
    #[command(flatten)]
    finding: CandidateArgs,
    #[command(flatten)]
    mix: MixArgs,
    #[command(flatten)]
    rerank: RerankArgs,
}

/// By what to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// By words (BM25)
    Lexical,
    /// By meaning (late interaction)
    Meaning,
    /// Both, mixed as --fuse says
    Both,
}

/// The document that `--json` prints.
#[derive(Serialize)]
struct Found<'a> {
    query: &'a str,
    store: &'a Path,
    milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hits: Option<&'a [ShownHit]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<&'a PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rerank: Option<Spent>,
}

pub(crate) fn run(args: &SearchArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let asked = Asked::new(args);
    if asked.text.trim().is_empty() {
        return Err(wrong_use(
            "the query is empty; say what you look for: keyfold search \"how does it work\" [PATH]",
        ));
    }
    let mut options = options(args, &asked, globals)?;
    // Models that cannot be loaded are said before anything is read.
    let sparse = args.mix.sparse.as_deref();
    let sparse = sparse
        .map(|name| model::load_sparse(name, globals))
        .transpose()?;
    let cross_encoder = args.rerank.load(globals)?;
    let place = locate(args, &asked)?;
    update::path_filter(&place.path, &args.glob, &args.types)?;
    let encoder = match &args.query_vectors {
        Some(file) => Some(given::query(&place.store, file)?),
        None if args.no_update && args.mode == ModeArg::Lexical => None,
        None => {
            let named = args.model.as_deref();
            Some(update::encoder(&place.store, named, globals)?)
        }
    };
    let in_vectors = encoder.as_ref().is_some_and(|e| e.reads_rows());
    if in_vectors && args.query_vectors.is_none() && args.mode != ModeArg::Lexical {
        return Err(wrong_use(
            "the store holds token vectors: give those of the query with --query-vectors FILE.npy, \
             or look for names of files with --mode lexical",
        ));
    }
    if let (Some(encoder), false) = (&encoder, args.no_update) {
        let interrupted = bring_up_to_date(args, &asked, &place, &**encoder, globals)?;
        if interrupted {
            return Ok(Outcome::Interrupted);
        }
    }
    let snapshot = Snapshot::open(&place.store)?;
    let Some(filters) = filters(args, &asked, &place, &snapshot)? else {
        return show(args, globals, (&asked, &place), Vec::new(), 0.0, None);
    };
    options.filters = filters;
    let progress = StderrProgress::new(globals.quiet, 0);
    let sparse = match &sparse {
        Some(model) => match SparseRetriever::open(&snapshot, &**model, &progress)? {
            Some(ready) => Some(ready),
            None => return Ok(Outcome::Interrupted),
        },
        None => None,
    };
    let reranker = match &cross_encoder {
        Some(model) => match args.rerank.open(&snapshot, &**model, globals, &progress)? {
            Some(ready) => Some(ready),
            None => return Ok(Outcome::Interrupted),
        },
        None => None,
    };
    let models = Models {
        encoder: encoder.as_deref(),
        sparse: sparse.as_ref(),
        reranker: reranker.as_ref(),
    };
    let found = engine::search_with(&snapshot, asked.text, &models, &options)?;
    let milliseconds = found.timings.total.as_secs_f64() * 1e3;
    if let Some(note) = &found.note {
        progress.say(note);
    }
    let spent = reranker.map(|r| args.rerank.spent(&r, found.calls));
    if let Some(spent) = &spent {
        progress.say(&spent.to_string());
    }
    let hits = found.hits.into_iter().map(ShownHit::new).collect();
    show(args, globals, (&asked, &place), hits, milliseconds, spent)
}

/// What is looked for, and where.
struct Asked<'a> {
    /// Words, or the name of the file of the query's vectors.
    text: &'a str,
    /// Whether the text is such a name, and says nothing.
    is_name: bool,
    path: Option<&'a Path>,
}

impl<'a> Asked<'a> {
    fn new(args: &'a SearchArgs) -> Self {
        let (query, path) = (args.query.as_deref(), args.path.as_deref());
        match (&args.query_vectors, path) {
            // One name beside the vectors is where to search.
            (Some(file), None) => Self {
                text: file.to_str().unwrap_or("a query"),
                is_name: true,
                path: query.map(Path::new),
            },
            _ => Self {
                text: query.unwrap_or_default(),
                is_name: false,
                path,
            },
        }
    }
}

/// How to search, without the filters, which need a store.
fn options(
    args: &SearchArgs,
    asked: &Asked<'_>,
    globals: &Globals,
) -> anyhow::Result<SearchOptions> {
    let mut options = SearchOptions {
        k: args.k as usize,
        mode: match args.mode {
            ModeArg::Both if asked.is_name => Mode::Meaning,
            ModeArg::Lexical => Mode::Lexical,
            ModeArg::Meaning => Mode::Meaning,
            ModeArg::Both => Mode::Both,
        },
        explain: args.explain,
        ..SearchOptions::default()
    };
    args.finding.apply(&mut options.candidates)?;
    if let Some(threads) = globals.threads {
        options.candidates.threads = threads.into();
    }
    args.mix.apply(&mut options)?;
    Ok(options)
}

/// What to search: a path of its own narrows the search, a store without a path
/// is searched whole.
fn locate(args: &SearchArgs, asked: &Asked<'_>) -> anyhow::Result<Place> {
    let path = asked.path.unwrap_or(Path::new("."));
    place::locate(path, args.store.as_deref())
}

/// Whether PATH counts: without it, `--store` alone says what to search.
fn whole_store(args: &SearchArgs, asked: &Asked<'_>) -> bool {
    asked.path.is_none() && args.store.is_some()
}

/// Reads what is new or changed; true if the user stopped it.
fn bring_up_to_date(
    args: &SearchArgs,
    asked: &Asked<'_>,
    place: &Place,
    encoder: &dyn Encoder,
    globals: &Globals,
) -> anyhow::Result<bool> {
    let progress = StderrProgress::new(globals.quiet, 0);
    let mut options = update::options(globals);
    if args.hidden || args.no_ignore {
        options.walk = Some(WalkOptions {
            hidden: args.hidden,
            ignore_files: !args.no_ignore,
            ..WalkOptions::default()
        });
    }
    let path = std::slice::from_ref(&place.path);
    let roots = if whole_store(args, asked) { &[] } else { path };
    let updated = index::update(&place.store, roots, encoder, &options, &progress);
    let encoded = updated.and_then(|summary| {
        if !summary.cancelled {
            let wanted = wanted_encodings(args, &place.store);
            update::encode(&place.store, encoder, wanted.as_ref(), &options, &progress)?;
        }
        Ok(summary)
    });
    let summary = match encoded {
        Ok(summary) => summary,
        // What cannot be written can still be searched, if it is there.
        Err(e @ (SearchError::Busy { .. } | SearchError::Write { .. }))
            if Snapshot::open(&place.store).is_ok() =>
        {
            progress.say(&format!("searching the store as it is: {e}"));
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    let not_read = summary.files.skipped + summary.files.failed;
    if summary.cancelled {
        progress.say(&format!(
            "stopped: {} files were read and are kept; the next run goes on from there",
            summary.files.read
        ));
    } else if not_read > 0 {
        progress.say(&format!(
            "{not_read} of {} files were not read; 'keyfold index {} --list-skipped' says why",
            not_read + summary.files.read,
            asked.path.unwrap_or(Path::new(".")).display(),
        ));
    }
    Ok(summary.cancelled)
}

/// The encodings that the search needs and the store has not.
fn wanted_encodings(args: &SearchArgs, store: &Path) -> Option<FdeOptions> {
    if args.finding.candidates != CandidatesArg::Fde || args.mode == ModeArg::Lexical {
        return None;
    }
    let snapshot = Snapshot::open(store).ok()?;
    snapshot.encoded_with().is_none().then(FdeOptions::default)
}

/// The filters that the user set; none if no file of the store passes them.
fn filters(
    args: &SearchArgs,
    asked: &Asked<'_>,
    place: &Place,
    snapshot: &Snapshot,
) -> anyhow::Result<Option<Filters>> {
    let mut filters = Filters {
        below: (!whole_store(args, asked)).then(|| place::key(snapshot.store(), &place.path)),
        modified_since: args.since,
        modified_before: args.before,
        ..Filters::default()
    };
    if args.types.is_empty() {
        filters.globs.clone_from(&args.glob);
        return Ok(Some(filters));
    }
    // The engine knows globs, not ripgrep's types: name the files that pass both.
    let passes = update::path_filter(Path::new(""), &args.glob, &args.types)?;
    for file in snapshot.files()? {
        if passes.passes(Path::new(file.key.trim_start_matches('/'))) {
            filters
                .globs
                .push(format!("/{}", globset::escape(&file.key)));
        }
    }
    Ok((!filters.globs.is_empty()).then_some(filters))
}

/// Prints what was found.
fn show(
    args: &SearchArgs,
    globals: &Globals,
    (asked, place): (&Asked<'_>, &Place),
    hits: Vec<ShownHit>,
    milliseconds: f64,
    rerank: Option<Spent>,
) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    if globals.json {
        let found = Found {
            query: asked.text,
            store: &place::shown(&place.store),
            milliseconds,
            hits: (!args.files_with_matches).then_some(&hits[..]),
            files: args.files_with_matches.then(|| hits::files(&hits)),
            rerank,
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else if args.files_with_matches {
        hits::write_files(&mut out, &hits)?;
    } else {
        let layout = Layout {
            width: terminal::width(),
            rows: (!args.full).then_some(ROWS),
        };
        hits::write(&mut out, &hits, layout)?;
    }
    Ok(if hits.is_empty() {
        Outcome::Negative
    } else {
        Outcome::Done
    })
}
