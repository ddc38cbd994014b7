//! What the sparse attention of a trained model looks at: how many keys each position has, where
//! they stand, and whether the answers that it is asked for are among them.

use burn::tensor::Device;
use keyfold_core::ModelFolder;
use keyfold_nn::HaxModel;
use keyfold_nn::mixers::Looked;
use keyfold_sequence::hax::{Selected, Source};
use keyfold_sequence::recall::RecallText;
use keyfold_train::TrainError;
use serde::{Deserialize, Serialize};

use super::{HaxConfig, HaxLearning, HaxTask, window};
use crate::masked_model::TOGETHER;
use crate::training::model_error;

/// Parts of a text by which it is told where keys stand.
const PARTS: usize = 8;

/// What a layer looks at, over all positions of some texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSparsity {
    /// Positions.
    pub positions: usize,
    /// Mean number of keys of a position.
    pub keys: f64,
    /// The most keys that a position has.
    pub most: usize,
    /// Positions without a key.
    pub without: usize,
    /// Keys as a share of those that attention to everything before would read.
    pub density: f64,
    /// Each source of keys by itself.
    pub sources: Vec<OfSource>,
    /// Keys by how far behind they stand: 0, 1, 2 to 3, 4 to 7 and so on, in doubling steps.
    pub distances: Vec<Share>,
    /// Keys by the eighth of the text that they stand in.
    pub parts: Vec<Share>,
    /// Questions of which it is known where the answer was told; none where there are none.
    pub answers: Option<Answers>,
}

/// What comes from a source of keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OfSource {
    /// The source.
    pub source: Source,
    /// Mean number of keys of a position; sources may choose the same ones.
    pub keys: f64,
    /// What positions give to its keys, of 1.
    pub attention: f64,
    /// Share of the questions whose answer's place it chooses.
    pub answers: Option<f64>,
}

/// A part of all keys.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Share {
    /// The first distance, or the first eighth, from 0.
    pub from: usize,
    /// Of all keys, of 1.
    pub keys: f64,
    /// Of all attention, of 1.
    pub attention: f64,
}

/// Whether positions that are asked look at the place where the answer was told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answers {
    /// Questions.
    pub asked: usize,
    /// Share of them with the place among their keys.
    pub found: f64,
    /// What they give to that place on average, of 1.
    pub attention: f64,
}

/// What every layer of a model looks at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sparsity {
    /// By layer.
    pub layers: Vec<LayerSparsity>,
}

/// A key of a position and what the position gives to it, for a drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The position.
    pub position: usize,
    /// Where the key stands.
    pub key: usize,
    /// What it is given, of 1.
    pub share: f32,
}

impl Sparsity {
    /// Of some texts, by the hashes that the model has; none where the model has no attention or
    /// the texts no token.
    ///
    /// # Errors
    /// When a token is not one of the model's.
    pub fn of(model: &HaxModel, texts: &[RecallText]) -> Result<Option<Self>, TrainError> {
        check(model, texts)?;
        let mut layers: Vec<Sums> = Vec::new();
        for texts in texts.chunks(TOGETHER) {
            let looked = looked(model, texts);
            layers.resize_with(looked.len(), Sums::default);
            for (sums, looked) in layers.iter_mut().zip(&looked) {
                for (text, looked) in texts.iter().zip(looked) {
                    sums.add(text, looked);
                }
            }
        }
        let layers: Option<Vec<LayerSparsity>> = layers.iter().map(Sums::means).collect();
        let layers = layers.filter(|layers| !layers.is_empty());
        Ok(layers.map(|layers| Self { layers }))
    }
}

/// By layer, all that the positions of a text look at.
///
/// # Errors
/// When a token is not one of the model's.
pub fn hits(model: &HaxModel, text: &RecallText) -> Result<Vec<Vec<Hit>>, TrainError> {
    check(model, std::slice::from_ref(text))?;
    let layers = looked(model, std::slice::from_ref(text));
    let of_layer = |texts: &Vec<Looked>| texts.iter().flat_map(of_text).collect();
    Ok(layers.iter().map(of_layer).collect())
}

