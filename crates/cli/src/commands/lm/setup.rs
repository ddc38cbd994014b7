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
use keyfold_lm::model::Decoder;
use keyfold_lm::session::{Policy, Session};
use keyfold_lm::store::kvquant::Calibration;

use super::bases::LoadedBases;
use super::policy::PolicyArgs;
use crate::args::Globals;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// The model and how it reads.
#[derive(Debug, clap::Args)]
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
}

impl ModelArgs {
    /// Opens the model and says what is to be noted about it.
    pub(crate) fn load(
        &self,
        globals: &Globals,
        progress: &StderrProgress,
    ) -> anyhow::Result<Loaded> {
        let path = path(&self.model)?;
        let file = ModelFile::open(&path)?;
        file.notes().iter().for_each(|note| progress.say(note));
        let mut decoder = Decoder::load(&file)?;
        self.weights.put_into(&mut decoder, &path)?;
        let fold = self.weights == WeightsArg::Dense;
        let bases = self.policy.cache.bases(&mut decoder, &file, fold)?;
        let decoder = Arc::new(decoder);
        let team = Arc::new(Team::new(globals.threads.map_or(0, usize::from)));
        Ok(Loaded {
            file,
            decoder,
            bases,
            team,
            calibration: OnceCell::new(),
        })
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
    /// Below 1 the likely becomes likelier; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Draw among so many likeliest tokens; 0 means all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Draw among tokens with at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that occurred less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Contrastive search: how many candidates
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    k: usize,
    /// Contrastive search: weight of the penalty for saying the same again, 0 to 1
    #[arg(long, value_name = "A", default_value_t = 0.6)]
    alpha: f32,
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

impl DecodeArgs {
    /// The options of the library.
    pub(crate) fn options(
        &self,
        loaded: &Loaded,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> GenerateOptions {
        let sampling = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed,
        };
        let decoding = match self.decode {
            DecodeArg::Sample => Decoding::Sample(sampling),
            DecodeArg::Greedy => Decoding::Sample(SamplingConfig {
                temperature: 0.0,
                ..sampling
            }),
            DecodeArg::Contrastive => Decoding::Contrastive(ContrastiveConfig {
                k: self.k,
                alpha: self.alpha,
            }),
        };
        let mut end_tokens = loaded.decoder.config().eos_token_ids.clone();
        end_tokens.extend_from_slice(tokenizer.eos());
        if self.ignore_end {
            end_tokens.clear();
        }
        GenerateOptions {
            max_tokens: self.max_tokens,
            decoding,
            stop: self.stop.clone(),
            end_tokens,
        }
    }
}
