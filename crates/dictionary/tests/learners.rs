//! Learners against the authors' code and scikit-learn, and what streams ask of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, directions, fixture, single, sparse_rows, tensors};
use faer::Mat;
use keyfold_core::{NoProgress, StopAfter};
use keyfold_dictionary::batch::{BatchConfig, Method, fit};
use keyfold_dictionary::frank_wolfe::recovery_error;
use keyfold_dictionary::{
    Coder, DictionaryError, FrankWolfe, FrankWolfeConfig, Learner, NmfConfig, Online, OnlineConfig,
    Saved, Schedule, SparseCoder, nmf,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng};

fn matrix(t: &(Vec<usize>, Vec<f64>)) -> Mat<f64> {
    Mat::from_fn(t.0[0], t.0[1], |i, j| t.1[i * t.0[1] + j])
}

#[test]
fn frank_wolfe_takes_the_authors_steps() {
    let t = tensors("frank_wolfe.safetensors");
    let (y, d, start) = (matrix(&t["y"]), matrix(&t["d"]), matrix(&t["a0"]));
    let config = FrankWolfeConfig {
        schedule: Schedule::Reference,
        center: false,
        ..FrankWolfeConfig::default()
    };
    let mut learner = FrankWolfe::with_start(config, start.as_ref()).unwrap();
    let batches = y.nrows() / 10;
    for batch in 0..batches {
        learner.step(y.subrows(batch * 10, 10)).unwrap();
        if batch < 100 {
            let (error, want) = (
                recovery_error(learner.atoms().unwrap().as_ref(), d.as_ref()),
                t["errors"].1[batch],
            );
            assert!(
                (error - want).abs() < 1e-8 * want.max(1e-2),
                "batch {batch}: {error} {want}"
            );
        }
    }
    let error = recovery_error(learner.atoms().unwrap().as_ref(), d.as_ref());
    assert!(
        (error - t["last"].1[0]).abs() < 1e-6,
        "{error} {}",
        t["last"].1[0]
    );
    assert!(error < 0.02, "the atoms are found: {error}");
}

#[test]
fn online_learning_gives_scikit_learns_atoms() {
    let t = tensors("online.safetensors");
    let (x, start) = (single(&t["x"].1), single(&t["start"].1));
    for fit_algorithm in ["\"lars\"", "\"cd\""] {
        let config = OnlineConfig {
            n_components: 20,
            alpha: 0.05,
            batch_size: 100,
            fit_algorithm: serde_json::from_str(fit_algorithm).unwrap(),
            ..OnlineConfig::default()
        };
        let mut learner = Online::with_start(config, 12, start.clone()).unwrap();
        learner.partial_fit(&x).unwrap();
        let difference = apart(
            &learner.dictionary().unwrap().components,
            &t["components"].1,
        );
        assert!(difference < 5e-3, "{fit_algorithm}: {difference}");
    }
}

#[test]
fn many_passes_come_to_the_objective_of_scikit_learn() {
    let t = tensors("online.safetensors");
    let x = single(&t["x"].1);
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("objective.json")).unwrap()).unwrap();
    let reference = reference["mini_batch"].as_f64().unwrap();
    // The problem has many minima, of which the seed chooses one.
    let mut ends: Vec<f64> = (0..5)
        .map(|seed| {
            let config = OnlineConfig {
                n_components: 20,
                alpha: 0.2,
                batch_size: 50,
                seed,
                ..OnlineConfig::default()
            };
            let mut learner = Online::new(config, 12).unwrap();
            let mut losses = Vec::new();
            learner
                .fit(&x, 150, |loss| {
                    losses.push(loss);
                    true
                })
                .unwrap();
            assert!(losses[149] < losses[0], "{losses:?}");
            losses[149]
        })
        .collect();
    ends.sort_by(f64::total_cmp);
    assert!(
        ends[2] < 1.05 * reference,
        "{ends:?}, scikit-learn {reference}"
    );
}

#[test]
fn nmf_makes_scikit_learns_rounds() {
    let t = tensors("nmf.safetensors");
    let [x, w, h] = ["x", "w", "h"].map(|name| single(&t[name].1));
    let config = NmfConfig {
        n_components: 5,
        max_iter: 20,
        tol: 0.0,
        seed: 0,
    };
    let factors = nmf(&x, 12, &config, Some((w, h)), &NoProgress).unwrap();
    assert!(
        apart(&factors.w, &t["w20"].1) < 1e-3,
        "{}",
        apart(&factors.w, &t["w20"].1)
    );
    assert!(
        apart(&factors.h, &t["h20"].1) < 1e-3,
        "{}",
        apart(&factors.h, &t["h20"].1)
    );
    assert_eq!(factors.n_iter, 20);
}

