use crate::read::tests::*;

fn found(name: &str, file: &str) -> Vec<(String, String)> {
    passages(name, file.as_bytes())
        .into_iter()
        .map(|p| (p.headings.join(" > "), p.text))
        .collect()
}

#[test]
fn an_object_of_a_list_is_a_passage() {
    let file = "[\n {\"name\": \"Ada\", \"born\": {\"year\": 1815, \"place\": \"London\"},\n  \
                \"tags\": [\"math\", 2, [true, null]], \"none\": null},\n {\"name\": \"Caf\\u00e9\"}\n]\n";
    let passages = passages("a.json", file.as_bytes());
    assert_eq!(passages.len(), 2);
    assert_eq!(
        passages[0].text,
        "name: Ada\nborn.year: 1815\nborn.place: London\ntags: math, 2\ntags: true"
    );
    assert_eq!(passages[1].text, "name: Café");
    assert_eq!((passages[0].part, passages[1].part), (Some(1), Some(2)));
    assert_eq!(
        (passages[0].lines.clone(), passages[1].lines.clone()),
        (2..4, 4..5)
    );
    assert_eq!(
        slice(file.as_bytes(), &passages[1]),
        "{\"name\": \"Caf\\u00e9\"}"
    );
}

#[test]
fn entries_of_an_object_of_objects_are_passages_under_their_names() {
    let file = r#"{"ada": {"born": 1815}, "alan": {"born": 1912, "at": {"city": "London"}}}"#;
    let expected = [
        ("ada", "born: 1815"),
        ("alan", "born: 1912\nat.city: London"),
    ]
    .map(|(trail, text)| (trail.to_string(), text.to_string()));
    assert_eq!(found("a.json", file), expected);
}

#[test]
fn a_small_object_is_one_passage_and_a_large_one_is_cut_at_its_entries() {
    let small = r#"{"name": "keyfold", "list": [1, 2], "deep": {"a": {"b": "c"}}}"#;
    let text = "name: keyfold\nlist: 1, 2\ndeep.a.b: c".to_string();
    assert_eq!(found("a.json", small), [(String::new(), text)]);

    let row = r#"{"place": "somewhere over there", "words": "one two three four five"}"#;
    let rows = vec![row; 40].join(",");
    let large = format!(r#"{{"version": 1, "title": "Places", "data": [{rows}], "end": "x"}}"#);
    let found = found("a.json", &large);
    assert_eq!(found.len(), 42);
    assert_eq!(
        found[0],
        (String::new(), "version: 1\ntitle: Places".to_string())
    );
    assert_eq!(found[1].0, "data");
    assert!(found[1].1.starts_with("place: somewhere"));
    assert_eq!(found[41].1, "end: x");
}

#[test]
fn json_lines_are_read_whatever_they_are_called() {
    let file = "{\"a\": 1}\n\n{\"a\": 2}\nnot json\n[3, 4]\n";
    let expected = ["a: 1", "a: 2", "not json", "3, 4"];
    for name in ["a.jsonl", "a.json"] {
        let passages = passages(name, file.as_bytes());
        assert_eq!(
            passages.iter().map(|p| p.text.as_str()).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(passages[1].part, Some(3));
        assert_eq!(passages[1].lines, 3..4);
    }
}

#[test]
fn json_with_comments_is_read_as_it_stands() {
    let file = "{\n  // the target\n  \"target\": \"es2022\",\n}\n";
    assert_eq!(found("tsconfig.json", file)[0].1, file.trim_end());
}

#[test]
fn damaged_json_fails_with_its_place() {
    let line = failed(read_file("a.json", b"{\"a\": [1, 2"));
    assert!(line.contains("is no valid JSON: EOF"), "{line}");
    assert!(line.contains("line 1 column 11"), "{line}");
    assert_eq!(found("a.json", "\"text\"")[0].1, "text");
    assert!(skipped(read_file("a.json", b"[]")).contains("holds no text"));
}

#[test]
fn ten_million_levels_fail_at_once() {
    let n = 10_000_000;
    let closed = |open: &str, close: &str| open.repeat(n) + "1" + &close.repeat(n);
    assert!(failed(read_file("a.json", closed("[", "]").as_bytes())).contains("128 levels"));
    assert!(failed(read_file("a.jsonl", closed("[", "]").as_bytes())).contains("128 levels"));
    assert!(failed(read_file("a.json", "[".repeat(n).as_bytes())).contains("no valid JSON"));
    let n = 2_000_000;
    let objects = "{\"a\":".repeat(n) + "1" + &"}".repeat(n);
    assert!(failed(read_file("a.json", objects.as_bytes())).contains("128 levels"));
}

#[test]
fn long_names_are_not_multiplied() {
    let name = "n".repeat(100_000);
    let values = vec!["{\"x\":1}"; 100_000].join(",");
    let file = format!("{{\"{name}\": {{\"{name}\": {{\"{name}\": [{values}]}}}}}}");
    let passages = passages("a.json", file.as_bytes());
    let text: usize = passages.iter().map(|p| p.text.len()).sum();
    assert!(text < 40 * file.len());
}
