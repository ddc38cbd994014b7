//! `keyfold image classify`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::ModelFolder;
use keyfold_vision::Picture;
use keyfold_vision::vim2::Classifier;
use serde_json::{Map, Value, json};

use crate::args::Globals;
use crate::failure::Outcome;
use crate::interrupt;
use crate::output::terminal::printable;

/// Tell the class of each picture
#[derive(Debug, clap::Args)]
pub(super) struct ClassifyArgs {
    /// Pictures (PNG or JPEG)
    #[arg(value_name = "PICTURE", required = true)]
    pictures: Vec<PathBuf>,
    /// A folder of `keyfold train vim2`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Classes that are told of each picture (--json tells all)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
}

/// Pictures that go through the network together.
const TOGETHER: usize = 16;

pub(super) fn run(args: &ClassifyArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let folder = ModelFolder::find(&args.model.to_string_lossy())?;
    let model = Classifier::load(&folder)?;
    let side = model.model().config().image_size;
    let mut out = anstream::stdout().lock();
    let mut values = Vec::new();
    for paths in args.pictures.chunks(TOGETHER) {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        let pictures = paths.iter().map(|path| Picture::read(path, side));
        let pictures: Vec<Picture> = pictures.collect::<Result<_, _>>()?;
        let shown: Vec<&Picture> = pictures.iter().collect();
        for (path, p) in paths.iter().zip(model.probabilities(&shown)) {
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
            let best = &order[..order.len().min(args.top.into())];
            if globals.json {
                let all = model.classes().iter().zip(&p);
                let all: Map<String, Value> =
                    all.map(|(class, p)| (class.clone(), json!(p))).collect();
                values.push(json!({
                    "path": path.display().to_string(),
                    "class": model.classes()[order[0]],
                    "probabilities": all,
                }));
                continue;
            }
            let told: Vec<String> = best
                .iter()
                .map(|&class| format!("{} {:.3}", printable(&model.classes()[class]), p[class]))
                .collect();
            let path = path.display().to_string();
            writeln!(out, "{}  {}", printable(&path), told.join("  "))?;
        }
    }
    if globals.json {
        writeln!(out, "{:#}", Value::Array(values))?;
    }
    Ok(Outcome::Done)
}
