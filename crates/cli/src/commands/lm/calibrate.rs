//! `keyfold lm calibrate`: channels for `--select double-sparse`, thresholds and tables for
//! `--cache kvquant`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::{NoProgress, Progress};
use keyfold_lm::decoding::{Sampler, SamplingConfig};
use keyfold_lm::mamba::long_mamba::LongMamba;
use keyfold_lm::refusal::Refusal;
use keyfold_lm::select::rankings::{Calibration as Importance, Rankings};
use keyfold_lm::session::{AttentionInputs, Observer, Policy, Session};
use keyfold_lm::store::CacheType;
use keyfold_lm::store::kvquant::{
    Calibration, CalibrationConfig, KvQuantConfig, Statistics, model_hash,
};
use keyfold_lm::store::matryoshka::save;
use keyfold_lm::{LmError, SpecialTokens, trainable};
use serde_json::json;

use super::bases::BasesArgs;
use super::cache::CacheArg;
use super::mamba::{LongSettings, WindowArgs};
use super::setup::{AnyModel, Loaded, ModelArgs};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Tokens of a block of text, as the authors of Double Sparsity have it.
const BLOCK: usize = 512;

/// Of a block for bases, which depend on the positions that they were seen at.
const LONG_BLOCK: usize = 2048;

/// Blocks for channels, and for tables: those need all their numbers at once.
const BLOCKS: [usize; 2] = [64, 16];

/// Find out, on a text of yours, which channels of a model tell its keys apart, or how its
/// cache is best kept in few bits, or (--long) which small steps a Mamba model may pass over
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm calibrate --text notes.txt --model MODEL.gguf --out channels.json
  keyfold lm generate --prompt-file long.txt --model MODEL.gguf --select double-sparse --calib channels.json
  keyfold lm calibrate --cache kvquant --text notes.txt --model MODEL.gguf --out cache.safetensors
  keyfold lm chat --model MODEL.gguf --cache kvquant:3 --cache-calib cache.safetensors
  keyfold lm calibrate --long --text notes.txt --model mamba2-1.3b --out long.json
  keyfold lm calibrate --cache matryoshka --text notes.txt --model MODEL.gguf --out bases.safetensors
  keyfold lm chat --model MODEL.gguf --cache matryoshka:bases.safetensors

The file of channels has the layout that the authors of Double Sparsity publish. With --cache
kvquant the file has tables of 2, 3 and 4 bits; --outliers and --cache-sink count here already.")]
pub(super) struct CalibrateArgs {
    /// A text file; some tens of thousands of words are plenty
    #[arg(long, value_name = "FILE", required_unless_present = "convert")]
    text: Option<PathBuf>,
    /// kvquant: take the quantizers.pickle that the authors' program wrote; nothing in it is run
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    convert: Option<PathBuf>,
    /// kvquant: weigh every number by how much the text depends on it (Fisher information), for
    /// which the model is read backwards as well: many times as slow
    #[arg(long, conflicts_with = "convert")]
    fisher: bool,
    /// Blocks of 512 tokens at most [default: 64, for kvquant 16]
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,
    /// Where the result is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Mamba: find out how large a step each head may pass over on long prompts, for
    /// 'keyfold lm generate --long=FILE'
    #[arg(long)]
    long: bool,
    #[command(flatten)]
    settings: LongSettings,
    #[command(flatten)]
    windows: WindowArgs,
    #[command(flatten)]
    bases: BasesArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Hands what attention sees to the calibration.
struct Feed<'a>(&'a mut Importance);

impl Observer for Feed<'_> {
    fn attention(&mut self, seen: &AttentionInputs) {
        self.0.add(
            seen.layer,
            seen.queries_before,
            seen.keys_before,
            seen.queries,
            seen.keys,
        );
    }
}

/// Hands what attention sees to the statistics of a cache.
struct CacheFeed<'a> {
    statistics: &'a mut Statistics,
    failed: Option<Refusal>,
}

impl Observer for CacheFeed<'_> {
    fn attention(&mut self, seen: &AttentionInputs) {
        let (keys, values) = (seen.keys_before, seen.values);
        let noted = self
            .statistics
            .observe(seen.layer, keys, values, None, None);
        if let Err(error) = noted {
            self.failed.get_or_insert(error);
        }
    }
}

