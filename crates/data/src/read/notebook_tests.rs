use crate::read::tests::*;

const NOTEBOOK: &str = r###"{
 "cells": [
  {"cell_type": "markdown", "metadata": {}, "source": ["# Tides\n", "\n", "How *water* moves. FILL"]},
  {"cell_type": "code", "execution_count": 1, "metadata": {},
   "source": "def height(t):\n    return t",
   "outputs": [
    {"output_type": "stream", "name": "stdout", "text": ["high\n", "low\n"]},
    {"output_type": "execute_result", "data": {"text/plain": "42", "image/png": "iVBORw0KGgo="}},
    {"output_type": "error", "ename": "ValueError", "evalue": "no moon", "traceback": ["x"]}
   ]},
  {"cell_type": "markdown", "source": "## More\n\nThe end."}
 ],
 "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4, "nbformat_minor": 5
}"###;

#[test]
fn cells_and_their_text_outputs_are_read() {
    let notebook = filled(NOTEBOOK);
    let passages = passages("a.ipynb", notebook.as_bytes());
    assert_eq!(passages.len(), 2);
    assert_eq!(passages[0].headings, ["Tides"]);
    assert_eq!(
        passages[0].text,
        filled(
            "How water moves. FILL\n\ndef height(t):\n    return t\n\nhigh\nlow\n\n42\n\nValueError: no moon"
        )
    );
    assert_eq!(passages[0].lines, 3..11);
    assert_eq!(passages[1].headings, ["Tides", "More"]);
    assert_eq!(passages[1].text, "The end.");
    assert!(slice(notebook.as_bytes(), &passages[1]).starts_with("{\"cell_type\": \"markdown\""));
}

#[test]
fn older_notebooks_have_worksheets() {
    let file = r#"{"worksheets": [{"cells": [
        {"cell_type": "heading", "level": 2, "source": ["Old"]},
        {"cell_type": "code", "input": ["x = 1"], "outputs": []}]}], "nbformat": 3}"#;
    let passages = passages("a.ipynb", file.as_bytes());
    assert_eq!(
        (passages[0].headings.join(""), passages[0].text.as_str()),
        ("Old".into(), "x = 1")
    );
}

#[test]
fn damaged_notebooks_fail() {
    for file in [
        "{",
        r#"{"cells": [{"source": 3}]}"#,
        r#"{"cells": {"a": 1}}"#,
    ] {
        assert!(failed(read_file("a.ipynb", file.as_bytes())).contains("no valid JSON"));
    }
    assert!(skipped(read_file("a.ipynb", b"{}")).contains("holds no text"));
    let deep = format!("{{\"cells\": [{}]}}", "[".repeat(1000) + &"]".repeat(1000));
    failed(read_file("a.ipynb", deep.as_bytes()));
}
