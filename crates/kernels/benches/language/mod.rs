//! What a language model computes, in the shapes of one of 135 million parameters (30
//! layers, hidden size 576, 9 query and 3 key heads of 64, 49,152 words).

use std::sync::atomic::{AtomicU64, Ordering};

use keyfold_kernels::Team;
use keyfold_kernels::attention::{CacheRows, Partial, Rotation, RowSet, Tile, attend_tile};
use keyfold_kernels::attention::{dot_rows, mix_rows};
use keyfold_kernels::blocks::{
    Activations, BlockMatrix, BlockType, Product, matmul, matvec, matvec_several, quantize,
};

use keyfold_kernels as kernels;
use keyfold_kernels::labels::{LabelBits, LabelBlocks};
use keyfold_kernels::nuq::{Angles, BEHIND, KeyCodes, ValueCodes, dot_keys, mix_values, table_len};

use crate::{Bench, Bound, random};

const LAYERS: usize = 30;
/// Outputs and inputs; those in one group have the same input.
const LAYER: [&[(usize, usize)]; 4] = [
    &[(576, 576), (192, 576), (192, 576)],
    &[(576, 576)],
    &[(1536, 576), (1536, 576)],
    &[(576, 1536)],
];
const HEAD: (usize, usize) = (49_152, 576);

/// The bytes of a matrix with some numbers, the same over and over.
fn packed(kind: BlockType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    if rows == 0 {
        return Vec::new();
    }
    let few = kind.row_bytes(cols).unwrap() * rows.min(32);
    let mut bytes = vec![0; few];
    quantize(kind, &random(rows.min(32) * cols, seed), &mut bytes);
    bytes.repeat(rows / rows.min(32))
}

pub(crate) fn language(bench: &mut Bench) {
    threads(bench);
    weights(bench);
    prompt(bench);
    cache(bench);
    codes(bench);
    choice(bench);
}

/// Which of 32,768 keys one query head reads.
fn choice(bench: &mut Bench) {
    let rows = 32_768;
    for (bits, channels, g) in [
        (LabelBits::Four, 8, 1),
        (LabelBits::Four, 16, 1),
        (LabelBits::Four, 16, 3),
        (LabelBits::Seven, 16, 1),
    ] {
        let mut labels = LabelBlocks::new(channels, bits);
        let some = random(channels * 997, 15);
        for row in 0..rows {
            labels.push(&some[row % 997 * channels..][..channels]);
        }
        let queries = random(g * channels, 16);
        let mut out = vec![0.0; g * rows];
        let name = format!("labels of {channels} channels, {bits:?} bits, {g} queries");
        bench.run(&name, Bound::Bytes(labels.bytes()), || {
            labels.scores(&queries, &mut out);
        });
    }
    let scores = random(rows, 17);
    let mut out = Vec::new();
    for k in [32, 256, 1024, 4096] {
        bench.run(
            &format!("rows of the top {k} of {rows}"),
            Bound::Numbers(rows),
            || {
                kernels::top_k_rows(&scores, k, &mut out);
            },
        );
    }
}

