//! The options of `keyfold search` for a cross-encoder.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_core::Progress;
use keyfold_search::rerank::cur::Inverse;
use keyfold_search::rerank::{Anchors, RerankBy, RerankOptions, Reranker};
use keyfold_search::store::Snapshot;
use keyfold_text::CrossEncoder;

use crate::args::Globals;
use crate::model;

/// A cross-encoder, and what it reads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reranking")]
pub(crate) struct RerankArgs {
    /// A cross-encoder that reads the query with single passages: a folder or hub name
    #[arg(long, value_name = "MODEL")]
    rerank: Option<String>,
    /// Which passages it reads
    #[arg(long, value_name = "HOW", default_value = "all", requires = "rerank")]
    rerank_by: ByArg,
    /// How many passages it reads for a query: the budget
    #[arg(long, value_name = "N", default_value = "100", requires = "rerank",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    calls: u32,
    /// Cur: how many of these are anchors, at most half as many as anchor queries
    #[arg(long, value_name = "N", default_value = "50", requires = "rerank")]
    anchors: u16,
    /// Cur and adacur: typical queries, one a line, which the model reads once with every
    /// passage; needed the first time
    #[arg(long, value_name = "FILE", requires = "rerank")]
    anchor_queries: Option<PathBuf>,
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

impl RerankArgs {
    /// The model, if one is asked for.
    pub(crate) fn load(&self, globals: &Globals) -> anyhow::Result<Option<CrossEncoder>> {
        let name = self.rerank.as_deref();
        name.map(|name| model::load_cross_encoder(name, globals))
            .transpose()
    }

    /// The model with what it needs for a store; none if the user stopped it.
    pub(crate) fn open<'a>(
        &self,
        snapshot: &Snapshot,
        scorer: &'a CrossEncoder,
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
            inverse: Inverse::default(),
            seed: globals.seed,
        };
        let anchors = if options.by == RerankBy::All {
            None
        } else {
            let queries = self.queries()?;
            match Anchors::open(snapshot, scorer, queries.as_deref(), progress)? {
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
