//! Bases and ranks of `--cache matryoshka`: from a file, and by calibration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use keyfold_lm::store::matryoshka::{
    Around, Bases, RankSearch, Ranks, fold_output, heads_in, load, principal, search_ranks,
};
use keyfold_lm::{Decoder, ModelFile};

use super::setup::Loaded;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// Bases that a model's cache is kept in.
pub(crate) struct LoadedBases {
    pub(crate) bases: Arc<Bases>,
    pub(crate) ranks: Ranks,
    /// Whether the output projections take values in these bases.
    pub(crate) folded: bool,
}

impl LoadedBases {
    /// Reads a file and, unless the weights are replaced otherwise, folds the bases of values
    /// into the decoder. `keep` takes so many numbers of every head in place of the file's ranks.
    pub(super) fn open(
        path: &Path,
        keep: Option<f64>,
        fold: bool,
        decoder: &mut Decoder,
        file: &ModelFile,
    ) -> anyhow::Result<Self> {
        let (bases, mut ranks) = load(path, decoder)?;
        if let Some(keep) = keep {
            ranks = Ranks::uniform(&decoder.config().dims, checked(keep)?);
        }
        let folded = fold && fold_output(decoder, file, &bases, &ranks)?;
        Ok(Self {
            bases: Arc::new(bases),
            ranks,
            folded,
        })
    }
}

/// The model with a key and a value head for each query head where `each` asks for it or the bases
/// in `path` are of query heads.
pub(crate) fn fitting(
    file: ModelFile,
    path: Option<&Path>,
    each: bool,
    progress: &StderrProgress,
) -> anyhow::Result<ModelFile> {
    let dims = file.config().dims;
    let of_queries = match path {
        Some(path) => dims.group() > 1 && heads_in(path)? == dims.heads,
        None => false,
    };
    if dims.group() == 1 || !(each || of_queries) {
        return Ok(file);
    }
    progress.say(&format!(
        "a basis for each query head: keys and values of a head are kept {} times, once for each \
         query head that reads them",
        dims.group()
    ));
    Ok(file.repeat_kv()?)
}

/// Refuses what is no share.
fn checked(keep: f64) -> anyhow::Result<f64> {
    if keep > 0.0 && keep <= 1.0 {
        return Ok(keep);
    }
    Err(wrong_use(format!(
        "--cache-keep {keep} is no share of the numbers above 0 and up to 1"
    )))
}

/// How ranks are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RanksArg {
    /// Where it changes the last hidden states least (minutes)
    Greedy,
    /// The same for all heads
    Uniform,
}

/// Around what principal components are sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AroundArg {
    /// Zero: values of first tokens, which take much attention, stay small
    Zero,
    /// The mean of keys or values, as the authors do
    Mean,
}

/// What only the calibration of `--cache matryoshka` takes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BasesArgs {
    /// matryoshka: how ranks are shared out; --cache-keep says how many [default there: 0.5]
    #[arg(long, value_name = "WAY", default_value = "greedy")]
    ranks: RanksArg,
    /// matryoshka: tokens that ranks are searched on
    #[arg(long, value_name = "N", default_value_t = 128)]
    search_tokens: usize,
    /// matryoshka: numbers that a head gives up at a time [default: a quarter of a head]
    #[arg(long, value_name = "N", default_value_t = 0)]
    interval: usize,
    /// matryoshka: around what principal components are sought
    #[arg(long, value_name = "WHAT", default_value = "zero")]
    around: AroundArg,
    /// matryoshka: search ranks for these bases ('keyfold train matryoshka-kv') in place of
    /// principal components
    #[arg(long, value_name = "FILE")]
    bases: Option<PathBuf>,
    /// matryoshka: a basis for each query head, as the authors have it, where query heads share
    /// keys and values; the cache then holds a shared head once for each of them
    #[arg(long)]
    per_query_head: bool,
}

impl BasesArgs {
    /// The model as these bases need it.
    pub(super) fn fitting(
        &self,
        file: ModelFile,
        progress: &StderrProgress,
    ) -> anyhow::Result<ModelFile> {
        fitting(file, self.bases.as_deref(), self.per_query_head, progress)
    }

    /// Bases and ranks from a text.
    pub(super) fn calibrate(
        &self,
        loaded: &Loaded,
        tokens: &[u32],
        blocks: &[&[u32]],
        keep: Option<f64>,
        progress: &StderrProgress,
    ) -> anyhow::Result<(Bases, Ranks)> {
        let dims = loaded.decoder.config().dims;
        let keep = checked(keep.unwrap_or(0.5))?;
        let bases = match &self.bases {
            Some(path) => load(path, &loaded.decoder)?.0,
            None => {
                let around = match self.around {
                    AroundArg::Mean => Around::Mean,
                    AroundArg::Zero => Around::Zero,
                };
                principal(&loaded.decoder, blocks, around, &loaded.team, progress)?
            }
        };
        if self.ranks == RanksArg::Uniform {
            return Ok((bases, Ranks::uniform(&dims, keep)));
        }
        let bases = Arc::new(bases);
        let config = RankSearch {
            target: keep,
            interval: self.interval,
            ..RankSearch::default()
        };
        let text = &tokens[..tokens.len().min(self.search_tokens.max(1))];
        let found = search_ranks(
            &loaded.decoder,
            &bases,
            text,
            &config,
            &loaded.team,
            progress,
        )?;
        Ok((Arc::unwrap_or_clone(bases), found))
    }
}
