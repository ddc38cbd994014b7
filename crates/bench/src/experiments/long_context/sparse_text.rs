//! Double Sparsity on the user's model and text: perplexity and records by rows and by
//! channels, beside other ways to choose as many rows.

use std::sync::PoisonError;

use keyfold_core::Progress;
use keyfold_lm::roles::Dims;
use keyfold_lm::select::Budget;
use keyfold_lm::select::baselines::{OracleTopK, PooledChannels, QuestPages, SlidingWindow};
use keyfold_lm::select::rankings::Rankings;
use serde_json::{Value, json};

use super::double_sparsity::{Sizes, calibrate, selector};
use super::overlap::Counted;
use super::records::asked;
use super::{Compared, Method, Model, failed, holds, windows};
use crate::plot::Line;
use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions, Scale};

/// Layers that read everything, as the authors have it.
const DENSE: usize = 2;
/// Rows of a page of Quest, and first tokens that a window keeps.
const PAGE: usize = 16;
const SINK: usize = 4;

const WAYS: [&str; 7] = [
    "best rows",
    "calibrated",
    "random",
    "first",
    "pooled",
    "pages",
    "window",
];

/// What every way has in common.
struct Given<'a> {
    model: &'a Model,
    dims: Dims,
    rankings: [(&'static str, Rankings); 3],
}

impl Given<'_> {
    fn labels(&self, name: &str, k: usize, r: usize) -> Result<Option<Method>, BenchError> {
        let rankings = self.rankings.iter().find(|(n, _)| *n == name);
        rankings
            .map(|(_, rankings)| {
                let selector = selector(self.model, k, r, DENSE, rankings)?;
                Ok(Method::new(name, selector))
            })
            .transpose()
    }

    /// The way of that name with `k` rows, by `r` channels where it has some.
    fn method(&self, name: &str, k: usize, r: usize) -> Result<Method, BenchError> {
        if let Some(method) = self.labels(name, k, r)? {
            return Ok(method);
        }
        let (dims, tokens) = (self.dims, Budget::Tokens(k));
        let refuse = failed("baselines");
        Ok(match name {
            "best rows" => {
                Method::new(name, OracleTopK::new(tokens, DENSE, dims).map_err(&refuse)?)
            }
            "pooled" => {
                let pooled = PooledChannels::new(dims.head_dim / r, tokens, DENSE, dims);
                Method::new(name, pooled.map_err(&refuse)?)
            }
            "pages" => {
                let pages = QuestPages::new(PAGE, tokens, DENSE, dims);
                Method::new(name, pages.map_err(&refuse)?)
            }
            _ => {
                let window = k.saturating_sub(SINK).max(1);
                let window = SlidingWindow::new(window, SINK, DENSE, dims);
                Method::new(name, window.map_err(&refuse)?)
            }
        })
    }
}

