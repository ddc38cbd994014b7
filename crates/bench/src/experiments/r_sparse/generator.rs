//! Errors of one product with made-up weights.

use faer::Mat;
use keyfold_core::Progress;
use keyfold_kernels::Team;
use keyfold_kernels::blocks::{Activations, BlockType};
use keyfold_lm::linear::Linear;
use keyfold_lm::linear::r_sparse::{Factors, Parts, RSparseLinear, Split, by_channel, svd};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::Part;
use crate::experiments::long_context::failed;
use crate::plot;
use crate::random::normal;
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Ways of leaving weights out: name, rho, whether channels are drawn, and the errors at
/// half and at seven tenths that the plan has measured with a falling spectrum.
const WAYS: [(&str, f64, bool, [f64; 2]); 6] = [
    ("|x|", 1.0, false, [0.105, 0.215]),
    ("|x| by column norm", NEARLY, false, [0.086, 0.181]),
    ("rho 0.95", 0.95, false, [0.079, 0.166]),
    ("rho 0.8", 0.8, false, [0.089, 0.171]),
    ("low rank only", 0.0, false, [0.389, 0.476]),
    ("random channels", 1.0, true, [0.80, 0.86]),
];

/// A share of whole channels that leaves nothing for the rank but weighs inputs.
pub(super) const NEARLY: f64 = 1.0 - 1e-9;

const SPARSITIES: [f64; 5] = [0.3, 0.4, 0.5, 0.6, 0.7];

/// Weights with a spectrum, and inputs of channels of different sizes.
struct Made {
    size: usize,
    /// `[out, in]`.
    weight: Vec<f32>,
    factors: Factors,
    /// `[n, in]`.
    inputs: Vec<f32>,
}

fn orthogonal(size: usize, rng: &mut StdRng) -> Mat<f64> {
    let noise = Mat::from_fn(size, size, |_, _| f64::from(normal(rng)));
    noise.qr().compute_thin_Q()
}

fn make(size: usize, samples: usize, flat: bool, seed: u64) -> Result<Made, BenchError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (u, v) = (orthogonal(size, &mut rng), orthogonal(size, &mut rng));
    let spectrum = |i: usize| {
        if flat {
            1.0
        } else {
            10.0 / (1.0 + i as f64).sqrt()
        }
    };
    let left = Mat::from_fn(size, size, |i, j| u[(i, j)] * spectrum(j));
    let product = &left * v.transpose();
    let scales: Vec<f64> = (0..size)
        .map(|_| f64::from(0.4 * normal(&mut rng)).exp())
        .collect();
    let weight: Vec<f32> = (0..size * size)
        .map(|i| (product[(i / size, i % size)] * scales[i % size]) as f32)
        .collect();
    let sizes: Vec<f32> = (0..size).map(|_| (0.7 * normal(&mut rng)).exp()).collect();
    let laplace = |rng: &mut StdRng| {
        let u: f32 = rng.random_range(-0.5..0.5);
        -u.signum() * (1.0 - 2.0 * u.abs()).max(1e-7).ln()
    };
    let inputs = (0..samples * size)
        .map(|i| laplace(&mut rng) * sizes[i % size])
        .collect();
    let factors = svd(&weight, size, size).map_err(failed("singular values"))?;
    Ok(Made {
        size,
        weight,
        factors,
        inputs,
    })
}

impl Made {
    /// The map with so much left out.
    fn map(&self, split: Split, random: bool, seed: u64) -> Result<RSparseLinear, BenchError> {
        let size = self.size;
        // Rows `[in, out]` of the transposed matrix, turned around once more.
        let by_output = by_channel(&self.weight, size, size, BlockType::F32).to_f32();
        let tensor = by_channel(&by_output, size, size, BlockType::F32);
        let cut = Some((&self.factors, split.rank(size, size)));
        let mut parts = Parts::new(&tensor, &split, None, cut, None);
        if random {
            // Channels that are drawn pass whatever they are.
            let mut rng = StdRng::seed_from_u64(seed);
            let one = |_| f32::from(u8::from(rng.random_bool(1.0 - split.sparsity)));
            parts.scales = (0..size).map(one).collect();
            parts.threshold = Some(0.0);
        } else if split.rho > 0.0 {
            let scale = |j: usize| parts.scales.get(j).copied().unwrap_or(1.0);
            let scaled = self.inputs.iter().enumerate();
            let mut scaled: Vec<f32> = scaled.map(|(i, x)| x.abs() * scale(i % size)).collect();
            scaled.sort_unstable_by(f32::total_cmp);
            let place = (scaled.len() as f64 * split.quantile()) as usize;
            parts.threshold = scaled.get(place.max(1) - 1).copied();
        }
        RSparseLinear::new(parts).map_err(failed("r-sparse"))
    }

