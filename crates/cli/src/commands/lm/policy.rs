//! Which rows are kept and read: `--select`, `--prefill` and their settings; with those of
//! `--cache` and `--evict`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use clap::ValueEnum;
use keyfold_core::block_mask::{BlockMask, Pattern};
use keyfold_lm::block_mask::{DenseLayers, PowerConfig};
use keyfold_lm::config::rope_frequencies;
use keyfold_lm::prefill::Layers;
use keyfold_lm::prefill::hyper::{HyperConfig, HyperPrefill};
use keyfold_lm::prefill::power::PowerPrefill;
use keyfold_lm::roles::{Prefill, Selector};
use keyfold_lm::select::Budget;
use keyfold_lm::select::act_qkv::{ActQkv, ActQkvConfig, Rotary};
use keyfold_lm::select::double_sparsity::{DoubleSparsity, DoubleSparsityConfig};
use keyfold_lm::select::power::PowerSelect;
use keyfold_lm::select::rankings::Rankings;
use keyfold_lm::select::tidal::{Tidal, TidalConfig};
use keyfold_lm::session::Policy;
use keyfold_lm::store::CacheType;

use super::cache::CacheArgs;
use super::calibrate;
use super::evict::EvictArgs;
use super::setup::Loaded;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// Distance of the blocks of `--pattern stride-slash`, in blocks.
const STRIDE: usize = 32;

/// How a context is kept and read.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "How the context is kept and read")]
pub(crate) struct PolicyArgs {
    #[command(flatten)]
    pub(super) cache: CacheArgs,
    #[command(flatten)]
    pub(super) evict: EvictArgs,
    /// Which cached tokens a written token reads
    #[arg(long, value_name = "METHOD", default_value = "none")]
    select: SelectArg,
    /// How a prompt is read
    #[arg(long, value_name = "METHOD", default_value = "dense")]
    prefill: PrefillArg,
    /// double-sparse, tidal: how many tokens are read, or a share like 1/16 [default: 256]
    #[arg(long, value_name = "N|1/N")]
    tokens: Option<Budget>,
    /// double-sparse: channels of a label, of each head
    #[arg(long, value_name = "N")]
    channels: Option<usize>,
    /// double-sparse: bits of a label's number
    #[arg(long, value_name = "4|16")]
    label_bits: Option<u8>,
    /// double-sparse: the file that 'keyfold lm calibrate' wrote; auto lets the model write a
    /// text and takes that
    #[arg(long, value_name = "FILE|auto", default_value = "auto")]
    calib: PathBuf,
    /// double-sparse, tidal: so many layers at the bottom read everything; power: these layers
    /// (0,1,7) or this share of them (2/7)
    #[arg(long, value_name = "N|LAYERS")]
    dense_layers: Option<String>,
    /// tidal: layers that choose anew
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    reselect: Option<Vec<usize>>,
    /// tidal: read the last N tokens again with everything, every N tokens
    #[arg(long, value_name = "N")]
    correct_every: Option<usize>,
    /// act-qkv, power, hyper: tokens of a block
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// act-qkv: first tokens that are always read
    #[arg(long, value_name = "N")]
    init: Option<usize>,
    /// act-qkv: newest tokens that are always read
    #[arg(long, value_name = "N")]
    local: Option<usize>,
    /// act-qkv: blocks that are read, of each layer on average
    #[arg(long, value_name = "N")]
    topk: Option<usize>,
    /// act-qkv: keys that stand for a block
    #[arg(long, value_name = "N")]
    repr: Option<usize>,
    /// act-qkv: newest queries that look up together, at most --local [default: 256]
    #[arg(long, value_name = "N")]
    chunk: Option<usize>,
    /// act-qkv: tokens A to B of the prompt, B not among them, are its question, which guides
    /// what is looked up while the prompt is read
    #[arg(long, value_name = "A:B")]
    question_span: Option<TokenSpan>,
    /// power: newest blocks that are read
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// power: first blocks that are read
    #[arg(long, value_name = "N")]
    sink: Option<usize>,
    /// power: which blocks are read
    #[arg(long, value_name = "PATTERN", default_value = "power")]
    pattern: PatternArg,
    /// hyper: in which layers (all, last:12, first:4, odd, even)
    #[arg(long, value_name = "LAYERS")]
    layers: Option<Layers>,
    /// hyper: keys that are drawn for all queries
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// hyper: bits of the hash
    #[arg(long, value_name = "N")]
    proj: Option<usize>,
    /// hyper: shorter texts are read exactly
    #[arg(long, value_name = "N")]
    min_len: Option<usize>,
    /// Settings may be of methods that are not chosen (a grid chooses many).
    #[arg(skip)]
    settings_of_any: bool,
}

/// Tokens of a prompt from the first to before the second place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TokenSpan {
    from: u32,
    to: u32,
}

