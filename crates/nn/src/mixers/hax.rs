//! The layer of HAX: a Mamba layer whose scan is joined by attention to few keys.
//!
//! Z. Zhan et al., 2025, Overcoming Long-Context Limitations of State-Space Models via
//! Context-Dependent Sparse Attention. Beside the scan of the convolved `x` (which are the
//! values as well), with `N` numbers of a query:
//!
//! ```text
//! k, q = W_xx x        k = k / √N
//! score_j = MLP(k_j, Σ_{t<=j} q_t / its length)       without gradients of k and q
//! y = scan(x) + E · attend(q, k, x)                   keys by hash and by score
//! ```
//!
//! The score learns by itself to rank keys by how much they are asked for
//! ([`Sparse::ranking`]). Which keys are chosen is told in [`keyfold_sequence::hax`].

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData, activation};
use keyfold_sequence::hax::{self, HaxConfig, Selected, Source as Keys};
use rayon::prelude::*;

use super::{Mamba, Mamba2, Mamba2Config, MambaConfig, Scanned, Source, part, refused};
use crate::checkpoint::{NamedTensor, numbers};
use crate::{Linear, ModelError, ops, random};

/// The layer that the attention joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaxBase {
    /// Mamba.
    Mamba(MambaConfig),
    /// Mamba-2.
    Mamba2(Mamba2Config),
}

/// Sizes of a layer, and what its attention looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaxLayerConfig {
    /// The layer that the attention joins.
    pub base: HaxBase,
    /// Which keys; none leaves the layer as it is.
    pub sparse: Option<HaxConfig>,
}

/// A layer of HAX.
#[derive(Module, Debug)]
pub struct Hax {
    base: Base,
    branch: Option<Branch>,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
enum Base {
    Mamba(Mamba),
    Mamba2(Mamba2),
}

#[derive(Module, Debug)]
struct Branch {
    /// `[2 N, Di]`, keys before queries.
    xx_proj: Param<Tensor<2>>,
    /// `[Di]`.
    e: Param<Tensor<1>>,
    /// The three layers of the score, where keys are selected.
    score: Vec<Linear>,
    #[module(skip)]
    config: HaxConfig,
}

/// How a pass through the layer's attention goes.
#[derive(Debug, Clone, Copy)]
pub struct Sparse {
    /// Seed of the hashes. A layer that is used has one for ever; the authors draw another for
    /// each pass.
    pub hashes: u64,
    /// Seed of the keys whose ranking is learned; none where nothing is.
    pub ranking: Option<u64>,
}

/// What the positions of a text look at.
#[derive(Debug, Clone)]
pub struct Looked {
    /// The keys of each position.
    pub keys: Selected,
    /// What each gives to each of its keys, shares of 1.
    pub shares: Vec<Vec<f32>>,
    /// The keys that each source by itself chooses.
    pub by_source: Vec<(Keys, Selected)>,
}

drawn_or_read!(Hax, HaxLayerConfig);

impl Hax {
    pub(crate) fn from(
        config: &HaxLayerConfig,
        source: &mut Source,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let (base, di, n) = match &config.base {
            HaxBase::Mamba(c) => {
                let base = Base::Mamba(Mamba::from(c, source, device)?);
                (base, c.expand * c.d_model, c.d_state)
            }
            HaxBase::Mamba2(c) => {
                let base = Base::Mamba2(Mamba2::from(c, source, device)?);
                (base, c.expand * c.d_model, c.d_state)
            }
        };
        let branch = match &config.sparse {
            None => None,
            Some(sparse) => {
                sparse.check().map_err(|e| refused(e.to_string()))?;
                let score = match sparse.has(Keys::KeySelection) {
                    false => Vec::new(),
                    true => [2 * n, 2 * n, 1]
                        .iter()
                        .zip(["dx_proj_1", "dx_proj_2", "dx_proj_3"])
                        .map(|(&outputs, name)| {
                            let weight = format!("{name}.weight");
                            let bias = vec![0.0; outputs];
                            Ok::<_, ModelError>(Linear {
                                weight: source.normal(&weight, [outputs, 2 * n], device)?,
                                bias: Some(source.vector(&format!("{name}.bias"), bias, device)?),
                            })
                        })
                        .collect::<Result<_, _>>()?,
                };
                Some(Branch {
                    xx_proj: source.normal("xx_proj.weight", [2 * n, di], device)?,
                    e: source.vector("E", vec![1.0; di], device)?,
                    score,
                    config: sparse.clone(),
                })
            }
        };
        Ok(Self { base, branch })
    }

