//! Binary paragraph vectors beside other ways to binary codes, at equal bits: how well
//! documents are ranked by Hamming distance, and what real vectors add.

mod baselines;
mod collection;
mod ranking;

use std::time::Instant;

use keyfold_core::{Encoder, Progress, Role};
use keyfold_kernels as kernels;
use keyfold_text::paragraph_vector::{Architecture, Code, Config, Embedded, Trainer};
use keyfold_train::Learner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::lsa::{self, Lsa};
use crate::plot;
use crate::quality::{bootstrap, mean};
use crate::report::{Report, Table, reached};
use crate::{BenchError, BenchOptions, Experiment, Scale};
use collection::Collection;
use ranking::{Item, Items, Lists, Quality};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "binary-paragraph-vector",
    about: "ranking by learned binary codes, by other codes of as many bits, and by real vectors",
    run,
};

/// Lengths of codes.
const BITS: [usize; 3] = [32, 64, 128];
/// Documents that are ordered anew by their real vectors.
const SHORT_LIST: usize = 100;

const ROUNDED: &str = "binary PV-DBOW";
const AFTERWARDS: &str = "PV-DBOW, rounded afterwards";
const MEMORY: &str = "binary PV-DM";
const HYPERPLANES: &str = "PV-DBOW, random hyperplanes";
const LSH: &str = "LSA, random hyperplanes";
const ITQ: &str = "LSA, iterative quantisation";
const AUTO_ENCODER: &str = "auto-encoder";
const REAL_BINARY: &str = "real-binary PV-DBOW, codes";
const RERANKED: &str = "real-binary PV-DBOW, reranked";

/// What one way of ranking reaches.
struct Row {
    name: String,
    /// None for real vectors.
    bits: Option<usize>,
    quality: Vec<Quality>,
    balance: Vec<f64>,
}

/// The rows of all seeds, and how fast learning was.
#[derive(Default)]
struct Results {
    rows: Vec<Row>,
    words: u64,
    seconds: f64,
    /// Share of the ten nearest by real vectors that are among the first by codes.
    found: Vec<f64>,
}

impl Results {
    fn add(&mut self, name: &str, bits: Option<usize>, quality: Quality, balance: Option<f64>) {
        let known = self
            .rows
            .iter()
            .position(|r| r.name == name && r.bits == bits);
        let at = known.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                bits,
                quality: Vec::new(),
                balance: Vec::new(),
            });
            self.rows.len() - 1
        });
        self.rows[at].quality.push(quality);
        self.rows[at].balance.extend(balance);
    }

    fn add_codes(&mut self, name: &str, bits: usize, items: &Items, collection: &Collection) {
        let quality = Quality::of(&items.by_codes(), &collection.relevant);
        self.add(name, Some(bits), quality, Some(items.balance()));
    }

    fn quality(&self, name: &str, bits: Option<usize>) -> Quality {
        let row = self.rows.iter().find(|r| r.name == name && r.bits == bits);
        row.map_or_else(Quality::default, |r| Quality::mean_of(&r.quality))
    }
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let collection = Collection::read(options)?;
    let mut results = Results::default();
    let by_words = by_words(&collection);
    let quality = Quality::of(&by_words, &collection.relevant);
    results.add("words (TF-IDF)", None, quality, None);
    let seeds = match options.scale {
        Scale::Smoke => 1,
        Scale::Small => 2,
        Scale::Full => 5,
    };
    for seed in options.seed..options.seed + seeds {
        Run {
            collection: &collection,
            options,
            progress,
            seed,
        }
        .all(&mut results)?;
    }
    let scan = scan_rate(options);
    report(&collection, &results, scan, seeds)
}

/// One seed.
struct Run<'a> {
    collection: &'a Collection,
    options: &'a BenchOptions,
    progress: &'a dyn Progress,
    seed: u64,
}

