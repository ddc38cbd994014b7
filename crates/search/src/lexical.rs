//! Search by words: BM25 over text, headings and file names.
//!
//! A query is plain text, never a formula that could be wrong. Any of its words
//! may match, more and rarer ones score higher. What stands in double quotes must
//! occur, in this order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use keyfold_data::Passage;
use tantivy::collector::{Collector, DocSetCollector, FilterCollector, TopDocs};
use tantivy::query::{BooleanQuery, BoostQuery, Occur, PhraseQuery, Query, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{DocAddress, Score, TantivyError, Term};

use crate::bm25::{self, Bm25};
use crate::error::SearchError;
use crate::explain::is_telling;
use crate::filter::BitSet;
use crate::fuse::{self, Ranked};
use crate::store::Snapshot;

/// Of longer queries only so many different words, and so many phrases, count.
const MAX_WORDS: usize = 512;
/// Words that more than this share of the passages hold are not worth showing.
const COMMON: f64 = 0.2;

/// A word of a query.
struct Word {
    /// As the index knows it.
    term: String,
    /// As the query spells it, where it first does.
    spelled: String,
    /// How often the query has it.
    count: u32,
    /// Whether its matches are worth showing.
    telling: bool,
}

/// The words of a query, as the index knows them.
pub(crate) struct Words<'a> {
    snapshot: &'a Snapshot,
    bm25: Bm25,
    analyzer: TextAnalyzer,
    /// The different words.
    words: Vec<Word>,
    /// What must occur as it stands, each a list of words with their places.
    phrases: Vec<Vec<(usize, String)>>,
}

impl<'a> Words<'a> {
    pub(crate) fn new(
        snapshot: &'a Snapshot,
        query: &str,
        bm25: &Bm25,
    ) -> Result<Self, SearchError> {
        let index = snapshot.searcher().index();
        let analyzer = index.tokenizer_for_field(snapshot.fields().body);
        let mut analyzer = analyzer.map_err(|e| SearchError::lexical(snapshot.store(), e))?;
        let mut words: Vec<Word> = Vec::new();
        for token in tokens(&mut analyzer, query) {
            if let Some(known) = words.iter_mut().find(|known| known.term == token.text) {
                known.count += 1;
            } else if words.len() < MAX_WORDS {
                words.push(Word {
                    term: token.text,
                    spelled: query[token.range].to_owned(),
                    count: 1,
                    telling: true,
                });
            }
        }
        let phrases = quoted(query).map(|phrase| words_in_order(&mut analyzer, phrase));
        let phrases = phrases.filter(|p| !p.is_empty()).take(MAX_WORDS).collect();
        let mut all = Self {
            snapshot,
            bm25: *bm25,
            analyzer,
            words,
            phrases,
        };
        all.find_telling()?;
        Ok(all)
    }

    /// Decides which words are worth showing: all but function words and very
    /// common ones, or all
    /// if the query has no others.
    fn find_telling(&mut self) -> Result<(), SearchError> {
        // In a few passages, one is no sign of a common word.
        let one = 1.0 / self.snapshot.searcher().num_docs().max(1) as f64;
        for i in 0..self.words.len() {
            let share = self.share(&self.words[i].term)?;
            let word = &mut self.words[i];
            word.telling = share <= COMMON.max(one) && is_telling(&word.spelled);
        }
        if !self.words.iter().any(|word| word.telling) {
            self.words.iter_mut().for_each(|word| word.telling = true);
        }
        Ok(())
    }

    /// The words with how much each counts: how often the query has it.
    pub(crate) fn weights(&self) -> Vec<(String, f32)> {
        let words = self.words.iter();
        words.map(|w| (w.term.clone(), w.count as f32)).collect()
    }

