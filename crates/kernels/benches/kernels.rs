//! Speed of every kernel on one thread, in the unit that bounds it, and its
//! share of what this machine reaches at best.
//!
//! `cargo bench -p keyfold-kernels --profile release -- FILTER`

// A bench speaks to the person who runs it.
#![allow(clippy::print_stdout)]
// The inputs are made here.
#![allow(clippy::unwrap_used)]

mod language;
mod scan;

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use keyfold_kernels as kernels;
use keyfold_kernels::kmeans::{CoarseCentroids, nearest};
use keyfold_kernels::residual::{Int8Codec, ResidualCodec};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What bounds a kernel.
enum Bound {
    /// Floating-point operations of one call.
    Flops(usize),
    /// Bytes that one call reads from memory.
    Bytes(usize),
    /// Numbers or vectors that one call works on; no peak to compare with.
    Numbers(usize),
}

/// Runs benches and compares them with the machine's peak.
struct Bench {
    criterion: Criterion,
    flops: f64,
    bandwidth: f64,
}

impl Bench {
    fn run<T>(&mut self, name: &str, bound: Bound, mut work: impl FnMut() -> T) {
        let (unit, scale, amount, peak) = match bound {
            Bound::Flops(n) => ("GFLOP/s", 1e9, n, Some(self.flops)),
            Bound::Bytes(n) => ("GB/s", 1e9, n, Some(self.bandwidth)),
            Bound::Numbers(n) => ("million a second", 1e6, n, None),
        };
        let shortest = Cell::new(f64::INFINITY);
        let mut group = self.criterion.benchmark_group("kernels");
        group.throughput(Throughput::Elements(amount as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut all = Duration::ZERO;
                for _ in 0..iterations {
                    let start = Instant::now();
                    black_box(work());
                    let elapsed = start.elapsed();
                    all += elapsed;
                    // Other programs disturb some calls, rarely all.
                    shortest.set(shortest.get().min(elapsed.as_secs_f64()));
                }
                all
            });
        });
        group.finish();
        if shortest.get().is_infinite() {
            return; // filtered out
        }
        let rate = amount as f64 / shortest.get();
        let share = peak.map_or(String::new(), |p| {
            format!(", {:.0} % of peak", 100.0 * rate / p)
        });
        let microseconds = 1e6 * shortest.get();
        println!(
            "=> {name}: {microseconds:.2} us, {:.2} {unit}{share}\n",
            rate / scale
        );
    }
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn unit(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rows = random(rows * dim, seed);
    kernels::normalize_rows(&mut rows, dim);
    rows
}

fn main() {
    let mut bench = Bench {
        criterion: Criterion::default()
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(400))
            .sample_size(20)
            .configure_from_args(),
        flops: kernels::peak::peak_flops(1),
        bandwidth: kernels::peak::read_bandwidth(1),
    };
    println!(
        "one thread: {:.1} GFLOP/s, {:.1} GB/s\n",
        bench.flops / 1e9,
        bench.bandwidth / 1e9
    );
    dot(&mut bench);
    element_wise(&mut bench);
    matmul(&mut bench);
    maxsim(&mut bench);
    packed(&mut bench);
    assignment(&mut bench);
    scans(&mut bench);
    fixed_dimensional(&mut bench);
    scan::scan(&mut bench);
    language::language(&mut bench);
    bench.criterion.final_summary();
}

fn dot(bench: &mut Bench) {
    let dim = 128;
    let query = random(dim, 1);
    for (place, rows) in [("in cache", 512), ("in memory", 1 << 18)] {
        let docs = random(rows * dim, 2);
        let bound = if rows > 512 {
            Bound::Bytes(4 * rows * dim)
        } else {
            Bound::Flops(2 * rows * dim)
        };
        bench.run(&format!("dot, {rows} rows of 128 {place}"), bound, || {
            docs.chunks_exact(dim)
                .map(|d| kernels::dot(&query, d))
                .sum::<f32>()
        });
    }
}

