//! Dictionaries: entries of one or more words with their definitions.
//!
//! Two kinds are read:
//! - a text file (UTF-8, or UTF-16 with a byte order mark) with one entry a line,
//!   `entry TAB definition<|list_more_def|>definition`, the layout of DefSent+,
//! - the folder of WordNet's database (`data.noun`, `data.verb`, `data.adj`, `data.adv`),
//!   as packages install it: each word and phrase with its glosses, without the examples.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What stands between the definitions of an entry.
const MORE: &str = "<|list_more_def|>";

/// The files of WordNet's database, in the order in which glosses are listed.
const WORDNET: [&str; 4] = ["data.noun", "data.verb", "data.adj", "data.adv"];

/// An entry and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The word or phrase.
    pub words: String,
    /// At least one definition, none empty.
    pub definitions: Vec<String>,
}

/// Entries, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dictionary {
    entries: Vec<Entry>,
    places: HashMap<String, usize>,
}

/// Why a dictionary could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DictionaryError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not in a known encoding.
    #[error("{path} is neither UTF-8 nor UTF-16 with a byte order mark ({what}); save it as UTF-8")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Where it is broken.
        what: String,
    },
    /// A line is not an entry.
    #[error("{path} line {line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to do.
        what: String,
    },
    /// A folder that is not WordNet's.
    #[error(
        "{path} is a folder without {}: give the folder of WordNet's database, or a file with \
         one entry a line",
        WORDNET[0]
    )]
    NoWordNet {
        /// The folder.
        path: PathBuf,
    },
}

impl Dictionary {
    /// Reads files or WordNet folders, one after the other; an entry that comes again gets
    /// the further definitions.
    ///
    /// # Errors
    /// When one cannot be read; the error names the file and line.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, DictionaryError> {
        let mut all = Self::default();
        for path in paths {
            let path = path.as_ref();
            match path.is_dir() {
                true => all.read_wordnet(path)?,
                false => all.read_lines(path)?,
            }
        }
        Ok(all)
    }

    /// The entries, in the order in which they came.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of definitions of all entries.
    pub fn definitions(&self) -> usize {
        self.entries.iter().map(|e| e.definitions.len()).sum()
    }

    /// Adds a definition to an entry, which is made where it is not there.
    pub fn push(&mut self, words: &str, definition: &str) {
        let next = self.entries.len();
        let place = *self.places.entry(words.to_owned()).or_insert(next);
        if place == next {
            self.entries.push(Entry {
                words: words.to_owned(),
                definitions: Vec::new(),
            });
        }
        let definitions = &mut self.entries[place].definitions;
        if !definitions.iter().any(|d| d == definition) {
            definitions.push(definition.to_owned());
        }
    }

    /// Keeps at most `most` entries, spread evenly over the dictionary; 0 keeps all.
    pub fn thin(&mut self, most: usize) {
        let all = self.entries.len();
        if most == 0 || all <= most {
            return;
        }
        let kept = (0..most).map(|i| self.entries[i * all / most].clone());
        self.entries = kept.collect();
        let places = self.entries.iter().enumerate();
        self.places = places.map(|(i, e)| (e.words.clone(), i)).collect();
    }

    /// A checksum (hex) of all entries and definitions.
    pub fn checksum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for entry in &self.entries {
            add(&entry.words);
            entry.definitions.iter().for_each(|d| add(d));
            // Ends the list; no definition is empty.
            add("");
        }
        hasher.finalize().to_hex().to_string()
    }

    fn read_lines(&mut self, path: &Path) -> Result<(), DictionaryError> {
        let text = read_text(path)?;
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            self.line(line).map_err(|what| DictionaryError::Line {
                path: path.to_owned(),
                line: number,
                what: what.to_owned(),
            })?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        let (words, rest) = line
            .split_once('\t')
            .ok_or("there is no TAB; write entry TAB definition")?;
        // Further columns, as in the authors' program, are passed over.
        let definitions = rest.split('\t').next().unwrap_or_default();
        let words = words.trim();
        if words.is_empty() {
            return Err("the entry before the TAB is empty");
        }
        for definition in definitions.split(MORE).map(str::trim) {
            if definition.is_empty() {
                return Err("a definition is empty; write one, or remove the line");
            }
            self.push(words, definition);
        }
        Ok(())
    }

    fn read_wordnet(&mut self, folder: &Path) -> Result<(), DictionaryError> {
        if !folder.join(WORDNET[0]).is_file() {
            return Err(DictionaryError::NoWordNet {
                path: folder.to_owned(),
            });
        }
        for name in WORDNET {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            for (number, line) in (1..).zip(read_text(&path)?.lines()) {
                // The licence at the head is indented.
                if line.starts_with(' ') || line.trim().is_empty() {
                    continue;
                }
                self.synset(line).ok_or_else(|| DictionaryError::Line {
                    path: path.clone(),
                    line: number,
                    what: "it is not a synset of WordNet's database (wndb); the file is damaged \
                           or of another kind"
                        .to_owned(),
                })?;
            }
        }
        Ok(())
    }

    /// `offset file type count word id word id ... | gloss`, the count in hexadecimal.
    fn synset(&mut self, line: &str) -> Option<()> {
        let (head, gloss) = line.split_once(" | ")?;
        let fields: Vec<&str> = head.split(' ').collect();
        let count = usize::from_str_radix(fields.get(3)?, 16).ok()?;
        let words = fields.get(4..count.checked_mul(2)?.checked_add(4)?)?;
        let definition = without_examples(gloss);
        if definition.is_empty() || count == 0 {
            return None;
        }
        for word in words.iter().step_by(2) {
            // Adjectives may say where they stand: `galore(ip)`.
            let word = word.split('(').next().unwrap_or_default();
            self.push(&word.replace('_', " "), definition);
        }
        Some(())
    }
}

