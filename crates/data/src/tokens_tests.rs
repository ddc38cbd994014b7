use super::*;

const ALICE: &str = "Alice was beginning to get very tired of sitting by her sister on the bank, \
         and of having nothing to do: once or twice she had peeped into the book her \
         sister was reading, but it had no pictures or conversations in it, \"and what \
         is the use of a book,\" thought Alice \"without pictures or conversations?\" \
         So she was considering in her own mind (as well as she could, for the hot day \
         made her feel very sleepy and stupid), whether the pleasure of making a daisy- \
         chain would be worth the trouble of getting up and picking the daisies, when \
         suddenly a White Rabbit with pink eyes ran close by her.";
const DARWIN: &str = "When we look to the individuals of the same variety or sub-variety of our \
         older cultivated plants and animals, one of the first points which strikes us, \
         is, that they generally differ much more from each other, than do the \
         individuals of any one species or variety in a state of nature. When we \
         reflect on the vast diversity of the plants and animals which have been \
         cultivated, and which have varied during all ages under the most different \
         climates and treatment, I think we are driven to conclude that this greater \
         variability is simply due to our domestic productions having been raised under \
         conditions of life not so uniform as, and somewhat different from, those to \
         which the parent-species have been exposed under nature.";
const LICENCE: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy \
         of this software and associated documentation files (the \"Software\"), to \
         deal in the Software without restriction, including without limitation the \
         rights to use, copy, modify, merge, publish, distribute, sublicense, and/or \
         sell copies of the Software, and to permit persons to whom the Software is \
         furnished to do so, subject to the following conditions: The above copyright \
         notice and this permission notice shall be included in all copies or \
         substantial portions of the Software.";

#[test]
fn the_estimate_is_near_the_word_piece_count_of_english() {
    // Counted with the tokenizer of all-MiniLM-L6-v2, without special tokens.
    for (text, tokens) in [(ALICE, 132), (DARWIN, 139), (LICENCE, 110)] {
        let estimate = estimate_tokens(text);
        assert!(
            estimate.abs_diff(tokens) * 100 <= tokens * 15,
            "{estimate} for {tokens}: {text}"
        );
    }
}

#[test]
fn the_estimate_counts_other_scripts_numbers_and_code() {
    assert_eq!(estimate_tokens(""), 0);
    assert_eq!(estimate_tokens(" \n\t"), 0);
    assert_eq!(estimate_tokens("東京都"), 3);
    assert_eq!(estimate_tokens("한국"), 4);
    assert_eq!(estimate_tokens("1998"), 2);
    assert!(estimate_tokens("getUserByName(user_id, 0x1f)") >= 12);
    assert!(estimate_tokens("3.14159265358979") > estimate_tokens("seventeen words"));
}
