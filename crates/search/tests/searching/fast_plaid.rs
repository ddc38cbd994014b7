//! An index that fast-plaid wrote (parity/fast_plaid_index.py), decoded and searched by
//! the kernels of the store.

use keyfold_kernels::residual::{ResidualCodec, maxsim_packed, reconstruct};
use keyfold_kernels::{MaxSim, maxsim};

#[derive(serde::Deserialize)]
struct Fixture {
    dim: usize,
    /// Rows of each document.
    lengths: Vec<usize>,
    queries: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    bits: u32,
    centroids: Vec<f32>,
    cutoffs: Vec<f32>,
    weights: Vec<f32>,
    codes: Vec<u16>,
    /// Hexadecimal digits.
    residuals: String,
    /// The first rows.
    decoded: Vec<f32>,
    /// For each query what fast-plaid found, best first.
    found: Vec<Vec<(usize, f32)>>,
}

fn bytes(hex: &str) -> Vec<u8> {
    let at = (0..hex.len()).step_by(2);
    at.map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn an_index_of_fast_plaid_stands_for_the_same_vectors_and_finds_the_same() {
    let text = include_str!("../fixtures/fast_plaid.json");
    let fixture: Fixture = serde_json::from_str(text).unwrap();
    let dim = fixture.dim;
    for case in fixture.cases {
        let codec = ResidualCodec::new(case.bits, case.cutoffs, case.weights).unwrap();
        // Their bytes begin with the greatest bit, ours with the least.
        let theirs = bytes(&case.residuals);
        let packed: Vec<u8> = theirs.into_iter().map(u8::reverse_bits).collect();
        let mut rows = Vec::new();
        reconstruct(
            &case.centroids,
            &case.codes,
            &packed,
            &codec,
            dim,
            &mut rows,
        );
        assert_eq!(rows.len(), fixture.lengths.iter().sum::<usize>() * dim);
        for (at, (ours, theirs)) in rows.iter().zip(&case.decoded).enumerate() {
            assert!((ours - theirs).abs() < 2e-6, "number {at}: {ours} {theirs}");
        }
        let size = codec.row_bytes(dim).unwrap();
        for (query, found) in fixture.queries.iter().zip(&case.found) {
            let mut scores = Vec::new();
            let mut first = 0;
            for &length in &fixture.lengths {
                let rows = &rows[first * dim..(first + length) * dim];
                let score = maxsim_packed(
                    &mut MaxSim::new(query, dim),
                    &case.centroids,
                    &case.codes[first..first + length],
                    &packed[first * size..(first + length) * size],
                    &codec,
                );
                assert!((score - maxsim(query, rows, dim)).abs() < 1e-5);
                scores.push(score);
                first += length;
            }
            // It adds up half floats: steps of 0.002 at these scores.
            for &(document, score) in found {
                let ours = scores[document];
                assert!((ours - score).abs() < 6e-3, "{document}: {ours} {score}");
            }
            scores.sort_unstable_by(|a, b| b.total_cmp(a));
            for (ours, (_, score)) in scores.iter().zip(found) {
                assert!((ours - score).abs() < 6e-3, "{ours} {score}");
            }
        }
    }
}
