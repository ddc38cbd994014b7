//! Hits as ripgrep would print them.

use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;

use keyfold_search::engine::{Hit, Place};
use keyfold_search::explain::{Retriever, WordMatch};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::passage::{self, Layout};
use super::terminal::{DIM, LINE, PATH, printable};
use crate::place;

/// A passage that was found, ready to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ShownHit {
    /// Where its file is, as short as it can be typed.
    pub(crate) path: PathBuf,
    /// What its file is: `Markdown`, `PDF`, `Rust`, ...
    pub(crate) format: String,
    /// First and last line, counted from 1; none where the format has no lines.
    pub(crate) lines: Option<(u32, u32)>,
    /// Page, chapter, row or message, counted from 1.
    pub(crate) part: Option<u32>,
    /// How well it fits; only the order means something.
    pub(crate) score: f32,
    /// Headings above it, outermost first.
    pub(crate) headings: Vec<String>,
    /// The text.
    pub(crate) text: String,
    /// The bytes of `text` that matched best, sorted.
    pub(crate) matches: Vec<Range<usize>>,
    /// Its place in the list by words.
    pub(crate) lexical: Option<Place>,
    /// Its place in the list by meaning.
    pub(crate) meaning: Option<Place>,
    /// Which words met, where the user asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) explanation: Option<Vec<WordMatch>>,
}

impl ShownHit {
    /// A hit of the engine as users meet it.
    pub(crate) fn new(hit: Hit) -> Self {
        let lines = (!hit.lines.is_empty()).then(|| (hit.lines.start, hit.lines.end - 1));
        Self {
            path: place::shown(&hit.path),
            format: hit.format,
            lines,
            part: hit.part,
            score: hit.score,
            headings: hit.headings,
            text: hit.text,
            matches: hit.highlights,
            lexical: hit.lexical,
            meaning: hit.meaning,
            explanation: hit.explanation,
        }
    }
}

/// Writes `hits` for people to read.
pub(crate) fn write(out: &mut impl Write, hits: &[ShownHit], layout: Layout) -> io::Result<()> {
    for (i, hit) in hits.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        write_hit(out, hit, layout)?;
    }
    Ok(())
}

/// Writes the path of every file among `hits` once, best first.
pub(crate) fn write_files(out: &mut impl Write, hits: &[ShownHit]) -> io::Result<()> {
    for path in files(hits) {
        writeln!(out, "{PATH}{}{PATH:#}", printable(&path.to_string_lossy()))?;
    }
    Ok(())
}

/// Every file among `hits` once, best first.
pub(crate) fn files(hits: &[ShownHit]) -> Vec<&PathBuf> {
    let mut seen = std::collections::HashSet::new();
    hits.iter()
        .map(|hit| &hit.path)
        .filter(|path| seen.insert(*path))
        .collect()
}

fn write_hit(out: &mut impl Write, hit: &ShownHit, layout: Layout) -> io::Result<()> {
    let path = printable(&hit.path.to_string_lossy());
    write!(out, "{PATH}{path}{PATH:#}")?;
    match hit.lines {
        Some((first, last)) if first == last => write!(out, ":{LINE}{first}{LINE:#}")?,
        Some((first, last)) => write!(out, ":{LINE}{first}-{last}{LINE:#}")?,
        None => {}
    }
    if let Some(part) = hit.part {
        write!(out, " {LINE}{} {part}{LINE:#}", part_name(&hit.format))?;
    }
    writeln!(out, "  {DIM}{}{DIM:#}", score(hit.score))?;
    if !hit.headings.is_empty() {
        let trail = printable(&hit.headings.join(" > "));
        writeln!(out, "  {DIM}{trail}{DIM:#}")?;
    }
    write!(
        out,
        "{}",
        passage::render(&hit.text, &hit.matches, layout, "  ")
    )?;
    match &hit.explanation {
        Some(words) => write_explanation(out, hit, words),
        None => Ok(()),
    }
}