    /// The `k` passages of the greatest BM25 score, best first. `weights` says
    /// which words count how much; those of the query are [`Words::weights`].
    pub(crate) fn search(
        &self,
        weights: &[(String, f32)],
        k: usize,
        allowed: Option<Arc<BitSet>>,
    ) -> Result<Vec<Ranked>, SearchError> {
        let searcher = self.snapshot.searcher();
        let k = k.min(searcher.num_docs() as usize);
        if weights.is_empty() || k == 0 {
            return Ok(Vec::new());
        }
        let terms = weights.iter().flat_map(|(word, weight)| {
            let terms = self.terms(word).into_iter();
            terms.map(move |(term, boost)| (term, boost * weight))
        });
        if !self.bm25.is_of_index() {
            let terms: Vec<(Term, Score)> = terms.collect();
            let passage = self.snapshot.fields().passage;
            return bm25::best(searcher, passage, &terms, &self.bm25, k, allowed.as_deref())
                .map_err(|e| self.failed(e));
        }
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for (term, weight) in terms {
            let query = TermQuery::new(term, IndexRecordOption::WithFreqs);
            let query = BoostQuery::new(Box::new(query), weight);
            clauses.push((Occur::Should, Box::new(query)));
        }
        clauses.extend(self.required());
        let best = TopDocs::with_limit(k).order_by_score();
        let query = BooleanQuery::new(clauses);
        let found = match allowed {
            None => self.collect(&query, &best)?,
            Some(allowed) => {
                let is_allowed = move |id: u64| allowed.contains(id as usize);
                let field = searcher
                    .schema()
                    .get_field_name(self.snapshot.fields().passage);
                self.collect(
                    &query,
                    &FilterCollector::new(field.to_owned(), is_allowed, best),
                )?
            }
        };
        let mut ranked = Vec::with_capacity(found.len());
        for (score, address) in found {
            ranked.push(Ranked {
                passage: self.id(address)?,
                score,
            });
        }
        fuse::sort(&mut ranked);
        Ok(ranked)
    }

    /// How often each word stands in the text of a passage, headings included;
    /// words ascending.
    pub(crate) fn frequencies(&self, passage: &Passage) -> BTreeMap<String, u32> {
        let mut all = BTreeMap::new();
        for token in tokens(&mut self.analyzer.clone(), &passage.searchable().0) {
            *all.entry(token.text).or_default() += 1;
        }
        all
    }

    /// In what share of the passages a word stands.
    pub(crate) fn share(&self, word: &str) -> Result<f64, SearchError> {
        let searcher = self.snapshot.searcher();
        let term = Term::from_field_text(self.snapshot.fields().body, word);
        let frequency = searcher.doc_freq(&term).map_err(|e| self.failed(e))?;
        Ok(frequency as f64 / searcher.num_docs().max(1) as f64)
    }

    /// The ids of the passages that hold everything that is quoted; none if
    /// nothing is.
    pub(crate) fn with_phrases(&self) -> Result<Option<Vec<u64>>, SearchError> {
        if self.phrases.is_empty() {
            return Ok(None);
        }
        let found = self.collect(&BooleanQuery::new(self.required()), &DocSetCollector)?;
        let ids: Result<Vec<u64>, _> = found.into_iter().map(|a| self.id(a)).collect();
        ids.map(Some)
    }

