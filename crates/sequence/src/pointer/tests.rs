use proptest::prelude::*;

use super::beam::Task;
use super::fixed::FixedOutputs;
use super::learn::{Problem, clip};
use super::*;
use rand::Rng;

fn network(hidden: usize, seed: u64) -> PointerNetwork {
    let config = PointerConfig {
        input_size: 2,
        hidden_size: hidden,
    };
    let mut network = PointerNetwork::init(config, INIT_RANGE, seed).unwrap();
    // Larger than at the beginning of a training, so that every function bends.
    network.weights_mut().iter_mut().for_each(|w| *w *= 6.0);
    network
}

fn points(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..2 * n).map(|_| rng.random_range(0.0..1.0)).collect()
}

fn problem(n: usize, target: &[usize], seed: u64) -> Problem {
    Problem {
        points: points(n, seed),
        target: target.to_vec(),
    }
}

/// `-log p` of an answer and its end.
fn loss(network: &PointerNetwork, problem: &Problem) -> f64 {
    let logits = network.logits(&problem.points, &problem.target).unwrap();
    let n = problem.points.len() / 2;
    let targets = problem.target.iter().copied().chain([0]);
    let each = logits
        .chunks_exact(n + 1)
        .zip(targets)
        .map(|(row, target)| {
            let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            total.ln() - f64::from(row[target])
        });
    each.sum()
}

#[test]
fn gradients_are_those_of_differences() {
    let mut network = network(5, 3);
    let problems = [
        problem(4, &[2, 4, 1, 2], 1),
        problem(4, &[3], 2),
        problem(4, &[], 3),
        problem(4, &[1, 4], 4),
    ];
    let found = network.gradient(&problems).unwrap();
    let all = |network: &PointerNetwork| -> f64 { problems.iter().map(|p| loss(network, p)).sum() };
    assert!((found.loss - all(&network)).abs() < 1e-4);
    assert_eq!(found.places, 5 + 2 + 1 + 3);
    let mut largest = 0.0f64;
    for i in 0..network.weights().len() {
        let mut at = |by: f32| {
            network.weights_mut()[i] += by;
            let loss = all(&network);
            network.weights_mut()[i] -= by;
            loss
        };
        // Of fourth order, so that the step may be large beside the rounding.
        let step = 0.02;
        let slope = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step)))
            / (12.0 * f64::from(step));
        let error = (slope - f64::from(found.by_weights[i])).abs();
        assert!(
            error < 2e-4 + 2e-3 * slope.abs(),
            "{i}: {slope} {}",
            found.by_weights[i]
        );
        largest = largest.max(slope.abs());
    }
    assert!(largest > 0.1, "the test moves something: {largest}");
}

