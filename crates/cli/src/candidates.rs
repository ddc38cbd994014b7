//! The options of `keyfold search` that say how passages are found by meaning.

use clap::ValueEnum;
use keyfold_search::candidates::{
    Access, CandidateOptions, Method, PlaidLike, PlaidOptions, WarpOptions,
};

use crate::failure::wrong_use;
use crate::mixing::share;

/// How passages are chosen whose vectors are then compared with the query.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Finding by meaning")]
pub(crate) struct CandidateArgs {
    /// How passages are found whose vectors are then compared with the query
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub(crate) candidates: CandidatesArg,
    /// Compare the query with every passage; short for --candidates exhaustive
    #[arg(long, conflicts_with = "candidates")]
    exhaustive: bool,
    /// Centroids that each vector of the query looks up [default: 16; warp: 32; plaid: as
    /// --plaid says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    nprobe: Option<u32>,
    /// Plaid: whose steps and numbers
    #[arg(long, value_name = "LIKE", default_value = "stanford")]
    plaid: PlaidArg,
    /// Plaid: centroids less near to the query (cosine) are left out; -1 leaves out none
    /// [default: 0.5, 0.45 or 0.4 by how many are wanted; next-plaid: 0.4]
    #[arg(long, value_name = "X", value_parser = cosine, allow_negative_numbers = true)]
    threshold: Option<f32>,
    /// Plaid: passages that are scored by centroids; a quarter of them is compared exactly
    /// [default: 256, 1024 or 4096 by how many are wanted; next-plaid, fast-plaid: 4096; pylate:
    /// 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    full_scores: Option<u32>,
    /// Warp: vectors after which what was not looked up counts as no better [default: by the
    /// size of the store]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    t_prime: Option<u32>,
    /// Warp: centroids that are looked at for that, at most [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    bound: Option<u32>,
    /// ColBERTer models: how many passages are compared by words, after vectors of whole texts
    /// have found them
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u32).range(1..))]
    cls_candidates: u32,
    /// ColBERTer models: words of the query meet only the same words
    #[arg(long)]
    exact_match: bool,
    /// Add up words of the query whose vectors are this near (cosine, about 0.7) before
    /// passages are compared: faster for long queries, less exact
    #[arg(long, value_name = "COSINE", value_parser = share)]
    ball_carving: Option<f32>,
    /// Read the passages that are compared from the file instead of mapping it: next to no
    /// memory, and some milliseconds more
    #[arg(long)]
    low_memory: bool,
}

/// How passages are found by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CandidatesArg {
    /// As 'keyfold tune' found best, else centroids; cls for ColBERTer models
    Auto,
    /// By vectors of whole texts (ColBERTer models)
    Cls,
    /// By encodings of fixed length (MUVERA), which are made if the store has none
    Fde,
    /// By centroids of rows near the query, then by one row for each of the query
    Centroids,
    /// By the centroids of all rows (PLAID)
    Plaid,
    /// By rows of probed centroids alone (WARP)
    Warp,
    /// Every passage
    Exhaustive,
}

/// Whose PLAID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlaidArg {
    /// The authors': two rounds; 1, 2 or 4 centroids by how many passages are wanted
    Stanford,
    /// One round, far centroids are not looked up; 8 centroids
    NextPlaid,
    /// One round; 8 centroids
    FastPlaid,
    /// As fast-plaid, with twice the passages
    Pylate,
}

impl CandidateArgs {
    /// Sets what the user asked for; refuses what does not go together.
    pub(crate) fn apply(&self, options: &mut CandidateOptions) -> anyhow::Result<()> {
        let way = if self.exhaustive {
            CandidatesArg::Exhaustive
        } else {
            self.candidates
        };
        self.require(way)?;
        options.method = match way {
            CandidatesArg::Auto => Method::Auto,
            CandidatesArg::Cls => Method::Cls,
            CandidatesArg::Fde => Method::Fde,
            CandidatesArg::Centroids => Method::Centroids,
            CandidatesArg::Plaid => Method::Plaid,
            CandidatesArg::Warp => Method::Warp,
            CandidatesArg::Exhaustive => Method::Exhaustive,
        };
        let number = |n: Option<u32>| n.map(|n| n as usize);
        options.probes = number(self.nprobe).unwrap_or(options.probes);
        options.plaid = PlaidOptions {
            like: match self.plaid {
                PlaidArg::Stanford => PlaidLike::Stanford,
                PlaidArg::NextPlaid => PlaidLike::NextPlaid,
                PlaidArg::FastPlaid => PlaidLike::FastPlaid,
                PlaidArg::Pylate => PlaidLike::PyLate,
            },
            probes: number(self.nprobe),
            threshold: self.threshold,
            full_scores: number(self.full_scores),
        };
        let usual = WarpOptions::default();
        options.warp = WarpOptions {
            probes: number(self.nprobe).unwrap_or(usual.probes),
            t_prime: number(self.t_prime),
            bound: number(self.bound).unwrap_or(usual.bound),
        };
        options.cls = self.cls_candidates as usize;
        options.exact_match = self.exact_match.then_some(true);
        options.carving = self.ball_carving;
        if self.low_memory {
            options.access = Access::Read;
        }
        Ok(())
    }

    /// Refuses options of another way than the one that is asked for.
    fn require(&self, way: CandidatesArg) -> anyhow::Result<()> {
        use CandidatesArg::{Centroids, Fde, Plaid, Warp};
        let like = self.plaid != PlaidArg::Stanford;
        let probing = way == Plaid || way == Warp || way == Centroids || way == Fde;
        let misplaced = [
            (
                self.nprobe.is_some() && !probing,
                "--nprobe",
                "centroids, plaid or warp",
            ),
            (like && way != Plaid, "--plaid", "plaid"),
            (
                self.threshold.is_some() && way != Plaid,
                "--threshold",
                "plaid",
            ),
            (
                self.full_scores.is_some() && way != Plaid,
                "--full-scores",
                "plaid",
            ),
            (self.t_prime.is_some() && way != Warp, "--t-prime", "warp"),
            (self.bound.is_some() && way != Warp, "--bound", "warp"),
        ];
        if let Some((_, option, ways)) = misplaced.into_iter().find(|m| m.0) {
            return Err(wrong_use(format!(
                "{option} is about another way to find passages: add --candidates {ways}, or leave it out"
            )));
        }
        let has_none = matches!(self.plaid, PlaidArg::FastPlaid | PlaidArg::Pylate);
        if self.threshold.is_some() && has_none {
            return Err(wrong_use(
                "--threshold leaves out centroids, and fast-plaid and pylate leave out none: take \
                 --plaid stanford or next-plaid, or leave it out",
            ));
        }
        Ok(())
    }
}

fn cosine(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (-1.0..=1.0).contains(&x) => Ok(x),
        _ => Err("it must be between -1 and 1".to_owned()),
    }
}
