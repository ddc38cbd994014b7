//! What every command with a language model begins with: the model, its tokenizer, its
//! threads, and how the next token is picked.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use keyfold_core::ModelFolder;
use keyfold_kernels::Team;
use keyfold_lm::ModelFile;
use keyfold_lm::Tokenizer;
use keyfold_lm::decoding::{ContrastiveConfig, SamplingConfig};
use keyfold_lm::generate::{Decoding, GenerateOptions};
use keyfold_lm::linear::r_sparse;
use keyfold_lm::mamba::{MambaFile, MambaSession, saved};
use keyfold_lm::model::Decoder;
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::store::kvquant::Calibration;
use keyfold_lm::{LmError, Reading, prompt_cache};

use super::bases::LoadedBases;
use super::mamba::LoadedMamba;
use super::policy::PolicyArgs;
use crate::args::Globals;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// The model and how it reads.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, or a hub name
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// Which weights a written token reads: dense, or r-sparse[:FILE] (about half, by the file
    /// of 'keyfold model sparsify', which lies beside the model unless named)
    #[arg(long, value_name = "WAY", default_value = "dense")]
    pub(crate) weights: WeightsArg,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

/// Which weights a written token reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WeightsArg {
    /// All.
    Dense,
    /// Those of inputs that matter.
    RSparse(Option<PathBuf>),
}

impl FromStr for WeightsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "dense" => Ok(Self::Dense),
            None if text == "r-sparse" => Ok(Self::RSparse(None)),
            Some(("r-sparse", path)) if !path.is_empty() => Ok(Self::RSparse(Some(path.into()))),
            _ => Err("choose dense, r-sparse or r-sparse:FILE".to_owned()),
        }
    }
}

impl WeightsArg {
    /// Puts the folded maps in the place of the model's.
    fn put_into(&self, decoder: &mut Decoder, model: &Path) -> anyhow::Result<()> {
        let Self::RSparse(path) = self else {
            return Ok(());
        };
        let own = r_sparse::beside(model);
        let path = match path {
            Some(folder) if folder.is_dir() => folder.join(own.file_name().unwrap_or_default()),
            Some(path) => path.clone(),
            None => own,
        };
        if !path.exists() {
            return Err(wrong_use(format!(
                "there is no {}; make it: keyfold model sparsify {} --method r-sparse --text FILE",
                path.display(),
                model.display()
            )));
        }
        r_sparse::RSparseFile::open(&path)?.put_into(decoder)?;
        Ok(())
    }
}

/// A model that is ready.
pub(crate) struct Loaded {
    pub(crate) file: ModelFile,
    pub(crate) decoder: Arc<Decoder>,
    /// Of `--cache matryoshka`.
    pub(super) bases: Option<LoadedBases>,
    pub(crate) team: Arc<Team>,
    /// Of `--cache kvquant`; sessions share it.
    pub(super) calibration: OnceCell<Calibration>,
    /// Of what a method draws, as the directions of `--prefill hyper`.
    pub(super) seed: u64,
}

impl Loaded {
    /// Opens a model by path or name and says what is to be noted about it.
    pub(crate) fn open(
        name: &str,
        globals: &Globals,
        progress: &StderrProgress,
    ) -> anyhow::Result<Self> {
        Self::with(name, globals, progress, Ok, |_, _, _| Ok(None))
    }

    /// The same, with the heads that `heads` gives the model and weights that `change` puts in
    /// place of others; it gives the bases of the cache, where there are such.
    fn with(
        name: &str,
        globals: &Globals,
        progress: &StderrProgress,
        heads: impl FnOnce(ModelFile) -> anyhow::Result<ModelFile>,
        change: impl FnOnce(&mut Decoder, &ModelFile, &Path) -> anyhow::Result<Option<LoadedBases>>,
    ) -> anyhow::Result<Self> {
        let path = path(name)?;
        if MambaFile::is_mamba(&path) {
            return Err(wrong_use(format!(
                "{} is a Mamba model, which this command does not take; lm generate, perplexity, score, bench and \
                 calibrate --long do",
                path.display()
            )));
        }
        let file = ModelFile::open(&path)?;
        file.notes().iter().for_each(|note| progress.say(note));
        let file = heads(file)?;
        let mut decoder = Decoder::load(&file)?;
        let bases = change(&mut decoder, &file, &path)?;
        Ok(Self {
            file,
            decoder: Arc::new(decoder),
            bases,
            team: Arc::new(Team::new(globals.threads.map_or(0, usize::from))),
            calibration: OnceCell::new(),
            seed: globals.seed,
        })
    }
}