fn of_text(looked: &Looked) -> impl Iterator<Item = Hit> {
    looked
        .shares
        .iter()
        .enumerate()
        .flat_map(|(position, shares)| {
            let keys = looked.keys.of(position).iter().zip(shares);
            keys.map(move |(&key, &share)| Hit {
                position,
                key: key as usize,
                share,
            })
        })
}

fn looked(model: &HaxModel, texts: &[RecallText]) -> Vec<Vec<Looked>> {
    let tokens: Vec<u32> = texts.iter().flat_map(|t| &t.tokens).copied().collect();
    let ends = texts.iter().scan(0, |end, text| {
        *end += text.tokens.len();
        Some(*end)
    });
    let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    if tokens.is_empty() {
        return Vec::new();
    }
    model.looked(&tokens, &starts)
}

fn check(model: &HaxModel, texts: &[RecallText]) -> Result<(), TrainError> {
    let tokens = model.config().vocab_size;
    for (number, text) in texts.iter().enumerate() {
        let wrong = |what: String| Err(TrainError::Config(format!("text {}: {what}", number + 1)));
        if let Some(token) = text.tokens.iter().find(|t| **t as usize >= tokens) {
            return wrong(format!(
                "the model has {tokens} tokens, and none is {token}"
            ));
        }
        let asked = text.asked.iter().map(|(at, _)| at).chain(&text.told);
        if let Some(at) = asked.max().filter(|at| **at as usize >= text.tokens.len()) {
            return wrong(format!("it has no position {at}"));
        }
    }
    Ok(())
}

/// Sums over positions.
#[derive(Default)]
struct Sums {
    positions: usize,
    /// Keys that there would be without choice.
    all: usize,
    keys: usize,
    most: usize,
    without: usize,
    attention: f64,
    sources: Vec<SourceSums>,
    distances: Vec<(usize, f64)>,
    parts: [(usize, f64); PARTS],
    asked: usize,
    found: usize,
    given: f64,
}

struct SourceSums {
    source: Source,
    keys: usize,
    attention: f64,
    found: usize,
}

impl Sums {
    fn add(&mut self, text: &RecallText, looked: &Looked) {
        let length = looked.keys.len();
        self.positions += length;
        self.all += length * (length + 1) / 2;
        for position in 0..length {
            let keys = looked.keys.of(position).len();
            self.keys += keys;
            self.most = self.most.max(keys);
            self.without += usize::from(keys == 0);
        }
        for hit in of_text(looked) {
            let share = f64::from(hit.share);
            self.attention += share;
            // In compat mode no key is later either: only means are.
            let step = doublings(hit.position - hit.key);
            if self.distances.len() <= step {
                self.distances.resize(step + 1, (0, 0.0));
            }
            for (keys, attention) in [
                &mut self.distances[step],
                &mut self.parts[hit.key * PARTS / length],
            ] {
                *keys += 1;
                *attention += share;
            }
        }
        self.add_sources(text, looked);
        for (&(at, _), &told) in text.asked.iter().zip(&text.told) {
            let at = at as usize;
            self.asked += 1;
            if let Ok(place) = looked.keys.of(at).binary_search(&told) {
                self.found += 1;
                self.given += f64::from(looked.shares[at][place]);
            }
        }
    }

    fn add_sources(&mut self, text: &RecallText, looked: &Looked) {
        if self.sources.is_empty() {
            let sources = looked.by_source.iter().map(|(source, _)| SourceSums {
                source: *source,
                keys: 0,
                attention: 0.0,
                found: 0,
            });
            self.sources = sources.collect();
        }
        for (sums, (_, chosen)) in self.sources.iter_mut().zip(&looked.by_source) {
            sums.keys += chosen.count();
            let has = |position: usize, key: u32| holds(chosen, position, key);
            let own = of_text(looked).filter(|hit| has(hit.position, hit.key as u32));
            sums.attention += own.map(|hit| f64::from(hit.share)).sum::<f64>();
            let answers = text.asked.iter().zip(&text.told);
            sums.found += answers
                .filter(|((at, _), told)| has(*at as usize, **told))
                .count();
        }
    }

