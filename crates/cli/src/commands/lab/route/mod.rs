//! `keyfold lab route`.

mod svg;

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use keyfold_core::atomic;
use keyfold_data::rows::{RowOptions, read_rows};
use keyfold_inspect::route::tours::{self, EXACT};
use keyfold_inspect::route::{Pointed, Points, RouteModel, Solved};
use keyfold_sequence::pointer::beam::Task;
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Let a pointer network find the tour, the hull or the triangles of points, beside the best known
///
/// Networks that were trained to sort numbers, or on examples of your own, answer here too.
///
/// The networks that are part of the program learned from up to a dozen points; they read more, and
/// get worse with them. A network is no rival of a search for tours (LKH, OR-Tools): the best known
/// tour, found by exact or local search, is told beside its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lab route places.csv --svg tour.svg
  keyfold lab route places.csv --task hull
  keyfold lab route places.csv --task delaunay --beam 10 --json
  keyfold lab route places.csv --model trained")]
pub(super) struct RouteArgs {
    /// Rows of two numbers, or of as many as the model's points have (.csv, .tsv, .npy, .parquet, .safetensors)
    #[arg(value_name = "POINTS")]
    points: PathBuf,
    /// What is looked for [default: tour, or what the model was trained for]
    #[arg(long, value_name = "TASK")]
    task: Option<TaskArg>,
    /// A network of `keyfold train pointer-networks` [default: one that is part of the program]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Answers that are followed at once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    beam: u16,
    /// Let the network write what is no tour, hull or triangle, too
    #[arg(long)]
    no_constraints: bool,
    /// Columns of a table that are left out, by name or number from 1 (repeatable)
    #[arg(long, value_name = "COLUMN")]
    ignore: Vec<String>,
    /// File for a drawing of the answer
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskArg {
    /// The shortest way through all points and back
    Tour,
    /// The corners of the convex hull
    Hull,
    /// The triangles of the Delaunay triangulation
    Delaunay,
    /// Numbers in rising order; wants a model
    Sort,
}

impl TaskArg {
    fn task(self) -> Task {
        match self {
            Self::Tour => Task::Tour,
            Self::Hull => Task::Hull,
            Self::Delaunay => Task::Delaunay,
            Self::Sort => Task::Sort,
        }
    }
}

pub(super) fn run(args: &RouteArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let wanted = args.task.map(TaskArg::task);
    let model = match &args.model {
        Some(folder) => RouteModel::load(folder)?,
        None => RouteModel::builtin(wanted.unwrap_or(Task::Tour))?,
    };
    if let Some(task) = wanted
        && task != model.task
    {
        return Err(wrong_use(format!(
            "the model was trained for {} and not for {task}",
            model.task
        )));
    }
    let rules = !args.no_constraints;
    if matches!(model.task, Task::Sort | Task::Custom) {
        if args.svg.is_some() {
            return Err(wrong_use("--svg draws answers about points in a plane"));
        }
        let rows = read(
            &args.points,
            &args.ignore,
            model.network.config().input_size,
        )?;
        let pointed = model
            .point(&rows.concat(), args.beam.into(), rules)
            .with_context(|| args.points.display().to_string())?;
        return print_pointed(&rows, &model, &pointed, globals.json);
    }
    let points = read(&args.points, &args.ignore, 2)?;
    let points = points.iter().map(|row| [row[0], row[1]].map(f64::from));
    let points = Points::new(points.collect())?;
    let solved = model
        .solve(&points, args.beam.into(), rules, globals.seed)
        .with_context(|| args.points.display().to_string())?;
    if let Some(path) = &args.svg {
        let text = svg::draw(&points, model.task, &solved);
        atomic::write(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match globals.json {
        true => print_json(&points, &model, &solved)?,
        false => print(&points, &model, &solved)?,
    }
    Ok(Outcome::Done)
}

/// Rows of `width` numbers.
fn read(path: &Path, ignore: &[String], width: usize) -> anyhow::Result<Vec<Vec<f32>>> {
    let options = RowOptions {
        ignore: ignore.to_vec(),
        ..RowOptions::default()
    };
    let rows = read_rows(path, &options)?;
    if rows.width != width {
        let numbers = match width {
            1 => "one number".to_owned(),
            2 => "two numbers".to_owned(),
            width => format!("{width} numbers"),
        };
        return Err(wrong_use(format!(
            "{}: a point has {numbers}, and the rows have {}; --ignore leaves columns out",
            path.display(),
            rows.width
        )));
    }
    Ok(rows.iter().map(<[f32]>::to_vec).collect())
}

/// The answer of a network that sorts or was trained on examples.
fn print_pointed(
    all: &[Vec<f32>],
    model: &RouteModel,
    pointed: &Pointed,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    if json {
        let value = json!({
            "task": model.task.name(),
            "points": all.len(),
            "learned_from": model.points,
            "answer": rows(&pointed.answer),
            "best_known": pointed.truth.as_deref().map(rows),
            "log_probability": pointed.log_probability,
            "ended": pointed.ended,
            "valid": pointed.worth.map(|w| w.valid),
            "right": pointed.worth.map(|w| w.right),
        });
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    writeln!(out, "{} of {} points", model.task, all.len())?;
    for row in rows(&pointed.answer) {
        let numbers: Vec<String> = all[row - 1].iter().map(|x| format!("{x:>14.6}")).collect();
        writeln!(out, "{row:>6} {}", numbers.join(" "))?;
    }
    if let (Some(worth), Some(truth)) = (&pointed.worth, &pointed.truth) {
        let word = if worth.right { "right" } else { "wrong" };
        let exact: Vec<String> = rows(truth).iter().map(usize::to_string).collect();
        writeln!(out, "{:<12}{word}; exact: {}", "answer", exact.join(" "))?;
    }
    if !pointed.ended {
        writeln!(out, "{:<12}the network did not end its answer", "note")?;
    }
    let [_, most] = model.points;
    if all.len() > most {
        writeln!(
            out,
            "{:<12}the network learned from up to {most} points; with more it gets worse",
            "note"
        )?;
    }
    Ok(Outcome::Done)
}

/// Rows count from 1, as in the messages about files.
fn rows(places: &[usize]) -> Vec<usize> {
    places.iter().map(|place| place + 1).collect()
}

/// Of triangulations one list for each triangle, as the network wrote them.
fn answer(task: Task, places: &[usize]) -> serde_json::Value {
    match task {
        Task::Delaunay => {
            let triangles: Vec<_> = rows(places).chunks(3).map(<[usize]>::to_vec).collect();
            json!(triangles)
        }
        _ => json!(rows(places)),
    }
}

fn print_json(points: &Points, model: &RouteModel, solved: &Solved) -> anyhow::Result<()> {
    let mut value = json!({
        "task": model.task.name(),
        "points": points.len(),
        "coinciding": solved.twins,
        "learned_from": model.points,
        "answer": answer(model.task, &solved.answer),
        "best_known": answer(model.task, &solved.truth),
        "log_probability": solved.log_probability,
        "ended": solved.ended,
        "valid": solved.worth.valid,
        "right": solved.worth.right,
    });
    let share = solved.worth.share;
    match model.task {
        Task::Tour => {
            value["length"] = json!(tours::length(points, &solved.answer));
            value["best_known_length"] = json!(tours::length(points, &solved.truth));
            value["best_known_is_shortest"] = json!(is_exact(points, solved));
            value["longer_by"] = json!(share.map(|s| s - 1.0));
        }
        Task::Delaunay => value["triangle_share"] = json!(share),
        _ => value["area_share"] = json!(share),
    }
    writeln!(anstream::stdout(), "{value:#}")?;
    Ok(())
}

fn is_exact(points: &Points, solved: &Solved) -> bool {
    points.len() - solved.twins <= EXACT
}

fn print(points: &Points, model: &RouteModel, solved: &Solved) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    let task = model.task;
    writeln!(out, "{task} of {} points", points.len())?;
    match task {
        Task::Delaunay => {
            // The network may write a triangle twice.
            let mut shown = HashSet::new();
            for triangle in rows(&solved.answer).chunks(3) {
                let mut corners = triangle.to_vec();
                corners.sort_unstable();
                if shown.insert(corners) {
                    let corners: Vec<String> = triangle.iter().map(usize::to_string).collect();
                    writeln!(out, "{}", corners.join(" "))?;
                }
            }
        }
        _ => {
            for row in rows(&solved.answer) {
                let [x, y] = points.all()[row - 1];
                writeln!(out, "{row:>6} {x:>14.6} {y:>14.6}")?;
            }
        }
    }
    let worth = &solved.worth;
    match (task, worth.share) {
        (_, None) | (Task::Hull, Some(_)) if !worth.valid => {
            writeln!(out, "network     no valid {task}")?;
        }
        (_, None) => {}
        (Task::Tour, Some(share)) => {
            let best = match is_exact(points, solved) {
                true => "shortest",
                false => "best known",
            };
            writeln!(
                out,
                "{:<12}{:.6}",
                "length",
                tours::length(points, &solved.answer)
            )?;
            writeln!(out, "{best:<12}{:.6}", tours::length(points, &solved.truth))?;
            writeln!(out, "{:<12}{:.2} %", "longer by", 100.0 * (share - 1.0))?;
        }
        (Task::Delaunay, Some(share)) => {
            writeln!(
                out,
                "{:<12}{:.2} % of those that are right",
                "triangles",
                100.0 * share
            )?;
        }
        (_, Some(share)) => {
            writeln!(out, "{:<12}{:.2} % of the hull's", "area", 100.0 * share)?;
        }
    }
    if task != Task::Tour {
        let exact: Vec<String> = match task {
            Task::Delaunay => rows(&solved.truth)
                .chunks(3)
                .map(|t| format!("{}-{}-{}", t[0], t[1], t[2]))
                .collect(),
            _ => rows(&solved.truth).iter().map(usize::to_string).collect(),
        };
        let word = if worth.right { "right" } else { "wrong" };
        writeln!(out, "{:<12}{word}; exact: {}", "answer", exact.join(" "))?;
    }
    if solved.twins > 0 {
        let what = match task {
            Task::Tour => "they are visited with those",
            _ => "they are left out",
        };
        writeln!(
            out,
            "{:<12}{} points stand where others do; {what}",
            "coinciding", solved.twins
        )?;
    }
    let [_, most] = model.points;
    if points.len() - solved.twins > most {
        writeln!(
            out,
            "{:<12}the network learned from up to {most} points; with more it gets worse",
            "note"
        )?;
    }
    if task == Task::Tour {
        writeln!(
            out,
            "{:<12}for real tours a search is better (LKH, OR-Tools); the best known is one of ours",
            "note"
        )?;
    }
    Ok(())
}