fn element_wise(bench: &mut Bench) {
    let n = 1 << 16;
    let start = random(n, 3);
    let mut x = start.clone();
    type Function = fn(&mut [f32]);
    let functions: [(&str, Function); 4] = [
        ("gelu", kernels::gelu),
        ("gelu_tanh", kernels::gelu_tanh),
        ("silu", kernels::silu),
        ("tanh", kernels::tanh),
    ];
    for (name, f) in functions {
        bench.run(name, Bound::Numbers(n), || {
            // Fresh input; memcpy is slow at this size on some machines.
            let one = black_box(1.0);
            x.iter_mut().zip(&start).for_each(|(x, s)| *x = one * s);
            f(&mut x);
        });
    }
    let (weight, bias) = (random(384, 4), random(384, 5));
    let mut x = random(384 * 176, 6);
    bench.run("layer_norm 384", Bound::Numbers(x.len()), || {
        kernels::layer_norm(&mut x, 384, &weight, Some(&bias), 1e-12);
    });
    bench.run("softmax 128", Bound::Numbers(n), || {
        kernels::softmax_rows(&mut x[..n], 128)
    });
}

fn matmul(bench: &mut Bench) {
    for (n, k) in [(384, 384), (1536, 384), (384, 1536), (8192, 128)] {
        let b = random(n * k, 8);
        for m in [1, 2, 4, 8, 16, 32, 64, 65, 128, 1024] {
            let a = random(m * k, 7);
            let mut out = vec![0.0; m * n];
            let bound = || Bound::Flops(2 * m * n * k);
            bench.run(&format!("matmul_nt {m} x {n} x {k}"), bound(), || {
                kernels::matmul_nt(&mut out, &a, &b, m, n, k, 1);
            });
            bench.run(&format!("matmul_nn {m} x {n} x {k}"), bound(), || {
                kernels::matmul_nn(&mut out, &a, &b, m, n, k, 1);
            });
        }
    }
    // One head of twelve: queries by keys, then weights by values.
    for (len, head) in [(32, 32), (64, 32), (128, 32), (256, 32), (128, 64)] {
        let stride = 36 * head;
        let states = random(len * stride, 6);
        let mut scores = vec![0.0; len * len];
        let mut out = vec![0.0; len * 12 * head];
        let bound = || Bound::Flops(2 * len * len * head);
        bench.run(
            &format!("head {head}, {len} tokens: scores"),
            bound(),
            || {
                let keys = &states[12 * head..];
                kernels::matmul_nt_strided(
                    &mut scores,
                    len,
                    &states,
                    stride,
                    keys,
                    stride,
                    len,
                    len,
                    head,
                );
            },
        );
        bench.run(
            &format!("head {head}, {len} tokens: values"),
            bound(),
            || {
                let values = &states[24 * head..];
                let wide = 12 * head;
                kernels::matmul_nn_strided(
                    &mut out, wide, &scores, len, values, stride, len, head, len,
                );
            },
        );
    }
}

fn maxsim(bench: &mut Bench) {
    for dim in [64, 96, 128] {
        for nq in [1, 4, 5, 8, 10, 12, 16, 20, 24, 32] {
            let nd = 128;
            let query = random(nq * dim, 9);
            let docs = random(4 * nd * dim, 10);
            let mut query = kernels::MaxSim::new(&query, dim);
            let bound = Bound::Flops(2 * nq * nd * dim * 4);
            bench.run(&format!("maxsim {nq} x {nd} x {dim}"), bound, || {
                docs.chunks_exact(nd * dim)
                    .map(|d| query.score(d))
                    .sum::<f32>()
            });
        }
    }
}

