//! A passage laid out in rows: source lines kept, long ones wrapped, and a long
//! passage cut to the rows around its best matches.

use std::fmt::Write;
use std::ops::Range;

use unicode_width::UnicodeWidthChar;

use super::terminal::{DIM, MATCH, printable_char};

/// How a passage is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Columns of a row; `None` leaves lines as long as they are.
    pub(crate) width: Option<usize>,
    /// Rows that are shown at most; `None` shows all.
    pub(crate) rows: Option<usize>,
}

/// Lays `text` out, each row behind `indent`, with the byte ranges `matches`
/// (sorted, not overlapping, on character boundaries) in bold.
pub(crate) fn render(text: &str, matches: &[Range<usize>], layout: Layout, indent: &str) -> String {
    let rows = rows(
        text,
        layout.width.map(|w| w.saturating_sub(indent.len()).max(10)),
    );
    let shown = window(&rows, matches, layout.rows);
    let mut out = String::new();
    let cut_before = shown.start > 0;
    let cut_after = shown.end < rows.len();
    if cut_before {
        let _ = writeln!(out, "{indent}{DIM}…{DIM:#}");
    }
    for row in &rows[shown] {
        out.push_str(indent);
        push_row(&mut out, text, row, matches);
        out.push('\n');
    }
    if cut_after {
        let _ = writeln!(out, "{indent}{DIM}…{DIM:#}");
    }
    out
}

/// The rows of `text` as byte ranges: one per line, more where a line is longer
/// than `width`. Blank lines at both ends are dropped.
fn rows(text: &str, width: Option<usize>) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let mut start = 0;
    for line in text.split('\n') {
        let end = start + line.trim_end().len();
        match width {
            Some(width) => wrap(text, start..end, width, &mut rows),
            None => rows.push(start..end),
        }
        start += line.len() + 1;
    }
    let blank = |row: &Range<usize>| text[row.clone()].trim().is_empty();
    let first = rows.iter().position(|r| !blank(r)).unwrap_or(rows.len());
    let last = rows
        .iter()
        .rposition(|r| !blank(r))
        .map_or(first, |i| i + 1);
    rows[first..last].to_vec()
}

/// Splits the line `line` of `text` into rows of at most `width` columns, at
/// spaces where there are some.
fn wrap(text: &str, line: Range<usize>, width: usize, rows: &mut Vec<Range<usize>>) {
    let mut start = line.start;
    let mut columns = 0;
    // Behind the last space of the row, and the columns up to there.
    let mut after_space: Option<(usize, usize)> = None;
    for (offset, c) in text[line.clone()].char_indices() {
        let at = line.start + offset;
        let wide = c.width().unwrap_or(1);
        if columns + wide > width && at > start {
            let (cut, done) = after_space.take().unwrap_or((at, columns));
            rows.push(start..cut);
            start = cut;
            columns -= done;
        }
        columns += wide;
        if c == ' ' || c == '\t' {
            after_space = Some((at + c.len_utf8(), columns));
        }
    }
    rows.push(start..line.end);
}

/// The rows to show: all that fit, else the window with the most matched bytes,
/// the earliest of equals.
fn window(rows: &[Range<usize>], matches: &[Range<usize>], limit: Option<usize>) -> Range<usize> {
    let Some(limit) = limit.filter(|&limit| limit < rows.len()) else {
        return 0..rows.len();
    };
    let weight = |row: &Range<usize>| -> usize {
        matches
            .iter()
            .map(|m| m.end.min(row.end).saturating_sub(m.start.max(row.start)))
            .sum()
    };
    let weights: Vec<usize> = rows.iter().map(weight).collect();
    let mut best = 0;
    let mut best_weight = 0;
    for (first, part) in weights.windows(limit.max(1)).enumerate() {
        let weight = part.iter().sum();
        if weight > best_weight {
            (best, best_weight) = (first, weight);
        }
    }
    // The window that ends with a match is the first of its weight; show as
    // much before the matches as behind them.
    let matched: Vec<usize> = (best..best + limit).filter(|&i| weights[i] > 0).collect();
    if let (Some(first), Some(last)) = (matched.first(), matched.last()) {
        let middle = (first + last).div_ceil(2);
        best = middle.saturating_sub(limit / 2).min(rows.len() - limit);
    }
    best..best + limit
}

