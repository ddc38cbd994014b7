//! Which channels matter: the rankings that Double Sparsity selects by, and the
//! calibration that makes them.
//!
//! The file is the authors': a JSON object whose keys are
//! `model.layers.N.self_attn.{q,k,qk}_proj` and whose values are lists `[heads][head_dim]`
//! of channel numbers, best first (`k` has one list per KV head). Files that we calibrate
//! also have `..._proj.kv_heads`, one list per KV head ranked by the sum of importance
//! over the query heads that share it; the authors' code ignores those keys.
//!
//! Importance of a channel, over all tokens of a calibration text:
//!
//! - `q`: mean of |query| before rotary embedding;
//! - `k`: mean of |key| before rotary embedding;
//! - `qk`: mean of |query * key| of the same token after rotary embedding.

use std::collections::BTreeMap;
use std::path::Path;

use keyfold_core::atomic;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::roles::Dims;

const METHOD: &str = "double-sparse";

/// By what channels are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Size of the query.
    #[default]
    Q,
    /// Size of the key.
    K,
    /// Size of the product of query and key.
    Qk,
}

impl Channel {
    const ALL: [Self; 3] = [Self::Q, Self::K, Self::Qk];

    fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::Qk => "qk",
        }
    }

    /// The key of a layer's lists in the file.
    fn key(self, layer: usize) -> String {
        format!("model.layers.{layer}.self_attn.{}_proj", self.name())
    }
}

/// Channels of every layer and head, best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rankings(BTreeMap<String, Vec<Vec<u32>>>);

/// What our files add to a key for lists of KV heads.
const SHARED: &str = ".kv_heads";

