//! Files of pictures as numbers.

use std::path::{Path, PathBuf};

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_png::PngDecoder;

use crate::VisionError;

/// The widest and highest picture that is read, and that a network looks at.
pub(crate) const WIDEST: usize = 8192;

/// Red, green and blue.
pub(crate) const COLOURS: usize = 3;

/// Means and deviations of red, green and blue over ImageNet.
const MEAN: [f32; COLOURS] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; COLOURS] = [0.229, 0.224, 0.225];

/// A square picture of three colours, each scaled to about mean 0 and deviation 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Picture {
    /// Rows, and columns.
    pub side: usize,
    /// `[side, side, 3]`.
    pub numbers: Vec<f32>,
}

impl Picture {
    /// Reads a file, and makes it a square of `side`.
    ///
    /// # Errors
    /// When the file cannot be read, is no picture, or is far too large.
    pub fn read(path: &Path, side: usize) -> Result<Self, VisionError> {
        let bytes = std::fs::read(path).map_err(|source| VisionError::Io {
            path: path.to_owned(),
            source,
        })?;
        let points = decoded(&bytes).map_err(|what| VisionError::Picture {
            path: path.to_owned(),
            what,
        })?;
        Ok(Self::of_bytes(side, &points.square(side)))
    }

    /// Of `[side, side, 3]` bytes of red, green and blue.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn of_bytes(side: usize, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), side * side * COLOURS, "bytes of a picture");
        let numbers = bytes.iter().enumerate().map(|(i, &byte)| {
            let colour = i % COLOURS;
            (f32::from(byte) / 255.0 - MEAN[colour]) / DEVIATION[colour]
        });
        Self {
            side,
            numbers: numbers.collect(),
        }
    }
}

/// Points of a picture as a file has them.
struct Points {
    width: usize,
    height: usize,
    /// Red, green and blue of each point.
    bytes: Vec<u8>,
}

/// The points of a PNG or JPEG, or what is wrong.
fn decoded(bytes: &[u8]) -> Result<Points, String> {
    let options = DecoderOptions::default()
        .set_max_width(WIDEST)
        .set_max_height(WIDEST)
        .png_set_strip_to_8bit(true)
        .png_set_confirm_crc(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let (size, channels, numbers) = if bytes.starts_with(b"\x89PNG") {
        let mut decoder = PngDecoder::new_with_options(ZCursor::new(bytes), options);
        let numbers = decoder.decode_raw().map_err(|e| e.to_string())?;
        let channels = decoder.colorspace().map_or(0, |c| c.num_components());
        (decoder.dimensions(), channels, numbers)
    } else if bytes.starts_with(&[0xff, 0xd8]) {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        let numbers = decoder.decode().map_err(|e| e.to_string())?;
        (decoder.dimensions(), 3, numbers)
    } else {
        return Err("it begins as neither does".into());
    };
    let (width, height) = size.unwrap_or_default();
    let count = width * height;
    if count == 0 || !(1..=4).contains(&channels) || numbers.len() != count * channels {
        return Err("its points are not all there".into());
    }
    let colours = |point: &[u8]| match *point {
        [red, green, blue, ..] => [red, green, blue],
        [grey, ..] => [grey; COLOURS],
        [] => [0; COLOURS],
    };
    Ok(Points {
        width,
        height,
        bytes: numbers.chunks_exact(channels).flat_map(colours).collect(),
    })
}

impl Points {
    /// `[side, side, 3]` bytes: means over the area that each point covers.
    fn square(&self, side: usize) -> Vec<u8> {
        let (across, down) = (shares(self.width, side), shares(self.height, side));
        // One axis after the other.
        let mut lines = Vec::with_capacity(self.height * side * COLOURS);
        for line in self.bytes.chunks_exact(self.width * COLOURS) {
            for parts in &across {
                for colour in 0..COLOURS {
                    let part = |&(at, share): &(usize, f32)| {
                        share * f32::from(line[at * COLOURS + colour])
                    };
                    lines.push(parts.iter().map(part).sum::<f32>());
                }
            }
        }
        let width = side * COLOURS;
        let mut out = Vec::with_capacity(side * width);
        for parts in &down {
            for place in 0..width {
                let part = |&(at, share): &(usize, f32)| share * lines[at * width + place];
                out.push(parts.iter().map(part).sum::<f32>().round() as u8);
            }
        }
        out
    }
}

/// For each of `to` parts of a line of `from` points: the points that it covers, and their shares.
fn shares(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let wide = from as f64 / to as f64;
    let part = |i: usize| {
        let (start, end) = (i as f64 * wide, (i + 1) as f64 * wide);
        let last = (end.ceil() as usize).min(from);
        let covered = (start as usize..last).map(|at| {
            let overlap = end.min((at + 1) as f64) - start.max(at as f64);
            (at, (overlap / wide) as f32)
        });
        covered.collect()
    };
    (0..to).map(part).collect()
}

/// Pictures with their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pictures {
    /// Names of the classes, in order.
    pub classes: Vec<String>,
    /// Each with the number of its class.
    pub all: Vec<(Picture, usize)>,
}

