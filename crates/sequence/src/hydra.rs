//! Hydra: a layer that reads a sequence from both sides with two scans of Mamba-2.
//!
//! S. Hwang, A. Lahoti, T. Dao and A. Gu, 2024, Hydra: Bidirectional State Space Models Through
//! Generalized Matrix Mixers. `L` positions of `D` numbers, `Di = H P` channels in `H` heads,
//! `G` groups, `N` state numbers:
//!
//! ```text
//! z, x, BC→, BC←, dt→, dt← = parts of W_in u
//! x, BC→, BC← = silu(conv(x, BC→, BC←))             odd width, looks to both sides
//! y = shift(scan(x, dt→, BC→)) + shift'(scan'(x, dt←, BC←)) + (D + W_D x) x
//! out = W_out (norm(y) silu(z))
//! ```
//!
//! `scan'` goes from the end, and each result moves on by one position in its own direction, so
//! that the diagonal is free. As a matrix of a head, with `a_t = exp(dt_t A)`:
//!
//! ```text
//! M_ij = C→_{i-1} · (Π_{t=j+1..i-1} a→_t) dt→_j B→_j        i > j
//! M_ij = C←_{i+1} · (Π_{t=i+1..j-1} a←_t) dt←_j B←_j        i < j
//! ```
//!
//! Time and memory grow with `L`. A padded sequence is computed without its pads: fed as zeros
//! they would not be neutral, since the convolution has a bias and the second scan begins with
//! them. Tensor names are those of the authors.

use keyfold_kernels::scan::{Rows, SSD_CHUNK, Ssd, ssd_scan};
use keyfold_kernels::{Team, depthwise_conv, matmul_nt, rms_norm, silu, softplus};

use crate::SequenceError;
use crate::matrix_mixers::shape;

/// Sizes of a layer; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HydraConfig {
    /// `D`.
    pub d_model: usize,
    /// `N`.
    pub d_state: usize,
    /// Width of the convolution, odd.
    pub d_conv: usize,
    /// `Di / D`.
    pub expand: usize,
    /// `P`.
    pub headdim: usize,
    /// `G`.
    pub ngroups: usize,
}

impl Default for HydraConfig {
    fn default() -> Self {
        Self {
            d_model: 768,
            d_state: 64,
            d_conv: 7,
            expand: 2,
            headdim: 64,
            ngroups: 1,
        }
    }
}

/// Weights of a layer, as PyTorch stores them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HydraWeights {
    /// `[2 Di + 4 G N + 2 H, D]`.
    pub in_proj_weight: Vec<f32>,
    /// `[Di + 4 G N, width]`.
    pub conv1d_weight: Vec<f32>,
    /// `[Di + 4 G N]`.
    pub conv1d_bias: Vec<f32>,
    /// `[H]`, of both directions.
    pub dt_bias: Vec<f32>,
    /// `[H]`, of both directions.
    pub a_log: Vec<f32>,
    /// `[H]`.
    pub d: Vec<f32>,
    /// `[H, Di]`.
    pub fc_d_weight: Vec<f32>,
    /// `[Di]`.
    pub norm_weight: Vec<f32>,
    /// `[D, Di]`.
    pub out_proj_weight: Vec<f32>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Hydra {
    config: HydraConfig,
    weights: HydraWeights,
    /// `[width, channels]`.
    conv: Vec<f32>,
}

/// What the scans of one sequence read.
struct Mixed {
    z: Vec<f32>,
    x: Vec<f32>,
    /// By direction: steps `[L, H]`, B and C `[L, G N]`; those of the second from the end.
    directions: [Direction; 2],
}

