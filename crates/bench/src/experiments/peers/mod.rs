//! Search by token vectors beside other engines, from the same vectors, in one run.
//!
//! Every engine is a process of its own, Keyfold too, and reads the vectors from
//! files (see [`vectors`]). `COMMAND build VECTORS INDEX` makes an index, `COMMAND
//! search VECTORS INDEX [SETTING]` asks every query with several settings, or with that one.
//! Both print JSON lines: `{"seconds", "cpu_seconds", "most_held"}`, and for every setting
//! `{"setting", "milliseconds": [..], "hits": [[..]], "most_held", "not_mapped"}`. The setting
//! that an engine is shown with is asked again by a new process, whose memory is that of
//! this setting alone.
//!
//! Engines are compared at equal quality: each with its fastest setting that finds
//! at least 95 % of the ten documents of the greatest MaxSim.

mod made_up;
mod ours;
mod vectors;

use std::path::Path;
use std::process::{Command, Stdio};

use keyfold_core::Progress;
use keyfold_search::codebook::Bits;
use serde_json::{Value, json};

pub use ours::peer;

use super::muvera::sets;
use crate::plot;
use crate::quality::quantile;
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale, store};
use vectors::{ItemReader, ItemWriter};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "peers",
    about: "token vectors in other engines (--peer): build time, bytes, memory, latency at equal recall",
    run,
};

/// Wanted neighbours.
const BEST: usize = 10;
/// Engines are compared where they find this share of them.
const QUALITY: f64 = 0.95;
/// What is aimed at, as a share of a peer's.
const LATENCY: f64 = 0.5;
const BUILD: f64 = 2.0 / 3.0;

/// An engine, and how it is started.
pub(super) struct Engine {
    pub(super) name: String,
    command: Vec<String>,
    is_peer: bool,
}

impl Engine {
    fn ours(bits: Bits) -> Result<Self, BenchError> {
        let program = std::env::current_exe()?;
        Ok(Self {
            name: format!("keyfold, {bits} bits"),
            command: vec![
                program.to_string_lossy().into_owned(),
                "__peer".to_owned(),
                bits.to_string(),
            ],
            is_peer: false,
        })
    }

    /// Of `NAME=COMMAND`.
    pub(super) fn parse(text: &str) -> Result<Self, BenchError> {
        let (name, command) = text.split_once('=').unwrap_or_default();
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if name.is_empty() || command.is_empty() {
            let what =
                "a peer is named and started by NAME=COMMAND, such as next-plaid=./peer-next-plaid";
            return Err(BenchError::data(text, what));
        }
        let name = name.to_owned();
        Ok(Self {
            name,
            command,
            is_peer: true,
        })
    }

    /// The JSON lines that it prints.
    pub(super) fn run(
        &self,
        task: &str,
        vectors: &Path,
        index: &Path,
    ) -> Result<Vec<Value>, BenchError> {
        self.run_with(task, vectors, index, None)
    }

    /// The same of one setting.
    fn run_with(
        &self,
        task: &str,
        vectors: &Path,
        index: &Path,
        setting: Option<&str>,
    ) -> Result<Vec<Value>, BenchError> {
        let failed =
            |what: String| BenchError::data(self.command.join(" "), format!("as a peer it {what}"));
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .arg(task)
            .args([vectors, index])
            .args(setting)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| failed(format!("did not start: {e}")))?;
        if !output.status.success() {
            return Err(failed(format!("ended with {} at '{task}'", output.status)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().filter(|l| l.starts_with('{'));
        let lines: Vec<Value> = lines
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|e| failed(format!("printed what is no JSON: {e}")))?;
        if lines.is_empty() {
            return Err(failed(format!("printed no result at '{task}'")));
        }
        Ok(lines)
    }
}

/// What `build` prints.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Built {
    seconds: f64,
    cpu_seconds: Option<f64>,
    most_held: Option<u64>,
}

/// What `search` prints for a setting.
#[derive(serde::Deserialize)]
struct Searched {
    setting: String,
    milliseconds: Vec<f64>,
    hits: Vec<Vec<u64>>,
    most_held: Option<u64>,
    not_mapped: Option<u64>,
    stages: Option<[f64; 4]>,
}

/// A setting of an engine, measured.
#[derive(Debug, Clone, serde::Serialize)]
struct Point {
    setting: String,
    recall: f64,
    p50: f64,
    p95: f64,
    most_held: Option<u64>,
    not_mapped: Option<u64>,
    /// Medians of the stages of a search by Keyfold, in milliseconds: centroids, probing,
    /// estimates, exact scores.
    stages: Option<[f64; 4]>,
}

/// An engine, measured.
#[derive(Debug, Clone, serde::Serialize)]
struct Measured {
    name: String,
    #[serde(skip)]
    is_peer: bool,
    built: Built,
    bytes_per_token: f64,
    points: Vec<Point>,
}

