//! HTML, by html5ever's tokenizer. No tree is built: headings, paragraphs, lists,
//! tables and preformatted text show in the stream of tags, and a stream stays
//! linear however deep the tags nest or however wrongly.

use std::cell::RefCell;
use std::ops::Range;

use encoding_rs::Encoding;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};

use crate::chunk::{Kind, floor_char_boundary};
use crate::error::Problem;
use crate::flow::{Builder, Flow};

/// Text is handed to the tokenizer in pieces of at most this size, so that it is
/// known where its tokens come from.
const MAX_FEED: usize = 4096;
/// Tags of more attributes are read without them: the tokenizer compares each
/// attribute with all before it.
const MAX_ATTRIBUTES: usize = 128;
/// So are longer tags; they hold pictures.
const MAX_TAG: usize = 64 << 10;
/// Tags of longer names are left out.
const MAX_NAME: usize = 256;

/// The character set that the page names for itself, if it does.
pub(super) fn declared_encoding(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = bytes[..bytes.len().min(2048)].to_ascii_lowercase();
    let at = ["charset=", "encoding="].iter().find_map(|key| {
        let found = head.windows(key.len()).position(|w| w == key.as_bytes())?;
        Some(found + key.len())
    })?;
    let label = head[at..].strip_prefix(b"\"").unwrap_or(&head[at..]);
    let label = label.strip_prefix(b"'").unwrap_or(label);
    let end = label
        .iter()
        .position(|b| !b.is_ascii_alphanumeric() && !b"-_:".contains(b))
        .unwrap_or(label.len());
    Encoding::for_label(&label[..end])
}

/// Reads a page or a piece of one that starts at `base` of the flow's source. Its title
/// becomes a heading of the given level, its other headings lower ones.
pub(super) fn read(
    text: &str,
    base: usize,
    title_level: u32,
    flow: &mut Flow,
) -> Result<(), Problem> {
    let sink = Sink(RefCell::new(Page {
        flow,
        title_level,
        feeding: 0..0,
        block: Builder::default(),
        space: false,
        mark: "",
        in_row: false,
        dropped: None,
        heading: None,
        preformatted: 0,
        lists: 0,
        between_tokens: true,
        problem: Ok(()),
    }));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let queue = BufferQueue::default();
    let mut at = 0;
    while at < text.len() {
        let (feed, end) = next_feed(text, at, &tokenizer.sink.0.borrow());
        {
            let mut page = tokenizer.sink.0.borrow_mut();
            std::mem::replace(&mut page.problem, Ok(()))?;
            page.feeding = base + at..base + end;
            // A tag, comment or the like may be left open by what is fed now.
            page.between_tokens &= !feed.starts_with('<');
        }
        queue.push_back(StrTendril::from_slice(&feed));
        // The sink never asks for a script or a character set to be handled.
        let _ = tokenizer.feed(&queue);
        at = end;
    }
    tokenizer.end();
    tokenizer.sink.0.into_inner().finish()
}

/// What to feed next, and where the text after it begins.
fn next_feed<'t>(text: &'t str, at: usize, page: &Page) -> (std::borrow::Cow<'t, str>, usize) {
    let rest = &text.as_bytes()[at..];
    if rest[0] == b'<' && page.expects_tag(&text[at..]) {
        let tag = scan_tag(rest);
        let end = at + tag.length;
        if tag.name_end > MAX_NAME {
            return ("".into(), end);
        }
        if tag.attributes > MAX_ATTRIBUTES || tag.length > MAX_TAG {
            return (format!("{}>", &text[at..at + tag.name_end]).into(), end);
        }
        return (text[at..end].into(), end);
    }
    if page.between_tokens && page.dropped.is_none() && rest.starts_with(b"</>") {
        return ("".into(), at + 3);
    }
    let limit = floor_char_boundary(text, at + MAX_FEED);
    let piece = &text.as_bytes()[at..limit];
    let border = |(i, byte): (usize, &u8)| match byte {
        b'<' if i > 0 => Some(i),
        b'>' | b'\n' => Some(i + 1),
        _ => None,
    };
    let length = piece.iter().enumerate().find_map(border);
    let length = length.unwrap_or(piece.len());
    (text[at..at + length].into(), at + length)
}

struct ScannedTag {
    length: usize,
    /// Where its name ends.
    name_end: usize,
    attributes: usize,
}

