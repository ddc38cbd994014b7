//! Heads of softmax attention, read one by one.

use std::io::Write;

use anyhow::Context;
use keyfold_inspect::in_context::softmax::{
    Estimator, Head, Init, Prompts, SoftmaxConfig, SoftmaxModel, Stack, StackConfig, train,
    two_head_step,
};
use serde_json::json;

use super::InContextArgs;
use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::BOLD;
use crate::progress::StderrProgress;

/// Steps of a stack, which takes longer for each.
const STACK_STEPS: usize = 3000;

/// Prompts on which heads are measured.
const PROMPTS: usize = 20_000;

/// How weights begin, by the authors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Begin {
    /// Evenly from one over the root of the inputs
    Random,
    /// All matrices a millionth of the identity, the output drawn
    SmallId,
    /// Queries and keys a ten-thousandth of the identity, the rest drawn
    SmallIdQk,
    /// Queries and keys a millionth of the identity, the queries of half the heads negative
    OppoSmallId,
}

impl From<Begin> for Init {
    fn from(begin: Begin) -> Self {
        match begin {
            Begin::Random => Self::Random,
            Begin::SmallId => Self::SmallId,
            Begin::SmallIdQk => Self::SmallIdQk,
            Begin::OppoSmallId => Self::OppoSmallId,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Circuits (with --heads)")]
pub(super) struct CircuitArgs {
    /// Examples of a prompt
    #[arg(long, value_name = "N", default_value_t = 40, requires = "heads",
          value_parser = clap::value_parser!(u16).range(1..))]
    length: u16,
    /// Variance of the noise
    #[arg(long, value_name = "X", default_value_t = 0.1, requires = "heads")]
    sigma2: f64,
    /// Linear functions at once, each of a part of x
    #[arg(long, value_name = "N", default_value_t = 1, requires = "heads",
          value_parser = clap::value_parser!(u16).range(1..))]
    tasks: u16,
    /// How weights begin
    #[arg(long, value_name = "HOW", default_value = "random", requires = "heads")]
    init: Begin,
    /// Standard deviations of the numbers of x, where these are not 1
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "heads")]
    spread: Vec<f64>,
    /// So many causal layers, one on the other, and a linear layer at their end
    #[arg(long, value_name = "LAYERS", requires = "heads",
          value_parser = clap::value_parser!(u16).range(2..))]
    stack: Option<u16>,
    /// All layers of the stack have the same weights
    #[arg(long, requires = "stack")]
    tied: bool,
    /// The softmax twice in a layer of the stack, as the authors' released class has it
    #[arg(long, requires = "stack")]
    compat: bool,
    /// Lengths of prompts at which the error is told
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "10,20,40,100",
        requires = "heads"
    )]
    lengths: Vec<usize>,
}

