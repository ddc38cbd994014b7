//! The options of `keyfold search` that say how its retrievers work together.

use clap::ValueEnum;
use keyfold_search::engine::{Mode, SearchOptions};
use keyfold_search::feedback::{Feedback, Rm3, Rocchio, TokenRows, VectorFeedback, VectorKind};
use keyfold_search::fuse::{Fuse, Scale};

use crate::failure::wrong_use;

/// How words and meaning work together.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Feedback and mixing")]
pub(crate) struct MixArgs {
    /// A model that weighs terms (SPLADE, uniCOIL), in the place of BM25: a folder or hub name
    #[arg(long, value_name = "NAME")]
    pub(crate) sparse: Option<String>,
    /// BM25: how slowly a word that comes again saturates [default: 1.2; Anserini: 0.9]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    k1: Option<f32>,
    /// BM25: how much long passages are held back, 0 to 1 [default: 0.75; Anserini: 0.4]
    #[arg(long, value_name = "X", value_parser = share)]
    b: Option<f32>,
    /// Search twice: the second time with what the first found
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "none",
        value_delimiter = ','
    )]
    feedback: Vec<FeedbackArg>,
    /// Words that RM3 adds
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u16).range(1..))]
    rm3_terms: u16,
    /// Passages that RM3 learns from
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u16).range(1..))]
    rm3_passages: u16,
    /// What the query's own words keep in RM3, 0 to 1
    #[arg(long, value_name = "X", default_value = "0.5", value_parser = share)]
    rm3_weight: f32,
    /// The formula of vector feedback
    #[arg(long, value_name = "HOW", default_value = "average")]
    feedback_by: FeedbackBy,
    /// Passages that vector feedback learns from [default: 3; rocchio: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    feedback_k: Option<u16>,
    /// What the token vectors of these passages do
    #[arg(long, value_name = "HOW", default_value = "paired")]
    feedback_rows: RowsArg,
    /// Rocchio: weight of the query
    #[arg(long, value_name = "X", default_value = "0.4", value_parser = not_negative)]
    alpha: f32,
    /// Rocchio: weight of the passages found
    #[arg(long, value_name = "X", default_value = "0.6", value_parser = not_negative)]
    beta: f32,
    /// Rocchio: weight of the last passages of the list, which are taken away
    #[arg(long, value_name = "X", default_value = "0.1", value_parser = not_negative)]
    gamma: f32,
    /// Rocchio: how many of the last passages
    #[arg(long, value_name = "N", default_value = "0")]
    feedback_bottom: u16,
    /// When and how the lists of words and meaning are mixed
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "rank",
        value_delimiter = ','
    )]
    fuse: Vec<FuseArg>,
    /// What words count when scores are mixed, 0 to 1; meaning counts the rest
    #[arg(long, value_name = "X", default_value = "0.5", value_parser = share)]
    sparse_weight: f32,
    /// How scores are brought to a common range
    #[arg(long, value_name = "HOW", default_value = "minmax")]
    scale: ScaleArg,
    /// Passages of each list whose scores are mixed
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    depth: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FeedbackArg {
    /// Search once
    None,
    /// Words of the best passages join the query (RM3)
    Rm3,
    /// The query's vectors move towards those of the best passages
    Vector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FeedbackBy {
    /// The mean of query and passages
    Average,
    /// Weights for query, passages found, and last passages
    Rocchio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RowsArg {
    /// Each moves the query's vector that it matches
    Paired,
    /// They stand beside the query's
    Added,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FuseArg {
    /// By rank, at the end
    Rank,
    /// Not at all: the list by meaning stands alone
    None,
    /// By score, before feedback, which learns from the mixed list
    Before,
    /// By score, after feedback
    After,
    /// The same as before,after
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleArg {
    /// From 0 to 1
    Minmax,
    /// From -0.5 to 0.5
    Centre,
    /// As they are
    Raw,
}

impl MixArgs {
    /// Sets what the user asked for; refuses what does not go together.
    pub(crate) fn apply(&self, options: &mut SearchOptions) -> anyhow::Result<()> {
        let bm25 = &mut options.bm25;
        bm25.k1 = self.k1.unwrap_or(bm25.k1);
        bm25.b = self.b.unwrap_or(bm25.b);
        options.feedback = self.feedback();
        let fusion = &mut options.fusion;
        fusion.fuse = self.fuse()?;
        fusion.interpolation.weight = self.sparse_weight;
        fusion.interpolation.depth = self.depth as usize;
        fusion.interpolation.scale = match self.scale {
            ScaleArg::Minmax => Scale::MinMax,
            ScaleArg::Centre => Scale::Centre,
            ScaleArg::Raw => Scale::Raw,
        };
        let mode = options.mode;
        let (rm3, vector) = (
            self.learns(FeedbackArg::Rm3),
            self.learns(FeedbackArg::Vector),
        );
        let sparse = self.sparse.is_some();
        let contradictions = [
            (
                self.learns(FeedbackArg::None) && (rm3 || vector),
                "--feedback none and another do not go together",
            ),
            (
                rm3 && mode == Mode::Meaning,
                "--feedback rm3 is about words: leave out --mode meaning",
            ),
            (
                vector && mode == Mode::Lexical,
                "--feedback vector is about meaning: leave out --mode lexical",
            ),
            (
                sparse && mode == Mode::Meaning,
                "--sparse is about words: leave out --mode meaning",
            ),
            (
                sparse && rm3,
                "--feedback rm3 adds words to BM25, not to the terms of --sparse: leave out one",
            ),
            (
                mode != Mode::Both && self.fuse[..] != [FuseArg::Rank],
                "--fuse is about both words and meaning: leave out --mode",
            ),
        ];
        match contradictions.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(wrong_use(what)),
            None => Ok(()),
        }
    }

    fn learns(&self, what: FeedbackArg) -> bool {
        self.feedback.contains(&what)
    }

    fn feedback(&self) -> Feedback {
        let rm3 = Rm3 {
            terms: self.rm3_terms.into(),
            passages: self.rm3_passages.into(),
            weight: self.rm3_weight,
        };
        let (kind, usual) = match self.feedback_by {
            FeedbackBy::Average => (VectorKind::Average, VectorFeedback::average()),
            FeedbackBy::Rocchio => (
                VectorKind::Rocchio(Rocchio {
                    alpha: self.alpha,
                    beta: self.beta,
                    gamma: self.gamma,
                    bottom: self.feedback_bottom.into(),
                }),
                VectorFeedback::rocchio(),
            ),
        };
        let vector = VectorFeedback {
            kind,
            k: self.feedback_k.map_or(usual.k, usize::from),
            rows: match self.feedback_rows {
                RowsArg::Paired => TokenRows::Paired,
                RowsArg::Added => TokenRows::Added,
            },
        };
        Feedback {
            rm3: self.learns(FeedbackArg::Rm3).then_some(rm3),
            vector: self.learns(FeedbackArg::Vector).then_some(vector),
        }
    }

    fn fuse(&self) -> anyhow::Result<Fuse> {
        let mut when = self.fuse.clone();
        when.dedup();
        Ok(match when[..] {
            [FuseArg::Rank] => Fuse::Rank,
            [FuseArg::None] => Fuse::None,
            [FuseArg::Before] => Fuse::Before,
            [FuseArg::After] => Fuse::After,
            [FuseArg::Both]
            | [FuseArg::Before, FuseArg::After]
            | [FuseArg::After, FuseArg::Before] => Fuse::Both,
            _ => {
                return Err(wrong_use(
                    "--fuse takes rank, none, before, after, or both, which is before,after",
                ));
            }
        })
    }
}

fn number(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    match number.is_finite() {
        true => Ok(number),
        false => Err("it is not a finite number".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f32, String> {
    match number(text)? {
        x if x >= 0.0 => Ok(x),
        _ => Err("it must be 0 or more".to_owned()),
    }
}

pub(crate) fn share(text: &str) -> Result<f32, String> {
    match number(text)? {
        x if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("it must be between 0 and 1".to_owned()),
    }
}
