//! What a person who searches may rely on.

use std::time::{Duration, UNIX_EPOCH};

use keyfold_search::SearchError;
use keyfold_search::engine::{Hit, Mode, SearchOptions, rank, rank_all, search};
use keyfold_search::explain::Retriever;
use keyfold_search::filter::Filters;
use proptest::prelude::*;

use crate::world::{File, TinyModel, World, file};

const MODES: [Mode; 3] = [Mode::Lexical, Mode::Meaning, Mode::Both];

fn options(mode: Mode) -> SearchOptions {
    SearchOptions {
        mode,
        ..SearchOptions::default()
    }
}

fn hits(world: &World, query: &str, options: &SearchOptions) -> Vec<Hit> {
    search(&world.snapshot(), query, Some(&world.model), options)
        .unwrap()
        .hits
}

fn texts(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|h| &*h.text).collect()
}

fn garage() -> World {
    World::new(&[
        file(
            "garage.md",
            &[
                "The automobile was repaired by Ann",
                "Paint dries in the sun",
            ],
        ),
        file("food.md", &["A recipe of bread", "The doctor eats soup"]),
    ])
}

#[test]
fn meaning_finds_what_shares_no_word_and_marks_it() {
    let world = garage();
    assert!(hits(&world, "car fixed", &options(Mode::Lexical)).is_empty());
    for mode in [Mode::Meaning, Mode::Both] {
        let found = hits(&world, "car fixed", &options(mode));
        let best = &found[0];
        assert_eq!(best.text, "The automobile was repaired by Ann");
        assert_eq!(best.key, "garage.md");
        let marked: Vec<&str> = best
            .highlights
            .iter()
            .map(|r| &best.text[r.clone()])
            .collect();
        assert_eq!(marked, ["automobile", "repaired"]);
        assert_eq!(best.lexical, None);
        assert_eq!(best.meaning.unwrap().rank, 1);
    }
}

#[test]
fn words_are_found_in_text_headings_and_file_names() {
    let mut guide = file("bicycle_guide.md", &[]);
    guide.passages = vec![("Brakes", "Pull the lever"), ("Chain", "Oil it")];
    let world = World::new(&[guide, file("b.md", &["Levers and oils", "nothing"])]);
    let by_words = |query| {
        let found = hits(&world, query, &options(Mode::Lexical));
        found.into_iter().map(|h| h.text).collect::<Vec<_>>()
    };
    assert_eq!(by_words("brake"), ["Pull the lever"]);
    assert_eq!(by_words("bicycle").len(), 2);
    let mut levers = by_words("lever");
    levers.sort();
    assert_eq!(levers, ["Levers and oils", "Pull the lever"]);
}

#[test]
fn what_is_quoted_must_occur_in_every_mode() {
    let world = World::new(&[file(
        "a.md",
        &[
            "red green blue",
            "green red blue",
            "blue red green",
            "yellow",
        ],
    )]);
    for mode in MODES {
        let found = hits(&world, "\"red green\" blue", &options(mode));
        let mut found = texts(&found);
        found.sort();
        assert_eq!(found, ["blue red green", "red green blue"], "{mode:?}");
        assert!(hits(&world, "\"green yellow\"", &options(mode)).is_empty());
        // A quote without its partner and quotes around nothing quote nothing.
        assert!(!hits(&world, "\"red", &options(mode)).is_empty());
        assert!(!hits(&world, "\"\" red \"!\"", &options(mode)).is_empty());
    }
}

#[test]
fn explanations_pair_words_and_name_the_retriever() {
    let world = garage();
    let options = SearchOptions {
        explain: true,
        ..SearchOptions::default()
    };
    let found = hits(&world, "Ann's car", &options);
    let best = found.iter().find(|h| h.text.contains("Ann")).unwrap();
    let pairs = best.explanation.as_ref().unwrap();
    let car = pairs
        .iter()
        .find(|p| p.query.as_deref() == Some("car"))
        .unwrap();
    assert_eq!(car.passage.as_deref(), Some("automobile"));
    assert_eq!(car.retriever, Retriever::Meaning);
    let by_meaning = pairs.iter().filter(|p| p.retriever == Retriever::Meaning);
    let sum: f32 = by_meaning.map(|p| p.score).sum();
    assert!(
        (sum - best.meaning.unwrap().score).abs() < 1e-3,
        "{sum} {best:?}"
    );
    let lexical: Vec<_> = pairs
        .iter()
        .filter(|p| p.retriever == Retriever::Lexical)
        .collect();
    assert_eq!(lexical.len(), 1);
    assert_eq!(lexical[0].query.as_deref(), Some("Ann"));
    assert_eq!(lexical[0].passage.as_deref(), Some("Ann"));
    assert!((lexical[0].score - best.lexical.unwrap().score).abs() < 1e-4);
}