pub(super) fn run(args: &InContextArgs, heads: u16, globals: &Globals) -> anyhow::Result<Outcome> {
    let c = &args.circuits;
    let mut config = SoftmaxConfig {
        d: args.d.map_or(5, usize::from),
        length: c.length.into(),
        heads: heads.into(),
        sigma2: c.sigma2,
        tasks: c.tasks.into(),
        spread: c.spread.clone(),
        init: c.init.into(),
        steps: args.steps.unwrap_or(20_000) as usize,
        seed: globals.seed,
        ..SoftmaxConfig::default()
    };
    if let Some(zero) = c.lengths.iter().find(|l| **l == 0) {
        return Err(wrong_use(format!(
            "a prompt of {zero} examples tells nothing"
        )));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    if let Some(layers) = c.stack {
        if args.steps.is_none() {
            config.steps = STACK_STEPS;
        }
        let config = StackConfig {
            base: config,
            n_layers: layers.into(),
            weight_tying: c.tied,
            compat: c.compat,
        };
        return stack(args, config, globals, &progress);
    }
    let loaded = args.load.as_deref().map(SoftmaxModel::load).transpose()?;
    if let Some(model) = &loaded {
        (config.d, config.tasks, config.heads) = (model.d, model.tasks, model.heads);
    }
    // Refuses what does not go together, of weights that were read as well.
    SoftmaxModel::new(&config).map_err(|e| wrong_use(e.to_string()))?;
    let (model, curve) = match loaded {
        Some(model) => (model, Vec::new()),
        None => train(&config, &progress)?,
    };
    if let Some(path) = &args.save {
        model.save(path).context("cannot keep the weights")?;
    }
    let circuits = model.circuits();
    let errors = errors(&config, &c.lengths, globals.seed, |p| Ok(model.error(p)?))?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let value = json!({
            "settings": config, "circuits": circuits, "errors": errors_json(&errors), "curve": curve,
        });
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    write_heads(&mut out, "", &circuits)?;
    let step: f64 = circuits.iter().map(|h| h.omega * h.mu[0]).sum();
    let sum: f64 = circuits.iter().map(|h| h.mu[0]).sum();
    writeln!(
        out,
        "\nsum of mu {sum:.3}, step (sum of omega mu) {step:.3}"
    )?;
    if is_plain(&config) {
        let formula = two_head_step(config.d, config.length, config.sigma2);
        writeln!(out, "the step of the theory for two heads: {formula:.3}")?;
    }
    write_errors(&mut out, &errors)?;
    Ok(Outcome::Done)
}

/// Errors at a length, by name.
type Errors = Vec<(usize, Vec<(&'static str, f64)>)>;

/// The theory is for one task of even x.
fn is_plain(config: &SoftmaxConfig) -> bool {
    config.tasks == 1 && config.spread.is_empty()
}

/// Errors of a model at some lengths, beside those of estimators where there is a theory.
fn errors(
    config: &SoftmaxConfig,
    lengths: &[usize],
    seed: u64,
    model: impl Fn(&Prompts) -> anyhow::Result<f64>,
) -> anyhow::Result<Errors> {
    let mut errors = Vec::new();
    for length in lengths {
        let prompts = Prompts::sample(config, *length, PROMPTS, seed ^ 0xabcd);
        let mut row = vec![("the model", model(&prompts)?)];
        if is_plain(config) {
            let step = two_head_step(config.d, config.length, config.sigma2);
            let alpha = config.sigma2 * config.d as f64;
            for (name, estimator) in [
                ("descent", Estimator::GradientDescent { step }),
                ("centred descent", Estimator::Debiased { step }),
                ("ridge (Bayes)", Estimator::Ridge { alpha }),
            ] {
                row.push((name, estimator.error(&prompts)?));
            }
        }
        errors.push((*length, row));
    }
    Ok(errors)
}

fn errors_json(errors: &Errors) -> Vec<serde_json::Value> {
    let row = |(length, row): &(usize, Vec<(&str, f64)>)| {
        let errors: serde_json::Map<String, serde_json::Value> = row
            .iter()
            .map(|(n, e)| ((*n).to_owned(), json!(e)))
            .collect();
        json!({"length": length, "errors": errors})
    };
    errors.iter().map(row).collect()
}

fn write_errors(out: &mut impl Write, errors: &Errors) -> std::io::Result<()> {
    writeln!(
        out,
        "\n{BOLD}squared error on {PROMPTS} fresh prompts{BOLD:#}"
    )?;
    for (length, row) in errors {
        let cells: Vec<String> = row.iter().map(|(n, e)| format!("{n} {e:.3}")).collect();
        writeln!(out, "{length:>5} examples  {}", cells.join("  "))?;
    }
    Ok(())
}

/// A table of heads; `layer` comes before their numbers.
fn write_heads(out: &mut impl Write, layer: &str, heads: &[Head]) -> std::io::Result<()> {
    writeln!(
        out,
        "{BOLD}{:>6}  {:>8}  {:>9}  {:<20}  role{BOLD:#}",
        "head", "omega", "away", "mu"
    )?;
    for (i, head) in heads.iter().enumerate() {
        let mu: Vec<String> = head.mu.iter().map(|m| format!("{m:.3}")).collect();
        writeln!(
            out,
            "{:>6}  {:>8.3}  {:>9.3}  {:<20}  {}",
            format!("{layer}{}", i + 1),
            head.omega,
            head.spread,
            mu.join(" "),
            head.role
        )?;
    }
    Ok(())
}

/// Layers of attention, one on the other.
fn stack(
    args: &InContextArgs,
    config: StackConfig,
    globals: &Globals,
    progress: &StderrProgress,
) -> anyhow::Result<Outcome> {
    let mut model = Stack::new(config.clone()).map_err(|e| wrong_use(e.to_string()))?;
    let mut curve = Vec::new();
    match &args.load {
        Some(path) => model = Stack::load(path, config)?,
        None => curve = model.train(progress)?,
    }
    if let Some(path) = &args.save {
        model.save(path).context("cannot keep the weights")?;
    }
    let circuits = model.circuits();
    let base = &model.config().base;
    let lengths = &args.circuits.lengths;
    let errors = errors(base, lengths, globals.seed, |p| Ok(model.error(p)?))?;
    let mut out = anstream::stdout().lock();
    if globals.json {
        let value = json!({
            "settings": model.config(), "circuits": circuits, "errors": errors_json(&errors),
            "curve": curve,
        });
        writeln!(out, "{value:#}")?;
        return Ok(Outcome::Done);
    }
    for (layer, heads) in circuits.iter().enumerate() {
        write_heads(&mut out, &format!("{}.", layer + 1), heads)?;
    }
    write_errors(&mut out, &errors)?;
    Ok(Outcome::Done)
}
