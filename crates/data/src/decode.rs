//! From a file's bytes to text, and from places in the text back to the file's own
//! bytes and lines.

use std::borrow::Cow;
use std::ops::Range;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{DecoderResult, Encoding};

use crate::error::Problem;

/// The text of a file, with the way back to its bytes.
#[derive(Debug)]
pub(crate) struct Source<'f> {
    pub(crate) text: Cow<'f, str>,
    /// Where in the file the text begins (after a byte order mark).
    start: u64,
    /// Bytes of the file per character of the text; None where the text is the
    /// file's bytes (UTF-8).
    widths: Option<Vec<u8>>,
    marks: Vec<Mark>,
}

/// What is known at every [`MARK`]-th byte of the text, to count on from.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// Line breaks before.
    breaks: u32,
    /// Characters before (only kept with widths).
    characters: usize,
    /// Bytes of the file before, without `start` (only kept with widths).
    bytes: u64,
}

/// Bytes of text between two marks.
const MARK: usize = 1024;

impl<'f> Source<'f> {
    /// Finds out the character set and decodes.
    ///
    /// A byte order mark decides; else valid UTF-8 is UTF-8; else UTF-16 shows by its
    /// zero bytes; else mostly valid UTF-8 stays UTF-8, with U+FFFD for what is wrong;
    /// else it is the older set that the file declares, or the one that the frequency
    /// of letters speaks for.
    ///
    /// # Errors
    /// Skip, when the bytes are no text.
    pub(crate) fn decode(
        bytes: &'f [u8],
        declared: Option<&'static Encoding>,
    ) -> Result<Self, Problem> {
        let source = match bytes {
            [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest, 3),
            [0xff, 0xfe, rest @ ..] => utf16(rest, 2, u16::from_le_bytes),
            [0xfe, 0xff, rest @ ..] => utf16(rest, 2, u16::from_be_bytes),
            _ if !bytes.contains(&0) => without_mark(bytes, declared),
            _ => match utf16_byte_order(bytes) {
                Some(ByteOrder::Little) => utf16(bytes, 0, u16::from_le_bytes),
                Some(ByteOrder::Big) => utf16(bytes, 0, u16::from_be_bytes),
                None => return Err(binary("has zero bytes")),
            },
        };
        if source.text.contains('\0') {
            return Err(binary("has zero bytes"));
        }
        if is_mostly_control(&source.text) {
            return Err(binary("is mostly control characters"));
        }
        Ok(source)
    }

    fn new(text: Cow<'f, str>, start: u64, widths: Option<Vec<u8>>) -> Self {
        let marks = marks(&text, widths.as_deref());
        Self {
            text,
            start,
            widths,
            marks,
        }
    }

    /// A file whose readers decode it themselves and tell places by its own bytes. The
    /// text serves to count lines only.
    pub(crate) fn of_bytes(bytes: &'f [u8]) -> Self {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                let ascii = |b: &u8| if b.is_ascii() { char::from(*b) } else { '?' };
                Cow::Owned(bytes.iter().map(ascii).collect())
            }
        };
        Self::new(text, 0, None)
    }

    /// The first line and one past the last, counted from 1, of a range of the text.
    pub(crate) fn lines(&self, range: &Range<usize>) -> Range<u32> {
        let first = self.breaks_before(range.start);
        let last = match range.end.checked_sub(1) {
            Some(last) if last >= range.start => self.breaks_before(last),
            _ => first,
        };
        first.saturating_add(1)..last.saturating_add(2)
    }

    /// The bytes of the file that a range of the text was decoded from.
    pub(crate) fn bytes(&self, range: &Range<usize>) -> Range<u64> {
        self.byte(range.start)..self.byte(range.end)
    }

    fn mark(&self, at: usize) -> (usize, Mark) {
        let index = (at / MARK).min(self.marks.len() - 1);
        (
            crate::chunk::floor_char_boundary(&self.text, index * MARK),
            self.marks[index],
        )
    }

    fn breaks_before(&self, at: usize) -> u32 {
        let (from, mark) = self.mark(at);
        mark.breaks + count_breaks(self.text.as_bytes(), from..at.max(from))
    }

    fn byte(&self, at: usize) -> u64 {
        let Some(widths) = &self.widths else {
            return self.start + at as u64;
        };
        let (from, mark) = self.mark(at);
        let characters = self.text[from..at.max(from)].chars().count();
        let passed = &widths[mark.characters..mark.characters + characters];
        let bytes: u64 = passed.iter().map(|width| u64::from(*width)).sum();
        self.start + mark.bytes + bytes
    }
}

