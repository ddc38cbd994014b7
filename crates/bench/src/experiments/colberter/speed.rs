//! The time of comparing words against that of comparing all tokens.

use std::hint::black_box;
use std::time::Instant;

use keyfold_kernels::MaxSim;
use keyfold_search::codebook::{Bits, Codebook};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::law::Sizes;
use crate::quality::quantile;
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Words of a query, and its rows in ColBERT, which fills it up.
const QUERY_WORDS: usize = 8;
const QUERY_ROWS: usize = 32;
const ROUNDS: usize = 9;

pub(super) struct Speed {
    pub(super) table: Table,
    pub(super) values: Value,
    words: f64,
    tokens: f64,
}

impl Speed {
    pub(super) fn finding(&self) -> String {
        format!(
            "comparing a passage by words takes {:.2} µs, by all tokens at equal bytes of a vector \
             {:.2} µs: {:.1} times as long",
            self.words,
            self.tokens,
            self.tokens / self.words
        )
    }
}

/// A way to keep a passage.
struct Way {
    name: &'static str,
    query: usize,
    rows: usize,
    dim: usize,
    bits: Bits,
}

pub(super) fn measure(sizes: &Sizes, options: &BenchOptions) -> Result<Speed, BenchError> {
    let passages = match options.scale {
        Scale::Smoke => 50,
        _ => 2000,
    };
    let (words, tokens) = (sizes.words.round() as usize, sizes.tokens.round() as usize);
    let way = |name, query, rows, dim, bits| Way {
        name,
        query,
        rows,
        dim,
        bits,
    };
    let ways = [
        way(
            "words of 32 numbers, 8 bits",
            QUERY_WORDS,
            words,
            32,
            Bits::Eight,
        ),
        way(
            "tokens of 128 numbers, 2 bits",
            QUERY_ROWS,
            tokens,
            128,
            Bits::Two,
        ),
        way(
            "tokens of 128 numbers, 2 bits, short query",
            QUERY_WORDS,
            tokens,
            128,
            Bits::Two,
        ),
        way(
            "tokens of 32 numbers, 8 bits, short query",
            QUERY_WORDS,
            tokens,
            32,
            Bits::Eight,
        ),
    ];
    let mut table = Table::new(
        "comparing a passage with a query, one thread, random vectors",
        &[
            "kept",
            "query rows",
            "rows",
            "bytes per row",
            "µs per passage",
            "least to most",
        ],
    );
    let mut values = Vec::new();
    let mut medians = Vec::new();
    for way in &ways {
        let (bytes, times) = time(way, passages, options.seed)?;
        let median = quantile(&times, 0.5);
        let (least, most) = (quantile(&times, 0.0), quantile(&times, 1.0));
        table.row([
            way.name.to_owned(),
            way.query.to_string(),
            way.rows.to_string(),
            bytes.to_string(),
            format!("{median:.2}"),
            format!("{least:.2} to {most:.2}"),
        ]);
        values.push(json!({
            "kept": way.name, "query_rows": way.query, "rows": way.rows, "bytes_per_row": bytes,
            "microseconds": median, "least": least, "most": most,
        }));
        medians.push(median);
    }
    Ok(Speed {
        table,
        values: json!(values),
        words: medians[0],
        tokens: medians[1],
    })
}

/// Bytes of a row without its centroid, and microseconds for a passage, round by round.
fn time(way: &Way, passages: usize, seed: u64) -> Result<(usize, Vec<f64>), BenchError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut random =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let sample = random(4096 * way.dim);
    let codebook = Codebook::train(&sample, way.dim, way.bits, 4096, seed, 1)
        .map_err(|e| BenchError::data("random vectors", e.to_string()))?;
    let query = random(way.query * way.dim);
    let coded = codebook.quantize(&random(way.rows * passages * way.dim), 1);
    let size = codebook.bytes_per_row();
    let mut scorer = MaxSim::new(&codebook.widen(&query), codebook.width());
    let mut times = Vec::new();
    // The first round fills the caches.
    for round in 0..=ROUNDS {
        let clock = Instant::now();
        for passage in 0..passages {
            let rows = passage * way.rows..(passage + 1) * way.rows;
            let packed = &coded.packed[rows.start * size..rows.end * size];
            black_box(codebook.maxsim(&mut scorer, &coded.codes[rows], packed));
        }
        if round > 0 {
            times.push(clock.elapsed().as_secs_f64() * 1e6 / passages as f64);
        }
    }
    Ok((size, times))
}
