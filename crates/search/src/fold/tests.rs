use super::*;
use keyfold_core::Role;
use keyfold_kernels::fold::{kmeans, kmeans_from};
use keyfold_kernels::maxsim;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What PyLate and scikit-learn give; written by parity/fold.py.
#[derive(serde::Deserialize)]
struct Fixture {
    dim: usize,
    ward: Vec<WardCase>,
    kmeans: Vec<KMeansCase>,
}

#[derive(serde::Deserialize)]
struct WardCase {
    factor: usize,
    rows: Vec<f32>,
    pooled: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct KMeansCase {
    rows: Vec<f32>,
    start: Vec<f32>,
    labels: Vec<u32>,
    centroids: Vec<f32>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../tests/fixtures/fold.json")).unwrap()
}

fn unit_rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let rows = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let rows = Vectors::new(dim, rows).unwrap().normalized();
    rows.into_vec()
}

/// Rows in an order of their own.
fn sorted(rows: &[f32], dim: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = rows.chunks(dim).map(<[f32]>::to_vec).collect();
    rows.sort_by(|a, b| {
        a.iter()
            .zip(b)
            .map(|(a, b)| a.total_cmp(b))
            .find(|o| o.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    rows
}

fn close(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let near = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6);
    a.len() == b.len() && a.iter().zip(b).all(near)
}

fn parse(spec: &str) -> Fold {
    spec.parse().unwrap()
}

#[test]
fn specs_come_back_and_others_are_refused() {
    for spec in [
        "c8x32",
        "c4x8",
        "c25",
        "c50",
        "ward:3",
        "tail:8x32",
        "space:4",
    ] {
        assert_eq!(parse(spec).to_string(), spec);
    }
    for spec in [
        "",
        "c",
        "c0",
        "c100",
        "c0x8",
        "c4x",
        "cx8",
        "c4x8x2",
        "ward",
        "ward:1",
        "ward:x",
        "tail:4",
        "tail:0x4",
        "space:0",
        "space:1",
        "C4X8",
        "none",
        "c4x99999999999999999999",
        "c-1x3",
    ] {
        let error = spec.parse::<Fold>().unwrap_err();
        assert!(error.contains("c4x8") && error.contains(spec), "{error}");
    }
}

#[test]
fn pooling_agrees_with_pylate() {
    let fixture = fixture();
    for case in fixture.ward {
        let groups = Fold::Ward(case.factor).groups(&case.rows, fixture.dim, false, 0);
        let means = groups.means(&case.rows, fixture.dim);
        let (got, want) = (
            sorted(&means, fixture.dim),
            sorted(&case.pooled, fixture.dim),
        );
        assert!(close(&got, &want), "{}: {got:?} {want:?}", case.factor);
    }
}

#[test]
fn kmeans_agrees_with_scikit_learn() {
    let fixture = fixture();
    for case in fixture.kmeans {
        let codes = kmeans_from(&case.rows, fixture.dim, case.start.clone());
        assert_eq!(codes, case.labels);
        let means = Groups::new(codes).means(&case.rows, fixture.dim);
        let (got, want) = (
            sorted(&means, fixture.dim),
            sorted(&case.centroids, fixture.dim),
        );
        assert!(close(&got, &want), "{got:?} {want:?}");
    }
}

#[test]
fn sizes_are_those_of_the_spec() {
    let dim = 8;
    let count = |spec: &str, n: usize, role| {
        let rows = unit_rows(n, dim, 3);
        parse(spec).groups(&rows, dim, role == Query, 1).count()
    };
    use Role::{Document, Query};
    assert_eq!(
        (count("c8x32", 90, Document), count("c8x32", 90, Query)),
        (32, 8)
    );
    assert_eq!(
        (count("c4x8", 8, Document), count("c4x8", 3, Query)),
        (8, 3)
    );
    assert_eq!(
        (count("c25", 90, Document), count("c25", 3, Query)),
        (22, 1)
    );
    assert_eq!(count("c50", 91, Document), 45);
    assert_eq!(count("tail:4x8", 90, Document), 8);
    assert_eq!(count("space:4", 90, Document), 23);
    assert_eq!(
        (count("ward:3", 91, Document), count("ward:20", 9, Document)),
        (31, 2)
    );
    for spec in ["c8x32", "c25", "ward:2", "tail:4x8", "space:2"] {
        assert_eq!(count(spec, 0, Document), 0);
        assert_eq!(count(spec, 1, Document), 1);
    }
}

#[test]
fn pruning_keeps_rows_as_they_are() {
    let rows: Vec<f32> = (0..7).map(|i| i as f32).collect();
    let kept = |spec: &str| parse(spec).groups(&rows, 1, false, 0).means(&rows, 1);
    assert_eq!(kept("tail:1x3"), [4.0, 5.0, 6.0]);
    assert_eq!(kept("space:3"), [0.0, 3.0, 6.0]);
}

#[test]
fn clear_clusters_are_found() {
    let dim = 16;
    let mut rng = StdRng::seed_from_u64(5);
    let topics: Vec<usize> = (0..60).map(|_| rng.random_range(0..6)).collect();
    let rows: Vec<f32> = topics
        .iter()
        .flat_map(|&t| (0..dim).map(move |d| f32::from(u8::from(d == t))))
        .map(|x| x + rng.random_range(-0.05..0.05))
        .collect();
    let rows = Vectors::new(dim, rows).unwrap().normalized();
    // Ward: the first row stands alone, so six of the rest.
    for fold in [Fold::Clusters(1, 6), Fold::Ward(9)] {
        let groups = fold.groups(rows.as_slice(), dim, false, 7);
        let codes: Vec<Option<usize>> = groups.of_rows().collect();
        for i in 1..60 {
            for j in 1..i {
                assert_eq!(codes[i] == codes[j], topics[i] == topics[j], "{fold}");
            }
        }
    }
}

#[test]
fn equal_rows_make_fewer_clusters_and_none_is_empty() {
    let dim = 3;
    let two: Vec<f32> = unit_rows(2, dim, 1).repeat(20);
    for spec in ["c4x8", "c50", "ward:4"] {
        let groups = parse(spec).groups(&two, dim, false, 0);
        let mut used: Vec<usize> = groups.of_rows().flatten().collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), groups.count(), "{spec}");
        assert!((2..=20).contains(&groups.count()), "{spec}");
    }
    assert_eq!(Fold::Clusters(4, 8).groups(&two, dim, false, 0).count(), 2);
}

