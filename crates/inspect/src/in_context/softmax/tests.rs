use faer::Mat;
use keyfold_core::NoProgress;

use super::*;
use crate::algebra;

fn small(heads: usize, tasks: usize) -> SoftmaxConfig {
    SoftmaxConfig {
        d: 4,
        length: 7,
        heads,
        tasks,
        batch_size: 11,
        steps: 1,
        seed: 3,
        ..SoftmaxConfig::default()
    }
}

#[test]
fn gradients_are_those_of_differences_and_parts_add_up() {
    for (heads, tasks) in [(1, 1), (3, 2)] {
        let config = small(heads, tasks);
        let model = SoftmaxModel::new(&config).unwrap();
        // 11 prompts: one group of eight, and one with places that are empty.
        let prompts = Prompts::sample(&config, 7, 11, 1);
        let (loss, gradient) = training::gradient(&model, std::slice::from_ref(&prompts));
        assert!((loss - model.error(&prompts).unwrap()).abs() < 1e-5);
        let count = model.q.len();
        let h = 2e-3;
        let moved = |part: usize, at: usize, by: f32| {
            let mut model = model.clone();
            let weights = [&mut model.q, &mut model.k, &mut model.v, &mut model.o];
            weights.into_iter().nth(part).unwrap()[at] += by;
            model.error(&prompts).unwrap()
        };
        let parts = [count, count, count, model.o.len()];
        for (part, len) in parts.iter().enumerate() {
            for at in (0..*len).step_by(3) {
                let difference = (moved(part, at, h) - moved(part, at, -h)) / f64::from(2.0 * h);
                let analytic = f64::from(gradient[part * count + at]);
                assert!(
                    (analytic - difference).abs() < 2e-3 * (1.0 + difference.abs()),
                    "{part} {at}: {analytic} {difference}"
                );
            }
        }
    }
}

#[test]
fn training_repeats_itself_and_learns() {
    let config = SoftmaxConfig {
        steps: 300,
        batch_size: 64,
        learning_rate: 1e-2,
        length: 20,
        ..small(2, 1)
    };
    let (model, curve) = train(&config, &NoProgress).unwrap();
    assert!(curve[99] < 0.8 * curve[0], "{curve:?}");
    assert_eq!(train(&config, &NoProgress).unwrap().0, model);
}

#[test]
fn a_model_with_the_theorys_weights_predicts_as_the_estimator() {
    let config = SoftmaxConfig {
        d: 3,
        heads: 2,
        ..SoftmaxConfig::default()
    };
    let mut model = SoftmaxModel::new(&config).unwrap();
    for w in [&mut model.q, &mut model.k, &mut model.v, &mut model.o] {
        w.fill(0.0);
    }
    let (row, omega, mu) = (4, 0.2f32, 2.5f32);
    for (head, sign) in [(0, 1.0), (1, -1.0)] {
        for i in 0..3 {
            // K = I, Q = ± ω √row I for x.
            model.k[head * 16 + i * row + i] = 1.0;
            model.q[head * 16 + i * row + i] = sign * omega * 2.0;
        }
        model.v[head * 16 + 15] = 1.0;
        model.o[head * row + 3] = sign * mu;
    }
    let prompts = Prompts::sample(&config, 30, 200, 5);
    let estimator = Estimator::TwoHeads {
        omega: 0.2,
        step: f64::from(2.0 * omega * mu),
    };
    let (a, b) = (
        model.error(&prompts).unwrap(),
        estimator.error(&prompts).unwrap(),
    );
    assert!((a - b).abs() < 1e-5, "{a} {b}");
    let heads = model.circuits();
    assert_eq!((heads[0].role, heads[1].role), ("positive", "negative"));
    assert!((heads[0].omega - 0.2).abs() < 1e-6 && (heads[1].mu[0] + 2.5).abs() < 1e-6);
    assert!(heads[0].spread < 1e-6 && heads[0].mu_spread < 1e-6);
}

#[test]
fn the_theory_agrees_with_itself() {
    let (d, length, sigma2) = (5, 40, 0.1);
    // One head: the formula is where the gradient is 0.
    let (omega, mu) = single_head_optimum(d, length, sigma2);
    let (by_omega, by_mu) = approximate_gradient(&[omega], &[mu], d, length, sigma2);
    assert!(
        by_omega[0].abs() < 1e-9 && by_mu[0].abs() < 1e-9,
        "{by_omega:?} {by_mu:?}"
    );
    assert!((best_mu(&[omega], d, length, sigma2).unwrap()[0] - mu).abs() < 1e-9);
    // Two heads: gradients by differences.
    let (o, m) = ([0.2, -0.3], [2.0, -1.0]);
    let (by_omega, by_mu) = approximate_gradient(&o, &m, d, length, sigma2);
    let loss = |o: &[f64], m: &[f64]| approximate_loss(o, m, d, length, sigma2);
    for i in 0..2 {
        let step = 1e-5;
        let (mut up, mut down) = (o, o);
        up[i] += step;
        down[i] -= step;
        assert!((by_omega[i] - (loss(&up, &m) - loss(&down, &m)) / (2.0 * step)).abs() < 1e-6);
        let (mut up, mut down) = (m, m);
        up[i] += step;
        down[i] -= step;
        assert!((by_mu[i] - (loss(&o, &up) - loss(&o, &down)) / (2.0 * step)).abs() < 1e-6);
    }
    assert!((two_head_step(5, 40, 0.1) - 0.879).abs() < 1e-3);
}

#[test]
fn tasks_see_their_part_of_x() {
    let config = SoftmaxConfig {
        d: 6,
        tasks: 2,
        sigma2: 0.0,
        ..SoftmaxConfig::default()
    };
    assert_eq!((config.task_dim(), config.task_start(1)), (4, 2));
    let prompts = Prompts::sample(&config, 12, 1, 1);
    // Without noise y of task 1 is a line of x[2..]: least squares leaves nothing.
    for task in 0..2 {
        let from = config.task_start(task);
        let x = Mat::from_fn(12, 4, |i, j| f64::from(prompts.z[i * 8 + from + j]));
        let y = Mat::from_fn(12, 1, |i, _| f64::from(prompts.z[i * 8 + 6 + task]));
        let w = algebra::least_squares(x.as_ref(), y.as_ref()).unwrap();
        assert!((&x * w - y).norm_l2() < 1e-5);
    }
}

#[test]
fn weights_go_to_a_file_and_back() {
    let model = SoftmaxModel::new(&small(2, 1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save(&path).unwrap();
    assert_eq!(SoftmaxModel::load(&path).unwrap(), model);
    std::fs::write(&path, b"nonsense").unwrap();
    assert!(
        SoftmaxModel::load(&path)
            .unwrap_err()
            .to_string()
            .contains("no safetensors")
    );
}

#[test]
fn settings_without_sense_are_refused() {
    let wrong = [
        SoftmaxConfig {
            d: 0,
            ..small(1, 1)
        },
        SoftmaxConfig {
            heads: 0,
            ..small(1, 1)
        },
        SoftmaxConfig {
            sigma2: -1.0,
            ..small(1, 1)
        },
        SoftmaxConfig {
            init: Init::OppoSmallId,
            ..small(3, 1)
        },
        SoftmaxConfig {
            spread: vec![1.0],
            ..small(1, 1)
        },
    ];
    for config in wrong {
        assert!(SoftmaxModel::new(&config).is_err(), "{config:?}");
    }
}
