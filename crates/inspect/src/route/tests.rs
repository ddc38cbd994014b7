use keyfold_core::NoProgress;
use keyfold_sequence::pointer::beam::Task;
use keyfold_train::{Learner, Place};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::training::{Optimizer, PointerLearner, PointerTraining, draw, train};
use super::*;

fn points(all: &[[f64; 2]]) -> Points {
    Points::new(all.to_vec()).unwrap()
}

#[test]
fn hulls_and_triangles_are_those_of_scipy() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/fixtures/route.json")).unwrap();
    let cases = fixture.as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let all: Vec<[f64; 2]> = serde_json::from_value(case["points"].clone()).unwrap();
        let all = points(&all);
        let hull: Vec<usize> = serde_json::from_value(case["hull"].clone()).unwrap();
        assert_eq!(geometry::hull(&all).unwrap(), hull);
        let mut triangles: Vec<[usize; 3]> =
            serde_json::from_value(case["triangles"].clone()).unwrap();
        let mut found = geometry::delaunay(&all).unwrap();
        triangles.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, triangles);
        let area = case["area"].as_f64().unwrap();
        assert!((geometry::area(&all, &hull) - area).abs() < 1e-12);
    }
}

proptest! {
    #[test]
    fn no_point_lies_outside_a_hull_and_corners_turn(
        all in prop::collection::vec([-5i32..5, -5i32..5], 3..30),
    ) {
        let all: Vec<[f64; 2]> = all.iter().map(|p| p.map(|x| f64::from(x) / 3.0)).collect();
        let all = points(&all);
        let Ok(hull) = geometry::hull(&all) else {
            // All on a line: no three make a turn.
            let at = all.all();
            let flat = at.iter().all(|c| at.iter().all(|b| geometry::side(at[0], *b, *c).abs() < 1e-9));
            prop_assert!(flat);
            return Ok(());
        };
        let corner = |i: usize| all.all()[hull[i % hull.len()]];
        for i in 0..hull.len() {
            prop_assert!(geometry::side(corner(i), corner(i + 1), corner(i + 2)) > 0.0);
            for p in all.all() {
                prop_assert!(geometry::side(corner(i), corner(i + 1), *p) >= 0.0);
            }
        }
        prop_assert_eq!(hull.iter().min(), hull.first());
        prop_assert!(geometry::is_simple(&all, &hull));
    }
}

#[test]
fn triangles_are_sorted_by_their_incentres_and_their_places_rise() {
    let mut rng = StdRng::seed_from_u64(1);
    let (all, answer) = draw(12, Task::Delaunay, &mut rng).unwrap();
    let hull = geometry::hull(&all).unwrap();
    assert_eq!(answer.len() / 3, 2 * 12 - 2 - hull.len(), "Euler's formula");
    let centre = |t: &[usize]| {
        let [a, b, c] = [t[0], t[1], t[2]].map(|i| all.all()[i]);
        let d = geometry::distance;
        let (x, y, z) = (d(b, c), d(a, c), d(a, b));
        (x * a[0] + y * b[0] + z * c[0]) / (x + y + z)
    };
    let triangles: Vec<&[usize]> = answer.chunks(3).collect();
    assert!(triangles.iter().all(|t| t[0] < t[1] && t[1] < t[2]));
    assert!(triangles.windows(2).all(|w| centre(w[0]) <= centre(w[1])));
}

#[test]
fn polygons_that_cross_or_fold_are_not_simple() {
    let square = points(&[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0]]);
    assert!(geometry::is_simple(&square, &[0, 1, 2, 3]));
    assert!((geometry::area(&square, &[0, 1, 2, 3]) - 1.0).abs() < 1e-15);
    assert!(!geometry::is_simple(&square, &[0, 2, 1, 3]), "a bow tie");
    assert!(!geometry::is_simple(&square, &[0, 1]));
    assert!(
        !geometry::is_simple(&square, &[0, 1, 4, 2]),
        "there and back"
    );
    assert!(geometry::is_simple(&square, &[0, 4, 1, 2]));
    assert!(
        !geometry::is_simple(&square, &[0, 1, 2, 4, 3, 2]),
        "a corner twice"
    );
}