/// Finds the end of a tag by the tokenizer's own rules.
fn scan_tag(tag: &[u8]) -> ScannedTag {
    let space_or = |also: &'static [u8]| move |b: &u8| b.is_ascii_whitespace() || also.contains(b);
    let find = |from: usize, stop: &dyn Fn(&u8) -> bool| {
        let found = tag[from..].iter().position(stop);
        found.map_or(tag.len(), |i| from + i)
    };
    let skip = |from: usize, pass: &dyn Fn(&u8) -> bool| find(from, &|b| !pass(b));
    let name_end = find(1 + usize::from(tag.get(1) == Some(&b'/')), &space_or(b"/>"));
    let mut attributes = 0;
    let mut at = name_end;
    loop {
        at = skip(at, &space_or(b"/"));
        if at >= tag.len() || tag[at] == b'>' {
            break;
        }
        attributes += 1;
        // An equals sign may begin a name.
        at = find(at + 1, &space_or(b"/>="));
        at = skip(at, &space_or(b""));
        if tag.get(at) != Some(&b'=') {
            continue;
        }
        at = skip(at + 1, &space_or(b""));
        at = match tag.get(at) {
            Some(quote @ (b'"' | b'\'')) => (find(at + 1, &|b| b == quote) + 1).min(tag.len()),
            _ => find(at, &space_or(b">")),
        };
    }
    ScannedTag {
        length: (at + 1).min(tag.len()),
        name_end,
        attributes,
    }
}

struct Sink<'f, 's>(RefCell<Page<'f, 's>>);

impl TokenSink for Sink<'_, '_> {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut page = self.0.borrow_mut();
        if page.problem.is_err() {
            return TokenSinkResult::Continue;
        }
        if !matches!(token, Token::ParseError(_)) {
            page.between_tokens = true;
        }
        let done = match token {
            Token::CharacterTokens(text) => {
                page.text(&text);
                Ok(TokenSinkResult::Continue)
            }
            Token::TagToken(tag) => page.tag(&tag),
            _ => Ok(TokenSinkResult::Continue),
        };
        done.unwrap_or_else(|problem| {
            page.problem = Err(problem);
            TokenSinkResult::Continue
        })
    }

    /// In XHTML, CDATA sections hold text.
    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        true
    }
}

struct Page<'f, 's> {
    flow: &'f mut Flow<'s>,
    title_level: u32,
    /// Where in the source lies what the tokenizer is being fed.
    feeding: Range<usize>,
    block: Builder,
    /// White space was met since the last word.
    space: bool,
    /// What goes before the next word: a line break, the border of a cell.
    mark: &'static str,
    in_row: bool,
    /// The element whose text is not for reading.
    dropped: Option<String>,
    /// Level of the open heading.
    heading: Option<u32>,
    preformatted: usize,
    lists: usize,
    /// No tag or comment is open.
    between_tokens: bool,
    problem: Result<(), Problem>,
}

impl Page<'_, '_> {
    /// The text begins with a tag, as the tokenizer will see it.
    fn expects_tag(&self, text: &str) -> bool {
        if let Some(dropped) = &self.dropped {
            let name = text
                .strip_prefix("</")
                .and_then(|rest| rest.get(..dropped.len()));
            return name.is_some_and(|name| name.eq_ignore_ascii_case(dropped));
        }
        let name = text[1..].strip_prefix('/').unwrap_or(&text[1..]);
        self.between_tokens && name.starts_with(|c: char| c.is_ascii_alphabetic())
    }

    fn text(&mut self, text: &str) {
        if self.dropped.is_some() {
            return;
        }
        if self.preformatted > 0 {
            self.push_mark();
            self.block.push(text, self.feeding.clone());
            return;
        }
        let mut words = String::with_capacity(text.len());
        for word in text.split_inclusive(|c: char| c.is_ascii_whitespace()) {
            let trimmed = word.trim_end_matches(|c: char| c.is_ascii_whitespace());
            if !trimmed.is_empty() {
                if words.is_empty() && !self.mark.is_empty() {
                    self.push_mark();
                } else if self.space && !(words.is_empty() && self.block.is_empty()) {
                    words.push(' ');
                }
                words.push_str(trimmed);
                self.space = false;
            }
            self.space |= trimmed.len() < word.len();
        }
        self.block.push(&words, self.feeding.clone());
    }

    fn push_mark(&mut self) {
        let mark = std::mem::take(&mut self.mark);
        if !self.block.is_empty() {
            self.block.push_mark(mark);
        }
    }