#[test]
fn empty_clusters_start_again_with_the_farthest_row() {
    // Two starts in one place: the second has no row, and the outlier is its.
    let rows = [1.0, 0.0, 0.9, 0.1, -1.0, 0.2];
    let codes = kmeans_from(&rows, 2, vec![1.0, 0.0, 1.0, 0.0]);
    assert_eq!(codes[0], codes[1]);
    assert_ne!(codes[0], codes[2]);
}

#[test]
fn documents_fold_to_length_one_unless_raw() {
    let rows = Vectors::new(8, unit_rows(40, 8, 2)).unwrap();
    let mut folding = Folding {
        fold: Some(parse("c2x4")),
        ..Folding::default()
    };
    let unit = folding.document(rows.clone(), "a text");
    assert!(unit.iter().all(|r| (norm(r) - 1.0).abs() < 1e-5));
    assert_eq!(unit, folding.document(rows.clone(), "a text"));
    folding.raw = true;
    let raw = folding.document(rows.clone(), "a text");
    assert!(raw.iter().any(|r| norm(r) < 0.9));
    assert_eq!(raw.normalized(), unit);
    // Queries are left alone unless asked.
    assert_eq!(folding.query(rows.clone(), "a text"), rows);
    folding.queries = true;
    assert_eq!(folding.query(rows.clone(), "a text").rows(), 2);
    assert_eq!(Folding::default().document(rows.clone(), "a text"), rows);
}

