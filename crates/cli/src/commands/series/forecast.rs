//! `keyfold series forecast`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use keyfold_core::{ModelFolder, atomic};
use keyfold_signals::linear::Linear;
use keyfold_signals::tsm2::Forecaster;
use keyfold_signals::{Errors, Scaler, Series, Windows, read_series, simple, times_after};
use serde_json::{Map, Value, json};

use super::{TableArgs, svg};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::printable;

/// Forecast the next rows of a table
///
/// The table has a header, one row per time, the oldest first. Without --model a linear forecaster
/// is fitted to the table itself, and told with its errors on the last fifth of the
/// rows; --model is a folder of `keyfold train tsm2`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold series forecast load.csv --horizon 24
  keyfold series forecast load.csv --model load-model --svg load.svg --out next.csv
  keyfold series forecast load.csv --model load-model --future calendar.csv --json")]
pub(super) struct ForecastArgs {
    /// A table (CSV; cells between commas, semicolons or tabulators)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A folder of `keyfold train tsm2` [default: a linear forecaster, fitted now]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Rows to forecast [default: 24, or those of the model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    horizon: Option<u32>,
    /// Rows that the linear forecaster looks at [default: a quarter of the rows, at most 336]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4096), conflicts_with = "model")]
    context: Option<u32>,
    /// The coming rows of columns that the model was told are known (CSV)
    #[arg(long, value_name = "FILE", requires = "model")]
    future: Option<PathBuf>,
    #[command(flatten)]
    table: TableArgs,
    /// Tell by which weights the model's layers add up earlier ones, and how much each column's
    /// forecast moves when another column is held at its mean
    #[arg(long, requires = "model")]
    explain: bool,
    /// Write the forecast into this file (CSV)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File for a drawing
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Rows to forecast when not said.
const HORIZON: usize = 24;

/// Windows by which the linear forecaster is judged.
const JUDGED: usize = 500;

/// How the columns go on, and what is known of how.
struct Told {
    names: Vec<String>,
    /// `[columns][rows]`.
    values: Vec<Vec<f64>>,
    times: Vec<String>,
    /// What is said besides, name by name.
    notes: Vec<(&'static str, String)>,
    json: Map<String, Value>,
}

pub(super) fn run(args: &ForecastArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let series = read_series(&args.file, &args.table.options())?;
    let mut told = match &args.model {
        Some(folder) => by_model(args, folder, &series)?,
        None => by_line(args, &series)?,
    };
    let rows = told.values[0].len();
    note_still(&mut told, &series);
    told.times = times_after(&series.times, rows)
        .unwrap_or_else(|| (1..=rows).map(|row| format!("+{row}")).collect());
    if let Some(path) = &args.svg {
        let shown = series.select(&told.names, "the table")?;
        let text = svg::draw(&shown, &told.values);
        atomic::write(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.out {
        atomic::write(path, csv(&told).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match globals.json {
        true => print_json(told)?,
        false => print(&told, args.out.is_some())?,
    }
    Ok(Outcome::Done)
}

fn by_model(
    args: &ForecastArgs,
    folder: &std::path::Path,
    series: &Series,
) -> anyhow::Result<Told> {
    let place = ModelFolder::find(&folder.to_string_lossy())?;
    let model = Forecaster::load(&place)?;
    let config = model.model().config();
    let most = config.pred_len;
    let horizon = args.horizon.map_or(most, |h| h as usize);
    if horizon > most {
        return Err(wrong_use(format!(
            "--horizon {horizon}: the model forecasts {most} rows; train one with \
             --set model.pred_len={horizon}"
        )));
    }
    let future = match &args.future {
        Some(path) => Some(read_series(path, &args.table_of_future())?),
        None => None,
    };
    let mut values = model.forecast(series, future.as_ref())?;
    values
        .iter_mut()
        .for_each(|column| column.truncate(horizon));
    let mut told = Told {
        names: model.learned().targets.clone(),
        values,
        times: Vec::new(),
        notes: vec![
            ("method", format!("tsm2, {}", folder.display())),
            ("looked at", format!("the last {} rows", config.seq_len)),
        ],
        json: Map::new(),
    };
    told.json.insert("method".into(), json!("tsm2"));
    told.json.insert("context".into(), json!(config.seq_len));
    if args.explain {
        explain(&mut told, &model, series, future.as_ref())?;
    }
    Ok(told)
}

impl ForecastArgs {
    /// What is left out of the table is left out here too, where it is there.
    fn table_of_future(&self) -> keyfold_signals::SeriesOptions {
        keyfold_signals::SeriesOptions {
            may_lack: true,
            ..self.table.options()
        }
    }
}

/// Warns of columns that hold one number throughout.
fn note_still(told: &mut Told, series: &Series) {
    let still = still(series, &told.names);
    if !still.is_empty() {
        told.notes.push(("warning", still_line(&still)));
        told.json.insert("constant".into(), json!(still));
    }
}

/// The columns that are forecast and hold one number throughout.
pub(crate) fn still<'a>(series: &'a Series, forecast: &[String]) -> Vec<&'a str> {
    let mut still = series.still();
    still.retain(|name| forecast.iter().any(|one| one == name));
    still
}

/// What is said of them.
pub(crate) fn still_line(names: &[&str]) -> String {
    let all: Vec<String> = names.iter().map(|name| printable(name)).collect();
    let (hold, it, it_is) = match names {
        [_] => ("holds one number", "it", "it is"),
        _ => ("hold one number each", "them", "they are"),
    };
    format!(
        "{} {hold} throughout; nothing can be learned of {it}, and {it_is} taken to stay",
        all.join(", ")
    )
}

fn explain(
    told: &mut Told,
    model: &Forecaster,
    series: &Series,
    future: Option<&Series>,
) -> anyhow::Result<()> {
    let mut averages = Vec::new();
    for (layer, weights) in model.model().averages().into_iter().enumerate() {
        let written: Vec<String> = weights
            .iter()
            .map(|(name, w)| {
                let w: Vec<String> = w.iter().map(|w| format!("{w:.3}")).collect();
                format!("{name} {}", w.join(" "))
            })
            .collect();
        told.notes
            .push(("layer", format!("{}: {}", layer + 1, written.join("; "))));
        let fields = weights
            .into_iter()
            .map(|(name, w)| (name.to_owned(), json!(w)));
        averages.push(Value::Object(fields.collect()));
    }
    let influence = model.influence(series, future)?;
    for (name, moved) in told.names.iter().zip(&influence) {
        let each = told.names.iter().zip(moved);
        let each: Vec<String> = each
            .map(|(other, x)| format!("{} {x:.3}", printable(other)))
            .collect();
        told.notes.push((
            "held",
            format!("{} moves {}", printable(name), each.join(", ")),
        ));
    }
    told.json.insert("averages".into(), Value::Array(averages));
    told.json.insert("influence".into(), json!(influence));
    Ok(())
}

/// Fits a linear forecaster to four fifths of the rows, and tells its errors on the others.
fn by_line(args: &ForecastArgs, series: &Series) -> anyhow::Result<Told> {
    let horizon = args.horizon.map_or(HORIZON, |h| h as usize);
    let rows = series.rows();
    let context = args
        .context
        .map_or((rows / 4).clamp(2, 336), |c| c as usize);
    let cut = rows * 4 / 5;
    let learned = Windows::new(context, horizon, 0..cut);
    let (learned, judged) = learned
        .and_then(|learned| Ok((learned, Windows::new(context, horizon, cut..rows)?)))
        .with_context(|| {
            format!(
                "{} has {rows} rows, of which four fifths are learned from; --horizon and --context \
                 ask for less",
                args.file.display()
            )
        })?;
    let scaler = Scaler::of(&series.part(0..cut));
    let columns = scaler.scaled(series);
    let line = Linear::fit(&columns, &learned, &judged)?;
    let some = judged.some(JUDGED);
    let of = |told: &dyn Fn(&[f32]) -> Vec<f32>| {
        Errors::of(&columns, &judged, &some, |number, column| {
            told(&columns[column][judged.context(number)])
        })
    };
    let ours = of(&|window| line.forecast(window));
    let last = of(&|window| simple::last(window, horizon));
    let values = columns.iter().enumerate().map(|(i, column)| {
        let forecast = line.forecast(&column[rows - context..]);
        forecast.iter().map(|x| scaler.own(i, *x)).collect()
    });
    let written = |e: &Errors| format!("squared {:.3}, absolute {:.3}", e.mse, e.mae);
    let json = json!({
        "method": "linear", "context": context, "penalty": line.penalty,
        "held_out": {"windows": some.len(), "linear": ours, "last_value": last},
    });
    Ok(Told {
        names: series.names.clone(),
        values: values.collect(),
        times: Vec::new(),
        notes: vec![
            ("method", "linear, fitted to this table".into()),
            ("looked at", format!("the last {context} rows")),
            (
                "errors",
                format!("{} of held-out rows, in deviations", written(&ours)),
            ),
            ("last value", format!("{} of the same", written(&last))),
        ],
        json: json.as_object().cloned().unwrap_or_default(),
    })
}

/// Numbers with as many digits as tell something.
fn digits(x: f64) -> String {
    match x.abs() {
        v if v >= 1e6 || (v > 0.0 && v < 1e-3) => format!("{x:.5e}"),
        v if v >= 1000.0 => format!("{x:.1}"),
        v if v >= 10.0 => format!("{x:.3}"),
        _ => format!("{x:.5}"),
    }
}

fn lines(told: &Told) -> Vec<Vec<String>> {
    let mut head = vec!["time".to_owned()];
    head.extend(told.names.iter().cloned());
    let mut all = vec![head];
    for (row, time) in told.times.iter().enumerate() {
        let mut line = vec![time.clone()];
        line.extend(told.values.iter().map(|column| digits(column[row])));
        all.push(line);
    }
    all
}

fn csv(told: &Told) -> String {
    let quoted = |cell: &String| match cell.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    let mut text = String::new();
    for line in lines(told) {
        let cells: Vec<String> = line.iter().map(quoted).collect();
        text += &cells.join(",");
        text.push('\n');
    }
    text
}

fn print_json(told: Told) -> anyhow::Result<()> {
    let rows = told.times.iter().enumerate().map(|(row, time)| {
        let values = told.names.iter().zip(&told.values);
        let values: Map<String, Value> = values
            .map(|(name, column)| (name.clone(), json!(column[row])))
            .collect();
        json!({"time": time, "values": values})
    });
    let rows = Value::Array(rows.collect());
    let mut json = told.json;
    json.insert("forecast".into(), rows);
    writeln!(anstream::stdout(), "{:#}", Value::Object(json))?;
    Ok(())
}

fn print(told: &Told, written: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if !written {
        let lines = lines(told);
        let width = |column: usize| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..=told.names.len()).map(width).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate();
            let cells: Vec<String> = cells
                .map(|(i, (cell, width))| match i {
                    0 => format!("{:width$}", printable(cell)),
                    _ => format!("{:>width$}", printable(cell)),
                })
                .collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        writeln!(out)?;
    }
    for (name, what) in &told.notes {
        writeln!(out, "{name:<12}{what}")?;
    }
    Ok(())
}
