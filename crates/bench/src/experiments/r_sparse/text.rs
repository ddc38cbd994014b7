//! Perplexity of the user's model on her text.
//!
//! Two protocols, since a prompt is read with all weights: `all` counts tokens that were all
//! written sparsely, the second half of each window; `last tenth` counts the same tokens, of
//! which only the last tenth of the window was, as the authors' script does it.

use std::path::Path;
use std::sync::Arc;

use keyfold_core::{NoProgress, Progress};
use keyfold_lm::linear::r_sparse::search::{SearchConfig, Trials};
use keyfold_lm::linear::r_sparse::{
    Calibration, Factors, Parts, RSparseLinear, Split, linears, svd,
};
use keyfold_lm::perplexity::{log_probabilities, log_probability};
use keyfold_lm::store::CacheType;
use keyfold_lm::{Decoder, LmError, ModelFile, Policy, Session};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::Part;
use super::generator::NEARLY;
use crate::experiments::long_context::answers::{Way, answers};
use crate::experiments::long_context::{Model, failed, given_text, holds, which_tokens, windows};
use crate::report::Table;
use crate::{BenchError, BenchOptions, Scale};

/// Which channels are kept.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Split(f64),
    Random,
}

/// What all ways are made from.
struct Source<'a> {
    model: &'a Model,
    file: ModelFile,
    calibration: Calibration,
    /// Of every map, at the rank that half of the weights allow.
    factors: Vec<Factors>,
    windows: Vec<Vec<u32>>,
    /// `-ln p` of the second half of every window, read with all weights.
    dense: Vec<Vec<f64>>,
}