/// Perplexity and records of the user's model.
pub(super) fn on_text(
    options: &BenchOptions,
    model: &Model,
    tokens: &[u32],
    sizes: &Sizes,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let context = model.context(sizes.window);
    let (dims, count) = (model.dims(), sizes.decoded);
    let windows = windows(model, tokens, context, sizes.windows)?;
    // What is calibrated on is not what is measured on.
    let rest = tokens.get(windows.len() * context..);
    let rest = rest.filter(|t| t.len() >= 64).unwrap_or(tokens);
    let blocks = if options.scale == Scale::Smoke { 1 } else { 4 };
    let given = Given {
        model,
        dims,
        rankings: [
            (
                "calibrated",
                calibrate(model, rest.chunks(512).take(blocks))?,
            ),
            ("random", Rankings::random(&dims, options.seed)),
            ("first", Rankings::first(&dims)),
        ],
    };
    let r = (dims.head_dim / 8).max(1);
    let budgets = [16, 32, 64, 128, 256];
    let budgets: Vec<usize> = budgets.into_iter().filter(|&k| 2 * k < context).collect();
    let sixteenth = budgets
        .iter()
        .copied()
        .min_by_key(|k| k.abs_diff(context / 16));
    let sixteenth = sixteenth.unwrap_or(1);
    let mut methods = vec![Method::dense()];
    for &k in &budgets {
        for name in WAYS {
            methods.push(given.method(name, k, r)?);
        }
    }
    let channels: Vec<usize> = [2, 4, 8, 16]
        .into_iter()
        .map(|part| dims.head_dim / part)
        .filter(|&r| r > 0)
        .collect();
    let mut counts = Vec::new();
    for &r in &channels {
        let ranking = &given.rankings[0].1;
        let labels = selector(model, sixteenth, r, DENSE, ranking)?;
        let counted = Counted::new(labels, sixteenth, DENSE, dims)?;
        counts.push(counted.counts());
        methods.push(Method::new("calibrated", counted));
        methods.push(given.method("random", sixteenth, r)?);
        methods.push(given.method("pooled", sixteenth, r)?);
    }
    let mut compared = Compared::new(model, methods, context)?;
    progress.start("perplexity", "windows", Some(windows.len() as u64));
    let found = compared.losses(&windows, count, progress)?;
    progress.finish();
    let found: Vec<f64> = found.into_iter().map(f64::exp).collect();
    let shares: Vec<f64> = counts
        .iter()
        .map(|c| c.lock().unwrap_or_else(PoisonError::into_inner).share())
        .collect();
    let (wanted, prompts) = asked(options.scale);
    let length = wanted.min(context.saturating_sub(16));
    let right = compared.all_records((length, prompts), options.seed, progress)?;

    let (by_budget, by_channels) = (
        1..1 + WAYS.len() * budgets.len(),
        1 + WAYS.len() * budgets.len()..,
    );
    let title = format!(
        "perplexity of {} ({count} tokens after {}, {} windows; {DENSE} dense layers, {r} of {} channels in 4 bits); \
         dense {:.3}",
        model.name,
        context - count,
        windows.len(),
        dims.head_dim,
        found[0],
    );
    let dense = found[0];
    tables.push(by_rows(&title, &budgets, &found[by_budget.clone()], |p| {
        format!("{p:.3}")
    }));
    let title = format!(
        "records that {} answers exactly, %; {prompts} prompts of {length} tokens; dense {:.0}",
        model.name,
        100.0 * right[0]
    );
    let percent = |p: f64| format!("{:.0}", 100.0 * p);
    tables.push(by_rows(
        &title,
        &budgets,
        &right[by_budget.clone()],
        percent,
    ));
    let title = format!(
        "the same with {sixteenth} rows by channels: perplexity, and best rows that calibrated labels choose"
    );
    let columns = [
        "channels",
        "calibrated",
        "random",
        "pooled",
        "best rows chosen, %",
    ];
    let mut table = Table::new(&title, &columns);
    for ((r, three), share) in channels
        .iter()
        .zip(found[by_channels.clone()].chunks(3))
        .zip(&shares)
    {
        let [calibrated, random, pooled] = [0, 1, 2].map(|i| format!("{:.3}", three[i]));
        table.row([r.to_string(), calibrated, random, pooled, percent(*share)]);
    }
    tables.push(table);

    let mut values = vec![json!({"by": "dense", "perplexity": dense, "records": right[0]})];
    let mut lines: Vec<Line> = WAYS.iter().map(|n| ((*n).to_owned(), Vec::new())).collect();
    let per_budget = found[by_budget.clone()]
        .chunks(WAYS.len())
        .zip(right[by_budget].chunks(WAYS.len()));
    let mut at_sixteenth = vec![f64::NAN; WAYS.len()];
    for (&k, (found, right)) in budgets.iter().zip(per_budget) {
        for (((line, name), &p), &right) in lines.iter_mut().zip(WAYS).zip(found).zip(right) {
            line.1.push((k as f64, p));
            values.push(
                json!({"rows": k, "channels": r, "by": name, "perplexity": p, "records": right}),
            );
        }
        if k == sixteenth {
            at_sixteenth = found.to_vec();
        }
    }
    for ((r, three), share) in channels
        .iter()
        .zip(found[by_channels].chunks(3))
        .zip(&shares)
    {
        values.push(json!({
            "rows": sixteenth, "channels": r, "best_rows_chosen": share,
            "calibrated": three[0], "random": three[1], "pooled": three[2],
        }));
    }
    let flat = budgets.iter().map(|&k| (k as f64, dense)).collect();
    lines.push(("dense".to_owned(), flat));
    let [best, calibrated, random] = [at_sixteenth[0], at_sixteenth[1], at_sixteenth[2]];
    let loss = calibrated / dense - 1.0;
    let over = |p: f64| 100.0 * (p / best - 1.0);
    let share = channels
        .iter()
        .position(|&c| c == r)
        .map_or(f64::NAN, |at| shares[at]);
    findings.push(format!(
        "claim: a sixteenth of the tokens costs little perplexity (Llama-2-7B on Wikitext-2: 5.47 dense, about 5.5). \
         {sixteenth} of {context} rows: {:+.1} % over dense: {}. Over the best rows: calibrated {:+.1} %, random {:+.1} %, \
         pages {:+.1} %, a window {:+.1} %; aim 1 % for calibrated: {}. Labels choose {:.0} % of the best rows (expected 60 to \
         90).",
        100.0 * loss, holds(loss < 0.02), over(calibrated), over(random), over(at_sixteenth[5]), over(at_sixteenth[6]),
        reached(calibrated <= 1.01 * best), 100.0 * share,
    ));
    Ok((json!(values), lines))
}

/// A table of numbers `[budgets, ways]`.
fn by_rows(title: &str, budgets: &[usize], found: &[f64], shown: impl Fn(f64) -> String) -> Table {
    let columns: Vec<&str> = std::iter::once("rows").chain(WAYS).collect();
    let mut table = Table::new(title, &columns);
    for (k, found) in budgets.iter().zip(found.chunks(WAYS.len())) {
        let cells = found.iter().map(|&x| shown(x));
        table
            .rows
            .push(std::iter::once(k.to_string()).chain(cells).collect());
    }
    table
}
