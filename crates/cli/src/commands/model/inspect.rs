//! `keyfold model inspect`.

mod task;

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use keyfold_core::Progress;
use keyfold_data::rows::write_rows;
use keyfold_dictionary::sae::layouts::SaeFile;
use keyfold_inspect::sae_evaluation::scores::{Meaning, Scores};
use keyfold_inspect::sae_evaluation::{
    ScaledSae, SupervisedDictionary, edits, recovered, unexplained,
};
use keyfold_lm::session::HookPoint;
use serde::Serialize;
use serde_json::json;

use super::activations::Subject;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;
use task::{Answers, Task};

/// Features that are listed.
const LISTED: usize = 10;

/// Score a dictionary of features at a place in a language model, on a task whose attributes are known
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The task is a file of JSON Lines, with prompts of one length in tokens and answers of one token:
  {\"prompt\": \"Then Ada and Ben played, and Ben said to\", \"answer\": \" Ada\", \"wrong\": \" Ben\",
   \"attributes\": {\"io\": \"Ada\", \"s\": \"Ben\"},
   \"counterfactuals\": {\"io\": {\"prompt\": \"Then Max and Ben ...\", \"answer\": \" Max\", \"value\": \"Max\"}}}

A dictionary computed from the attributes is the yardstick. --dict adds a sparse autoencoder of SAELens, \
sparsify, OpenAI or 'keyfold dictionary fit --method sae'; --activations keeps the rows to train one on.

Examples:
  keyfold model inspect MODEL --task task.jsonl --site blocks.6.hook_resid_post --activations rows.npy
  keyfold dictionary fit rows.npy --method sae --out sae
  keyfold model inspect MODEL --task task.jsonl --site blocks.6.hook_resid_post --dict sae

'keyfold train indirect-object' makes a small model and a file of its task to try this with.")]
pub(super) struct InspectArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, a hub name, or a folder of
    /// 'keyfold train indirect-object'
    model: String,
    /// The task
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// The place in the model, as in blocks.6.hook_resid_post or blocks.9.attn.hook_z
    #[arg(long, value_name = "NAME")]
    site: HookPoint,
    /// The token at the place, counted from the last, which is 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    from_end: usize,
    /// A sparse autoencoder for rows of this place
    #[arg(long, value_name = "PATH")]
    dict: Option<PathBuf>,
    /// How the dictionary from the attributes is computed
    #[arg(long, default_value = "mse")]
    supervised: Supervised,
    /// Features that an edit may change
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2,4,8,16"
    )]
    edits: Vec<usize>,
    /// F1 above which a feature counts as explained
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    f1: f64,
    /// Share of the prompts that is held out for the tests
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test: f64,
    /// File for the rows of all prompts at the place (.npy, .csv, .tsv or .safetensors)
    #[arg(long, value_name = "FILE")]
    activations: Option<PathBuf>,
}

/// How codes are computed from attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Supervised {
    /// Means of the prompts that have a value
    Mean,
    /// Least squares
    Mse,
}

/// What edits of one attribute did.
#[derive(Debug, Clone, Serialize)]
struct Edited {
    attribute: String,
    /// "patch", "supervised", "greedy" or "by meaning".
    way: &'static str,
    features: Option<usize>,
    /// Share of prompts whose likeliest token is the answer of the prompt.
    base: f64,
    /// Share whose likeliest token is the counterfactual's answer.
    counterfactual: f64,
    /// Share whose likeliest token is that of the true patch.
    as_patch: f64,
    /// Mean weight of the changed features in the reconstruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
}

/// One dictionary.
#[derive(Debug, Clone, Serialize)]
struct Standing {
    dictionary: String,
    recovered: f64,
    unexplained: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<f64>,
    /// By attribute: what features stand for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    explained: Vec<(String, Vec<Meaning>)>,
}

