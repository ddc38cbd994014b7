//! `curves.svg`: loss and validation against steps.

use plotters::prelude::*;

use crate::metrics::{Line, Measured};

/// Draws the lines of a run; the loss axis is logarithmic where all are positive.
pub(crate) fn draw(title: &str, lines: &[Line]) -> Result<String, Box<dyn std::error::Error>> {
    let mut training = Vec::new();
    let mut validation = Vec::new();
    for line in lines {
        match line.what {
            Measured::Training { loss, .. } => training.push((line.step as f64, loss)),
            Measured::Validation { loss, .. } => validation.push((line.step as f64, loss)),
        }
    }
    let all = || training.iter().chain(&validation).map(|p| p.1);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(l, h), y| (l.min(y), h.max(y)));
    let last = training
        .iter()
        .chain(&validation)
        .map(|p| p.0)
        .fold(1.0, f64::max);
    let mut svg = String::new();
    if low > 0.0 && low < high {
        let range = (low * 0.95..high * 1.05).log_scale();
        chart(&mut svg, title, last, range, &training, &validation)?;
    } else {
        let pad = ((high - low) * 0.05).max(1e-9);
        let range = low.min(high) - pad..high.max(low) + pad;
        chart(&mut svg, title, last, range, &training, &validation)?;
    }
    Ok(svg)
}

fn chart<Y>(
    svg: &mut String,
    title: &str,
    last: f64,
    range: Y,
    training: &[(f64, f64)],
    validation: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, (760, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, range)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss")
        .y_label_formatter(&|y| format!("{y:.4}"))
        .draw()?;
    let curves = [
        ("training", training, RGBColor(60, 110, 180)),
        ("validation", validation, RGBColor(200, 90, 40)),
    ];
    for (name, points, color) in curves {
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}
