//! Decoders whose layers share weights of attention from the beginning of their training.
//!
//! Of MASA the mixtures come from a small generator while the model learns: every layer has a
//! vector, and for each kind of projection a network of three layers makes `c_l` of it (64 numbers
//! and GELU; the paper gives no sizes). Afterwards [`SharedLlama::dense`] computes the matrices
//! once, and the generator is gone. Beside it stand what the paper compares with, at the same number
//! of weights: layers that use one matrix together, and matrices of low rank.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_nn::{Linear, Llama, LlamaConfig, random};

use super::Types;
use crate::CompressError;

/// Numbers of a layer's vector, and inside the generator.
const WIDTH: usize = 64;

/// How layers come to their matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Mixtures of so many atoms (MASA).
    Atoms(usize),
    /// So many matrices, each used by layers that follow each other.
    Sequential(usize),
    /// Products of two matrices of this rank, for each layer.
    LowRank(usize),
}

/// A decoder whose attention weights are computed from fewer.
#[derive(Module, Debug)]
pub struct SharedLlama {
    /// All else; its shared projections are empty.
    base: Llama,
    kinds: Vec<Kind>,
    layers: usize,
}

/// One kind of projection.
#[derive(Module, Debug)]
struct Kind {
    /// Place among queries, keys, values and output.
    place: usize,
    rows: usize,
    columns: usize,
    /// Atoms, matrices, or both factors of each layer.
    weights: Vec<Param<Tensor<2>>>,
    /// Of atoms.
    generator: Option<Generator>,
    /// Whether `weights` are pairs of factors.
    factors: bool,
}

#[derive(Module, Debug)]
struct Generator {
    vectors: Param<Tensor<2>>,
    first: Linear,
    second: Linear,
    third: Linear,
}

impl Generator {
    fn init(layers: usize, atoms: usize, seed: u64, device: &Device) -> Self {
        let inner = (2.0 / WIDTH as f32).sqrt();
        // So that a mixture is as large as an atom.
        let last = 1.0 / (WIDTH as f32 * atoms as f32).sqrt();
        let linear = |outputs, deviation, part| {
            let seed = random::derive(seed, part);
            Linear::init(WIDTH, outputs, true, deviation, seed, device)
        };
        Self {
            vectors: parameter(
                random::normal(seed, layers * WIDTH, 1.0),
                [layers, WIDTH],
                device,
            ),
            first: linear(WIDTH, inner, 1),
            second: linear(WIDTH, inner, 2),
            third: linear(atoms, last, 3),
        }
    }

    /// `[layers, atoms]`.
    fn mixtures(&self) -> Tensor<2> {
        let inner = self.first.forward_gelu(self.vectors.val());
        self.third.forward(self.second.forward_gelu(inner))
    }
}

fn parameter(numbers: Vec<f32>, shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    Param::from_data(TensorData::new(numbers, shape), device)
}

impl SharedLlama {
    /// A decoder with random weights whose projections of `types` are shared.
    ///
    /// # Errors
    /// When the configuration makes no sense, or there are more shared matrices than layers.
    pub fn init(
        config: &LlamaConfig,
        types: Types,
        sharing: Sharing,
        seed: u64,
        device: &Device,
    ) -> Result<Self, CompressError> {
        let base = Llama::init(config, seed, device)
            .map_err(|e| CompressError::Settings(e.to_string()))?;
        let layers = config.num_hidden_layers;
        if let Sharing::Atoms(count) | Sharing::Sequential(count) = sharing
            && !(1..=layers).contains(&count)
        {
            return Err(CompressError::Settings(format!(
                "{layers} layers share from 1 to {layers} matrices, not {count}"
            )));
        }
        let (hidden, q) = (
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
        );
        let kv = config.num_key_value_heads * config.head_dim;
        let shapes = [[q, hidden], [kv, hidden], [kv, hidden], [hidden, q]];
        let shared = match types {
            Types::Qkv => 3,
            Types::Qkvo => 4,
        };
        let deviation = config.initializer_range;
        let kinds = (0..shared).map(|place| {
            let [rows, columns] = shapes[place];
            let seed = random::derive(seed, 1000 + place as u64);
            let draw = |part: u64, [r, c]: [usize; 2], deviation: f32| {
                parameter(
                    random::normal(random::derive(seed, part), r * c, deviation),
                    [r, c],
                    device,
                )
            };
            let weights = match sharing {
                Sharing::Atoms(count) => vec![draw(0, [count, rows * columns], deviation)],
                Sharing::Sequential(count) => (0..count as u64)
                    .map(|m| draw(m, [rows, columns], deviation))
                    .collect(),
                Sharing::LowRank(rank) => {
                    // The product has the deviation of a whole matrix.
                    let each = (deviation / (rank.max(1) as f32).sqrt()).sqrt();
                    let pair = |l: u64| {
                        [
                            draw(2 * l, [rows, rank], each),
                            draw(2 * l + 1, [rank, columns], each),
                        ]
                    };
                    (0..layers as u64).flat_map(pair).collect()
                }
            };
            let generator = match sharing {
                Sharing::Atoms(count) => Some(Generator::init(layers, count, seed, device)),
                _ => None,
            };
            Kind {
                place,
                rows,
                columns,
                weights,
                generator,
                factors: matches!(sharing, Sharing::LowRank(_)),
            }
        });
        let kinds: Vec<Kind> = kinds.collect();
        let empty = (0..layers).map(|_| {
            let mut gone = [const { None }; 4];
            gone[..shared].fill_with(|| Some(Tensor::zeros([1, 1], device)));
            gone
        });
        Ok(Self {
            base: base.with_attention(empty.collect()),
            kinds,
            layers,
        })
    }

