//! MUVERA: how many candidates fixed dimensional encodings need where the
//! per-token heuristic needs so many, and what they cost.
//!
//! *Per-token heuristic*: for every query vector the `t` nearest token vectors of
//! all documents, and the documents that these are of; `t` grows. *Fixed
//! dimensional encodings* rank all documents; the first `n` are candidates. What
//! is to be found is what MaxSim over all documents puts first.
//!
//! Three sets of token vectors: topics, concepts and noise made up with a seed;
//! the same with a common part in all vectors, as most encoders have it; and the
//! passages and queries of a collection in the encoder's vectors (`--data`; see
//! the experiment `search` for its files).
//!
//! The made-up sets of several seeds stand beside the specification's numbers.
//!
//! Then the whole way in a store, beside other ways to find candidates, and what
//! encoding and scanning cost.

pub(super) mod sets;
mod specification;
mod ways;

use keyfold_core::Progress;
use keyfold_kernels::{MaxSim, PQ_BLOCK, ProductQuantizer, matmul_nt, top_k};
use keyfold_search::candidates::fde::{Choice, Fde, FdeConfig, Projection};
use serde_json::{Value, json};

use crate::report::{Report, Table, reached};
use crate::timing::shortest;
use crate::{BenchError, BenchOptions, Experiment, Scale, plot};
use sets::Set;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "muvera",
    about: "fixed dimensional encodings: recall against candidates beside the per-token heuristic",
    run,
};

/// The recall at which candidates are counted.
const RECALL: f64 = 0.94;
/// Numbers of candidates that tables show.
const SHOWN: [usize; 5] = [10, 25, 50, 100, 200];
/// Nearest tokens that the heuristic takes for each query vector.
const TOKENS: [usize; 12] = [1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560];

/// Share of what is to be found among the first candidates, by their number.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// The least number of candidates with at least that recall, linear between
    /// points.
    fn candidates(&self, recall: f64) -> Option<f64> {
        let at = self.points.iter().position(|p| p.1 >= recall)?;
        let (x, y) = self.points[at];
        let Some(&(x0, y0)) = at.checked_sub(1).map(|i| &self.points[i]) else {
            return Some(x);
        };
        Some(x0 + (x - x0) * (recall - y0) / (y - y0).max(1e-12))
    }

    /// The recall at a number of candidates, linear between points.
    fn between(&self, candidates: usize) -> f64 {
        let n = candidates as f64;
        let at = self.points.iter().position(|p| p.0 >= n);
        match at.map(|i| (i, self.points[i])) {
            None => self.points.last().map_or(0.0, |p| p.1),
            Some((0, (_, y))) => y,
            Some((i, (x, y))) => {
                let (x0, y0) = self.points[i - 1];
                y0 + (y - y0) * (n - x0) / (x - x0)
            }
        }
    }

    fn recall(&self, candidates: usize) -> f64 {
        let within = self.points.iter().take_while(|p| p.0 <= candidates as f64);
        within.last().map_or(0.0, |p| p.1)
    }
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let sets = [
        sets::made_up(options, 0.0),
        sets::made_up(options, 2.0),
        sets::of_collection(options, progress)?,
    ];
    let mut tables = Vec::new();
    let mut findings = Vec::new();
    let mut values = Vec::new();
    let mut plotted = Vec::new();
    for set in &sets {
        progress.start(&set.name, "methods", None);
        let wanted = exact(set, options.thread_count());
        let mut curves = vec![per_token(set, &wanted), pooled(set, &wanted)];
        for way in ways(options.scale) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            curves.push(way.curve(set, &wanted, options)?);
            progress.advance(1);
        }
        progress.finish();
        tables.push(table(set, &curves));
        findings.extend(compare(set, &curves));
        values.push(json!({
            "set": set.name, "documents": set.documents.len(), "queries": set.queries.len(),
            "dim": set.dim, "tokens": set.tokens(), "find_first": set.find,
            "mean_norm": keyfold_kernels::norm(&set.mean()),
            "curves": curves.iter().map(Curve::to_json).collect::<Vec<_>>(),
        }));
        let shown = ["per-token heuristic", "mean vector", "(20,5,16)"];
        let lines = curves.iter().filter(|c| shown.contains(&&*c.name));
        plotted.extend(lines.map(|c| (format!("{}: {}", set.short, c.name), c.points.clone())));
    }
    let (beside, said, of_specification) = specification::beside(options)?;
    tables.extend(beside);
    findings.extend(said);
    let mut stores = Vec::new();
    for set in [&sets::many_made_up(options), &sets[2]] {
        let (table, of_store) = ways::compare(set, options, progress)?;
        tables.push(table);
        stores.push(of_store);
    }
    let (speed, fastest, of_speed) = speed(options)?;
    tables.push(speed);
    findings.push(format!(
        "Encoding a document of 40 vectors of 64 numbers by (20,5,16): {fastest:.4} ms on one core; aim: under 0.1 ms, {}.",
        reached(fastest < 0.1)
    ));
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({
            "sets": values, "specification": of_specification, "stores": stores,
            "speed": of_speed,
        }),
        svg: plot::lines(
            "What is found among the candidates",
            "candidates",
            "recall",
            &plotted,
        )?,
    })
}