impl Measured {
    fn chosen(&self) -> Option<&Point> {
        chosen(&self.points)
    }
}

/// The fastest setting that is good enough, or nearly as good as the best one where
/// none is.
fn chosen(points: &[Point]) -> Option<&Point> {
    let best = points.iter().map(|p| p.recall).fold(0.0, f64::max);
    let wanted = QUALITY.min(best - 0.005);
    let good = points.iter().filter(|p| p.recall >= wanted);
    good.min_by(|a, b| a.p50.total_cmp(&b.p50))
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (documents, queries) = match options.scale {
        Scale::Smoke => (400, 10),
        Scale::Small => (10_000, 100),
        Scale::Full => (100_000, 100),
    };
    let mut engines = vec![Engine::ours(Bits::Four)?, Engine::ours(Bits::Eight)?];
    for peer in &options.peers {
        engines.push(Engine::parse(peer)?);
    }
    let mut tables = Vec::new();
    let mut findings = Vec::new();
    let mut values = Vec::new();
    let mut bars = Vec::new();

    let mut spreads = Table::new(
        "How the vectors lie: mean cosine of a token with",
        &[
            "vectors",
            "documents",
            "tokens",
            "nearest elsewhere",
            "another of its document",
            "any other",
            "length of the mean",
        ],
    );
    let mut one =
        |title: &str, make: &dyn Fn(&Path) -> Result<(), BenchError>| -> Result<(), BenchError> {
            let folder = tempfile::tempdir()?;
            make(folder.path())?;
            let spread = vectors::spread(folder.path(), options.seed)?;
            spreads.row([
                title.to_owned(),
                spread.documents.to_string(),
                spread.tokens.to_string(),
                format!("{:.3}", spread.nearest),
                format!("{:.3}", spread.within),
                format!("{:.3}", spread.any),
                format!("{:.3}", spread.mean),
            ]);
            let measured = measure(&engines, folder.path(), spread.tokens, progress)?;
            tables.push(table(title, &measured));
            tables.push(stages(title, &measured));
            findings.extend(compare(title, &measured));
            for engine in &measured {
                if let Some(point) = engine.chosen() {
                    bars.push((format!("{}, {title}", engine.name), point.p50));
                }
            }
            values.push(json!({"set": title, "spread": spread, "engines": measured}));
            Ok(())
        };
    one("made-up vectors", &|folder| {
        made_up::write(folder, documents, queries, options.seed, progress)
    })?;
    if options.data.is_some() {
        one("the collection", &|folder| {
            write_collection(folder, options, progress)
        })?;
    }
    tables.insert(0, spreads);
    if options.peers.is_empty() {
        findings.push(
            "No peer was named, so Keyfold stands alone; see parity/README.md for peers."
                .to_owned(),
        );
    }
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({ "sets": values, "threads": options.thread_count() }),
        svg: plot::bars(
            "A query at recall@10 of 0.95",
            "milliseconds, p50",
            &bars,
            None,
        )?,
    })
}

