#![allow(clippy::unwrap_used)]

use super::*;

const NORMAL: i32 = 1;

fn pieces(tokens: &[(&str, f32, i32)], space: bool) -> Pieces {
    let tokens = tokens.iter().map(|&(text, score, kind)| Token {
        text: text.to_owned(),
        score,
        kind,
    });
    Pieces::new(tokens.collect(), None, space).unwrap()
}

#[test]
fn the_best_score_joins_first_and_of_equal_ones_the_leftmost() {
    let unknown = ("<unk>", 0.0, token_kind::UNKNOWN);
    let letters = [("a", -9.0, NORMAL), ("b", -9.0, NORMAL)];
    let all = |more: &[(&'static str, f32, i32)]| {
        pieces(&[&[unknown], &letters[..], more].concat(), false)
    };
    let plain = SpecialTokens::Plain;
    assert_eq!(
        all(&[("ab", -1.0, NORMAL), ("ba", -2.0, NORMAL)]).encode("bab", plain),
        [2, 3]
    );
    assert_eq!(
        all(&[("ab", -2.0, NORMAL), ("ba", -1.0, NORMAL)]).encode("bab", plain),
        [4, 2]
    );
    assert_eq!(all(&[("aa", -1.0, NORMAL)]).encode("aaa", plain), [3, 1]);
    // A piece is only reached over pieces.
    assert_eq!(
        all(&[("aab", -1.0, NORMAL)]).encode("aab", plain),
        [1, 1, 2]
    );
}

#[test]
fn control_tokens_are_made_of_marks_only() {
    let tokens = [
        ("<unk>", 0.0, token_kind::UNKNOWN),
        ("<s>", 0.0, token_kind::CONTROL),
        ("<", -5.0, NORMAL),
        ("s", -5.0, NORMAL),
        (">", -5.0, NORMAL),
        ("<s", -1.0, NORMAL),
        (BLANK, -5.0, NORMAL),
    ];
    let plain = pieces(&tokens, true);
    assert_eq!(plain.encode("<s>", SpecialTokens::Plain), [6, 5, 4]);
    // After the token, as at the beginning, comes a blank.
    assert_eq!(plain.encode("<s>s", SpecialTokens::Parse), [1, 6, 3]);
    assert_eq!(plain.decode(&[1, 6, 3]), "s");
    assert_eq!(plain.encode("é", SpecialTokens::Plain), [6, 0]);
}

#[test]
fn vocabularies_that_cannot_write_every_text_are_refused() {
    let token = |text: &str, kind| Token {
        text: text.to_owned(),
        score: 0.0,
        kind,
    };
    let new = |tokens: Vec<Token>| Pieces::new(tokens, None, true).map(|_| ()).unwrap_err();
    assert!(new(vec![token("a", NORMAL)]).contains("neither"));
    assert!(new(vec![token("a", NORMAL), token("a", NORMAL)]).contains("twice"));
    assert!(new(vec![token("<0xZZ>", token_kind::BYTE)]).contains("<0xZZ>"));
}