    /// Mean of `|ŷ - y| / |y|`.
    fn error(&self, map: &RSparseLinear, team: &Team) -> f64 {
        let (size, n) = (self.size, self.inputs.len() / self.size);
        let apply = |decoding: bool| {
            let mut x = Activations::new();
            x.set(&self.inputs, size);
            let mut out = vec![0.0; n * size];
            map.apply(&mut x, &mut out, decoding, team);
            out
        };
        let (ours, whole) = (apply(true), apply(false));
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let rows = ours.chunks_exact(size).zip(whole.chunks_exact(size));
        let errors = rows.map(|(a, b)| {
            let off = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
            (off / norm(&mut b.iter().copied()).max(1e-30)).sqrt()
        });
        errors.sum::<f64>() / n as f64
    }
}

pub(super) fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Part, BenchError> {
    let (size, samples) = match options.scale {
        Scale::Smoke => (128, 64),
        _ => (512, 256),
    };
    let team = Team::new(options.thread_count());
    let (mut tables, mut values, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = Vec::new();
    progress.start("errors of products", "spectra", Some(2));
    for flat in [false, true] {
        let made = make(size, samples, flat, options.seed)?;
        let spectrum = if flat { "flat" } else { "falling" };
        let title = format!(
            "relative error of a product, {size} x {size}, {spectrum} spectrum, by the share of weights unread"
        );
        let columns = ["way", "0.3", "0.4", "0.5", "0.6", "0.7", "plan 0.5 / 0.7"];
        let mut table = Table::new(&title, &columns);
        for (name, rho, random, plan) in WAYS {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let error = |sparsity: f64| -> Result<f64, BenchError> {
                let map = made.map(Split { rho, sparsity }, random, options.seed ^ 1)?;
                Ok(made.error(&map, &team))
            };
            let errors: Vec<f64> = SPARSITIES
                .into_iter()
                .map(error)
                .collect::<Result<_, _>>()?;
            let mut cells = vec![name.to_owned()];
            cells.extend(errors.iter().map(|e| format!("{e:.3}")));
            cells.push(match flat {
                true => String::new(),
                false => format!("{:.3} / {:.3}", plan[0], plan[1]),
            });
            table.rows.push(cells);
            values.push(json!({"way": name, "spectrum": spectrum, "sparsity": SPARSITIES, "errors": errors}));
            at.push(errors[2]);
            if !flat {
                lines.push((
                    name.to_owned(),
                    SPARSITIES.into_iter().zip(errors).collect(),
                ));
            }
        }
        tables.push(table);
        progress.advance(1);
    }
    progress.finish();
    let (falling, flat) = at.split_at(WAYS.len());
    let findings = vec![format!(
        "half of the weights unread, falling spectrum: error {} by |x|, {} by column norms, {} with a twentieth for the rank, \
         {} low rank only, {} random channels (plan: .105, .086, .079, .389, .80). Flat spectrum: {} by column norms, {} with \
         the rank (plan: .087, .096): the rank pays where the spectrum falls: {}.",
        plot::shown(falling[0]),
        plot::shown(falling[1]),
        plot::shown(falling[2]),
        plot::shown(falling[4]),
        plot::shown(falling[5]),
        plot::shown(flat[1]),
        plot::shown(flat[2]),
        crate::experiments::long_context::holds(falling[2] < falling[1] && flat[2] > flat[1]),
    )];
    Ok(Part {
        tables,
        findings,
        values: json!(values),
        lines,
    })
}
