//! Electronic books: the chapters in the order of the spine, each read as HTML.

use std::collections::HashMap;

use quick_xml::events::Event;

use super::{attribute, decode, each_event, entity};
use crate::error::Problem;
use crate::flow::Flow;
use crate::read::archive::Archive;
use crate::read::html;

const CONTAINER: &str = "META-INF/container.xml";

pub(in crate::read) fn read(archive: &mut Archive, flow: &mut Flow) -> Result<(), Problem> {
    let container = archive.required(CONTAINER)?;
    let package_name = package_name(&decode(&container, CONTAINER)?.text)?;
    let package = archive.required(&package_name)?;
    let book = book(&decode(&package, &package_name)?.text, &package_name)?;
    flow.heading(0, &book.title, 0..0)?;
    for (number, chapter) in (1..).zip(&book.chapters) {
        let name = resolve(&package_name, chapter);
        let Some(page) = archive.member(&name)? else {
            // Some books list what they do not hold.
            continue;
        };
        flow.set_part(Some(number))?;
        flow.close_headings(1)?;
        // A chapter's own title is one level below the book's.
        html::read(&decode(&page, &name)?.text, 0, 1, flow)?;
    }
    Ok(())
}

fn package_name(container: &str) -> Result<String, Problem> {
    let mut name = None;
    each_event(container, CONTAINER, |event| {
        if let Event::Start(element) | Event::Empty(element) = event
            && element.local_name().as_ref() == "rootfile"
            && name.is_none()
        {
            name = attribute(&element, "full-path");
        }
        Ok(())
    })?;
    name.ok_or_else(|| Problem::fail("names no book inside", "it may be damaged"))
}

#[derive(Default)]
struct Book {
    title: String,
    /// Paths of the chapters, relative to the package file.
    chapters: Vec<String>,
}

fn book(package: &str, name: &str) -> Result<Book, Problem> {
    let mut book = Book::default();
    let mut files = HashMap::new();
    let mut spine = Vec::new();
    let mut in_title = false;
    each_event(package, name, |event| {
        match event {
            Event::Start(element) | Event::Empty(element) => match element.local_name().as_ref() {
                "title" => in_title = book.title.is_empty(),
                "item" => {
                    let id = attribute(&element, "id").unwrap_or_default();
                    files.insert(id, attribute(&element, "href").unwrap_or_default());
                }
                "itemref" => spine.extend(attribute(&element, "idref")),
                _ => {}
            },
            Event::End(_) => in_title = false,
            Event::Text(text) if in_title => book.title.push_str(&text.xml10_content()),
            Event::GeneralRef(name) if in_title => book.title.extend(entity(&name)),
            _ => {}
        }
        Ok(())
    })?;
    book.chapters = spine
        .iter()
        .filter_map(|id| files.get(id).cloned())
        .collect();
    Ok(book)
}

/// The archive's name of a file that the package names from where it lies itself.
fn resolve(package: &str, href: &str) -> String {
    let href = href.split('#').next().unwrap_or_default();
    let mut path: Vec<&str> = match package.rsplit_once('/') {
        Some((folder, _)) if !href.starts_with('/') => folder.split('/').collect(),
        _ => Vec::new(),
    };
    let decoded = percent_decode(href);
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path.join("/")
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_are_found_from_the_package() {
        assert_eq!(
            resolve("OEBPS/content.opf", "text/ch%201.xhtml#a"),
            "OEBPS/text/ch 1.xhtml"
        );
        assert_eq!(resolve("a/b/c.opf", "../../../x/./y"), "x/y");
        assert_eq!(resolve("content.opf", "/x%zz%"), "x%zz%");
    }
}
