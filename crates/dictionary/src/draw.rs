//! Pictures of atoms.

use std::fmt::Write;

/// Shades of grey in a picture.
const SHADES: usize = 33;

/// Pixels of the drawing for each number of an atom.
const SCALE: usize = 4;

/// Atoms that are patches of pictures (`patch` is height and width), as SVG text: side by side,
/// each from black (its least) over grey (0) to white.
///
/// # Panics
/// When `components` is no whole number of patches.
pub fn patches_svg(components: &[f32], patch: [usize; 2]) -> String {
    let [height, width] = patch;
    let size = height * width;
    assert!(
        size > 0 && components.len().is_multiple_of(size),
        "no whole number of patches"
    );
    let atoms = components.len() / size;
    let across = (1..=atoms).find(|n| n * n >= atoms).unwrap_or(1);
    let down = atoms.div_ceil(across);
    // All squares of one shade are one path, which keeps the file small.
    let mut shades = vec![String::new(); SHADES];
    for (i, atom) in components.chunks_exact(size).enumerate() {
        let most = atom
            .iter()
            .fold(0f32, |m, x| m.max(x.abs()))
            .max(f32::MIN_POSITIVE);
        let (left, top) = (1 + i % across * (width + 1), 1 + i / across * (height + 1));
        for (j, x) in atom.iter().enumerate() {
            let shade = ((x / most + 1.0) / 2.0 * (SHADES - 1) as f32).round() as usize;
            let (x, y) = (left + j % width, top + j / width);
            // Writing to a text cannot fail.
            let _ = write!(shades[shade.min(SHADES - 1)], "M{x} {y}h1v1h-1z");
        }
    }
    let (w, h) = (1 + across * (width + 1), 1 + down * (height + 1));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {w} {h}\" \
         shape-rendering=\"crispEdges\"><rect width=\"{w}\" height=\"{h}\" fill=\"#36c\"/>",
        w * SCALE,
        h * SCALE
    );
    for (shade, path) in shades
        .iter()
        .enumerate()
        .filter(|(_, path)| !path.is_empty())
    {
        let grey = shade * 255 / (SHADES - 1);
        let _ = write!(
            svg,
            "<path fill=\"#{grey:02x}{grey:02x}{grey:02x}\" d=\"{path}\"/>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_square_of_its_shade() {
        let svg = patches_svg(&[1.0, -1.0, 0.0, 0.5, 2.0, 2.0], [1, 2]);
        assert_eq!(svg.matches("h1v1h-1z").count(), 6);
        // Two across, since three atoms fill no row of one.
        assert!(svg.contains("viewBox=\"0 0 7 5\""), "{svg}");
        assert!(svg.contains("fill=\"#000000\" d=\"M2 1h"), "{svg}");
        assert!(svg.contains("fill=\"#ffffff\" d=\"M1 1h"), "{svg}");
    }
}
