//! Seeds that follow from what they are for.

/// The seed of a text: its hash. What is drawn for the text is the same wherever and
/// whenever it is drawn.
pub fn seed_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()[..8]
        .iter()
        .fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}