struct Direction {
    dt: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

/// What is added under the root of the norm.
const EPS: f32 = 1e-5;

impl Hydra {
    /// A layer of some weights.
    ///
    /// # Errors
    /// When sizes do not divide, the convolution's width is even, or a tensor has another shape.
    pub fn new(config: HydraConfig, weights: HydraWeights) -> Result<Self, SequenceError> {
        let (di, h, channels) = config.sizes()?;
        let (d, k) = (config.d_model, config.d_conv);
        for (what, numbers, rows, width) in [
            (
                "in_proj.weight",
                &weights.in_proj_weight,
                di + channels + 2 * h,
                d,
            ),
            ("conv1d.weight", &weights.conv1d_weight, channels, k),
            ("conv1d.bias", &weights.conv1d_bias, channels, 1),
            ("dt_bias", &weights.dt_bias, h, 1),
            ("A_log", &weights.a_log, h, 1),
            ("D", &weights.d, h, 1),
            ("fc_D.weight", &weights.fc_d_weight, h, di),
            ("norm.weight", &weights.norm_weight, di, 1),
            ("out_proj.weight", &weights.out_proj_weight, d, di),
        ] {
            shape(what, numbers, rows, width)?;
        }
        let by_tap = |i: usize| weights.conv1d_weight[i % channels * k + i / channels];
        let conv = (0..k * channels).map(by_tap).collect();
        Ok(Self {
            config,
            weights,
            conv,
        })
    }

    /// The layer's output `[L, D]` for `u` `[L, D]`, one sequence without pads.
    ///
    /// # Errors
    /// When there is no position or `u` is no whole number of rows.
    pub fn forward(&self, u: &[f32], team: &Team) -> Result<Vec<f32>, SequenceError> {
        let (di, h, _) = self.config.sizes()?;
        let (d, p) = (self.config.d_model, self.config.headdim);
        let mixed = self.mixed(u, team.threads())?;
        let l = u.len() / d;
        let mut y = vec![0.0; l * di];
        for (side, direction) in mixed.directions.iter().enumerate() {
            let found = match side {
                0 => self.scan(&mixed.x, direction, team),
                _ => self.scan(&reversed(&mixed.x, di), direction, team),
            };
            // A result belongs to the next position of its direction.
            for (t, row) in found.chunks_exact(di).take(l - 1).enumerate() {
                let to = if side == 0 { t + 1 } else { l - 2 - t };
                keyfold_kernels::add_assign(&mut y[to * di..][..di], row);
            }
        }
        let mut diagonal = vec![0.0; l * h];
        matmul_nt(
            &mut diagonal,
            &mixed.x,
            &self.weights.fc_d_weight,
            l,
            h,
            di,
            team.threads(),
        );
        keyfold_kernels::add_bias(&mut diagonal, &self.weights.d);
        for (i, y) in y.iter_mut().enumerate() {
            *y += diagonal[i / p] * mixed.x[i];
        }
        rms_norm(&mut y, di, &self.weights.norm_weight, EPS);
        let mut gated = mixed.z;
        keyfold_kernels::silu_mul(&mut gated, &y);
        let mut out = vec![0.0; l * d];
        matmul_nt(
            &mut out,
            &gated,
            &self.weights.out_proj_weight,
            l,
            d,
            di,
            team.threads(),
        );
        Ok(out)
    }

    /// The matrix `[L, L]` by which a head mixes the convolved `x` of `u`: for inspection.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or when there are more than 2,048 positions or not so
    /// many heads.
    pub fn matrix(&self, u: &[f32], head: usize) -> Result<Vec<f32>, SequenceError> {
        let (di, heads, _) = self.config.sizes()?;
        let mixed = self.mixed(u, 1)?;
        let l = u.len() / self.config.d_model;
        if head >= heads || l > 2_048 {
            return Err(SequenceError::Refused(format!(
                "matrices are those of {heads} heads and up to 2048 positions; head {head} of {l} was asked for"
            )));
        }
        let n = self.config.d_state;
        let group = head / (heads / self.config.ngroups) * n;
        let rate = -self.weights.a_log[head].exp();
        let mut out = vec![0.0; l * l];
        for (side, direction) in mixed.directions.iter().enumerate() {
            let row = |t: usize| {
                let at = t * self.config.ngroups * n + group;
                at..at + n
            };
            for from in 0..l {
                let dt = |t: usize| direction.dt[t * heads + head];
                let written = &direction.b[row(from)];
                let mut decay = dt(from);
                // Read at `at`, for the position after it.
                for at in from..l - 1 {
                    if at > from {
                        decay *= (dt(at) * rate).exp();
                    }
                    let product = keyfold_kernels::dot(&direction.c[row(at)], written);
                    let (i, j) = match side {
                        0 => (at + 1, from),
                        _ => (l - 2 - at, l - 1 - from),
                    };
                    out[i * l + j] = decay * product;
                }
            }
        }
        for t in 0..l {
            let x = &mixed.x[t * di..][..di];
            let weight = &self.weights.fc_d_weight[head * di..][..di];
            out[t * l + t] = self.weights.d[head] + keyfold_kernels::dot(x, weight);
        }
        Ok(out)
    }

