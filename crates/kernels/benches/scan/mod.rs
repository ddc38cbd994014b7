//! The scans of Mamba and Mamba-2 in the shapes of mamba-130m and mamba2-130m (1,536 channels;
//! 16 state numbers of each, or 24 heads of 64 channels with 128). `keyfold bench
//! selective-scan` has the loops of other programs.

use keyfold_kernels::Team;
use keyfold_kernels::scan::{
    CausalConv, Rows, SSD_CHUNK, Selective, Ssd, selective_scan, selective_scan_backward, ssd_scan,
    ssd_scan_backward,
};

use crate::{Bench, Bound, random};

const TOKENS: usize = 512;
const CHANNELS: usize = 1536;
const STATES: usize = 16;
const HEADS: usize = 24;
const HEAD_STATES: usize = 128;

/// Operations of an exponential.
const EXP: usize = 13;

pub(crate) fn scan(bench: &mut Bench) {
    one(bench);
    two(bench);
    convolution(bench);
}

/// Step sizes as a model has them.
fn steps(n: usize) -> Vec<f32> {
    let small = |x: f32| 0.001 + 0.05 * (1.0 + x);
    random(n, 31).into_iter().map(small).collect()
}

fn one(bench: &mut Bench) {
    let (l, d, n) = (TOKENS, CHANNELS, STATES);
    let (x, dt) = (random(l * d, 30), steps(l * d));
    let (b, c) = (random(l * n, 32), random(l * n, 33));
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
    let team = Team::new(1);
    let bound = Bound::Flops(l * d * n * (EXP + 5));
    let (mut state, mut out) = (vec![0.0; n * d], vec![0.0; l * d]);
    bench.run(&format!("selective scan, {l} tokens"), bound, || {
        state.fill(0.0);
        selective_scan(&inputs, None, &mut state, &mut out, &team);
    });
    bench.run(
        "selective scan, 1 token",
        Bound::Flops(d * n * (EXP + 5)),
        || {
            selective_scan(&inputs.tokens(0..1), None, &mut state, &mut out[..d], &team);
        },
    );
    // The exponential and the state once more, then two operations for each gradient.
    let bound = Bound::Flops(l * d * n * (EXP + 3 + 15));
    let zeros = vec![0.0; n * d];
    bench.run(
        &format!("selective scan backward, {l} tokens"),
        bound,
        || {
            state.fill(0.0);
            selective_scan_backward(&inputs, &zeros, &x, &mut state, &team)
        },
    );
}

fn two(bench: &mut Bench) {
    let (l, d, n) = (TOKENS, CHANNELS, HEAD_STATES);
    let (x, dt) = (random(l * d, 34), steps(l * HEADS));
    let (b, c) = (random(l * n, 35), random(l * n, 36));
    let a: Vec<f32> = (1..=HEADS).map(|head| -(head as f32) / 2.0).collect();
    let skip = vec![1.0; HEADS];
    let inputs = Ssd {
        x: Rows::new(&x, d),
        dt: Rows::new(&dt, HEADS),
        a: &a,
        b: Rows::new(&b, n),
        c: Rows::new(&c, n),
        d: Some(&skip),
        groups: 1,
    };
    let team = Team::new(1);
    let (mut state, mut out) = (vec![0.0; d * n], vec![0.0; l * d]);
    // Into and out of the state, the lower half of a chunk's products, and those of b and c once.
    let operations = l * (d * (4 * n + SSD_CHUNK) + n * SSD_CHUNK);
    bench.run(
        &format!("scan of Mamba-2, {l} tokens in chunks of {SSD_CHUNK}"),
        Bound::Flops(operations),
        || {
            state.fill(0.0);
            ssd_scan(&inputs, SSD_CHUNK, &mut state, &mut out, &team);
        },
    );
    bench.run("scan of Mamba-2, 1 token", Bound::Flops(5 * d * n), || {
        ssd_scan(
            &inputs.tokens(0..1),
            SSD_CHUNK,
            &mut state,
            &mut out[..d],
            &team,
        )
    });
    let zeros = vec![0.0; d * n];
    bench.run(
        &format!("scan of Mamba-2 backward, {l} tokens"),
        Bound::Flops(3 * operations),
        || {
            state.fill(0.0);
            ssd_scan_backward(&inputs, SSD_CHUNK, &zeros, &x, &mut state, &team)
        },
    );
}

fn convolution(bench: &mut Bench) {
    let (l, d, taps) = (TOKENS, CHANNELS, 4);
    let conv = CausalConv::new(&random(d * taps, 37), vec![0.1; d]);
    let x = random(l * d, 38);
    let mut state = vec![0.0; conv.state_len()];
    let mut out = vec![0.0; l * d];
    let team = Team::new(1);
    let name = format!("causal convolution of {taps} with silu, {l} tokens");
    bench.run(&name, Bound::Numbers(l * d), || {
        conv.forward(Rows::new(&x, d), &mut state, &mut out, true, &team);
    });
}
