//! Recall of pairs in the text and in the images of long prompts.
//!
//! An image is 576 tokens, pairs of a key and its value out of few kinds, so that many of its
//! rows are alike; the model takes tokens and no vectors, so rows of a kind are equal up to
//! their positions.

use keyfold_core::NoProgress;
use keyfold_lm::Policy;
use keyfold_lm::recall::RecallConfig;
use keyfold_lm::roles::TokenKinds;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::Scale;
use crate::experiments::long_context::{Model, answered};

/// Rows of an image.
const IMAGE: usize = 576;

/// Of the model's 16 keys the first stand in the text, the others in images.
const IN_TEXT: u32 = 8;

/// A prompt and two questions on it.
struct Prompt {
    tokens: Vec<u32>,
    kinds: TokenKinds,
    /// Key and value.
    of_text: (u32, u32),
    of_image: (u32, u32),
}

impl Prompt {
    /// Text, an image, text, an image, ..., text; `n` tokens are known: a quarter keys, a
    /// quarter values, the others fillers.
    fn new(n: u32, images: usize, rng: &mut StdRng) -> Self {
        let quarter = n / 4;
        let value = |key: u32, shift: u32| quarter + (key * 5 + shift) % quarter;
        let shift = rng.random_range(0..quarter);
        let (mut tokens, mut spans) = (Vec::new(), Vec::new());
        let text = |tokens: &mut Vec<u32>, rng: &mut StdRng, pairs: &[u32]| {
            for _ in 0..24 {
                tokens.push(rng.random_range(2 * quarter..n));
            }
            for &key in pairs {
                tokens.extend([key, value(key, shift)]);
                tokens.extend((0..4).map(|_| rng.random_range(2 * quarter..n)));
            }
        };
        let asked = rng.random_range(0..IN_TEXT);
        text(&mut tokens, rng, &[asked, (asked + 1) % IN_TEXT]);
        for i in 0..images {
            let from = tokens.len() as u32;
            for _ in 0..IMAGE / 2 {
                let key = rng.random_range(IN_TEXT..quarter);
                tokens.extend([key, value(key, shift)]);
            }
            spans.push((from, tokens.len() as u32));
            let more = (asked + 2 + i as u32) % IN_TEXT;
            text(&mut tokens, rng, &[more]);
        }
        let in_image = rng.random_range(IN_TEXT..quarter);
        Self {
            tokens,
            kinds: TokenKinds { images: spans },
            of_text: (asked, value(asked, shift)),
            of_image: (in_image, value(in_image, shift)),
        }
    }
}

pub(super) fn recall(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<Value, BenchError> {
    let (images, prompts) = match options.scale {
        Scale::Smoke => (1, 2),
        Scale::Small => (3, 8),
        Scale::Full => (6, 40),
    };
    let config = RecallConfig {
        layers: 3,
        ..RecallConfig::default()
    };
    let model = Model::recall(&config, options.thread_count())?;
    let (dims, name) = (model.dims(), model.name.clone());
    let ways = [
        Way::Recent,
        Way::H2o,
        Way::LookM(Merge::None, false),
        Way::LookM(Merge::Pivotal, false),
        Way::LookM(Merge::Average, false),
        Way::LookM(Merge::Average, true),
    ];
    let keeps = [0.5, 0.2, 0.1, 0.05];
    let title = format!(
        "answers right, of pairs in text / in images; {prompts} prompts with {images} images of {IMAGE} rows, {name}"
    );
    let columns = ["way", "0.5 kept", "0.2 kept", "0.1 kept", "0.05 kept"];
    let mut table = Table::new(&title, &columns);
    progress.start("recall", "ways", Some(ways.len() as u64));
    let (mut values, mut found) = (Vec::new(), Vec::new());
    for way in ways {
        let mut rights = [[0.0f64; 2]; 4];
        for (right, keep) in rights.iter_mut().zip(keeps) {
            for i in 0..prompts {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                let mut rng = StdRng::seed_from_u64(options.seed.wrapping_add(i));
                let prompt = Prompt::new(dims.vocab as u32, images, &mut rng);
                let mut policy = model.policy(prompt.tokens.len() + 2, None, None)?;
                if let Policy::Roles { evictor, .. } = &mut policy {
                    *evictor = Some(way.evictor(keep, dims)?);
                }
                let mut session = model.session(policy);
                session.set_kinds(prompt.kinds.clone());
                let read = session.prefill(&prompt.tokens, &NoProgress);
                read.map_err(failed(&name))?;
                for (right, (key, value)) in right.iter_mut().zip([prompt.of_text, prompt.of_image])
                {
                    session.step(key).map_err(failed(&name))?;
                    let (known, _) = answered(session.logits(), value);
                    *right += f64::from(u8::from(known));
                    session
                        .truncate(prompt.tokens.len())
                        .map_err(failed(&name))?;
                }
            }
            // Divided once: all right is 1 exactly, however many prompts there are.
            right.iter_mut().for_each(|r| *r /= prompts as f64);
        }
        let cell = |i: usize| {
            format!(
                "{:.0} / {:.0} %",
                100.0 * rights[i][0],
                100.0 * rights[i][1]
            )
        };
        table.row([way.name(), cell(0), cell(1), cell(2), cell(3)]);
        values.push(json!({"way": way.name(), "keep": keeps, "text_and_image": rights}));
        found.push(rights);
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let text = |way: usize, keep: usize| found[way][keep][0];
    findings.push(format!(
        "claim: a fifth of the cache, as good answers. Questions on text stay right with the text prior at every size: {} \
         (pivotal merge {:.0} % at 0.2, {:.0} % at 0.05; dropped {:.0} % and {:.0} %); H2O loses them at 0.1: {} ({:.0} %).",
        holds((0..4).all(|keep| text(2, keep) == 1.0 && text(3, keep) == 1.0)),
        100.0 * text(3, 1), 100.0 * text(3, 3), 100.0 * text(2, 1), 100.0 * text(2, 3),
        holds(text(1, 2) < 1.0), 100.0 * text(1, 2),
    ));
    Ok(json!(values))
}
