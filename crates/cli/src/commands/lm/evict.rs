//! Which rows of a prompt survive: `--evict` and its settings.

use std::path::PathBuf;

use clap::ValueEnum;
use keyfold_lm::evict::h2o::{H2o, H2oConfig};
use keyfold_lm::evict::look_m::{LookM, LookMConfig};
use keyfold_lm::evict::{Merge, Ratios};
use keyfold_lm::roles::{Evictor, TokenKinds};
use keyfold_lm::{SpecialTokens, Tokenizer};

use super::setup::Loaded;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// `--evict` and what belongs to it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EvictArgs {
    /// Which cached tokens of a prompt survive it
    #[arg(long, value_name = "METHOD", default_value = "none")]
    evict: EvictArg,
    /// look-m, h2o: share of the prompt kept for the attention that it got [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    keep_important: Option<f64>,
    /// look-m, h2o: share of the prompt kept for being newest [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    keep_recent: Option<f64>,
    /// look-m: how dropped tokens are folded into kept ones: pivotal, weighted, average, none
    #[arg(long, value_name = "WAY", default_value = "pivotal")]
    merge: Merge,
    /// look-m: a token that stands for several weighs as much as they would (not in the paper)
    #[arg(long)]
    merge_mass: bool,
    /// look-m: where the images are: a file with lines 'start,length', in tokens
    #[arg(long, value_name = "FILE", conflicts_with = "span_marks")]
    spans: Option<PathBuf>,
    /// look-m: special tokens of the prompt between which an image stands, as
    /// '<|vision_start|>,<|vision_end|>'
    #[arg(long, value_name = "START,END")]
    span_marks: Option<String>,
}

/// Which cached tokens of a prompt survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EvictArg {
    /// All
    None,
    /// Text; images are folded into it and into a few of their own (LOOK-M)
    LookM,
    /// Those that attention looked at most (H2O)
    H2o,
}

impl EvictArgs {
    /// The same with another method, named as the option does.
    pub(super) fn with(&self, evict: &str) -> anyhow::Result<Self> {
        Ok(Self {
            evict: EvictArg::from_str(evict, false).map_err(wrong_use)?,
            ..self.clone()
        })
    }

    /// Whether rows are dropped at all.
    pub(super) fn any(&self) -> bool {
        self.evict != EvictArg::None
    }

    /// The method.
    pub(super) fn evictor(
        &self,
        loaded: &Loaded,
        progress: &StderrProgress,
    ) -> anyhow::Result<Option<Box<dyn Evictor>>> {
        let dims = loaded.decoder.config().dims;
        let default = Ratios::default();
        let ratios = Ratios {
            hh_ratio: self.keep_important.unwrap_or(default.hh_ratio),
            recent_ratio: self.keep_recent.unwrap_or(default.recent_ratio),
        };
        Ok(match self.evict {
            EvictArg::None => None,
            EvictArg::H2o => Some(Box::new(H2o::new(H2oConfig { ratios }, dims)?)),
            EvictArg::LookM => {
                if self.spans.is_none() && self.span_marks.is_none() {
                    let notice = LookM::notice(&TokenKinds::default());
                    notice.iter().for_each(|n| progress.say(n));
                }
                let config = LookMConfig {
                    ratios,
                    merge: self.merge,
                    merge_mass: self.merge_mass,
                };
                Some(Box::new(LookM::new(config, dims)?))
            }
        })
    }

    /// The images that a file says.
    pub(super) fn images_of_file(&self) -> anyhow::Result<TokenKinds> {
        let Some(path) = &self.spans else {
            return Ok(TokenKinds::default());
        };
        let text = std::fs::read_to_string(path)
            .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
        let mut images = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|l| !l.1.trim().is_empty()) {
            let span = line.split_once(',').and_then(|(start, length)| {
                let start: u32 = start.trim().parse().ok()?;
                let length: u32 = length.trim().parse().ok()?;
                Some((start, start.checked_add(length)?))
            });
            let span = span.ok_or_else(|| {
                wrong_use(format!(
                    "{}, line {number}: {line:?} is not 'start,length'",
                    path.display()
                ))
            })?;
            images.push(span);
        }
        images.sort_unstable();
        Ok(TokenKinds { images })
    }

    /// The images of a prompt: those of the file, or those between the marks.
    pub(super) fn in_prompt(
        &self,
        tokenizer: &Tokenizer,
        tokens: &[u32],
    ) -> anyhow::Result<TokenKinds> {
        let Some(marks) = &self.span_marks else {
            return self.images_of_file();
        };
        let mark = |text: &str| -> anyhow::Result<u32> {
            match tokenizer.encode(text.trim(), SpecialTokens::Parse)?[..] {
                [token] => Ok(token),
                _ => Err(wrong_use(format!(
                    "--span-marks: {text:?} is no single token of this model"
                ))),
            }
        };
        let (start, end) = marks.split_once(',').ok_or_else(|| {
            wrong_use(format!(
                "--span-marks: {marks:?} is not 'START,END', two tokens"
            ))
        })?;
        between(tokens, mark(start)?, mark(end)?).map_err(wrong_use)
    }
}

/// Spans of what lies between a mark and the next end.
fn between(tokens: &[u32], start: u32, end: u32) -> Result<TokenKinds, String> {
    let mut images = Vec::new();
    let mut open = None;
    for (at, &token) in (0..).zip(tokens) {
        if token == start && open.is_none() {
            open = Some(at + 1);
        } else if token == end
            && let Some(from) = open.take()
            && from < at
        {
            images.push((from, at));
        }
    }
    match open {
        None => Ok(TokenKinds { images }),
        Some(from) => Err(format!(
            "--span-marks: the image that begins at token {from} does not end"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn images_lie_between_their_marks() {
        let found = between(&[5, 1, 7, 7, 2, 1, 2, 9, 1, 8, 2], 1, 2).unwrap();
        assert_eq!(found.images, [(2, 4), (9, 10)]);
        assert!(between(&[1, 3], 1, 2).unwrap_err().contains("does not end"));
    }
}
