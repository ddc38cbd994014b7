//! A copy of a decoder that has gradients, for calibrations that need them.
//!
//! What a cache keeps of a token matters by how the loss changes with it: the diagonal of
//! the Fisher information of keys and values is the mean of the squared gradients of
//! `-log p(text)` by them (Hooper et al. 2024: KVQuant).

use burn::tensor::{Device, Tensor};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::{AttentionHook, Llama, LlamaSizes, ModelError, RopeSizes};

use crate::config::{Activation, Norm, Positions, Rope, RopeScaling, rope_frequencies};
use crate::{LmError, ModelFile};
use keyfold_kernels::attention::Rotation;

impl From<ModelError> for LmError {
    fn from(e: ModelError) -> Self {
        Self::Input {
            what: e.to_string(),
        }
    }
}

/// The decoder in `file` with gradients, all weights as `f32`. It reads windows of at most
/// `window` tokens; `device` is [`device`] where gradients are wanted.
///
/// # Errors
/// When a tensor is missing, or the model is none of Llama's kind (GPT-2), or its positions
/// or sliding windows depend on more than a token's place in such a window.
pub fn load(file: &ModelFile, window: usize, device: &Device) -> Result<Llama, LmError> {
    let config = file.config();
    let sizes = sizes(file, window)?;
    let tied = config.tie_word_embeddings;
    Llama::with(sizes, device, &mut |name, shape| {
        debug_assert!(!(tied && name == "lm_head.weight"));
        Ok(file.expect(name, shape)?.to_f32())
    })
}

/// The device on which gradients are found.
pub fn device() -> Device {
    Device::flex().autodiff()
}

fn sizes(file: &ModelFile, window: usize) -> Result<LlamaSizes, LmError> {
    let config = file.config();
    let refuse = |what: &str| {
        Err(LmError::Input {
            what: format!(
                "{}: gradients are found for decoders of Llama's kind only, and {what}",
                file.path().display()
            ),
        })
    };
    let Positions::Rope(rope) = &config.positions else {
        return refuse("this model has learned positions");
    };
    let plain = config.norm == Norm::Rms
        && config.hidden_act == Activation::Silu
        && config.gated_mlp
        && !config.output_bias
        && !config.mlp_bias;
    if !plain {
        return refuse("this model has other norms, biases or activations");
    }
    let narrow = |size: &Option<usize>| size.is_some_and(|size| size < window);
    if config.sliding_window.iter().any(narrow) {
        return refuse("this model's sliding windows are shorter than the texts");
    }
    if let RopeScaling::Dynamic { original, .. } = rope.scaling
        && original < window
    {
        return refuse("this model's angles depend on the length of the text");
    }
    let dims = &config.dims;
    Ok(LlamaSizes {
        layers: dims.layers,
        hidden: dims.hidden,
        intermediate: config.intermediate_size,
        heads: dims.heads,
        kv_heads: dims.kv_heads,
        head_dim: dims.head_dim,
        vocab: dims.vocab,
        eps: f64::from(config.norm_eps),
        tied: config.tie_word_embeddings,
        attention_bias: config.qkv_bias,
        head_norms: config.qk_norm,
        rope: rope_sizes(file, rope, window),
    })
}

fn rope_sizes(file: &ModelFile, rope: &Rope, window: usize) -> RopeSizes {
    let (frequencies, scale) = rope_frequencies(file.config(), window);
    RopeSizes {
        frequencies,
        scale,
        rotation: match rope.interleaved {
            true => Rotation::Interleaved,
            false => Rotation::Half,
        },
        layers: rope.layers.clone(),
    }
}

/// What a text put into the cache of one layer, and how the loss changes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheGradients {
    /// Keys before positions turn them, `[tokens, kv_heads, head_dim]`.
    pub keys: Vec<f32>,
    /// Values, of the same shape.
    pub values: Vec<f32>,
    /// The gradient of the mean of `-log p(token)` by each number of `keys`.
    pub key_gradients: Vec<f32>,
    /// The same by each number of `values`.
    pub value_gradients: Vec<f32>,
}

/// Keys, values and their gradients of every layer of one text of at least two tokens.
///
/// # Panics
/// When the text is shorter, a token is not below the size of the vocabulary, or the model
/// lies on a device without gradients.
pub fn cache_gradients(model: &Llama, tokens: &[u32]) -> Vec<CacheGradients> {
    let mut leaves = Leaves::default();
    let loss = model.loss(tokens, &[0, tokens.len()], &mut leaves);
    let gradients = loss.backward();
    let of = |leaf: &Tensor<2>| {
        let gradient = leaf.grad(&gradients);
        gradient.map_or_else(|| vec![0.0; leaf.dims().iter().product()], |g| numbers(&g))
    };
    let layers = leaves.keys.iter().zip(&leaves.values);
    layers
        .map(|((keys, of_keys), (values, of_values))| CacheGradients {
            keys: numbers(keys),
            values: numbers(values),
            key_gradients: of(of_keys),
            value_gradients: of(of_values),
        })
        .collect()
}

/// Adds zeros that require a gradient to keys and values: what follows from them follows
/// from the keys and values.
#[derive(Default)]
struct Leaves {
    /// Of each layer what there was, and the zeros.
    keys: Vec<(Tensor<2>, Tensor<2>)>,
    values: Vec<(Tensor<2>, Tensor<2>)>,
}

fn with_leaf(x: Tensor<2>, all: &mut Vec<(Tensor<2>, Tensor<2>)>) -> Tensor<2> {
    let leaf = Tensor::<2>::zeros(x.dims(), &x.device()).require_grad();
    all.push((x.clone(), leaf.clone()));
    x + leaf
}

impl AttentionHook for Leaves {
    fn keys_before_rope(&mut self, _: usize, keys: Tensor<2>) -> Tensor<2> {
        with_leaf(keys, &mut self.keys)
    }

    fn attention_inputs(&mut self, _: usize, [q, k, v]: [Tensor<2>; 3]) -> [Tensor<2>; 3] {
        [q, k, with_leaf(v, &mut self.values)]
    }
}