    /// `[rows, d_model]` to the same, each position seeing itself and those before it in its text;
    /// and the loss of the ranking where it is learned.
    pub fn forward(
        &self,
        u: Tensor<2>,
        starts: &[usize],
        sparse: Sparse,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let Scanned { z, x, mut y } = match &self.base {
            Base::Mamba(base) => base.scan(u, starts),
            Base::Mamba2(base) => base.scan(u, starts),
        };
        let mut ranking = None;
        if let Some(branch) = &self.branch {
            let (read, loss) = branch.attend(x, starts, sparse);
            y = y + read;
            ranking = loss;
        }
        let out = match &self.base {
            Base::Mamba(base) => base.finish(z, y),
            Base::Mamba2(base) => base.finish(z, y),
        };
        (out, ranking)
    }

    /// What the positions of each text look at; none where the layer has no attention.
    pub fn looked(&self, u: Tensor<2>, starts: &[usize], hashes: u64) -> Option<Vec<Looked>> {
        let branch = self.branch.as_ref()?;
        let Scanned { x, .. } = match &self.base {
            Base::Mamba(base) => base.scan(u, starts),
            Base::Mamba2(base) => base.scan(u, starts),
        };
        Some(branch.looked(&x, starts, hashes))
    }

    /// The tensors as `prefix.in_proj.weight` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let mut all = match &self.base {
            Base::Mamba(base) => base.tensors(prefix),
            Base::Mamba2(base) => base.tensors(prefix),
        };
        if let Some(branch) = &self.branch {
            let name = |part: &str| format!("{prefix}.{part}");
            all.push(NamedTensor::new(
                name("xx_proj.weight"),
                &branch.xx_proj.val(),
            ));
            all.push(NamedTensor::new(name("E"), &branch.e.val()));
            for (i, linear) in branch.score.iter().enumerate() {
                all.extend(linear.tensors(&name(&format!("dx_proj_{}", i + 1))));
            }
        }
        all
    }
}

/// Queries and keys of a batch, and what its keys are chosen by.
struct Asked {
    q: Tensor<2>,
    k: Tensor<2>,
    of_q: Vec<f32>,
    of_k: Vec<f32>,
    /// Numbers of a query.
    n: usize,
    scores: Option<Tensor<2>>,
    of_scores: Vec<f32>,
    hashes: Vec<f32>,
}

impl Asked {
    /// Queries and keys of each text.
    fn texts<'a>(&'a self, starts: &'a [usize]) -> Vec<(&'a [f32], &'a [f32])> {
        let parts = starts.windows(2).map(|t| t[0] * self.n..t[1] * self.n);
        parts
            .map(|part| (&self.of_q[part.clone()], &self.of_k[part]))
            .collect()
    }

    /// The keys of each position of each text.
    fn select(&self, config: &HaxConfig, starts: &[usize]) -> Vec<Selected> {
        let texts = self.texts(starts);
        texts
            .par_iter()
            .zip(starts.par_windows(2))
            .map(|((q, k), t)| {
                if q.is_empty() {
                    return Selected::default();
                }
                let scores = self.of_scores.get(t[0]..t[1]).unwrap_or_default();
                hax::select(config, q, k, self.n, &self.hashes, scores)
                    // Settings and shapes were checked when the layer was made.
                    .expect("keys of checked shapes")
            })
            .collect()
    }
}