impl Pictures {
    /// Reads `folder/CLASS/*`. `skipped` is told files that are no pictures, and why.
    ///
    /// # Errors
    /// When a folder cannot be read, there are not two classes, a class has no picture, or `side` is
    /// far too large.
    pub fn read(
        folder: &Path,
        side: usize,
        skipped: &mut dyn FnMut(&VisionError),
    ) -> Result<Self, VisionError> {
        if side > WIDEST {
            return Err(VisionError::Unfit(format!(
                "pictures of {side} points a side are too large; {WIDEST} are the most"
            )));
        }
        let mut pictures = Self::default();
        for place in listed(folder)?.into_iter().filter(|p| p.is_dir()) {
            let class = place.file_name().unwrap_or(place.as_os_str());
            let before = pictures.all.len();
            for file in listed(&place)?.into_iter().filter(|p| p.is_file()) {
                match Picture::read(&file, side) {
                    Ok(picture) => pictures.all.push((picture, pictures.classes.len())),
                    Err(error) => skipped(&error),
                }
            }
            if pictures.all.len() == before {
                return Err(VisionError::Unfit(format!(
                    "{} holds no picture",
                    place.display()
                )));
            }
            pictures.classes.push(class.to_string_lossy().into_owned());
        }
        match pictures.classes.len() {
            0 | 1 => Err(VisionError::Unfit(format!(
                "{} needs a folder of pictures for each of at least two classes",
                folder.display()
            ))),
            _ => Ok(pictures),
        }
    }
}

/// What lies in a folder, by name; hidden files are left out.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, VisionError> {
    let io = |source| VisionError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of 7 by 3 points, the left four red and the others blue (made by PIL).
    const TWO_COLOURS: &[u8] = include_bytes!("../tests/fixtures/two_colours.png");
    /// A JPEG of 16 by 16 points, all of one grey (made by PIL).
    const GREY: &[u8] = include_bytes!("../tests/fixtures/grey.jpg");

    #[test]
    fn a_picture_is_scaled_to_a_square() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("two.png");
        std::fs::write(&path, TWO_COLOURS).unwrap();
        let points = decoded(TWO_COLOURS).unwrap();
        assert_eq!((points.width, points.height), (7, 3));
        // Half of a square of two points a side is 3.5 points: of the right one 0.5 are red.
        let square = points.square(2);
        assert_eq!(square[..6], [255, 0, 0, 36, 0, 219]);
        assert_eq!(square[..6], square[6..]);
        let picture = Picture::read(&path, 5).unwrap();
        assert_eq!(picture.numbers.len(), 5 * 5 * 3);
        assert!((picture.numbers[0] - (1.0 - 0.485) / 0.229).abs() < 1e-5);
        assert!((picture.numbers[1] + 0.456 / 0.224).abs() < 1e-5);
        // Larger than it is: points are repeated.
        assert_eq!(points.square(14)[..9], [255, 0, 0, 255, 0, 0, 255, 0, 0]);
    }

    #[test]
    fn a_jpeg_is_read() {
        let grey = decoded(GREY).unwrap().square(4);
        assert!(grey.iter().all(|x| x.abs_diff(100) < 3), "{grey:?}");
    }

    #[test]
    fn what_is_no_picture_is_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.png");
        std::fs::write(&path, b"\x89PNG\r\n\x1a\nnothing").unwrap();
        let error = Picture::read(&path, 4).unwrap_err().to_string();
        assert!(
            error.contains("broken.png") && error.contains("PNG and JPEG"),
            "{error}"
        );
        for bytes in [
            &b"text"[..],
            b"",
            b"\xff\xd8\xff",
            &TWO_COLOURS[..40],
            &GREY[..60],
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(Picture::read(&path, 4).is_err(), "{} bytes", bytes.len());
        }
    }

    #[test]
    fn classes_are_folders_and_bad_files_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (class, file) in [("dark", TWO_COLOURS), ("light", GREY)] {
            std::fs::create_dir(root.join(class)).unwrap();
            std::fs::write(root.join(class).join("a"), file).unwrap();
        }
        std::fs::write(root.join("dark/notes.txt"), "no picture").unwrap();
        let mut told = Vec::new();
        let pictures = Pictures::read(root, 4, &mut |e| told.push(e.to_string())).unwrap();
        assert_eq!(pictures.classes, ["dark", "light"]);
        assert_eq!(pictures.all.len(), 2);
        assert!(told[0].contains("notes.txt"), "{told:?}");
        std::fs::remove_file(root.join("light/a")).unwrap();
        let error = Pictures::read(root, 4, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("light holds no picture"), "{error}");
        std::fs::remove_dir(root.join("light")).unwrap();
        let error = Pictures::read(root, 4, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("two classes"), "{error}");
    }
}