impl Curve {
    fn to_json(&self) -> Value {
        json!({
            "method": self.name,
            "candidates_at_recall": self.candidates(RECALL),
            "points": self.points,
        })
    }
}

/// For every query the documents that MaxSim puts first.
fn exact(set: &Set, threads: usize) -> Vec<Vec<usize>> {
    let of_query = |query: &Vec<f32>| {
        let mut scorer = MaxSim::new(query, set.dim);
        let scores: Vec<f32> = set.documents.iter().map(|d| scorer.score(d)).collect();
        let best = top_k(&scores, set.find);
        best.into_iter().map(|(_, i)| i as usize).collect()
    };
    let part = set.queries.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts = set.queries.chunks(part);
        let running: Vec<_> = parts
            .map(|queries| scope.spawn(|| queries.iter().map(of_query).collect::<Vec<_>>()))
            .collect();
        let done = running
            .into_iter()
            .flat_map(|t| t.join().unwrap_or_default());
        done.collect()
    })
}

/// The curve of methods that rank all documents.
fn of_rankings(
    name: String,
    set: &Set,
    wanted: &[Vec<usize>],
    scores: impl Fn(&[f32]) -> Vec<f32>,
) -> Curve {
    let n = set.documents.len();
    // How many are found at each rank.
    let mut found = vec![0u32; n + 1];
    for (query, wanted) in set.queries.iter().zip(wanted) {
        let scores = scores(query);
        for &w in wanted {
            let before = |&(i, &s): &(usize, &f32)| s > scores[w] || (s == scores[w] && i < w);
            found[1 + scores.iter().enumerate().filter(before).count()] += 1;
        }
    }
    let all: usize = wanted.iter().map(Vec::len).sum();
    let mut sum = 0;
    let mut points = Vec::new();
    for (rank, found) in found.into_iter().enumerate().skip(1) {
        sum += found;
        if found > 0 || rank == 1 || rank == n || SHOWN.contains(&rank) {
            points.push((rank as f64, f64::from(sum) / all as f64));
        }
    }
    Curve { name, points }
}

fn per_token(set: &Set, wanted: &[Vec<usize>]) -> Curve {
    let rows: Vec<f32> = set.documents.concat();
    let dim = set.dim;
    let mut of_row = Vec::new();
    for (i, d) in set.documents.iter().enumerate() {
        of_row.resize(of_row.len() + d.len() / dim, i);
    }
    let mut sums = [(0usize, 0usize); TOKENS.len()];
    for (query, wanted) in set.queries.iter().zip(wanted) {
        let nq = query.len() / dim;
        let mut scores = vec![0.0; nq * of_row.len()];
        matmul_nt(&mut scores, query, &rows, nq, of_row.len(), dim, 1);
        let nearest: Vec<Vec<(f32, u32)>> = scores
            .chunks_exact(of_row.len())
            .map(|s| top_k(s, TOKENS[TOKENS.len() - 1]))
            .collect();
        for (t, sums) in TOKENS.iter().zip(&mut sums) {
            let mut candidates: Vec<usize> = nearest
                .iter()
                .flat_map(|n| n.iter().take(*t).map(|(_, row)| of_row[*row as usize]))
                .collect();
            candidates.sort_unstable();
            candidates.dedup();
            sums.0 += candidates.len();
            sums.1 += wanted
                .iter()
                .filter(|w| candidates.binary_search(w).is_ok())
                .count();
        }
    }
    let all: usize = wanted.iter().map(Vec::len).sum();
    let point = |(candidates, found)| {
        (
            candidates as f64 / set.queries.len().max(1) as f64,
            found as f64 / all.max(1) as f64,
        )
    };
    Curve {
        name: "per-token heuristic".to_owned(),
        points: sums.into_iter().map(point).collect(),
    }
}

/// One mean vector for each document and query.
fn pooled(set: &Set, wanted: &[Vec<usize>]) -> Curve {
    let mean = |rows: &[f32]| {
        let mut mean = vec![0.0; set.dim];
        rows.chunks_exact(set.dim)
            .for_each(|r| keyfold_kernels::add_assign(&mut mean, r));
        keyfold_kernels::normalize_rows(&mut mean, set.dim);
        mean
    };
    let documents: Vec<Vec<f32>> = set.documents.iter().map(|d| mean(d)).collect();
    of_rankings("mean vector".to_owned(), set, wanted, |query| {
        let query = mean(query);
        documents
            .iter()
            .map(|d| keyfold_kernels::dot(&query, d))
            .collect()
    })
}

