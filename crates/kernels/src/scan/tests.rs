use super::selective::{SLAB, scan_slabs_body};
use super::selective_backward::backward_slabs_body;
use super::ssd::{chunks_body, recur_body};
use super::*;
use crate::Team;
use crate::vector::Portable;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn draw(rng: &mut SmallRng, n: usize, low: f32, high: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(low..high)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn close(a: &[f32], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(&a, &b)| (f64::from(a) - b).abs() <= tolerance * (1.0 + b.abs()))
}

/// Sizes and numbers of a scan.
#[derive(Clone)]
struct Numbers<S> {
    shape: S,
    x: Vec<f32>,
    dt: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
    state: Vec<f32>,
}

/// Those of Mamba.
type One = Numbers<(usize, usize, usize)>;

/// Those of Mamba-2.
type Two = Numbers<(usize, usize, usize, usize, usize)>;

impl<S> Numbers<S> {
    /// The numbers in a row, in f64: x, dt, a, b, c, d, state.
    fn all(&self) -> Vec<f64> {
        let parts = [
            &self.x,
            &self.dt,
            &self.a,
            &self.b,
            &self.c,
            &self.d,
            &self.state,
        ];
        parts.iter().flat_map(|p| wide(p)).collect()
    }
}

impl One {
    fn new(l: usize, d: usize, n: usize, seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        Self {
            shape: (l, d, n),
            x: draw(rng, l * d, -1.0, 1.0),
            dt: draw(rng, l * d, 0.0, 0.7),
            a: draw(rng, n * d, -4.0, 0.0),
            b: draw(rng, l * n, -1.0, 1.0),
            c: draw(rng, l * n, -1.0, 1.0),
            d: draw(rng, d, -1.0, 1.0),
            state: draw(rng, n * d, -1.0, 1.0),
        }
    }

    fn inputs(&self) -> Selective<'_> {
        let (_, d, n) = self.shape;
        Selective {
            x: Rows::new(&self.x, d),
            dt: Rows::new(&self.dt, d),
            a: &self.a,
            b: Rows::new(&self.b, n),
            c: Rows::new(&self.c, n),
            d: Some(&self.d),
        }
    }

    fn scan(&self, threads: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut state, mut out) = (self.state.clone(), vec![0.0; self.x.len()]);
        selective_scan(
            &self.inputs(),
            None,
            &mut state,
            &mut out,
            &Team::new(threads),
        );
        (out, state)
    }

    /// The definition: output and last state.
    fn definition(&self, all: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (l, d, n) = self.shape;
        let mut rest = all;
        let mut take = |len| {
            let (first, other) = rest.split_at(len);
            rest = other;
            first
        };
        let (x, dt, a) = (take(l * d), take(l * d), take(n * d));
        let (b, c, skip) = (take(l * n), take(l * n), take(d));
        let mut h = take(n * d).to_vec();
        let mut out = vec![0.0; l * d];
        for t in 0..l {
            for ch in 0..d {
                let at = t * d + ch;
                out[at] = skip[ch] * x[at];
                for i in 0..n {
                    let h = &mut h[i * d + ch];
                    *h = (dt[at] * a[i * d + ch]).exp() * *h + dt[at] * b[t * n + i] * x[at];
                    out[at] += c[t * n + i] * *h;
                }
            }
        }
        (out, h)
    }
}

impl Two {
    fn new(l: usize, [groups, per_group, p, n]: [usize; 4], seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let heads = groups * per_group;
        Self {
            shape: (l, heads, p, groups, n),
            x: draw(rng, l * heads * p, -1.0, 1.0),
            dt: draw(rng, l * heads, 0.0, 0.5),
            a: draw(rng, heads, -3.0, 0.0),
            b: draw(rng, l * groups * n, -1.0, 1.0),
            c: draw(rng, l * groups * n, -1.0, 1.0),
            // One number for each channel on odd seeds, for each head on even ones.
            d: draw(
                rng,
                if seed % 2 == 1 { heads * p } else { heads },
                -1.0,
                1.0,
            ),
            state: draw(rng, heads * p * n, -1.0, 1.0),
        }
    }

