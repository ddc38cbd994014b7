//! How many tokens a text has, without a tokenizer.

/// About how many word pieces BERT's English WordPiece vocabulary makes of the text,
/// without running it.
///
/// A word costs by its length: 1 token up to 6 letters, 1.5 at 11, 2.6 at 15, then 0.4
/// a letter, and 0.8 more for each hump of camelCase. A number costs 1 and 0.45 for
/// each digit past the third, other ASCII signs 1.1 to 1.3 (they stand in unusual
/// company), a CJK character 1, a Hangul syllable 2. Fitted to encyclopaedic, scientific, legal and
/// theatrical English, to documentation and to code: over stretches of 900 characters
/// the mean is 0.95 to 1.05 of the tokenizer's count for each of them, and nine
/// stretches in ten lie within 0.88 to 1.09.
pub fn estimate_tokens(text: &str) -> usize {
    cost(text).div_ceil(10)
}

/// Tenths of a token, so that the costs of parts add up to the cost of the whole
/// (where the cut is not inside a word).
pub(crate) type Cost = usize;

/// Cost of a run of 0 to 15 Latin letters.
const LETTERS: [Cost; 16] = [
    0, 10, 10, 10, 10, 10, 10, 11, 12, 13, 14, 15, 17, 19, 22, 26,
];
/// An upper-case letter after a lower-case one, as in camelCase.
const HUMP: Cost = 8;

fn letters_cost(length: usize) -> Cost {
    match LETTERS.get(length) {
        Some(cost) => *cost,
        None => LETTERS[15] + (length - 15) * 4,
    }
}

fn digits_cost(length: usize) -> Cost {
    match length {
        0..=3 => 10,
        _ => 10 + (length - 3) * 9 / 2,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Lower,
    Upper,
    Digit,
    /// Costs by itself, whatever stands beside it.
    Single(u8),
}

const fn ascii_class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' => Class::Lower,
        b'A'..=b'Z' => Class::Upper,
        b'0'..=b'9' => Class::Digit,
        b'_' | b'/' | b'{' | b'}' => Class::Single(13),
        b'!'..=b'~' => Class::Single(11),
        _ => Class::Single(0),
    }
}

static ASCII: [Class; 128] = {
    let mut table = [Class::Digit; 128];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = ascii_class(byte as u8);
        byte += 1;
    }
    table
};

fn class(c: char) -> Class {
    match c {
        '\0'..='\x7f' => ASCII[c as usize],
        // Latin letters with marks: the vocabulary strips the marks.
        '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => Class::Lower,
        // Combining marks are stripped.
        '\u{300}'..='\u{36f}' => Class::Single(0),
        '\u{ac00}'..='\u{d7a3}' => Class::Single(20),
        c if c.is_whitespace() || c.is_control() => Class::Single(0),
        _ => Class::Single(10),
    }
}

/// The estimate in tenths of a token.
pub(crate) fn cost(text: &str) -> Cost {
    let mut classes = text.chars().map(class);
    let mut total = 0;
    let mut next = classes.next();
    while let Some(class) = next {
        match class {
            Class::Single(cost) => {
                total += Cost::from(cost);
                next = classes.next();
            }
            Class::Digit => {
                let mut digits = 1;
                next = classes.next();
                while next == Some(Class::Digit) {
                    digits += 1;
                    next = classes.next();
                }
                total += digits_cost(digits);
            }
            Class::Lower | Class::Upper => {
                let (mut letters, mut humps) = (0, 0);
                let mut after_lower = false;
                while let Some(letter @ (Class::Lower | Class::Upper)) = next {
                    letters += 1;
                    humps += usize::from(after_lower && letter == Class::Upper);
                    after_lower = letter == Class::Lower;
                    next = classes.next();
                }
                total += letters_cost(letters) + humps * HUMP;
            }
        }
    }
    total
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
