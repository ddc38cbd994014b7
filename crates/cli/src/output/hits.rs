//! Hits as ripgrep would print them.

use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

use super::passage::{self, Layout};
use super::terminal::{DIM, LINE, PATH, printable};

/// A passage that was found, ready to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ShownHit {
    /// Where its file is, as short as it can be typed.
    pub(crate) path: PathBuf,
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
    /// Why it was found, where the user asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) explanation: Option<Explanation>,
}

/// Why a passage was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Explanation {
    /// What each retriever said.
    pub(crate) retrievers: Vec<RetrieverVote>,
    /// Which word of the query met which word of the passage.
    pub(crate) words: Vec<WordMatch>,
}

/// What one retriever said of a passage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RetrieverVote {
    /// `lexical` or `meaning`.
    pub(crate) name: &'static str,
    /// Its place in that retriever's list, counted from 1.
    pub(crate) rank: usize,
    /// Its score there.
    pub(crate) score: f32,
}

/// A word of the query and the word of the passage that it met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct WordMatch {
    /// Word of the query.
    pub(crate) query: String,
    /// Word of the passage; none where the match is with no word.
    pub(crate) passage: Option<String>,
    /// What the pair adds to the score.
    pub(crate) score: f32,
    /// Which retriever says so.
    pub(crate) retriever: &'static str,
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
        write!(out, " {LINE}{} {part}{LINE:#}", part_name(&hit.path))?;
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
        Some(explanation) => write_explanation(out, explanation),
        None => Ok(()),
    }
}

fn write_explanation(out: &mut impl Write, explanation: &Explanation) -> io::Result<()> {
    for vote in &explanation.retrievers {
        let (name, rank) = (vote.name, vote.rank);
        writeln!(
            out,
            "  {DIM}{name}: rank {rank}, score {}{DIM:#}",
            score(vote.score)
        )?;
        let mut words: Vec<&WordMatch> = explanation
            .words
            .iter()
            .filter(|w| w.retriever == name)
            .collect();
        words.sort_by(|a, b| b.score.total_cmp(&a.score));
        let width = words
            .iter()
            .map(|w| w.query.chars().count())
            .max()
            .unwrap_or(0);
        for word in words {
            let met = word.passage.as_deref().unwrap_or("(no word)");
            writeln!(
                out,
                "    {DIM}{:>7} {:width$} = {}{DIM:#}",
                score(word.score),
                printable(&word.query),
                printable(met)
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

/// What the part of a file is called, by the file's name.
fn part_name(path: &std::path::Path) -> &'static str {
    let extension = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    match extension.as_str() {
        "pdf" => "page",
        "epub" => "chapter",
        "csv" | "tsv" | "json" | "jsonl" | "ndjson" => "row",
        "ipynb" => "cell",
        "mbox" | "mbx" | "eml" => "message",
        _ => "part",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn hit(path: &str, lines: Option<(u32, u32)>, text: &str) -> ShownHit {
        ShownHit {
            path: path.into(),
            lines,
            part: None,
            score: 0.032_5,
            headings: vec!["Store".into(), "Commit".into()],
            text: text.into(),
            matches: vec![4..9],
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
            query: query.into(),
            passage: passage.map(Into::into),
            score,
            retriever: "meaning",
        };
        explained.explanation = Some(Explanation {
            retrievers: vec![
                RetrieverVote {
                    name: "meaning",
                    rank: 1,
                    score: 7.25,
                },
                RetrieverVote {
                    name: "lexical",
                    rank: 4,
                    score: 3.0,
                },
            ],
            words: vec![
                word("survive", None, 0.5),
                word("failure", Some("crash"), 2.0),
            ],
        });
        let shown = plain(&[explained]);
        assert!(
            shown.ends_with(
                "  meaning: rank 1, score 7.25\n       2.00 failure = crash\n     0.5000 survive = (no word)\n  \
                 lexical: rank 4, score 3.00\n"
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