#[test]
fn weights_of_query_words_survive_folding() {
    let folding = Folding {
        fold: Some(parse("c2x8")),
        queries: true,
        raw: false,
    };
    // Two rows of one direction, one of another; lengths are weights.
    let rows = Vectors::new(2, vec![3.0, 0.0, 1.0, 0.0, 0.0, 0.5]).unwrap();
    let folded = folding.query(rows.clone(), "three words");
    assert_eq!(
        sorted(folded.as_slice(), 2),
        [vec![0.0, 0.5], vec![4.0, 0.0]]
    );
    let document = unit_rows(5, 2, 1);
    let (before, after) = (
        maxsim(rows.as_slice(), &document, 2),
        maxsim(folded.as_slice(), &document, 2),
    );
    assert!((before - after).abs() < 1e-5);
    // Of length one, it is the mean that a trained model expects.
    let rows = Vectors::new(2, vec![1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).unwrap();
    let folded = folding.query(rows, "three words");
    assert_eq!(
        sorted(folded.as_slice(), 2),
        [vec![0.0, 1.0], vec![1.0, 0.0]]
    );
}

#[test]
fn foldings_come_back_from_json() {
    for folding in [
        Folding::default(),
        Folding {
            fold: Some(parse("tail:4x8")),
            queries: true,
            raw: true,
        },
    ] {
        let text = serde_json::to_string(&folding).unwrap();
        assert_eq!(serde_json::from_str::<Folding>(&text).unwrap(), folding);
    }
    assert!(serde_json::from_str::<Folding>(r#"{"fold": "x"}"#).is_err());
}

fn spec() -> impl Strategy<Value = Fold> {
    prop_oneof![
        (1usize..6, 1usize..12).prop_map(|(q, d)| Fold::Clusters(q, d)),
        (1usize..100).prop_map(Fold::Share),
        (2usize..9).prop_map(Fold::Ward),
        (1usize..6, 1usize..12).prop_map(|(q, d)| Fold::Tail(q, d)),
        (2usize..9).prop_map(Fold::Space),
    ]
}

proptest! {
    #[test]
    fn every_group_has_a_row_and_the_mean_of_its_rows(fold in spec(), n in 0usize..40, seed: u64) {
        let dim = 4;
        let rows = unit_rows(n, dim, seed);
        let groups = fold.groups(&rows, dim, false, seed);
        prop_assert!(groups.count() <= n && (n == 0 || groups.count() > 0));
        prop_assert_eq!(&groups, &fold.groups(&rows, dim, false, seed));
        let means = groups.means(&rows, dim);
        let codes: Vec<Option<usize>> = groups.of_rows().collect();
        for (group, mean) in means.chunks(dim).enumerate() {
            let members: Vec<&[f32]> = rows
                .chunks(dim)
                .zip(&codes)
                .filter(|(_, c)| **c == Some(group))
                .map(|(r, _)| r)
                .collect();
            prop_assert!(!members.is_empty());
            for d in 0..dim {
                let want = members.iter().map(|m| f64::from(m[d])).sum::<f64>() / members.len() as f64;
                prop_assert!((f64::from(mean[d]) - want).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn no_row_is_nearer_to_another_mean(n in 9usize..40, k in 2usize..8, seed: u64) {
        let dim = 4;
        let rows = unit_rows(n, dim, seed);
        let codes = kmeans(&rows, dim, k, seed);
        let mut used = codes.clone();
        used.sort_unstable();
        used.dedup();
        prop_assert_eq!(used.len(), k);
        let groups = Groups::new(codes);
        let means = groups.means(&rows, dim);
        let distance = |row: &[f32], mean: &[f32]| row.iter().zip(mean).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        for (row, group) in rows.chunks(dim).zip(groups.of_rows()) {
            let own = distance(row, &means[group.unwrap() * dim..][..dim]);
            let least = means.chunks(dim).map(|m| distance(row, m)).fold(f32::INFINITY, f32::min);
            prop_assert!(own <= least + 1e-5);
        }
    }

    #[test]
    fn odd_numbers_do_not_stop_it(fold in spec(), odd in prop_oneof![Just(0.0f32), Just(1e30), Just(-1e30), Just(1e-30)]) {
        let mut rows = unit_rows(20, 3, 1);
        rows[..30].fill(odd);
        let groups = fold.groups(&rows, 3, false, 1);
        prop_assert!(groups.count() >= 1 && groups.count() <= 20);
        let rows = Vectors::new(3, rows).unwrap();
        let folding = Folding { fold: Some(fold), queries: true, raw: false };
        folding.document(rows.clone(), "text");
        folding.query(rows, "text");
    }
}
