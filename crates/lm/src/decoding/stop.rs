//! Ending a text where a stop string begins, while it is streamed.

/// Holds back what may be the beginning of a stop string.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|s| !s.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece of text; returns what can be shown, and whether a stop string
    /// was found (the text then ends before it).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()))
            .min()
        {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self
            .stops
            .iter()
            .map(|s| overlap(&self.held, s))
            .max()
            .unwrap_or(0);
        let show = self.held.len() - keep;
        (self.held.drain(..show).collect(), false)
    }

    /// The text ended: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len());
    (1..=longest)
        .rev()
        .find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_ends_before_the_first_stop_string() {
        let mut stops = StopStrings::new(["User:".to_owned(), "\n\n".to_owned()]);
        assert_eq!(stops.push("Hello Us"), ("Hello ".to_owned(), false));
        assert_eq!(stops.push("ual\n"), ("Usual".to_owned(), false));
        assert_eq!(stops.push("User"), ("\n".to_owned(), false));
        assert_eq!(stops.push(": more"), (String::new(), true));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_shown_text_is_the_same(
            text in "[abé]{0,30}",
            stop in "[abé]{1,4}",
            cuts in proptest::collection::vec(0usize..31, 0..6),
        ) {
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            let mut cuts: Vec<usize> = cuts.into_iter()
                .filter(|&c| c <= text.len() && text.is_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stops = StopStrings::new([stop]);
            let mut shown = String::new();
            let mut stopped = false;
            for pair in cuts.windows(2) {
                let (piece, stop) = stops.push(&text[pair[0]..pair[1]]);
                shown.push_str(&piece);
                if stop { stopped = true; break; }
            }
            if !stopped { shown.push_str(&stops.finish()); }
            prop_assert_eq!(shown, expected);
        }
    }
}
