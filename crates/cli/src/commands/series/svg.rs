//! A drawing of columns and of how they go on.

use std::fmt::Write;

use keyfold_signals::Series;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 120.0;
const MARGIN: f64 = 26.0;

/// Columns that are drawn.
const MOST: usize = 16;

/// Each column in a panel of its own: its last rows in grey, its forecast in blue.
pub(super) fn draw(series: &Series, forecast: &[Vec<f64>]) -> String {
    let panels = forecast.len().min(MOST);
    let high = (HEIGHT + MARGIN) * panels as f64 + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {high}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>grey: the last rows, blue: the forecast</title>\n\
         <rect width=\"{WIDTH}\" height=\"{high}\" fill=\"white\"/>\n"
    );
    let columns = series.names.iter().zip(&series.columns).zip(forecast);
    for (panel, ((name, column), coming)) in columns.take(panels).enumerate() {
        let top = MARGIN + (HEIGHT + MARGIN) * panel as f64;
        let past = &column[column.len().saturating_sub(3 * coming.len())..];
        draw_panel(&mut out, name, past, coming, top);
    }
    out.push_str("</svg>\n");
    out
}

fn draw_panel(out: &mut String, name: &str, past: &[f64], coming: &[f64], top: f64) {
    let all = || past.iter().chain(coming).copied();
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    // Halves, so that the widest numbers do not overflow.
    let span = (high / 2.0 - low / 2.0).max(f64::MIN_POSITIVE);
    let last = (past.len() + coming.len()).max(2) - 1;
    let at = |place: usize, x: f64| {
        let across = MARGIN + (WIDTH - 2.0 * MARGIN) * place as f64 / last as f64;
        let up = (x / 2.0 - low / 2.0) / span;
        format!("{across:.1},{:.1}", top + HEIGHT * (1.0 - up))
    };
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{:.1}\">{} ({low:.4} to {high:.4})</text>",
        top - 6.0,
        escaped(name)
    );
    let mut line = |from: usize, numbers: &[f64], style: &str| {
        let points: Vec<String> = (from..).zip(numbers).map(|(i, x)| at(i, *x)).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" {style} points=\"{}\"/>",
            points.join(" ")
        );
    };
    line(0, past, "stroke=\"#8a8a8a\"");
    // It begins where the past ends.
    let mut joined = past.last().copied().into_iter().collect::<Vec<f64>>();
    joined.extend_from_slice(coming);
    line(
        past.len().saturating_sub(1),
        &joined,
        "stroke=\"#2b6cb0\" stroke-width=\"2\"",
    );
}

fn escaped(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;")
}
