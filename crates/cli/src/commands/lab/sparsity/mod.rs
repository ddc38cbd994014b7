//! `keyfold lab sparsity`.

mod svg;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use keyfold_core::{ModelFolder, atomic};
use keyfold_sequence::hax::Source;
use keyfold_sequence::recall::RecallText;
use keyfold_text::hax::sparsity::{self, LayerSparsity, Share, Sparsity};
use serde::Deserialize;
use serde_json::json;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};

/// Say what the sparse attention of a HAX model looks at
///
/// By layer: how many keys a position has and from which source, how far behind and in which part
/// of the text they stand, and, where texts of recall are asked, how often the place where the
/// answer was told is among the keys. Without --data the texts are made up, of the task that the
/// model learned.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold train hax --out recall --recipe recipes/hax-small.toml
  keyfold lab sparsity recall --svg keys.svg
  keyfold lab recall --texts 50 --out texts.jsonl
  keyfold lab sparsity recall --data texts.jsonl --json")]
pub(super) struct SparsityArgs {
    /// A folder that `keyfold train hax` wrote
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Texts: JSON Lines of `keyfold lab recall`, or a text for models of bytes
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How many texts are read
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    texts: u32,
    /// Bytes of a window of a text
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    length: u32,
    /// File for a drawing of the keys of the first text
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A line of `keyfold lab recall`.
#[derive(Deserialize)]
struct Line {
    tokens: Vec<u32>,
    #[serde(default)]
    asked: Vec<(u32, u32)>,
    #[serde(default)]
    told: Vec<u32>,
}

pub(super) fn run(args: &SparsityArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let folder = ModelFolder::find(&args.model.to_string_lossy())?;
    let texts = match &args.data {
        Some(path) => read(path, args)?,
        None => sparsity::made_up(&folder, args.texts.into(), globals.seed)?,
    };
    let model = sparsity::load(&folder)?;
    let Some(found) = Sparsity::of(&model, &texts)? else {
        return Err(wrong_use(format!(
            "{}: the model has no attention beside its scan",
            args.model.display()
        )));
    };
    if let (Some(path), Some(text)) = (&args.svg, texts.first()) {
        let drawn = svg::draw(&sparsity::hits(&model, text)?, text);
        atomic::write(path, drawn.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = anstream::stdout().lock();
    if globals.json {
        let whole = json!({"texts": texts.len(), "layers": found.layers});
        writeln!(out, "{whole:#}")?;
        return Ok(Outcome::Done);
    }
    for (number, layer) in found.layers.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        print(&mut out, number, layer, texts.len())?;
    }
    Ok(Outcome::Done)
}

fn read(path: &Path, args: &SparsityArgs) -> anyhow::Result<Vec<RecallText>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let all = String::from_utf8_lossy(&bytes);
    let texts = if path.extension().is_some_and(|e| e == "jsonl") {
        let lines = all.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let texts = lines.take(args.texts as usize).map(|(number, line)| {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
            Ok(RecallText {
                tokens: line.tokens,
                asked: line.asked,
                told: line.told,
            })
        });
        texts.collect::<anyhow::Result<Vec<_>>>()?
    } else {
        sparsity::windows(&all, args.length as usize, args.texts as usize)
    };
    match texts.iter().any(|text| !text.tokens.is_empty()) {
        true => Ok(texts),
        false => Err(wrong_use(format!("{}: there is no text", path.display()))),
    }
}

fn print(
    out: &mut impl Write,
    number: usize,
    layer: &LayerSparsity,
    texts: usize,
) -> std::io::Result<()> {
    writeln!(
        out,
        "layer {number}: {} positions of {texts} texts",
        layer.positions
    )?;
    writeln!(
        out,
        "{:<12}{:.1} a position, at most {}; {:.1} % of all that stand before",
        "keys",
        layer.keys,
        layer.most,
        100.0 * layer.density
    )?;
    if layer.without > 0 {
        writeln!(out, "{:<12}{} positions", "no key", layer.without)?;
    }
    if let Some(answers) = layer.answers {
        writeln!(
            out,
            "{:<12}{:.1} % of {} questions have the place of the answer among their keys, and give it {:.1} % of their attention",
            "answers",
            100.0 * answers.found,
            answers.asked,
            100.0 * answers.attention
        )?;
    }
    writeln!(
        out,
        "{:<16}{:>8} {:>12}  {}",
        "source",
        "keys",
        "attention, %",
        if layer.answers.is_some() {
            "answers, %"
        } else {
            ""
        }
    )?;
    for of in &layer.sources {
        let answers = of.answers.map(|a| format!("{:>10.1}", 100.0 * a));
        writeln!(
            out,
            "{:<16}{:>8.1} {:>12.1}  {}",
            name(of.source),
            of.keys,
            100.0 * of.attention,
            answers.unwrap_or_default()
        )?;
    }
    shares(out, "behind", &layer.distances, |at| {
        let next = layer.distances.get(at + 1).map(|s| s.from - 1);
        let from = layer.distances[at].from;
        match next {
            Some(last) if last > from => format!("{from} to {last}"),
            Some(_) => from.to_string(),
            None => format!("{from} and more"),
        }
    })?;
    let parts = layer.parts.len();
    shares(out, "part of the text", &layer.parts, |at| {
        format!("{} of {parts}", at + 1)
    })
}

fn shares(
    out: &mut impl Write,
    title: &str,
    shares: &[Share],
    name: impl Fn(usize) -> String,
) -> std::io::Result<()> {
    writeln!(out, "{title:<16}{:>8} {:>12}", "keys, %", "attention, %")?;
    for (at, share) in shares.iter().enumerate() {
        writeln!(
            out,
            "{:<16}{:>8.1} {:>12.1}",
            name(at),
            100.0 * share.keys,
            100.0 * share.attention
        )?;
    }
    Ok(())
}

fn name(source: Source) -> &'static str {
    match source {
        Source::SignBinLsh => "hashes",
        Source::KeySelection => "selected keys",
        Source::SlidingWindow => "sliding window",
        Source::Sink => "first ones",
        Source::Dilated => "dilated",
        Source::Full => "all",
    }
}