/// Writes one row with its matches in bold.
fn push_row(out: &mut String, text: &str, row: &Range<usize>, matches: &[Range<usize>]) {
    let row = row.start..row.start + text[row.clone()].trim_end().len();
    let mut at = row.start;
    for m in matches {
        let (start, end) = (m.start.max(at), m.end.min(row.end));
        if start >= end {
            continue;
        }
        out.extend(text[at..start].chars().map(printable_char));
        let _ = write!(out, "{MATCH}");
        out.extend(text[start..end].chars().map(printable_char));
        let _ = write!(out, "{MATCH:#}");
        at = end;
    }
    out.extend(text[at.min(row.end)..row.end].chars().map(printable_char));
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Layout = Layout {
        width: None,
        rows: None,
    };

    fn plain(text: &str, matches: &[Range<usize>], layout: Layout) -> String {
        anstream::adapter::strip_str(&render(text, matches, layout, "  ")).to_string()
    }

    fn find(text: &str, word: &str) -> Range<usize> {
        let start = text.find(word).unwrap();
        start..start + word.len()
    }

    #[test]
    fn matches_are_bold_and_the_rest_is_not() {
        let text = "the ship outlasts a storm";
        let shown = render(text, &[find(text, "ship"), find(text, "storm")], ALL, "");
        assert_eq!(
            shown,
            format!("the {MATCH}ship{MATCH:#} outlasts a {MATCH}storm{MATCH:#}\n")
        );
    }

    #[test]
    fn lines_are_kept_and_blank_ends_dropped() {
        assert_eq!(
            plain("\n\n fn a() {\r\n\n }\n \n", &[], ALL),
            "   fn a() {\n  \n   }\n"
        );
    }

    #[test]
    fn long_lines_wrap_at_spaces_and_inside_words_only_if_needed() {
        let layout = Layout {
            width: Some(14),
            rows: None,
        };
        assert_eq!(
            plain("one two three four abcdefghijklmnop", &[], layout),
            "  one two\n  three four\n  abcdefghijkl\n  mnop\n"
        );
        // Wide characters take two columns.
        assert_eq!(
            plain("漢字漢字漢字漢字", &[], layout),
            "  漢字漢字漢字\n  漢字\n"
        );
    }

    #[test]
    fn a_match_that_is_wrapped_stays_bold_on_both_rows() {
        let layout = Layout {
            width: Some(10),
            rows: None,
        };
        let text = "abcdefghijklm";
        assert_eq!(
            render(text, &[find(text, "ijkl")], layout, ""),
            format!("abcdefgh{MATCH}ij{MATCH:#}\n{MATCH}kl{MATCH:#}m\n")
        );
    }

    #[test]
    fn a_long_passage_is_cut_around_its_best_matches() {
        let text: String = (0..20).map(|i| format!("line {i}\n")).collect();
        let layout = Layout {
            width: None,
            rows: Some(3),
        };
        assert_eq!(
            plain(&text, &[find(&text, "line 10")], layout),
            "  …\n  line 9\n  line 10\n  line 11\n  …\n"
        );
        assert_eq!(
            plain(&text, &[], layout),
            "  line 0\n  line 1\n  line 2\n  …\n"
        );
        assert_eq!(
            plain(&text, &[find(&text, "line 19")], layout),
            "  …\n  line 17\n  line 18\n  line 19\n"
        );
    }

    #[test]
    fn what_files_hold_cannot_control_the_terminal() {
        let text = "a\u{1b}[31mb";
        let shown = render(text, &[find(text, "\u{1b}")], ALL, "");
        assert_eq!(shown, format!("a{MATCH}\u{fffd}{MATCH:#}[31mb\n"));
    }
}
