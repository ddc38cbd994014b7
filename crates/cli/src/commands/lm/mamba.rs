//! Models that keep one state and no cache, and `--long`, which reads long prompts with them.

use std::path::Path;
use std::sync::Arc;

use keyfold_kernels::Team;
use keyfold_lm::mamba::long_mamba::{Aggregate, LongMamba, LongMambaConfig, Method};
use keyfold_lm::mamba::{MambaFile, MambaLm, MambaSession};

use crate::args::Globals;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// A model that is ready.
pub(crate) struct LoadedMamba {
    pub(crate) file: MambaFile,
    pub(crate) lm: Arc<MambaLm>,
    pub(crate) team: Arc<Team>,
}

impl LoadedMamba {
    pub(crate) fn open(path: &Path, globals: &Globals) -> anyhow::Result<Self> {
        let file = MambaFile::open(path)?;
        Ok(Self {
            lm: Arc::new(file.load()?),
            team: Arc::new(Team::new(globals.threads.map_or(0, usize::from))),
            file,
        })
    }

    /// An empty text.
    pub(crate) fn session(&self) -> MambaSession {
        MambaSession::new(Arc::clone(&self.lm), Arc::clone(&self.team))
    }
}

/// How a Mamba model reads prompts that are longer than what it was trained on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Long prompts of Mamba models (LongMamba)")]
pub(crate) struct LongArgs {
    /// Mamba: pass over tokens with small steps, so that what was read early is not
    /// forgotten; calibrated on the beginning of the prompt, or by the file that
    /// 'keyfold lm calibrate --long' wrote
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    long: Option<String>,
    /// --long: read a prompt that is longer than what the calibration has thresholds for, with
    /// those of its longest
    #[arg(long, requires = "long")]
    extrapolate: bool,
    /// --long: what heads with a long memory do to a prompt's steps, by the names of the authors'
    /// program; all but the first hold the whole prompt in memory at once
    #[arg(
        long,
        value_name = "NAME",
        default_value = "dt_thre",
        requires = "long"
    )]
    long_method: MethodArg,
    #[command(flatten)]
    settings: LongSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum MethodArg {
    /// Pass over those up to the calibration's threshold
    DtThre,
    /// Keep the share of largest ones that the calibration says
    Alpha,
    /// The same by the step at which this share ends
    Offline,
    /// Keep the largest ones that sum to no more than the calibration's
    Bound,
    /// Scale all so that they sum to the calibration's
    Norm,
    /// Keep as many of the largest as the calibration had tokens
    ChannelwiseTopk,
    /// Keep so many tokens, the same ones in all those heads
    AllTopk,
}

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::DtThre => Self::DtThre,
            MethodArg::Alpha => Self::Alpha,
            MethodArg::Offline => Self::Offline,
            MethodArg::Bound => Self::Bound,
            MethodArg::Norm => Self::Norm,
            MethodArg::ChannelwiseTopk => Self::ChannelwiseTopk,
            MethodArg::AllTopk => Self::AllTopk,
        }
    }
}

/// Settings of the calibration.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LongSettings {
    /// --long: tokens of the texts that the model was trained on [default: 2000]
    #[arg(long, value_name = "N")]
    trained: Option<usize>,
    /// --long: heads that keep more than this share of what they read over so many tokens
    /// are global, and pass over small steps [default: 0.05; 1e-30 of Mamba-1]
    #[arg(long, value_name = "X")]
    theta: Option<f32>,
    /// --long: percent of the largest steps that count as the least of them
    /// [default: 5; 20 of Mamba-1]
    #[arg(long, value_name = "PERCENT")]
    clamp: Option<f32>,
}

/// What a calibration by itself can be told besides.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WindowArgs {
    /// --long: windows of --trained tokens that the text is read in [default: 5]
    #[arg(long, value_name = "N", requires = "long")]
    windows: Option<usize>,
    /// --long: thresholds of the windows are their mean or the largest
    #[arg(long, value_name = "HOW", default_value = "avg", requires = "long")]
    agg: AggregateArg,
    /// --long: tell of every head how much it keeps over --trained tokens, not of layers alone
    #[arg(long, requires = "long")]
    heads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AggregateArg {
    Avg,
    Max,
}

impl WindowArgs {
    pub(crate) fn config(&self, base: LongMambaConfig) -> LongMambaConfig {
        LongMambaConfig {
            windows: self.windows.unwrap_or(base.windows),
            agg: match self.agg {
                AggregateArg::Avg => Aggregate::Avg,
                AggregateArg::Max => Aggregate::Max,
            },
            ..base
        }
    }

    /// Whether every head is told.
    pub(crate) fn heads(&self) -> bool {
        self.heads
    }
}

impl LongSettings {
    pub(crate) fn config(&self, lm: &MambaLm) -> LongMambaConfig {
        let base = LongMambaConfig::for_mixer(lm.config().mixer);
        LongMambaConfig {
            length: self.trained.unwrap_or(base.length),
            theta: self.theta.unwrap_or(base.theta),
            clamp: self.clamp.unwrap_or(base.clamp),
            ..base
        }
    }
}

impl LongArgs {
    /// Refuses `--long` for a model that it says nothing about.
    pub(crate) fn refuse(&self) -> anyhow::Result<()> {
        match self.long {
            None => Ok(()),
            Some(_) => Err(wrong_use(
                "--long reads long prompts with Mamba models; for a model with attention see --select act-qkv",
            )),
        }
    }

    /// What `--long` does to a prompt: tells the user, and gives what the session needs.
    pub(crate) fn build(
        &self,
        model: &LoadedMamba,
        prompt: &[u32],
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Arc<LongMamba>>> {
        let Some(file) = &self.long else {
            return Ok(None);
        };
        let long = if file.is_empty() {
            let config = LongMambaConfig {
                windows: 1,
                ..self.settings.config(&model.lm)
            };
            if let Some(why) = config.too_short(prompt.len()) {
                progress.say(&why);
                return Ok(None);
            }
            let session = || model.session();
            let begin = &prompt[..config.length];
            LongMamba::calibrate(&model.lm, config, &session, begin, progress)?
        } else {
            LongMamba::load(Path::new(file), &model.lm)?
        };
        long.check(prompt.len(), self.extrapolate)?;
        progress.say(&long.note(prompt.len()));
        Ok(Some(Arc::new(long.with_method(self.long_method.into()))))
    }
}