/// How many of the true atoms were found, up to sign.
fn found(atoms: &[f32], truth: &[f32], width: usize) -> usize {
    let best = |t: &[f32]| {
        let products = atoms
            .chunks_exact(width)
            .map(|a| keyfold_kernels::dot(a, t).abs() / keyfold_kernels::norm(a).max(1e-9));
        products.fold(0.0, f32::max)
    };
    truth.chunks_exact(width).filter(|t| best(t) > 0.95).count()
}

#[test]
fn learners_find_the_atoms_that_made_the_rows() {
    let (k, width, active) = (30, 20, 3);
    let truth = directions(k, width, 3);
    let mut rng = StdRng::seed_from_u64(4);
    let mut rows = vec![0.0; 1500 * width];
    for row in rows.chunks_exact_mut(width) {
        for atom in rand::seq::index::sample(&mut rng, k, active) {
            let size = rng.random_range(0.5..2.0) * if rng.random_bool(0.5) { 1.0 } else { -1.0 };
            keyfold_kernels::axpy(row, size, &truth[atom * width..][..width]);
        }
    }
    // By chance a row is near an atom; no start is near many.
    let none = found(&rows[..k * width], &truth, width);
    assert!(none < k / 3, "{none}");
    for method in [Method::Ksvd, Method::Mod] {
        let config = BatchConfig {
            n_components: k,
            n_nonzero_coefs: active,
            max_iter: 60,
            tol: 0.0,
            ..BatchConfig::default()
        };
        let fitted = fit(&rows, width, method, &config, &NoProgress).unwrap();
        let n = found(&fitted.dictionary.components, &truth, width);
        assert!(n > k * 6 / 10, "{method:?} found {n} of {k}");
        for atom in fitted.dictionary.components.chunks_exact(width) {
            assert!((keyfold_kernels::norm(atom) - 1.0).abs() < 1e-3);
        }
        let error = fitted.dictionary.relative_error(&rows).unwrap();
        assert!(error < 0.2, "{method:?} loses {error}");
    }
    let config = OnlineConfig {
        n_components: k,
        alpha: 0.4,
        batch_size: 50,
        ..OnlineConfig::default()
    };
    let mut online = Online::new(config, width).unwrap();
    online.fit(&rows, 30, |_| true).unwrap();
    let n = found(&online.dictionary().unwrap().components, &truth, width);
    assert!(n > k / 2, "online found {n} of {k}");
}

#[test]
fn k_means_finds_the_directions_of_clusters() {
    let truth = directions(4, 8, 5);
    let rows: Vec<f32> = (0..400)
        .flat_map(|i| {
            truth[i % 4 * 8..][..8]
                .iter()
                .map(|x| x * (1.0 + i as f32 / 100.0))
                .collect::<Vec<_>>()
        })
        .collect();
    let config = BatchConfig {
        n_components: 4,
        max_iter: 20,
        ..BatchConfig::default()
    };
    let fitted = fit(&rows, 8, Method::KMeans, &config, &NoProgress).unwrap();
    let codes = fitted.dictionary.transform(&rows).unwrap();
    assert_eq!(codes.mean_active(), 1.0);
    assert!(found(&fitted.dictionary.components, &truth, 8) >= 3);
}