/// Documents and queries of the collection in the vectors of the model.
fn write_collection(
    folder: &Path,
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<(), BenchError> {
    let set = sets::of_collection(options, progress)?;
    for (name, items) in [("documents", &set.documents), ("queries", &set.queries)] {
        let mut writer = ItemWriter::create(folder, name, set.dim)?;
        for item in items {
            writer.item(item)?;
        }
        writer.finish()?;
    }
    Ok(())
}

/// Builds and asks every engine.
fn measure(
    engines: &[Engine],
    vectors: &Path,
    tokens: usize,
    progress: &dyn Progress,
) -> Result<Vec<Measured>, BenchError> {
    let queries = ItemReader::open(vectors, "queries")?.all()?;
    let exact = vectors::exact(vectors, &queries, BEST, progress)?;
    progress.start("engines", "steps", Some(2 * engines.len() as u64));
    let mut all = Vec::new();
    for engine in engines {
        let measured = measure_one(engine, vectors, tokens, &exact, progress);
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        match measured {
            Ok(measured) => all.extend(measured),
            // What the others did shall not be lost with it.
            Err(e) if engine.is_peer => progress.note(&e.to_string()),
            Err(e) => return Err(e),
        }
    }
    progress.finish();
    Ok(all)
}

/// Builds and asks an engine; Keyfold in both ways that it reaches vectors.
fn measure_one(
    engine: &Engine,
    vectors: &Path,
    tokens: usize,
    exact: &[Vec<u64>],
    progress: &dyn Progress,
) -> Result<Vec<Measured>, BenchError> {
    let index = tempfile::tempdir()?;
    let mut built = engine.run("build", vectors, index.path())?;
    let built: Built = parse(engine, built.remove(0))?;
    progress.advance(1);
    let bytes_per_token = store::size_of(index.path()) as f64 / tokens.max(1) as f64;
    let mut ways = vec![(engine.name.clone(), ours::SEARCH)];
    if !engine.is_peer {
        ways.push((format!("{}, low memory", engine.name), ours::LOW_MEMORY));
    }
    let mut all = Vec::new();
    for (name, task) in ways {
        all.push(Measured {
            name,
            is_peer: engine.is_peer,
            built: built.clone(),
            bytes_per_token,
            points: asked(engine, task, vectors, index.path(), exact)?,
        });
    }
    progress.advance(1);
    Ok(all)
}

/// Asks all queries with all settings. The memory of the one to be shown is that of a
/// process that asks with it alone.
fn asked(
    engine: &Engine,
    task: &str,
    vectors: &Path,
    index: &Path,
    exact: &[Vec<u64>],
) -> Result<Vec<Point>, BenchError> {
    let mut points = Vec::new();
    for line in engine.run(task, vectors, index)? {
        let searched: Searched = parse(engine, line)?;
        // A query without an answer would cost no time.
        let answered = searched.milliseconds.len().min(searched.hits.len());
        if answered < exact.len() {
            return Err(BenchError::data(
                engine.command.join(" "),
                format!(
                    "as a peer it answered {answered} of {} queries with '{}'",
                    exact.len(),
                    searched.setting
                ),
            ));
        }
        points.push(point(searched, exact));
    }
    if let Some(chosen) = chosen(&points).map(|p| p.setting.clone()) {
        let lines = engine.run_with(task, vectors, index, Some(&chosen))?;
        let alone = of_setting(engine, lines, &chosen)?;
        let chosen = points.iter_mut().filter(|p| p.setting == chosen);
        chosen.for_each(|p| (p.most_held, p.not_mapped) = (alone.most_held, alone.not_mapped));
    }
    Ok(points)
}

fn parse<T: serde::de::DeserializeOwned>(engine: &Engine, line: Value) -> Result<T, BenchError> {
    serde_json::from_value(line).map_err(|e| {
        BenchError::data(
            engine.command.join(" "),
            format!("as a peer it printed a line without what is needed: {e}"),
        )
    })
}

/// What an engine printed of a setting.
fn of_setting(engine: &Engine, lines: Vec<Value>, setting: &str) -> Result<Searched, BenchError> {
    for line in lines {
        let found: Searched = parse(engine, line)?;
        if found.setting == setting {
            return Ok(found);
        }
    }
    Err(BenchError::data(
        engine.command.join(" "),
        format!("as a peer it printed no result of '{setting}' when asked for that setting alone"),
    ))
}

fn point(searched: Searched, exact: &[Vec<u64>]) -> Point {
    let pairs = searched.hits.iter().zip(exact);
    let found: usize = pairs
        .map(|(hits, best)| best.iter().filter(|id| hits.contains(id)).count())
        .sum();
    let wanted: usize = exact.iter().map(Vec::len).sum();
    Point {
        recall: found as f64 / wanted.max(1) as f64,
        p50: quantile(&searched.milliseconds, 0.5),
        p95: quantile(&searched.milliseconds, 0.95),
        setting: searched.setting,
        most_held: searched.most_held,
        not_mapped: searched.not_mapped,
        stages: searched.stages,
    }
}

/// Where the time of Keyfold's queries goes.
fn stages(title: &str, measured: &[Measured]) -> Table {
    let mut table = Table::new(
        &format!("{title}: milliseconds of each stage of a query, medians"),
        &[
            "engine, setting",
            "centroids",
            "probing",
            "estimates",
            "exact scores",
        ],
    );
    for engine in measured {
        let shown = engine.points.first().into_iter().chain(engine.chosen());
        for (point, stages) in shown.filter_map(|p| p.stages.map(|s| (p, s))) {
            let name = format!("{}, {}", engine.name, point.setting);
            let [centroids, probing, estimates, exact] = stages.map(|t| format!("{t:.2}"));
            table.row([name, centroids, probing, estimates, exact]);
        }
    }
    table
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.0}", b as f64 / 1e6))
}

fn table(title: &str, measured: &[Measured]) -> Table {
    let mut table = Table::new(
        title,
        &[
            "engine, setting",
            "recall@10",
            "p50, ms",
            "p95, ms",
            "resident, MB",
            "of it not mapped",
            "build, s",
            "build, s of CPU",
            "build, MB",
            "bytes per token",
        ],
    );
    for engine in measured {
        let by_default = engine.points.first();
        for (point, first) in by_default
            .map(|p| (p, true))
            .into_iter()
            .chain(engine.chosen().map(|p| (p, false)))
        {
            let once = |text: String| if first { text } else { String::new() };
            table.row([
                format!("{}, {}", engine.name, point.setting),
                format!("{:.3}", point.recall),
                format!("{:.2}", point.p50),
                format!("{:.2}", point.p95),
                megabytes(point.most_held),
                megabytes(point.not_mapped),
                once(format!("{:.1}", engine.built.seconds)),
                once(
                    engine
                        .built
                        .cpu_seconds
                        .map_or_else(|| "-".to_owned(), |s| format!("{s:.1}")),
                ),
                once(megabytes(engine.built.most_held)),
                once(format!("{:.1}", engine.bytes_per_token)),
            ]);
        }
    }
    table
}

