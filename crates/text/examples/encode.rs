//! Encodes every line of a file and says how fast it went:
//! `cargo run --release -p keyfold-text --example encode MODEL FILE [THREADS] [query]`
//!
//! The vectors go to standard output, one JSON array of rows per line of the file.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::time::Instant;

use keyfold_core::Role;
use keyfold_text::{LoadOptions, load};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, file, rest @ ..] = arguments.as_slice() else {
        return Err("usage: encode MODEL FILE [THREADS] [query]".into());
    };
    let threads = rest.first().map_or(Ok(0), |t| t.parse())?;
    let role = match rest.get(1).map(String::as_str) {
        Some("query") => Role::Query,
        _ => Role::Document,
    };
    let start = Instant::now();
    let encoder = load(model, &LoadOptions { threads })?;
    eprintln!("loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    let text = std::fs::read_to_string(file)?;
    let lines: Vec<&str> = text.lines().collect();
    let start = Instant::now();
    let encoded = encoder.encode(&lines, role)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{} texts in {seconds:.2} s: {:.0} a second",
        lines.len(),
        lines.len() as f64 / seconds
    );
    for vectors in encoded {
        println!(
            "{}",
            serde_json::to_string(&vectors.iter().collect::<Vec<_>>())?
        );
    }
    Ok(())
}
