#![allow(warnings)]
use keyfold_core::*;
use keyfold_data::Passage;
use keyfold_search::candidates::*;
use keyfold_search::codebook::*;
use keyfold_search::store::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Instant;
fn rd<T: bytemuck::Pod>(p: &str) -> Vec<T> {
    std::fs::read(p)
        .unwrap()
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect()
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::path::Path::new(&a[1]);
    let n: usize = a[2].parse().unwrap();
    let dim: usize = a[3].parse().unwrap();
    let bits: Bits = a[4].parse().unwrap();
    let d = "/tmp/kfb/real/";
    let rows: Vec<u16> = rd(&format!("{d}rows.f16"));
    let ids: Vec<u32> = rd(&format!("{d}ids.u32"));
    let len: Vec<u32> = rd(&format!("{d}len.u32"));
    let idf: Vec<f32> = rd(&format!("{d}idf.f32"));
    let mut off = vec![0usize];
    for l in &len {
        off.push(off.last().unwrap() + *l as usize);
    }
    let held = 54000;
    let row = |i: usize| -> Vec<f32> {
        rows[i * 128..i * 128 + dim]
            .iter()
            .map(|&x| half::f16::from_bits(x).to_f32())
            .collect()
    };
    if !dir.join("manifest").exists() {
        let t = Instant::now();
        let id = EncoderIdentity {
            name: "x".into(),
            hash: "x".into(),
            dim,
        };
        let mut w = Writer::open(
            dir,
            &id,
            &WriterOptions {
                bits: Some(bits),
                memory: 1 << 30,
                threads: 2,
                ..Default::default()
            },
        )
        .unwrap();
        w.expect_tokens(n as u64 * 130);
        let mut rng = SmallRng::seed_from_u64(5);
        let recombine = n * 3 > held;
        let mut next = 0usize;
        for f in 0..n.div_ceil(100) {
            let key = format!("{f}");
            w.begin_file(&key);
            let (mut ps, mut cs, mut rs) = (vec![], vec![], vec![]);
            for p in f * 100..n.min(f * 100 + 100) {
                let mut c = 0;
                let s = rs.len();
                for _ in 0..3 {
                    let t = if recombine {
                        rng.random_range(0..held)
                    } else {
                        next += 1;
                        next - 1
                    };
                    for i in off[t]..off[t + 1] {
                        rs.extend(row(i));
                        c += 1;
                    }
                }
                if recombine {
                    for x in &mut rs[s..] {
                        *x += rng.random_range(-1.0f32..1.0) * 0.02;
                    }
                }
                cs.push(c);
                ps.push(Passage {
                    text: p.to_string(),
                    headings: vec![],
                    lines: 0..0,
                    part: None,
                    bytes: 0..0,
                });
            }
            keyfold_kernels::normalize_rows(&mut rs, dim);
            w.add_passages("x", 0, &ps, &cs, Rows::Raw(&rs)).unwrap();
            w.end_file(FileRecord {
                key,
                size: 0,
                modified: 0,
                hash: None,
                state: FileState::Read("x".into()),
            })
            .unwrap();
        }
        w.commit().unwrap();
        println!("built {n} in {:.1}s", t.elapsed().as_secs_f64());
    }
    let snap = Snapshot::open(dir).unwrap();
    let seg = &snap.segments()[0];
    let cb = seg.codebook();
    let k = cb.count();
    let np = seg.passages();
    println!("{} passages {} rows K {}", np, seg.tokens(), k);
    let posts: Vec<&[u32]> = (0..k).map(|c| seg.postings(c as u16).unwrap()).collect();
    let mut pl: Vec<usize> = posts.iter().map(|p| p.len()).collect();
    let total: usize = pl.iter().sum();
    pl.sort();
    println!(
        "postings total {} mean {:.0} median {} p99 {} max {}",
        total,
        total as f64 / k as f64,
        pl[k / 2],
        pl[k * 99 / 100],
        pl[k - 1]
    );
    let mut rng = SmallRng::seed_from_u64(9);
    let nq: usize = std::env::var("NQ").map_or(60, |x| x.parse().unwrap());
    let queries: Vec<Vectors> = (0..nq)
        .map(|_| {
            loop {
                let t = rng.random_range(held..len.len());
                let l = rng.random_range(5..=20).min(len[t] as usize);
                if l < 5 {
                    continue;
                }
                let mut v = vec![];
                for i in off[t]..off[t] + l {
                    let mut r = row(i);
                    keyfold_kernels::normalize_rows(&mut r, dim);
                    let w = idf[ids[i] as usize].max(0.02);
                    v.extend(r.iter().map(|x| x * w));
                }
                break Vectors::new(dim, v).unwrap();
            }
        })
        .collect();
    {
        let mut s = vec![];
        for i in 0..200 {
            s.extend(row(i * 1000));
        }
        keyfold_kernels::normalize_rows(&mut s, dim);
        println!("{:?}", cb.loss(&s, 2));
    }
    let t = Instant::now();
    let truth: Vec<Vec<(usize, f32)>> = if std::env::var("NOTRUTH").is_ok() {
        vec![vec![]; nq]
    } else {
        vec![]
    };
    let truth = if !truth.is_empty() {
        truth
    } else {
        queries
            .iter()
            .map(|q| {
                nearest(
                    snap.segments(),
                    q,
                    10,
                    None,
                    &CandidateOptions {
                        exhaustive: true,
                        threads: 2,
                        ..Default::default()
                    },
                )
                .unwrap()
                .0
                .into_iter()
                .map(|r| (r.passage as usize, r.score))
                .collect()
            })
            .collect::<Vec<_>>()
    };
    println!(
        "exhaustive {:.1} ms",
        t.elapsed().as_secs_f64() * 1e3 / nq as f64
    );
    let id2local: std::collections::HashMap<u64, usize> = (0..np)
        .map(|l| (seg.passage_id(l as u32).unwrap(), l))
        .collect();
    let report = |name: String, ranks: &mut Vec<usize>, work: usize, us: f64| {
        ranks.sort();
        let q = |f: f64| ranks[((ranks.len() as f64 * f) as usize).min(ranks.len() - 1)];
        println!(
            "{name:34} rank needed for .90 {:6} .95 {:6} .97 {:6} .98 {:6} .99 {:6}  postings/query {:8} {:.0} us",
            q(0.90),
            q(0.95),
            q(0.97),
            q(0.98),
            q(0.99),
            work / nq,
            us / nq as f64
        );
    };

    for (pr, es, ex) in [(16, 4096, 128)] {
        for th in [1] {
            let o = CandidateOptions {
                probes: pr,
                estimated: es,
                exact: ex,
                threads: th,
                ..Default::default()
            };
            let mut f = 0;
            let mut ts = vec![];
            let mut sum = [0f64; 4];
            for (q, tr) in queries.iter().zip(&truth) {
                let mut best = (f64::MAX, None);
                for _ in 0..std::env::var("REP").map_or(5, |x| x.parse().unwrap()) {
                    let t = Instant::now();
                    let r = nearest(snap.segments(), q, 10, None, &o).unwrap();
                    let e = t.elapsed().as_secs_f64() * 1e3;
                    if e < best.0 {
                        best = (e, Some(r));
                    }
                }
                let (l, tm) = best.1.unwrap();
                ts.push(best.0);
                f += tr
                    .iter()
                    .filter(|x| l.iter().any(|y| y.passage as usize == x.0))
                    .count();
                for (s, d) in
                    sum.iter_mut()
                        .zip([tm.centroids, tm.probing, tm.estimating, tm.exact])
                {
                    *s += d.as_secs_f64() * 1e3 / nq as f64;
                }
            }
            ts.sort_by(f64::total_cmp);
            println!(
                "probes {pr} est {es} exact {ex} th {th}: recall {:.4} p50 {:.2} p95 {:.2}  centroids {:.2} probing {:.2} estimating {:.2} exact {:.2}",
                f as f64 / (nq * 10) as f64,
                ts[nq / 2],
                ts[nq * 95 / 100],
                sum[0],
                sum[1],
                sum[2],
                sum[3]
            );
        }
    }
}
