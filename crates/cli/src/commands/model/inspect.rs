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
    Attribute, Coded, ScaledSae, SupervisedDictionary, edits, recovered, unexplained,
};
use serde::Serialize;
use serde_json::json;

use super::activations::Subject;
use super::place::{Part, Site};
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

Places are named as TransformerLens does; ':6' behind attn.hook_q, hook_k, hook_v or hook_z takes one head, \
'@2' the token that is two before the last. Several are replaced and edited together.

Examples:
  keyfold model inspect MODEL --task task.jsonl --site blocks.6.hook_resid_post --activations rows.npy
  keyfold dictionary fit rows.npy --method sae --out sae
  keyfold model inspect MODEL --task task.jsonl --site blocks.6.hook_resid_post --dict sae
  keyfold model inspect MODEL --task task.jsonl --site blocks.9.attn.hook_q:6,blocks.9.attn.hook_q:9

'keyfold train indirect-object' makes a small model and a file of its task to try this with.")]
pub(super) struct InspectArgs {
    /// The model: a .gguf file, a folder with config.json and safetensors, a hub name, or a folder of
    /// 'keyfold train indirect-object'
    model: String,
    /// The task
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// The places in the model, as in blocks.6.hook_resid_post or blocks.9.attn.hook_q:6
    #[arg(
        long,
        value_name = "NAME,..",
        value_delimiter = ',',
        num_args = 1,
        required = true
    )]
    site: Vec<Site>,
    /// The token at places that name none, counted from the last, which is 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    from_end: usize,
    /// Sparse autoencoders for rows of the places, one for each
    #[arg(long, value_name = "PATH,..", value_delimiter = ',', num_args = 1)]
    dict: Vec<PathBuf>,
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
    /// File for the gradient of the logit difference by each of these rows, for 'dictionary fit
    /// --gradients'; of models of 'keyfold train indirect-object'
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,
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

/// One dictionary, or those of all places together.
#[derive(Debug, Clone, Serialize)]
struct Standing {
    dictionary: String,
    recovered: f64,
    unexplained: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    explained: Vec<Explained>,
}

/// What features stand for.
#[derive(Debug, Clone, Serialize)]
struct Explained {
    site: String,
    attribute: String,
    features: Vec<Meaning>,
}

pub(super) fn run(args: &InspectArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let progress = StderrProgress::new(globals.quiet, 20);
    if args.edits.contains(&0) {
        return Err(wrong_use("an edit changes at least one feature"));
    }
    if !args.dict.is_empty() && args.dict.len() != args.site.len() {
        return Err(wrong_use(format!(
            "{} autoencoders for {} places; --dict names one for each --site",
            args.dict.len(),
            args.site.len()
        )));
    }
    let one = args.site.len() == 1;
    if !one && (args.activations.is_some() || args.gradients.is_some()) {
        return Err(wrong_use(
            "--activations and --gradients keep the rows of one place; name one --site",
        ));
    }
    let subject = Subject::open(&args.model, globals, &progress)?;
    let parts = args.site.iter().map(|site| subject.part(site.hook));
    let parts: Vec<_> = parts.collect::<anyhow::Result<_>>()?;
    let mut saes = Vec::new();
    for (path, part) in args.dict.iter().zip(&parts) {
        let file = SaeFile::load(path)?;
        if file.needs_input_scale {
            progress.note(
                "this autoencoder was trained on rows multiplied by a number that its folder does not \
                 hold",
            );
        }
        let sae = ScaledSae {
            sae: file.sae,
            scale: 1.0,
        };
        sae.check(part.width)
            .map_err(|e| wrong_use(e.to_string()))?;
        saes.push(sae);
    }
    let task = Task::read(&args.task, &subject, args.test, globals.seed)?;
    let place = |(site, part): (&Site, &Part)| {
        let from_end = site.from_end.unwrap_or(args.from_end);
        let token = (task.length.checked_sub(1)).and_then(|last| last.checked_sub(from_end));
        let token = token.ok_or_else(|| {
            wrong_use(format!(
                "prompts have {} tokens; {from_end} from the end (--from-end, or @{from_end}) goes beyond",
                task.length
            ))
        });
        token.map(|token| task::Place { part: *part, token })
    };
    let at = args.site.iter().zip(&parts).map(place);
    let at: Vec<task::Place> = at.collect::<anyhow::Result<_>>()?;
    if args.gradients.is_some() && at[0].token + 1 != task.length {
        return Err(wrong_use("--gradients are made at the last token"));
    }
    progress.start("reading prompts", "prompts", Some(task.prompts() as u64));
    let learned = task.rows(&subject, &at, &task.learn, &progress)?;
    let tested = task.rows(&subject, &at, &task.test, &progress)?;
    progress.finish();
    let width = at[0].part.width;
    if let Some(path) = &args.activations {
        write_rows(
            path,
            &[&learned.rows[0][..], &tested.rows[0]].concat(),
            width,
        )?;
    }
    if let Some(path) = &args.gradients {
        let of = |lines| task.gradients(&subject, &at[0], lines);
        write_rows(path, &[of(&task.learn)?, of(&task.test)?].concat(), width)?;
    }
    let tests = Tests {
        subject: &subject,
        task: &task,
        at,
        tested,
        progress: &progress,
    };
    let report = tests.report(args, &learned.rows, &saes)?;
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
    at: Vec<task::Place>,
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

/// An autoencoder of a place, with what it makes of the tests and what its features stand for.
struct Looked<'s> {
    sae: &'s ScaledSae,
    coded: Coded,
    /// By attribute.
    scores: Vec<Scores>,
}