pub(super) fn run(args: &InspectArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    if args.edits.contains(&0) {
        return Err(wrong_use("an edit changes at least one feature"));
    }
    let subject = Subject::open(&args.model, globals, &progress)?;
    let width = subject.width(args.site)?;
    let dictionary = args.dict.as_deref().map(SaeFile::load).transpose()?;
    if dictionary.as_ref().is_some_and(|d| d.needs_input_scale) {
        progress.note(
            "this autoencoder was trained on rows multiplied by a number that its folder does not hold",
        );
    }
    let sae = dictionary.map(|file| ScaledSae {
        sae: file.sae,
        scale: 1.0,
    });
    if let Some(sae) = &sae {
        sae.check(width).map_err(|e| wrong_use(e.to_string()))?;
    }
    let task = Task::read(&args.task, &subject, args.test, globals.seed)?;
    let place = task.length.checked_sub(args.from_end + 1).ok_or_else(|| {
        wrong_use(format!(
            "prompts have {} tokens; --from-end goes beyond",
            task.length
        ))
    })?;
    let at = task::Place {
        point: args.site,
        token: place,
        width,
    };
    progress.start("reading prompts", "prompts", Some(task.prompts() as u64));
    let learned = task.rows(&subject, &at, &task.learn, &progress)?;
    let tested = task.rows(&subject, &at, &task.test, &progress)?;
    progress.finish();
    if let Some(path) = &args.activations {
        write_rows(path, &[&learned.rows[..], &tested.rows].concat(), width)?;
    }
    let tests = Tests {
        subject: &subject,
        task: &task,
        at,
        tested,
        progress: &progress,
    };
    let report = tests.report(args, &learned.rows, sae.as_ref())?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        writeln!(out, "{:#}", report.json(args, &task))?;
    } else {
        report.write(&mut out, args, &task)?;
    }
    Ok(Outcome::Done)
}

struct Tests<'a> {
    subject: &'a Subject,
    task: &'a Task,
    at: task::Place,
    tested: Answers,
    progress: &'a StderrProgress,
}

struct Report {
    clean: f64,
    ablated: f64,
    /// Share of prompts that the model answers right.
    right: f64,
    standings: Vec<Standing>,
    edits: Vec<Edited>,
}

impl Tests<'_> {
    fn answers(&self, rows: &[f32]) -> anyhow::Result<Answers> {
        self.task
            .replaced(self.subject, &self.at, rows, self.progress)
    }

    fn report(
        &self,
        args: &InspectArgs,
        learned: &[f32],
        sae: Option<&ScaledSae>,
    ) -> anyhow::Result<Report> {
        let (d, task) = (self.at.width, self.task);
        let known = task.attributes(&task.learn);
        let supervised = match args.supervised {
            Supervised::Mean => SupervisedDictionary::mean_codes(learned, d, &known)?,
            Supervised::Mse => SupervisedDictionary::mse_codes(learned, d, &known)?,
        };
        let mean = SupervisedDictionary::mean_codes(learned, d, &[])?.b;
        let ablated = self.answers(&mean.repeat(task.test.len()))?.difference;
        let clean = self.tested.difference;
        let keeps = |rows: &[f32]| -> anyhow::Result<f64> {
            Ok(recovered(self.answers(rows)?.difference, ablated, clean))
        };
        let told = supervised.reconstruct(&task.attributes(&task.test));
        let mut report = Report {
            clean,
            ablated,
            right: task.share(&self.tested, |line| line.answer),
            standings: vec![Standing {
                dictionary: "from attributes".to_owned(),
                recovered: keeps(&told)?,
                unexplained: unexplained(&self.tested.rows, &told, d),
                active: None,
                explained: Vec::new(),
            }],
            edits: Vec::new(),
        };
        let coded = sae.map(|sae| sae.code(&self.tested.rows)).transpose()?;
        let mut scores = Vec::new();
        if let (Some(sae), Some(coded)) = (sae, &coded) {
            let on_learned = sae.code(learned)?;
            scores = known
                .iter()
                .map(|a| Scores::of(&on_learned.codes, a))
                .collect();
            let named = known.iter().zip(&scores);
            report.standings.push(Standing {
                dictionary: "autoencoder".to_owned(),
                recovered: keeps(&coded.rows)?,
                unexplained: unexplained(&self.tested.rows, &coded.rows, d),
                active: Some(coded.codes.mean_active()),
                explained: named
                    .map(|(a, s)| (a.name.clone(), s.meanings(args.f1)))
                    .collect(),
            });
        }
        for (attribute, known) in known.iter().enumerate() {
            let Some(target) =
                task.counterfactuals(self.subject, &self.at, attribute, self.progress)?
            else {
                continue;
            };
            let patch = self.answers(&target.rows)?;
            let mut add = |way, features, rows: &[f32], weight| -> anyhow::Result<()> {
                let found = self.answers(rows)?;
                report.edits.push(Edited {
                    attribute: known.name.clone(),
                    way,
                    features,
                    base: task.share(&found, |line| line.answer),
                    counterfactual: task.share(&found, |line| line.changed(attribute).0),
                    as_patch: found.agreement(&patch),
                    weight,
                });
                Ok(())
            };
            add("patch", None, &target.rows, None)?;
            let mut rows = self.tested.rows.clone();
            for (row, line) in rows.chunks_exact_mut(d).zip(task.tests()) {
                supervised.edit(
                    row,
                    attribute,
                    line.values[attribute],
                    line.changed(attribute).1,
                );
            }
            add("supervised", Some(1), &rows, None)?;
            let (Some(sae), Some(coded)) = (sae, &coded) else {
                continue;
            };
            let coded_target = sae.code(&target.rows)?;
            let ranking = scores[attribute].ranking();
            for way in ["greedy", "by meaning"] {
                for &m in &args.edits {
                    let clean = (&self.tested.rows[..], coded);
                    let edit = |i: usize, line: &task::Line| match way {
                        "greedy" => {
                            edits::greedy(sae, clean, (&target.rows[..], &coded_target), i, m)
                        }
                        _ => {
                            let (old, new) = (line.values[attribute], line.changed(attribute).1);
                            let chosen = (&ranking[old][..], &ranking[new][..]);
                            edits::by_score(sae, clean, &coded_target, i, chosen, m)
                        }
                    };
                    let made = task.tests().enumerate().map(|(i, line)| edit(i, line));
                    let (mut rows, mut weight) = (Vec::new(), 0.0);
                    for edit in made {
                        weight += edit.weight / task.test.len() as f64;
                        rows.extend(edit.row);
                    }
                    add(way, Some(m), &rows, Some(weight))?;
                }
            }
        }
        Ok(report)
    }
}

