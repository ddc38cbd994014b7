//! Plain text: paragraphs parted by blank lines.

use crate::chunk::{Kind, blank_line_ends};
use crate::error::Problem;
use crate::flow::{Block, Flow};

pub(super) fn read(text: &str, flow: &mut Flow) -> Result<(), Problem> {
    let mut start = 0;
    for end in blank_line_ends(text) {
        let kind = Kind::of_plain_text(text[start..end].trim());
        flow.block(&Block::verbatim(text, start..end, kind))?;
        start = end;
    }
    Ok(())
}
