//! Perplexity of the user's model after prompts were thinned. Texts have no images, so here
//! LOOK-M is H2O whose dropped rows are merged.

use keyfold_lm::perplexity::{PerplexityOptions, Protocol, perplexity};
use keyfold_lm::{LmError, Policy};

use super::*;
use crate::Scale;
use crate::experiments::long_context::{Model, answers};
use keyfold_core::NoProgress;

pub(super) fn perplexities(
    bench: &BenchOptions,
    model: &Model,
    tokens: &[u32],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (wanted, windows, decoded) = match bench.scale {
        Scale::Smoke => (256, 1, 16),
        Scale::Small => (1024, 4, 96),
        Scale::Full => (2048, 20, 256),
    };
    let (dims, context) = (model.dims(), model.context(wanted));
    let options = PerplexityOptions {
        context,
        windows,
        protocol: Protocol::Decoded(decoded),
        prefix: model.prefix(),
    };
    let read = |evictor: &dyn Fn() -> Result<Option<Box<dyn Evictor>>, BenchError>| {
        let mut session = || {
            let wrong = |e: BenchError| LmError::Input {
                what: e.to_string(),
            };
            let mut policy = model.policy(context, None, None).map_err(wrong)?;
            if let Policy::Roles { evictor: to, .. } = &mut policy {
                *to = evictor().map_err(wrong)?;
            }
            Ok::<_, LmError>(model.session(policy))
        };
        let found = perplexity(&mut session, tokens, &options, &NoProgress);
        Ok::<f64, BenchError>(found.map_err(failed(&model.name))?.perplexity)
    };
    let ways = [
        Way::H2o,
        Way::LookM(Merge::Pivotal, false),
        Way::LookM(Merge::Average, false),
        Way::LookM(Merge::Average, true),
    ];
    let keeps = [0.5, 0.2, 0.1];
    progress.start(
        "perplexity",
        "readings",
        Some(1 + (ways.len() * keeps.len()) as u64),
    );
    let dense = read(&|| Ok(None))?;
    progress.advance(1);
    let title = format!(
        "perplexity of {}, the last {decoded} of {windows} windows of {context} tokens after their prompt was thinned; all rows \
         {dense:.3}",
        model.name
    );
    let columns = ["way", "0.5 kept", "0.2 kept", "0.1 kept"];
    let mut table = Table::new(&title, &columns);
    let mut found = Vec::new();
    for way in ways {
        let mut row = [0.0; 3];
        for (cell, keep) in row.iter_mut().zip(keeps) {
            if progress.cancelled() {
                return Err(BenchError::Cancelled);
            }
            *cell = read(&|| way.evictor(keep, dims).map(Some))?;
            progress.advance(1);
        }
        let name = way.name().replace("text prior", "H2O");
        let [a, b, c] = row.map(|p| format!("{p:.3}"));
        table.row([name, a, b, c]);
        found.push(row);
    }
    progress.finish();
    tables.push(table);
    findings.push(format!(
        "on text without images, 0.2 of the rows kept: H2O {:.2}, with pivotal merge {:.2}, averages {:.2}, counted {:.2} (all \
         rows {dense:.2}); merging helps: {}.",
        found[0][1], found[1][1], found[2][1], found[3][1], holds(found[1][1] < found[0][1]),
    ));
    let said = side_by_side(bench, model, &ways, progress, tables, findings)?;
    let names: Vec<String> = ways.iter().map(|w| w.name()).collect();
    Ok(json!({"dense": dense, "ways": names, "keep": keeps, "perplexity": found, "answers": said}))
}

/// Records and chat answers after prompts were thinned to a half and to a fifth.
fn side_by_side(
    options: &BenchOptions,
    model: &Model,
    ways: &[Way],
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let mut compared = Vec::new();
    for keep in [0.5, 0.2] {
        for &way in ways {
            let policy = move |length| {
                let mut policy = model.policy(length, None, None)?;
                if let Policy::Roles { evictor: to, .. } = &mut policy {
                    *to = Some(way.evictor(keep, model.dims())?);
                }
                Ok(policy)
            };
            let name = way.name().replace("text prior", "H2O");
            let name = format!("{name}, {keep} kept");
            compared.push(answers::Way::new(name, model, policy));
        }
    }
    answers::answers(options, model, compared, progress, tables, findings)
}
