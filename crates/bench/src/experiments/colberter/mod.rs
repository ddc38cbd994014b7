//! What is saved by keeping one small vector for each different whole word: Introducing
//! Neural Bag of Whole-Words with ColBERTer (Hofstätter et al., CIKM 2022).
//!
//! Four parts, of which the first, second and last need no download:
//!
//! - `law`: how many vectors are left of a judged collection's word pieces when the
//!   pieces of a word, and the places of a word, share one; and what that costs in
//!   nDCG with the vectors of the default encoder. With `--model` a ColBERTer
//!   checkpoint, also how many words its gates leave.
//! - `gates`: the toy encoder with learnt gates `g = relu(w . A + b)`: which words they
//!   close, and what is lost with the words that they close against words by chance.
//! - `real`: with `--model` a BERT, `--pairs` and `--teacher`: that model trained in the
//!   stages of the publication; bytes against nDCG@10.
//! - `speed`: the time of comparing words of 32 numbers against comparing all tokens
//!   at equal bytes.

mod gates;
mod law;
mod real;
mod speed;

use keyfold_core::Progress;
use serde_json::json;

use super::search::{fixture, read};
use crate::report::{Report, reached};
use crate::{BenchError, BenchOptions, Experiment, plot};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "colberter",
    about: "vectors of whole words: how many are left, what gates remove, and the time of comparing",
    run,
};

/// The publication: of the 32-number model's whole words, and the 1-number model's.
const REMOVED: [(&str, f64); 2] = [("128/32", 0.29), ("128/1, exact match", 0.50)];
/// The specification: fewer vectors than tokens, for abstracts of 150 to 250 tokens.
const FEWER: std::ops::RangeInclusive<f64> = 0.35..=0.50;
/// The specification: most that nDCG@10 may lose when 30 % of the words are dropped.
const MOST_LOST: f64 = 0.01;

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let collection = match &options.data {
        Some(folder) => read(folder)?,
        None => fixture()?,
    };
    let real = real::run(&collection, options, progress)?;
    // The model that was trained is no checkpoint of ColBERTer to look into.
    let without = BenchOptions {
        model: options.model.clone().filter(|_| real.is_none()),
        ..options.clone()
    };
    let law = law::measure(&collection, &without, progress)?;
    let gates = gates::measure(&collection, options, progress)?;
    let speed = speed::measure(&law.sizes, options)?;

    let mut findings = vec![format!(
        "{:.0} % fewer vectors than tokens of ColBERT by whole words in lower case, {:.0} % by stems \
         (aim: {:.0} to {:.0} % for abstracts of 150 to 250 tokens; here {:.0} tokens): {}",
        100.0 * law.fewer,
        100.0 * law.fewer_stems,
        100.0 * FEWER.start(),
        100.0 * FEWER.end(),
        law.sizes.tokens,
        reached(law.fewer >= *FEWER.start()),
    )];
    findings.extend(gates.findings(MOST_LOST));
    findings.push(speed.finding());
    findings.extend(real.as_ref().map(real::Real::finding));
    let published: Vec<String> = REMOVED
        .iter()
        .map(|(name, share)| format!("{:.0} % ({name})", 100.0 * share))
        .collect();
    findings.push(match law.removed {
        Some(share) => format!(
            "the checkpoint's gates remove {:.0} % of the words; the publication's models remove {}",
            100.0 * share,
            published.join(" and ")
        ),
        None => format!(
            "the publication's models remove {} of the words on MS MARCO; no checkpoint was given \
             (--model)",
            published.join(" and ")
        ),
    });
    let svg = plot::lines(
        "bytes of vectors per passage against nDCG@10",
        "bytes per passage",
        "nDCG@10",
        &[
            law.lines(),
            gates.lines(),
            real.as_ref().map(real::Real::lines).unwrap_or_default(),
        ]
        .concat(),
    )?;
    let mut tables = vec![
        law.counts,
        law.quality,
        gates.by_weight,
        gates.by_word,
        speed.table,
    ];
    tables.extend(real.as_ref().map(real::Real::table));
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        values: json!({
            "scale": options.scale, "law": law.values, "gates": gates.values, "speed": speed.values,
            "real": real.as_ref().map(real::Real::values),
        }),
        tables,
        findings,
        svg,
    })
}