fn binary(why: &str) -> Problem {
    Problem::skip(format!("is not text: {why}"), "")
}

/// Line breaks that end within the range: `\n` (also of `\r\n`) and lone `\r`.
fn count_breaks(bytes: &[u8], range: Range<usize>) -> u32 {
    let following = bytes.get(range.start + 1..).unwrap_or_default();
    let next = following
        .iter()
        .copied()
        // After the last byte there is no \n.
        .chain(std::iter::once(0));
    let breaks = bytes[range]
        .iter()
        .zip(next)
        .filter(|(byte, next)| **byte == b'\n' || (**byte == b'\r' && *next != b'\n'))
        .count();
    u32::try_from(breaks).unwrap_or(u32::MAX)
}

fn marks(text: &str, widths: Option<&[u8]>) -> Vec<Mark> {
    let mut marks = Vec::with_capacity(text.len() / MARK + 1);
    let mut mark = Mark::default();
    let mut from = 0;
    loop {
        marks.push(mark);
        if marks.len() * MARK > text.len() {
            return marks;
        }
        let to = crate::chunk::floor_char_boundary(text, marks.len() * MARK);
        mark.breaks += count_breaks(text.as_bytes(), from..to);
        if let Some(widths) = widths {
            let characters = text[from..to].chars().count();
            let passed = &widths[mark.characters..mark.characters + characters];
            mark.bytes += passed.iter().map(|width| u64::from(*width)).sum::<u64>();
            mark.characters += characters;
        }
        from = to;
    }
}

fn utf8(bytes: &[u8], start: u64) -> Source<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Source::new(Cow::Borrowed(text), start, None),
        Err(_) => utf8_with_faults(bytes, start),
    }
}

fn utf8_with_faults(bytes: &[u8], start: u64) -> Source<'_> {
    let mut text = String::with_capacity(bytes.len());
    let mut widths = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        widths.extend(chunk.valid().chars().map(|c| c.len_utf8() as u8));
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            widths.push(chunk.invalid().len() as u8); // 1 to 3
        }
    }
    Source::new(Cow::Owned(text), start, Some(widths))
}

fn without_mark<'f>(bytes: &'f [u8], declared: Option<&'static Encoding>) -> Source<'f> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Source::new(Cow::Borrowed(text), 0, None);
    }
    if is_mostly_utf8(bytes) {
        return utf8_with_faults(bytes, 0);
    }
    if let Some(declared) = declared.filter(|encoding| encoding.is_ascii_compatible()) {
        return legacy(bytes, declared);
    }
    // The letters that tell are those outside of ASCII; a sample of them will do.
    let first = bytes.iter().position(|b| !b.is_ascii()).unwrap_or_default();
    let start = first.saturating_sub(1 << 10);
    let sample = &bytes[start..bytes.len().min(start + (1 << 20))];
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(sample, sample.len() == bytes.len());
    legacy(bytes, detector.guess(None, Utf8Detection::Deny))
}

/// One damaged spot must not turn all other accents of a UTF-8 file into mojibake.
fn is_mostly_utf8(bytes: &[u8]) -> bool {
    let (mut right, mut wrong) = (0usize, 0usize);
    for chunk in bytes.utf8_chunks() {
        right += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        wrong += usize::from(!chunk.invalid().is_empty());
    }
    right > 4 * wrong
}

fn legacy<'f>(bytes: &[u8], encoding: &'static Encoding) -> Source<'f> {
    let (text, widths) = if encoding.is_single_byte() {
        single_byte(bytes, encoding)
    } else {
        multi_byte(bytes, encoding)
    };
    Source::new(Cow::Owned(text), 0, Some(widths))
}