    fn mixed(&self, u: &[f32], threads: usize) -> Result<Mixed, SequenceError> {
        let (di, h, channels) = self.config.sizes()?;
        let d = self.config.d_model;
        let l = u.len() / d;
        shape("the input", u, l, d)?;
        let width = di + channels + 2 * h;
        let mut projected = vec![0.0; l * width];
        matmul_nt(
            &mut projected,
            u,
            &self.weights.in_proj_weight,
            l,
            width,
            d,
            threads,
        );
        let part = |from: usize, len: usize| columns(&projected, width, from, len);
        let raw = part(di, channels);
        let mut convolved = vec![0.0; raw.len()];
        depthwise_conv(&mut convolved, &raw, &self.conv, &self.weights.conv1d_bias);
        silu(&mut convolved);
        let shared = self.config.ngroups * self.config.d_state;
        let of = |from: usize, len: usize| columns(&convolved, channels, from, len);
        let direction = |side: usize| {
            let mut dt = part(di + channels + side * h, h);
            keyfold_kernels::add_bias(&mut dt, &self.weights.dt_bias);
            softplus(&mut dt);
            let first = di + 2 * shared * side;
            let (b, c) = (of(first, shared), of(first + shared, shared));
            match side {
                0 => Direction { dt, b, c },
                _ => Direction {
                    dt: reversed(&dt, h),
                    b: reversed(&b, shared),
                    c: reversed(&c, shared),
                },
            }
        };
        Ok(Mixed {
            z: part(0, di),
            x: of(0, di),
            directions: [direction(0), direction(1)],
        })
    }

    fn scan(&self, x: &[f32], direction: &Direction, team: &Team) -> Vec<f32> {
        let config = &self.config;
        let (di, heads) = (config.expand * config.d_model, self.weights.d.len());
        let shared = config.ngroups * config.d_state;
        let a: Vec<f32> = self.weights.a_log.iter().map(|a| -a.exp()).collect();
        let inputs = Ssd {
            x: Rows::new(x, di),
            dt: Rows::new(&direction.dt, heads),
            a: &a,
            b: Rows::new(&direction.b, shared),
            c: Rows::new(&direction.c, shared),
            d: None,
            groups: config.ngroups,
        };
        let mut state = vec![0.0; di * config.d_state];
        let mut out = vec![0.0; x.len()];
        ssd_scan(&inputs, SSD_CHUNK, &mut state, &mut out, team);
        out
    }
}

impl HydraConfig {
    /// `Di`, `H`, and channels of the convolution.
    fn sizes(&self) -> Result<(usize, usize, usize), SequenceError> {
        let di = self.expand * self.d_model;
        let refuse = |what: String| Err(SequenceError::Refused(what));
        if di == 0 || self.d_state == 0 {
            return refuse("d_model, expand and d_state must be at least 1".into());
        }
        if self.headdim == 0 || !di.is_multiple_of(self.headdim) {
            return refuse(format!(
                "headdim {} does not divide expand · d_model, {di}",
                self.headdim
            ));
        }
        let heads = di / self.headdim;
        if self.ngroups == 0 || !heads.is_multiple_of(self.ngroups) {
            return refuse(format!(
                "ngroups {} does not divide {heads} heads",
                self.ngroups
            ));
        }
        if self.d_conv.is_multiple_of(2) {
            return refuse(format!(
                "the convolution's width, d_conv, is {}; it looks to both sides alike and must be odd",
                self.d_conv
            ));
        }
        Ok((di, heads, di + 4 * self.ngroups * self.d_state))
    }
}

/// Some columns of rows of `width`.
fn columns(rows: &[f32], width: usize, from: usize, len: usize) -> Vec<f32> {
    let rows = rows.chunks_exact(width);
    rows.flat_map(|row| &row[from..from + len])
        .copied()
        .collect()
}

/// Rows from the last to the first.
fn reversed(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width).rev().flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn config(groups: usize) -> HydraConfig {
        HydraConfig {
            d_model: 16,
            d_state: 8,
            headdim: 8,
            ngroups: groups,
            ..HydraConfig::default()
        }
    }