/// A model of either kind: with attention, or with a state.
pub(crate) enum AnyModel {
    Decoder(Box<Loaded>),
    Mamba(Box<LoadedMamba>),
}

impl AnyModel {
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, LmError> {
        match self {
            Self::Decoder(loaded) => loaded.file.tokenizer(),
            Self::Mamba(loaded) => loaded.file.tokenizer(),
        }
    }

    /// What ends a text, by the model's configuration.
    pub(crate) fn end_tokens(&self) -> &[u32] {
        match self {
            Self::Decoder(loaded) => &loaded.decoder.config().eos_token_ids,
            Self::Mamba(loaded) => &loaded.lm.config().eos_token_ids,
        }
    }

    pub(crate) fn threads(&self) -> usize {
        match self {
            Self::Decoder(loaded) => loaded.team.threads(),
            Self::Mamba(loaded) => loaded.team.threads(),
        }
    }
}

/// A text of a model of either kind.
pub(crate) enum Text {
    Decoder(Box<Session>),
    Mamba(Box<MambaSession>),
}

impl Text {
    pub(crate) fn reading(&mut self) -> &mut dyn Reading {
        match self {
            Self::Decoder(session) => &mut **session,
            Self::Mamba(session) => &mut **session,
        }
    }

    /// Reads a prompt of which a file holds a beginning; how much did not have to be read.
    pub(crate) fn prefill_saved(
        &mut self,
        path: &Path,
        prompt: &[u32],
        progress: &StderrProgress,
    ) -> Result<usize, LmError> {
        match self {
            Self::Decoder(session) => prompt_cache::prefill(session, path, prompt, progress),
            Self::Mamba(session) => saved::prefill(session, path, prompt, progress),
        }
    }

    /// Keeps the state after a prompt.
    pub(crate) fn save(&mut self, path: &Path) -> Result<(), LmError> {
        match self {
            Self::Decoder(session) => prompt_cache::save(session, path),
            Self::Mamba(session) => saved::save(session, path),
        }
    }
}

impl ModelArgs {
    /// The same with other methods of cache, selection, eviction and weights, named as the options
    /// do.
    pub(super) fn with(
        &self,
        [cache, select, evict, weights]: &[String; 4],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            model: self.model.clone(),
            weights: weights.parse().map_err(wrong_use)?,
            policy: self.policy.with(cache, select, evict)?,
        })
    }

    /// Opens a model of either kind.
    pub(crate) fn open(
        &self,
        globals: &Globals,
        progress: &StderrProgress,
    ) -> anyhow::Result<AnyModel> {
        let path = path(&self.model)?;
        if !MambaFile::is_mamba(&path) {
            let loaded = self.load(globals, progress)?;
            return Ok(AnyModel::Decoder(Box::new(loaded)));
        }
        self.policy
            .refuse_for_mamba(self.weights != WeightsArg::Dense)?;
        let loaded = LoadedMamba::open(&path, globals)?;
        Ok(AnyModel::Mamba(Box::new(loaded)))
    }

    /// An empty text.
    pub(crate) fn text(
        &self,
        model: &AnyModel,
        context: usize,
        progress: &StderrProgress,
    ) -> anyhow::Result<Text> {
        Ok(match model {
            AnyModel::Decoder(loaded) => {
                Text::Decoder(Box::new(self.session(loaded, context, progress)?))
            }
            AnyModel::Mamba(loaded) => Text::Mamba(Box::new(loaded.session())),
        })
    }

    /// Opens a model with attention and says what is to be noted about it.
    pub(crate) fn load(
        &self,
        globals: &Globals,
        progress: &StderrProgress,
    ) -> anyhow::Result<Loaded> {
        self.load_with(globals, progress, |file| {
            self.policy.cache.fitting(file, progress)
        })
    }

    /// The same with the heads that `heads` gives the model.
    pub(super) fn load_with(
        &self,
        globals: &Globals,
        progress: &StderrProgress,
        heads: impl FnOnce(ModelFile) -> anyhow::Result<ModelFile>,
    ) -> anyhow::Result<Loaded> {
        let change = |decoder: &mut Decoder, file: &ModelFile, path: &Path| {
            self.weights.put_into(decoder, path)?;
            let fold = self.weights == WeightsArg::Dense;
            self.policy.cache.bases(decoder, file, fold)
        };
        Loaded::with(&self.model, globals, progress, heads, change)
    }

    /// An empty text that is read as the options say.
    pub(crate) fn session(
        &self,
        loaded: &Loaded,
        context: usize,
        progress: &StderrProgress,
    ) -> anyhow::Result<Session> {
        let policy: Policy = self.policy.build(loaded, context, progress)?;
        let mut session = Session::new(
            Arc::clone(&loaded.decoder),
            policy,
            Arc::clone(&loaded.team),
        );
        session.set_kinds(self.policy.evict.images_of_file()?);
        Ok(session)
    }
}

