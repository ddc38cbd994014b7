use crate::read::tests::*;

fn function(name: &str, lines: usize, indentation: &str) -> String {
    let mut text =
        format!("{indentation}/// Says what {name} does.\n{indentation}fn {name}() {{\n");
    for i in 0..lines {
        text += &format!("{indentation}    let value_{i} = compute({i}) + other;\n");
    }
    text + indentation + "}\n\n"
}

fn trails(name: &str, code: &str) -> Vec<(String, String)> {
    let passages = passages(name, code.as_bytes());
    for passage in &passages {
        assert_eq!(slice(code.as_bytes(), passage), passage.text);
        assert_eq!(lines(code.as_bytes(), passage).trim_end(), passage.text);
    }
    passages
        .into_iter()
        .map(|p| (p.headings.join(" > "), p.text))
        .collect()
}

#[test]
fn small_definitions_stay_whole_with_their_comments() {
    let code = format!(
        "//! Module.\n\nuse std::fs;\n\n{}{}",
        function("first", 8, ""),
        function("second", 8, "")
    );
    let found = trails("a.rs", &code);
    let starts: Vec<_> = found
        .iter()
        .map(|(_, text)| text.lines().next().unwrap())
        .collect();
    assert_eq!(starts, ["//! Module.", "/// Says what second does."]);
    assert!(found[0].1.ends_with('}'));
    assert!(found.iter().all(|(trail, _)| trail.is_empty()));
}

#[test]
fn large_definitions_become_headings_of_what_they_hold() {
    let code = format!(
        "impl<T> Store<T> {{\n{}{}}}\n\npub(crate) fn last() {{}}\n",
        function("open", 4, "    "),
        function("close", 40, "    ")
    );
    let found = trails("a.rs", &code);
    assert_eq!(found[0].0, "impl<T> Store<T>");
    assert!(found[0].1.contains("fn open"));
    let inner = "impl<T> Store<T> > fn close";
    let parts: Vec<_> = found.iter().filter(|(trail, _)| trail == inner).collect();
    assert!(parts.len() > 2);
    assert!(
        parts[0]
            .1
            .contains("/// Says what close does.\n    fn close")
    );
    let (trail, text) = found.last().unwrap();
    assert_eq!(
        (trail.as_str(), text.as_str()),
        ("", "pub(crate) fn last() {}")
    );
}

#[test]
fn python_is_cut_by_indentation() {
    let method = |name: &str| {
        let body = "        total = total + value * 2\n".repeat(22);
        format!("    @cached\n    def {name}(self):\n{body}\n")
    };
    let code = format!(
        "import os\n\n# About shapes.\nclass Shape(Base):\n    \"\"\"A shape.\"\"\"\n\n{}{}\ndef main():\n    pass\n",
        method("area"),
        method("edge")
    );
    let found = trails("a.py", &code);
    let expected = ["", "class Shape", "class Shape", ""];
    assert_eq!(
        found.iter().map(|(t, _)| t.as_str()).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(found[0].1, "import os");
    assert!(
        found[1]
            .1
            .starts_with("# About shapes.\nclass Shape(Base):")
    );
    assert!(found[1].1.contains("    @cached\n    def area"));
    assert!(found[2].1.starts_with("    @cached\n    def edge"));
    assert_eq!(found[3].1, "def main():\n    pass");
}

#[test]
fn c_and_javascript_functions_show_by_their_brackets() {
    let body = "  call(one, two, three);\n  other = value[3] + 4;\n".repeat(6);
    let c = format!(
        "#include <a.h>\n\n/* Adds. */\nstatic int\nadd(int a,\n    int b)\n{{\n{body}}}\n\n\
         int sub(int a) {{\n{body}}}\n"
    );
    let found = trails("a.c", &c);
    assert_eq!(found.len(), 2);
    assert!(found[1].1.starts_with("int sub"));
    assert!(found[0].1.contains("/* Adds. */\nstatic int\nadd"));
    let body = body.replace("  ", "    ");
    let js = format!("class A {{\n  run(a) {{\n{body}  }}\n\n  stop() {{\n{body}  }}\n}}\n");
    let found = trails("a.js", &js);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(trail, _)| trail == "class A"));
    assert!(found[1].1.starts_with("  stop() {"), "{found:#?}");
}

#[test]
fn code_without_definitions_is_cut_at_blank_lines() {
    let yaml = "key: value\nlist:\n  - a\n  - b\n\n".repeat(80);
    let found = trails("a.yaml", &yaml);
    assert!(found.len() > 3);
    assert!(found.iter().all(|(_, text)| text.starts_with("key: value")));
}

#[test]
fn a_makefile_and_a_script_are_code() {
    assert_eq!(
        read_file("Makefile", b"all:\n\techo\n")
            .unwrap()
            .format
            .to_string(),
        "Make"
    );
    assert_eq!(
        read_file("run", b"#!/usr/bin/env python3\nprint(1)\n")
            .unwrap()
            .format
            .to_string(),
        "Python"
    );
}

#[test]
fn hostile_code_ends() {
    let n = 200_000;
    let deep: String = (0..2000).map(|i| " ".repeat(i) + "class A:\n").collect();
    let codes = [
        ("a.py", deep),
        ("a.rs", "fn a() {\n".repeat(n)),
        ("a.rs", "fn ".repeat(n)),
        ("a.rs", "{\n".repeat(n)),
        ("a.c", "a(\n".repeat(n)),
        ("a.c", "// x\n".repeat(n) + "int a() {\n"),
        ("a.c", "int a() {}\n\n".repeat(n)),
        ("a.py", "pub ".repeat(n) + "def"),
        ("a.rs", "\n".repeat(2 << 20) + "x"),
        ("a.rs", "x\n".repeat(2 << 20)),
    ];
    for (name, code) in codes {
        let start = std::time::Instant::now();
        let result = read_file(name, code.as_bytes());
        println!("{:?} {:?}", code.get(..20), start.elapsed());
        assert!(result.is_ok());
    }
}
