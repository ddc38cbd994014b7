//! Mail: one message (.eml) or a box of them (mbox), by mail-parser. The subject is the
//! heading; sender, receivers and date come first, then the text part, or the HTML part
//! where there is no text. Attachments are named, not read.

use std::ops::Range;

use mail_parser::{Address, Message, MessageParser, MimeHeaders, PartType};

use crate::chunk::Kind;
use crate::error::Problem;
use crate::flow::{Block, Flow, Origin, clip, collapse};
use crate::format::is_mbox_separator;

/// Limits past which the parser would take too long or nest too deep.
const MAX_PARTS: usize = 10_000;
const MAX_NESTED_MAILS: usize = 200;
const MAX_BOUNDARY: usize = 256;
/// Boundaries of parts times bytes: each boundary may be searched for in all of them.
const MAX_SEARCH: u64 = 20_000_000_000;
/// A header is cut to this many bytes.
const MAX_HEADER: usize = 400;

pub(super) fn read_mail(mail: &[u8], flow: &mut Flow) -> Result<(), Problem> {
    match parse(mail)? {
        Some(message) => read_message(&message, 0, flow),
        None => Err(Problem::fail(
            "is no mail: it has no headers",
            "rename it to .txt",
        )),
    }
}

pub(super) fn read_mbox(mbox: &[u8], flow: &mut Flow) -> Result<(), Problem> {
    let starts = separators(mbox);
    let before = starts.first().map_or(mbox, |first| &mbox[..*first]);
    if !before.trim_ascii().is_empty() {
        return Err(Problem::fail(
            "is named as mbox and does not begin with a From line",
            "rename it to .eml if it is one mail, or to .txt",
        ));
    }
    let ends = starts.iter().skip(1).copied().chain([mbox.len()]);
    for (number, (start, end)) in (1..).zip(starts.iter().zip(ends)) {
        let base = line_end(mbox, *start);
        flow.set_part(Some(number))?;
        match parse(&mbox[base..end])? {
            Some(message) => read_message(&message, base, flow)?,
            None => flow.warn(format!("message {number} has no headers")),
        }
    }
    Ok(())
}

/// Where the lines that begin a message start: at a blank line or the beginning.
fn separators(mbox: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut start, mut after_blank) = (0, true);
    while start < mbox.len() {
        let end = line_end(mbox, start);
        let line = &mbox[start..end];
        if after_blank && line.starts_with(b"From ") {
            let head = String::from_utf8_lossy(&line[..line.len().min(200)]);
            if is_mbox_separator(&head) {
                starts.push(start);
            }
        }
        after_blank = line.trim_ascii().is_empty();
        start = end;
    }
    starts
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    let line_break = bytes[from..].iter().position(|b| *b == b'\n');
    line_break.map_or(bytes.len(), |i| from + i + 1)
}

fn parse(bytes: &[u8]) -> Result<Option<Message<'_>>, Problem> {
    check(bytes)?;
    Ok(MessageParser::default().parse(bytes))
}

/// Reads a message that starts at `base` of the file.
fn read_message(message: &Message, base: usize, flow: &mut Flow) -> Result<(), Problem> {
    let bytes = message.raw_message();
    let part = |id: u32| message.parts.get(id as usize);
    let place = |id: u32| {
        let (start, end) = part(id).map_or((0, 0), |p| (p.offset_body, p.offset_end));
        let end = (end as usize).min(bytes.len());
        base + (start as usize).min(end)..base + end
    };
    let head = base..base + (message.root_part().offset_body as usize).min(bytes.len());
    flow.close_headings(1)?;
    flow.heading(1, message.subject().unwrap_or_default(), head.clone())?;
    flow.block(&lines(&header_lines(message), head.clone()))?;

    let is_text = |id: &&u32| matches!(part(**id).map(|p| &p.body), Some(PartType::Text(_)));
    let has_text = message.text_body.iter().any(|id| is_text(&id));
    let body = if has_text {
        &message.text_body
    } else {
        &message.html_body
    };
    for id in body {
        let range = place(*id);
        match part(*id).map(|part| &part.body) {
            Some(PartType::Text(text)) => {
                flow.within(range, |flow| super::text::read(text, flow))?;
            }
            Some(PartType::Html(html)) => {
                flow.within(range, |flow| super::html::read(html, 0, 2, flow))?;
            }
            _ => {}
        }
    }
    let names: Vec<String> = message
        .attachments
        .iter()
        .filter_map(|id| attachment_name(part(*id)?))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let end = base + bytes.len();
    let text = format!("Attachments: {}", names.join(", "));
    // An HTML part may have opened headings of its own.
    flow.close_headings(2)?;
    flow.block(&lines(&text, head.start..end))
}

