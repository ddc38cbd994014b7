//! OpenDocument text: headings, paragraphs, lists, tables, footnotes. Deleted text is
//! left out.

use quick_xml::events::Event;

use super::{Body, attribute, decode, each_event, entity};
use crate::error::Problem;
use crate::flow::Flow;
use crate::read::archive::Archive;

pub(in crate::read) fn read(archive: &mut Archive, flow: &mut Flow) -> Result<(), Problem> {
    let name = "content.xml";
    let member = archive.required(name)?;
    let xml = decode(&member, name)?;
    let mut body = Body::new(flow);
    // Open elements whose text does not show.
    let mut hidden = 0usize;
    each_event(&xml.text, name, |event| {
        if let Event::Start(element) | Event::Empty(element) = &event {
            let empty = matches!(event, Event::Empty(_));
            match element.local_name().as_ref() {
                "tracked-changes" if !empty => hidden += 1,
                _ if hidden > 0 => {}
                "h" if !empty => {
                    body.start_paragraph();
                    let level = attribute(element, "outline-level");
                    body.heading = Some(level.and_then(|l| l.parse().ok()).unwrap_or(1));
                }
                "p" if !empty => {
                    body.start_paragraph();
                    if body.paragraphs == 1
                        && attribute(element, "style-name").as_deref() == Some("Title")
                    {
                        body.heading = Some(0);
                    }
                }
                "list-item" => body.in_list = true,
                "table-row" if !empty => body.start_row(),
                // The number of spaces is a claim of the file's; one will do.
                "s" => body.push(' '),
                "tab" => body.push('\t'),
                "line-break" => body.push('\n'),
                _ => {}
            }
            return Ok(());
        }
        let shows = hidden == 0 && body.paragraphs > 0;
        match event {
            Event::End(element) => match element.local_name().as_ref() {
                "tracked-changes" => hidden = hidden.saturating_sub(1),
                _ if hidden > 0 => {}
                "p" | "h" => return body.end_paragraph(),
                "table-cell" => body.end_cell(),
                "table-row" => return body.end_row(),
                _ => {}
            },
            Event::Text(text) if shows => body.text.push_str(&text.xml10_content()),
            Event::CData(text) if shows => body.text.push_str(&text),
            Event::GeneralRef(name) if shows => body.text.extend(entity(&name)),
            _ => {}
        }
        Ok(())
    })?;
    body.finish()
}