    /// What each of some words adds to the score of a passage: how the query spells
    /// it (a word that it lacks as the index knows it), how the index knows it, and
    /// the score, for words that add some. `weights` are those of the search.
    pub(crate) fn contributions<'w>(
        &'w self,
        weights: &'w [(String, f32)],
        id: u64,
    ) -> Result<Vec<(&'w str, &'w str, f32)>, SearchError> {
        let mut all = Vec::new();
        let Some(address) = self.snapshot.address(id).map_err(|e| self.failed(e))? else {
            return Ok(all);
        };
        // The index's own scores have a factor that Lucene dropped.
        let factor = match self.bm25.is_of_index() {
            true => self.bm25.k1 + 1.0,
            false => 1.0,
        };
        for (word, weight) in weights {
            let terms = self.terms(word).into_iter();
            let terms: Vec<(Term, Score)> = terms.map(|(t, boost)| (t, boost * weight)).collect();
            let parts = bm25::parts(self.snapshot.searcher(), &terms, &self.bm25, address);
            let sum: f32 = parts.map_err(|e| self.failed(e))?.iter().sum();
            if sum > 0.0 {
                let spelled = self.words.iter().find(|known| known.term == *word);
                all.push((
                    spelled.map_or(&**word, |w| &*w.spelled),
                    &**word,
                    factor * sum,
                ));
            }
        }
        Ok(all)
    }

    /// Where words stand in a text, each with how the index knows it.
    pub(crate) fn places(
        &self,
        words: &[(String, f32)],
        text: &str,
    ) -> Vec<(Range<usize>, String)> {
        let found = tokens(&mut self.analyzer.clone(), text).into_iter();
        found
            .filter(|token| words.iter().any(|(word, _)| *word == token.text))
            .map(|token| (token.range, token.text))
            .collect()
    }

    /// Where words of the query stand in a text, each with whether it is worth
    /// showing.
    pub(crate) fn matches(&self, text: &str) -> Vec<(Range<usize>, bool)> {
        let found = tokens(&mut self.analyzer.clone(), text).into_iter();
        found
            .filter_map(|token| {
                let word = self.words.iter().find(|word| word.term == token.text)?;
                Some((token.range, word.telling))
            })
            .collect()
    }

    /// Where a word is looked up, and what it is worth there.
    fn terms(&self, word: &str) -> Vec<(Term, Score)> {
        let fields = self.snapshot.fields();
        let all = [
            (fields.body, 1.0),
            (fields.headings, self.bm25.headings),
            (fields.name, self.bm25.name),
        ];
        all.into_iter()
            .filter(|&(_, boost)| boost > 0.0)
            .map(|(field, boost)| (Term::from_field_text(field, word), boost))
            .collect()
    }

    /// One clause for each phrase.
    fn required(&self) -> Vec<(Occur, Box<dyn Query>)> {
        let body = self.snapshot.fields().body;
        let clause = |phrase: &Vec<_>| (Occur::Must, phrase_query(body, phrase));
        self.phrases.iter().map(clause).collect()
    }

    fn collect<C: Collector>(
        &self,
        query: &dyn Query,
        collector: &C,
    ) -> Result<C::Fruit, SearchError> {
        let found = self.snapshot.searcher().search(query, collector);
        found.map_err(|e| self.failed(e))
    }

    fn id(&self, address: DocAddress) -> Result<u64, SearchError> {
        let searcher = self.snapshot.searcher();
        let name = searcher
            .schema()
            .get_field_name(self.snapshot.fields().passage);
        let fields = searcher.segment_reader(address.segment_ord).fast_fields();
        let ids = fields.u64(name).map_err(|e| self.failed(e))?;
        ids.first(address.doc_id)
            .ok_or_else(|| SearchError::Damaged {
                path: self.snapshot.store().to_owned(),
                what: "a passage of the lexical index has no number".to_owned(),
            })
    }

    fn failed(&self, source: TantivyError) -> SearchError {
        SearchError::lexical(self.snapshot.store(), source)
    }
}

/// A word of a text as the index knows it, and where it stands.
struct Token {
    text: String,
    range: Range<usize>,
    position: usize,
}

fn tokens(analyzer: &mut TextAnalyzer, text: &str) -> Vec<Token> {
    let mut all = Vec::new();
    analyzer.token_stream(text).process(&mut |token| {
        all.push(Token {
            text: token.text.clone(),
            range: token.offset_from..token.offset_to,
            position: token.position,
        });
    });
    all
}

/// The words of a phrase with their places. A compound stands at the place of
/// its first part; its parts say enough.
fn words_in_order(analyzer: &mut TextAnalyzer, phrase: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, String)> = Vec::new();
    for token in tokens(analyzer, phrase) {
        match words.last_mut() {
            Some(last) if last.0 == token.position => last.1 = token.text,
            _ => words.push((token.position, token.text)),
        }
    }
    words
}

/// What stands between pairs of double quotes.
fn quoted(query: &str) -> impl Iterator<Item = &str> {
    let mut pieces: Vec<&str> = query
        .split(['"', '\u{201c}', '\u{201d}', '\u{201e}'])
        .collect();
    if pieces.len().is_multiple_of(2) {
        // The last quote has no partner.
        pieces.pop();
    }
    pieces.into_iter().skip(1).step_by(2)
}

fn phrase_query(field: Field, phrase: &[(usize, String)]) -> Box<dyn Query> {
    let mut terms: Vec<(usize, Term)> = phrase
        .iter()
        .map(|(place, word)| (*place, Term::from_field_text(field, word)))
        .collect();
    if terms.len() == 1 {
        let (_, term) = terms.remove(0);
        return Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
    }
    Box::new(PhraseQuery::new_with_offset(terms))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn quotes_come_in_pairs() {
        for (query, expected) in [
            ("no quotes", &[][..]),
            ("\"one two\" three", &["one two"]),
            ("a \"b\" c \"d e\"", &["b", "d e"]),
            ("\"open", &[]),
            ("a \"b\" \"open", &["b"]),
            ("\u{201c}curly\u{201d}", &["curly"]),
            ("\"\"", &[""]),
            ("\"", &[]),
        ] {
            assert_eq!(quoted(query).collect::<Vec<_>>(), expected, "{query}");
        }
    }
}