    fn random(config: &HydraConfig, seed: u64) -> Hydra {
        let (di, h, channels) = config.sizes().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = |n: usize, scale: f32| -> Vec<f32> {
            (0..n)
                .map(|_| scale * rng.random_range(-1.0f32..1.0))
                .collect()
        };
        let d = config.d_model;
        let weights = HydraWeights {
            in_proj_weight: draw((di + channels + 2 * h) * d, 0.4),
            conv1d_weight: draw(channels * config.d_conv, 0.4),
            conv1d_bias: draw(channels, 0.3),
            dt_bias: draw(h, 1.0),
            a_log: draw(h, 0.5),
            d: draw(h, 1.0),
            fc_d_weight: draw(h * di, 0.2),
            norm_weight: draw(di, 1.0),
            out_proj_weight: draw(d * di, 0.3),
        };
        Hydra::new(config.clone(), weights).unwrap()
    }

    fn input(l: usize, d: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(9);
        (0..l * d).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn a_layer_is_its_matrix() {
        for groups in [1, 2] {
            let layer = random(&config(groups), 3);
            let (di, heads, _) = layer.config.sizes().unwrap();
            for l in [1, 2, 9, 70] {
                let u = input(l, 16);
                let mixed = layer.mixed(&u, 1).unwrap();
                let mut y = vec![0.0; l * di];
                for head in 0..heads {
                    let m = layer.matrix(&u, head).unwrap();
                    for i in 0..l {
                        for p in head * 8..head * 8 + 8 {
                            y[i * di + p] =
                                (0..l).map(|j| m[i * l + j] * mixed.x[j * di + p]).sum();
                        }
                    }
                }
                rms_norm(&mut y, di, &layer.weights.norm_weight, EPS);
                let mut gated = mixed.z.clone();
                keyfold_kernels::silu_mul(&mut gated, &y);
                let mut want = vec![0.0; l * 16];
                matmul_nt(
                    &mut want,
                    &gated,
                    &layer.weights.out_proj_weight,
                    l,
                    16,
                    di,
                    1,
                );
                let found = layer.forward(&u, &Team::new(2)).unwrap();
                for (a, b) in found.iter().zip(&want) {
                    assert!((a - b).abs() < 1e-4, "{l}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_layer_is_that_of_pytorch() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hydra.json");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let json = &json["layer"];
        let of = |name: &str| -> Vec<f32> { serde_json::from_value(json[name].clone()).unwrap() };
        let weights = HydraWeights {
            in_proj_weight: of("in_proj.weight"),
            conv1d_weight: of("conv1d.weight"),
            conv1d_bias: of("conv1d.bias"),
            dt_bias: of("dt_bias"),
            a_log: of("A_log"),
            d: of("D"),
            fc_d_weight: of("fc_D.weight"),
            norm_weight: of("norm.weight"),
            out_proj_weight: of("out_proj.weight"),
        };
        let layer = Hydra::new(config(1), weights).unwrap();
        for l in [1, 2, 9, 64] {
            let found = layer.forward(&of("u")[..l * 16], &Team::new(1)).unwrap();
            for (a, b) in found.iter().zip(of(&format!("out{l}"))) {
                assert!((a - b).abs() < 1e-5, "{l}: {a} {b}");
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        let with = |change: &dyn Fn(&mut HydraConfig)| {
            let mut c = config(1);
            change(&mut c);
            Hydra::new(c, HydraWeights::default())
                .unwrap_err()
                .to_string()
        };
        assert!(with(&|c| c.headdim = 5).contains("headdim 5"));
        assert!(with(&|c| c.d_conv = 4).contains("d_conv"));
        assert!(with(&|c| c.ngroups = 3).contains("ngroups 3"));
        assert!(with(&|_| ()).contains("in_proj.weight"));
        assert!(random(&config(1), 1).forward(&[], &Team::new(1)).is_err());
        assert!(
            random(&config(1), 1)
                .forward(&[1.0; 15], &Team::new(1))
                .is_err()
        );
    }
}
