//! next-plaid as a peer of `keyfold bench peers`, which says what is written and read.
//!
//! ```text
//! peer-next-plaid build VECTORS INDEX
//! peer-next-plaid search VECTORS INDEX [SETTING]
//! ```
//!
//! `SAMPLE_DOCUMENTS=N` lets it cluster the vectors of N documents only, where its own
//! choice would take hours.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use ndarray::Array2;
use next_plaid::{IndexConfig, MmapIndex, SearchParameters};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [task, vectors, index] if task == "build" => build(Path::new(vectors), index),
        [task, vectors, index, only @ ..] if task == "search" => {
            search(Path::new(vectors), index, only.first())
        }
        _ => Err("usage: peer-next-plaid build|search VECTORS INDEX [SETTING]".into()),
    }
}

fn build(vectors: &Path, index: &str) -> Result<(), Box<dyn Error>> {
    let documents = read(vectors, "documents")?;
    fs::create_dir_all(index)?;
    let clock = Instant::now();
    let config = IndexConfig {
        n_samples_kmeans: std::env::var("SAMPLE_DOCUMENTS").ok().and_then(|n| n.parse().ok()),
        ..IndexConfig::default()
    };
    let cpu = cpu_seconds();
    MmapIndex::create_with_kmeans(&documents, index, &config)?;
    let seconds = clock.elapsed().as_secs_f64();
    say(&json!({"seconds": seconds, "cpu_seconds": cpu_seconds() - cpu,
        "most_held": status("VmHWM:")}));
    Ok(())
}

fn search(vectors: &Path, index: &str, only: Option<&String>) -> Result<(), Box<dyn Error>> {
    let queries = read(vectors, "queries")?;
    let index = MmapIndex::load(index)?;
    let ask = |name: &str, parameters: &SearchParameters| -> Result<(), Box<dyn Error>> {
        if only.is_some_and(|only| only != name) {
            return Ok(());
        }
        let (mut times, mut hits) = (Vec::new(), Vec::new());
        index.search(&queries[0], parameters, None)?;
        for query in &queries {
            let clock = Instant::now();
            let found = index.search(query, parameters, None)?;
            times.push(clock.elapsed().as_secs_f64() * 1e3);
            hits.push(found.passage_ids);
        }
        let memory = (status("VmHWM:"), status("RssAnon:"));
        say(&json!({"setting": name, "milliseconds": times, "hits": hits,
            "most_held": memory.0, "not_mapped": memory.1}));
        Ok(())
    };
    ask("default", &SearchParameters::default())?;
    for threshold in [Some(0.4), None] {
        for n_ivf_probe in [1, 2, 4, 8, 32] {
            for n_full_scores in [128, 256, 512, 2048, 8192] {
                let parameters = SearchParameters {
                    n_full_scores,
                    n_ivf_probe,
                    centroid_score_threshold: threshold,
                    ..SearchParameters::default()
                };
                let pruned = if threshold.is_some() { "0.4" } else { "off" };
                let name = format!("probe {n_ivf_probe}, full {n_full_scores}, t_cs {pruned}");
                ask(&name, &parameters)?;
            }
        }
    }
    Ok(())
}

/// `NAME.f32` (rows one after the other) and `NAME.u32` (rows of each item).
fn read(folder: &Path, name: &str) -> Result<Vec<Array2<f32>>, Box<dyn Error>> {
    let set: Value = serde_json::from_slice(&fs::read(folder.join("set.json"))?)?;
    let dim = set["dim"].as_u64().ok_or("set.json has no dim")? as usize;
    let lengths = fs::read(folder.join(format!("{name}.u32")))?;
    let mut numbers = std::io::BufReader::new(fs::File::open(folder.join(format!("{name}.f32")))?);
    let mut items = Vec::new();
    for length in lengths.chunks_exact(4) {
        let rows = u32::from_le_bytes(length.try_into()?) as usize;
        let mut bytes = vec![0; rows * dim * 4];
        std::io::Read::read_exact(&mut numbers, &mut bytes)?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        items.push(Array2::from_shape_vec((rows, dim), values.collect())?);
    }
    Ok(items)
}

/// A number of bytes that the system tells of this process.
fn status(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Processor time of this process so far; the system counts it in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name of the program, which may hold blanks, come the fields from the third on.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn say(line: &Value) {
    println!("{line}");
}