    fn inputs(&self) -> Ssd<'_> {
        let (_, heads, p, groups, n) = self.shape;
        Ssd {
            x: Rows::new(&self.x, heads * p),
            dt: Rows::new(&self.dt, heads),
            a: &self.a,
            b: Rows::new(&self.b, groups * n),
            c: Rows::new(&self.c, groups * n),
            d: Some(&self.d),
            groups,
        }
    }

    fn scan(&self, chunk: usize, threads: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut state, mut out) = (self.state.clone(), vec![0.0; self.x.len()]);
        ssd_scan(
            &self.inputs(),
            chunk,
            &mut state,
            &mut out,
            &Team::new(threads),
        );
        (out, state)
    }

    fn definition(&self, all: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (l, heads, p, groups, n) = self.shape;
        let mut rest = all;
        let mut take = |len| {
            let (first, other) = rest.split_at(len);
            rest = other;
            first
        };
        let (x, dt, a) = (take(l * heads * p), take(l * heads), take(heads));
        let (b, c, d) = (
            take(l * groups * n),
            take(l * groups * n),
            take(self.d.len()),
        );
        let mut s = take(heads * p * n).to_vec();
        let mut out = vec![0.0; l * heads * p];
        for t in 0..l {
            for h in 0..heads {
                let group = (t * groups + h / (heads / groups)) * n;
                let dt = dt[t * heads + h];
                for i in 0..p {
                    let at = (t * heads + h) * p + i;
                    out[at] = if d.len() == heads { d[h] } else { d[h * p + i] } * x[at];
                    for j in 0..n {
                        let s = &mut s[(h * p + i) * n + j];
                        *s = (dt * a[h]).exp() * *s + dt * x[at] * b[group + j];
                        out[at] += c[group + j] * *s;
                    }
                }
            }
        }
        (out, s)
    }
}

/// Central differences of `Σ weights · f(all)` at some places.
fn slopes(
    all: &[f64],
    places: &[usize],
    f: impl Fn(&[f64]) -> (Vec<f64>, Vec<f64>),
    of_out: &[f32],
    of_state: &[f32],
) -> Vec<f64> {
    let loss = |all: &[f64]| -> f64 {
        let (out, state) = f(all);
        let dot =
            |x: &[f64], w: &[f32]| x.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum::<f64>();
        dot(&out, of_out) + dot(&state, of_state)
    };
    let step = 1e-5;
    let slope = |&place: &usize| {
        let mut moved = all.to_vec();
        moved[place] += step;
        let above = loss(&moved);
        moved[place] -= 2.0 * step;
        (above - loss(&moved)) / (2.0 * step)
    };
    places.iter().map(slope).collect()
}

/// Some places of a row of numbers, drawn.
fn some_places(len: usize, seed: u64) -> Vec<usize> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..40).map(|_| rng.random_range(0..len)).collect()
}