impl Rankings {
    /// Reads the authors' file or one of ours.
    pub fn load(path: &Path) -> Result<Self, Refusal> {
        let text = std::fs::read_to_string(path).map_err(|source| Refusal::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(&text).map_err(|what| Refusal::File {
            path: path.to_owned(),
            what,
        })
    }

    /// Reads a file's text; the error says what is wrong.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| format!("no rankings of channels: {error}"))
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<(), Refusal> {
        let io = |source| Refusal::Io {
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_vec(&self.0).map_err(|error| io(error.into()))?;
        atomic::write(path, &text).map_err(io)
    }

    /// The same channels in the interleaved layout, where the pair `c`, `c + d/2` of the
    /// rotate-half layout lies at `2c`, `2c + 1`.
    pub fn interleaved(mut self, head_dim: usize) -> Self {
        let (dim, half) = (head_dim as u32, head_dim as u32 / 2);
        for channel in self.0.values_mut().flatten().flatten() {
            // Channels outside the head stay what they are, to be refused by name.
            if *channel < dim {
                *channel = (2 * *channel) % dim + *channel / half.max(1);
            }
        }
        self
    }

    /// The way back of [`interleaved`](Self::interleaved).
    pub fn half_rotated(mut self, head_dim: usize) -> Self {
        let (dim, half) = (head_dim as u32, head_dim as u32 / 2);
        for channel in self.0.values_mut().flatten().flatten() {
            if *channel < dim {
                *channel = *channel / 2 + half * (*channel % 2);
            }
        }
        self
    }

    /// The first channels of every head (a baseline).
    pub fn first(dims: &Dims) -> Self {
        Self::build(dims, |_| (0..dims.head_dim as u32).collect())
    }

    /// Channels in an order drawn for every layer and head (a baseline).
    pub fn random(dims: &Dims, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::build(dims, |_| {
            let mut order: Vec<u32> = (0..dims.head_dim as u32).collect();
            order.shuffle(&mut rng);
            order
        })
    }

    /// Rankings of all kinds from one function of the layer, called for every list.
    fn build(dims: &Dims, mut list: impl FnMut(usize) -> Vec<u32>) -> Self {
        let mut all = BTreeMap::new();
        for layer in 0..dims.layers {
            for channel in Channel::ALL {
                let heads = match channel {
                    Channel::K => dims.kv_heads,
                    _ => dims.heads,
                };
                let lists = (0..heads).map(|_| list(layer)).collect();
                all.insert(channel.key(layer), lists);
            }
        }
        Self(all)
    }

    /// The ranking of every query head of a layer.
    pub fn of_heads(
        &self,
        layer: usize,
        channel: Channel,
        dims: &Dims,
    ) -> Result<Vec<Vec<u32>>, Refusal> {
        let key = channel.key(layer);
        let lists = self.checked(&key, dims)?;
        if lists.len() == dims.heads {
            return Ok(lists.clone());
        }
        if channel == Channel::K && lists.len() == dims.kv_heads {
            let of_head = |head: usize| lists[head / dims.group()].clone();
            return Ok((0..dims.heads).map(of_head).collect());
        }
        Err(Refusal::setting(
            METHOD,
            format!(
                "{key} ranks the channels of {} heads, the model has {}",
                lists.len(),
                dims.heads
            ),
        ))
    }

    /// The ranking of every KV head of a layer: by the summed importance where the file
    /// has it, else by the sum of a channel's places in the lists of the group.
    pub fn of_kv_heads(
        &self,
        layer: usize,
        channel: Channel,
        dims: &Dims,
    ) -> Result<Vec<Vec<u32>>, Refusal> {
        let shared = channel.key(layer) + SHARED;
        if self.0.contains_key(&shared) {
            let lists = self.checked(&shared, dims)?;
            if lists.len() == dims.kv_heads {
                return Ok(lists.clone());
            }
            return Err(Refusal::setting(
                METHOD,
                format!(
                    "{shared} ranks the channels of {} heads, the model has {} for keys",
                    lists.len(),
                    dims.kv_heads
                ),
            ));
        }
        let heads = self.of_heads(layer, channel, dims)?;
        let of_group = |lists: &[Vec<u32>]| {
            let mut places = vec![0u64; dims.head_dim];
            for list in lists {
                for (place, &channel) in list.iter().enumerate() {
                    places[channel as usize] += place as u64;
                }
            }
            let mut order: Vec<u32> = (0..dims.head_dim as u32).collect();
            order.sort_by_key(|&channel| places[channel as usize]);
            order
        };
        Ok(heads.chunks(dims.group()).map(of_group).collect())
    }

    /// The lists under `key`, each of which must name every channel once.
    fn checked(&self, key: &str, dims: &Dims) -> Result<&Vec<Vec<u32>>, Refusal> {
        let refuse = |what: String| Refusal::setting(METHOD, format!("{key} {what}"));
        let lists = self.0.get(key).ok_or_else(|| {
            refuse("is missing: the rankings are of another model, or of fewer layers".into())
        })?;
        for (head, list) in lists.iter().enumerate() {
            if list.len() != dims.head_dim {
                return Err(refuse(format!(
                    "ranks {} channels of head {head}, the model's heads have {}",
                    list.len(),
                    dims.head_dim
                )));
            }
            let mut seen = vec![false; dims.head_dim];
            for &channel in list {
                match seen.get_mut(channel as usize) {
                    None => return Err(refuse(format!("names channel {channel} of head {head}"))),
                    Some(true) => {
                        return Err(refuse(format!(
                            "names channel {channel} of head {head} twice"
                        )));
                    }
                    Some(seen) => *seen = true,
                }
            }
        }
        Ok(lists)
    }
}

/// Sums up how much the channels matter while a model reads a text.
#[derive(Debug, Clone)]
pub struct Calibration {
    dims: Dims,
    layers: Vec<Importance>,
    last_block: bool,
}

/// Sums of one layer.
#[derive(Debug, Clone)]
struct Importance {
    tokens: u64,
    /// Tokens that `qk` is a sum of.
    qk_tokens: u64,
    /// `[heads, head_dim]`.
    q: Vec<f64>,
    /// `[kv_heads, head_dim]`.
    k: Vec<f64>,
    /// `[heads, head_dim]`.
    qk: Vec<f64>,
}

impl Calibration {
    /// Nothing seen yet.
    pub fn new(dims: Dims) -> Self {
        let head = dims.head_dim;
        let importance = Importance {
            tokens: 0,
            qk_tokens: 0,
            q: vec![0.0; dims.heads * head],
            k: vec![0.0; dims.kv_heads * head],
            qk: vec![0.0; dims.heads * head],
        };
        Self {
            layers: vec![importance; dims.layers],
            dims,
            last_block: false,
        }
    }

    /// Lets `qk` count the last call of [`add`](Self::add) only, as the authors' script
    /// does (the key that it looks for is not the one that it stores).
    pub fn last_block_only(mut self) -> Self {
        self.last_block = true;
        self
    }

    /// Adds the queries `[n, heads, head_dim]` and keys `[n, kv_heads, head_dim]` of a block
    /// of text, as they are before and after rotary embedding.
    pub fn add(
        &mut self,
        layer: usize,
        queries: &[f32],
        keys: &[f32],
        rotated_queries: &[f32],
        rotated_keys: &[f32],
    ) {
        let (dims, sums) = (self.dims, &mut self.layers[layer]);
        let (wide, narrow) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        let tokens = (queries.len() / wide) as u64;
        sums.tokens += tokens;
        sums.qk_tokens += tokens;
        if self.last_block {
            sums.qk.fill(0.0);
            sums.qk_tokens = tokens;
        }
        let add_sizes = |sums: &mut [f64], rows: &[f32]| {
            for row in rows.chunks_exact(sums.len()) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(x.abs());
                }
            }
        };
        add_sizes(&mut sums.q, queries);
        add_sizes(&mut sums.k, keys);
        let rows = rotated_queries.chunks_exact(wide);
        for (queries, keys) in rows.zip(rotated_keys.chunks_exact(narrow)) {
            let heads = queries.chunks_exact(dims.head_dim);
            for (head, (query, sum)) in heads
                .zip(sums.qk.chunks_exact_mut(dims.head_dim))
                .enumerate()
            {
                let key = &keys[head / dims.group() * dims.head_dim..][..dims.head_dim];
                for ((sum, q), k) in sum.iter_mut().zip(query).zip(key) {
                    *sum += f64::from((q * k).abs());
                }
            }
        }
    }

