//! How cached rows are kept: `--cache` and its settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_lm::roles::KvStore;
use keyfold_lm::store::kvquant::{Calibration, Datatype, KvQuantConfig, KvQuantStore, model_hash};
use keyfold_lm::store::matryoshka::MatryoshkaStore;
use keyfold_lm::store::{CacheType, DenseStore};
use keyfold_lm::{Decoder, ModelFile};

use super::bases::{LoadedBases, fitting};
use super::calibrate;
use super::setup::Loaded;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

const NO_BASES: &str = "--cache matryoshka needs the file that 'keyfold lm calibrate --cache matryoshka' \
     writes: --cache matryoshka:FILE";

/// `--cache` and what belongs to it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheArgs {
    /// How cached keys and values are kept: f32, f16, q8_0 (8 bits and a scale for 32 numbers),
    /// q4_0, kvquant:2, kvquant:3, kvquant:4 (so many bits, by tables that fit the model), or
    /// matryoshka:FILE (fewer numbers, by the bases of 'keyfold lm calibrate --cache matryoshka')
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub(super) cache: CacheArg,
    /// kvquant: share of numbers that are kept beside the codes [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    outliers: Option<f64>,
    /// kvquant: at most that share of every token, half of it at each end
    #[arg(long)]
    cap_outliers: bool,
    /// kvquant: first tokens that are kept in 16 bits [default: 1]
    #[arg(long, value_name = "N")]
    cache_sink: Option<usize>,
    /// kvquant: where tables come from
    #[arg(long, value_name = "KIND", default_value = "nuq")]
    tables: TablesArg,
    /// kvquant: give rounded numbers the mean and the deviation that they had; auto does at 2 bits
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    qnorm: WhenArg,
    /// kvquant: the file that 'keyfold lm calibrate --cache kvquant' wrote; auto lets the model
    /// write a text and takes that
    #[arg(long, value_name = "FILE|auto", default_value = "auto")]
    cache_calib: PathBuf,
    /// matryoshka: share of the numbers that is kept, the same for every head, in place of the
    /// file's ranks
    #[arg(long, value_name = "SHARE")]
    pub(super) cache_keep: Option<f64>,
}

/// How cached keys and values are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CacheArg {
    Dense(CacheType),
    KvQuant {
        bits: u8,
    },
    /// With no file it is to be calibrated.
    Matryoshka(Option<PathBuf>),
}

impl FromStr for CacheArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let dense = match name {
            "f32" => CacheType::F32,
            "f16" => CacheType::F16,
            "q8_0" => CacheType::Q8_0,
            "q4_0" => CacheType::Q4_0,
            "kvquant" => {
                let bits = rest.map_or(Some(3), |bits| bits.parse().ok());
                let bits = bits.filter(|bits| (2..=4).contains(bits));
                let bits = bits.ok_or("kvquant has 2, 3 or 4 bits: kvquant:3")?;
                return Ok(Self::KvQuant { bits });
            }
            "matryoshka" => return Ok(Self::Matryoshka(rest.map(PathBuf::from))),
            _ => {
                return Err(
                    "choose f32, f16, q8_0, q4_0, kvquant:2, kvquant:3, kvquant:4 or \
                     matryoshka:FILE"
                        .into(),
                );
            }
        };
        match rest {
            None => Ok(Self::Dense(dense)),
            Some(_) => Err(format!("{name} takes nothing after a colon")),
        }
    }
}