fn at<'a>(numbers: &'a [f32], places: &'a [usize]) -> Vec<f32> {
    places.iter().map(|&p| numbers[p]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_scan_is_the_recurrence(
        l in prop_oneof![0usize..9, 60usize..140], d in 1usize..40, n in 1usize..7,
        threads in 1usize..4, seed: u64,
    ) {
        let one = One::new(l, d, n, seed);
        let (out, state) = one.scan(threads);
        let (want, last) = one.definition(&one.all());
        prop_assert!(close(&out, &want, 2e-5) && close(&state, &last, 2e-5));
        let (mut twin, mut twin_state) = (vec![0.0; l * d], one.state.clone());
        scan_slabs_body::<Portable>(
            &one.inputs(), None, &Shared::new(&mut twin_state), &Shared::new(&mut twin), 0..d.div_ceil(SLAB),
        );
        prop_assert!(close(&twin, &want, 2e-5) && close(&twin_state, &last, 2e-5));
    }

    #[test]
    fn a_scan_in_two_parts_and_step_by_step_is_the_whole(l in 1usize..100, cut in 0usize..100, seed: u64) {
        let one = One::new(l, 20, 3, seed);
        let cut = cut.min(l);
        let (whole, last) = one.scan(2);
        let team = Team::new(2);
        let mut state = one.state.clone();
        let mut out = vec![0.0; l * 20];
        let (before, after) = out.split_at_mut(cut * 20);
        selective_scan(&one.inputs().tokens(0..cut), None, &mut state, before, &team);
        for (t, out) in (cut..l).zip(after.chunks_exact_mut(20)) {
            selective_scan(&one.inputs().tokens(t..t + 1), None, &mut state, out, &team);
        }
        prop_assert_eq!(out, whole);
        prop_assert_eq!(state, last);
    }

    #[test]
    fn a_gate_multiplies_by_silu(l in 0usize..70, seed: u64) {
        let one = One::new(l, 18, 2, seed);
        let z = draw(&mut SmallRng::seed_from_u64(!seed), l * 18, -3.0, 3.0);
        let (plain, last) = one.scan(1);
        let (mut gated, mut state) = (vec![0.0; l * 18], one.state.clone());
        selective_scan(&one.inputs(), Some(Rows::new(&z, 18)), &mut state, &mut gated, &Team::new(1));
        let want: Vec<f64> = plain.iter().zip(&z).map(|(&y, &z)| {
            f64::from(y) * f64::from(z) / (1.0 + f64::from(-z).exp())
        }).collect();
        prop_assert!(close(&gated, &want, 1e-6));
        prop_assert_eq!(state, last);
    }

    #[test]
    fn gradients_of_a_scan_are_its_slopes(
        l in prop_oneof![0usize..9, 62usize..68, 129usize..131], d in 1usize..20, n in 1usize..5,
        threads in 1usize..4, seed: u64,
    ) {
        let one = One::new(l, d, n, seed);
        let rng = &mut SmallRng::seed_from_u64(!seed);
        let (of_out, of_state) = (draw(rng, l * d, -1.0, 1.0), draw(rng, n * d, -1.0, 1.0));
        let mut dstate = of_state.clone();
        let g = selective_scan_backward(&one.inputs(), &one.state, &of_out, &mut dstate, &Team::new(threads));
        let found = [g.x.clone(), g.dt, g.a, g.b, g.c, g.d, dstate].concat();
        let all = one.all();
        let places = some_places(all.len(), seed);
        let want = slopes(&all, &places, |all| one.definition(all), &of_out, &of_state);
        prop_assert!(close(&at(&found, &places), &want, 3e-4));

        let mut twin = [vec![0.0; l * d], vec![0.0; l * d], vec![0.0; n * d], vec![0.0; d], of_state.clone()];
        let [x, dt, a, skip, state] = &mut twin;
        let shared = SharedGradients {
            x: Shared::new(x), dt: Shared::new(dt), a: Shared::new(a), d: Shared::new(skip), state: Shared::new(state),
        };
        let mut sums = [vec![0.0; l * n], vec![0.0; l * n]];
        backward_slabs_body::<Portable>(
            &one.inputs(), &one.state, Rows::new(&of_out, d), &shared, &mut sums, 0..d.div_ceil(SLAB),
        );
        prop_assert!(close(&twin[0], &wide(&g.x), 1e-4));
    }

    #[test]
    fn a_scan_of_heads_is_the_recurrence(
        l in prop_oneof![0usize..12, 12usize..100], chunk in 1usize..70,
        groups in 1usize..3, per_group in 1usize..4, p in 1usize..36, n in 1usize..20,
        threads in 1usize..4, seed: u64,
    ) {
        let two = Two::new(l, [groups, per_group, p, n], seed);
        let (out, state) = two.scan(chunk, threads);
        let (want, last) = two.definition(&two.all());
        prop_assert!(close(&out, &want, 3e-5) && close(&state, &last, 3e-5));
        let (mut twin, mut states) = (vec![0.0; out.len()], two.state.clone());
        recur_body::<Portable>(&two.inputs(), &mut states, &Shared::new(&mut twin), 0..groups * per_group);
        prop_assert!(close(&twin, &want, 3e-5) && close(&states, &last, 3e-5));
        let (mut twin, mut states) = (vec![0.0; out.len()], two.state.clone());
        chunks_body::<Portable>(&two.inputs(), chunk, &mut states, &Shared::new(&mut twin), 0..groups * per_group);
        prop_assert!(close(&twin, &want, 3e-5) && close(&states, &last, 3e-5));
    }

    #[test]
    fn gradients_of_a_scan_of_heads_are_its_slopes(
        l in prop_oneof![1usize..5, 20usize..40], chunk in prop_oneof![1usize..5, 10usize..50],
        groups in 1usize..3, per_group in 1usize..3, p in 1usize..5, n in 1usize..6,
        threads in 1usize..4, seed: u64,
    ) {
        let two = Two::new(l, [groups, per_group, p, n], seed);
        let rng = &mut SmallRng::seed_from_u64(!seed);
        let of_out = draw(rng, two.x.len(), -1.0, 1.0);
        let of_state = draw(rng, two.state.len(), -1.0, 1.0);
        let mut dstate = of_state.clone();
        let team = Team::new(threads);
        let g = ssd_scan_backward(&two.inputs(), chunk, &two.state, &of_out, &mut dstate, &team);
        let found = [g.x, g.dt, g.a, g.b, g.c, g.d, dstate].concat();
        let all = two.all();
        let places = some_places(all.len(), seed);
        let want = slopes(&all, &places, |all| two.definition(all), &of_out, &of_state);
        prop_assert!(close(&at(&found, &places), &want, 3e-4));
    }

    #[test]
    fn pads_on_either_side_change_nothing(left in 0usize..20, len in 1usize..80, right in 0usize..20, seed: u64) {
        let tokens = left..left + len;
        let one = One::new(left + len + right, 17, 3, seed);
        let alone = One {
            shape: (len, 17, 3),
            x: one.x[left * 17..][..len * 17].to_vec(),
            dt: one.dt[left * 17..][..len * 17].to_vec(),
            b: one.b[left * 3..][..len * 3].to_vec(),
            c: one.c[left * 3..][..len * 3].to_vec(),
            ..one.clone()
        };
        let (mut state, mut out) = (one.state.clone(), vec![0.0; len * 17]);
        selective_scan(&one.inputs().tokens(tokens.clone()), None, &mut state, &mut out, &Team::new(1));
        prop_assert_eq!((out, state), alone.scan(1));

        let two = Two::new(left + len + right, [1, 2, 3, 4], seed);
        let alone = Two {
            shape: (len, 2, 3, 1, 4),
            x: two.x[left * 6..][..len * 6].to_vec(),
            dt: two.dt[left * 2..][..len * 2].to_vec(),
            b: two.b[left * 4..][..len * 4].to_vec(),
            c: two.c[left * 4..][..len * 4].to_vec(),
            ..two.clone()
        };
        let (mut state, mut out) = (two.state.clone(), vec![0.0; len * 6]);
        ssd_scan(&two.inputs().tokens(tokens), 16, &mut state, &mut out, &Team::new(1));
        prop_assert_eq!((out, state), alone.scan(16, 1));
    }

    #[test]
    fn a_convolution_looks_back_over_calls(
        l in 0usize..12, cut in 0usize..12, channels in 1usize..20, width in 1usize..6, seed: u64,
    ) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let (weight, bias) = (draw(rng, channels * width, -1.0, 1.0), draw(rng, channels, -1.0, 1.0));
        let x = draw(rng, l * channels, -1.0, 1.0);
        let conv = CausalConv::new(&weight, bias.clone());
        let mut want = Vec::new();
        for t in 0..l {
            for c in 0..channels {
                let back = |k: usize| (t + k + 1).checked_sub(width).map_or(0.0, |from| x[from * channels + c]);
                let sum: f32 = (0..width).map(|k| weight[c * width + k] * back(k)).sum();
                want.push(f64::from(sum + bias[c]));
            }
        }
        let mut state = vec![0.0; conv.state_len()];
        let mut out = vec![0.0; x.len()];
        let cut = cut.min(l);
        let rows = Rows::new(&x, channels);
        let (before, after) = out.split_at_mut(cut * channels);
        conv.forward(rows.part(0..cut), &mut state, before, false, &Team::new(2));
        conv.forward(rows.part(cut..l), &mut state, after, false, &Team::new(2));
        prop_assert!(close(&out, &want, 1e-5));
        let mut twin = vec![0.0; x.len()];
        let (by_tap, zeros) = (
            (0..width * channels).map(|i| weight[i % channels * width + i / channels]).collect::<Vec<_>>(),
            vec![0.0; conv.state_len()],
        );
        super::conv::conv_rows_body::<Portable>(&mut twin, rows, &zeros, &by_tap, &bias, 0);
        prop_assert!(close(&twin, &want, 1e-5));

        // A convolution is linear in each of its inputs: Σ gradient · input is Σ dout · output.
        let dout = draw(rng, x.len(), -1.0, 1.0);
        let g = conv.backward(rows, &dout);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let without_bias = dot(&dout, &twin) - dot(&g.bias, &bias);
        prop_assert!((dot(&g.x, &x) - without_bias).abs() < 1e-3);
        prop_assert!((dot(&g.weight, &by_tap) - without_bias).abs() < 1e-3);
        let sum: f32 = dout.iter().step_by(channels).sum();
        prop_assert!(l == 0 || (g.bias[0] - sum).abs() < 1e-4);
    }
}