    /// Tokens of the first layer so far.
    pub fn tokens(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.tokens)
    }

    /// The rankings that the sums give; of equally important channels the first is first.
    pub fn rankings(&self) -> Rankings {
        let head = self.dims.head_dim;
        let mut all = BTreeMap::new();
        for (layer, sums) in self.layers.iter().enumerate() {
            for (channel, importance) in [
                (Channel::Q, &sums.q),
                (Channel::K, &sums.k),
                (Channel::Qk, &sums.qk),
            ] {
                let lists = importance.chunks_exact(head).map(ranked).collect();
                all.insert(channel.key(layer), lists);
                if channel == Channel::K {
                    continue;
                }
                let groups = importance.chunks_exact(head * self.dims.group());
                let shared = groups.map(|group| {
                    let sum = |c: usize| group.iter().skip(c).step_by(head).sum::<f64>();
                    ranked(&(0..head).map(sum).collect::<Vec<f64>>())
                });
                all.insert(channel.key(layer) + SHARED, shared.collect());
            }
        }
        Rankings(all)
    }
}

/// Channels by falling importance.
fn ranked(importance: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..importance.len() as u32).collect();
    order.sort_by(|&a, &b| importance[b as usize].total_cmp(&importance[a as usize]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> Dims {
        Dims {
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            hidden: 8,
            vocab: 10,
        }
    }

    #[test]
    fn calibration_ranks_by_mean_size_before_and_by_products_after_rotation() {
        let mut calibration = Calibration::new(dims());
        // Two tokens; head 0 is large on channel 2, head 1 on channel 1 and a little on 2.
        let queries = [
            0.1, 0.0, -9.0, 0.2, 0.0, 3.0, 2.0, 0.1, //
            0.1, 0.0, 9.0, 0.2, 0.0, -3.0, 2.0, 0.1,
        ];
        let keys = [4.0, 3.0, 2.0, 1.0, -4.0, -3.0, 2.0, 1.0];
        calibration.add(0, &queries, &keys, &queries, &keys);
        let rankings = calibration.rankings();
        let q = rankings.of_heads(0, Channel::Q, &dims()).unwrap();
        assert_eq!(q, [[2, 3, 0, 1], [1, 2, 3, 0]]);
        let k = rankings.of_heads(0, Channel::K, &dims()).unwrap();
        assert_eq!(k, [[0, 1, 2, 3], [0, 1, 2, 3]]);
        // Products: head 0: .4 0 18 .2; head 1: 0 9 4 .1.
        let qk = rankings.of_heads(0, Channel::Qk, &dims()).unwrap();
        assert_eq!(qk, [[2, 0, 3, 1], [1, 2, 3, 0]]);
        // The sum over the group: .4 9 22 .3; by places it would be 2, 1, 3, 0.
        let shared = rankings.of_kv_heads(0, Channel::Qk, &dims()).unwrap();
        assert_eq!(shared, [[2, 1, 0, 3]]);
        assert_eq!(calibration.tokens(), 2);
    }

    #[test]
    fn the_authors_file_is_read_and_its_groups_are_ranked_by_places() {
        let text = r#"{"model.layers.0.self_attn.q_proj": [[2, 3, 0, 1], [3, 1, 0, 2]],
            "model.layers.0.self_attn.k_proj": [[1, 0, 2, 3]]}"#;
        let rankings = Rankings::from_json(text).unwrap();
        // Places summed: 0: 4, 1: 4, 2: 3, 3: 1.
        let shared = rankings.of_kv_heads(0, Channel::Q, &dims()).unwrap();
        assert_eq!(shared, [[3, 2, 0, 1]]);
        let k = rankings.of_heads(0, Channel::K, &dims()).unwrap();
        assert_eq!(k[1], [1, 0, 2, 3]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("channels.json");
        rankings.save(&path).unwrap();
        assert_eq!(Rankings::load(&path).unwrap(), rankings);
    }

    #[test]
    fn interleaved_rankings_name_the_same_numbers() {
        let half: Vec<u32> = (0..8).collect();
        let rankings = Rankings(BTreeMap::from([(Channel::Q.key(0), vec![half])]));
        let moved = rankings.interleaved(8);
        assert_eq!(moved.0[&Channel::Q.key(0)], [[0, 2, 4, 6, 1, 3, 5, 7]]);
        let back = moved.half_rotated(8);
        assert_eq!(back.0[&Channel::Q.key(0)], [[0, 1, 2, 3, 4, 5, 6, 7]]);
    }

    #[test]
    fn the_last_block_alone_counts_where_the_authors_are_followed() {
        let first = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let second = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let keys = [1.0; 4];
        let feed = |mut calibration: Calibration| {
            for _ in 0..5 {
                calibration.add(0, &first, &keys, &first, &keys);
            }
            calibration.add(0, &second, &keys, &second, &keys);
            calibration
                .rankings()
                .of_heads(0, Channel::Qk, &dims())
                .unwrap()[0][0]
        };
        assert_eq!(feed(Calibration::new(dims())), 0);
        assert_eq!(feed(Calibration::new(dims()).last_block_only()), 1);
    }

    #[test]
    fn unfit_rankings_are_refused_by_name() {
        let refused = |text: &str, says: &str| {
            let rankings = Rankings::from_json(text).unwrap();
            let error = rankings
                .of_heads(0, Channel::Q, &dims())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("layers.0.self_attn.q_proj") && error.contains(says),
                "{error}"
            );
        };
        let key = "model.layers.0.self_attn.q_proj";
        refused("{}", "missing");
        refused(&format!(r#"{{"{key}": [[0, 1, 2, 3]]}}"#), "1 heads");
        refused(
            &format!(r#"{{"{key}": [[0, 1, 2], [0, 1, 2]]}}"#),
            "3 channels",
        );
        refused(
            &format!(r#"{{"{key}": [[0, 1, 2, 4], [0, 1, 2, 3]]}}"#),
            "channel 4",
        );
        refused(
            &format!(r#"{{"{key}": [[0, 1, 2, 2], [0, 1, 2, 3]]}}"#),
            "twice",
        );
        assert!(Rankings::from_json("[1]").is_err());
        let missing = Rankings::load(Path::new("no such file")).unwrap_err();
        assert!(missing.to_string().contains("no such file"));
    }
}
