//! The scans by themselves.

use keyfold_kernels::peak;
use keyfold_kernels::scan::{
    Rows, SSD_CHUNK, Selective, Ssd, selective_scan, selective_scan_backward, ssd_scan,
    ssd_scan_backward,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::loops::{LOOPS, Plain};
use super::{Bench, asked};
use crate::report::{Table, reached};
use crate::timing::shortest;
use crate::{BenchError, plot};

/// Times as fast as the best other way that a scan shall be.
const AIM: f64 = 3.0;

/// Times as fast as token by token that chunks shall be.
const CHUNKS: f64 = 2.0;

/// Operations of a token, a channel and a state number: an exponential is counted as the 13 that
/// it is made of here.
const OPERATIONS: f64 = 13.0 + 5.0;

fn draw(rng: &mut StdRng, n: usize, low: f32, high: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(low..high)).collect()
}

/// Mamba's scan, ours and others'.
pub(super) fn one(bench: &mut Bench, table: &mut Table) -> Result<Value, BenchError> {
    let sizes = &bench.sizes;
    let (l, d, n) = (sizes.length, sizes.channels, sizes.states);
    let rng = &mut StdRng::seed_from_u64(bench.options.seed);
    let (x, dt) = (draw(rng, l * d, -1.0, 1.0), draw(rng, l * d, 0.001, 0.1));
    let (b, c) = (draw(rng, l * n, -1.0, 1.0), draw(rng, l * n, -1.0, 1.0));
    let a: Vec<f32> = (0..n * d).map(|i| -((i / d + 1) as f32)).collect();
    let skip = vec![1.0; d];
    let inputs = Selective {
        x: Rows::new(&x, d),
        dt: Rows::new(&dt, d),
        a: &a,
        b: Rows::new(&b, n),
        c: Rows::new(&c, n),
        d: Some(&skip),
    };
    let mut out = vec![0.0; l * d];
    let forward = shortest(sizes.runs, || {
        let mut state = vec![0.0; n * d];
        selective_scan(&inputs, None, &mut state, &mut out, &bench.team);
    });
    let zeros = vec![0.0; n * d];
    let backward = shortest(sizes.runs.div_ceil(2), || {
        let mut dstate = zeros.clone();
        let _ = selective_scan_backward(&inputs, &zeros, &x, &mut dstate, &bench.team);
    });
    let mut rows = vec![("keyfold".to_owned(), forward, Some(backward))];
    let plain = Plain::new(&inputs);
    let mut far = 0.0f32;
    for (name, work) in LOOPS {
        let mut found = Vec::new();
        let time = shortest(sizes.runs.div_ceil(2), || {
            found = plain.run(work, bench.team.threads());
        });
        far = far.max(plain.distance(&found, &out));
        rows.push((name.to_owned(), time, None));
    }
    let request = json!({
        "length": l, "channels": d, "states": n, "threads": bench.team.threads(),
        "runs": sizes.runs.min(3),
    });
    for peer in &bench.peers {
        let (there, back) = asked(peer, "selective-scan", &request, |line| {
            Some((least(line, "forward_ms")?, least(line, "backward_ms")?))
        })?;
        rows.push((peer.name.clone(), there, Some(back)));
    }
    let what = format!("Mamba, {d} channels, {n} states");
    for (by, there, back) in &rows {
        let back = back.map_or(String::new(), plot::shown);
        table.row([what.clone(), by.clone(), plot::shown(*there), back]);
        bench.bars.push((format!("{what}: {by}"), *there));
    }
    for (by, there, back) in &rows[1..] {
        let back = back.map_or(String::new(), |b| {
            format!(", and {:.1} backward", b / backward)
        });
        bench.findings.push(format!(
            "Mamba's scan is {:.1} times as fast as {by}{back}; aim: {AIM}, {}.",
            there / forward,
            reached(there / forward >= AIM)
        ));
    }
    let share =
        (l * d * n) as f64 * OPERATIONS / (forward / 1e3) / peak::peak_flops(bench.team.threads());
    bench.findings.push(format!(
        "It does {:.0} % of the operations that the machine can do at most; the loops differ by {far:.1e}.",
        100.0 * share
    ));
    let by = rows
        .iter()
        .map(|(by, there, back)| json!({"by": by, "forward_ms": there, "backward_ms": back}));
    Ok(json!({
        "length": l, "channels": d, "states": n, "share_of_peak": share, "by": by.collect::<Vec<_>>(),
    }))
}

/// The least of some numbers of a line, of which there must be one.
fn least(line: &Value, name: &str) -> Option<f64> {
    let times = line.get(name)?.as_array()?.iter().filter_map(Value::as_f64);
    let least = times.fold(f64::INFINITY, f64::min);
    least.is_finite().then_some(least)
}

/// Mamba-2's scan, in chunks and token by token.
pub(super) fn two(bench: &mut Bench, table: &mut Table) -> Value {
    let (sizes, team) = (&bench.sizes, &bench.team);
    let (l, heads, width, n) = (sizes.length, sizes.heads, sizes.width, sizes.head_states);
    let rng = &mut StdRng::seed_from_u64(bench.options.seed);
    let x = draw(rng, l * heads * width, -1.0, 1.0);
    let dt = draw(rng, l * heads, 0.001, 0.1);
    let a = draw(rng, heads, -16.0, -1.0);
    let (b, c) = (draw(rng, l * n, -1.0, 1.0), draw(rng, l * n, -1.0, 1.0));
    let skip = vec![1.0; heads];
    let inputs = Ssd {
        x: Rows::new(&x, heads * width),
        dt: Rows::new(&dt, heads),
        a: &a,
        b: Rows::new(&b, n),
        c: Rows::new(&c, n),
        d: Some(&skip),
        groups: 1,
    };
    let zeros = vec![0.0; heads * width * n];
    let mut out = vec![0.0; x.len()];
    let chunked = shortest(sizes.runs, || {
        let mut state = zeros.clone();
        ssd_scan(&inputs, SSD_CHUNK, &mut state, &mut out, team);
    });
    let backward = shortest(sizes.runs.div_ceil(2), || {
        let mut dstate = zeros.clone();
        let _ = ssd_scan_backward(&inputs, SSD_CHUNK, &zeros, &x, &mut dstate, team);
    });
    let stepped = shortest(sizes.runs.div_ceil(3), || {
        let mut state = zeros.clone();
        for (t, out) in out.chunks_exact_mut(heads * width).enumerate() {
            ssd_scan(&inputs.tokens(t..t + 1), SSD_CHUNK, &mut state, out, team);
        }
    });
    let what = format!("Mamba-2, {heads} heads of {width}, {n} states");
    let rows = [
        (format!("chunks of {SSD_CHUNK}"), chunked, Some(backward)),
        ("token by token".to_owned(), stepped, None),
    ];
    for (by, there, back) in &rows {
        let back = back.map_or(String::new(), plot::shown);
        table.row([what.clone(), by.clone(), plot::shown(*there), back]);
        bench.bars.push((format!("{what}: {by}"), *there));
    }
    bench.findings.push(format!(
        "Mamba-2's scan is {:.1} times as fast in chunks as token by token; aim: {CHUNKS}, {}.",
        stepped / chunked,
        reached(stepped / chunked >= CHUNKS)
    ));
    json!({"chunked_ms": chunked, "stepped_ms": stepped, "backward_ms": backward})
}
