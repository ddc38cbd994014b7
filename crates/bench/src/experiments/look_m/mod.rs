//! LOOK-M: what is left of attention and of answers when image rows are folded away.
//!
//! Z. Wan et al., 2024. Measured: the error of attention on rows around few centres, dropped and
//! merged, with and without counting what a merged row stands for; recall of pairs in the text
//! and in the images of long prompts, on a model that was constructed for it; and perplexity of
//! `--model` on `--data` when prompts are thinned.

mod attention;
mod recall;
mod text;

use keyfold_core::Progress;
use keyfold_lm::evict::h2o::{H2o, H2oConfig};
use keyfold_lm::evict::look_m::{LookM, LookMConfig};
use keyfold_lm::evict::{Merge, Ratios};
use keyfold_lm::roles::{Dims, Evictor};
use serde_json::{Value, json};

use super::long_context::{cache_dims, failed, holds, on_given_text, relative_error};
use crate::plot;
use crate::report::{Report, Table};
use crate::{BenchError, BenchOptions, Experiment};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "look-m",
    about: "error, recall and perplexity (--model, --data) when prompts are thinned and their images merged",
    run,
};

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (mut tables, mut findings) = (Vec::new(), Vec::new());
    let (errors, lines) = attention::errors(options, progress, &mut tables, &mut findings)?;
    let recall = recall::recall(options, progress, &mut tables, &mut findings)?;
    let perplexity = on_given_text(options, &mut findings, |model, tokens, findings| {
        text::perplexities(options, model, tokens, progress, &mut tables, findings)
    })?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables,
        findings,
        values: json!({"errors": errors, "recall": recall, "perplexity": perplexity}),
        svg: plot::lines(
            "Error of attention after a prompt was thinned",
            "part of the rows that is kept",
            "relative error",
            &lines,
        )?,
    })
}

/// How a prompt is thinned.
#[derive(Clone, Copy)]
enum Way {
    Recent,
    H2o,
    /// A merge, and whether merged rows are counted.
    LookM(Merge, bool),
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Recent => "newest rows".to_owned(),
            Self::H2o => "H2O".to_owned(),
            Self::LookM(Merge::None, _) => "text prior, dropped".to_owned(),
            Self::LookM(merge, false) => format!("text prior, {merge}"),
            Self::LookM(merge, true) => format!("text prior, {merge}, counted"),
        }
    }

    /// The method that keeps `keep` of the rows, a half of it for being newest.
    fn evictor(self, keep: f64, dims: Dims) -> Result<Box<dyn Evictor>, BenchError> {
        let half = Ratios {
            hh_ratio: keep / 2.0,
            recent_ratio: keep / 2.0,
        };
        let h2o = |ratios| -> Result<Box<dyn Evictor>, BenchError> {
            let made = H2o::new(H2oConfig { ratios }, dims);
            Ok(Box::new(made.map_err(failed("h2o"))?))
        };
        match self {
            Self::Recent => h2o(Ratios {
                hh_ratio: 0.0,
                recent_ratio: keep,
            }),
            Self::H2o => h2o(half),
            Self::LookM(merge, merge_mass) => {
                let config = LookMConfig {
                    ratios: half,
                    merge,
                    merge_mass,
                };
                Ok(Box::new(
                    LookM::new(config, dims).map_err(failed("look-m"))?,
                ))
            }
        }
    }
}