impl Branch {
    fn asked(&self, x: &Tensor<2>, starts: &[usize], hashes: u64) -> Asked {
        let n = self.xx_proj.dims()[0] / 2;
        let k = part(x, &self.xx_proj, 0..n).mul_scalar((n as f64).sqrt().recip());
        let q = part(x, &self.xx_proj, n..2 * n);
        let mut asked = Asked {
            of_q: numbers(&q),
            of_k: numbers(&k),
            n,
            scores: None,
            of_scores: Vec::new(),
            hashes: match self.config.has(Keys::SignBinLsh) {
                true => random::normal(hashes, n * self.config.num_hash, 1.0),
                false => Vec::new(),
            },
            q,
            k,
        };
        asked.scores = self.scores(&asked.texts(starts), n, &asked.q.device());
        asked.of_scores = asked.scores.as_ref().map(numbers).unwrap_or_default();
        asked
    }

    fn attend(
        &self,
        x: Tensor<2>,
        starts: &[usize],
        sparse: Sparse,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let asked = self.asked(&x, starts, sparse.hashes);
        let selected = asked.select(&self.config, starts);
        let ranking = match (sparse.ranking, &asked.scores) {
            (Some(seed), Some(scores)) => {
                self.ranking(scores, &asked.texts(starts), asked.n, starts, seed)
            }
            _ => None,
        };
        let read = ops::sparse_attention(asked.q, asked.k, x, starts, selected);
        (read * self.e.val().unsqueeze_dim(0), ranking)
    }

    fn looked(&self, x: &Tensor<2>, starts: &[usize], hashes: u64) -> Vec<Looked> {
        let asked = self.asked(x, starts, hashes);
        let chosen = asked.select(&self.config, starts);
        let mut by_source: Vec<_> = self
            .config
            .sparse_arch
            .iter()
            .map(|source| {
                (
                    *source,
                    asked.select(&self.config.only(*source), starts).into_iter(),
                )
            })
            .collect();
        let texts = asked.texts(starts).into_iter().zip(chosen);
        texts
            .map(|((q, k), keys)| Looked {
                // The keys are of these texts.
                shares: hax::shares(q, k, asked.n, &keys).expect("keys of checked shapes"),
                by_source: by_source
                    .iter_mut()
                    .filter_map(|(source, texts)| Some((*source, texts.next()?)))
                    .collect(),
                keys,
            })
            .collect()
    }

    /// The score of each key, `[rows, 1]`.
    fn scores(&self, texts: &[(&[f32], &[f32])], n: usize, device: &Device) -> Option<Tensor<2>> {
        let [first, second, last] = &self.score[..] else {
            return None;
        };
        let of = |(q, k): &(&[f32], &[f32])| {
            // A text of no positions has no inputs.
            hax::score_inputs(q, k, n, self.config.mode).unwrap_or_default()
        };
        let inputs: Vec<f32> = texts.iter().flat_map(of).collect();
        let shape = [inputs.len() / (2 * n), 2 * n];
        let h = Tensor::<2>::from_data(TensorData::new(inputs, shape), device);
        let h = activation::relu(first.forward(h));
        Some(last.forward(activation::relu(second.forward(h))))
    }