/// A gloss up to its first example, which stands in quotes after a semicolon.
fn without_examples(gloss: &str) -> &str {
    let end = gloss.find("; \"").unwrap_or(gloss.len());
    let definition = gloss[..end].trim().trim_end_matches(';').trim_end();
    // Some glosses are an example only.
    if definition.is_empty() {
        gloss.trim()
    } else {
        definition
    }
}

fn read_text(path: &Path) -> Result<String, DictionaryError> {
    let bytes = std::fs::read(path).map_err(|source| DictionaryError::Io {
        path: path.to_owned(),
        source,
    })?;
    decode(&bytes).map_err(|what| DictionaryError::Encoding {
        path: path.to_owned(),
        what,
    })
}

fn decode(bytes: &[u8]) -> Result<String, String> {
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let text = std::str::from_utf8(bytes);
            text.map(str::to_owned)
                .map_err(|e| format!("byte {} is not UTF-8", e.valid_up_to()))
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("UTF-16 with an odd number of bytes: it is cut off".to_owned());
    }
    char::decode_utf16(pairs.iter().map(|pair| unit(*pair)))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Dictionary, DictionaryError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Dictionary::read(&[file.path()])
    }

    const LINES: &str = "cold war\ta state of rivalry<|list_more_def|>hostility without war\n\
                         \nbark\tsound of a dog\tnoun\nbark\tskin of a tree\n";

    #[test]
    fn entries_have_several_words_and_definitions_in_every_encoding() {
        let plain = read(LINES.as_bytes()).unwrap();
        let shown: Vec<_> = plain.entries().iter().map(|e| e.words.as_str()).collect();
        assert_eq!(shown, ["cold war", "bark"]);
        assert_eq!(
            plain.entries()[1].definitions,
            ["sound of a dog", "skin of a tree"]
        );
        assert_eq!(plain.definitions(), 4);
        let wide = |first: [u8; 2], unit: fn(u16) -> [u8; 2]| {
            let units = LINES.encode_utf16().flat_map(unit);
            read(&first.into_iter().chain(units).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(wide([0xff, 0xfe], u16::to_le_bytes), plain);
        assert_eq!(wide([0xfe, 0xff], u16::to_be_bytes), plain);
        let marked = [b"\xef\xbb\xbf", LINES.as_bytes()].concat();
        assert_eq!(read(&marked).unwrap(), plain);
        assert_ne!(
            read(b"bark\tsound").unwrap().checksum(),
            read(b"bark\tsounds").unwrap().checksum()
        );
    }

    #[test]
    fn errors_name_file_and_line_and_say_what_to_do() {
        let told = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        let no_tab = told(b"a\tb\nno definition\n");
        assert!(
            no_tab.contains("line 2") && no_tab.contains("TAB"),
            "{no_tab}"
        );
        assert!(told(b"a\tb<|list_more_def|> \n").contains("empty"));
        assert!(told(b" \tb\n").contains("line 1"));
        assert!(told(b"a\tb\xff\n").contains("byte 3 is not UTF-8"));
        assert!(told(b"\xff\xfea\0\t").contains("cut off"));
        let folder = tempfile::tempdir().unwrap();
        let e = Dictionary::read(&[folder.path()]).unwrap_err().to_string();
        assert!(e.contains("data.noun"), "{e}");
        std::fs::write(folder.path().join("data.noun"), "x y z | gloss\n").unwrap();
        let e = Dictionary::read(&[folder.path()]).unwrap_err().to_string();
        assert!(e.contains("data.noun line 1"), "{e}");
        let e = Dictionary::read(&[folder.path().join("none")]).unwrap_err();
        assert!(e.to_string().contains("none"));
    }

    #[test]
    fn wordnet_gives_phrases_with_all_their_glosses() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "data.noun",
            "  1 This software  \n\
             00258 03 n 02 living_thing 0 animate_thing 0 007 @ 1 n 0000 | a living entity  \n\
             00999 03 n 01 bark 0 000 | the sound of a dog; \"a loud bark\"; \"barks\"  \n",
        );
        write(
            "data.adj",
            "01 00 a 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 galore(ip) 0 000 | in plenty; many  \n",
        );
        write(
            "data.verb",
            "07 30 v 01 bark 0 000 01 + 02 00 | \"The dogs barked\"  \n",
        );
        let all = Dictionary::read(&[folder.path()]).unwrap();
        let find = |words: &str| {
            let entry = all.entries().iter().find(|e| e.words == words);
            entry
                .unwrap_or_else(|| panic!("no {words}"))
                .definitions
                .clone()
        };
        assert_eq!(find("animate thing"), ["a living entity"]);
        assert_eq!(find("bark"), ["the sound of a dog", "\"The dogs barked\""]);
        assert_eq!(find("galore"), ["in plenty; many"]);
        assert_eq!(all.entries().len(), 13);
    }

    #[test]
    fn a_thinned_dictionary_is_spread_over_the_whole() {
        let mut all = Dictionary::default();
        (0..100).for_each(|i| all.push(&format!("{i}"), "a number"));
        all.thin(10);
        let words: Vec<_> = all.entries().iter().map(|e| e.words.as_str()).collect();
        assert_eq!(
            words,
            ["0", "10", "20", "30", "40", "50", "60", "70", "80", "90"]
        );
        all.push("30", "thirty");
        assert_eq!(all.entries().len(), 10);
        assert_eq!(all.entries()[3].definitions.len(), 2);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