impl FromStr for TokenSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let both = text.split_once(':');
        let both = both.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        match both {
            Some((from, to)) if from < to => Ok(Self { from, to }),
            _ => Err("choose two places, the first before the second: 120:140".to_owned()),
        }
    }
}

/// Which cached tokens a written token reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SelectArg {
    /// All
    None,
    /// Those whose few most telling channels fit (Double Sparsity)
    DoubleSparse,
    /// Those that two layers found, for all layers (TidalDecode)
    Tidal,
    /// Blocks that a probe of the newest queries finds; goes beyond the model's context (ActQKV)
    ActQkv,
    /// Blocks at distances of powers of two (PowerAttention)
    Power,
}

/// How a prompt is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrefillArg {
    /// Every token sees every token before it
    Dense,
    /// Blocks at distances of powers of two (PowerAttention)
    Power,
    /// Keys that fall together with a query, and a sample (HyperAttention)
    Hyper,
    /// As --select act-qkv, which must be given
    ActQkv,
}

/// Which blocks PowerAttention and its baselines read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PatternArg {
    /// At distances of powers of two
    Power,
    /// The newest
    Window,
    /// At distances of a multiple
    StrideSlash,
    /// Every second of the newest
    Dilated,
    /// Those of LongNet's segments
    LongNet,
}

impl PolicyArgs {
    /// The same with other methods, named as the options do.
    pub(super) fn with(&self, cache: &str, select: &str, evict: &str) -> anyhow::Result<Self> {
        let mut new = self.clone();
        new.cache.cache = cache.parse().map_err(wrong_use)?;
        new.select = SelectArg::from_str(select, false).map_err(wrong_use)?;
        new.evict = self.evict.with(evict)?;
        new.settings_of_any = true;
        Ok(new)
    }

    /// The roles that the options name, for texts of up to `context` tokens.
    pub(crate) fn build(
        &self,
        loaded: &Loaded,
        context: usize,
        progress: &StderrProgress,
    ) -> anyhow::Result<Policy> {
        self.check(loaded)?;
        if self.select == SelectArg::ActQkv {
            return self.act_qkv(loaded, progress);
        }
        let limit = loaded
            .decoder
            .config()
            .context_limit()
            .unwrap_or(usize::MAX);
        let mut policy = match self.cache.store(loaded, progress)? {
            Some(store) => Policy::of(&loaded.decoder, store),
            None => {
                let kind = self.cache.dense().unwrap_or_default();
                Policy::dense(&loaded.decoder, kind, context.min(limit))?
            }
        };
        let Policy::Roles {
            selector,
            evictor,
            prefill,
            ..
        } = &mut policy
        else {
            return Ok(policy);
        };
        *evictor = self.evict.evictor(loaded, progress)?;
        *selector = self.selector(loaded, progress)?;
        if let Some(other) = self.prefill(loaded, progress)? {
            *prefill = other;
        }
        Ok(policy)
    }