    /// None where there are no positions.
    fn means(&self) -> Option<LayerSparsity> {
        if self.positions == 0 {
            return None;
        }
        let positions = self.positions as f64;
        let keys = self.keys.max(1) as f64;
        let attention = self.attention.max(f64::MIN_POSITIVE);
        let share = |from: usize, sums: &(usize, f64)| Share {
            from,
            keys: sums.0 as f64 / keys,
            attention: sums.1 / attention,
        };
        let asked = (self.asked > 0).then_some(self.asked as f64);
        let sources = self.sources.iter().map(|sums| OfSource {
            source: sums.source,
            keys: sums.keys as f64 / positions,
            attention: sums.attention / attention,
            answers: asked.map(|asked| sums.found as f64 / asked),
        });
        let distances = self.distances.iter().enumerate();
        let parts = self.parts.iter().enumerate();
        Some(LayerSparsity {
            positions: self.positions,
            keys: self.keys as f64 / positions,
            most: self.most,
            without: self.without,
            density: self.keys as f64 / self.all as f64,
            sources: sources.collect(),
            distances: distances
                .map(|(step, sums)| share(if step == 0 { 0 } else { 1 << (step - 1) }, sums))
                .collect(),
            parts: parts.map(|(part, sums)| share(part, sums)).collect(),
            answers: asked.map(|asked| Answers {
                asked: self.asked,
                found: self.found as f64 / asked,
                attention: self.given / asked,
            }),
        })
    }
}

/// 0 for 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7.
fn doublings(distance: usize) -> usize {
    (usize::BITS - distance.leading_zeros()) as usize
}

fn holds(chosen: &Selected, position: usize, key: u32) -> bool {
    // Keys of a hash come in rising order, and so do all others.
    chosen.of(position).binary_search(&key).is_ok()
}

/// Loads the model in a folder.
///
/// # Errors
/// When the folder holds no such model, or its weights do not fit config.json.
pub fn load(folder: &ModelFolder) -> Result<HaxModel, TrainError> {
    let model = HaxModel::load(folder, &Device::flex()).map_err(model_error)?;
    Ok(model)
}

/// What a run tells of itself.
#[derive(Deserialize)]
struct Run {
    /// The settings, and what is said of the data.
    config: serde_json::Map<String, serde_json::Value>,
}

/// Made-up texts of the task that the model in a run's folder learned; none of those that it
/// learned from.
///
/// # Errors
/// When the folder is not that of such a run, or the model learned to follow a user's text.
pub fn made_up(folder: &ModelFolder, count: u64, seed: u64) -> Result<Vec<RecallText>, TrainError> {
    let why = "it says what the model learned; give a text where it is lost";
    let wrong =
        |what: String| TrainError::Config(format!("{}: {what}", folder.file("run.json").display()));
    let run: Run = folder
        .json("run.json", why)
        .map_err(|e| TrainError::Config(e.to_string()))?;
    let mut settings = run.config;
    settings.remove("data");
    let config: HaxConfig =
        serde_json::from_value(settings.into()).map_err(|e| wrong(e.to_string()))?;
    if config.task == HaxTask::Language {
        let what = "the model learned to follow a text of yours: give one, as --data FILE";
        return Err(wrong(what.into()));
    }
    let task = HaxLearning {
        config: &config,
        text: &[],
        held_out: &[],
    };
    let seed = keyfold_nn::random::derive(seed, 0x5ba5);
    let texts = (0..count).map(|i| task.text(keyfold_nn::random::derive(seed, i)));
    let texts: Result<_, _> = texts.collect();
    texts.map_err(TrainError::from)
}