pub(super) fn run(
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<Option<Part>, BenchError> {
    let Some((model, tokens)) = given_text(options)? else {
        return Ok(None);
    };
    let (wanted, count, sparsities): (usize, usize, &[f64]) = match options.scale {
        Scale::Smoke => (128, 1, &[0.5]),
        Scale::Small => (512, 2, &[0.3, 0.5, 0.7]),
        Scale::Full => (1024, 8, &[0.3, 0.4, 0.5, 0.6, 0.7]),
    };
    let context = model.context(wanted);
    let windows = windows(&model, &tokens, context, count)?;
    // What is calibrated on is not what is measured on, where the text is long enough.
    let used = windows.len() * context;
    let other = tokens.get(used..).filter(|t| t.len() >= 768);
    let rest = other.unwrap_or(&tokens);
    let (calibrated, rest) = rest.split_at(rest.len().min(512));
    let source = Source::new(&model, options, calibrated, windows, progress)?;
    let dense = mean(source.dense.iter().flatten().copied()).exp();
    let title = format!(
        "perplexity of {}, second half of {} windows of {context} tokens; dense {dense:.3}; thresholds from {} {} tokens",
        model.name,
        source.windows.len(),
        calibrated.len(),
        which_tokens(other.is_some()),
    );
    let mut table = Table::new(
        &title,
        &[
            "way",
            "unread",
            "all sparse",
            "over dense, %",
            "last tenth sparse",
        ],
    );
    let whole = Split {
        rho: 1.0,
        sparsity: 0.0,
    };
    let mut rows = vec![(
        "all channels, packed anew".to_owned(),
        Keep::Split(1.0),
        whole.sparsity,
    )];
    for &sparsity in sparsities {
        for (name, way) in [
            ("|x|", Keep::Split(1.0)),
            ("|x| by column norm", Keep::Split(NEARLY)),
            ("rho 0.95", Keep::Split(0.95)),
            ("low rank only", Keep::Split(0.0)),
            ("random channels", Keep::Random),
        ] {
            let weak = matches!(way, Keep::Random | Keep::Split(0.0));
            if !weak || sparsity == 0.5 {
                rows.push((name.to_owned(), way, sparsity));
            }
        }
    }
    progress.start("perplexity", "ways", Some(rows.len() as u64));
    let (mut values, mut lines, mut at_half) =
        (Vec::new(), Vec::<crate::plot::Line>::new(), Vec::new());
    for (name, way, sparsity) in rows {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let splits = match way {
            Keep::Split(rho) => vec![Split { rho, sparsity }; source.factors.len()],
            Keep::Random => vec![Split { rho: 1.0, sparsity }; source.factors.len()],
        };
        let decoder = source.decoder(&splits, way == Keep::Random, options.seed)?;
        let [all, tenth] = source.perplexity(decoder)?;
        let over = 100.0 * (all / dense - 1.0);
        table.row([
            name.clone(),
            format!("{sparsity}"),
            format!("{all:.3}"),
            format!("{over:+.1}"),
            format!("{tenth:.3}"),
        ]);
        values.push(json!({"way": name, "sparsity": sparsity, "all": all, "last_tenth": tenth}));
        match lines.iter_mut().find(|l| l.0 == name) {
            Some(line) => line.1.push((sparsity, all)),
            None if sparsity > 0.0 => lines.push((name.clone(), vec![(sparsity, all)])),
            None => {}
        }
        if sparsity == 0.5 {
            at_half.push((all, tenth));
        }
        progress.advance(1);
    }
    progress.finish();
    let mut findings = vec![format!(
        "claim: half of the weights unread is comparable to dense (ten tasks on Llama-2/3 and Mistral). Perplexity of {}: dense \
         {dense:.3}, all tokens sparse {:.3} by |x|, {:.3} by column norms, {:.3} with rho 0.95 ({:+.1} %, aim within 10 %: {}); \
         with the authors' last tenth {:.3}. Low rank only {:.1}, random channels {:.1}.",
        model.name,
        at_half[0].0,
        at_half[1].0,
        at_half[2].0,
        100.0 * (at_half[2].0 / dense - 1.0),
        holds(at_half[2].0 <= 1.1 * dense),
        at_half[2].1,
        at_half[3].0,
        at_half[4].0,
    )];
    let mut searched = json!(null);
    if options.sweep {
        let (found, value) = source.search(options, rest, at_half[2].0, progress)?;
        findings.push(found);
        searched = value;
    }
    let mut tables = vec![table];
    let half = source.decoder(&vec![Split::default(); source.factors.len()], false, 0)?;
    let half = model.replaced(half);
    let ways = vec![Way::new("half of the weights", &half, |length| {
        half.policy(length, None, None)
    })];
    let said = answers(options, &model, ways, progress, &mut tables, &mut findings)?;
    Ok(Some(Part {
        tables,
        findings,
        values: json!({"dense": dense, "ways": values, "search": searched, "answers": said}),
        lines,
    }))
}

impl<'a> Source<'a> {
    fn new(
        model: &'a Model,
        options: &BenchOptions,
        calibrated: &[u32],
        windows: Vec<Vec<u32>>,
        progress: &dyn Progress,
    ) -> Result<Self, BenchError> {
        let failed = failed::<LmError>(&model.name);
        let path = options.model.as_deref().unwrap_or_default();
        let file = ModelFile::open(Path::new(path)).map_err(&failed)?;
        let calibration = Calibration::read(&file, calibrated, &model.team).map_err(&failed)?;
        let linears = linears(&file).map_err(&failed)?;
        progress.start("singular values", "matrices", Some(linears.len() as u64));
        let mut factors = Vec::with_capacity(linears.len());
        for (_, _, linear) in &linears {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            let weight = linear.weight();
            let (inputs, outputs) = (weight.row_len(), weight.rows());
            let rank = Split {
                rho: 0.0,
                sparsity: 0.5,
            }
            .rank(inputs, outputs);
            factors.push(svd(&weight.to_f32(), inputs, rank).map_err(&failed)?);
            progress.advance(1);
        }
        progress.finish();
        let mut source = Self {
            model,
            file,
            calibration,
            factors,
            windows,
            dense: Vec::new(),
        };
        for window in &source.windows {
            let mut session = source.session(&model.decoder)?;
            let found = log_probabilities(&mut session, window, &NoProgress).map_err(&failed)?;
            let half = found[window.len() / 2 - 1..].iter().map(|p| -p);
            source.dense.push(half.collect());
        }
        Ok(source)
    }

    fn session(&self, decoder: &Arc<Decoder>) -> Result<Session, BenchError> {
        let length = self.windows.first().map_or(0, Vec::len);
        let policy =
            Policy::dense(decoder, CacheType::F16, length).map_err(failed(&self.model.name))?;
        Ok(Session::new(
            Arc::clone(decoder),
            policy,
            Arc::clone(&self.model.team),
        ))
    }

    fn decoder(
        &self,
        splits: &[Split],
        random: bool,
        seed: u64,
    ) -> Result<Arc<Decoder>, BenchError> {
        let failed = failed::<LmError>(&self.model.name);
        let mut decoder = Decoder::load(&self.file).map_err(&failed)?;
        let linears = linears(&self.file).map_err(&failed)?;
        let mut rng = StdRng::seed_from_u64(seed);
        for (((layer, name, linear), split), factors) in
            linears.into_iter().zip(splits).zip(&self.factors)
        {
            let weight = linear.weight();
            let (inputs, outputs) = (weight.row_len(), weight.rows());
            let threshold = self
                .calibration
                .threshold(layer, name, split)
                .map_err(&failed)?;
            let cut = Some((factors, split.rank(inputs, outputs)));
            let mut parts = Parts::new(weight, split, threshold, cut, None);
            parts.bias = linear.bias().map(<[f32]>::to_vec);
            if random {
                let one = |_| f32::from(u8::from(rng.random_bool(1.0 - split.sparsity)));
                parts.scales = (0..inputs).map(one).collect();
                parts.threshold = Some(0.0);
            }
            let linear = RSparseLinear::new(parts).map_err(&failed)?;
            decoder
                .replace(layer, name, Box::new(linear))
                .map_err(&failed)?;
        }
        Ok(Arc::new(decoder))
    }

    /// Of both protocols: all counted tokens sparse, and the last tenth of the window.
    fn perplexity(&self, decoder: Arc<Decoder>) -> Result<[f64; 2], BenchError> {
        let failed = failed::<LmError>(&self.model.name);
        let (mut all, mut last) = (Vec::new(), Vec::new());
        for (window, dense) in self.windows.iter().zip(&self.dense) {
            let half = window.len() - window.len() / 2;
            let tenth = window.len() / 10;
            let mut session = self.session(&decoder)?;
            all.extend(decoded(&mut session, window, half).map_err(&failed)?);
            let mut session = self.session(&decoder)?;
            let sparse = decoded(&mut session, window, tenth).map_err(&failed)?;
            last.extend_from_slice(&dense[..dense.len() - sparse.len()]);
            last.extend(sparse);
        }
        Ok([mean(all.into_iter()).exp(), mean(last.into_iter()).exp()])
    }

    /// Looks for the split of every map on `tokens`, and measures it.
    fn search(
        &self,
        options: &BenchOptions,
        tokens: &[u32],
        uniform: f64,
        progress: &dyn Progress,
    ) -> Result<(String, serde_json::Value), BenchError> {
        let failed = failed::<LmError>(&self.model.name);
        let windows = tokens.chunks(256).filter(|w| w.len() > 1).take(1).collect();
        let (calibration, team) = (&self.calibration, &self.model.team);
        let trials =
            Trials::new(&self.file, calibration, 0.5, windows, team, progress).map_err(&failed)?;
        let config = SearchConfig {
            population: 16,
            generations: if options.scale == Scale::Full { 15 } else { 4 },
            seed: options.seed,
            ..SearchConfig::default()
        };
        let found = trials.search(&config, progress).map_err(&failed)?;
        let [all, tenth] = self.perplexity(self.decoder(&found.splits, false, 0)?)?;
        let rho = mean(found.splits.iter().map(|s| s.rho));
        let least = found.splits.iter().map(|s| s.rho).fold(1.0, f64::min);
        let text = format!(
            "search of rho for every map ({} of {} for {} generations): {all:.3} where 0.95 for all has {uniform:.3}: {}; mean \
             rho {rho:.3}, least {least:.3} (the authors', Llama-3-8B: 0.962, 0.021); loss on the searched text {:.4} from {:.4}.",
            config.population / 4,
            config.population,
            config.generations,
            holds(all < uniform),
            found.loss,
            found.uniform_loss,
        );
        let value = json!({
            "all": all, "last_tenth": tenth, "loss": found.loss, "uniform_loss": found.uniform_loss, "mean_rho": rho,
            "rho": found.splits.iter().map(|s| s.rho).collect::<Vec<_>>(),
        });
        Ok((text, value))
    }
}

/// `-ln p` of the last `count` tokens, written one by one.
fn decoded(session: &mut Session, window: &[u32], count: usize) -> Result<Vec<f64>, LmError> {
    let (prompt, rest) = window.split_at(window.len() - count);
    session.prefill(prompt, &NoProgress)?;
    let mut found = Vec::with_capacity(count);
    for &token in rest {
        found.push(-log_probability(session.logits(), token));
        session.step(token)?;
    }
    Ok(found)
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.fold((0.0, 0u32), |(s, n), x| (s + x, n + 1));
    sum / f64::from(count.max(1))
}