    /// Refuses a question that lies outside of a prompt.
    pub(super) fn check_question(&self, prompt: usize) -> anyhow::Result<()> {
        match self.question_span {
            Some(span) if span.to as usize > prompt => Err(wrong_use(format!(
                "--question-span {}:{} lies not within the {prompt} tokens of the prompt",
                span.from, span.to
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses what says how a cache is kept and read, for a model that has none.
    pub(crate) fn refuse_for_mamba(&self, folded_weights: bool) -> anyhow::Result<()> {
        let plain = self.select == SelectArg::None
            && self.prefill == PrefillArg::Dense
            && self.cache.dense() == Some(CacheType::F16)
            && !self.evict.any()
            && self.question_span.is_none()
            && !folded_weights;
        match plain {
            true => Ok(()),
            false => Err(wrong_use(
                "a Mamba model keeps one state and no cache, so that --cache, --select, --question-span, --evict, \
                 --prefill and --weights mean nothing to it; leave them out (for long prompts there is --long)",
            )),
        }
    }

    /// Every setting of a method: its option, whether it was given, and whether a chosen method
    /// has it.
    fn settings(&self) -> [(&'static str, bool, bool); 20] {
        let selects = |one: SelectArg| self.select == one;
        let (sparse, tidal, act_qkv) = (
            selects(SelectArg::DoubleSparse),
            selects(SelectArg::Tidal),
            selects(SelectArg::ActQkv),
        );
        let power = selects(SelectArg::Power) || self.prefill == PrefillArg::Power;
        let hyper = self.prefill == PrefillArg::Hyper;
        [
            ("--tokens", self.tokens.is_some(), sparse || tidal),
            ("--channels", self.channels.is_some(), sparse),
            ("--label-bits", self.label_bits.is_some(), sparse),
            ("--calib", !self.calib_is_auto(), sparse),
            (
                "--dense-layers",
                self.dense_layers.is_some(),
                sparse || tidal || power,
            ),
            ("--reselect", self.reselect.is_some(), tidal),
            ("--correct-every", self.correct_every.is_some(), tidal),
            ("--block", self.block.is_some(), act_qkv || power || hyper),
            ("--init", self.init.is_some(), act_qkv),
            ("--local", self.local.is_some(), act_qkv),
            ("--topk", self.topk.is_some(), act_qkv),
            ("--repr", self.repr.is_some(), act_qkv),
            ("--chunk", self.chunk.is_some(), act_qkv),
            ("--window", self.window.is_some(), power),
            ("--sink", self.sink.is_some(), power),
            ("--pattern", self.pattern != PatternArg::Power, power),
            ("--layers", self.layers.is_some(), hyper),
            ("--sample", self.sample.is_some(), hyper),
            ("--proj", self.proj.is_some(), hyper),
            ("--min-len", self.min_len.is_some(), hyper),
        ]
    }

    /// Refuses settings that would do nothing.
    fn check_settings(&self) -> anyhow::Result<()> {
        let idle = |&(_, given, used): &(_, bool, bool)| given && !used;
        match self.settings().iter().find(|setting| idle(setting)) {
            Some((option, ..)) if !self.settings_of_any => Err(wrong_use(format!(
                "{option} belongs to no method that is chosen; its help names the --select or --prefill that it \
                 is for: choose that, or leave {option} out"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses what does not go together.
    fn check(&self, loaded: &Loaded) -> anyhow::Result<()> {
        self.check_settings()?;
        let act_qkv = self.select == SelectArg::ActQkv;
        let windows = &loaded.decoder.config().sliding_window;
        if (act_qkv || self.prefill != PrefillArg::Dense) && windows.iter().any(Option::is_some) {
            return Err(wrong_use(
                "layers of this model see a sliding window, which --select act-qkv and --prefill power and \
                 hyper do not keep to; leave them out",
            ));
        }
        if act_qkv && !matches!(self.prefill, PrefillArg::Dense | PrefillArg::ActQkv) {
            return Err(wrong_use(
                "--select act-qkv reads prompts in its own way; leave out --prefill, or choose another --select",
            ));
        }
        if !act_qkv && self.prefill == PrefillArg::ActQkv {
            return Err(wrong_use(
                "--prefill act-qkv keeps blocks that only --select act-qkv can read; give both, or neither",
            ));
        }
        if !act_qkv && self.question_span.is_some() {
            return Err(wrong_use(
                "--question-span guides what --select act-qkv looks up; give both, or neither",
            ));
        }
        if act_qkv && self.evict.any() {
            return Err(wrong_use(
                "--select act-qkv says itself which rows are kept; leave out --evict",
            ));
        }
        Ok(())
    }

    fn selector(
        &self,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Box<dyn Selector>>> {
        let dims = loaded.decoder.config().dims;
        Ok(match self.select {
            SelectArg::None | SelectArg::ActQkv => None,
            SelectArg::DoubleSparse => {
                let mut config = DoubleSparsityConfig::default();
                config.heavy_const = self.tokens.unwrap_or(config.heavy_const);
                config.channels = self.channels.or(config.channels);
                config.label_bits = self.label_bits.unwrap_or(config.label_bits);
                config.dense_layers = self.dense_count()?.unwrap_or(config.dense_layers);
                if let Some(found) = loaded.bases.as_ref().filter(|_| self.calib_is_auto()) {
                    // The leading numbers of a row tell most of it.
                    let made = DoubleSparsity::with_bases(config, dims, &found.bases)?;
                    return Ok(Some(Box::new(made)));
                }
                let rankings = self.rankings(loaded, progress)?;
                let made = DoubleSparsity::new(config, dims, &rankings);
                let from = || {
                    format!(
                        "cannot use the channels of --calib {}",
                        self.calib.display()
                    )
                };
                Some(Box::new(made.with_context(from)?))
            }
            SelectArg::Tidal => {
                let mut config = TidalConfig::for_layers(dims.layers);
                config.top_k = self.tokens.unwrap_or(config.top_k);
                config.sparse_layer_start =
                    self.dense_count()?.unwrap_or(config.sparse_layer_start);
                config.correction_layers =
                    self.reselect.clone().unwrap_or(config.correction_layers);
                config.correct_every = self.correct_every;
                let tidal = Tidal::new(config, dims)?;
                tidal.notices(0).iter().for_each(|n| progress.say(n));
                Some(Box::new(tidal))
            }
            SelectArg::Power => {
                let select = PowerSelect::new(self.power(loaded)?, dims)?;
                select.notices().iter().for_each(|n| progress.say(n));
                Some(Box::new(select))
            }
        })
    }

    fn prefill(
        &self,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Box<dyn Prefill>>> {
        let dims = loaded.decoder.config().dims;
        Ok(match self.prefill {
            PrefillArg::Dense | PrefillArg::ActQkv => None,
            PrefillArg::Power => {
                let prefill = PowerPrefill::new(self.power(loaded)?, dims)?;
                if self.select != SelectArg::Power {
                    prefill.notices().iter().for_each(|n| progress.say(n));
                }
                Some(Box::new(prefill))
            }
            PrefillArg::Hyper => {
                let mut config = HyperConfig {
                    seed: loaded.seed,
                    ..HyperConfig::default()
                };
                config.block_size = self.block.unwrap_or(config.block_size);
                config.sample_size = self.sample.unwrap_or(config.sample_size);
                config.lsh_num_projs = self.proj.unwrap_or(config.lsh_num_projs);
                config.min_seq_len = self.min_len.unwrap_or(config.min_seq_len);
                config.layers = self.layers.unwrap_or(config.layers);
                Some(Box::new(HyperPrefill::new(config, dims)?))
            }
        })
    }

    /// The mask that the model was trained on, or the paper's, with what the user sets.
    fn power(&self, loaded: &Loaded) -> anyhow::Result<PowerConfig> {
        let trained = loaded.decoder.config().block_mask.as_ref();
        let mut mask = match self.pattern {
            PatternArg::Power => trained.cloned().unwrap_or_default(),
            PatternArg::Window => BlockMask::baseline(Pattern::Window),
            PatternArg::StrideSlash => BlockMask::baseline(Pattern::StrideSlash(STRIDE)),
            PatternArg::Dilated => BlockMask::baseline(Pattern::Dilated),
            PatternArg::LongNet => BlockMask::baseline(Pattern::LongNet),
        };
        mask.block = self.block.unwrap_or(mask.block);
        mask.window = self.window.unwrap_or(mask.window);
        mask.sink = self.sink.unwrap_or(mask.sink);
        let adapted = trained == Some(&mask);
        let mut config = PowerConfig {
            adapted,
            ..PowerConfig::from(mask)
        };
        if let Some(layers) = &self.dense_layers {
            config.dense_layers = layers.parse::<DenseLayers>()?;
        }
        Ok(config)
    }

    fn act_qkv(&self, loaded: &Loaded, progress: &StderrProgress) -> anyhow::Result<Policy> {
        let config = loaded.decoder.config();
        let (inv_freq, scale) = rope_frequencies(config, config.max_position_embeddings);
        if config
            .rope()
            .is_none_or(|rope| rope.layers.contains(&false))
        {
            return Err(wrong_use(
                "--select act-qkv moves tokens by rotary positions, which some layers of this model do not \
                 have; choose another --select",
            ));
        }
        let mut act = ActQkvConfig::default();
        act.block_size = self.block.unwrap_or(act.block_size);
        act.n_init = self.init.unwrap_or(act.n_init);
        act.n_local = self.local.unwrap_or(act.n_local);
        act.topk = self.topk.unwrap_or(act.topk);
        act.repr_topk = self.repr.unwrap_or(act.repr_topk);
        act.exc_block_size = self.chunk.unwrap_or(act.exc_block_size.min(act.n_local));
        let interleaved = config.rope().is_some_and(|rope| rope.interleaved);
        let rotary = Rotary {
            inv_freq,
            scale,
            interleaved,
        };
        let store = self.cache.unrotated_store(loaded, progress)?;
        let mut act = ActQkv::with_store(act, config.dims, rotary, store)?;
        if let Some(TokenSpan { from, to }) = self.question_span {
            act.set_question(from, to, to)?;
        }
        Ok(Policy::Whole(Box::new(act)))
    }

    /// `--dense-layers` as a number of layers at the bottom.
    fn dense_count(&self) -> anyhow::Result<Option<usize>> {
        let Some(text) = &self.dense_layers else {
            return Ok(None);
        };
        let count = text.parse().map_err(|_| {
            wrong_use(format!(
                "--dense-layers {text} is no number of layers; this --select takes one, like 2"
            ))
        })?;
        Ok(Some(count))
    }

    fn calib_is_auto(&self) -> bool {
        self.calib.as_os_str() == "auto"
    }

    fn rankings(&self, loaded: &Loaded, progress: &StderrProgress) -> anyhow::Result<Rankings> {
        let config = loaded.decoder.config();
        if self.calib_is_auto() {
            return calibrate::by_own_text(loaded, progress);
        }
        let rankings = Rankings::load(&self.calib)?;
        // Files number channels as Hugging Face's weights have them.
        let interleaved = config.rope().is_some_and(|rope| rope.interleaved);
        Ok(if interleaved {
            rankings.interleaved(config.dims.head_dim)
        } else {
            rankings
        })
    }
}