fn packed(bench: &mut Bench) {
    let (dim, nd, k) = (128, 130, 4096);
    let centroids = unit(k, dim, 11);
    let mut rng = SmallRng::seed_from_u64(12);
    let codes: Vec<u16> = (0..nd).map(|_| rng.random_range(0..k as u16)).collect();
    let residuals: Vec<f32> = random(nd * dim, 13).iter().map(|x| 0.1 * x).collect();
    let rows = random(nd * dim, 14);
    let mut dense = vec![0.0; nd * dim];
    // What a store of numbers instead of codes would cost: rows from memory.
    let many = random(500 * nd * dim, 21);
    for nq in [10, 20, 32] {
        let mut query = kernels::MaxSim::new(&random(nq * dim, 15), dim);
        let bound = || Bound::Flops(2 * nq * nd * dim);
        let all = Bound::Flops(2 * 500 * nq * nd * dim);
        bench.run(
            &format!("packed: f32 from memory, 500 x {nq} query rows"),
            all,
            || {
                many.chunks_exact(nd * dim)
                    .map(|d| query.score(d))
                    .sum::<f32>()
            },
        );
        bench.run(&format!("packed: f32, {nq} query rows"), bound(), || {
            query.score(&rows)
        });
        for bits in [1, 2, 4] {
            let codec = ResidualCodec::train(&residuals, bits).unwrap();
            let mut packed = Vec::new();
            codec.encode(&residuals, &mut packed);
            let name = format!("packed: {bits} bits, {nq} query rows");
            bench.run(&name, bound(), || {
                kernels::maxsim_packed(&mut query, &centroids, &codes, &packed, &codec)
            });
        }
        let codec = ResidualCodec::train(&residuals, 4).unwrap();
        let mut packed = Vec::new();
        codec.encode(&residuals, &mut packed);
        let tables = Tables::new(&random(nq * dim, 15), dim, &codec, &centroids);
        let name = format!("packed: 4 bits by tables of the query, {nq} query rows");
        bench.run(&name, bound(), || tables.maxsim(&codes, &packed));
        let codec = Int8Codec { dim };
        let mut packed = Vec::new();
        codec.encode(&rows, &mut packed);
        bench.run(&format!("packed: 8 bits, {nq} query rows"), bound(), || {
            codec.maxsim(&mut query, &packed)
        });
    }
    for bits in [1, 2, 4] {
        let codec = ResidualCodec::train(&residuals, bits).unwrap();
        let mut packed = Vec::new();
        let numbers = Bound::Numbers(nd * dim);
        bench.run(&format!("encode {bits} bits"), numbers, || {
            packed.clear();
            codec.encode(&residuals, &mut packed);
        });
        let numbers = Bound::Numbers(nd * dim);
        bench.run(&format!("decode {bits} bits"), numbers, || {
            codec.decode_into(&packed, &mut dense);
        });
    }
}

/// MaxSim of codes of 4 bits as WARP has it, to compare with: products of every query number with
/// every value are made once for a query, and a row is a sum of entries.
struct Tables {
    dim: usize,
    /// `[query rows, dim, 16]`.
    products: Vec<f32>,
    /// `[centroids, query rows]`.
    centroids: Vec<f32>,
}

impl Tables {
    fn new(query: &[f32], dim: usize, codec: &ResidualCodec, centroids: &[f32]) -> Self {
        let products = query
            .iter()
            .flat_map(|q| codec.weights().iter().map(move |w| q * w));
        let (count, n) = (centroids.len() / dim, query.len() / dim);
        let mut scores = vec![0.0; count * n];
        kernels::matmul_nt(&mut scores, centroids, query, count, n, dim, 1);
        Self {
            dim,
            products: products.collect(),
            centroids: scores,
        }
    }

    fn maxsim(&self, codes: &[u16], packed: &[u8]) -> f32 {
        let queries = self.products.chunks_exact(self.dim * 16);
        let n = queries.len();
        let each = queries.enumerate().map(|(i, products)| {
            let rows = codes.iter().zip(packed.chunks_exact(self.dim / 2));
            let row = |(&code, row): (&u16, &[u8])| {
                let pairs = products.chunks_exact(32).zip(row);
                let sum = |sum: f32, (two, byte): (&[f32], &u8)| {
                    sum + two[usize::from(byte & 15)] + two[16 + usize::from(byte >> 4)]
                };
                self.centroids[usize::from(code) * n + i] + pairs.fold(0.0, sum)
            };
            rows.map(row).fold(f32::NEG_INFINITY, f32::max)
        });
        each.sum()
    }
}