/// Where tables come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TablesArg {
    /// Fitted to a text
    Nuq,
    /// Quantiles of the normal distribution
    Nf,
    /// Even steps
    Int,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WhenArg {
    /// Where it helps
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

impl CacheArgs {
    /// Settings of kvquant at so many bits.
    pub(super) fn kvquant(&self, bits: u8) -> KvQuantConfig {
        let default = KvQuantConfig::default();
        KvQuantConfig {
            abits: bits,
            datatype: match self.tables {
                TablesArg::Nuq => Datatype::Nuq,
                TablesArg::Nf => Datatype::Nf,
                TablesArg::Int => Datatype::Int,
            },
            sparsity_threshold: self
                .outliers
                .map_or(default.sparsity_threshold, |share| 1.0 - share),
            cap_outliers: self.cap_outliers,
            first_few_fp16: self.cache_sink.unwrap_or(default.first_few_fp16),
            norm: match self.qnorm {
                WhenArg::Auto => None,
                WhenArg::On => Some(true),
                WhenArg::Off => Some(false),
            },
        }
    }

    /// How plain rows are kept, where they are.
    pub(super) fn dense(&self) -> Option<CacheType> {
        match self.cache {
            CacheArg::Dense(kind) => Some(kind),
            CacheArg::KvQuant { .. } | CacheArg::Matryoshka(_) => None,
        }
    }

    /// The model with as many key and value heads as the cache's bases are of.
    pub(super) fn fitting(
        &self,
        file: ModelFile,
        progress: &StderrProgress,
    ) -> anyhow::Result<ModelFile> {
        match &self.cache {
            CacheArg::Matryoshka(Some(path)) => fitting(file, Some(path), false, progress),
            _ => Ok(file),
        }
    }

    /// Bases of the cache, where it has some; those of values are folded into the decoder if
    /// `fold` says so.
    pub(super) fn bases(
        &self,
        decoder: &mut Decoder,
        file: &ModelFile,
        fold: bool,
    ) -> anyhow::Result<Option<LoadedBases>> {
        let CacheArg::Matryoshka(Some(path)) = &self.cache else {
            return Ok(None);
        };
        LoadedBases::open(path, self.cache_keep, fold, decoder, file).map(Some)
    }

    /// A store that is no plain one.
    pub(super) fn store(
        &self,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Box<dyn KvStore>>> {
        let model = loaded.decoder.config();
        let bits = match &self.cache {
            CacheArg::Dense(_) => return Ok(None),
            CacheArg::KvQuant { bits } => *bits,
            CacheArg::Matryoshka(_) => {
                let Some(found) = &loaded.bases else {
                    return Err(wrong_use(NO_BASES));
                };
                let bases = Arc::clone(&found.bases);
                let kind = CacheType::F16;
                let (ranks, folded) = (&found.ranks, found.folded);
                let store = MatryoshkaStore::new(model.dims, bases, ranks, kind, folded, 0)?;
                return Ok(Some(Box::new(store)));
            }
        };
        Ok(Some(Box::new(self.kvquant_store(bits, loaded, progress)?)))
    }

    /// A store that gives back keys as they come, not rotated: for blocks of far tokens.
    pub(super) fn unrotated_store(
        &self,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<Box<dyn KvStore>> {
        match &self.cache {
            CacheArg::Dense(kind) => {
                let dims = loaded.decoder.config().dims;
                let store = DenseStore::new(dims, *kind, 0).ok_or_else(|| {
                    wrong_use(format!(
                        "heads of {} numbers are no whole blocks of 32; choose --cache f16 or f32",
                        dims.head_dim
                    ))
                })?;
                Ok(Box::new(store))
            }
            CacheArg::KvQuant { bits } => {
                let store = self.kvquant_store(*bits, loaded, progress)?;
                Ok(Box::new(store.unrotated()))
            }
            CacheArg::Matryoshka(_) => Err(wrong_use(
                "the bases of --cache matryoshka are of rotated keys, and --select act-qkv keeps keys that are \
                 not; choose another --cache or --select",
            )),
        }
    }

    fn kvquant_store(
        &self,
        bits: u8,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<KvQuantStore> {
        let model = loaded.decoder.config();
        let config = self.kvquant(bits);
        config.validate(&model.dims)?;
        let calibration = match loaded.calibration.get() {
            Some(calibration) => calibration,
            None => {
                let found = self.calibration(loaded, &config, progress)?;
                loaded.calibration.get_or_init(|| found)
            }
        };
        let from = || format!("cannot use --cache-calib {}", self.cache_calib.display());
        KvQuantStore::new(model, config, calibration).with_context(from)
    }

    fn calibration(
        &self,
        loaded: &Loaded,
        config: &KvQuantConfig,
        progress: &StderrProgress,
    ) -> anyhow::Result<Calibration> {
        if self.cache_calib.as_os_str() == "auto" {
            return calibrate::cache_by_own_text(loaded, config, progress);
        }
        let calibration = Calibration::load(&self.cache_calib)?;
        calibration.check_model(model_hash(&loaded.file)?)?;
        Ok(calibration)
    }
}