    /// The mean over pairs of keys `i, j` of `-log p` of which of them is asked for more, by
    /// `sigmoid(score_i - score_j)`; keys that are asked for alike count half each way.
    fn ranking(
        &self,
        scores: &Tensor<2>,
        texts: &[(&[f32], &[f32])],
        n: usize,
        starts: &[usize],
        seed: u64,
    ) -> Option<Tensor<1>> {
        let (mut left, mut right, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for ((q, k), t) in texts.iter().zip(starts.windows(2)) {
            let chosen = chosen(t[0], t[1], self.config.keys_each(), seed);
            let asked = hax::importances(q, k, n, &chosen);
            for (i, a) in chosen.iter().zip(&asked) {
                for (j, b) in chosen.iter().zip(&asked) {
                    left.push(t[0] as u32 + i);
                    right.push(t[0] as u32 + j);
                    targets.push((f32::from(u8::from(a > b)) + f32::from(u8::from(a >= b))) / 2.0);
                }
            }
        }
        if targets.is_empty() {
            return None;
        }
        let shape = [targets.len(), 1];
        let targets = Tensor::<2>::from_data(TensorData::new(targets, shape), &scores.device());
        let x = ops::rows(scores.clone(), &left) - ops::rows(scores.clone(), &right);
        let lost = x.clone().abs().neg().exp().add_scalar(1.0).log();
        Some((activation::relu(x.clone()) - x * targets + lost).mean())
    }
}

/// Some positions of a text by chance, all where there are no more.
fn chosen(from: usize, to: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut all: Vec<(f64, u32)> = (from..to)
        .map(|row| (random::unit(seed, row as u64), (row - from) as u32))
        .collect();
    all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().take(count).map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::parameter;

    /// With all keys, a layer's attention is the causal one, of the framework's own functions.
    #[test]
    fn a_layer_adds_what_its_attention_reads_to_the_scan() {
        let device = Device::flex();
        let config = HaxLayerConfig {
            base: HaxBase::Mamba2(Mamba2Config {
                d_model: 8,
                d_state: 4,
                headdim: 4,
                ..Mamba2Config::default()
            }),
            sparse: Some(HaxConfig {
                sparse_arch: vec![Keys::Full],
                ..HaxConfig::default()
            }),
        };
        let mut layer = Hax::init(&config, 0.4, 3, &device).unwrap();
        let e = random::normal(5, 16, 1.0);
        if let Some(branch) = &mut layer.branch {
            branch.e = parameter(e.clone(), [16], &device);
        }
        let data = TensorData::new(random::normal(1, 7 * 8, 1.0), [7, 8]);
        let u = Tensor::<2>::from_data(data, &device);
        let starts = [0, 3, 7];
        let sparse = Sparse {
            hashes: 1,
            ranking: None,
        };
        let found = numbers(&layer.forward(u.clone(), &starts, sparse).0);
        let (Base::Mamba2(base), Some(branch)) = (&layer.base, &layer.branch) else {
            panic!("Mamba-2 with attention")
        };
        let Scanned { z, x, y } = base.scan(u, &starts);
        let projected = x.clone().matmul(branch.xx_proj.val().transpose());
        let texts = starts.windows(2).map(|t| {
            let len = t[1] - t[0];
            let part = |m: &Tensor<2>| m.clone().narrow(0, t[0], len);
            let of = |from: usize| part(&projected).narrow(1, from, 4);
            let later = |i: usize| if i % len > i / len { -1e9 } else { 0.0 };
            let mask: Vec<f32> = (0..len * len).map(later).collect();
            let mask = Tensor::<2>::from_data(TensorData::new(mask, [len, len]), &device);
            // Keys stand before queries and are divided by the root of 4.
            let scores = of(4).matmul(of(0).transpose()).div_scalar(2.0) + mask;
            activation::softmax(scores, 1).matmul(part(&x))
        });
        let read = Tensor::cat(texts.collect(), 0);
        let e = Tensor::<2>::from_data(TensorData::new(e, [1, 16]), &device);
        let want = numbers(&base.finish(z.clone(), y.clone() + read * e));
        let without = numbers(&base.finish(z, y));
        for (a, b) in found.iter().zip(&want) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        let mut pairs = found.iter().zip(&without);
        assert!(pairs.any(|(a, b)| (a - b).abs() > 1e-2));
    }

    /// parity/hax.py: the loss of some scores, whose importances are known.
    #[test]
    fn the_loss_of_the_ranking_is_that_of_pytorch() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../sequence/tests/fixtures/hax.json"
        );
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let of = |name: &str| -> Vec<f32> { serde_json::from_value(json[name].clone()).unwrap() };
        let config = HaxConfig {
            // All positions are chosen.
            sparse_keys: 100,
            ..HaxConfig::default()
        };
        let device = Device::flex();
        let branch = Branch {
            xx_proj: parameter(vec![0.0; 16], [16, 1], &device),
            e: parameter(vec![1.0], [1], &device),
            score: Vec::new(),
            config,
        };
        let (q, k, scores) = (of("q"), of("k"), of("scores"));
        let shape = [scores.len(), 1];
        let scores = Tensor::<2>::from_data(TensorData::new(scores, shape), &device);
        let loss = branch.ranking(&scores, &[(&q[..], &k[..])], 8, &[0, shape[0]], 3);
        let loss = loss.unwrap().into_scalar::<f32>();
        assert!((loss - of("ranking_loss")[0]).abs() < 2e-6, "{loss}");
    }
}