    /// Numbers of the projections that are shared, the generator left out: it is gone after the
    /// training, and its mixtures stay.
    pub fn shared_weights(&self) -> usize {
        let of = |kind: &Kind| {
            let weights = kind
                .weights
                .iter()
                .map(|w| w.dims().iter().product::<usize>());
            let mixtures = kind
                .generator
                .is_some()
                .then(|| self.layers * kind.weights[0].dims()[0]);
            weights.sum::<usize>() + mixtures.unwrap_or(0)
        };
        self.kinds.iter().map(of).sum()
    }

    /// The decoder with whole matrices; gradients go through them.
    pub fn dense(&self) -> Llama {
        let mut all: Vec<[Option<Tensor<2>>; 4]> =
            (0..self.layers).map(|_| [const { None }; 4]).collect();
        for kind in &self.kinds {
            for (layer, matrix) in kind.matrices(self.layers).into_iter().enumerate() {
                all[layer][kind.place] = Some(matrix);
            }
        }
        self.base.with_attention(all)
    }
}

impl Kind {
    fn matrices(&self, layers: usize) -> Vec<Tensor<2>> {
        let (rows, columns) = (self.rows, self.columns);
        if let Some(generator) = &self.generator {
            let all = generator.mixtures().matmul(self.weights[0].val());
            let of = |layer: usize| {
                let row = all.clone().slice([layer..layer + 1, 0..rows * columns]);
                row.reshape([rows, columns])
            };
            return (0..layers).map(of).collect();
        }
        if self.factors {
            let pairs = self.weights.chunks_exact(2);
            return pairs
                .map(|pair| pair[0].val().matmul(pair[1].val()))
                .collect();
        }
        let count = self.weights.len();
        (0..layers)
            .map(|layer| self.weights[layer * count / layers].val())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use keyfold_nn::NoHook;
    use keyfold_nn::checkpoint::numbers;

    use super::*;

    fn config() -> LlamaConfig {
        LlamaConfig {
            vocab_size: 20,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 4,
            initializer_range: 0.2,
            ..LlamaConfig::default()
        }
    }

    fn device() -> Device {
        Device::flex().autodiff()
    }

    #[test]
    fn every_way_of_sharing_has_gradients_and_fewer_weights() {
        let tokens: Vec<u32> = (0..12).map(|t| t * 7 % 20).collect();
        let whole = 6 * (16 * 16 + 2 * 8 * 16);
        for (sharing, weights) in [
            (Sharing::Atoms(2), whole / 3 + 3 * 6 * 2),
            (Sharing::Sequential(2), whole / 3),
            (Sharing::LowRank(2), 6 * 2 * (32 + 24 + 24)),
        ] {
            let model = SharedLlama::init(&config(), Types::Qkv, sharing, 1, &device()).unwrap();
            assert_eq!(model.shared_weights(), weights, "{sharing:?}");
            let loss = model.dense().loss(&tokens, &[0, 12], &mut NoHook);
            let gradients = loss.backward();
            for kind in &model.kinds {
                for weight in &kind.weights {
                    let gradient = weight.val().grad(&gradients).unwrap();
                    assert!(numbers(&gradient).iter().any(|g| *g != 0.0), "{sharing:?}");
                }
                if let Some(generator) = &kind.generator {
                    let gradient = generator.vectors.val().grad(&gradients).unwrap();
                    assert!(numbers(&gradient).iter().any(|g| *g != 0.0));
                }
            }
        }
    }

    #[test]
    fn whole_matrices_are_mixtures_of_the_atoms() {
        let model =
            SharedLlama::init(&config(), Types::Qkvo, Sharing::Atoms(2), 1, &device()).unwrap();
        let kind = &model.kinds[3];
        let generator = kind.generator.as_ref().unwrap();
        let (c, atoms) = (
            numbers(&generator.mixtures()),
            numbers(&kind.weights[0].val()),
        );
        let tensors = model.dense().tensors();
        let name = "model.layers.4.self_attn.o_proj.weight";
        let found = tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!(found.shape, [16, 16]);
        for (i, x) in found.numbers.iter().enumerate() {
            let want = c[8] * atoms[i] + c[9] * atoms[256 + i];
            assert!((x - want).abs() < 1e-5, "{x} {want}");
        }
        // Layers differ.
        assert!((c[0] - c[2]).abs() > 1e-4);
    }

    #[test]
    fn layers_that_follow_each_other_use_one_matrix() {
        let sharing = Sharing::Sequential(2);
        let model = SharedLlama::init(&config(), Types::Qkv, sharing, 1, &device()).unwrap();
        let matrices = model.kinds[0].matrices(6);
        let same = |a: usize, b: usize| numbers(&matrices[a]) == numbers(&matrices[b]);
        assert!(same(0, 2) && same(3, 5) && !same(2, 3));
        for count in [0, 7] {
            let sharing = Sharing::Atoms(count);
            assert!(SharedLlama::init(&config(), Types::Qkv, sharing, 1, &device()).is_err());
        }
    }
}
