//! A drawing of what the positions of a text look at.

use std::fmt::Write;

use keyfold_sequence::recall::RecallText;
use keyfold_text::hax::sparsity::Hit;

/// Side of a square in which a layer is drawn.
const SIZE: f64 = 480.0;
const MARGIN: f64 = 30.0;

/// A square for each layer: a row is a position, a column where a key stands, the darker the more
/// attention it gets. Rings are round the places of the answers.
pub(super) fn draw(layers: &[Vec<Hit>], text: &RecallText) -> String {
    let wide = (SIZE + MARGIN) * layers.len() as f64 + MARGIN;
    let high = SIZE + 2.0 * MARGIN;
    let cell = SIZE / text.tokens.len().max(1) as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>keys of the positions of a text, which are rows; rings: where answers were told</title>\n\
         <rect width=\"{wide}\" height=\"{high}\" fill=\"white\"/>\n"
    );
    for (number, hits) in layers.iter().enumerate() {
        let left = MARGIN + (SIZE + MARGIN) * number as f64;
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{:.1}\">layer {number}</text>\n\
             <rect x=\"{left}\" y=\"{MARGIN}\" width=\"{SIZE}\" height=\"{SIZE}\" fill=\"none\" stroke=\"#b8b8b8\"/>\n\
             <g fill=\"#2b6cb0\">",
            MARGIN - 8.0
        );
        let corner = |position: usize, key: usize| {
            let at = |place: usize| cell * place as f64;
            (left + at(key), MARGIN + at(position))
        };
        for hit in hits {
            let (x, y) = corner(hit.position, hit.key);
            // A key without attention is seen as well.
            let ink = 0.15 + 0.85 * hit.share;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{cell:.2}\" height=\"{cell:.2}\" fill-opacity=\"{ink:.2}\"/>"
            );
        }
        out.push_str("</g>\n<g fill=\"none\" stroke=\"#c53030\">\n");
        for (&(at, _), &told) in text.asked.iter().zip(&text.told) {
            let (x, y) = corner(at as usize, told as usize);
            let _ = writeln!(
                out,
                "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"{:.2}\"/>",
                x + cell / 2.0,
                y + cell / 2.0,
                cell.max(3.0)
            );
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}