#[test]
fn matches_in_headings_are_explained_but_not_marked_in_the_text() {
    let mut page = file("a.md", &[]);
    page.passages = vec![("Automobile", "Paint dries slowly")];
    let world = World::new(&[page]);
    let options = SearchOptions {
        explain: true,
        ..options(Mode::Meaning)
    };
    let found = hits(&world, "car", &options);
    assert!(found[0].highlights.is_empty());
    let pairs = found[0].explanation.as_ref().unwrap();
    assert_eq!(pairs[0].passage.as_deref(), Some("Automobile"));
}

#[test]
fn any_text_is_a_query() {
    let world = garage();
    let long = "car ".repeat(20_000);
    let strange = [
        "?!",
        "the",
        "AND OR NOT",
        "a:b^3 [x TO *] (",
        "\\ \"",
        "+-~",
        "🚗 東京",
        "\u{0}",
        "''",
        &long,
    ];
    for mode in MODES {
        for query in strange {
            hits(&world, query, &options(mode));
        }
        for query in ["", " \n\t"] {
            let error = search(&world.snapshot(), query, Some(&world.model), &options(mode));
            assert!(matches!(error, Err(SearchError::EmptyQuery)));
        }
        assert!(
            hits(
                &world,
                "car",
                &SearchOptions {
                    k: 0,
                    ..options(mode)
                }
            )
            .is_empty()
        );
        let all = hits(
            &world,
            "the car",
            &SearchOptions {
                k: usize::MAX / 4,
                ..options(mode)
            },
        );
        assert!(all.len() <= 4);
    }
}

#[test]
fn an_empty_store_has_no_hits() {
    for world in [
        World::new(&[]),
        World::new(&[file("a.md", &[]), file("b.md", &["!?"])]),
    ] {
        for mode in MODES {
            assert!(hits(&world, "car", &options(mode)).is_empty());
        }
    }
}

#[test]
fn another_model_is_refused_by_both_names() {
    let world = garage();
    let other = TinyModel::named("other", "2");
    let snapshot = world.snapshot();
    let error = search(&snapshot, "car", Some(&other), &options(Mode::Both)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("'tiny'") && text.contains("'other'"),
        "{text}"
    );
    let error = search(&snapshot, "car", None, &options(Mode::Meaning)).unwrap_err();
    assert!(error.to_string().contains("'tiny'"), "{error}");
    // Words alone need no model.
    let found = search(&snapshot, "automobile", None, &options(Mode::Lexical)).unwrap();
    assert_eq!(found.hits.len(), 1);
}

#[test]
fn deleted_and_replaced_passages_never_show() {
    let world = garage();
    let before = world.snapshot();
    world.change(
        &[file("food.md", &["A doctor fixed the car"])],
        &["garage.md"],
    );
    for mode in MODES {
        let found = hits(&world, "the automobile car doctor recipe", &options(mode));
        assert_eq!(texts(&found), ["A doctor fixed the car"], "{mode:?}");
    }
    // A snapshot stays what it was.
    let old = search(
        &before,
        "automobile",
        Some(&world.model),
        &options(Mode::Both),
    )
    .unwrap();
    assert_eq!(old.hits[0].text, "The automobile was repaired by Ann");
    assert_eq!(old.hits.len(), 4);
}

fn library() -> Vec<File<'static>> {
    let mut files = Vec::new();
    for (i, key) in ["a.md", "notes/b.md", "notes/old/c.txt", "src/d.rs"]
        .into_iter()
        .enumerate()
    {
        files.push(File {
            key,
            format: ["markdown", "markdown", "text", "code"][i],
            modified: 100 * i as i64,
            passages: vec![("", "the car stands here"), ("", "a doctor was there")],
        });
    }
    files
}

fn filters() -> Vec<(Filters, Vec<&'static str>)> {
    let globs = |globs: &[&str]| Filters {
        globs: globs.iter().map(|g| (*g).to_owned()).collect(),
        ..Filters::default()
    };
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    vec![
        (globs(&["*.md"]), vec!["a.md", "notes/b.md"]),
        (globs(&["notes", "!old"]), vec!["notes/b.md"]),
        (globs(&["*.py"]), vec![]),
        (
            Filters {
                formats: vec!["Text".into(), "code".into()],
                ..Filters::default()
            },
            vec!["notes/old/c.txt", "src/d.rs"],
        ),
        (
            Filters {
                below: Some("notes".into()),
                ..Filters::default()
            },
            vec!["notes/b.md", "notes/old/c.txt"],
        ),
        (
            Filters {
                modified_since: at(100),
                modified_before: at(300),
                ..Filters::default()
            },
            vec!["notes/b.md", "notes/old/c.txt"],
        ),
        (
            Filters {
                modified_since: at(100),
                ..globs(&["*.md"])
            },
            vec!["notes/b.md"],
        ),
    ]
}