impl Run<'_> {
    fn all(&self, results: &mut Results) -> Result<(), BenchError> {
        for bits in self.bits() {
            let items = self.learn(&self.config(bits), results)?;
            results.add_codes(ROUNDED, bits, &items, self.collection);
        }
        for bits in self.bits() {
            let config = Config {
                code: Code::Sigmoid,
                ..self.config(bits)
            };
            let items = self.learn(&config, results)?;
            results.add_codes(AFTERWARDS, bits, &items, self.collection);
        }
        let longest = self.bits().last().unwrap_or(BITS[2]);
        let config = Config {
            architecture: Architecture::PvDm,
            ..self.config(longest)
        };
        let items = self.learn(&config, results)?;
        results.add_codes(MEMORY, longest, &items, self.collection);
        self.real(longest, results)?;
        self.real_binary(longest, results)?;
        self.lsa(longest, results)?;
        for bits in self.bits() {
            self.check()?;
            let (documents, queries) = (&self.collection.documents, &self.collection.queries);
            let epochs = if self.options.scale == Scale::Smoke {
                5
            } else {
                50
            };
            let items = baselines::auto_encoder(documents, queries, bits, epochs, self.seed);
            results.add_codes(AUTO_ENCODER, bits, &items, self.collection);
        }
        Ok(())
    }

    /// Plain paragraph vectors.
    fn real(&self, longest: usize, results: &mut Results) -> Result<(), BenchError> {
        let config = Config {
            code: Code::Real,
            ..self.config(longest)
        };
        let items = self.learn(&config, results)?;
        let quality = Quality::of(&items.by_reals(), &self.collection.relevant);
        results.add("PV-DBOW, real", None, quality, None);
        for bits in self.bits() {
            let coded = baselines::hyperplanes(&items, bits, self.seed);
            results.add_codes(HYPERPLANES, bits, &coded, self.collection);
        }
        Ok(())
    }

    fn real_binary(&self, longest: usize, results: &mut Results) -> Result<(), BenchError> {
        let relevant = &self.collection.relevant;
        let items = self.learn(&real_binary(self.config(longest)), results)?;
        results.add_codes(REAL_BINARY, longest, &items, self.collection);
        let (by_codes, by_reals) = (items.by_codes(), items.by_reals());
        let short = SHORT_LIST.min(self.collection.documents.len() / 4);
        let quality = Quality::of(&items.reranked(&by_codes, short), relevant);
        results.add(RERANKED, Some(longest), quality, None);
        let quality = Quality::of(&by_reals, relevant);
        results.add("real-binary PV-DBOW, real", None, quality, None);
        let found = by_codes.iter().zip(&by_reals).map(|(codes, reals)| {
            let short = &codes[..short.min(codes.len())];
            let ten = reals.iter().take(10);
            ten.filter(|d| short.contains(d)).count() as f64 / 10.0
        });
        results.found.push(mean(&found.collect::<Vec<f64>>()));
        Ok(())
    }

    fn lsa(&self, longest: usize, results: &mut Results) -> Result<(), BenchError> {
        let whole = self.places(longest)?;
        let quality = Quality::of(&whole.by_reals(), &self.collection.relevant);
        results.add("LSA, real", None, quality, None);
        for bits in self.bits() {
            let coded = baselines::hyperplanes(&whole, bits, self.seed);
            results.add_codes(LSH, bits, &coded, self.collection);
            let coded = baselines::iterative_quantisation(&self.places(bits)?, self.seed);
            results.add_codes(ITQ, bits, &coded, self.collection);
        }
        Ok(())
    }

    /// The places of texts in the space of latent semantic analysis.
    fn places(&self, dim: usize) -> Result<Items, BenchError> {
        self.check()?;
        let documents = &self.collection.documents;
        if documents.len() > lsa::MOST_TEXTS {
            return Err(BenchError::data(
                "--data",
                format!(
                    "more than {} documents, the most that LSA takes here",
                    lsa::MOST_TEXTS
                ),
            ));
        }
        let lsa = Lsa::learn(documents, dim, self.seed, self.options.thread_count());
        let items = |texts: &[String]| -> Result<Vec<Item>, BenchError> {
            let views: Vec<&str> = texts.iter().map(String::as_str).collect();
            let all = lsa.encode(&views, Role::Document)?.into_iter();
            let item = |rows: keyfold_core::Vectors| {
                (!rows.is_empty()).then(|| Embedded {
                    code: Vec::new(),
                    real: Some(rows.into_vec()),
                })
            };
            Ok(all.map(item).collect())
        };
        Ok(Items {
            documents: items(documents)?,
            queries: items(&self.collection.queries)?,
        })
    }

    fn bits(&self) -> impl Iterator<Item = usize> + use<> {
        let few = self.options.scale == Scale::Smoke;
        BITS.into_iter().take(if few { 1 } else { BITS.len() })
    }

    fn config(&self, bits: usize) -> Config {
        let mut config = Config {
            bits,
            min_count: 2,
            bigrams: false,
            unigram_bias: true,
            learning_rate: 0.01,
            infer_learning_rate: 0.2,
            step_words: 4096,
            seed: self.seed,
            ..Config::default()
        };
        if self.options.scale == Scale::Smoke {
            config.subsample = 0.0;
            config.learning_rate = 0.025;
            config.epochs = 10;
        }
        config
    }

    fn learn(&self, config: &Config, results: &mut Results) -> Result<Items, BenchError> {
        let documents: Vec<&str> = (self.collection.documents.iter())
            .map(String::as_str)
            .collect();
        let threads = self.options.thread_count();
        let mut trainer = Trainer::new(&documents, config, threads)?;
        let begun = Instant::now();
        self.progress.start("train", "steps", Some(trainer.steps()));
        for step in 1..=trainer.steps() {
            self.check()?;
            results.words += trainer.step(step)?.items;
            self.progress.advance(1);
        }
        self.progress.finish();
        results.seconds += begun.elapsed().as_secs_f64();
        let model = trainer.model("");
        let queries: Vec<&str> = self.collection.queries.iter().map(String::as_str).collect();
        let mut trained = trainer.trained();
        trained.resize(documents.len(), None);
        Ok(Items {
            documents: trained,
            queries: (model.embed_all(&queries, threads).into_iter())
                .map(Result::ok)
                .collect(),
        })
    }

    fn check(&self) -> Result<(), BenchError> {
        match self.progress.cancelled() {
            true => Err(BenchError::Cancelled),
            false => Ok(()),
        }
    }
}