    fn tag(&mut self, tag: &Tag) -> Result<TokenSinkResult<()>, Problem> {
        let name: &str = &tag.name;
        if self.dropped.as_deref() == Some(name) && tag.kind == TagKind::EndTag {
            self.dropped = None;
            return Ok(TokenSinkResult::Continue);
        }
        if self.dropped.is_some() {
            return Ok(TokenSinkResult::Continue);
        }
        match tag.kind {
            TagKind::StartTag => self.start(name, tag),
            TagKind::EndTag => {
                self.end(name)?;
                Ok(TokenSinkResult::Continue)
            }
        }
    }

    fn start(&mut self, name: &str, tag: &Tag) -> Result<TokenSinkResult<()>, Problem> {
        match name {
            "br" => self.mark = "\n",
            "img" => {
                let alt = tag.attrs.iter().find(|a| &*a.name.local == "alt");
                if let Some(alt) = alt {
                    self.space = true;
                    self.text(&alt.value);
                    self.space = true;
                }
            }
            "td" | "th" => self.mark = " | ",
            "li" => {
                self.emit()?;
                let indentation = "  ".repeat(self.lists.saturating_sub(1).min(8));
                self.block.push_mark(&format!("{indentation}- "));
            }
            // A paragraph directly in a list item stands behind its mark.
            "p" if self.block.is_empty() => {}
            _ if is_block(name) => self.emit()?,
            _ => {}
        }
        match name {
            "ul" | "ol" => self.lists += 1,
            "tr" => self.in_row = true,
            "pre" => self.preformatted += 1,
            "title" => self.heading = Some(0),
            _ => self.heading = heading_level(name).or(self.heading),
        }
        if tag.self_closing {
            return Ok(TokenSinkResult::Continue);
        }
        let raw = match name {
            "script" => RawKind::ScriptData,
            "style" | "iframe" | "noembed" | "noframes" | "xmp" => RawKind::Rawtext,
            "title" | "textarea" => return Ok(TokenSinkResult::RawData(RawKind::Rcdata)),
            _ => return Ok(TokenSinkResult::Continue),
        };
        self.dropped = Some(name.to_string());
        Ok(TokenSinkResult::RawData(raw))
    }

    fn end(&mut self, name: &str) -> Result<(), Problem> {
        if name == "title" || heading_level(name).is_some() {
            return self.end_heading();
        }
        match name {
            "ul" | "ol" => {
                self.emit()?;
                self.lists = self.lists.saturating_sub(1);
            }
            "pre" => {
                self.emit()?;
                self.preformatted = self.preformatted.saturating_sub(1);
            }
            _ if is_block(name) => self.emit()?,
            _ => {}
        }
        Ok(())
    }

    fn end_heading(&mut self) -> Result<(), Problem> {
        let Some(level) = self.heading.take() else {
            return self.emit();
        };
        let title = std::mem::take(&mut self.block);
        self.space = false;
        self.mark = "";
        self.flow
            .heading(self.title_level + level, &title.text, title.range())
    }

    fn emit(&mut self) -> Result<(), Problem> {
        if self.heading.is_some() {
            // An unclosed heading ends with its first block.
            return if self.block.is_empty() {
                Ok(())
            } else {
                self.end_heading()
            };
        }
        self.space = false;
        self.mark = "";
        let kind = if self.preformatted > 0 {
            Kind::Lines
        } else {
            Kind::Prose
        };
        let tight = self.lists > 0 || self.in_row;
        self.in_row = false;
        self.block.emit(self.flow, kind, tight)
    }

    fn finish(mut self) -> Result<(), Problem> {
        std::mem::replace(&mut self.problem, Ok(()))?;
        self.emit()
    }
}

fn heading_level(name: &str) -> Option<u32> {
    let level = name.strip_prefix('h')?.parse().ok()?;
    (1..=6).contains(&level).then_some(level)
}

/// Elements that begin on a new line.
fn is_block(name: &str) -> bool {
    heading_level(name).is_some()
        || matches!(
            name,
            "address"
                | "article"
                | "aside"
                | "blockquote"
                | "body"
                | "button"
                | "caption"
                | "center"
                | "dd"
                | "details"
                | "div"
                | "dl"
                | "dt"
                | "fieldset"
                | "figcaption"
                | "figure"
                | "footer"
                | "form"
                | "head"
                | "header"
                | "hr"
                | "html"
                | "iframe"
                | "legend"
                | "li"
                | "main"
                | "nav"
                | "ol"
                | "option"
                | "p"
                | "pre"
                | "script"
                | "section"
                | "select"
                | "style"
                | "summary"
                | "table"
                | "tbody"
                | "textarea"
                | "tfoot"
                | "thead"
                | "title"
                | "tr"
                | "ul"
        )
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
