//! The options of `keyfold search` for a cross-encoder.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_core::{PairScorer, Progress};
use keyfold_search::rerank::cur::Inverse;
use keyfold_search::rerank::{Anchors, CommandScorer, RerankBy, RerankOptions, Reranker};
use keyfold_search::store::Snapshot;
use serde::Serialize;

use crate::args::Globals;
use crate::failure::wrong_use;
use crate::model;

/// A cross-encoder, and what it reads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reranking")]
pub(crate) struct RerankArgs {
    /// A cross-encoder that reads the query with single passages: a folder or hub name;
    /// or cmd:"PROGRAM", which gets lines {"q": ..., "item": ...} and answers with numbers
    #[arg(long, value_name = "MODEL")]
    rerank: Option<String>,
    /// Seconds that PROGRAM may take for an answer
    #[arg(long, value_name = "N", default_value = "60", requires = "rerank",
          value_parser = clap::value_parser!(u32).range(1..))]
    rerank_timeout: u32,
    /// Which passages it reads
    #[arg(long, value_name = "HOW", default_value = "all", requires = "rerank")]
    rerank_by: ByArg,
    /// How many passages it reads for a query: the budget
    #[arg(long, value_name = "N", default_value = "100", requires = "rerank",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    calls: u32,
    /// Cur: how many of these are anchors; at most half as many as there are anchor queries
    /// is sound, and needed with --ridge none
    #[arg(long, value_name = "N", default_value = "50", requires = "rerank")]
    anchors: u16,
    /// Cur and adacur: typical queries, one a line, which the model reads once with every
    /// passage; needed the first time
    #[arg(long, value_name = "FILE", requires = "rerank")]
    anchor_queries: Option<PathBuf>,
    /// Cur and adacur: the model reads passages that come later with only N of the anchor
    /// queries, and the other scores are estimated [default: with all]
    #[arg(long, value_name = "N", requires = "rerank",
          value_parser = clap::value_parser!(u16).range(1..))]
    new_anchor_calls: Option<u16>,
    /// Cur and adacur: how far the inverse of the anchors' scores is held back, relative to
    /// the mean of their squares; none: the pseudo-inverse of the publication
    #[arg(long, value_name = "X", default_value = "1e-6", requires = "rerank", value_parser = inverse)]
    ridge: Inverse,
    /// Adacur: in how many rounds the budget is spent
    #[arg(long, value_name = "N", default_value = "5", requires = "rerank",
          value_parser = clap::value_parser!(u16).range(2..))]
    rounds: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ByArg {
    /// The best of the search
    All,
    /// Anchors, then those that look best from their scores (ANNCUR)
    Cur,
    /// The best of the search, then in rounds those that look best (ADACUR)
    Adacur,
}

/// How `--rerank` names a program.
const PROGRAM: &str = "cmd:";

/// What a reranker did.
#[derive(Debug, Serialize)]
pub(crate) struct Spent {
    model: String,
    calls: usize,
    /// Of estimates from random anchors, for anchor queries that were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_error: Option<f64>,
    /// Passages that the model has read with some of the anchor queries only.
    estimated_passages: usize,
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the model read {} passages", self.calls)?;
        if let Some(error) = self.relative_error {
            write!(
                f,
                "; its scores of the others are estimated from anchors, for anchor queries that \
                 were left out with a relative error of {error:.2}"
            )?;
        }
        Ok(())
    }
}

impl RerankArgs {
    /// The model, if one is asked for.
    pub(crate) fn load(&self, globals: &Globals) -> anyhow::Result<Option<Box<dyn PairScorer>>> {
        let Some(name) = self.rerank.as_deref() else {
            return Ok(None);
        };
        Ok(Some(match name.strip_prefix(PROGRAM) {
            Some("") => return Err(wrong_use("--rerank cmd: names no program: cmd:\"PROGRAM\"")),
            Some(program) => {
                let patience = Duration::from_secs(self.rerank_timeout.into());
                Box::new(CommandScorer::new(program, patience))
            }
            None => Box::new(model::load_cross_encoder(name, globals)?),
        }))
    }

    /// What became of the budget, for people and for `--json`.
    pub(crate) fn spent(&self, reranker: &Reranker<'_>, calls: usize) -> Spent {
        Spent {
            model: self.rerank.clone().unwrap_or_default(),
            calls,
            relative_error: reranker.relative_error(),
            estimated_passages: reranker.estimated(),
        }
    }

    /// The model with what it needs for a store; none if the user stopped it.
    pub(crate) fn open<'a>(
        &self,
        snapshot: &Snapshot,
        scorer: &'a dyn PairScorer,
        globals: &Globals,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<Reranker<'a>>> {
        let options = RerankOptions {
            by: match self.rerank_by {
                ByArg::All => RerankBy::All,
                ByArg::Cur => RerankBy::Cur,
                ByArg::Adacur => RerankBy::AdaCur,
            },
            calls: self.calls as usize,
            anchors: self.anchors.into(),
            rounds: self.rounds.into(),
            inverse: self.ridge,
            seed: globals.seed,
        };
        let anchors = if options.by == RerankBy::All {
            None
        } else {
            let queries = self.queries()?;
            let few = self.new_anchor_calls.map(usize::from);
            match Anchors::open(snapshot, scorer, queries.as_deref(), few, progress)? {
                Some(anchors) => Some(anchors),
                None => return Ok(None),
            }
        };
        Ok(Some(Reranker::new(scorer, anchors, options)?))
    }

    fn queries(&self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(path) = &self.anchor_queries else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the anchor queries in {}", path.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(Some(lines.map(str::to_owned).collect()))
    }
}

/// How scores are inverted, as --ridge says it.
fn inverse(text: &str) -> Result<Inverse, String> {
    match text.parse::<f64>() {
        _ if text == "none" => Ok(Inverse::Pseudo),
        Ok(x) if x > 0.0 && x.is_finite() => Ok(Inverse::Ridge(x)),
        _ => Err("it must be a number above 0, as 1e-6, or none".to_owned()),
    }
}
