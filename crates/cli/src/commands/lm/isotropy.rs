//! `keyfold lm isotropy`: how evenly hidden states point in all directions.

use std::io::Write;
use std::path::PathBuf;

use keyfold_core::Progress;
use keyfold_lm::SpecialTokens;
use keyfold_lm::decoding::isotropy;
use serde_json::json;

use super::setup::ModelArgs;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::progress::StderrProgress;

/// Say how evenly a model's hidden states point in all directions
///
/// 1 minus the mean cosine of the last hidden states at different places of a text. Contrastive
/// search (`--decode contrastive`) needs states that differ: below 0.3 it is not advised.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keyfold lm isotropy notes.txt --model MODEL.gguf
  keyfold lm isotropy notes.txt --model MODEL.gguf --texts 500 --json")]
pub(super) struct IsotropyArgs {
    /// A text file; paragraphs (apart by blank lines) are texts, of which 256 tokens count
    #[arg(value_name = "FILE")]
    text: PathBuf,
    /// Texts at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    texts: usize,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &IsotropyArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let text = std::fs::read(&args.text)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", args.text.display())))?;
    let text = String::from_utf8_lossy(&text);
    let progress = StderrProgress::new(globals.quiet, 20);
    let loaded = args.model.load(globals, &progress)?;
    let tokenizer = loaded.file.tokenizer()?;
    let mut texts = Vec::new();
    for paragraph in paragraphs(&text).iter().take(args.texts) {
        let mut tokens = tokenizer.prefix().to_vec();
        tokens.extend(tokenizer.encode(paragraph, SpecialTokens::Plain)?);
        texts.push(tokens);
    }
    let mut session = || {
        args.model
            .session(&loaded, isotropy::MOST_TOKENS, &progress)
    };
    let found = isotropy::isotropy(&mut session, &texts, &progress)?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let whole = json!({"isotropy": found, "texts": texts.len()});
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
    } else {
        writeln!(out, "isotropy {found:.3}  ({} texts)", texts.len())?;
        if found < isotropy::LEAST {
            writeln!(
                out,
                "states nearly point one way: --decode contrastive will hardly differ from greedy"
            )?;
        }
    }
    Ok(match progress.cancelled() {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

/// Runs of lines that are not blank; a line of spaces is.
fn paragraphs(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let runs = lines.split(|line| line.trim().is_empty());
    runs.filter(|run| !run.is_empty())
        .map(|run| run.join("\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::paragraphs;

    #[test]
    fn paragraphs_end_at_lines_without_letters() {
        let text = "\n one\r\n two \n \t\n\nthree\n \n";
        assert_eq!(paragraphs(text), [" one\n two ", "three"]);
        assert!(paragraphs(" \n\n").is_empty());
    }
}