pub(super) fn run(args: &CalibrateArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    if args.long {
        return long(args, globals, &progress);
    }
    let bits = match args.model.policy.cache.cache {
        CacheArg::KvQuant { bits } => Some(bits),
        CacheArg::Dense(_) | CacheArg::Matryoshka(_) => None,
    };
    if args.fisher && bits.is_none() {
        return Err(wrong_use(
            "--fisher belongs to --cache kvquant; give both, or leave it out",
        ));
    }
    if matches!(
        &args.model.policy.cache.cache,
        CacheArg::Matryoshka(Some(_))
    ) {
        return Err(wrong_use(
            "the model would be read with the bases of that file while others are made; leave out :FILE, or give it \
             as --bases FILE to share out ranks for them",
        ));
    }
    let Some(path) = &args.text else {
        return convert(args, bits, globals, &progress);
    };
    let text = std::fs::read(path)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let text = String::from_utf8_lossy(&text);
    let loaded = match args.model.policy.cache.cache {
        CacheArg::Matryoshka(_) => {
            let heads = |file| args.bases.fitting(file, &progress);
            args.model.load_with(globals, &progress, heads)?
        }
        _ => args.model.load(globals, &progress)?,
    };
    let tokens = loaded
        .file
        .tokenizer()?
        .encode(&text, SpecialTokens::Plain)?;
    if tokens.is_empty() {
        return Err(wrong_use(format!(
            "{} is empty; give a text",
            path.display()
        )));
    }
    if matches!(args.model.policy.cache.cache, CacheArg::Matryoshka(_)) {
        return bases(args, globals, &loaded, &tokens, &progress);
    }
    let most = args.blocks.unwrap_or(BLOCKS[usize::from(bits.is_some())]);
    let blocks: Vec<&[u32]> = tokens.chunks(BLOCK).take(most).collect();
    let counted = match bits {
        Some(bits) => {
            let config = args.model.policy.cache.kvquant(bits);
            let made = match args.fisher {
                true => cache_by_gradients(&loaded, &config, &blocks, &progress)?,
                false => cache(&loaded, &config, &blocks, &progress)?,
            };
            let Some(calibration) = made else {
                return Ok(Outcome::Interrupted);
            };
            calibration.save(&args.out)?;
            calibration.tokens
        }
        None => {
            let Some(calibration) = channels(&loaded, &blocks, &progress)? else {
                return Ok(Outcome::Interrupted);
            };
            as_published(&loaded, calibration.rankings()).save(&args.out)?;
            calibration.tokens()
        }
    };
    let what = match bits {
        Some(_) => "thresholds and tables from",
        None => "channels ranked on",
    };
    tell(args, globals, what, counted)
}

/// Bases and ranks of a cache.
fn bases(
    args: &CalibrateArgs,
    globals: &Globals,
    loaded: &Loaded,
    tokens: &[u32],
    progress: &StderrProgress,
) -> anyhow::Result<Outcome> {
    let keep = args.model.policy.cache.cache_keep;
    let limit = loaded.decoder.config().context_limit();
    let length = LONG_BLOCK.min(limit.unwrap_or(LONG_BLOCK));
    let blocks = tokens.chunks(length).take(args.blocks.unwrap_or(8));
    let blocks: Vec<&[u32]> = blocks.collect();
    let counted: usize = blocks.iter().map(|b| b.len()).sum();
    let (bases, ranks) = args
        .bases
        .calibrate(loaded, tokens, &blocks, keep, progress)?;
    save(&args.out, &loaded.decoder, &bases, &ranks)?;
    let kept = ranks.kept(&loaded.decoder.config().dims);
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(
            out,
            "{}",
            json!({ "tokens": counted, "file": args.out, "kept": kept, "ranks": ranks })
        )?;
    } else {
        writeln!(
            out,
            "{}: bases from {counted} tokens, ranks that keep {:.1} % of the numbers",
            args.out.display(),
            100.0 * kept
        )?;
    }
    Ok(Outcome::Done)
}

fn tell(
    args: &CalibrateArgs,
    globals: &Globals,
    what: &str,
    tokens: u64,
) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", json!({ "tokens": tokens, "file": args.out }))?;
    } else {
        writeln!(out, "{}: {what} {tokens} tokens", args.out.display())?;
    }
    Ok(Outcome::Done)
}

/// Takes what the authors' program wrote, for the model that is named.
fn convert(
    args: &CalibrateArgs,
    bits: Option<u8>,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<Outcome> {
    let (Some(path), Some(_)) = (&args.convert, bits) else {
        return Err(wrong_use(
            "--convert belongs to --cache kvquant; give both, or --text",
        ));
    };
    let threshold = args.model.policy.cache.kvquant(3).sparsity_threshold;
    let mut calibration = Calibration::from_pickle(path, threshold)?;
    let loaded = args.model.load(globals, progress)?;
    calibration.check_sizes(&loaded.decoder.config().dims)?;
    calibration.model = Some(model_hash(&loaded.file)?);
    calibration.save(&args.out)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{}", json!({ "converted": path, "file": args.out }))?;
    } else {
        writeln!(out, "{}: taken from {}", args.out.display(), path.display())?;
    }
    Ok(Outcome::Done)
}

