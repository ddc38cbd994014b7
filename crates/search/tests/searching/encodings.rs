//! Encodings of fixed length beside the segments: they follow what the store holds,
//! find what MaxSim finds, and are refused where they do not fit.

use keyfold_core::{NoProgress, Role, Vectors};
use keyfold_search::SearchError;
use keyfold_search::candidates::fde::FdeOptions;
use keyfold_search::candidates::tune::{TuneOptions, tune, tune_encodings};
use keyfold_search::candidates::{
    Access, CandidateOptions, Method, PlaidLike, PlaidOptions, Tuned, WarpOptions, nearest,
};
use keyfold_search::codebook::Bits;
use keyfold_search::engine::{Mode, SearchOptions, rank};
use keyfold_search::filter::{Allowed, Filters};
use keyfold_search::store::{
    Snapshot, Writer, WriterOptions, check, remove_encodings, set_tuned, update_encodings,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::world::{World, file};

/// Texts of some of the words of one of 20 topics, and a few others.
fn texts(n: usize, seed: u64) -> Vec<String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut text = || {
        let topic = rng.random_range(0..20);
        let mut word = |_| match rng.random_range(0..4) {
            0 => format!("w{}", rng.random_range(0..400)),
            _ => format!("t{topic}x{}", rng.random_range(0..15)),
        };
        (0..12).map(&mut word).collect::<Vec<_>>().join(" ")
    };
    (0..n).map(|_| text()).collect()
}

fn world(texts: &[String]) -> World {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (first, second) = texts.split_at(texts.len() / 2);
    let world = World::new(&[file("a.md", first)]);
    world.change(&[file("b.md", second)], &[]);
    world
}

fn encode(world: &World, wanted: Option<&str>) -> Result<bool, SearchError> {
    let wanted = wanted.map(|w| w.parse::<FdeOptions>().unwrap());
    let options = WriterOptions::default();
    update_encodings(
        &world.store(),
        keyfold_core::Encoder::identity(&world.model),
        wanted.as_ref(),
        &options,
        &NoProgress,
    )
}

/// Keys and texts of what is found.
fn find(snapshot: &Snapshot, query: &Vectors, options: &CandidateOptions) -> Vec<String> {
    let found = nearest(snapshot.segments(), query, 10, None, options).unwrap();
    let text = |id| snapshot.passage(id).unwrap().unwrap().passage.text;
    found.0.into_iter().map(|r| text(r.passage)).collect()
}

fn by(method: Method) -> CandidateOptions {
    CandidateOptions {
        method,
        encoded: 100,
        exact: 30,
        ..CandidateOptions::default()
    }
}

/// Of the ten best by MaxSim of some queries, how many are found.
fn recall(world: &World, texts: &[String], options: &CandidateOptions) -> f64 {
    let snapshot = world.snapshot();
    let (mut found, mut all) = (0, 0);
    for text in texts.iter().step_by(40) {
        let words: Vec<&str> = text.split(' ').skip(3).take(6).collect();
        let query = world.model.one(&words.join(" "), Role::Query);
        let best = find(&snapshot, &query, &by(Method::Exhaustive));
        let got = find(&snapshot, &query, options);
        found += best.iter().filter(|b| got.contains(b)).count();
        all += best.len();
    }
    found as f64 / all as f64
}

#[test]
fn vectors_that_are_read_give_what_mapped_ones_give() {
    let texts = texts(600, 4);
    for bits in [Bits::One, Bits::Four, Bits::Eight] {
        let passages: Vec<&str> = texts.iter().map(String::as_str).collect();
        let world = World::with_bits(bits, &[file("a.md", &passages)]);
        // A new snapshot for each way: neither knows what the other has checked.
        for method in [Method::Centroids, Method::Plaid, Method::Exhaustive] {
            let query = world.model.one(&texts[7], Role::Query);
            let found = [Access::Mapped, Access::Read].map(|access| {
                let options = CandidateOptions {
                    access,
                    ..by(method)
                };
                let snapshot = world.snapshot();
                nearest(snapshot.segments(), &query, 10, None, &options)
                    .unwrap()
                    .0
            });
            assert!(!found[0].is_empty());
            assert_eq!(found[0], found[1], "{bits:?}, {method:?}");
        }
    }
}

const SPEC: &str = "reps=10,simhash=4,proj=8";