#[test]
fn answers_are_worth_what_the_measures_say() {
    let all = points(&[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]);
    let hull = [0, 1, 2, 3];
    let of = |task, answer: &[usize], truth: &[usize]| worth(&all, task, answer, truth);
    assert!(
        of(Task::Hull, &[2, 1, 0, 3], &hull).right,
        "any beginning and direction"
    );
    let part = of(Task::Hull, &[0, 1, 2], &hull);
    assert!(!part.right && part.valid);
    assert_eq!(part.share, Some(0.5));
    let tie = of(Task::Hull, &[0, 2, 1, 3], &hull);
    assert!(!tie.valid && tie.share.is_none());
    let triangles = of(Task::Delaunay, &[1, 0, 2, 0, 1, 3], &[0, 1, 2, 0, 2, 3]);
    assert!(triangles.valid && !triangles.right);
    assert_eq!(triangles.share, Some(0.5));
    let tour = of(Task::Tour, &[0, 2, 1, 3], &hull);
    let want = (2.0 + 2.0 * 2f64.sqrt()) / 4.0;
    assert!(tour.valid && !tour.right && (tour.share.unwrap() - want).abs() < 1e-12);
    assert!(!of(Task::Tour, &[0, 1, 2], &hull).valid);
}

#[test]
fn degenerate_points_are_refused_by_name() {
    let refusal = |all: &[[f64; 2]], task| {
        let (kept, _) = points(all).distinct();
        truth(&kept, task, 0).unwrap_err().to_string()
    };
    let line = [[0.1, 0.1], [0.2, 0.2], [0.7, 0.7], [0.2, 0.2]];
    for task in [Task::Hull, Task::Delaunay] {
        assert!(
            refusal(&line, task).contains("on one line"),
            "{}",
            refusal(&line, task)
        );
        assert!(refusal(&[[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]], task).contains("2 distinct"));
        assert!(refusal(&[], task).contains("0 distinct"));
    }
    assert!(refusal(&line[..2], Task::Tour).contains("three"));
    let nan = Points::new(vec![[0.0, 1.0], [2.0, f64::NAN]])
        .unwrap_err()
        .to_string();
    assert!(nan.contains("row 2, column 2"), "{nan}");
    assert!(Points::new(vec![[0.0; 2]; MOST_POINTS + 1]).is_err());
}

#[test]
fn twins_are_visited_together_and_no_corners() {
    let all = points(&[
        [0.0, 0.0],
        [9.0, 0.0],
        [0.0, 0.0],
        [9.0, 9.0],
        [9.0, 0.0],
        [5.0, 4.5],
    ]);
    let tour = RouteModel::builtin(Task::Tour)
        .unwrap()
        .solve(&all, 3, true, 0)
        .unwrap();
    assert_eq!(tour.twins, 2);
    let mut visited = tour.answer.clone();
    visited.sort_unstable();
    assert_eq!(visited, [0, 1, 2, 3, 4, 5]);
    let place = |i: usize| tour.answer.iter().position(|p| *p == i).unwrap();
    assert_eq!(place(2), place(0) + 1);
    assert_eq!(place(4), place(1) + 1);
    let hull = RouteModel::builtin(Task::Hull)
        .unwrap()
        .solve(&all, 3, true, 0)
        .unwrap();
    assert_eq!(hull.truth, [0, 1, 3]);
}

#[test]
fn scaling_and_moving_points_changes_no_answer() {
    let mut rng = StdRng::seed_from_u64(3);
    let (all, _) = draw(8, Task::Tour, &mut rng).unwrap();
    let model = RouteModel::builtin(Task::Tour).unwrap();
    let moved = |scale: f64, by: f64| {
        let all = all.all().iter().map(|p| p.map(|x| scale * x + by));
        let all = Points::new(all.collect()).unwrap();
        model.solve(&all, 3, true, 0).unwrap().answer
    };
    assert_eq!(moved(1000.0, -300.0), moved(1e-3, 5.0));
    // Numbers whose difference is beyond f64.
    let huge = points(&[[-1.7e308, 0.0], [1.7e308, 0.0], [0.0, 1e308]]);
    let read = huge.for_network();
    assert!(read.iter().all(|x| (0.0..=1.0).contains(x)), "{read:?}");
    assert_eq!(
        (read[0], read[2], read[4]),
        (0.0, 1.0, 0.5),
        "the whole width is used"
    );
}

