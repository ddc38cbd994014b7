//! Word documents (Office Open XML): paragraphs by style, lists, tables, foot- and
//! endnotes. Deleted text and alternative drawings are left out.

use std::collections::HashMap;

use quick_xml::events::{BytesStart, Event};

use super::{Body, attribute, decode, each_event, entity};
use crate::error::Problem;
use crate::flow::Flow;
use crate::read::archive::Archive;

/// Heading level by style.
type Styles = HashMap<String, u32>;

pub(in crate::read) fn read(archive: &mut Archive, flow: &mut Flow) -> Result<(), Problem> {
    let styles = match archive.member("word/styles.xml")? {
        Some(xml) => styles(&decode(&xml, "word/styles.xml")?.text)?,
        None => Styles::new(),
    };
    let main = main_member(archive);
    let xml = archive.required(&main)?;
    read_text(&decode(&xml, &main)?.text, &main, &styles, flow)?;
    flow.close_headings(0)?;
    for notes in [
        "word/footnotes.xml",
        "word/endnotes.xml",
        "word/comments.xml",
    ] {
        if let Some(xml) = archive.member(notes)? {
            read_text(&decode(&xml, notes)?.text, notes, &styles, flow)?;
        }
    }
    Ok(())
}

/// Mostly word/document.xml; some programs number it.
fn main_member(archive: &Archive) -> String {
    let usual = "word/document.xml";
    let names = archive.names();
    if names.iter().any(|name| name == usual) {
        return usual.to_string();
    }
    let is_main = |name: &String| name.starts_with("word/document") && name.ends_with(".xml");
    names.into_iter().find(is_main).unwrap_or(usual.to_string())
}

/// Styles are named by language; their inner names and outline levels are not.
fn styles(xml: &str) -> Result<Styles, Problem> {
    let mut styles = Styles::new();
    let mut style = String::new();
    each_event(xml, "word/styles.xml", |event| {
        let (Event::Start(element) | Event::Empty(element)) = event else {
            return Ok(());
        };
        match element.local_name().as_ref() {
            "style" => style = attribute(&element, "styleId").unwrap_or_default(),
            "name" => {
                let name = attribute(&element, "val").unwrap_or_default();
                if let Some(level) = level_of_name(&name) {
                    styles.insert(style.clone(), level);
                }
            }
            "outlineLvl" => {
                if let Some(level) = outline_level(&element) {
                    styles.entry(style.clone()).or_insert(level);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(styles)
}

fn level_of_name(name: &str) -> Option<u32> {
    let name = name.to_ascii_lowercase();
    if name == "title" {
        return Some(0);
    }
    name.strip_prefix("heading")?.trim().parse().ok()
}

/// Counted from 0 in the file; 9 is body text.
fn outline_level(element: &BytesStart) -> Option<u32> {
    let level: u32 = attribute(element, "val")?.parse().ok()?;
    (level < 9).then_some(level + 1)
}

fn read_text(xml: &str, name: &str, styles: &Styles, flow: &mut Flow) -> Result<(), Problem> {
    let mut body = Body::new(flow);
    // Inside <t>, where text is text.
    let mut in_text = false;
    // Open <Fallback> elements, which repeat what stands before them.
    let mut fallbacks = 0usize;
    each_event(xml, name, |event| {
        if let Event::Start(element) | Event::Empty(element) = &event {
            let empty = matches!(event, Event::Empty(_));
            match element.local_name().as_ref() {
                "Fallback" if !empty => fallbacks += 1,
                _ if fallbacks > 0 => {}
                "t" => in_text = !empty,
                "p" if !empty => body.start_paragraph(),
                "tr" if !empty => body.start_row(),
                "tab" => body.push('\t'),
                "br" | "cr" => body.push('\n'),
                "noBreakHyphen" => body.push('-'),
                "numPr" => body.in_list = true,
                "pStyle" => {
                    let style = attribute(element, "val").unwrap_or_default();
                    let level = styles.get(&style).copied();
                    body.heading = level.or_else(|| level_of_name(&style));
                }
                "outlineLvl" => body.heading = outline_level(element),
                _ => {}
            }
            return Ok(());
        }
        match event {
            Event::End(element) => match element.local_name().as_ref() {
                "Fallback" => fallbacks = fallbacks.saturating_sub(1),
                _ if fallbacks > 0 => {}
                "t" => in_text = false,
                "p" => return body.end_paragraph(),
                "tc" => body.end_cell(),
                "tr" => return body.end_row(),
                _ => {}
            },
            Event::Text(text) if in_text && fallbacks == 0 => {
                body.text.push_str(&text.xml10_content())
            }
            Event::CData(text) if in_text && fallbacks == 0 => body.text.push_str(&text),
            Event::GeneralRef(name) if in_text && fallbacks == 0 => body.text.extend(entity(&name)),
            _ => {}
        }
        Ok(())
    })?;
    body.finish()
}