fn threads(bench: &mut Bench) {
    for threads in [1, 2] {
        let team = Team::new(threads);
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        bench.run(
            &format!("team of {threads}: nothing"),
            Bound::Numbers(1),
            || {
                team.run(|part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
            },
        );
    }
}

/// A token through all matrices of the model.
fn weights(bench: &mut Bench) {
    for kind in [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::F16,
        BlockType::Bf16,
        BlockType::F32,
    ] {
        let layers: Vec<Vec<(Vec<u8>, usize, usize)>> = (0..LAYERS)
            .flat_map(|_| LAYER)
            .map(|group| {
                let matrix =
                    |&(rows, cols): &(usize, usize)| (packed(kind, rows, cols, 3), rows, cols);
                group.iter().map(matrix).collect()
            })
            .collect();
        let head = packed(kind, HEAD.0, HEAD.1, 5);
        let all: usize = layers.iter().flatten().map(|(bytes, ..)| bytes.len()).sum();
        let inputs = random(8 * 1536, 4);
        for (threads, n) in [(1, 1), (2, 1), (2, 5)] {
            let team = Team::new(threads);
            let mut x = Activations::new();
            let mut out = vec![vec![0.0; n * 1536]; 3];
            let mut logits = vec![0.0; n * HEAD.0];
            let name = format!("weights {}, {threads} threads, {n} inputs", kind.name());
            bench.run(&name, Bound::Bytes(all + head.len()), || {
                for group in &layers {
                    let cols = group[0].2;
                    x.set(&inputs[..n * cols], cols);
                    let mut products: Vec<Product> = group
                        .iter()
                        .zip(&mut out)
                        .map(|((bytes, rows, cols), out)| {
                            let weights = BlockMatrix::new(kind, *rows, *cols, bytes).unwrap();
                            Product::new(weights, &mut out[..n * rows])
                        })
                        .collect();
                    matvec_several(&mut products, &mut x, &team);
                }
                let weights = BlockMatrix::new(kind, HEAD.0, HEAD.1, &head).unwrap();
                x.set(&inputs[..n * HEAD.1], HEAD.1);
                matvec(&mut logits, &weights, &mut x, &team);
            });
        }
    }
    // What the kernels could do if memory were as fast as the caches.
    let team = Team::new(1);
    for kind in BlockType::ALL {
        let bytes = packed(kind, 256, 1024, 6);
        let weights = BlockMatrix::new(kind, 256, 1024, &bytes).unwrap();
        for n in [1, 4] {
            let mut x = Activations::new();
            let mut out = vec![0.0; n * 256];
            x.set(&random(n * 1024, 7), 1024);
            let name = format!("in cache {}, {n} inputs", kind.name());
            bench.run(&name, Bound::Bytes(bytes.len()), || {
                matvec(&mut out, &weights, &mut x, &team);
            });
        }
    }
    let mut x = Activations::new();
    let values = random(1536, 8);
    let bytes = packed(BlockType::Q8_0, 0, 1536, 9);
    let none = BlockMatrix::new(BlockType::Q8_0, 0, 1536, &bytes).unwrap();
    bench.run("round an input of 1536", Bound::Numbers(1536), || {
        x.set(&values, 1536);
        matvec(&mut [], &none, &mut x, &team);
    });
}

/// 256 tokens of a prompt.
fn prompt(bench: &mut Bench) {
    for kind in [
        BlockType::Q4_1,
        BlockType::Q8_0,
        BlockType::Q4K,
        BlockType::Q6K,
        BlockType::F16,
        BlockType::F32,
    ] {
        for (threads, n) in [(1, 256), (2, 256), (2, 512), (2, 64), (2, 8)] {
            let team = Team::new(threads);
            for (rows, cols) in [(3072, 1024), (1024, 3072)] {
                let bytes = packed(kind, rows, cols, 10);
                let weights = BlockMatrix::new(kind, rows, cols, &bytes).unwrap();
                let values = random(n * cols, 11);
                let mut x = Activations::new();
                let mut out = vec![0.0; n * rows];
                let name = format!(
                    "prompt {}, {threads} threads, {n} x {cols} by {rows}",
                    kind.name()
                );
                bench.run(&name, Bound::Flops(2 * n * rows * cols), || {
                    x.set(&values, cols);
                    matmul(&mut out, &weights, &mut x, &team);
                });
            }
        }
    }
    let (nq, nk, dim) = (256, 128, 64);
    let (queries, keys) = (random(nq * 9 * dim, 12), random(nk * dim, 13));
    let visible = vec![(0, nk as u32); nq];
    let tile = Tile {
        queries: &queries,
        query_stride: 9 * dim,
        keys: &keys,
        values: &keys,
        dim,
        scale: 0.125,
        visible: &visible,
        bias: &[],
    };
    let mut partials = vec![Partial::EMPTY; nq];
    let mut out = vec![0.0; nq * 9 * dim];
    let mut scratch = Vec::new();
    bench.run(
        "attention of 256 queries to 128 keys",
        Bound::Flops(4 * nq * nk * dim),
        || {
            attend_tile(&tile, &mut partials, &mut out, 9 * dim, &mut scratch);
        },
    );
}

/// A decoded token's attention to 4,096 rows in every layer, on one thread.
fn cache(bench: &mut Bench) {
    let (rows, dim, g) = (4096, 64, 3);
    let queries = random(g * dim, 14);
    let mut scores = vec![0.0; g * rows];
    let mut out = vec![0.0; g * dim];
    let few: Vec<u32> = (0..1024).map(|i| 4 * i + i % 3).collect();
    for kind in [
        BlockType::F32,
        BlockType::F16,
        BlockType::Q8_0,
        BlockType::Q4_0,
    ] {
        let heads: Vec<Vec<u8>> = (0..LAYERS * 3)
            .map(|head| packed(kind, rows, dim, head as u64))
            .collect();
        let stride = kind.row_bytes(dim).unwrap();
        let cache = |bytes| CacheRows {
            kind,
            dim,
            stride,
            bytes,
        };
        let name = kind.name();
        for (which, set) in [
            ("all", RowSet::Range(0, rows)),
            ("1024", RowSet::List(&few)),
        ] {
            let bytes = heads.len() * set.len() * stride;
            bench.run(
                &format!("keys {name}, {which} of 4096"),
                Bound::Bytes(bytes),
                || {
                    for bytes in &heads {
                        dot_rows(cache(bytes), &queries, set, &mut scores[..g * set.len()]);
                    }
                },
            );
            bench.run(
                &format!("values {name}, {which} of 4096"),
                Bound::Bytes(bytes),
                || {
                    for bytes in &heads {
                        mix_rows(cache(bytes), &scores[..g * set.len()], set, &mut out);
                    }
                },
            );
        }
        bench.run(
            &format!("keys {name} in cache"),
            Bound::Bytes(512 * stride),
            || {
                dot_rows(
                    cache(&heads[0]),
                    &queries,
                    RowSet::Range(0, 512),
                    &mut scores[..g * 512],
                );
            },
        );
        bench.run(
            &format!("values {name} in cache"),
            Bound::Bytes(512 * stride),
            || {
                mix_rows(
                    cache(&heads[0]),
                    &scores[..g * 512],
                    RowSet::Range(0, 512),
                    &mut out,
                );
            },
        );
    }
}

/// The same for 512 rows that are kept as codes.
fn codes(bench: &mut Bench) {
    let (rows, dim, g) = (512, 64, 3);
    let queries = random(g * dim, 18);
    let mut scores = vec![0.0; g * 64];
    let weights = random(g * rows, 19);
    let mut out = vec![0.0; g * dim];
    let (cos, sin) = (random(dim / 2 * 72, 20), random(dim / 2 * 72, 21));
    let angles = Angles {
        cos: &cos,
        sin: &sin,
        stride: 72,
    };
    for bits in 2..5 {
        let bytes = vec![0x5a; rows * dim * bits as usize / 8 + BEHIND];
        let tables = random(dim * table_len(bits), 22);
        let keys = KeyCodes {
            bits,
            dim,
            bytes: &bytes,
            tables: &tables,
            rotation: Rotation::Half,
        };
        let values = ValueCodes {
            bits,
            dim,
            bytes: &bytes,
            table: &tables[..table_len(bits)],
        };
        let bound = Bound::Bytes(bytes.len());
        bench.run(
            &format!("keys as codes of {bits} bits in cache"),
            bound,
            || {
                for first in (0..rows / 8).step_by(8) {
                    dot_keys(keys, angles, first..first + 8, 3, &queries, &mut scores);
                }
            },
        );
        let bound = Bound::Bytes(bytes.len());
        bench.run(
            &format!("values as codes of {bits} bits in cache"),
            bound,
            || {
                mix_values(values, &weights, RowSet::Range(0, rows), &mut out);
            },
        );
    }
}