fn small() -> PointerTraining {
    PointerTraining {
        points: [3, 6],
        hidden_size: 16,
        batch_size: 40,
        steps: 6,
        optimizer: Optimizer::Adam,
        learning_rate: 3e-3,
        ..PointerTraining::default()
    }
}

#[test]
fn a_training_goes_on_to_the_same_weights_and_leaves_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = PointerLearner::new(&small(), None).unwrap();
    for number in 1..=6 {
        whole.step(number).unwrap();
    }
    let mut first = PointerLearner::new(&small(), None).unwrap();
    for number in 1..=3 {
        first.step(number).unwrap();
    }
    first.save(folder.path()).unwrap();
    let mut second = PointerLearner::new(&small(), None).unwrap();
    second.load(folder.path()).unwrap();
    for number in 4..=6 {
        second.step(number).unwrap();
    }
    assert_eq!(whole.model(), second.model());

    let out = folder.path().join("run");
    let report = train(
        &small(),
        None,
        Place {
            out: &out,
            resume: false,
            progress: &NoProgress,
            watch: &mut |_| {},
        },
    );
    assert_eq!(report.unwrap().steps, 6);
    let read = RouteModel::load(&out).unwrap();
    assert_eq!((read.task, read.points), (Task::Hull, [3, 6]));
    for (a, b) in read
        .network
        .weights()
        .iter()
        .zip(whole.model().network.weights())
    {
        assert!(
            (a - b).abs() < 1e-3 * (0.1 + b.abs()),
            "in half precision: {a} {b}"
        );
    }
    // A damaged file is refused.
    let path = out.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(
        RouteModel::load(&out)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut PointerTraining)| {
        let mut config = small();
        change(&mut config);
        PointerLearner::new(&config, None)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(&|c| c.points = [2, 6]).contains("points"));
    assert!(refused(&|c| c.points = [6, 5]).contains("points"));
    assert!(refused(&|c| c.task = "knapsack".into()).contains("sort or custom"));
    assert!(refused(&|c| c.task = "custom".into()).contains("examples"));
    let tour = |c: &mut PointerTraining| {
        c.task = "tour".into();
        c.points = [5, 13];
    };
    assert!(refused(&tour).contains("at most 12"));
    assert!(refused(&|c| c.batch_size = 0).contains("batch_size"));
    assert!(refused(&|c| c.hidden_size = 0).contains("hidden_size"));
    assert!(refused(&|c| c.learning_rate = f64::NAN).contains("learning_rate"));
}

#[test]
fn a_network_learns_to_sort_a_few_numbers() {
    let config = PointerTraining {
        task: "sort".into(),
        points: [2, 4],
        hidden_size: 24,
        init_range: 0.2,
        steps: 400,
        learning_rate: 1e-2,
        ..small()
    };
    let mut learner = PointerLearner::new(&config, None).unwrap();
    for number in 1..=400 {
        learner.step(number).unwrap();
    }
    let model = learner.model();
    let mut rng = StdRng::seed_from_u64(5);
    let mut right = 0;
    for _ in 0..100 {
        // Beyond the unit interval: what is read is scaled.
        let numbers: Vec<f32> = (0..3).map(|_| rng.random_range(-9.0..9.0)).collect();
        let pointed = model.point(&numbers, 1, true).unwrap();
        right += usize::from(pointed.worth.unwrap().right);
        assert!(pointed.ended);
    }
    assert!(right > 50, "one of six by chance; {right}");
    assert!(model.point(&[1.0, f32::NAN], 1, true).is_err());
    assert_eq!(sorted(&[2.0, -1.0, 2.0]), [1, 0, 2]);
}

/// The models that are part of the program know what they were trained for.
#[test]
fn built_in_models_answer_well_at_the_sizes_that_they_learned() {
    let mut rng = StdRng::seed_from_u64(77);
    for task in Task::PLANE {
        let model = RouteModel::builtin(task).unwrap();
        assert_eq!(model.task, task);
        let mut shares = Vec::new();
        for _ in 0..60 {
            let (points, _) = draw(6, task, &mut rng).unwrap();
            let solved = model.solve(&points, 3, true, 0).unwrap();
            shares.push(solved.worth.share.unwrap_or(0.0));
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        match task {
            Task::Hull => assert!(mean > 0.97, "{mean}"),
            Task::Delaunay => assert!(mean > 0.3, "{mean}"),
            _ => assert!(mean < 1.3, "{mean}"),
        }
    }
}
