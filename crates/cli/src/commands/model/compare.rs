//! `keyfold model compare`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use keyfold_core::atomic;
use keyfold_dictionary::draw::patches_svg;
use keyfold_inspect::convergent::{
    Activations, Cluster, Correlations, OneToOne, Pair, Prediction, clusters, correlations, greedy,
    matching, mutual_information, sparse_prediction,
};
use serde_json::json;

use super::activations::{Pool, Seen, Subject, is_rows, of_file, texts};
use super::place::Hook;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Units of a picture, at most.
const DRAWN: usize = 256;

/// Pairs, units and groups that are listed.
const LISTED: usize = 10;

/// Say which units of two networks correspond
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A and B are files of activations (one row per sample, of the same samples in the same order), or language \
models that read the lines of --data: then --hook names a place as TransformerLens does \
(hook_resid_pre, attn.hook_q, attn.hook_k, attn.hook_v, attn.hook_z, hook_attn_out, hook_resid_mid, \
hook_mlp_out, hook_resid_post); ':6' behind it takes one head.

Examples:
  keyfold model compare a.npy b.npy
  keyfold model compare a.npy b.npy --lasso 0.01,0.1 --clusters 20 --out pairs.svg
  keyfold model compare base.gguf tuned.gguf --data texts.txt --hook blocks.6.hook_resid_post
  keyfold model compare MODEL MODEL --data texts.txt --hook blocks.3.hook_mlp_out --hook-b blocks.4.hook_mlp_out")]
pub(super) struct CompareArgs {
    /// The first network: a file of activations, or a model
    a: String,
    /// The second network
    b: String,
    /// A file of texts, one a line, for models to read
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The place in the models, as in blocks.3.hook_resid_post or blocks.3.attn.hook_q:6
    #[arg(long, value_name = "NAME")]
    hook: Option<Hook>,
    /// The place in the second model, where it is another
    #[arg(long, value_name = "NAME", requires = "hook")]
    hook_b: Option<Hook>,
    /// What becomes of the tokens of a text, or of the places of a map
    #[arg(long, default_value = "none")]
    pool: Pool,
    /// Rows hold so many maps of a convolution, one after the other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    maps: Option<u32>,
    /// The tensor of a .safetensors file, or array of an .npz
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Predict units of B from few of A, by a lasso of these weights
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    lasso: Vec<f64>,
    /// Cut the units of both into so many groups
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    clusters: Option<u32>,
    /// Find partners by mutual information too
    #[arg(long)]
    information: bool,
    /// Picture of the correlations, with the units of B in the order of their partners (.svg)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File for the order of B's units that aligns them with A's (.json)
    #[arg(long, value_name = "FILE")]
    permutation: Option<PathBuf>,
}

/// Everything that was found.
struct Found {
    correlations: Correlations,
    one: OneToOne,
    chance: OneToOne,
    greedy: Vec<Pair>,
    matching: Vec<Pair>,
    information: Option<(Vec<Pair>, f64)>,
    sparse: Vec<Prediction>,
    clusters: Vec<Cluster>,
}