/// Settings of the real-binary model, as in its small recipe.
fn real_binary(config: Config) -> Config {
    Config {
        real_dim: 100,
        ..config
    }
}

fn by_words(collection: &Collection) -> Lists {
    let queries: Vec<&str> = collection.queries.iter().map(String::as_str).collect();
    let order = |scores: Vec<f32>| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order
    };
    let scores = lsa::tf_idf(&collection.documents, &queries);
    scores.into_iter().map(order).collect()
}

/// Codes of 128 bits that one thread compares in a second.
fn scan_rate(options: &BenchOptions) -> f64 {
    let (codes, scans) = match options.scale {
        Scale::Smoke => (20_000, 10),
        _ => (4_000_000, 10),
    };
    let mut rng = StdRng::seed_from_u64(options.seed);
    let words: Vec<u64> = (0..2 * codes).map(|_| rng.random()).collect();
    let mut distances = vec![0; codes];
    let mut best = f64::INFINITY;
    for scan in 0..scans {
        let begun = Instant::now();
        kernels::hamming_distances(&words, &[scan, !scan], &mut distances);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    codes as f64 / best
}

fn report(
    collection: &Collection,
    results: &Results,
    scan: f64,
    seeds: u64,
) -> Result<Report, BenchError> {
    let title = format!(
        "{} ({} documents, {} queries), mean of {seeds} seeds",
        collection.about,
        collection.documents.len(),
        collection.queries.len()
    );
    let columns = [
        "ranked by",
        "bits",
        "MAP",
        "P@10",
        "nDCG@10",
        "balance of bits",
    ];
    let mut table = Table::new(&title, &columns);
    let mut rows = Vec::new();
    for row in &results.rows {
        let quality = Quality::mean_of(&row.quality);
        let [map, ten, ndcg] =
            [&quality.precision, &quality.first_ten, &quality.ndcg].map(|q| mean(q));
        let balance = (!row.balance.is_empty()).then(|| mean(&row.balance));
        table.row([
            row.name.clone(),
            row.bits.map_or("-".to_owned(), |b| b.to_string()),
            format!("{map:.4}"),
            format!("{ten:.4}"),
            format!("{ndcg:.4}"),
            balance.map_or("-".to_owned(), |b| format!("{b:.2}")),
        ]);
        let per_seed = row.quality.iter().map(|q| mean(&q.precision));
        rows.push(json!({
            "name": row.name,
            "bits": row.bits,
            "map": map,
            "map_by_seed": per_seed.collect::<Vec<f64>>(),
            "p@10": ten,
            "ndcg@10": ndcg,
            "balance": balance,
        }));
    }
    let rate = results.words as f64 / results.seconds;
    let (compared, differences) = comparisons(results);
    let mut findings = vec![
        "Paper: on 20 Newsgroups and RCV1 codes of binary PV-DBOW rank documents better than those \
         of an auto-encoder, with 32 bits as well as that with 128; ordering the first again by \
         real vectors ranks better still."
            .to_owned(),
    ];
    findings.extend(compared);
    findings.push(format!(
        "Of the ten nearest by real vectors {:.0} % are among the first {SHORT_LIST} by the codes \
         of the same model.",
        100.0 * mean(&results.found)
    ));
    findings.push(format!(
        "Training: {rate:.0} words a second. Hamming: {:.0} million codes of 128 bits a second \
         and thread (aim: 100 million, {}).",
        scan / 1e6,
        reached(scan >= 1e8)
    ));
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![table],
        findings,
        values: json!({
            "collection": collection.about,
            "documents": collection.documents.len(),
            "queries": collection.queries.len(),
            "seeds": seeds,
            "rows": rows,
            "differences": differences,
            "found_of_ten": mean(&results.found),
            "words_per_second": rate,
            "codes_per_second": scan,
        }),
        svg: plot::lines(
            "Ranking by codes",
            "bits of a code",
            "mean average precision",
            &lines(results),
        )?,
    })
}