#[test]
fn each_method_finds_nearly_all_of_the_best_ten() {
    let texts = texts(1500, 1);
    let world = world(&texts);
    for spec in [
        SPEC,
        "reps=20,simhash=4,proj=8,pq=256x8,sketch=count,fill=on",
    ] {
        assert!(encode(&world, Some(spec)).unwrap());
        let found = recall(&world, &texts, &by(Method::Fde));
        assert!(found > 0.9, "{spec}: {found}");
    }
    for method in [Method::Centroids, Method::Plaid, Method::Warp] {
        let found = recall(&world, &texts, &by(method));
        assert!(found > 0.9, "{method:?}: {found}");
    }
    // With hardly any candidate, hardly anything is found: the choice matters.
    let few = CandidateOptions {
        encoded: 1,
        exact: 20,
        ..by(Method::Fde)
    };
    let found = recall(&world, &texts, &few);
    assert!(found > 0.3 && found < 1.0, "{found}");
}

#[test]
fn plaid_and_warp_look_as_far_as_they_are_told() {
    let texts = texts(1500, 6);
    let world = world(&texts);
    let plaid = |plaid| {
        let options = CandidateOptions {
            plaid,
            ..by(Method::Plaid)
        };
        recall(&world, &texts, &options)
    };
    let like = |like| PlaidOptions {
        like,
        ..PlaidOptions::default()
    };
    let (stanford, fast) = (
        plaid(like(PlaidLike::Stanford)),
        plaid(like(PlaidLike::FastPlaid)),
    );
    let pylate = plaid(like(PlaidLike::PyLate));
    assert!(
        stanford > 0.9 && fast >= stanford && pylate >= fast,
        "{stanford} {fast} {pylate}"
    );
    let near = |like, threshold| {
        plaid(PlaidOptions {
            like,
            threshold: Some(threshold),
            ..PlaidOptions::default()
        })
    };
    // With nothing left out, next-plaid is fast-plaid; with everything, nothing is found.
    assert_eq!(near(PlaidLike::NextPlaid, -1.0), fast);
    assert_eq!(near(PlaidLike::NextPlaid, 2.0), 0.0);
    let stanford = |probes, threshold, full_scores| {
        plaid(PlaidOptions {
            probes: Some(probes),
            threshold: Some(threshold),
            full_scores: Some(full_scores),
            ..PlaidOptions::default()
        })
    };
    // Where all is left out, all passages score 0 in the first round, and 40 stay by chance.
    let (blind, few, more) = (
        stanford(1, 2.0, 40),
        stanford(1, 0.5, 40),
        stanford(8, 0.5, 4096),
    );
    assert!(
        blind < few && few <= more && more > 0.98,
        "{blind} {few} {more}"
    );

    let warp = |warp| {
        let options = CandidateOptions {
            warp,
            ..by(Method::Warp)
        };
        recall(&world, &texts, &options)
    };
    let usual = WarpOptions::default();
    let one = WarpOptions { probes: 1, ..usual };
    // A passage without the probed rows is worth the first centroid's score: as much as any.
    let blind = WarpOptions {
        t_prime: Some(1),
        bound: 1,
        ..one
    };
    let (usual, one, blind) = (warp(usual), warp(one), warp(blind));
    assert!(usual >= one && usual > blind, "{usual} {one} {blind}");
}