#[test]
fn a_step_of_length_zero_passes_a_token_over() {
    let mut one = One::new(3, 5, 2, 7);
    one.dt[5..10].fill(0.0);
    let (_, state) = one.scan(1);
    let mut without = one.state.clone();
    let team = Team::new(1);
    for t in [0, 2] {
        selective_scan(
            &one.inputs().tokens(t..t + 1),
            None,
            &mut without,
            &mut [0.0; 5],
            &team,
        );
    }
    assert_eq!(state, without);
}

#[test]
fn large_steps_forget_and_do_not_overflow() {
    let mut two = Two::new(40, [1, 2, 3, 4], 4);
    two.dt.fill(500.0);
    two.a.fill(-30.0);
    let (out, state) = two.scan(16, 1);
    let (want, last) = two.definition(&two.all());
    assert!(close(&out, &want, 1e-5) && close(&state, &last, 1e-5));
    let mut one = One::new(40, 4, 2, 4);
    one.dt.fill(5_000.0);
    let (out, _) = one.scan(1);
    assert!(close(&out, &one.definition(&one.all()).0, 1e-5));
}

#[test]
fn what_is_not_a_number_stays_in_its_channel() {
    let mut one = One::new(4, 3, 2, 1);
    one.dt[4] = f32::NAN;
    let (out, _) = one.scan(1);
    assert!(out[4].is_nan() && out[7].is_nan());
    assert!(
        out.iter()
            .enumerate()
            .all(|(i, x)| i % 3 == 1 || x.is_finite())
    );
}
