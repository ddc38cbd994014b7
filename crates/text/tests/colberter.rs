//! ColBERTer against the authors' code, on tiny random models in their layout (made
//! by parity/colberter.py).
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use keyfold_core::{Encoder, ModelFolder, Role};
use keyfold_text::{
    BagOfWords, ColberterEncoder, ColberterOptions, LoadOptions, Words, load, load_sparse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const TOLERANCE: f32 = 1e-5;
const ALL: [&str; 3] = ["colberter", "uni", "tokens"];
const CUT: ColberterOptions = ColberterOptions {
    words: None,
    keep_stopwords: false,
    truncate: true,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures-colberter")
}

fn model_in(folder: &Path, chosen: ColberterOptions) -> ColberterEncoder {
    let folder = ModelFolder::find(folder.to_str().unwrap()).unwrap();
    ColberterEncoder::load(&folder, chosen, &LoadOptions { threads: 2 }).unwrap()
}

fn model(name: &str, chosen: ColberterOptions) -> ColberterEncoder {
    model_in(&fixtures().join(name), chosen)
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(fixtures().join(name)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Texts {
    query: Vec<String>,
    document: Vec<String>,
}

fn texts() -> Texts {
    read("texts.json")
}

fn views(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

#[derive(Deserialize)]
struct Text {
    whole: Vec<f32>,
    ids: Vec<u32>,
    words: Vec<Vec<f32>>,
    kept: Vec<bool>,
    gates: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct Pair {
    total: f32,
    products: Option<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Expected {
    query: Vec<Text>,
    document: Vec<Text>,
    pairs: Vec<Pair>,
}

#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (a, b) in ours.iter().zip(theirs) {
        let off = (a - b).abs();
        assert!(off <= TOLERANCE * b.abs().max(1.0), "{what}: {a} for {b}");
    }
}

fn check(bag: &BagOfWords, theirs: &Text, what: &str) {
    assert_near(&bag.whole, &theirs.whole, what);
    let ids: Vec<u32> = bag.words.iter().map(|w| w.id).collect();
    assert_eq!(ids, theirs.ids, "{what}");
    for (word, vector) in bag.words.iter().zip(&theirs.words) {
        assert_near(&word.vector, vector, &format!("{what} {}", word.text));
    }
    let gates: Option<Vec<f32>> = bag.words.iter().map(|w| w.gate).collect();
    if let Some(theirs) = &theirs.gates {
        assert_near(&gates.unwrap(), theirs, what);
    }
    let kept: Vec<bool> = bag.words.iter().map(|w| !w.is_removed()).collect();
    assert_eq!(kept, theirs.kept, "{what}");
}

#[test]
fn vectors_gates_and_scores_are_those_of_the_authors() {
    let texts = texts();
    for name in ALL {
        let expected: Expected = read(&format!("{name}/expected.json"));
        let model = model(name, CUT);
        let queries = model.bags(&views(&texts.query), Role::Query).unwrap();
        let documents = model.bags(&views(&texts.document), Role::Document).unwrap();
        for (i, (bag, theirs)) in queries.iter().zip(&expected.query).enumerate() {
            check(bag, theirs, &format!("{name} query {i}"));
        }
        for (i, (bag, theirs)) in documents.iter().zip(&expected.document).enumerate() {
            check(bag, theirs, &format!("{name} document {i}"));
        }
        let removed = documents.iter().flat_map(|d| &d.words);
        let removed = removed.filter(|w| w.is_removed()).count();
        assert_eq!(removed > 0, model.has_gates(), "{name}");
        let mut pairs = expected.pairs.iter();
        for query in &queries {
            for document in &documents {
                let theirs = pairs.next().unwrap();
                let ours = model.score(query, document, name != "colberter");
                // Both are sums of larger parts that nearly cancel.
                let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
                let longest = |bag: &BagOfWords| {
                    let words = bag.words.iter().map(|w| norm(&w.vector));
                    words.fold(norm(&bag.whole), f32::max)
                };
                let most = TOLERANCE * longest(query) * longest(document);
                let off = (ours.total - theirs.total).abs();
                assert!(off <= most * query.words.len() as f32, "{name}: {off}");
                let products = theirs.products.iter().flatten().flatten();
                for (a, b) in ours.products.iter().zip(products) {
                    assert!((a - b).abs() <= most, "{name}: {a} for {b}");
                }
            }
        }
    }
}

/// The rows of a store give the score of words that are kept.
#[test]
fn products_of_rows_are_the_score() {
    let texts = texts();
    for keep_stopwords in [false, true] {
        let chosen = ColberterOptions {
            keep_stopwords,
            ..CUT
        };
        let model = model("colberter", chosen);
        let heads = model.whole_text_rows();
        assert_eq!(heads, 3, "20 numbers in rows of 8");
        let queries = views(&texts.query);
        // One has no words, and scores -1000 for each of the query's there.
        let documents = views(&texts.document);
        let documents: Vec<&str> = documents.into_iter().filter(|d| !d.is_empty()).collect();
        let query_rows = model.encode(&queries, Role::Query).unwrap();
        let document_rows = model.encode(&documents, Role::Document).unwrap();
        let query_bags = model.bags(&queries, Role::Query).unwrap();
        let document_bags = model.bags(&documents, Role::Document).unwrap();
        for (q, query) in query_rows.iter().zip(&query_bags) {
            for (d, document) in document_rows.iter().zip(&document_bags) {
                let document = match keep_stopwords {
                    true => document.clone(),
                    false => document.clone().without_removed(),
                };
                let expected = model.score(query, &document, false).total;
                let product =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
                let whole: f32 = (0..heads).map(|i| product(q.row(i), d.row(i))).sum();
                let best = |a: &[f32]| {
                    let products = d.iter().skip(heads).map(|b| product(a, b));
                    products.reduce(f32::max).unwrap()
                };
                let words: f32 = q.iter().skip(heads).map(best).sum();
                // Sums of a few hundred products of numbers of this size.
                let size = whole.abs() + words.abs();
                let off = (whole + words - expected).abs();
                assert!(off < 1e-4 + 2e-6 * size, "{whole} {words} {expected}");
                let ids: Vec<u32> = document.words.iter().map(|w| w.id).collect();
                assert_eq!(d.ids().unwrap()[heads..], ids);
                assert_eq!(d.ids().unwrap()[..heads], [0; 3]);
            }
        }
    }
}

#[test]
fn rows_name_their_words() {
    let model = model("colberter", CUT);
    for text in views(&texts().document) {
        let rows = &model.encode(&[text], Role::Document).unwrap()[0];
        let ids = rows.ids().unwrap();
        let spans = model.spans_of_ids(text, Role::Document, ids).unwrap();
        assert_eq!(spans.len(), rows.rows());
        let bag = model.bags(&[text], Role::Document).unwrap().remove(0);
        let kept = bag.without_removed();
        for (span, word) in spans[3..].iter().zip(&kept.words) {
            let span = span.clone().unwrap();
            assert_eq!(text[span].to_lowercase(), word.text);
        }
        assert!(spans[..3].iter().all(Option::is_none));
        // Of queries nothing is removed.
        let rows = &model.encode(&[text], Role::Query).unwrap()[0];
        let spans = model.spans(text, Role::Query).unwrap();
        assert_eq!(spans.len(), rows.rows());
    }
}

#[test]
fn a_model_of_one_number_a_word_gives_terms() {
    let texts = texts();
    let name = format!("{}#truncate", fixtures().join("uni").display());
    let options = LoadOptions { threads: 1 };
    let whole = load(&name, &options).unwrap();
    let terms = load_sparse(&name, &options).unwrap();
    let model = model("uni", CUT);
    assert_eq!((whole.identity().dim, whole.whole_text_rows()), (20, 1));
    let queries = views(&texts.query);
    let documents = views(&texts.document);
    let query_bags = model.bags(&queries, Role::Query).unwrap();
    let document_bags = model.bags(&documents, Role::Document).unwrap();
    let q_terms = terms.encode(&queries, Role::Query).unwrap();
    let d_terms = terms.encode(&documents, Role::Document).unwrap();
    let q_rows = whole.encode(&queries, Role::Query).unwrap();
    let d_rows = whole.encode(&documents, Role::Document).unwrap();
    let mut met = 0;
    for (i, query) in query_bags.iter().enumerate() {
        for (j, document) in document_bags.iter().enumerate() {
            let document = document.clone().without_removed();
            // A negative product counts in a document of one word only.
            if document.words.len() < 2 {
                continue;
            }
            let score = model.score(query, &document, true);
            let sparse = q_terms[i].dot(&d_terms[j]) as f32 * terms.unit() * terms.unit();
            assert!((sparse - score.words).abs() < 0.02 * (1.0 + score.words.abs()));
            met += usize::from(sparse > 0.0);
            let products = q_rows[i].row(0).iter().zip(d_rows[j].row(0));
            let dense: f32 = products.map(|(a, b)| a * b).sum();
            assert!((dense - score.whole).abs() < 1e-4);
        }
    }
    assert!(met > 3, "{met} pairs share a word");
    // The words of queries are known by their terms.
    let words: Vec<&str> = query_bags[3]
        .words
        .iter()
        .map(|w| w.text.as_str())
        .collect();
    for (term, _) in q_terms[3].entries() {
        assert!(words.contains(&&*terms.term(*term)));
    }
    assert_eq!(terms.term(7), "word 00000007");
    let error = load_sparse(fixtures().join("colberter").to_str().unwrap(), &options);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("8 numbers") && error.contains("--sparse"),
        "{error}"
    );
}

#[derive(Deserialize)]
struct Ids {
    text: String,
    lower: Vec<u32>,
    lower_tokens: Vec<u32>,
    stemmed: Vec<u32>,
    stemmed_tokens: Vec<u32>,
}

/// Ids of the words, and that the tokens are shared out alike: a word's vector is
/// the mean of its tokens, so words of the same tokens are the same in both.
#[test]
fn ids_of_words_are_those_of_the_authors() {
    let all: Vec<Ids> = read("ids.json");
    assert!(all.len() > 10);
    for (words, stem) in [(Words::Lower, false), (Words::Stem, true)] {
        let model = model(
            "colberter",
            ColberterOptions {
                words: Some(words),
                ..CUT
            },
        );
        for text in &all {
            let (theirs, tokens) = match stem {
                false => (&text.lower, &text.lower_tokens),
                true => (&text.stemmed, &text.stemmed_tokens),
            };
            assert_eq!(
                &model.word_ids(&text.text).unwrap(),
                theirs,
                "{:?}",
                text.text
            );
            assert_eq!(
                &model.token_words(&text.text).unwrap(),
                tokens,
                "{:?}",
                text.text
            );
        }
    }
}

/// A model of one vector for each token: the mean of a word's in its place.
#[test]
fn other_models_can_give_a_row_for_each_word() {
    let options = LoadOptions { threads: 1 };
    let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pylate-bert");
    let plain = plain.to_str().unwrap();
    let text = "The store, the crashing stores: THE Store!";
    for (name, marked) in [("builtin", 0), (plain, 3)] {
        let tokens = load(name, &options).unwrap();
        let all = &tokens.encode(&[text], Role::Document).unwrap()[0];
        let spans = tokens.spans(text, Role::Document).unwrap();
        for (how, words) in [("lower", 4), ("stem", 3)] {
            let by_word = load(&format!("{name}#words={how}"), &options).unwrap();
            assert_ne!(by_word.identity().hash, tokens.identity().hash);
            assert!(by_word.identity().name.ends_with(&format!("#words={how}")));
            let rows = &by_word.encode(&[text], Role::Document).unwrap()[0];
            let of = by_word.spans(text, Role::Document).unwrap();
            assert_eq!((rows.rows(), of.len()), (marked + words, marked + words));
            for (row, span) in of[..marked].iter().enumerate() {
                assert_eq!(
                    rows.row(row),
                    all.row(if row < 2 { row } else { all.rows() - 1 })
                );
                assert_eq!(*span, None);
            }
            assert_eq!(of[marked], Some(0..3));
            // "the" at its three places.
            let mut mean = vec![0.0; rows.dim()];
            for (row, span) in all.iter().zip(&spans) {
                if span
                    .clone()
                    .is_some_and(|s| text[s].eq_ignore_ascii_case("the"))
                {
                    mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
                }
            }
            let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (m, x) in mean.iter().zip(rows.row(marked)) {
                assert!((m / length - x).abs() < 1e-5);
            }
            // Queries stay.
            let query = |e: &dyn Encoder| e.encode(&[text], Role::Query).unwrap();
            assert_eq!(query(&*by_word), query(&*tokens));
        }
    }
}

fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    for part in ["", "base"] {
        for entry in fs::read_dir(fixtures().join(name).join(part)).unwrap() {
            let from = entry.unwrap().path();
            if from.is_file() {
                let to = dir.path().join(part).join(from.file_name().unwrap());
                fs::copy(from, to).unwrap();
            }
        }
    }
    dir
}

fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[track_caller]
fn assert_error(name: &str, parts: &[&str]) {
    let error = load(name, &LoadOptions::default())
        .err()
        .unwrap()
        .to_string();
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

#[test]
fn what_cannot_be_loaded_is_said() {
    let dir = copy("colberter");
    let name = dir.path().to_str().unwrap();
    assert!(load(name, &LoadOptions::default()).is_ok());
    assert_error(&format!("{name}#words=verb"), &["'verb'", "lower or stem"]);
    assert_error(&format!("{name}#fast"), &["'fast'", "keep-stopwords"]);

    for field in ["compression_dim", "retrieval_compression_dim"] {
        for value in [json!(-1), json!(0), json!(1u64 << 40)] {
            let dir = copy("colberter");
            edit(dir.path(), |c| c[field] = value);
            let name = dir.path().to_str().unwrap();
            assert_error(name, &[field, "config.json", "no ColBERTer checkpoint"]);
        }
    }
    let dir = copy("colberter");
    edit(dir.path(), |c| c["compression_dim"] = json!(9));
    assert_error(
        dir.path().to_str().unwrap(),
        &["compressor.weight", "[8, 32]", "[9, 32]"],
    );
    let dir = copy("uni");
    edit(dir.path(), |c| c["bert_model"] = json!("no-such/model"));
    assert_error(
        dir.path().to_str().unwrap(),
        &["no-such/model", "config.json", "folder 'model'"],
    );
    edit(dir.path(), |c| c["bert_model"] = json!(""));
    assert_error(dir.path().to_str().unwrap(), &["bert_model is missing"]);
    let dir = copy("uni");
    fs::remove_file(dir.path().join("base/tokenizer.json")).unwrap();
    assert_error(dir.path().to_str().unwrap(), &["tokenizer.json", "'base'"]);
    // A base model of the known name needs no sizes, but these are not its weights.
    edit(dir.path(), |c| {
        c["bert_model"] = json!("distilbert-base-uncased")
    });
    let name = dir.path().to_str().unwrap();
    assert_error(name, &["word_embeddings", "768"]);

    let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/st-bert-mean");
    assert_error(
        &format!("{}#words=stem", plain.display()),
        &["does not have the options 'words=stem'", "each token"],
    );
    assert_error("builtin#truncate", &["'truncate'", "--words"]);
}

#[test]
fn a_long_text_is_refused_or_cut() {
    let texts = texts();
    let long = texts.document.last().unwrap().as_str();
    let refuses = model("colberter", ColberterOptions::default());
    let error = refuses.encode(&[long], Role::Document).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("takes 96") && error.contains("--truncate"),
        "{error}"
    );
    let cuts = model("colberter", CUT);
    let rows = &cuts.encode(&[long], Role::Document).unwrap()[0];
    assert!((3..=99).contains(&rows.rows()));
    // That changes no vector of other texts, so it is the same model.
    assert_eq!(refuses.identity().hash, cuts.identity().hash);
    let stems = ColberterOptions {
        words: Some(Words::Stem),
        ..CUT
    };
    assert_ne!(
        model("colberter", stems).identity().hash,
        cuts.identity().hash
    );
}

#[test]
fn hostile_texts_are_encoded() {
    let controls: String = (0u8..32).chain([127]).map(char::from).collect();
    let texts = [
        "",
        " \t\n",
        controls.as_str(),
        "\u{0}\u{feff}\u{202e}\u{fffd}",
        "[CLS] [SEP] [MASK] [PAD]",
        "e\u{301}\u{301} \u{1f468}\u{200d}\u{1f469} \u{130}\u{130}",
        "\u{1c}a\u{1f}",
    ];
    for name in ALL {
        let model = model(name, CUT);
        for role in [Role::Query, Role::Document] {
            for (text, rows) in texts.iter().zip(model.encode(&texts, role).unwrap()) {
                assert!(rows.rows() >= model.whole_text_rows(), "{name} {text:?}");
                let ids = rows.ids().unwrap_or(&[]);
                for span in model
                    .spans_of_ids(text, role, ids)
                    .unwrap()
                    .into_iter()
                    .flatten()
                {
                    assert!(text.get(span).is_some(), "{name} {text:?}");
                }
            }
        }
    }
}
