//! `keyfold lab tensor-attention`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use keyfold_data::rows::{RowOptions, read_rows};
use keyfold_kernels::Team;
use keyfold_sequence::tensor_attention::polynomial::{Fit, Polynomial};
use keyfold_sequence::tensor_attention::{Attention, triples};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Attention over pairs of positions: which triples are strong in rows of yours, or how well a
/// polynomial stands in for exp on random ones
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lab tensor-attention                       random entries, exact beside polynomial
  keyfold lab tensor-attention --bound 2 --degree 4
  keyfold lab tensor-attention rows.csv --top 20     the strongest triples of rows")]
pub(super) struct TensorAttentionArgs {
    /// Rows of numbers (.npy, CSV, Parquet, safetensors), each a position: query, keys and values
    #[arg(value_name = "FILE")]
    rows: Option<PathBuf>,
    /// How many of the strongest triples are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Factor of the scores [default: 1 / numbers of a row]
    #[arg(long, value_name = "X")]
    scale: Option<f64>,
    /// A position attends to itself and what stands before it alone
    #[arg(long)]
    causal: bool,
    /// Degree of the polynomial; even ones of Taylor are above 0 everywhere
    #[arg(long, value_name = "N", default_value_t = 4)]
    degree: usize,
    /// How the polynomial is chosen
    #[arg(long, value_name = "WAY", default_value = "taylor")]
    fit: FitArg,
    /// Use the polynomial even where scores may be too large for it, and compute exact attention
    /// even where it takes very long
    #[arg(long)]
    force: bool,
    /// Random input: positions
    #[arg(long, value_name = "N", default_value_t = 128)]
    positions: usize,
    /// Random input: numbers of a row
    #[arg(long, value_name = "N", default_value_t = 8)]
    dim: usize,
    /// Random input: no entry is larger
    #[arg(long, value_name = "B", default_value_t = 1.0)]
    bound: f64,
}

/// How the polynomial is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FitArg {
    /// The series at 0: best where most scores are small
    Taylor,
    /// The least error at the worst score
    Minimax,
}

pub(super) fn run(args: &TensorAttentionArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let parts: [Vec<f64>; 5] = match &args.rows {
        Some(path) => {
            let rows = read_rows(path, &RowOptions::default())?;
            let values: Vec<f64> = rows.values.iter().map(|&x| f64::from(x)).collect();
            return on_rows(args, globals, &values, rows.width);
        }
        None => {
            // Numbers are drawn from a range twice as wide.
            let wide = 2.0 * args.bound;
            if args.positions == 0 || args.dim == 0 || !(wide > 0.0 && wide.is_finite()) {
                return Err(wrong_use("--positions, --dim and --bound must be above 0"));
            }
            let mut rng = StdRng::seed_from_u64(globals.seed);
            let count = args.positions * args.dim;
            std::array::from_fn(|_| {
                let each = |_| rng.random_range(-args.bound..=args.bound);
                (0..count).map(each).collect()
            })
        }
    };
    let [q, k1, k2, v1, v2] = &parts;
    let attention = Attention::new(q, vec![k1, k2], vec![v1, v2], args.dim)?;
    on_random(args, globals, &with(args, attention))
}

fn with<'a>(args: &TensorAttentionArgs, attention: Attention<'a>) -> Attention<'a> {
    let attention = attention.causal(args.causal).patient(args.force);
    match args.scale {
        Some(scale) => attention.with_scale(scale),
        None => attention,
    }
}

fn fit(args: &TensorAttentionArgs) -> Fit {
    match args.fit {
        FitArg::Taylor => Fit::Taylor,
        FitArg::Minimax => Fit::Minimax,
    }
}

/// The strongest triples of rows.
fn on_rows(
    args: &TensorAttentionArgs,
    globals: &Globals,
    rows: &[f64],
    width: usize,
) -> anyhow::Result<Outcome> {
    let attention = Attention::new(rows, vec![rows, rows], vec![rows, rows], width)?;
    let attention = with(args, attention);
    let found = triples(&attention, args.top)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let list = found
            .iter()
            .map(|t| json!({"query": t.query, "pair": t.pair, "weight": t.weight}));
        let whole = json!({
            "positions": attention.len(), "score_bound": attention.score_bound(),
            "triples": list.collect::<Vec<_>>(),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{:>7} {:>7} {:>7} {:>9}",
        "row", "attends", "to", "weight"
    )?;
    for t in &found {
        // Rows count from 1, as in the messages about files.
        writeln!(
            out,
            "{:>7} {:>7} {:>7} {:>9.4}",
            t.query + 1,
            t.pair[0] + 1,
            t.pair[1] + 1,
            t.weight
        )?;
    }
    Ok(Outcome::Done)
}

/// Exact beside polynomial on random rows.
fn on_random(
    args: &TensorAttentionArgs,
    globals: &Globals,
    attention: &Attention,
) -> anyhow::Result<Outcome> {
    let team = Team::new(globals.threads.map_or(0, usize::from));
    let clock = Instant::now();
    let polynomial = Polynomial::new(attention, args.degree, fit(args), args.force)?;
    let found = polynomial.apply(attention);
    let fast = clock.elapsed().as_secs_f64();
    let certificate = polynomial.certificate(attention);
    let clock = Instant::now();
    let exact = attention.exact(&team)?;
    let slow = clock.elapsed().as_secs_f64();
    let far = found.iter().zip(&exact).map(|(a, b)| (a - b).abs());
    let error = far.fold(0.0, f64::max);
    let mut out = anstream::stdout().lock();
    if globals.json {
        let whole = json!({
            "positions": attention.len(), "dim": args.dim, "bound": args.bound, "degree": args.degree,
            "monomials": certificate.features, "score_bound": certificate.score_bound,
            "relative_error_of_exp": certificate.relative_error,
            "output_error_allowed": certificate.output_error, "output_error": error,
            "polynomial_seconds": fast, "exact_seconds": slow,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
        return Ok(Outcome::Done);
    }
    writeln!(
        out,
        "{} positions of {} numbers in [-{b}, {b}]; scores up to {:.3}",
        attention.len(),
        args.dim,
        certificate.score_bound,
        b = args.bound
    )?;
    writeln!(
        out,
        "degree {}: {} monomials, exp within {:.1e}\nerror    {error:.1e} (at most {:.1e} by the bound on scores)\ntime     {:.1} ms, exact {:.1} ms",
        args.degree,
        certificate.features,
        certificate.relative_error,
        certificate.output_error,
        1e3 * fast,
        1e3 * slow,
    )?;
    Ok(Outcome::Done)
}