impl Tests<'_> {
    fn answers(&self, rows: &[Vec<f32>]) -> anyhow::Result<Answers> {
        self.task
            .replaced(self.subject, &self.at, rows, self.progress)
    }

    fn width(&self, place: usize) -> usize {
        self.at[place].part.width
    }

    /// What part of the variance of all places is not in these rows.
    fn unexplained(&self, told: &[Vec<f32>]) -> f64 {
        let total = self.at.iter().map(|at| at.part.width).sum();
        let joined = |rows: &[Vec<f32>]| -> Vec<f32> {
            let row = |i: usize| {
                let parts = rows.iter().zip(&self.at);
                parts.flat_map(move |(rows, at)| &rows[i * at.part.width..][..at.part.width])
            };
            (0..self.task.test.len()).flat_map(row).copied().collect()
        };
        unexplained(&joined(&self.tested.rows), &joined(told), total)
    }

    fn report(
        &self,
        args: &InspectArgs,
        learned: &[Vec<f32>],
        saes: &[ScaledSae],
    ) -> anyhow::Result<Report> {
        let task = self.task;
        let known = task.attributes(&task.learn);
        let by_place = |known: &[Attribute], mse: bool| -> anyhow::Result<Vec<_>> {
            let one = |(i, rows): (usize, &Vec<f32>)| match mse {
                false => SupervisedDictionary::mean_codes(rows, self.width(i), known),
                true => SupervisedDictionary::mse_codes(rows, self.width(i), known),
            };
            Ok(learned
                .iter()
                .enumerate()
                .map(one)
                .collect::<Result<_, _>>()?)
        };
        let supervised = by_place(&known, args.supervised == Supervised::Mse)?;
        let means: Vec<Vec<f32>> = (by_place(&[], false)?.into_iter())
            .map(|mean| mean.b.repeat(task.test.len()))
            .collect();
        let ablated = self.answers(&means)?.difference;
        let clean = self.tested.difference;
        let keeps = |rows: &[Vec<f32>]| -> anyhow::Result<f64> {
            Ok(recovered(self.answers(rows)?.difference, ablated, clean))
        };
        let attributes = task.attributes(&task.test);
        let told: Vec<Vec<f32>> = (supervised.iter())
            .map(|s| s.reconstruct(&attributes))
            .collect();
        let mut report = Report {
            clean,
            ablated,
            right: task.share(&self.tested, |line| line.answer),
            standings: vec![Standing {
                dictionary: "from attributes".to_owned(),
                recovered: keeps(&told)?,
                unexplained: self.unexplained(&told),
                active: None,
                explained: Vec::new(),
            }],
            edits: Vec::new(),
        };
        let mut looked = Vec::new();
        for (sae, (tested, learned)) in saes.iter().zip(self.tested.rows.iter().zip(learned)) {
            let on_learned = sae.code(learned)?;
            let scores = known.iter().map(|a| Scores::of(&on_learned.codes, a));
            looked.push(Looked {
                sae,
                coded: sae.code(tested)?,
                scores: scores.collect(),
            });
        }
        if !looked.is_empty() {
            let told: Vec<Vec<f32>> = looked.iter().map(|l| l.coded.rows.clone()).collect();
            let explained = looked.iter().zip(&args.site).flat_map(|(l, site)| {
                let named = known.iter().zip(&l.scores);
                named.map(move |(a, scores)| Explained {
                    site: site.to_string(),
                    attribute: a.name.clone(),
                    features: scores.meanings(args.f1),
                })
            });
            report.standings.push(Standing {
                dictionary: "autoencoder".to_owned(),
                recovered: keeps(&told)?,
                unexplained: self.unexplained(&told),
                active: Some(looked.iter().map(|l| l.coded.codes.mean_active()).sum()),
                explained: explained.collect(),
            });
        }
        for (attribute, known) in known.iter().enumerate() {
            let Some(target) =
                task.counterfactuals(self.subject, &self.at, attribute, self.progress)?
            else {
                continue;
            };
            let patch = self.answers(&target.rows)?;
            let mut add = |way, features, rows: &[Vec<f32>], weight| -> anyhow::Result<()> {
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
            for (place, (rows, supervised)) in rows.iter_mut().zip(&supervised).enumerate() {
                let rows = rows.chunks_exact_mut(self.width(place));
                for (row, line) in rows.zip(task.tests()) {
                    let (old, new) = (line.values[attribute], line.changed(attribute).1);
                    supervised.edit(row, attribute, old, new);
                }
            }
            add("supervised", Some(1), &rows, None)?;
            if looked.is_empty() {
                continue;
            }
            let targets = looked.iter().zip(&target.rows).map(|(l, t)| l.sae.code(t));
            let targets: Vec<Coded> = targets.collect::<Result<_, _>>()?;
            for way in ["greedy", "by meaning"] {
                for &m in &args.edits {
                    let (mut rows, mut weight) = (Vec::new(), 0.0);
                    for (place, looked) in looked.iter().enumerate() {
                        let to = (&target.rows[place][..], &targets[place]);
                        let made = self.edited((way, m), looked, place, to, attribute);
                        weight += made.1 / self.at.len() as f64;
                        rows.push(made.0);
                    }
                    add(way, Some(m), &rows, Some(weight))?;
                }
            }
        }
        Ok(report)
    }

    /// The rows of a place with `m` features changed, and the mean weight of these.
    fn edited(
        &self,
        (way, m): (&str, usize),
        looked: &Looked,
        place: usize,
        target: (&[f32], &Coded),
        attribute: usize,
    ) -> (Vec<f32>, f64) {
        let clean = (&self.tested.rows[place][..], &looked.coded);
        let ranking = looked.scores[attribute].ranking();
        let (mut rows, mut weight) = (Vec::new(), 0.0);
        for (i, line) in self.task.tests().enumerate() {
            let made = match way {
                "greedy" => edits::greedy(looked.sae, clean, target, i, m),
                _ => {
                    let (old, new) = (line.values[attribute], line.changed(attribute).1);
                    let chosen = (&ranking[old][..], &ranking[new][..]);
                    edits::by_score(looked.sae, clean, target.1, i, chosen, m)
                }
            };
            weight += made.weight / self.task.test.len() as f64;
            rows.extend(made.row);
        }
        (rows, weight)
    }
}

impl Report {
    fn json(&self, args: &InspectArgs, task: &Task) -> serde_json::Value {
        json!({
            "sites": args.site.iter().map(Site::to_string).collect::<Vec<_>>(),
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
            names(&args.site),
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
        for e in self.standings.iter().flat_map(|s| &s.explained) {
            let name = &e.attribute;
            let place = match args.site.len() {
                1 => String::new(),
                _ => format!("{}: ", e.site),
            };
            writeln!(
                out,
                "\n{place}{} features stand for {name} (F1 above {})",
                e.features.len(),
                args.f1
            )?;
            for m in e.features.iter().take(LISTED) {
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

fn names(sites: &[Site]) -> String {
    let names: Vec<String> = sites.iter().map(Site::to_string).collect();
    names.join(", ")
}