pub(super) fn run(args: &CompareArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    let (a, b) = activations(args, globals, &progress)?;
    let found = find(args, globals, &a, &b)?;
    if let Some(path) = &args.out {
        atomic::write(path, picture(&found).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.permutation {
        let order = permutation(&found);
        atomic::write(path, serde_json::to_string(&order)?.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = anstream::stdout().lock();
    if globals.json {
        write_json(&mut out, &found, a.samples())?;
    } else {
        write_text(&mut out, &found, a.samples())?;
    }
    Ok(Outcome::Done)
}

fn activations(
    args: &CompareArgs,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<(Activations, Activations)> {
    let read = |name: &str, hook: Option<Hook>| -> anyhow::Result<Seen> {
        if is_rows(name) {
            return of_file(name, args.tensor.as_deref());
        }
        let (Some(data), Some(hook)) = (&args.data, hook) else {
            return Err(wrong_use(format!(
                "{name} is no file of rows (.npy, .npz, .csv, .tsv, .parquet, .safetensors); for a model say \
                 what it reads (--data FILE) and where to look (--hook blocks.0.hook_resid_post)"
            )));
        };
        let subject = Subject::open(name, globals, progress)?;
        subject.activations(&texts(data)?, hook, args.pool, progress)
    };
    let a = read(&args.a, args.hook)?;
    let b = read(&args.b, args.hook_b.or(args.hook))?;
    if a.tokens != b.tokens && !a.tokens.is_empty() && !b.tokens.is_empty() {
        return Err(wrong_use(
            "the models cut the texts into other tokens, so that rows do not stand for the same; use --pool \
             mean or --pool last",
        ));
    }
    let build = |name: &str, seen: Seen| match args.maps {
        Some(maps) => Activations::from_maps(
            name,
            &seen.rows,
            seen.width,
            maps as usize,
            args.pool == Pool::Mean,
        ),
        None => Activations::new(name, seen.rows, seen.width),
    };
    Ok((build(&args.a, a)?, build(&args.b, b)?))
}

fn find(
    args: &CompareArgs,
    globals: &Globals,
    a: &Activations,
    b: &Activations,
) -> anyhow::Result<Found> {
    let correlations = self::correlations(a, b)?;
    let chance = self::correlations(a, &b.shuffled(globals.seed))?;
    let information = match args.information {
        true => {
            let found = mutual_information((a, &correlations.a), (b, &correlations.b))?;
            Some((greedy(found.nats.as_ref()), found.bias))
        }
        false => None,
    };
    let sparse = match args.lasso.is_empty() {
        true => Vec::new(),
        // A fifth of the samples tells the errors.
        false => sparse_prediction(a, b, a.samples() - (a.samples() / 5).max(2), &args.lasso)?,
    };
    let clusters = match args.clusters {
        Some(count) => self::clusters(&correlations, count as usize)?,
        None => Vec::new(),
    };
    Ok(Found {
        one: OneToOne::of(correlations.between()),
        chance: OneToOne::of(chance.between()),
        greedy: greedy(correlations.between()),
        matching: matching(correlations.between()),
        correlations,
        information,
        sparse,
        clusters,
    })
}

/// For each unit of A the unit of B that the assignment gives it.
fn permutation(found: &Found) -> Vec<[usize; 2]> {
    let c = &found.correlations;
    found
        .matching
        .iter()
        .map(|p| [c.a.live[p.unit], c.b.live[p.partner]])
        .collect()
}

/// Correlations, the pairs that go together best first: a bright diagonal where units correspond.
fn picture(found: &Found) -> String {
    let mut pairs = found.matching.clone();
    pairs.sort_by(|p, q| q.score.total_cmp(&p.score));
    pairs.truncate(DRAWN);
    let between = found.correlations.between();
    let numbers = pairs
        .iter()
        .flat_map(|p| pairs.iter().map(|q| between[(p.unit, q.partner)] as f32));
    let numbers: Vec<f32> = numbers.collect();
    patches_svg(&numbers, [pairs.len(), pairs.len()])
}

fn write_json(out: &mut impl Write, found: &Found, samples: usize) -> anyhow::Result<()> {
    let c = &found.correlations;
    let named = |pairs: &[Pair]| -> Vec<serde_json::Value> {
        let one =
            |p: &Pair| json!({"a": c.a.live[p.unit], "b": c.b.live[p.partner], "score": p.score});
        pairs.iter().map(one).collect()
    };
    let value = json!({
        "samples": samples,
        "units": {"a": c.a.live.len(), "b": c.b.live.len()},
        "dead": {"a": c.a.dead, "b": c.b.dead},
        "one_to_one": found.one,
        "by_chance": found.chance,
        "greedy": named(&found.greedy),
        "matching": named(&found.matching),
        "information": found.information.as_ref().map(|(pairs, bias)| json!({"bias": bias, "greedy": named(pairs)})),
        "few_to_one": found.sparse,
        "clusters": found.clusters,
    });
    writeln!(out, "{value:#}")?;
    Ok(())
}

fn write_text(out: &mut impl Write, found: &Found, samples: usize) -> std::io::Result<()> {
    let c = &found.correlations;
    writeln!(
        out,
        "{BOLD}{} and {} units over {samples} samples{BOLD:#}",
        c.a.live.len(),
        c.b.live.len()
    )?;
    for (which, units) in [("A", &c.a), ("B", &c.b)] {
        if !units.dead.is_empty() {
            let some: Vec<String> = units
                .dead
                .iter()
                .take(LISTED)
                .map(ToString::to_string)
                .collect();
            let more = if units.dead.len() > LISTED {
                " ..."
            } else {
                ""
            };
            writeln!(
                out,
                "  {} units of {which} never change: {}{more}",
                units.dead.len(),
                some.join(" ")
            )?;
        }
    }
    writeln!(
        out,
        "\n{:<22}{:>10}{:>12}",
        "mean correlation", "found", "by chance"
    )?;
    writeln!(
        out,
        "{:<22}{:>10.3}{:>12.3}",
        "best partner", found.one.greedy, found.chance.greedy
    )?;
    writeln!(
        out,
        "{:<22}{:>10.3}{:>12.3}",
        "one to one", found.one.matching, found.chance.matching
    )?;
    writeln!(
        out,
        "{:<22}{:>10.3}{:>12.3}",
        "the same in both", found.one.same, found.chance.same
    )?;
    let mut pairs = found.matching.clone();
    pairs.sort_by(|p, q| q.score.total_cmp(&p.score));
    writeln!(out, "\nbest pairs (A, B, correlation)")?;
    for p in pairs.iter().take(LISTED) {
        writeln!(
            out,
            "{:>6}{:>7}{:>9.3}",
            c.a.live[p.unit], c.b.live[p.partner], p.score
        )?;
    }
    if let Some((by_nats, bias)) = &found.information {
        let same = found
            .greedy
            .iter()
            .zip(by_nats)
            .filter(|(p, q)| p.partner == q.partner)
            .count();
        writeln!(
            out,
            "\nmutual information gives the same best partner for {same} of {} units (independent units \
             have about {bias:.3} nats)",
            found.greedy.len()
        )?;
    }
    if !found.sparse.is_empty() {
        writeln!(out, "\nunits of B from units of A, held out")?;
        writeln!(out, "{:<22}{:>10}{:>12}", "", "error", "units used")?;
        for p in &found.sparse {
            let name = p
                .alpha
                .map_or("best single unit".to_owned(), |a| format!("lasso {a}"));
            writeln!(out, "{name:<22}{:>10.3}{:>12.1}", p.error, p.weights)?;
        }
    }
    if !found.clusters.is_empty() {
        writeln!(
            out,
            "\ngroups (units of A, units of B, mean correlation inside)"
        )?;
        for g in found.clusters.iter().take(LISTED) {
            writeln!(out, "{:>6}{:>7}{:>9.3}", g.a.len(), g.b.len(), g.coherence)?;
        }
        if found.clusters.len() > LISTED {
            writeln!(
                out,
                "   and {} more (--json lists all)",
                found.clusters.len() - LISTED
            )?;
        }
    }
    Ok(())
}
