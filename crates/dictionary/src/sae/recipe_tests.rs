//! Dead codes that begin anew, rates that fall, and attributions.

use super::tests::{close, rows, tensors};
use super::*;
use crate::Learner;

fn recipe(d_sae: usize, steps: &[u64]) -> SaeConfig {
    SaeConfig {
        architecture: SaeMethod::Standard,
        d_sae,
        normalize_decoder: true,
        l1_coefficient: 0.2,
        lr: 3e-3,
        batch_size: 64,
        dead_feature_window: 10,
        resample_steps: steps.to_vec(),
        ..SaeConfig::default()
    }
}

#[test]
fn dead_codes_begin_anew_at_rows_and_then_live() {
    let d = 8;
    let all = rows(64 * 40, d, 6);
    // Encoders that no row of this data ever opens.
    let dead_start = |config: SaeConfig| {
        let mut training = Training::new(config, d).unwrap();
        training.sae.b_enc[..12].fill(-100.0);
        training
    };
    let mut with = dead_start(recipe(32, &[20]));
    let mut without = dead_start(recipe(32, &[]));
    let (first, rest) = all.split_at(64 * 20 * d);
    with.partial_fit(first).unwrap();
    without.partial_fit(first).unwrap();
    let batch = &first[64 * 19 * d..];
    let alive: Vec<f32> = (12..32)
        .map(|j| kernels::norm(&with.sae.w_enc[j * d..][..d]))
        .collect();
    let mean = alive.iter().sum::<f32>() / 20.0;
    for j in 0..12 {
        let atom = &with.sae.w_dec[j * d..][..d];
        let cosine = |row: &[f32]| kernels::dot(row, atom) / kernels::norm(row);
        let best = batch.chunks_exact(d).map(cosine).fold(0.0, f32::max);
        assert!(best > 1.0 - 1e-5, "atom {j} is no row of the batch: {best}");
        let encoder = &with.sae.w_enc[j * d..][..d];
        let scaled: Vec<f32> = atom.iter().map(|x| 0.2 * mean * x).collect();
        close(encoder, &scaled, 1e-4, "encoder");
        assert_eq!(with.sae.b_enc[j], 0.0);
    }
    // Those that were alive go on as if nothing were.
    assert_eq!(with.sae.w_enc[12 * d..], without.sae.w_enc[12 * d..]);
    with.partial_fit(rest).unwrap();
    without.partial_fit(rest).unwrap();
    assert!(without.losses().dead >= 12, "{:?}", without.losses());
    assert!(with.losses().dead < 6, "{:?}", with.losses());
}

#[test]
fn the_rate_warms_up_anew_and_falls_to_nothing() {
    let d = 8;
    let config = SaeConfig {
        lr_decay_start: 30,
        lr_decay_end: 40,
        resample_warm_up_steps: 10,
        ..recipe(32, &[20])
    };
    let all = rows(64 * 60, d, 6);
    let mut training = Training::new(config, d).unwrap();
    training.sae.b_enc[0] = -100.0;
    let moved = |training: &mut Training, step: usize| {
        let before = training.sae.b_dec.clone();
        training
            .partial_fit(&all[64 * d * step..][..64 * d])
            .unwrap();
        let moved: f32 = before
            .iter()
            .zip(&training.sae.b_dec)
            .map(|(a, b)| (a - b).abs())
            .sum();
        moved
    };
    let all: Vec<f32> = (0..50).map(|step| moved(&mut training, step)).collect();
    assert!(all[20] < 0.5 * all[19], "after codes began anew: {all:?}");
    assert!(all[38] < 0.5 * all[29], "while it falls: {all:?}");
    assert!(all[40..].iter().all(|x| *x == 0.0), "at its end: {all:?}");
}

#[test]
fn attribution_has_the_gradient_of_the_authors_code() {
    let t = tensors("attribution.safetensors");
    let part = |name: &str| t[name].clone();
    let d = 6;
    let config = SaeConfig {
        architecture: SaeMethod::Attribution,
        d_sae: 12,
        l1_coefficient: 0.0,
        attribution_sparsity_penalty: 0.7,
        unexplained_attribution_penalty: 0.3,
        ..SaeConfig::default()
    };
    let mut sae = Training::new(config.clone(), d).unwrap().sae;
    (sae.w_enc, sae.b_enc) = (part("w_enc"), part("b_enc"));
    (sae.w_dec, sae.b_dec) = (part("w_dec"), part("b_dec"));
    let mut training = Training::with_weights(config, sae).unwrap();
    let (gradients, losses) = training.gradients(&t["x"], &t["x"], Some(&t["metric"]));
    let want = part("losses");
    close(
        &[losses.mse as f32, losses.other as f32],
        &want,
        1e-5,
        "losses",
    );
    for (name, got) in gradients.parts().into_iter().take(4) {
        close(got, &part(&format!("grad.{name}")), 2e-5, name);
    }
    assert!(training.step(&t["x"], &t["x"]).is_err());
    assert!(
        training
            .step_attributed(&t["x"], &t["metric"][d..])
            .is_err()
    );
}

#[test]
fn attribution_keeps_what_the_metric_reads() {
    let d = 8;
    let all = rows(64 * 200, d, 7);
    // The metric reads the first column alone.
    let metric: Vec<f32> = (0..all.len()).map(|i| f32::from(i % d == 0)).collect();
    let config = SaeConfig {
        l1_coefficient: 2.0,
        attribution_sparsity_penalty: 0.0,
        unexplained_attribution_penalty: 20.0,
        ..recipe(32, &[])
    };
    let lost = |training: &Training| {
        let told = training.sae.forward(&all).unwrap();
        let parts = all.iter().zip(&told).step_by(d);
        parts.map(|(a, b)| (a - b).abs()).sum::<f32>()
    };
    let mut plain = Training::new(config.clone(), d).unwrap();
    plain.partial_fit(&all).unwrap();
    let config = SaeConfig {
        architecture: SaeMethod::Attribution,
        ..config
    };
    let mut with = Training::new(config, d).unwrap();
    for (rows, metric) in all.chunks(64 * d).zip(metric.chunks(64 * d)) {
        with.step_attributed(rows, metric).unwrap();
    }
    let (with, plain) = (lost(&with), lost(&plain));
    assert!(with < 0.5 * plain, "{with} against {plain}");
}
