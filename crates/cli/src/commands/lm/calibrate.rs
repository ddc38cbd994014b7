//! `keyfold lm calibrate`.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::{NoProgress, Progress};
use keyfold_lm::SpecialTokens;
use keyfold_lm::decoding::{Sampler, SamplingConfig};
use keyfold_lm::select::rankings::{Calibration, Rankings};
use keyfold_lm::session::{AttentionInputs, Observer, Policy, Session};
use keyfold_lm::store::CacheType;
use serde_json::json;

use super::setup::{Loaded, ModelArgs};
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Tokens of a block of text, as the authors of Double Sparsity have it.
const BLOCK: usize = 512;

/// Find out, on a text of yours, which channels of a model tell its keys apart
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm calibrate --text notes.txt --model MODEL.gguf --out channels.json
  keyfold lm generate --prompt-file long.txt --model MODEL.gguf --select double-sparse --calib channels.json

The file has the layout that the authors of Double Sparsity publish.")]
pub(super) struct CalibrateArgs {
    /// A text file; some tens of thousands of words are plenty
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Blocks of 512 tokens at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    blocks: usize,
    /// Where the ranking of channels is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// Hands what attention sees to the calibration.
struct Feed<'a>(&'a mut Calibration);

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

pub(super) fn run(args: &CalibrateArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let text = std::fs::read(&args.text)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", args.text.display())))?;
    let text = String::from_utf8_lossy(&text);
    let progress = StderrProgress::new(globals.quiet, 20);
    let loaded = args.model.load(globals, &progress)?;
    let tokens = loaded
        .file
        .tokenizer()?
        .encode(&text, SpecialTokens::Plain)?;
    if tokens.is_empty() {
        return Err(wrong_use(format!(
            "{} is empty; give a text",
            args.text.display()
        )));
    }
    let mut calibration = Calibration::new(loaded.decoder.config().dims);
    let blocks: Vec<&[u32]> = tokens.chunks(BLOCK).take(args.blocks).collect();
    progress.start("reading the text", "blocks", Some(blocks.len() as u64));
    for block in &blocks {
        if progress.cancelled() {
            progress.finish();
            return Ok(Outcome::Interrupted);
        }
        observe(&loaded, block, &mut calibration)?;
        progress.advance(1);
    }
    progress.finish();
    as_published(&loaded, calibration.rankings()).save(&args.out)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(
            out,
            "{}",
            json!({ "tokens": calibration.tokens(), "file": args.out })
        )?;
    } else {
        writeln!(
            out,
            "{}: channels ranked on {} tokens",
            args.out.display(),
            calibration.tokens()
        )?;
    }
    Ok(Outcome::Done)
}

fn observe(loaded: &Loaded, tokens: &[u32], calibration: &mut Calibration) -> anyhow::Result<()> {
    let policy = Policy::dense(&loaded.decoder, CacheType::F16, tokens.len())?;
    let mut session = Session::new(loaded.decoder.clone(), policy, loaded.team.clone());
    session.observe(tokens, &NoProgress, &mut Feed(calibration))?;
    Ok(())
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
    let text = session.tokens().to_vec();
    let mut calibration = Calibration::new(config.dims);
    observe(loaded, &text, &mut calibration)?;
    Ok(calibration.rankings())
}