/// A path as it is, any other name as that of a model in the cache.
pub(crate) fn path(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    Ok(ModelFolder::find(name)?.file(""))
}

/// How tokens are picked, and when the text ends.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How the text goes on")]
pub(crate) struct DecodeArgs {
    /// Tokens at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// How the next token is picked
    #[arg(long, value_name = "WAY", default_value = "sample")]
    decode: DecodeArg,
    /// Below 1 the likely becomes likelier; 0 always takes the likeliest token [default: 0.7]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw among the likeliest tokens that together have this probability [default: 0.95]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw among so many likeliest tokens; 0 means all [default: 0]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw among tokens with at least this share of the likeliest one's probability [default: 0]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that occurred less likely; 1 changes nothing [default: 1]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Contrastive search: how many candidates [default: 5]
    #[arg(short, long, value_name = "N")]
    k: Option<usize>,
    /// Contrastive search: weight of the penalty for saying the same again, 0 to 1 [default: 0.6]
    #[arg(long, value_name = "A")]
    alpha: Option<f32>,
    /// End before this text comes (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    ignore_end: bool,
}

/// How the next token is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DecodeArg {
    /// Drawn from the model's distribution
    Sample,
    /// The likeliest
    Greedy,
    /// Likely, and not a repetition of what was said (contrastive search)
    Contrastive,
}

impl DecodeArg {
    fn name(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Greedy => "greedy",
            Self::Contrastive => "contrastive",
        }
    }
}

impl DecodeArgs {
    /// Whether contrastive search picks, which needs the hidden states of the whole text.
    pub(crate) fn is_contrastive(&self) -> bool {
        self.decode == DecodeArg::Contrastive
    }

    /// Refuses settings that this way to pick tokens does not have.
    fn check(&self) -> anyhow::Result<()> {
        let (sample, contrastive) = (
            self.decode == DecodeArg::Sample,
            self.decode == DecodeArg::Contrastive,
        );
        let settings = [
            ("--temperature", self.temperature.is_some(), sample),
            ("--top-p", self.top_p.is_some(), sample),
            ("--top-k", self.top_k.is_some(), sample),
            ("--min-p", self.min_p.is_some(), sample),
            (
                "--repetition-penalty",
                self.repetition_penalty.is_some(),
                !contrastive,
            ),
            ("-k", self.k.is_some(), contrastive),
            ("--alpha", self.alpha.is_some(), contrastive),
        ];
        match settings.iter().find(|(_, given, used)| *given && !used) {
            Some((option, ..)) => Err(wrong_use(format!(
                "{option} does nothing with --decode {}; leave one of them out",
                self.decode.name()
            ))),
            None => Ok(()),
        }
    }

    /// The options of the library; `end_tokens` are those of the model.
    pub(crate) fn options(
        &self,
        end_tokens: &[u32],
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> anyhow::Result<GenerateOptions> {
        self.check()?;
        let usual = SamplingConfig::default();
        let sampling = SamplingConfig {
            temperature: self.temperature.unwrap_or(0.7),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(0.95),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            seed,
        };
        let contrastive = ContrastiveConfig::default();
        let decoding = match self.decode {
            DecodeArg::Sample => Decoding::Sample(sampling),
            DecodeArg::Greedy => Decoding::Sample(SamplingConfig {
                temperature: 0.0,
                ..sampling
            }),
            DecodeArg::Contrastive => Decoding::Contrastive(ContrastiveConfig {
                k: self.k.unwrap_or(contrastive.k),
                alpha: self.alpha.unwrap_or(contrastive.alpha),
            }),
        };
        let mut end_tokens = end_tokens.to_vec();
        end_tokens.extend_from_slice(tokenizer.eos());
        if self.ignore_end {
            end_tokens.clear();
        }
        Ok(GenerateOptions {
            max_tokens: self.max_tokens,
            decoding,
            stop: self.stop.clone(),
            end_tokens,
        })
    }
}
