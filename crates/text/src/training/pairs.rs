//! Pairs of texts that belong together: a question and its answer, a title and its text.

use std::path::Path;

use serde_json::Value;

use keyfold_train::LearnError;

/// A query with a text that answers it, and texts that do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The shorter side.
    pub query: String,
    /// What belongs to it.
    pub positive: String,
    /// What does not, as far as known.
    pub negatives: Vec<String>,
}

/// Pairs to learn from.
#[derive(Debug, Clone, Default)]
pub struct Pairs(pub Vec<Pair>);

/// Names that such files have for the two sides and for what does not belong.
const QUERY: [&str; 4] = ["query", "anchor", "question", "title"];
const POSITIVE: [&str; 5] = ["positive", "document", "answer", "passage", "text"];
const NEGATIVE: [&str; 3] = ["negatives", "negative", "hard_negatives"];

impl Pairs {
    /// Appends the pairs of a file of JSON lines: `{"query": .., "positive": ..}`, with
    /// `"negatives": [..]` where there are such; the names of other programs (`anchor`,
    /// `question`, `title`; `document`, `answer`, `passage`, `text`) serve too.
    ///
    /// # Errors
    /// When a line is no such object; the error names the line.
    pub fn read_json_lines(&mut self, path: &Path) -> Result<(), LearnError> {
        let text = std::fs::read_to_string(path).map_err(LearnError::io(path))?;
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let pair = pair(line).map_err(|what| {
                LearnError::Data(format!("{} line {number}: {what}", path.display()))
            })?;
            self.0.push(pair);
        }
        Ok(())
    }

    /// Leaves out pairs of which a side has no letter or digit, or that stand there twice.
    pub fn clean(&mut self) {
        let says = |text: &str| text.chars().any(char::is_alphanumeric);
        let mut seen = std::collections::HashSet::new();
        self.0.retain(|pair| {
            says(&pair.query)
                && says(&pair.positive)
                && seen.insert(blake3::hash(
                    format!("{}\0{}", pair.query, pair.positive).as_bytes(),
                ))
        });
    }

    /// Their number and a checksum, by which a resumed run knows its data.
    pub fn fingerprint(&self) -> Value {
        let mut hasher = blake3::Hasher::new();
        for pair in &self.0 {
            let texts = [&pair.query, &pair.positive];
            for text in texts.into_iter().chain(&pair.negatives) {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        serde_json::json!({
            "pairs": self.0.len(),
            "checksum": &hasher.finalize().to_hex()[..16],
        })
    }

    /// Refuses data from which nothing can be learned.
    ///
    /// # Errors
    /// When there are fewer than `least` pairs.
    pub fn require(&self, least: usize) -> Result<(), LearnError> {
        match self.0.len() {
            n if n >= least => Ok(()),
            n => Err(LearnError::Data(format!(
                "pairs in the data: {n}; at least {least} are needed: JSON Lines with query and \
                 positive, or files with headings"
            ))),
        }
    }
}

fn pair(line: &str) -> Result<Pair, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("it is not JSON: {e}"))?;
    let find = |names: &[&str]| names.iter().find_map(|name| value.get(name));
    let text = |names: &[&str]| match find(names) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("'{}' is not a text", names[0])),
        None => Err(format!(
            "it has no field '{}' (or {})",
            names[0],
            names[1..].join(", ")
        )),
    };
    let negatives = match find(&NEGATIVE) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or("a negative is not a text")?,
        Some(_) => return Err("'negatives' is not a list of texts".into()),
    };
    Ok(Pair {
        query: text(&QUERY)?,
        positive: text(&POSITIVE)?,
        negatives,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Pairs, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut pairs = Pairs::default();
        let read = pairs.read_json_lines(file.path());
        read.map(|()| pairs).map_err(|e| e.to_string())
    }

    #[test]
    fn pairs_of_several_spellings_are_read_and_bad_lines_are_told() {
        let pairs = read(
            "{\"query\": \"a\", \"positive\": \"b\"}\n\n\
             {\"anchor\": \"c\", \"text\": \"d\", \"negatives\": [\"e\", \"f\"]}\n\
             {\"title\": \"g\", \"answer\": \"h\", \"negative\": \"i\"}\n",
        )
        .unwrap()
        .0;
        assert_eq!(pairs.len(), 3);
        assert_eq!(pairs[1].negatives, ["e", "f"]);
        assert_eq!(pairs[2].query, "g");
        assert!(
            read("{\"query\": \"a\"}")
                .unwrap_err()
                .contains("line 1: it has no field 'positive'")
        );
        assert!(read("{}\n").unwrap_err().contains("'query'"));
        assert!(
            read("\n\nrubbish")
                .unwrap_err()
                .contains("line 3: it is not JSON")
        );
        assert!(
            read("{\"query\": 5, \"positive\": \"b\"}")
                .unwrap_err()
                .contains("not a text")
        );
    }

    #[test]
    fn empty_and_double_pairs_are_left_out_and_the_checksum_tells_data_apart() {
        let pair = |query: &str, positive: &str| Pair {
            query: query.into(),
            positive: positive.into(),
            negatives: vec![],
        };
        let mut pairs = Pairs(vec![
            pair("a", "b"),
            pair("...", "b"),
            pair("a", "b"),
            pair("a", "c"),
        ]);
        let before = pairs.fingerprint();
        pairs.clean();
        assert_eq!(pairs.0, [pair("a", "b"), pair("a", "c")]);
        assert_ne!(before, pairs.fingerprint());
        assert_ne!(
            Pairs(vec![pair("ab", "c")]).fingerprint(),
            Pairs(vec![pair("a", "bc")]).fingerprint()
        );
        assert!(
            pairs
                .require(3)
                .unwrap_err()
                .to_string()
                .contains("pairs in the data: 2;")
        );
    }
}