fn assignment(bench: &mut Bench) {
    let dim = 128;
    // As token vectors lie: centroids around a few directions, points around centroids.
    let around = |n: usize, directions: &[f32], noise: f32, seed: u64| {
        let mut rows = random(n * dim, seed);
        for (i, x) in rows.iter_mut().enumerate() {
            *x = noise * *x + directions[(i / dim * 7919 * dim + i % dim) % directions.len()];
        }
        kernels::normalize_rows(&mut rows, dim);
        rows
    };
    let centroids = around(8192, &unit(128, dim, 16), 0.12, 17);
    let points = around(4096, &centroids, 0.1, 18);
    // A thousand centroids: an exact search of all is the same kernel, longer.
    let bound = Bound::Flops(2 * 512 * 1024 * dim);
    bench.run("nearest of 1024, 512 points", bound, || {
        nearest(&points[..512 * dim], &centroids[..1024 * dim], dim, 1)
    });
    let coarse = CoarseCentroids::new(&centroids, dim, 1, 1);
    let bound = Bound::Numbers(4096);
    bench.run("coarse nearest of 8192, 4096 points", bound, || {
        coarse.nearest(&points, 1)
    });
}

fn scans(bench: &mut Bench) {
    let dim = 128;
    for (nq, k) in [(10, 8192), (32, 8192), (10, 1 << 17)] {
        let (query, centroids) = (random(nq * dim, 18), random(k * dim, 19));
        let mut out = vec![0.0; nq * k];
        let name = format!("centroid_scores {k} x {nq}");
        let bound = if k > 8192 {
            Bound::Bytes(4 * k * dim)
        } else {
            Bound::Flops(2 * nq * k * dim)
        };
        bench.run(&name, bound, || {
            kernels::centroid_scores(&query, &centroids, nq, k, dim, &mut out);
        });
    }
    let scores = random(100_000, 20);
    for k in [10, 1000] {
        bench.run(
            &format!("top {k} of 100000"),
            Bound::Numbers(scores.len()),
            || kernels::top_k(&scores, k),
        );
    }
}

/// SimHash, and product quantisation of encodings of 10240 coordinates.
fn fixed_dimensional(bench: &mut Bench) {
    let (planes, partitions) = (5, 20);
    let products = random(40 * planes * partitions, 21);
    let mut cells = vec![0; 40 * partitions];
    bench.run(
        "simhash 40 x 20 cells of 5 planes",
        Bound::Numbers(products.len()),
        || {
            kernels::simhash_cells(&products, planes, partitions, &mut cells);
        },
    );
    let (dim, docs) = (10_240, 64 * 64);
    let vector = random(dim, 22);
    for (bits, len) in [(4, 4), (8, 8)] {
        let pq = kernels::ProductQuantizer::new(dim, len, bits, random(dim << bits, 23)).unwrap();
        let name = format!("{}x{len}", 1 << bits);
        let mut codes = vec![0; pq.groups()];
        bench.run(&format!("pq encode {name}"), Bound::Numbers(dim), || {
            pq.encode(&vector, &mut codes);
        });
        // A third of the cells, as queries of ten vectors have it.
        let width = 16 / len as u32;
        let used: Vec<u32> = (0..pq.groups() as u32)
            .filter(|g| (g / width).is_multiple_of(3))
            .collect();
        let values = random(used.len() * len, 24);
        bench.run(
            &format!("pq tables {name}"),
            Bound::Numbers(used.len() << bits),
            || pq.query(&used, &values),
        );
        let query = pq.query(&used, &values);
        let block: Vec<u8> = random(pq.block_bytes(), 25)
            .iter()
            .map(|x| (x * 128.0) as i32 as u8)
            .collect();
        let blocks = block.repeat(docs / 64);
        let mut out = vec![0.0; docs];
        let bytes = used.len() * docs * bits as usize / 8;
        bench.run(
            &format!("pq scan {name}, {docs} documents"),
            Bound::Bytes(bytes),
            || query.scan(&blocks, &mut out),
        );
    }
}
