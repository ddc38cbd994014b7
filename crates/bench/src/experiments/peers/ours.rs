//! Keyfold as one of the engines: a process of its own, like the others.

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use keyfold_core::{EncoderIdentity, NoProgress, Vectors};
use keyfold_data::Passage;
use keyfold_search::candidates::{Access, CandidateOptions, MeaningTimings, Method, nearest};
use keyfold_search::codebook::Bits;
use keyfold_search::store::{Snapshot, WriterOptions};
use serde_json::{Value, json};

use super::vectors::ItemReader;
use crate::quality::quantile;
use crate::{BenchError, memory, store};

/// Wanted neighbours.
const BEST: usize = 10;

/// The task of searching, and of searching without mapping what is compared.
pub(super) const SEARCH: &str = "search";
pub(super) const LOW_MEMORY: &str = "search-low-memory";

/// What the process does by which Keyfold measures itself as it measures other engines.
/// The arguments are the bits of a number, `build`, `search` or `search-low-memory`, the folder of the vectors,
/// that of the index, and to search with one setting only its name. Results go to `say`, one line each.
pub fn peer(arguments: &[String], say: &mut dyn FnMut(Value)) -> Result<(), BenchError> {
    let wrong = || {
        BenchError::data(
            "__peer",
            "the arguments are BITS build|search|search-low-memory VECTORS INDEX [SETTING]",
        )
    };
    let [bits, task, vectors, index, only @ ..] = arguments else {
        return Err(wrong());
    };
    match task.as_str() {
        "build" => {
            let bits = bits.parse().map_err(|_| wrong())?;
            say(build(Path::new(vectors), Path::new(index), bits)?);
        }
        SEARCH | LOW_MEMORY => {
            let access = match task.as_str() {
                LOW_MEMORY => Access::Read,
                _ => Access::Mapped,
            };
            let (vectors, index) = (Path::new(vectors), Path::new(index));
            search(vectors, index, access, only.first(), say)?;
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn build(vectors: &Path, index: &Path, bits: Bits) -> Result<Value, BenchError> {
    let cpu = memory::cpu_seconds();
    let clock = Instant::now();
    let documents = ItemReader::open(vectors, "documents")?;
    let identity = EncoderIdentity {
        name: "vectors of an experiment".to_owned(),
        hash: "0".to_owned(),
        dim: documents.dim,
    };
    let items = vec![(); documents.left()];
    let documents = RefCell::new(documents);
    let prepare = |batch: &[()]| {
        let (rows, counts) = documents.borrow_mut().batch(batch.len())?;
        Ok((batch.iter().map(|_| passage()).collect(), counts, rows))
    };
    let options = WriterOptions {
        bits: Some(bits),
        threads: rayon::current_num_threads(),
        ..WriterOptions::default()
    };
    store::write_items(index, &identity, &items, prepare, &options, &NoProgress)?;
    Ok(json!({
        "seconds": clock.elapsed().as_secs_f64(),
        "cpu_seconds": memory::cpu_seconds().zip(cpu).map(|(now, then)| now - then),
        "most_held": memory::most_resident(),
    }))
}

/// A document without text.
fn passage() -> Passage {
    Passage {
        text: "-".to_owned(),
        headings: Vec::new(),
        lines: 0..0,
        part: None,
        bytes: 0..0,
    }
}

fn search(
    vectors: &Path,
    index: &Path,
    access: Access,
    only: Option<&String>,
    say: &mut dyn FnMut(Value),
) -> Result<(), BenchError> {
    let queries = ItemReader::open(vectors, "queries")?;
    let dim = queries.dim;
    let queries: Vec<Vectors> = queries
        .all()?
        .into_iter()
        .filter_map(|rows| Vectors::new(dim, rows).ok())
        .collect();
    let snapshot = Snapshot::open(index)?;
    let by_default = CandidateOptions {
        threads: rayon::current_num_threads(),
        access,
        ..CandidateOptions::default()
    };
    let mut ask = |setting: String, way: &CandidateOptions| -> Result<(), BenchError> {
        if only.is_some_and(|only| *only != setting) {
            return Ok(());
        }
        let (mut times, mut hits, mut stages) = (Vec::new(), Vec::new(), Vec::new());
        // The first query pays for opening files.
        if let Some(query) = queries.first() {
            nearest(snapshot.segments(), query, BEST, None, way)?;
        }
        for query in &queries {
            let clock = Instant::now();
            let (found, stage) = nearest(snapshot.segments(), query, BEST, None, way)?;
            times.push(clock.elapsed().as_secs_f64() * 1e3);
            hits.push(found.iter().map(|hit| hit.passage).collect::<Vec<u64>>());
            stages.push(stage);
        }
        let median = |of: fn(&MeaningTimings) -> Duration| {
            let times: Vec<f64> = stages.iter().map(|s| of(s).as_secs_f64() * 1e3).collect();
            quantile(&times, 0.5)
        };
        say(json!({
            "setting": setting, "milliseconds": times, "hits": hits,
            "most_held": memory::most_resident(), "not_mapped": memory::held(),
            "stages": [
                median(|s| s.centroids), median(|s| s.probing),
                median(|s| s.estimating), median(|s| s.exact),
            ],
        }));
        Ok(())
    };
    ask("default".to_owned(), &by_default)?;
    for probes in [4, 8, 16] {
        for estimated in [96, 128, 256, 512, 1024, 2048] {
            for exact in [20, 32, 128] {
                let way = CandidateOptions {
                    method: Method::Centroids,
                    probes,
                    estimated,
                    exact,
                    ..by_default
                };
                ask(
                    format!("probes {probes}, estimated {estimated}, exact {exact}"),
                    &way,
                )?;
            }
        }
    }
    Ok(())
}