fn single_byte(bytes: &[u8], encoding: &'static Encoding) -> (String, Vec<u8>) {
    let table: Vec<char> = (0..=u8::MAX)
        .map(|byte| {
            let bytes = [byte];
            let (text, _) = encoding.decode_without_bom_handling(&bytes);
            text.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect();
    let text = bytes.iter().map(|byte| table[usize::from(*byte)]).collect();
    (text, vec![1; bytes.len()])
}

/// Feeds byte by byte, so that it shows which bytes made which character.
fn multi_byte(bytes: &[u8], encoding: &'static Encoding) -> (String, Vec<u8>) {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let mut text = String::with_capacity(bytes.len());
    let mut widths = Vec::with_capacity(bytes.len());
    // Room for more than one byte can give, so that "output full" does not occur.
    let mut out = [0u8; 32];
    let mut pending = 0u8;
    for (i, _) in bytes.iter().enumerate() {
        pending = pending.saturating_add(1);
        let last = i + 1 == bytes.len();
        let mut input = &bytes[i..=i];
        loop {
            let (result, read, written) =
                decoder.decode_to_utf8_without_replacement(input, &mut out, last);
            let mut piece = String::from_utf8_lossy(&out[..written]).into_owned();
            let malformed = matches!(result, DecoderResult::Malformed(..));
            if malformed {
                piece.push(char::REPLACEMENT_CHARACTER);
            }
            for c in piece.chars() {
                text.push(c);
                widths.push(std::mem::take(&mut pending));
            }
            input = &input[read..];
            if !malformed {
                break;
            }
        }
    }
    (text, widths)
}

fn utf16(bytes: &[u8], start: u64, unit: fn([u8; 2]) -> u16) -> Source<'_> {
    let mut text = String::with_capacity(bytes.len() / 2);
    let mut widths = Vec::with_capacity(bytes.len() / 2);
    for decoded in char::decode_utf16(units(bytes, unit)) {
        let c = decoded.unwrap_or(char::REPLACEMENT_CHARACTER);
        text.push(c);
        widths.push(2 * c.len_utf16() as u8);
    }
    if bytes.len() % 2 == 1 {
        text.push(char::REPLACEMENT_CHARACTER);
        widths.push(1);
    }
    Source::new(Cow::Owned(text), start, Some(widths))
}

fn units(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> impl Iterator<Item = u16> + '_ {
    bytes
        .chunks_exact(2)
        .map(move |pair| unit([pair[0], pair[1]]))
}

enum ByteOrder {
    Little,
    Big,
}

/// UTF-16 without a byte order mark shows by the zero bytes, which are the upper
/// halves of ASCII characters, and by reading as text.
fn utf16_byte_order(bytes: &[u8]) -> Option<ByteOrder> {
    let sample = &bytes[..bytes.len().min(8 << 10) & !1];
    let zeros = |half: usize| {
        sample
            .iter()
            .skip(half)
            .step_by(2)
            .filter(|b| **b == 0)
            .count()
    };
    if zeros(1) > zeros(0) {
        reads_as_utf16(sample, u16::from_le_bytes).then_some(ByteOrder::Little)
    } else {
        reads_as_utf16(sample, u16::from_be_bytes).then_some(ByteOrder::Big)
    }
}

fn reads_as_utf16(sample: &[u8], unit: fn([u8; 2]) -> u16) -> bool {
    let (mut plain, mut all) = (0usize, 0usize);
    let mut decoded = char::decode_utf16(units(sample, unit)).peekable();
    while let Some(c) = decoded.next() {
        let Ok(c) = c else {
            // The sample may end between the halves of a pair.
            return decoded.peek().is_none() && all > 0;
        };
        let blank = matches!(c, '\n' | '\r' | '\t' | '\x0c');
        if c.is_control() && !blank {
            return false;
        }
        all += 1;
        plain += usize::from(blank || c.is_alphanumeric() || matches!(c, ' '..='~'));
    }
    all > 0 && plain * 10 >= all * 9
}

/// As with ripgrep a zero byte makes a file binary; so does a beginning with more
/// than one control character in ten.
fn is_mostly_control(text: &str) -> bool {
    let (mut control, mut all) = (0, 0);
    for c in text.chars().take(64 << 10) {
        all += 1;
        let odd = c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b' | '\x08');
        control += usize::from(odd || c == char::REPLACEMENT_CHARACTER);
    }
    control * 10 > all
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