/// `--long`: thresholds of LongMamba.
fn long(
    args: &CalibrateArgs,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<Outcome> {
    let Some(path) = &args.text else {
        return Err(wrong_use(
            "--long is calibrated on a text: give --text FILE",
        ));
    };
    let text = std::fs::read(path)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let AnyModel::Mamba(model) = args.model.open(globals, progress)? else {
        return Err(wrong_use(
            "--long calibrates Mamba models; this one has attention: leave --long out",
        ));
    };
    let text = String::from_utf8_lossy(&text);
    let tokens = model
        .file
        .tokenizer()?
        .encode(&text, SpecialTokens::Plain)?;
    let config = args.windows.config(args.settings.config(&model.lm));
    let session = || model.session();
    let made = LongMamba::calibrate(&model.lm, config, &session, &tokens, progress)?;
    made.save(&args.out)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let layers: Vec<_> = (0..made.layers().len())
            .map(|l| {
                let layer = &made.layers()[l];
                let mut value =
                    json!({ "layer": l, "heads": layer.kept.len(), "global": made.global(l) });
                if args.windows.heads() {
                    value["kept"] = json!(layer.kept);
                    value["steps"] = json!(layer.decay);
                }
                value
            })
            .collect();
        let whole = json!({ "file": args.out, "config": made.config(), "layers": layers });
        writeln!(out, "{whole}")?;
        return Ok(Outcome::Done);
    }
    if args.windows.heads() {
        return tell_heads(&made, &mut out);
    }
    writeln!(out, "{:>5} {:>6} {:>7}", "layer", "heads", "global")?;
    for (l, layer) in made.layers().iter().enumerate() {
        writeln!(out, "{l:>5} {:>6} {:>7}", layer.kept.len(), made.global(l))?;
    }
    Ok(Outcome::Done)
}

/// What every head keeps over the length of training, and the sum of its steps.
fn tell_heads(made: &LongMamba, out: &mut impl Write) -> anyhow::Result<Outcome> {
    let [layer, head, kept, steps] = ["layer", "head", "kept", "steps"];
    writeln!(out, "{layer:>5} {head:>6} {kept:>10} {steps:>10}")?;
    for (l, layer) in made.layers().iter().enumerate() {
        for (head, (kept, steps)) in layer.kept.iter().zip(&layer.decay).enumerate() {
            let kind = match made.is_global(l, head) {
                true => "global",
                false => "local",
            };
            writeln!(out, "{l:>5} {head:>6} {kept:>10.3e} {steps:>10.3} {kind}")?;
        }
    }
    Ok(Outcome::Done)
}

/// Channels, by the importance that they have in a text. None where the user stopped it.
fn channels(
    loaded: &Loaded,
    blocks: &[&[u32]],
    progress: &StderrProgress,
) -> anyhow::Result<Option<Importance>> {
    let mut calibration = Importance::new(loaded.decoder.config().dims);
    let done = read_blocks(loaded, blocks, progress, |session, block| {
        session.observe(block, &NoProgress, &mut Feed(&mut calibration))?;
        Ok(())
    })?;
    Ok(done.then_some(calibration))
}

/// Thresholds and tables of a cache, from a text. None where the user stopped it.
fn cache(
    loaded: &Loaded,
    config: &KvQuantConfig,
    blocks: &[&[u32]],
    progress: &StderrProgress,
) -> anyhow::Result<Option<Calibration>> {
    let mut statistics = statistics(loaded, config);
    let done = read_blocks(loaded, blocks, progress, |session, block| {
        statistics.begin_sequence();
        let mut feed = CacheFeed {
            statistics: &mut statistics,
            failed: None,
        };
        session.observe(block, &NoProgress, &mut feed)?;
        feed.failed.map_or(Ok(()), |error| Err(error.into()))
    })?;
    if !done {
        return Ok(None);
    }
    tables(loaded, config, &statistics).map(Some)
}

