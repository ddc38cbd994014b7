//! How fast the user's model writes whole tokens from caches of all kinds, beside what the
//! bytes allow and beside a peer's caches of 8 and 4 bits (parity/peers/llamacpp.py).

use keyfold_core::NoProgress;
use keyfold_lm::Policy;
use keyfold_lm::decoding::argmax;
use keyfold_lm::store::CacheType;
use keyfold_lm::store::kvquant::KvQuantStore;

use super::text::dense;
use super::*;
use crate::experiments::decoder::ask;
use crate::experiments::long_context::Model;
use crate::experiments::peers::Engine;
use crate::{Scale, plot};

/// One cache at one context.
struct Written {
    cache: String,
    rate: f64,
    /// That a token reads.
    bytes: f64,
}

const PLAIN: [CacheType; 3] = [CacheType::F16, CacheType::Q8_0, CacheType::Q4_0];

pub(super) fn tokens(
    options: &BenchOptions,
    model: &Model,
    text: &[u32],
    calibration: &Calibration,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (contexts, count): (&[usize], usize) = match options.scale {
        Scale::Smoke => (&[64], 4),
        Scale::Small => (&[4000], 32),
        Scale::Full => (&[4000, 8000, 32_000], 64),
    };
    let peers = options.peers.iter().map(|peer| Engine::parse(peer));
    let peers: Vec<Engine> = peers.collect::<Result<_, _>>()?;
    let columns = [
        "context",
        "by",
        "cache",
        "tokens a second",
        "times f16",
        "bytes allow",
        "of it, %",
    ];
    let title = format!(
        "tokens of {} that are written a second, {} threads",
        model.name,
        model.team.threads()
    );
    let mut table = Table::new(&title, &columns);
    let mut values = Vec::new();
    // A longer context than the model's is left out.
    let fits = |context: &usize| model.context(context + count) == context + count;
    for &context in contexts.iter().filter(|c| fits(c)) {
        let ours = ours(model, text, calibration, (context, count), progress)?;
        let f16 = (ours[0].rate, ours[0].bytes);
        for one in &ours {
            let (faster, allowed) = (one.rate / f16.0, f16.1 / one.bytes);
            table.row([
                context.to_string(),
                "keyfold".to_owned(),
                one.cache.clone(),
                plot::shown(one.rate),
                plot::shown(faster),
                plot::shown(allowed),
                format!("{:.0}", 100.0 * faster / allowed),
            ]);
            values.push(json!({
                "context": context, "by": "keyfold", "cache": one.cache, "written": one.rate,
                "times_f16": faster, "allowed": allowed,
            }));
        }
        let three = ours.iter().find(|one| one.cache.contains("3 bits"));
        for peer in &peers {
            let mut of_f16 = f64::NAN;
            for kind in PLAIN {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                let cache = kind.blocks().name().to_lowercase();
                let asked = json!({
                    "model": model.name, "contexts": [context], "write": count, "repeat": 1,
                    "threads": model.team.threads(), "cache": cache,
                });
                let rate = ask(peer, &asked, 1)?[0].written;
                if kind == CacheType::F16 {
                    of_f16 = rate;
                }
                table.row([
                    context.to_string(),
                    peer.name.clone(),
                    cache.clone(),
                    plot::shown(rate),
                    plot::shown(rate / of_f16),
                    String::new(),
                    String::new(),
                ]);
                values.push(json!({
                    "context": context, "by": peer.name, "cache": cache, "written": rate,
                }));
                if let Some(three) = three.filter(|_| kind != CacheType::F16) {
                    findings.push(format!(
                        "{context} tokens: from 3 bits {:.2} times as many tokens a second as {} from {cache}.",
                        three.rate / rate,
                        peer.name
                    ));
                }
            }
        }
    }
    if table.rows.is_empty() {
        findings.push(format!(
            "whole tokens were not timed: {} reads no {} tokens.",
            model.name, contexts[0]
        ));
        return Ok(Value::Null);
    }
    tables.push(table);
    Ok(json!(values))
}

/// Rates and bytes from all caches after `context` tokens of a text, which is repeated where
/// it is too short.
fn ours(
    model: &Model,
    text: &[u32],
    calibration: &Calibration,
    (context, count): (usize, usize),
    progress: &dyn Progress,
) -> Result<Vec<Written>, BenchError> {
    let prompt: Vec<u32> = text.iter().copied().cycle().take(context).collect();
    let mut stores: Vec<(String, Box<dyn KvStore>)> = Vec::new();
    for kind in PLAIN {
        let name = kind.blocks().name().to_lowercase();
        stores.push((name, dense(model, kind)?));
    }
    for bits in BITS {
        let config = config(bits, Datatype::Nuq, true);
        let store = KvQuantStore::new(model.decoder.config(), config, calibration);
        let store = store.map_err(failed("kvquant"))?;
        stores.push((format!("kvquant, {bits} bits, 1 %"), Box::new(store)));
    }
    progress.start("whole tokens", "caches", Some(stores.len() as u64));
    let failed = failed(&model.name);
    let mut found = Vec::with_capacity(stores.len());
    for (cache, store) in stores {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut session = model.session(Policy::of(&model.decoder, store));
        session.prefill(&prompt, &NoProgress).map_err(&failed)?;
        for _ in 0..count {
            let token = argmax(session.logits());
            session.step(token).map_err(&failed)?;
        }
        let report = session.report();
        found.push(Written {
            cache,
            rate: count as f64 / report.decode_time.as_secs_f64(),
            bytes: (report.weight_bytes + report.row_bytes) as f64 / count as f64,
        });
        progress.advance(1);
    }
    progress.finish();
    Ok(found)
}