/// What each retriever said, and the pairs of words by what they add.
fn write_explanation(out: &mut impl Write, hit: &ShownHit, words: &[WordMatch]) -> io::Result<()> {
    let sides = [
        ("meaning", Retriever::Meaning, hit.meaning),
        ("lexical", Retriever::Lexical, hit.lexical),
    ];
    for (name, retriever, place) in sides {
        let mut words: Vec<&WordMatch> =
            words.iter().filter(|w| w.retriever == retriever).collect();
        match place {
            Some(Place { rank, score: s }) => {
                writeln!(out, "  {DIM}{name}: rank {rank}, score {}{DIM:#}", score(s))?;
            }
            None if words.is_empty() => continue,
            None => writeln!(out, "  {DIM}{name}: not among its best{DIM:#}")?,
        }
        words.sort_by(|a, b| b.score.total_cmp(&a.score));
        let shown = |word: &Option<String>| printable(word.as_deref().unwrap_or("(no word)"));
        let width = words
            .iter()
            .map(|w| shown(&w.query).width())
            .max()
            .unwrap_or(0);
        for word in words {
            if word.query.is_none() && word.passage.is_none() {
                writeln!(
                    out,
                    "    {DIM}{:>7}  whole query = whole passage{DIM:#}",
                    score(word.score)
                )?;
                continue;
            }
            let query = shown(&word.query);
            let gap = " ".repeat(width - query.width());
            writeln!(
                out,
                "    {DIM}{:>7}  {query}{gap} = {}{DIM:#}",
                score(word.score),
                shown(&word.passage)
            )?;
        }
    }
    Ok(())
}

/// Three significant digits: fused scores are near 0.03, others near 10.
fn score(score: f32) -> String {
    if score.abs() < 0.9995 {
        format!("{score:.4}")
    } else {
        format!("{score:.2}")
    }
}

/// What the parts of a file of this format are called.
fn part_name(format: &str) -> &'static str {
    match format {
        "PDF" => "page",
        "EPUB" => "chapter",
        "CSV" | "TSV" | "JSON" | "JSON Lines" => "row",
        "Jupyter notebook" => "cell",
        "email" | "mbox" => "message",
        _ => "part",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn hit(path: &str, lines: Option<(u32, u32)>, text: &str) -> ShownHit {
        ShownHit {
            path: path.into(),
            format: "Markdown".into(),
            lines,
            part: None,
            score: 0.032_5,
            headings: vec!["Store".into(), "Commit".into()],
            text: text.into(),
            matches: std::iter::once(4..9).collect(),
            lexical: None,
            meaning: None,
            explanation: None,
        }
    }

    const LAYOUT: Layout = Layout {
        width: None,
        rows: Some(6),
    };

    fn plain(hits: &[ShownHit]) -> String {
        let mut out = Vec::new();
        write(&mut out, hits, LAYOUT).unwrap();
        let out = String::from_utf8(out).unwrap();
        anstream::adapter::strip_str(&out).to_string()
    }

    #[test]
    fn hits_stand_apart_and_say_where_they_are() {
        let mut page = hit("papers/a.pdf", None, "one page");
        page.part = Some(3);
        page.format = "PDF".into();
        page.headings.clear();
        let hits = [
            hit("notes.md", Some((12, 14)), "the store\nis safe"),
            hit("code.rs", Some((7, 7)), "fn store() {}"),
            page,
        ];
        assert_eq!(
            plain(&hits),
            "notes.md:12-14  0.0325\n  Store > Commit\n  the store\n  is safe\n\
             \n\
             code.rs:7  0.0325\n  Store > Commit\n  fn store() {}\n\
             \n\
             papers/a.pdf page 3  0.0325\n  one page\n"
        );
    }

    #[test]
    fn an_explanation_lists_words_by_what_they_add() {
        let mut explained = hit("a.md", Some((1, 1)), "the crash");
        let word = |query: &str, passage: Option<&str>, score| WordMatch {
            query: Some(query.into()),
            passage: passage.map(Into::into),
            score,
            retriever: Retriever::Meaning,
        };
        explained.explanation = Some(vec![
            word("survive", None, 0.5),
            word("failure", Some("crash"), 2.0),
        ]);
        explained.meaning = Some(Place {
            rank: 1,
            score: 7.25,
        });
        let shown = plain(&[explained]);
        assert!(
            shown.ends_with(
                "  meaning: rank 1, score 7.25\n       2.00  failure = crash\n     0.5000  survive = (no word)\n"
            ),
            "{shown}"
        );
    }

    #[test]
    fn a_file_is_listed_once() {
        let hits = [
            hit("b.md", Some((1, 1)), "some text"),
            hit("a.md", Some((1, 1)), "some text"),
            hit("b.md", Some((9, 9)), "some text"),
        ];
        let mut out = Vec::new();
        write_files(&mut out, &hits).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            anstream::adapter::strip_str(&out).to_string(),
            "b.md\na.md\n"
        );
    }

    #[test]
    fn hostile_names_and_headings_cannot_control_the_terminal() {
        let mut hostile = hit("a\u{1b}[2J.md", Some((1, 1)), "text text");
        hostile.headings = vec!["\u{1b}]0;title\u{7}".into()];
        let mut out = Vec::new();
        write(&mut out, &[hostile], LAYOUT).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(
            !out.contains("\u{1b}[2J") && !out.contains("\u{1b}]"),
            "{out:?}"
        );
        assert!(out.contains("a\u{fffd}[2J.md"), "{out:?}");
    }
}