#[test]
fn what_cannot_be_learned_is_refused_by_name() {
    let rows = directions(5, 4, 1);
    let config = BatchConfig {
        n_components: 6,
        ..BatchConfig::default()
    };
    for method in [Method::Ksvd, Method::Mod, Method::Nmf, Method::KMeans] {
        let error = fit(&rows, 4, method, &config, &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("6 atoms") && error.contains("5 rows"),
            "{error}"
        );
        assert!(matches!(
            fit(&[], 4, method, &config, &NoProgress),
            Err(DictionaryError::Empty)
        ));
    }
    let error = fit(
        &[1.0, -2.0],
        2,
        Method::Nmf,
        &BatchConfig {
            n_components: 1,
            ..BatchConfig::default()
        },
        &NoProgress,
    );
    assert!(error.unwrap_err().to_string().contains("row 1, column 2"));
    let zeros = fit(
        &[0.0; 12],
        2,
        Method::Ksvd,
        &BatchConfig {
            n_components: 1,
            ..BatchConfig::default()
        },
        &NoProgress,
    );
    assert!(zeros.unwrap_err().to_string().contains("not zero"));

    let wide = FrankWolfe::new(
        FrankWolfeConfig {
            n_components: 5,
            ..FrankWolfeConfig::default()
        },
        4,
    );
    assert!(wide.unwrap_err().to_string().contains("5 atoms of 4"));
    assert!(
        FrankWolfe::new(
            FrankWolfeConfig {
                p: 1,
                ..FrankWolfeConfig::default()
            },
            4
        )
        .is_err()
    );
    let mut learner = FrankWolfe::new(FrankWolfeConfig::default(), 4).unwrap();
    assert!(matches!(learner.dictionary(), Err(DictionaryError::Empty)));
    assert!(matches!(
        learner.partial_fit(&[1.0; 3]),
        Err(DictionaryError::Part { .. })
    ));
    let error = learner
        .partial_fit(&[1.0, f32::INFINITY, 0.0, 0.0])
        .unwrap_err();
    assert!(error.to_string().contains("row 1, column 2"), "{error}");
}