impl Report {
    fn json(&self, args: &InspectArgs, task: &Task) -> serde_json::Value {
        json!({
            "site": args.site.to_string(),
            "prompts": {"learned": task.learn.len(), "tested": task.test.len(), "tokens": task.length},
            "answered_right": self.right,
            "logit_difference": {"clean": self.clean, "mean_ablated": self.ablated},
            "dictionaries": self.standings,
            "edits": self.edits,
        })
    }

    fn write(&self, out: &mut impl Write, args: &InspectArgs, task: &Task) -> std::io::Result<()> {
        writeln!(
            out,
            "{BOLD}{}{BOLD:#}: {} prompts learned from, {} tested; {:.1} % answered right, logit difference \
             {:.3} (with the mean activation {:.3})\n",
            args.site,
            task.learn.len(),
            task.test.len(),
            100.0 * self.right,
            self.clean,
            self.ablated
        )?;
        writeln!(
            out,
            "{:<18}{:>10}{:>13}{:>8}",
            "dictionary", "recovered", "unexplained", "active"
        )?;
        for s in &self.standings {
            let active = s.active.map_or(String::new(), |a| format!("{a:.1}"));
            writeln!(
                out,
                "{:<18}{:>10.3}{:>13.4}{active:>8}",
                s.dictionary, s.recovered, s.unexplained
            )?;
        }
        writeln!(
            out,
            "\n{:<12}{:<14}{:>9}{:>10}{:>10}{:>10}{:>8}",
            "edit of", "by", "features", "old", "new", "as patch", "weight"
        )?;
        for e in &self.edits {
            writeln!(
                out,
                "{:<12}{:<14}{:>9}{:>10.3}{:>10.3}{:>10.3}{:>8}",
                e.attribute,
                e.way,
                e.features.map_or(String::new(), |m| m.to_string()),
                e.base,
                e.counterfactual,
                e.as_patch,
                e.weight.map_or(String::new(), |w| format!("{w:.3}"))
            )?;
        }
        for (name, meanings) in self.standings.iter().flat_map(|s| &s.explained) {
            writeln!(
                out,
                "\n{} features stand for {name} (F1 above {})",
                meanings.len(),
                args.f1
            )?;
            for m in meanings.iter().take(LISTED) {
                let values: Vec<&str> =
                    m.values.iter().map(|v| task.value_name(name, *v)).collect();
                writeln!(
                    out,
                    "  {:>6}  {:.3}  {}",
                    m.feature,
                    m.f1,
                    values.join(", ")
                )?;
            }
        }
        Ok(())
    }
}