#[test]
fn encodings_follow_the_store() {
    let texts = texts(600, 2);
    let world = world(&texts);
    assert!(!encode(&world, None).unwrap(), "nobody asked for encodings");
    let none = world.snapshot();
    let query = world.model.one(&texts[5], Role::Query);
    let e = nearest(none.segments(), &query, 3, None, &by(Method::Fde)).unwrap_err();
    assert!(matches!(e, SearchError::NoEncodings { .. }), "{e}");
    assert!(e.to_string().contains("--fde"), "{e}");

    assert!(encode(&world, Some(SPEC)).unwrap());
    assert!(!encode(&world, Some(SPEC)).unwrap(), "it was done already");
    assert!(!encode(&world, None).unwrap());
    let before = world.snapshot();
    let spec = before.encoded_with().unwrap().to_string();
    assert!(spec.starts_with("reps=10,simhash=4,proj=8,"), "{spec}");

    // A new file has no encodings yet, and gets them without being asked for again.
    world.change(
        &[file("c.md", &["zebra crossing", "stripes of a zebra"])],
        &["a.md"],
    );
    let zebra = world.model.one("zebra", Role::Query);
    let snapshot = world.snapshot();
    assert!(nearest(snapshot.segments(), &zebra, 3, None, &by(Method::Fde)).is_err());
    assert!(encode(&world, None).unwrap());
    let snapshot = world.snapshot();
    let found = find(&snapshot, &zebra, &by(Method::Fde));
    assert!(
        found[0].contains("zebra") && found[1].contains("zebra"),
        "{found:?}"
    );
    assert_eq!(snapshot.encoded_with().unwrap().to_string(), spec);
    // What is gone is not found, though its codes are there until the merge.
    let gone = find(&snapshot, &query, &by(Method::Fde));
    assert!(!gone.contains(&texts[5]));
    // A filter chooses before the best are taken.
    let filters = Filters {
        globs: vec!["c.md".into()],
        ..Filters::default()
    };
    let allowed = Allowed::new(&snapshot, &filters).unwrap();
    let few = CandidateOptions {
        encoded: 2,
        exact: 1,
        ..by(Method::Fde)
    };
    let found = nearest(snapshot.segments(), &query, 1, allowed.as_ref(), &few)
        .unwrap()
        .0;
    assert_eq!(found.len(), 1);

    // A merge leaves the dead behind, and the codes of old segments.
    let options = WriterOptions::default();
    let identity = keyfold_core::Encoder::identity(&world.model);
    let mut writer = Writer::open(&world.store(), identity, &options).unwrap();
    writer.merge(&NoProgress).unwrap();
    writer.encode(None, &NoProgress).unwrap();
    drop(writer);
    let merged = world.snapshot();
    assert_eq!(
        find(&merged, &zebra, &by(Method::Fde))[..1],
        found_first(&snapshot, &zebra)
    );
    let files = std::fs::read_dir(world.store().join("encodings"))
        .unwrap()
        .count();
    assert_eq!(files, 1 + merged.segments().len());
    let report = check(&world.store(), &NoProgress).unwrap();
    assert!(report.is_sound(), "{report:?}");

    // Old snapshots still search as they did.
    assert!(find(&before, &query, &by(Method::Fde)).contains(&texts[5]));
    drop((before, snapshot, merged));
    assert!(remove_encodings(&world.store(), identity, &options).unwrap());
    assert!(!remove_encodings(&world.store(), identity, &options).unwrap());
    assert!(world.snapshot().encoded_with().is_none());
    assert_eq!(
        std::fs::read_dir(world.store().join("encodings"))
            .unwrap()
            .count(),
        0
    );
}

fn found_first(snapshot: &Snapshot, query: &Vectors) -> [String; 1] {
    [find(snapshot, query, &by(Method::Fde)).remove(0)]
}

#[test]
fn other_parameters_encode_anew_and_bad_ones_are_refused() {
    let texts = texts(300, 3);
    let world = world(&texts);
    encode(&world, Some(SPEC)).unwrap();
    let before = world.snapshot().generation();
    for bad in ["proj=25", "simhash=17", "reps=0"] {
        let e = encode(&world, Some(bad)).unwrap_err();
        assert!(matches!(e, SearchError::Encodings { .. }), "{bad}: {e}");
    }
    assert_eq!(world.snapshot().generation(), before);
    assert!(encode(&world, Some("reps=4,simhash=2,proj=4")).unwrap());
    let spec = world.snapshot().encoded_with().unwrap().to_string();
    assert!(spec.starts_with("reps=4,simhash=2,proj=4,"), "{spec}");
}

#[test]
fn damage_and_swapped_files_are_noticed() {
    let texts = texts(300, 4);
    let world = world(&texts);
    encode(&world, Some(SPEC)).unwrap();
    let folder = world.store().join("encodings");
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(names.len(), 3);
    let query = world.model.one(&texts[5], Role::Query);
    let searched = || -> Result<(), SearchError> {
        let snapshot = Snapshot::open(&world.store())?;
        nearest(snapshot.segments(), &query, 3, None, &by(Method::Fde)).map(|_| ())
    };
    searched().unwrap();
    for name in &names {
        let good = std::fs::read(name).unwrap();
        for at in [0, 9, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(name, &bad).unwrap();
            let report = check(&world.store(), &NoProgress).unwrap();
            let blamed = report
                .damaged
                .iter()
                .any(|d| d.path == name.canonicalize().unwrap());
            assert!(blamed, "{name:?} byte {at}: {report:?}");
            let e = searched().unwrap_err();
            assert!(matches!(e, SearchError::Damaged { .. }), "{e}");
        }
        std::fs::write(name, &good[..good.len() / 2]).unwrap();
        assert!(searched().is_err());
        std::fs::write(name, &good).unwrap();
    }
    // The codes of one segment in the place of another's.
    let codes: Vec<_> = names
        .iter()
        .filter(|n| n.extension().unwrap() == "kff")
        .collect();
    let good = std::fs::read(codes[0]).unwrap();
    std::fs::copy(codes[1], codes[0]).unwrap();
    let e = searched().unwrap_err();
    assert!(matches!(e, SearchError::Damaged { .. }), "{e}");
    std::fs::write(codes[0], good).unwrap();
    searched().unwrap();
    std::fs::remove_file(codes[0]).unwrap();
    assert!(matches!(
        searched().unwrap_err(),
        SearchError::Damaged { .. }
    ));
}

