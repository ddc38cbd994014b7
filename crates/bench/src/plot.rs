//! Charts as SVG.

use plotters::prelude::*;

use crate::BenchError;

/// Bars with their names and values; `unit` stands at the axis. A line is drawn
/// across at `mark`, if given. What is infinite or no number has no bar: an axis has no end there,
/// and drawing it would not end either.
pub(crate) fn bars(
    title: &str,
    unit: &str,
    bars: &[(String, f64)],
    mark: Option<f64>,
) -> Result<String, BenchError> {
    let mut svg = String::new();
    let drawn = bars.iter().map(|(name, value)| {
        let value = if value.is_finite() { *value } else { 0.0 };
        (name.clone(), value)
    });
    let bars: Vec<(String, f64)> = drawn.collect();
    let mark = mark.filter(|mark| mark.is_finite());
    draw(&mut svg, title, unit, &bars, mark).map_err(|e| BenchError::Plot(e.to_string()))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    unit: &str,
    bars: &[(String, f64)],
    mark: Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let height = 90 + 34 * bars.len() as u32;
    let root = SVGBackend::with_string(svg, (760, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let largest = bars.iter().map(|b| b.1).chain(mark).fold(1e-9, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..largest * 1.15, (0..bars.len()).into_segmented())?;
    // The first bar stands on top.
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(i) if *i < bars.len() => bars[bars.len() - 1 - i].0.clone(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(unit)
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .draw()?;
    let ink = RGBColor(60, 110, 180);
    chart.draw_series(bars.iter().rev().enumerate().map(|(i, (_, value))| {
        let corners = [
            (0.0, SegmentValue::Exact(i)),
            (*value, SegmentValue::Exact(i + 1)),
        ];
        let mut bar = Rectangle::new(corners, ink.filled());
        bar.set_margin(5, 5, 0, 0);
        bar
    }))?;
    chart.draw_series(bars.iter().rev().enumerate().map(|(i, (_, value))| {
        let at = (*value + largest * 0.01, SegmentValue::CenterOf(i));
        Text::new(shown(*value), at, ("sans-serif", 14))
    }))?;
    if let Some(mark) = mark {
        let ends = [
            (mark, SegmentValue::Exact(0)),
            (mark, SegmentValue::Exact(bars.len())),
        ];
        chart.draw_series([PathElement::new(ends, RED)])?;
    }
    root.present()?;
    Ok(())
}

/// A line with its name.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// Lines with a logarithmic horizontal axis; points at 0 and below are left out.
pub(crate) fn lines(title: &str, x: &str, y: &str, lines: &[Line]) -> Result<String, BenchError> {
    let mut svg = String::new();
    draw_lines(&mut svg, (title, x, y), lines, &|y| shown(*y))
        .map_err(|e| BenchError::Plot(e.to_string()))?;
    Ok(svg)
}

/// [`lines`] with both axes logarithmic; heights of 0 and below are left out too.
pub(crate) fn log_lines(
    title: &str,
    x: &str,
    y: &str,
    lines: &[Line],
) -> Result<String, BenchError> {
    let logs = |line: &Line| {
        let positive = line.1.iter().filter(|p| p.1 > 0.0);
        (
            line.0.clone(),
            positive.map(|p| (p.0, p.1.log10())).collect(),
        )
    };
    let lines: Vec<Line> = lines.iter().map(logs).collect();
    let mut svg = String::new();
    draw_lines(&mut svg, (title, x, y), &lines, &|y| shown(10f64.powf(*y)))
        .map_err(|e| BenchError::Plot(e.to_string()))?;
    Ok(svg)
}

fn draw_lines(
    svg: &mut String,
    (title, x, y): (&str, &str, &str),
    lines: &[Line],
    height: &dyn Fn(&f64) -> String,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let shown = |line: &Line| -> Vec<(f64, f64)> {
        let points = line.1.iter().copied();
        points
            .filter(|(x, y)| *x > 0.0 && x.is_finite() && y.is_finite())
            .collect()
    };
    let all: Vec<(f64, f64)> = lines.iter().flat_map(shown).collect();
    let least = all
        .iter()
        .map(|p| p.0)
        .fold(f64::INFINITY, f64::min)
        .min(1e9);
    let most = all.iter().map(|p| p.0).fold(2.0 * least, f64::max);
    let top = all.iter().map(|p| p.1).fold(1e-9, f64::max);
    let bottom = all.iter().map(|p| p.1).fold(0.0, f64::min);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d((least..most).log_scale(), bottom..top * 1.03)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x).y_desc(y).y_label_formatter(height).draw()?;
    for (i, line) in lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(shown(line), color.stroke_width(2)))?
            .label(&*line.0)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Three digits that matter.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_bars_and_values() {
        let data = [("one".to_owned(), 0.5), ("two".to_owned(), 0.25)];
        let svg = bars("a title", "nDCG@10", &data, Some(0.4)).unwrap();
        for part in ["<svg", "a title", "one", "two", "0.500", "0.250", "nDCG@10"] {
            assert!(svg.contains(part), "no {part}");
        }
        bars("empty", "x", &[], None).unwrap();
        let odd = [f64::INFINITY, f64::NAN, -1.0].map(|value| ("odd".to_owned(), value));
        bars("odd", "x", &odd, Some(f64::INFINITY)).unwrap();
    }

    #[test]
    fn lines_are_named_and_need_no_points() {
        let data = [
            (
                "one way".to_owned(),
                vec![(0.0, 0.1), (1.0, 0.2), (100.0, 0.9)],
            ),
            ("nothing".to_owned(), Vec::new()),
        ];
        let svg = lines("a title", "candidates", "recall", &data).unwrap();
        for part in ["<svg", "a title", "one way", "candidates", "recall"] {
            assert!(svg.contains(part), "no {part}");
        }
        lines("empty", "x", "y", &[]).unwrap();
        let odd = vec![(f64::INFINITY, 1.0), (1.0, f64::NAN), (f64::NAN, 1.0)];
        lines("odd", "x", "y", &[("odd".to_owned(), odd.clone())]).unwrap();
        log_lines("odd", "x", "y", &[("odd".to_owned(), odd)]).unwrap();
    }
}
