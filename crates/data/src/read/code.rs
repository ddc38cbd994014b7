//! Source code: cut at definitions, which show by their first word and end where the
//! indentation says. A definition small enough for a passage stays whole and may be
//! joined with its neighbours; a larger one becomes a heading, and what it contains
//! is cut in turn. Comments, attributes and decorators directly above a definition
//! belong to it. No grammar is needed, and code that does not parse is still read.

use crate::chunk::{Kind, line_ends};
use crate::error::Problem;
use crate::flow::{Block, Flow};
use crate::languages::Language;
use crate::tokens::{Cost, cost};

/// Files of more lines are read as plain text, and deeper definitions not cut.
const MAX_LINES: usize = 1 << 20;
const MAX_DEPTH: u32 = 6;
/// The header of a container of at most this size (20 tokens) is no passage.
const SCRAP: Cost = 200;
/// How far below a C function's name its `{` may stand.
const MAX_HEADER: usize = 8;

pub(super) fn read(text: &str, language: &Language, flow: &mut Flow) -> Result<(), Problem> {
    let mut lines = Vec::new();
    let mut costs = vec![0];
    let (mut start, mut total) = (0, 0);
    for end in line_ends(text) {
        if lines.len() == MAX_LINES {
            return super::text::read(text, flow);
        }
        lines.push(start);
        total += cost(&text[start..end]);
        costs.push(total);
        start = end;
    }
    let code = Code {
        text,
        language,
        lines,
        costs,
        max: flow.options().chunk.max_tokens * 10,
    };
    code.region(0, 0, code.lines.len(), 1, flow)
}

struct Code<'t> {
    text: &'t str,
    language: &'t Language,
    /// Where each line starts.
    lines: Vec<usize>,
    /// The cost of all lines before each, and of all.
    costs: Vec<Cost>,
    /// The largest passage.
    max: Cost,
}