#[test]
fn tuning_chooses_what_finds_enough_and_the_store_keeps_it() {
    let texts = texts(1200, 5);
    let world = world(&texts);
    let identity = keyfold_core::Encoder::identity(&world.model);
    let options = TuneOptions {
        queries: 15,
        recall: 0.9,
        threads: 1,
        ..TuneOptions::default()
    };
    let plain = tune(&world.snapshot(), &world.model, &options, &NoProgress).unwrap();
    assert!(plain.trials.iter().all(|t| t.method != Method::Fde));
    assert_eq!(plain.trials[0].method, Method::Exhaustive);
    assert!(plain.best.is_some());

    let encodings = tune_encodings(&world.snapshot(), &world.model, &options, &NoProgress).unwrap();
    let (first, last) = (&encodings[0], &encodings[encodings.len() - 1]);
    assert!(
        first.candidates >= 9 && first.candidates < last.candidates,
        "{first:?} {last:?}"
    );
    let writing = WriterOptions::default();
    let wanted = Some(&first.options);
    update_encodings(&world.store(), identity, wanted, &writing, &NoProgress).unwrap();
    let tuning = tune(&world.snapshot(), &world.model, &options, &NoProgress).unwrap();
    let best = tuning.best.unwrap();
    assert!(best.recall >= 0.9, "{best:?}");
    let enough = tuning.trials.iter().filter(|t| t.recall >= 0.9);
    assert!(enough.clone().all(|t| t.milliseconds >= best.milliseconds));
    assert!(enough.into_iter().any(|t| t.method == Method::Fde));

    // What is kept is used; a passage that only much work finds is then not found.
    let few = Tuned {
        method: Method::Fde,
        encoded: 1,
        exact: 10,
        milliseconds: 0.5,
        ..best
    };
    let snapshot = || world.snapshot();
    let lists = || -> Vec<Vec<u64>> {
        let options = SearchOptions {
            mode: Mode::Meaning,
            k: 5,
            ..SearchOptions::default()
        };
        let query = |t: &String| {
            let found = rank(&snapshot(), &t[..30], Some(&world.model), &options).unwrap();
            found.ranked.into_iter().map(|r| r.passage).collect()
        };
        texts.iter().step_by(100).map(query).collect()
    };
    let thorough = lists();
    set_tuned(&world.store(), identity, Some(&few), &writing).unwrap();
    assert_eq!(snapshot().tuned(), Some(&few));
    assert_ne!(lists(), thorough);
    // While a new file has no encodings, and once there are none, it does not hold.
    world.change(&[file("new.md", &["w1 w2"])], &[]);
    assert_eq!(snapshot().tuned(), None);
    update_encodings(&world.store(), identity, None, &writing, &NoProgress).unwrap();
    assert_eq!(snapshot().tuned(), Some(&few));
    let grown = Tuned {
        passages: 10,
        ..few.clone()
    };
    set_tuned(&world.store(), identity, Some(&grown), &writing).unwrap();
    assert_eq!(snapshot().tuned(), None);
    set_tuned(&world.store(), identity, None, &writing).unwrap();
    assert_eq!(lists(), thorough);
}

#[test]
fn a_store_without_passages_cannot_be_tuned() {
    let world = World::new(&[file("a.md", &["!", "?"])]);
    let options = TuneOptions::default();
    let tuning = tune(&world.snapshot(), &world.model, &options, &NoProgress).unwrap();
    assert_eq!(tuning.best, None);
    let trials = tune_encodings(&world.snapshot(), &world.model, &options, &NoProgress).unwrap();
    assert!(trials.is_empty());
}