/// What should be better than what, and whether it is.
fn comparisons(results: &Results) -> (Vec<String>, Vec<Value>) {
    let of_rounded = results.rows.iter().filter(|row| row.name == ROUNDED);
    let all: Vec<usize> = of_rounded.filter_map(|row| row.bits).collect();
    let (Some(&least), Some(&most)) = (all.first(), all.last()) else {
        return Default::default();
    };
    let middle = all[all.len() / 2];
    let mut pairs = vec![
        ((ROUNDED, least), (AUTO_ENCODER, most)),
        ((ROUNDED, middle), (AUTO_ENCODER, middle)),
        ((ROUNDED, middle), (AFTERWARDS, middle)),
        ((ROUNDED, middle), (HYPERPLANES, middle)),
        ((AFTERWARDS, middle), (LSH, middle)),
        ((ROUNDED, middle), (LSH, middle)),
        ((ROUNDED, middle), (ITQ, middle)),
        ((ROUNDED, most), (MEMORY, most)),
        ((RERANKED, most), (REAL_BINARY, most)),
    ];
    // With one length of codes, two are the same.
    pairs.dedup();
    let mut findings = Vec::new();
    let mut values = Vec::new();
    for ((a, a_bits), (b, b_bits)) in pairs {
        let first = results.quality(a, Some(a_bits)).precision;
        let second = results.quality(b, Some(b_bits)).precision;
        let d = bootstrap(&first, &second, 1);
        findings.push(format!(
            "Expected: {a} ({a_bits} bits) above {b} ({b_bits}). MAP {:+.4}, 95 % of resamples from \
             {:+.4} to {:+.4}: {}.",
            d.mean,
            d.low,
            d.high,
            reached(d.mean > 0.0)
        ));
        values.push(json!({
            "first": [a, a_bits.to_string()],
            "second": [b, b_bits.to_string()],
            "difference": d,
        }));
    }
    (findings, values)
}

fn lines(results: &Results) -> Vec<plot::Line> {
    let names = [ROUNDED, AFTERWARDS, HYPERPLANES, ITQ, LSH, AUTO_ENCODER];
    let line = |name: &str| {
        let of_name = results.rows.iter().filter(|r| r.name == name);
        let points = of_name.filter_map(|row| {
            let quality = Quality::mean_of(&row.quality);
            Some((row.bits? as f64, mean(&quality.precision)))
        });
        (name.to_owned(), points.collect())
    };
    names.into_iter().map(line).collect()
}