#[test]
fn problems_learned_together_are_those_learned_alone() {
    let network = network(8, 5);
    let problems = [
        problem(6, &[1, 2, 3, 1], 1),
        problem(6, &[4, 5, 6, 1, 2, 4], 2),
        problem(6, &[2], 3),
    ];
    let together = network.gradient(&problems).unwrap();
    let alone = problems
        .iter()
        .map(|p| network.gradient(std::slice::from_ref(p)).unwrap());
    let mut sum = vec![0.0f32; network.weights().len()];
    let mut loss = 0.0;
    for one in alone {
        keyfold_kernels::add_assign(&mut sum, &one.by_weights);
        loss += one.loss;
    }
    assert!((loss - together.loss).abs() < 1e-5);
    for (a, b) in together.by_weights.iter().zip(&sum) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn steps_down_the_gradient_learn_an_answer() {
    let mut network = PointerNetwork::init(
        PointerConfig {
            input_size: 2,
            hidden_size: 16,
        },
        INIT_RANGE,
        0,
    )
    .unwrap();
    let problems = [problem(5, &[3, 1, 5, 3], 1), problem(5, &[2, 4], 2)];
    for _ in 0..300 {
        let mut gradient = network.gradient(&problems).unwrap().by_weights;
        clip(&mut gradient, 2.0);
        keyfold_kernels::axpy(network.weights_mut(), -0.5, &gradient);
    }
    for problem in &problems {
        let answer = network
            .answer(&problem.points, Task::Hull, 3, false)
            .unwrap();
        assert_eq!(answer.places, problem.target);
        assert!(answer.ended && answer.log_probability > -0.1);
        assert!((answer.log_probability + loss(&network, problem)).abs() < 1e-4);
    }
}

#[test]
fn fixed_outputs_learn_too_and_name_no_point_beyond_them() {
    let config = PointerConfig {
        input_size: 2,
        hidden_size: 16,
    };
    let mut network = FixedOutputs::init(config, 5, INIT_RANGE, 0).unwrap();
    let problems = [problem(5, &[3, 1, 5, 3], 1), problem(5, &[2, 4], 2)];
    let mut losses = Vec::new();
    for _ in 0..300 {
        let (mut gradient, mut of_outputs) = network.gradient(&problems).unwrap();
        losses.push(gradient.loss);
        clip(&mut gradient.by_weights, 2.0);
        clip(&mut of_outputs, 2.0);
        let [weights, outputs] = network.parts_mut();
        keyfold_kernels::axpy(weights, -0.3, &gradient.by_weights);
        keyfold_kernels::axpy(outputs, -0.3, &of_outputs);
    }
    assert!(
        losses[299] < 0.1 * losses[0],
        "{} {}",
        losses[0],
        losses[299]
    );
    for problem in &problems {
        let answer = network.answer(&problem.points, 10).unwrap();
        assert_eq!(answer, problem.target);
    }
    assert!(network.answer(&points(6, 0), 10).is_err());
    assert!(network.gradient(&[problem(6, &[1], 0)]).is_err());
}

#[test]
fn a_wide_beam_finds_the_best_of_all_answers() {
    let network = network(6, 11);
    let points = points(4, 2);
    // Every tour, scored by the probabilities among the places that the rules allow.
    let mut best = (f64::NEG_INFINITY, Vec::new());
    for code in 0..256usize {
        let mut places: Vec<usize> = (0..4).map(|i| code >> (2 * i) & 3).map(|p| p + 1).collect();
        let mut sorted = places.clone();
        sorted.sort_unstable();
        if sorted != [1, 2, 3, 4] {
            continue;
        }
        places.push(places[0]);
        let logits = network.logits(&points, &places).unwrap();
        let mut score = 0.0;
        for (i, row) in logits.chunks_exact(5).enumerate() {
            let allowed = Task::Tour.allowed(4, &places[..i]);
            let next = places.get(i).copied().unwrap_or(0);
            assert!(allowed[next]);
            let of = |j: usize| f64::from(row[j]).exp();
            let total: f64 = (0..5).filter(|j| allowed[*j]).map(of).sum();
            score += (of(next) / total).ln();
        }
        if score > best.0 {
            best = (score, places);
        }
    }
    let answer = network.answer(&points, Task::Tour, 64, true).unwrap();
    assert_eq!(answer.places, best.1);
    assert!((answer.log_probability - best.0).abs() < 1e-4);
    let narrow = network.answer(&points, Task::Tour, 1, true).unwrap();
    assert!(narrow.log_probability <= answer.log_probability + 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn answers_keep_to_the_rules(n in 3usize..9, seed in 0u64..1000, width in 1usize..4) {
        let network = network(7, seed);
        let points = points(n, seed + 1);
        let tour = network.answer(&points, Task::Tour, width, true).unwrap();
        prop_assert!(tour.ended);
        prop_assert_eq!(tour.places.first(), tour.places.last());
        let mut visited = tour.places[1..].to_vec();
        visited.sort_unstable();
        prop_assert_eq!(visited, (1..=n).collect::<Vec<_>>());

        let hull = network.answer(&points, Task::Hull, width, true).unwrap();
        prop_assert!(hull.ended);
        let closed = hull.places.last() == hull.places.first();
        let mut corners = hull.places[..hull.places.len() - usize::from(closed)].to_vec();
        let count = corners.len();
        corners.sort_unstable();
        corners.dedup();
        prop_assert!(count >= 3 && corners.len() == count, "{:?}", hull.places);

        let triangles = network.answer(&points, Task::Delaunay, width, true).unwrap();
        prop_assert!(triangles.ended && !triangles.places.is_empty());
        prop_assert_eq!(triangles.places.len() % 3, 0);
        for t in triangles.places.chunks_exact(3) {
            prop_assert!(t[0] < t[1] && t[1] < t[2] && t[2] <= n);
        }

        let sorted = network.answer(&points, Task::Sort, width, true).unwrap();
        let mut places = sorted.places.clone();
        places.sort_unstable();
        prop_assert!(sorted.ended && places.into_iter().eq(1..=n));
        let custom = network.answer(&points, Task::Custom, width, true).unwrap();
        prop_assert!(custom.places.len() <= 6 * n);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let network = network(4, 0);
    let refused = |points: &[f32], target: &[usize]| network.logits(points, target).is_err();
    assert!(refused(&[], &[]));
    assert!(refused(&[0.0, 1.0, 2.0], &[]));
    assert!(refused(&[0.0, f32::NAN], &[]));
    assert!(refused(&[0.0, 1.0], &[2]));
    assert!(refused(&[0.0, 1.0], &[0]));
    assert!(!refused(&[0.0, 1.0], &[1]));
    let two = points(2, 0);
    assert!(network.answer(&two, Task::Delaunay, 3, true).is_err());
    assert!(network.answer(&two, Task::Tour, 0, true).is_err());
    let mixed = [problem(3, &[1], 0), problem(4, &[1], 0)];
    assert!(network.gradient(&mixed).is_err());
    assert!(network.gradient(&[]).is_err());
    let none = PointerConfig {
        input_size: 2,
        hidden_size: 0,
    };
    assert!(PointerNetwork::init(none, INIT_RANGE, 0).is_err());
}

#[test]
fn logits_and_answers_are_those_of_pytorch() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/fixtures/pointer.json")).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        let all = value.as_array().unwrap().iter();
        all.map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let places = |value: &serde_json::Value| -> Vec<usize> {
        let all = value.as_array().unwrap().iter();
        all.map(|x| x.as_u64().unwrap() as usize).collect()
    };
    let config = PointerConfig {
        input_size: 2,
        hidden_size: fixture["hidden_size"].as_u64().unwrap() as usize,
    };
    let network = PointerNetwork::with::<SequenceError>(config, |name, _| {
        Ok(numbers(&fixture["tensors"][name]))
    })
    .unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let points = numbers(&case["points"]);
        let logits = network.logits(&points, &places(&case["target"])).unwrap();
        let wanted = numbers(&case["logits"]);
        assert_eq!(logits.len(), wanted.len());
        for (a, b) in logits.iter().zip(wanted) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let task: Task = case["task"].as_str().unwrap().parse().unwrap();
        let answer = network.answer(&points, task, 3, true).unwrap();
        assert_eq!(answer.places, places(&case["answer"]), "{task}");
        let score = case["log_probability"].as_f64().unwrap();
        assert!((answer.log_probability - score).abs() < 1e-4);
    }
}