/// A way to encode.
struct Way {
    config: FdeConfig,
    center: Choice,
    /// Bits and coordinates of a group.
    coded: Option<(u32, usize)>,
}

fn ways(scale: Scale) -> Vec<Way> {
    let config = |r, k, p| FdeConfig {
        num_repetitions: r,
        num_simhash_projections: k,
        projection_dimension: p,
        ..FdeConfig::default()
    };
    let way = |config, center, coded| Way {
        config,
        center,
        coded,
    };
    let paper = || config(20, 5, 16);
    let filled = FdeConfig {
        fill_empty_partitions: true,
        ..paper()
    };
    let auto = Choice::Auto;
    let mut all = vec![
        way(paper(), auto, None),
        way(paper(), auto, Some((4, 4))),
        way(paper(), Choice::Off, None),
        way(paper(), Choice::On, None),
    ];
    if scale != Scale::Smoke {
        let count = FdeConfig {
            projection_type: Projection::Count,
            ..paper()
        };
        let shortened = FdeConfig {
            final_projection_dimension: Some(2560),
            ..paper()
        };
        all.extend([
            way(paper(), auto, Some((8, 8))),
            way(config(20, 3, 8), auto, None),
            way(config(20, 4, 8), auto, None),
            way(filled, auto, None),
            way(count, auto, None),
            way(shortened, auto, None),
        ]);
    }
    all
}

impl Way {
    fn name(&self) -> String {
        let c = &self.config;
        let mut name = format!(
            "({},{},{})",
            c.num_repetitions, c.num_simhash_projections, c.projection_dimension
        );
        for (yes, what) in [
            (self.center == Choice::On, " centred"),
            (self.center == Choice::Off, " not centred"),
            (c.fill_empty_partitions, " filled"),
            (c.projection_type == Projection::Count, " count sketch"),
        ] {
            if yes {
                name.push_str(what);
            }
        }
        if let Some(f) = c.final_projection_dimension {
            name.push_str(&format!(" to {f}"));
        }
        if let Some((bits, len)) = self.coded {
            name.push_str(&format!(" PQ {}x{len}", 1 << bits));
        }
        name
    }

    fn curve(
        &self,
        set: &Set,
        wanted: &[Vec<usize>],
        options: &BenchOptions,
    ) -> Result<Curve, BenchError> {
        let failed = |e: &dyn std::fmt::Display| BenchError::data(&*set.name, e.to_string());
        let mean = set.mean();
        let mean = self.center.centers(&mean).then_some(&mean[..]);
        let fde = Fde::new(set.dim, self.config.clone(), mean).map_err(|e| failed(&e))?;
        let encode = |d: &Vec<f32>| fde.document(d).map_err(|e| failed(&e));
        let documents: Vec<Vec<f32>> =
            set.documents.iter().map(encode).collect::<Result<_, _>>()?;
        let query = |rows: &[f32]| fde.query(rows).unwrap_or_default();
        let Some((bits, len)) = self.coded else {
            return Ok(of_rankings(self.name(), set, wanted, |rows| {
                let query = query(rows);
                documents.iter().map(|d| query.dot(d)).collect()
            }));
        };
        let coded = Coded::new(&documents, bits, len, options).map_err(|e| failed(&e))?;
        Ok(of_rankings(self.name(), set, wanted, |rows| {
            coded.scores(&query(rows))
        }))
    }
}

/// Encodings of documents in few bytes.
struct Coded {
    quantizer: ProductQuantizer,
    blocks: Vec<u8>,
    count: usize,
}

impl Coded {
    fn new(
        documents: &[Vec<f32>],
        bits: u32,
        len: usize,
        options: &BenchOptions,
    ) -> Result<Self, keyfold_kernels::PqError> {
        let dim = documents.first().map_or(len, Vec::len);
        let sample = documents.len().min(2048);
        let sample: Vec<f32> = documents[..sample].concat();
        let quantizer = ProductQuantizer::train(
            &sample,
            dim,
            len,
            bits,
            options.seed,
            options.thread_count(),
        )?;
        let mut blocks = Vec::new();
        for documents in documents.chunks(PQ_BLOCK) {
            let mut codes = vec![0; documents.len() * quantizer.groups()];
            for (d, codes) in documents
                .iter()
                .zip(codes.chunks_exact_mut(quantizer.groups()))
            {
                quantizer.encode(d, codes);
            }
            let start = blocks.len();
            blocks.resize(start + quantizer.block_bytes(), 0);
            quantizer.pack(&codes, &mut blocks[start..]);
        }
        Ok(Self {
            quantizer,
            blocks,
            count: documents.len(),
        })
    }