#[test]
fn filters_keep_all_that_they_allow_and_nothing_else() {
    let world = World::new(&library());
    for mode in MODES {
        for (filters, expected) in filters() {
            let options = SearchOptions {
                filters: filters.clone(),
                ..options(mode)
            };
            let mut found: Vec<String> = hits(&world, "car doctor", &options)
                .into_iter()
                .map(|h| h.key)
                .collect();
            found.sort();
            let mut twice: Vec<&str> = expected.iter().flat_map(|k| [*k, *k]).collect();
            twice.sort_unstable();
            assert_eq!(found, twice, "{mode:?} {filters:?}");
        }
        let bad = SearchOptions {
            filters: Filters {
                globs: vec!["{".into()],
                ..Filters::default()
            },
            ..options(mode)
        };
        let error = search(&world.snapshot(), "car", Some(&world.model), &bad);
        assert!(matches!(error, Err(SearchError::Glob { .. })));
    }
}

#[test]
fn a_filter_finds_the_few_among_many() {
    let many: Vec<String> = (0..3000)
        .map(|i| format!("car number {i} stands"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let rare = file("rare.txt", &["bread", "soup", "a wooden car"]);
    let world = World::new(&[file("many.md", &many), rare]);
    let mut options = options(Mode::Meaning);
    options.candidates.exact = 20;
    options.filters.globs = vec!["rare.*".into()];
    let found = hits(&world, "car number", &options);
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].text, "a wooden car");
}

#[test]
fn both_holds_what_either_list_ranks_high_and_ranks_are_told() {
    let world = World::new(&[file(
        "a.md",
        &[
            "car",
            "an automobile",
            "car car car wash",
            "doctor",
            "fixed",
        ],
    )]);
    let snapshot = world.snapshot();
    let lists = rank(
        &snapshot,
        "car fixed",
        Some(&world.model),
        &options(Mode::Both),
    )
    .unwrap();
    for list in [&lists.lexical, &lists.meaning] {
        for ranked in list.iter() {
            assert!(lists.ranked.iter().any(|r| r.passage == ranked.passage));
        }
    }
    for hit in hits(&world, "car fixed", &options(Mode::Both)) {
        let place = |list: &[keyfold_search::fuse::Ranked]| {
            list.iter()
                .position(|r| r.passage == hit.passage_id)
                .map(|at| at + 1)
        };
        assert_eq!(hit.lexical.map(|p| p.rank), place(&lists.lexical));
        assert_eq!(hit.meaning.map(|p| p.rank), place(&lists.meaning));
    }
    let all = rank_all(
        &snapshot,
        &["car", "doctor"],
        Some(&world.model),
        &options(Mode::Both),
    );
    let one = rank(
        &snapshot,
        "doctor",
        Some(&world.model),
        &options(Mode::Both),
    )
    .unwrap();
    assert_eq!(all.unwrap()[1].ranked, one.ranked);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn scores_fall_and_highlights_are_words_of_the_text(
        words in proptest::collection::vec("[a-e]{1,2}|car|automobile|é|東京|_x_|🚗", 1..40),
        query in proptest::collection::vec("[a-e]{1,2}|car|é|東|🚗|\"", 1..6),
        mode in 0usize..3,
        cut in 1usize..8,
    ) {
        let texts: Vec<String> = words.chunks(cut).map(|w| w.join(" ")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let world = World::new(&[file("a.md", &texts)]);
        let query = query.join(" ");
        let found = hits(&world, &query, &options(MODES[mode]));
        prop_assert!(found.windows(2).all(|w| w[0].score >= w[1].score));
        let mut ids: Vec<u64> = found.iter().map(|h| h.passage_id).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), found.len());
        for hit in &found {
            prop_assert!(hit.highlights.windows(2).all(|w| w[0].end <= w[1].start));
            for range in &hit.highlights {
                let marked = hit.text.get(range.clone());
                prop_assert!(marked.is_some_and(|m| !m.is_empty() && !m.contains(' ')), "{hit:?}");
            }
        }
    }
}