impl Code<'_> {
    /// Reads lines `start..end`, the definitions among them from line `body` on.
    fn region(
        &self,
        start: usize,
        body: usize,
        end: usize,
        depth: u32,
        flow: &mut Flow,
    ) -> Result<(), Problem> {
        // What stands before the next definition.
        let mut loose = start;
        let mut line = body;
        while line < end {
            let Some(title) = self.definition(line) else {
                line += 1;
                continue;
            };
            let mut first = self.first_line(loose, line);
            let mut past = self.end(line).min(end);
            let is_large = self.cost(first, past) > self.max && depth <= MAX_DEPTH;
            if is_large {
                // `impl Store {` or `}` is no passage; it goes with what it opens or closes.
                if loose < body && self.cost(loose, first) <= SCRAP {
                    first = loose;
                }
                if self.only_closes(past, end) {
                    past = end;
                }
            }
            self.block(loose, first, flow)?;
            if is_large {
                flow.heading(depth, title, self.lines[line]..self.lines[line])?;
                self.region(first, line + 1, past, depth + 1, flow)?;
                flow.close_headings(depth)?;
            } else {
                self.block(first, past, flow)?;
            }
            loose = past;
            line = past;
        }
        self.block(loose, end, flow)
    }

    /// No words but "end" are in these lines.
    fn only_closes(&self, start: usize, end: usize) -> bool {
        let mut words = self.slice(start, end).split(|c: char| !c.is_alphanumeric());
        words.all(|word| word.is_empty() || word == "end")
    }

    fn block(&self, start: usize, end: usize, flow: &mut Flow) -> Result<(), Problem> {
        let range = self.at(start)..self.at(end);
        flow.block(&Block::verbatim(self.text, range, Kind::Lines))
    }

    fn cost(&self, start: usize, end: usize) -> Cost {
        self.costs[end.max(start)] - self.costs[start]
    }

    /// Where a line starts; the end of the text for the line past the last.
    fn at(&self, line: usize) -> usize {
        self.lines.get(line).copied().unwrap_or(self.text.len())
    }

    fn slice(&self, start: usize, end: usize) -> &str {
        &self.text[self.at(start)..self.at(end)]
    }

    fn line(&self, line: usize) -> &str {
        self.slice(line, line + 1)
    }

    fn trimmed(&self, line: usize) -> &str {
        self.line(line).trim()
    }

    fn indentation(&self, line: usize) -> usize {
        let blanks = self.line(line).bytes().take_while(|b| b" \t".contains(b));
        blanks.map(|b| if b == b'\t' { 4 } else { 1 }).sum()
    }

    /// The definition's name with its first word, if one begins on this line.
    fn definition(&self, line: usize) -> Option<&str> {
        let header = without_modifiers(self.trimmed(line));
        let mut words = header.split(|c: char| c.is_whitespace() || c == '(');
        // In Lisp the bracket comes first.
        let first = match words.next()? {
            "" => header.split_whitespace().next().unwrap_or_default(),
            word => word,
        };
        let begins =
            |word: &&str| first == *word || (word.ends_with('<') && first.starts_with(*word));
        let known = self.language.definitions.iter().any(begins);
        (known || self.is_c_function(header, line)).then(|| title(header))
    }

    /// `type name(arguments) {`, the brace perhaps a few lines down.
    fn is_c_function(&self, header: &str, line: usize) -> bool {
        const STATEMENTS: [&str; 14] = [
            "if", "for", "while", "switch", "return", "else", "do", "catch", "case", "throw",
            "new", "delete", "await", "yield",
        ];
        if !self.language.c_functions || header.ends_with(';') {
            return false;
        }
        let Some((before, _)) = header.split_once('(') else {
            return false;
        };
        let first = before.split_whitespace().next().unwrap_or_default();
        let named = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !named || STATEMENTS.contains(&first) || before.contains(['=', '.', '"', '\'', '#', '}'])
        {
            return false;
        }
        if header.ends_with('{') {
            return true;
        }
        for below in line + 1..(line + MAX_HEADER).min(self.lines.len()) {
            let text = self.trimmed(below);
            if text.ends_with('{') && self.indentation(below) == self.indentation(line) {
                return true;
            }
            if text.is_empty() || text.ends_with([';', '}']) {
                return false;
            }
        }
        false
    }

    /// The first of the comments, attributes and the like directly above.
    fn first_line(&self, loose: usize, definition: usize) -> usize {
        const MARKS: [&str; 8] = ["//", "#", "/*", "*", "--", ";", "%", "@"];
        let mut first = definition;
        while first > loose {
            let above = self.trimmed(first - 1);
            let same_place = self.indentation(first - 1) <= self.indentation(definition) + 1;
            let comment = MARKS.iter().any(|mark| above.starts_with(mark));
            // In C the type may stand on a line of its own.
            let header = self.language.c_functions
                && first == definition
                && above.starts_with(|c: char| c.is_alphabetic())
                && !above.ends_with([';', '{', '}', ':', ',', '>']);
            if !same_place || !(comment || header) {
                break;
            }
            first -= 1;
        }
        first
    }

    /// The line past the definition.
    fn end(&self, definition: usize) -> usize {
        let indentation = self.indentation(definition);
        let mut past = definition + 1;
        for line in definition + 1..self.lines.len() {
            let text = self.trimmed(line);
            if text.is_empty() {
                continue;
            }
            let deeper = self.indentation(line) > indentation;
            let same = self.indentation(line) == indentation;
            let closes =
                same && (text.starts_with('}') || text == "end" || text.starts_with("end "));
            // The header goes on, or the body begins.
            let goes_on = same
                && (text.starts_with([')', ']', '{', '>', ':'])
                    || ["where", "->", "=>"]
                        .iter()
                        .any(|word| text.starts_with(word)));
            if deeper || closes || goes_on {
                past = line + 1;
            }
            if closes || !(deeper || goes_on) {
                break;
            }
        }
        past
    }
}

fn without_modifiers(line: &str) -> &str {
    const MODIFIERS: [&str; 32] = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "export",
        "default",
        "async",
        "unsafe",
        "const",
        "static",
        "public",
        "private",
        "protected",
        "internal",
        "final",
        "abstract",
        "override",
        "virtual",
        "inline",
        "extern",
        "\"C\"",
        "open",
        "sealed",
        "data",
        "partial",
        "suspend",
        "local",
        "readonly",
        "declare",
        "mutating",
        "noexport",
        "constexpr",
        "explicit",
    ];
    let mut rest = line;
    while let Some((word, after)) = rest.split_once(' ') {
        if !MODIFIERS.contains(&word) {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// `fn open(path: &Path) -> File {` becomes `fn open`.
fn title(header: &str) -> &str {
    let header = header.split('{').next().unwrap_or_default();
    let name = match header.find('(') {
        Some(bracket) if bracket > 0 => &header[..bracket],
        _ => header,
    };
    name.trim_end_matches(|c: char| c.is_whitespace() || ":=<".contains(c))
}

#[cfg(test)]
#[path = "code_tests.rs"]
mod tests;