    fn scores(&self, query: &keyfold_search::candidates::fde::QueryFde) -> Vec<f32> {
        let per_block = query.width / self.quantizer.len_of_group();
        let of_block = |&b: &u32| (0..per_block as u32).map(move |i| b * per_block as u32 + i);
        let groups: Vec<u32> = query.blocks.iter().flat_map(of_block).collect();
        let prepared = self.quantizer.query(&groups, &query.values);
        let mut out = vec![0.0; self.count.next_multiple_of(PQ_BLOCK)];
        prepared.scan(&self.blocks, &mut out);
        out.truncate(self.count);
        out
    }
}

fn table(set: &Set, curves: &[Curve]) -> Table {
    let title = format!(
        "{}: {} documents of {} vectors, the first {} by MaxSim among n candidates",
        set.name,
        set.documents.len(),
        set.tokens() / set.documents.len().max(1),
        set.find
    );
    let mut columns = vec!["method".to_owned()];
    columns.extend(SHOWN.map(|n| format!("n = {n}")));
    columns.push(format!("n for {RECALL}"));
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new(&title, &names);
    for curve in curves {
        let mut row = vec![curve.name.clone()];
        row.extend(SHOWN.map(|n| format!("{:.2}", curve.recall(n))));
        row.push(
            curve
                .candidates(RECALL)
                .map_or("more".to_owned(), |n| format!("{n:.0}")),
        );
        table.rows.push(row);
    }
    table
}

fn compare(set: &Set, curves: &[Curve]) -> Option<String> {
    let at = |name: &str| curves.iter().find(|c| c.name == name)?.candidates(RECALL);
    let (ours, theirs) = (at("(20,5,16)")?, at("per-token heuristic")?);
    Some(format!(
        "{}: at a recall of {RECALL}, encodings (20,5,16) need {ours:.0} candidates and the per-token heuristic {theirs:.0}, {:.1} times as many; claim of the paper: 2 to 5 times, {}.",
        set.name,
        theirs / ours,
        reached(theirs >= 2.0 * ours)
    ))
}

/// Runs of which the shortest counts.
const RUNS: usize = 15;

/// What encoding and scanning cost on one core: a table, milliseconds for a
/// document of 40 vectors of 64 numbers, and all for programs.
fn speed(options: &BenchOptions) -> Result<(Table, f64, Value), BenchError> {
    let mut table = Table::new("one core, (20,5,16)", &["what", "time"]);
    let mut values = Vec::new();
    let mut fastest = 0.0;
    let failed = |e: &dyn std::fmt::Display| BenchError::data("speed", e.to_string());
    for dim in [64, 128] {
        let rows = sets::unit_rows(40 * 64, dim, options.seed);
        let fde = Fde::new(dim, FdeConfig::default(), Some(&sets::mean(&rows, dim)))
            .map_err(|e| failed(&e))?;
        let mut out = vec![0.0; 64 * fde.len()];
        let counts = [40; 64];
        let document = shortest(RUNS, || fde.documents(&rows, &counts, &mut out)) / 64.0;
        let query = shortest(RUNS, || fde.query(&rows[..16 * dim]));
        if dim == 64 {
            fastest = document;
        }
        table.row([
            format!("encode a document of 40 vectors of {dim}"),
            format!("{document:.4} ms"),
        ]);
        table.row([
            format!("encode a query of 16 vectors of {dim}"),
            format!("{query:.4} ms"),
        ]);
        values.push(json!({"dim": dim, "document_ms": document, "query_ms": query}));
        if dim == 128 {
            let documents: Vec<Vec<f32>> =
                out.chunks_exact(fde.len()).map(<[f32]>::to_vec).collect();
            let query = fde.query(&rows[..16 * dim]).map_err(|e| failed(&e))?;
            let many: Vec<Vec<f32>> = documents.iter().cycle().take(10_000).cloned().collect();
            let plain = shortest(RUNS, || many.iter().map(|d| query.dot(d)).sum::<f32>());
            table.row([
                "scan 10,000 documents, 4 bytes a coordinate".into(),
                format!("{plain:.3} ms"),
            ]);
            values.push(json!({"scan": "f32", "ms": plain}));
            drop(many);
            for (bits, len) in [(8, 8), (4, 4)] {
                let mut coded =
                    Coded::new(&documents, bits, len, options).map_err(|e| failed(&e))?;
                coded.blocks = coded.blocks.repeat(157);
                coded.count = 157 * 64;
                let ms = shortest(RUNS, || coded.scores(&query));
                let name = format!("PQ {}x{len}", 1 << bits);
                table.row([
                    format!("scan 10,048 documents, {name}, tables included"),
                    format!("{ms:.3} ms"),
                ]);
                values.push(json!({"scan": name, "ms": ms}));
            }
        }
    }
    Ok((table, fastest, json!(values)))
}