/// The same where every key and value counts by the square of the loss's gradient in it.
fn cache_by_gradients(
    loaded: &Loaded,
    config: &KvQuantConfig,
    blocks: &[&[u32]],
    progress: &StderrProgress,
) -> anyhow::Result<Option<Calibration>> {
    let model = trainable::load(&loaded.file, BLOCK, &trainable::device())?;
    let mut statistics = statistics(loaded, config);
    progress.start("reading the text", "blocks", Some(blocks.len() as u64));
    // One token foresees nothing.
    for block in blocks.iter().filter(|block| block.len() > 1) {
        if progress.cancelled() {
            progress.finish();
            return Ok(None);
        }
        statistics.begin_sequence();
        for (layer, seen) in trainable::cache_gradients(&model, block).iter().enumerate() {
            let [of_keys, of_values] = [&seen.key_gradients, &seen.value_gradients]
                .map(|g| g.iter().map(|g| g * g).collect::<Vec<f32>>());
            statistics.observe(
                layer,
                &seen.keys,
                &seen.values,
                Some(&of_keys),
                Some(&of_values),
            )?;
        }
        progress.advance(1);
    }
    progress.finish();
    tables(loaded, config, &statistics).map(Some)
}

fn statistics(loaded: &Loaded, config: &KvQuantConfig) -> Statistics {
    let model = loaded.decoder.config();
    let interleaved = model.rope().is_some_and(|rope| rope.interleaved);
    Statistics::new(model.dims, config.first_few_fp16, interleaved)
}

fn tables(
    loaded: &Loaded,
    config: &KvQuantConfig,
    statistics: &Statistics,
) -> anyhow::Result<Calibration> {
    let made = CalibrationConfig {
        sparsity_threshold: config.sparsity_threshold,
        ..CalibrationConfig::default()
    };
    let hash = model_hash(&loaded.file)?;
    Ok(statistics.calibrate(&made, Some(hash), &loaded.team)?)
}

/// Reads blocks of a text, each by itself. False where the user stopped it.
fn read_blocks(
    loaded: &Loaded,
    blocks: &[&[u32]],
    progress: &StderrProgress,
    mut read: impl FnMut(&mut Session, &[u32]) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    progress.start("reading the text", "blocks", Some(blocks.len() as u64));
    for block in blocks {
        if progress.cancelled() {
            progress.finish();
            return Ok(false);
        }
        let policy = Policy::dense(&loaded.decoder, CacheType::F16, block.len())?;
        let mut session = Session::new(loaded.decoder.clone(), policy, loaded.team.clone());
        read(&mut session, block)?;
        progress.advance(1);
    }
    progress.finish();
    Ok(true)
}

/// The numbers of channels as Hugging Face's weights have them.
fn as_published(loaded: &Loaded, rankings: Rankings) -> Rankings {
    let config = loaded.decoder.config();
    match config.rope().is_some_and(|rope| rope.interleaved) {
        true => rankings.half_rotated(config.dims.head_dim),
        false => rankings,
    }
}

/// A ranking on a text that the model writes itself: it has the statistics of what the model
/// expects, and needs no file.
pub(super) fn by_own_text(loaded: &Loaded, progress: &StderrProgress) -> anyhow::Result<Rankings> {
    let text = own_text(loaded, progress)?;
    let ranked = channels(loaded, &[&text], progress)?;
    Ok(ranked.ok_or(LmError::Stopped)?.rankings())
}

/// Thresholds and tables on a text that the model writes itself.
pub(super) fn cache_by_own_text(
    loaded: &Loaded,
    config: &KvQuantConfig,
    progress: &StderrProgress,
) -> anyhow::Result<Calibration> {
    let text = own_text(loaded, progress)?;
    Ok(cache(loaded, config, &[&text], progress)?.ok_or(LmError::Stopped)?)
}

/// A text that the model writes from nothing.
fn own_text(loaded: &Loaded, progress: &StderrProgress) -> anyhow::Result<Vec<u32>> {
    let config = loaded.decoder.config();
    let length = BLOCK.min(config.context_limit().unwrap_or(BLOCK));
    let policy = Policy::dense(&loaded.decoder, CacheType::F16, length)?;
    let mut session = Session::new(loaded.decoder.clone(), policy, loaded.team.clone());
    let mut sampler = Sampler::new(SamplingConfig::default())?;
    progress.start(
        "calibrating on a text of the model's own",
        "tokens",
        Some(length as u64),
    );
    session.prefill(&[config.bos_token_id.unwrap_or(0)], &NoProgress)?;
    while session.tokens().len() < length && !progress.cancelled() {
        let (logits, context) = session.logits_and_tokens();
        let token = sampler.next(logits, context);
        session.step(token)?;
        progress.advance(1);
    }
    progress.finish();
    Ok(session.tokens().to_vec())
}