fn lines(text: &str, range: Range<usize>) -> Block<'_> {
    Block {
        text,
        origin: Origin::Within(range),
        kind: Kind::Lines,
        tight: false,
    }
}

fn header_lines(message: &Message) -> String {
    let mut text = String::new();
    for (name, address) in [
        ("From", message.from()),
        ("To", message.to()),
        ("Cc", message.cc()),
    ] {
        if let Some(address) = address {
            text += &format!("{name}: {}\n", clip(&addresses(address), MAX_HEADER));
        }
    }
    if let Some(date) = message.date() {
        text += &format!("Date: {}\n", date.to_rfc822());
    }
    text
}

fn addresses(address: &Address) -> String {
    let all: Vec<String> = address
        .iter()
        .take(50)
        .map(|one| match (one.name(), one.address()) {
            (Some(name), Some(address)) => format!("{name} <{address}>"),
            (name, address) => name.or(address).unwrap_or_default().to_string(),
        })
        .collect();
    collapse(&all.join(", "))
}

fn attachment_name(part: &mail_parser::MessagePart) -> Option<String> {
    let subject = match &part.body {
        PartType::Message(message) => message.subject(),
        _ => None,
    };
    let name = part.attachment_name().or(subject)?;
    Some(clip(&collapse(name), MAX_HEADER))
}

/// Refuses what only a hostile mail has.
fn check(mail: &[u8]) -> Result<(), Problem> {
    let hostile = |why: String| Err(Problem::fail(why, "it looks made to harm"));
    if u32::try_from(mail.len()).is_err() {
        return Err(Problem::skip("is a mail of more than 4 GiB", ""));
    }
    let (mut parts, mut nested, mut boundaries) = (0, 0, 0u64);
    for at in occurrences(mail, b"content-type") {
        parts += 1;
        if parts > MAX_PARTS {
            return hostile(format!("is a mail of more than {MAX_PARTS} parts"));
        }
        let value = &mail[at..mail.len().min(at + 1000)];
        nested += usize::from(occurrences(value, b"message").next().is_some());
    }
    if nested > MAX_NESTED_MAILS {
        return hostile(format!(
            "is a mail with more than {MAX_NESTED_MAILS} mails in it"
        ));
    }
    for at in occurrences(mail, b"boundary") {
        let value = &mail[at + "boundary".len()..mail.len().min(at + 2 * MAX_BOUNDARY)];
        if !value.trim_ascii_start().starts_with(b"=") && !value.starts_with(b"*") {
            continue;
        }
        boundaries += 1;
        let length = value.iter().position(|b| b";\r\n".contains(b));
        let in_pieces = value.starts_with(b"*1");
        if in_pieces || length.unwrap_or(value.len()) > MAX_BOUNDARY {
            return hostile(format!(
                "has a boundary of more than {MAX_BOUNDARY} characters"
            ));
        }
    }
    if boundaries * mail.len() as u64 > MAX_SEARCH {
        return hostile(format!("has {boundaries} boundaries of parts"));
    }
    Ok(())
}

/// Where a lower-case word stands in the bytes, in any case.
fn occurrences<'m>(bytes: &'m [u8], word: &'static [u8]) -> impl Iterator<Item = usize> + 'm {
    bytes
        .windows(word.len())
        .enumerate()
        .filter(move |(_, window)| {
            window[0].to_ascii_lowercase() == word[0] && window.eq_ignore_ascii_case(word)
        })
        .map(|(at, _)| at)
}

#[cfg(test)]
#[path = "mail_tests.rs"]
mod tests;
