//! What is shown of a hit: its passage, the words that met, and why.

use std::ops::Range;

use keyfold_core::{Role, Vectors};

use super::{Asked, Hit, LookedFor, Place, Rankings, SearchOptions, found};
use crate::error::SearchError;
use crate::explain::{PassageRows, Retriever, WordMatch, matched, merged};
use crate::fuse::Ranked;
use crate::score;
use crate::store::{Snapshot, StoredPassage};
use crate::whole_text::WholeTextQuery;

impl LookedFor<'_> {
    /// A hit with all that is shown of it.
    pub(super) fn present(
        &self,
        snapshot: &Snapshot,
        rankings: &Rankings,
        ranked: Ranked,
        options: &SearchOptions,
    ) -> Result<Hit, SearchError> {
        let id = ranked.passage;
        let stored = snapshot.passage(id)?.ok_or_else(|| SearchError::Damaged {
            path: snapshot.store().to_owned(),
            what: format!("passage {id} has vectors but no text"),
        })?;
        let mut highlights = Vec::new();
        let mut explanation = Vec::new();
        self.pair_meaning(snapshot, &stored, &mut highlights, &mut explanation)?;
        let found_by_words = place(&rankings.lexical, id);
        if found_by_words.is_some() {
            let asked = options.explain.then_some(&rankings.asked);
            self.pair_words(&stored, asked, &mut highlights, &mut explanation)?;
        }
        let passage = stored.passage;
        Ok(Hit {
            passage_id: id,
            path: stored.path,
            key: stored.key,
            format: stored.format,
            headings: passage.headings,
            lines: passage.lines,
            part: passage.part,
            bytes: passage.bytes,
            text: passage.text,
            score: ranked.score,
            lexical: found_by_words,
            meaning: place(&rankings.meaning, id),
            highlights: merged(highlights),
            explanation: options.explain.then_some(explanation),
        })
    }

    /// Adds what the query met in a passage by meaning.
    fn pair_meaning(
        &self,
        snapshot: &Snapshot,
        stored: &StoredPassage,
        highlights: &mut Vec<Range<usize>>,
        explanation: &mut Vec<WordMatch>,
    ) -> Result<(), SearchError> {
        let Some(meant) = &self.meaning else {
            return Ok(());
        };
        let Some((segment, local)) = found(snapshot, stored.id)? else {
            return Ok(());
        };
        let (text, start) = stored.passage.searchable();
        let rows = if snapshot.folding().is_none() {
            score::decoded(segment, local)?
        } else {
            // Folded rows stand for no word, so these are made again.
            let rows = meant.encoder.encode(&[&text], Role::Document)?.pop();
            rows.map(Vectors::into_vec).unwrap_or_default()
        };
        let query = &meant.query;
        let passage = PassageRows {
            rows,
            ids: segment.row_ids(segment.rows(local)?)?.to_vec(),
            compared: WholeTextQuery::new(snapshot.segments(), &query.rows, self.exact_match),
        };
        let pairs = query.pairs(meant.encoder, &text, &passage)?;
        // Matches in the headings are before the text.
        let in_text = matched(self.text, &pairs)
            .into_iter()
            .filter(|r| r.start >= start);
        highlights.extend(in_text.map(|r| r.start - start..r.end - start));
        explanation.extend(pairs.into_iter().map(|pair| WordMatch {
            query: pair.query.map(|r| self.text[r].to_owned()),
            passage: pair.passage.map(|r| text[r].to_owned()),
            score: pair.score,
            retriever: Retriever::Meaning,
        }));
        Ok(())
    }

    /// Adds what words of the query stand in a passage, and what those that were
    /// `asked` for add to its score.
    fn pair_words(
        &self,
        stored: &StoredPassage,
        asked: Option<&Asked>,
        highlights: &mut Vec<Range<usize>>,
        explanation: &mut Vec<WordMatch>,
    ) -> Result<(), SearchError> {
        let Some(words) = &self.words else {
            return Ok(());
        };
        let text = &stored.passage.text;
        let found = words.matches(text);
        let telling = found.into_iter().filter(|(_, telling)| *telling);
        highlights.extend(telling.map(|(range, _)| range));
        let mut add = |query: &str, passage, score| {
            explanation.push(WordMatch {
                query: Some(query.to_owned()),
                passage,
                score,
                retriever: Retriever::Lexical,
            });
        };
        match asked {
            Some(Asked::Words(weights)) => {
                let places = words.places(weights, text);
                for (spelled, term, score) in words.contributions(weights, stored.id)? {
                    let place = places.iter().find(|(_, found)| found == term);
                    let shown = place.map(|(range, _)| text[range.clone()].to_owned());
                    add(spelled, shown, score);
                }
            }
            Some(Asked::Terms(terms)) => {
                for (term, score) in self.sparse.iter().flat_map(|s| s.parts(terms, stored.id)) {
                    add(&term, Some(term.clone()), score);
                }
            }
            None => {}
        }
        Ok(())
    }
}

/// The place of a passage in a list.
fn place(list: &[Ranked], id: u64) -> Option<Place> {
    let at = list.iter().position(|r| r.passage == id)?;
    Some(Place {
        rank: at + 1,
        score: list[at].score,
    })
}
