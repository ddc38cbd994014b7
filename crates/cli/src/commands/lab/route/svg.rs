//! A drawing of an answer.

use std::collections::BTreeSet;
use std::fmt::Write;

use keyfold_inspect::route::{Points, Solved};
use keyfold_sequence::pointer::beam::Task;

const SIZE: f64 = 640.0;
const MARGIN: f64 = 30.0;

/// The network's answer in blue above the best known one in grey.
pub(super) fn draw(points: &Points, task: Task, solved: &Solved) -> String {
    let at = places(points);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {SIZE}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{task} of {} points; blue: a pointer network, grey: best known</title>\n\
         <rect width=\"{SIZE}\" height=\"{SIZE}\" fill=\"white\"/>\n",
        points.len()
    );
    for (answer, style) in [
        (&solved.truth, "stroke=\"#b8b8b8\" stroke-width=\"6\""),
        (&solved.answer, "stroke=\"#2b6cb0\" stroke-width=\"2\""),
    ] {
        let _ = writeln!(out, "<g {style} stroke-linecap=\"round\">");
        for [a, b] in edges(task, answer) {
            let ([x1, y1], [x2, y2]) = (at[a], at[b]);
            let _ = writeln!(
                out,
                "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\"/>"
            );
        }
        out.push_str("</g>\n");
    }
    for (row, [x, y]) in at.iter().enumerate() {
        let _ = writeln!(out, "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"4\"/>");
        // Numbers of many points would hide the lines.
        if at.len() <= 60 {
            let _ = writeln!(
                out,
                "<text x=\"{:.2}\" y=\"{:.2}\">{}</text>",
                x + 6.0,
                y - 6.0,
                row + 1
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Where the points stand in the drawing; `y` grows upwards.
fn places(points: &Points) -> Vec<[f64; 2]> {
    let bounds = [0, 1].map(|axis| {
        let values = points.all().iter().map(|p| p[axis]);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
            (low.min(x), high.max(x))
        })
    });
    let wide = bounds
        .map(|(low, high)| high - low)
        .into_iter()
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (SIZE - 2.0 * MARGIN) / wide;
    let middle = bounds.map(|(low, high)| low / 2.0 + high / 2.0);
    let each = |p: &[f64; 2]| {
        let x = SIZE / 2.0 + scale * (p[0] - middle[0]);
        let y = SIZE / 2.0 - scale * (p[1] - middle[1]);
        [x, y]
    };
    points.all().iter().map(each).collect()
}

fn edges(task: Task, answer: &[usize]) -> BTreeSet<[usize; 2]> {
    let ring = |corners: &[usize]| -> Vec<[usize; 2]> {
        let next = corners.iter().cycle().skip(1);
        let each = corners
            .iter()
            .zip(next)
            .map(|(a, b)| [*a.min(b), *a.max(b)]);
        each.collect()
    };
    match task {
        Task::Delaunay => answer.chunks(3).flat_map(ring).collect(),
        _ => ring(answer).into_iter().collect(),
    }
}