/// Windows of a user's text, as a model of bytes reads them.
pub fn windows(text: &str, length: usize, count: usize) -> Vec<RecallText> {
    let windows = text.as_bytes().chunks(length.max(1));
    windows.take(count).map(window).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use keyfold_nn::HaxModelConfig;
    use keyfold_sequence::hax;
    use keyfold_sequence::recall::MultiQueryRecall;

    fn model(sources: &[Source], keys: usize) -> HaxModel {
        let config = HaxModelConfig {
            sparse: hax::HaxConfig {
                sparse_arch: sources.to_vec(),
                sparse_keys: keys,
                num_hash: 2,
                ..hax::HaxConfig::default()
            },
            vocab_size: 80,
            hidden_size: 16,
            state_size: 8,
            head_dim: 8,
            ..HaxModelConfig::default()
        };
        HaxModel::init(&config, 3, &Device::flex()).unwrap()
    }

    fn texts(count: u64) -> Vec<RecallText> {
        let task = MultiQueryRecall {
            vocab_size: 80,
            input_seq_len: 32,
            ..MultiQueryRecall::default()
        };
        (0..count).map(|seed| task.text(seed).unwrap()).collect()
    }

    /// A window of 4 keys has 1, 2, 3 and then 4 keys, at distances 0 to 3.
    #[test]
    fn a_window_is_told_as_it_is() {
        let texts = texts(5);
        let found = Sparsity::of(&model(&[Source::SlidingWindow], 4), &texts);
        let found = found.unwrap().unwrap();
        assert_eq!(found.layers.len(), 2);
        for layer in &found.layers {
            let keys = 6 + 29 * 4;
            assert_eq!((layer.positions, layer.most, layer.without), (160, 4, 0));
            assert!((layer.keys - f64::from(keys) / 32.0).abs() < 1e-9);
            assert!((layer.density - f64::from(keys) / 528.0).abs() < 1e-9);
            let shares: Vec<(usize, f64)> =
                layer.distances.iter().map(|s| (s.from, s.keys)).collect();
            let want = [(0, 32), (1, 31), (2, 30 + 29)];
            assert_eq!(shares.len(), 3);
            for ((from, share), (wanted, count)) in shares.iter().zip(want) {
                assert_eq!(*from, wanted);
                assert!((share - f64::from(count) / f64::from(keys)).abs() < 1e-9);
            }
            let attention = layer.distances.iter().map(|s| s.attention).sum::<f64>();
            assert!((attention - 1.0).abs() < 1e-5);
            assert_eq!(layer.parts.len(), 8);
            // Every position but the first three looks at as many, so parts are nearly alike.
            assert!(layer.parts.iter().all(|p| (0.08..0.14).contains(&p.keys)));
            // Answers that were told fewer than 4 positions ago are found.
            let answers = layer.answers.unwrap();
            let near = texts.iter().flat_map(|t| t.asked.iter().zip(&t.told));
            let near = near.filter(|((at, _), told)| at - **told < 4).count();
            assert!(near > 0 && answers.asked == 20);
            assert!((answers.found - near as f64 / 20.0).abs() < 1e-9);
            assert_eq!(layer.sources[0].answers, Some(answers.found));
        }
    }

    #[test]
    fn sources_are_told_apart() {
        let sources = [Source::SignBinLsh, Source::Sink];
        let found = Sparsity::of(&model(&sources, 8), &texts(3))
            .unwrap()
            .unwrap();
        for layer in found.layers {
            let [hashes, sink] = &layer.sources[..] else {
                panic!("two sources")
            };
            assert_eq!([hashes.source, sink.source], sources);
            // The first four positions have 1, 2, 3 and 4 keys from the front.
            assert!((sink.keys - f64::from(6 + 29 * 4) / 32.0).abs() < 1e-9);
            assert!(hashes.keys > 0.0 && hashes.keys <= 4.0);
            // Both may choose a key, which is then read once.
            assert!(layer.keys <= sink.keys + hashes.keys + 1e-9);
            assert!(layer.keys >= sink.keys.max(hashes.keys));
            assert!(hashes.attention + sink.attention >= 1.0 - 1e-5);
        }
    }

    #[test]
    fn hits_of_a_position_share_what_it_gives() {
        let layers = hits(&model(&[Source::KeySelection], 4), &texts(1)[0]).unwrap();
        assert_eq!(layers.len(), 2);
        let mut given = [0.0; 32];
        for hit in &layers[1] {
            assert!(hit.key <= hit.position);
            given[hit.position] += hit.share;
        }
        assert!(given.iter().all(|g| (g - 1.0).abs() < 1e-5));
    }

    #[test]
    fn models_without_attention_and_tokens_of_others_are_told() {
        assert_eq!(Sparsity::of(&model(&[], 4), &texts(2)).unwrap(), None);
        let mut strange = texts(2);
        strange[1].tokens[4] = 80;
        let e = Sparsity::of(&model(&[Source::Full], 4), &strange).unwrap_err();
        let said = e.to_string();
        assert!(said.contains("text 2") && said.contains("80"), "{said}");
    }
}
