//! Facts about the terminal, and text that is safe to send to one.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Paths, as ripgrep shows them.
pub(crate) const PATH: Style = AnsiColor::Magenta.on_default();
/// Line numbers, as ripgrep shows them.
pub(crate) const LINE: Style = AnsiColor::Green.on_default();
/// What matched.
pub(crate) const MATCH: Style = AnsiColor::Red.on_default().bold();
/// What is of less interest.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Headings of tables.
pub(crate) const BOLD: Style = Style::new().bold();

/// Columns of the terminal on stdout; `None` where stdout is a file or a pipe.
pub(crate) fn width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0).max(20))
}

/// A character as it may be printed. Text of files must not be able to move the
/// cursor, change colours or reorder what follows, so control characters and
/// the marks that change the direction of text become visible.
pub(crate) fn printable_char(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => '\u{FFFD}',
        c if c.is_control() => '\u{FFFD}',
        c => c,
    }
}

/// [`printable_char`] for one line of text.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(printable_char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_files_do_not_reach_the_terminal() {
        let hostile = "a\u{1b}[2Jb\r\u{9b}31mc\u{202e}d\te";
        let shown = printable(hostile);
        assert_eq!(shown, "a\u{fffd}[2Jb\u{fffd}\u{fffd}31mc\u{fffd}d e");
    }
}