#[test]
fn poor_data_is_learned_from_without_harm() {
    let width = 6;
    let one = directions(1, width, 2);
    // Constant columns, and rows of rank one.
    let constant: Vec<f32> = (0..200)
        .flat_map(|_| [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .collect();
    let rank_one: Vec<f32> = (0..200)
        .flat_map(|i| {
            one.iter()
                .map(move |x| x * (i as f32 - 99.5))
                .collect::<Vec<_>>()
        })
        .collect();
    for rows in [&one, &constant, &rank_one] {
        let mut frank = FrankWolfe::new(FrankWolfeConfig::default(), width).unwrap();
        let mut online = Online::new(
            OnlineConfig {
                n_components: 9,
                alpha: 0.1,
                batch_size: 20,
                ..OnlineConfig::default()
            },
            width,
        )
        .unwrap();
        for learner in [&mut frank as &mut dyn Learner, &mut online] {
            learner.partial_fit(rows).unwrap();
            learner.flush().unwrap();
            let dictionary = learner.dictionary().unwrap();
            assert!(dictionary.components.iter().all(|x| x.is_finite()));
            assert!(dictionary.relative_error(rows).unwrap() < 1.01);
        }
        let atoms = frank.atoms().unwrap();
        let product = &atoms * atoms.transpose();
        for i in 0..width {
            for j in 0..width {
                let want = f64::from(u8::from(i == j));
                assert!((product[(i, j)] - want).abs() < 1e-10, "orthonormal");
            }
        }
    }
    let config = BatchConfig {
        n_components: 3,
        max_iter: 5,
        ..BatchConfig::default()
    };
    for method in [Method::Ksvd, Method::Mod, Method::KMeans] {
        let fitted = fit(&rank_one, width, method, &config, &NoProgress).unwrap();
        assert!(
            fitted.dictionary.components.iter().all(|x| x.is_finite()),
            "{method:?}"
        );
    }
    let stopped = fit(&rank_one, width, Method::Ksvd, &config, &StopAfter::new(1)).unwrap();
    assert_eq!(stopped.n_iter, 1, "what is there is given");
}

#[test]
fn frank_wolfe_beats_the_convex_schedule_on_a_stream() {
    let truth = {
        let n = 10;
        let random = directions(n, n, 7);
        let m = Mat::from_fn(n, n, |i, j| f64::from(random[i * n + j]));
        m.qr().compute_thin_Q()
    };
    let atoms: Vec<f32> = (0..10)
        .flat_map(|i| (0..10).map(|j| truth[(j, i)] as f32).collect::<Vec<_>>())
        .collect();
    let rows = sparse_rows(&atoms, 10, 10_000, 0.3, 8);
    let error = |schedule| {
        let config = FrankWolfeConfig {
            schedule,
            center: false,
            ..FrankWolfeConfig::default()
        };
        let mut learner = FrankWolfe::new(config, 10).unwrap();
        learner.partial_fit(&rows).unwrap();
        recovery_error(learner.atoms().unwrap().as_ref(), truth.as_ref())
    };
    let (clamped, reference, sfw) = (
        error(Schedule::Clamped),
        error(Schedule::Reference),
        error(Schedule::Sfw),
    );
    assert!(
        clamped < 0.003 && reference < 0.003,
        "{clamped} {reference}"
    );
    assert!(sfw > clamped, "{sfw} {clamped}");
}

/// A stream cut at `cuts`, saved and taken up again at each.
fn in_pieces<L: Learner>(
    mut learner: L,
    rows: &[f32],
    width: usize,
    cuts: &[usize],
    resume: impl Fn(&Saved) -> L,
) -> L {
    let folder = tempfile::tempdir().unwrap();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([rows.len() / width]) {
        if cut > from {
            learner
                .partial_fit(&rows[from * width..cut * width])
                .unwrap();
            from = cut;
        }
        if learner.steps() > 0 {
            learner
                .dictionary()
                .unwrap()
                .save(folder.path(), &learner.state(), Some([2, 3]))
                .unwrap();
            let saved = Saved::load(folder.path()).unwrap();
            assert_eq!(saved.patch, Some([2, 3]));
            assert_eq!(saved.dictionary, learner.dictionary().unwrap());
            learner = resume(&saved);
        }
    }
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 3, "only the last state is kept");
    learner
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_stream_that_was_cut_gives_the_same_bits(mut cuts in prop::collection::vec(1usize..200, 0..5), seed: u64) {
        cuts.sort_unstable();
        let rows = sparse_rows(&directions(9, 6, seed), 6, 200, 0.3, seed);
        let config = FrankWolfeConfig { batch_size: 7, seed, ..FrankWolfeConfig::default() };
        let mut whole = FrankWolfe::new(config.clone(), 6).unwrap();
        whole.partial_fit(&rows).unwrap();
        let start = FrankWolfe::new(config, 6).unwrap();
        let cut = in_pieces(start, &rows, 6, &cuts, |saved| FrankWolfe::resume(saved).unwrap());
        prop_assert_eq!(whole.state(), cut.state());

        let config = OnlineConfig { n_components: 9, alpha: 0.1, batch_size: 11, seed, ..OnlineConfig::default() };
        let mut whole = Online::new(config.clone(), 6).unwrap();
        whole.partial_fit(&rows).unwrap();
        let start = Online::new(config, 6).unwrap();
        let cut = in_pieces(start, &rows, 6, &cuts, |saved| Online::resume(saved).unwrap());
        prop_assert_eq!(whole.state(), cut.state());
    }
}

#[test]
fn a_damaged_folder_is_refused_by_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let rows = sparse_rows(&directions(9, 6, 1), 6, 100, 0.3, 2);
    let mut learner = FrankWolfe::new(FrankWolfeConfig::default(), 6).unwrap();
    learner.partial_fit(&rows).unwrap();
    learner
        .dictionary()
        .unwrap()
        .save(folder.path(), &learner.state(), None)
        .unwrap();
    let saved = Saved::load(folder.path()).unwrap();
    assert_eq!(
        (saved.method(), saved.steps(), saved.rows()),
        ("frank-wolfe", 10, 100)
    );
    let error = Online::resume(&saved).unwrap_err().to_string();
    assert!(error.contains("'frank-wolfe'"), "{error}");
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut changed = bytes.clone();
        let at = changed.len() - 10;
        changed[at] ^= 1;
        for damaged in [&bytes[..bytes.len() / 2], &changed, b"{}"] {
            std::fs::write(&path, damaged).unwrap();
            match Saved::load(folder.path()) {
                // A checksum in the configuration is of another file, and a blank of none.
                _ if name == "config.json" => {}
                Err(error) => assert!(error.to_string().contains(&name), "{error}"),
                Ok(_) => panic!("{name} was damaged"),
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(
        Saved::load(folder.path())
            .unwrap_err()
            .to_string()
            .contains("version 2")
    );
    let none = tempfile::tempdir().unwrap();
    assert!(
        Saved::load(none.path())
            .unwrap_err()
            .to_string()
            .contains("no dictionary")
    );
}

#[test]
fn codes_of_orthonormal_atoms_lose_least_with_all_of_them() {
    let rows = sparse_rows(&directions(6, 6, 1), 6, 300, 0.3, 2);
    let mut learner = FrankWolfe::new(
        FrankWolfeConfig {
            transform_n_nonzero_coefs: 6,
            ..FrankWolfeConfig::default()
        },
        6,
    )
    .unwrap();
    learner.partial_fit(&rows).unwrap();
    let dictionary = learner.dictionary().unwrap();
    assert!(dictionary.relative_error(&rows).unwrap() < 1e-9);
    let few = SparseCoder::new(&dictionary.components, 6, Coder::TopK { k: 2 }).unwrap();
    assert!(few.encode(&rows).unwrap().mean_active() <= 2.0);
}