/// How each engine of ours stands to each of the others.
fn compare(title: &str, measured: &[Measured]) -> Vec<String> {
    let (others, own): (Vec<_>, Vec<_>) = measured.iter().partition(|m| m.is_peer);
    let pairs = own
        .iter()
        .flat_map(|ours| others.iter().map(move |other| (*ours, *other)));
    let ratio = |a: f64, b: f64| a / b.max(1e-9);
    let sentence = |(ours, other): (&Measured, &Measured)| -> Option<String> {
        let (mine, theirs) = (ours.chosen()?, other.chosen()?);
        let latency = ratio(mine.p50, theirs.p50);
        let build = ratio(ours.built.seconds, other.built.seconds);
        let bytes = ratio(ours.bytes_per_token, other.bytes_per_token);
        let memory = match (mine.most_held, theirs.most_held) {
            (Some(a), Some(b)) => format!(
                "resident memory {:.2} (aim: below 1, {})",
                ratio(a as f64, b as f64),
                reached(a < b)
            ),
            _ => "resident memory unknown".to_owned(),
        };
        Some(format!(
            "{title}: {}'s share of {}'s at recall@10 {:.3} and {:.3}: p50 {latency:.2} (aim: at most {LATENCY}, {}), \
             build time {build:.2} (aim: at most {BUILD:.2}, {}), bytes per token {bytes:.2} (aim: at most 1, {}), {memory}.",
            ours.name,
            other.name,
            mine.recall,
            theirs.recall,
            reached(latency <= LATENCY && mine.recall >= QUALITY),
            reached(build <= BUILD),
            reached(bytes <= 1.0),
        ))
    };
    pairs.filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(points: &[(f64, f64)]) -> Measured {
        let point = |&(recall, p50): &(f64, f64)| Point {
            setting: format!("{recall}"),
            recall,
            p50,
            p95: p50,
            most_held: None,
            not_mapped: None,
            stages: None,
        };
        Measured {
            name: "an engine".into(),
            is_peer: false,
            built: Built {
                seconds: 1.0,
                cpu_seconds: None,
                most_held: None,
            },
            bytes_per_token: 1.0,
            points: points.iter().map(point).collect(),
        }
    }

    #[test]
    fn engines_are_compared_by_their_fastest_setting_that_is_good_enough() {
        let good = engine(&[(0.99, 9.0), (0.96, 4.0), (0.95, 5.0), (0.5, 1.0)]);
        assert_eq!(good.chosen().unwrap().p50, 4.0);
        let mut poor = engine(&[(0.5, 1.0), (0.9, 7.0)]);
        poor.is_peer = true;
        assert_eq!(poor.chosen().unwrap().recall, 0.9);
        let lines = compare("a set", &[good, poor]);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].contains("p50 0.57") && lines[0].contains("missed"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_peer_has_a_name_and_a_command() {
        let peer = Engine::parse("next-plaid=/bin/peer --fast").unwrap();
        assert_eq!((&*peer.name, peer.command.len()), ("next-plaid", 2));
        for bad in ["", "next-plaid", "=x", "name="] {
            assert!(Engine::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_setting_is_found_by_its_name() {
        let peer = Engine::parse("a=b").unwrap();
        let line = |setting: &str, held: u64| json!({"setting": setting, "milliseconds": [1.0], "hits": [[1]], "most_held": held});
        let lines = vec![line("default", 9), line("probes 4", 7)];
        let found = of_setting(&peer, lines.clone(), "probes 4").unwrap();
        assert_eq!(found.most_held, Some(7));
        let wrong = of_setting(&peer, lines, "probes 8").err().unwrap();
        assert!(wrong.to_string().contains("'probes 8'"), "{wrong}");
    }

    #[test]
    fn a_peer_that_fails_or_says_nothing_is_an_error_that_names_it() {
        let here = Path::new(".");
        for (peer, what) in [
            ("a=no-such-program", "did not start"),
            ("a=false", "ended with"),
            ("a=true", "no result"),
            ("a=echo {", "no JSON"),
        ] {
            let e = Engine::parse(peer)
                .unwrap()
                .run("build", here, here)
                .unwrap_err();
            assert!(e.to_string().contains(what), "{e}");
        }
    }
}
