//! Decoders of Llama's kind (Touvron et al. 2023; Mistral, Qwen 2 and 3, SmolLM), to be
//! trained, and to find the gradients of what a cache keeps.
//!
//! ```text
//! h  = embed(tokens)
//! h += W_o attention(rope(W_q n), rope(W_k n), W_v n)      n = rms(h)
//! h += W_down (silu(W_gate m) · W_up m)                    m = rms(h)
//! logits = W_head rms(h)
//! ```
//!
//! `[rows, hidden]` throughout, with the rows of all texts one after the other; attention is
//! causal within each text. Tensors have the names of Hugging Face's transformers, so what
//! was trained is read by `keyfold-lm` and others. `keyfold-lm` has the decoder that
//! *writes* text: it is many times as fast and keeps a cache, and this one has gradients.

mod config;

use std::path::Path;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use keyfold_core::atomic;
use keyfold_core::block_mask::BlockMask;

use crate::checkpoint::{self, NamedTensor, Precision};
use crate::error::invalid;
use crate::layers::parameter;
use crate::ops::{self, Angles, SharedHeads};
use crate::{Embedding, Linear, ModelError, random};

pub use config::{LlamaConfig, LlamaSizes, RopeSizes};

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Gives the tensor of a name and shape.
pub type Tensors<'a, E> = &'a mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, E>;

/// A decoder that can be trained.
#[derive(Module, Debug)]
pub struct Llama {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Param<Tensor<1>>,
    /// Where it is not the table of token vectors.
    head: Option<Linear>,
    #[module(skip)]
    sizes: LlamaSizes,
    /// What attention may see, where that is not all.
    #[module(skip)]
    mask: Option<BlockMask>,
}

#[derive(Module, Debug)]
struct Layer {
    attention_norm: Param<Tensor<1>>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Of a head of queries and one of keys.
    head_norms: Vec<Param<Tensor<1>>>,
    mlp_norm: Param<Tensor<1>>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What stands between the projections of a layer and its attention: it may look at queries,
/// keys and values or put others in their place. `[rows, heads · head_dim]` each.
pub trait AttentionHook {
    /// Keys before positions turn them.
    fn keys_before_rope(&mut self, _layer: usize, keys: Tensor<2>) -> Tensor<2> {
        keys
    }

    /// Queries, keys and values as attention reads them.
    fn attention_inputs(&mut self, _layer: usize, qkv: [Tensor<2>; 3]) -> [Tensor<2>; 3] {
        qkv
    }
}

/// Nothing in between.
pub struct NoHook;

impl AttentionHook for NoHook {}

impl Llama {
    /// A model with random weights, with attention to all or to the blocks of
    /// `config.block_mask`: normal with `initializer_range`, and the projections that
    /// are added to the hidden state less by `√(2 · layers)` (Radford et al. 2019).
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn init(config: &LlamaConfig, seed: u64, device: &Device) -> Result<Self, ModelError> {
        Self::init_with(config, seed, device, &mut |_, _| ())
    }

    /// As [`init`](Self::init), but `change` gets the weights of every name before they are set.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub fn init_with(
        config: &LlamaConfig,
        seed: u64,
        device: &Device,
        change: &mut dyn FnMut(&str, &mut [f32]),
    ) -> Result<Self, ModelError> {
        let path = Path::new("the configuration");
        let sizes = config.sizes(path)?;
        if let Some(problem) = config.block_mask.as_ref().and_then(BlockMask::problem) {
            return Err(invalid(path, format!("block_mask: {problem}")));
        }
        let deviation = config.initializer_range;
        let added = deviation / (2.0 * sizes.layers as f32).sqrt();
        let mut drawn = 0;
        let model = Self::with(sizes, device, &mut |name, shape| {
            drawn += 1;
            let count = shape.iter().product();
            let mut weights = if shape.len() == 1 {
                vec![1.0; count]
            } else {
                let less = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if less { added } else { deviation };
                random::normal(random::derive(seed, drawn), count, deviation)
            };
            change(name, &mut weights);
            Ok::<_, ModelError>(weights)
        })?;
        Ok(Self {
            mask: config.block_mask.clone(),
            ..model
        })
    }

    /// A model whose tensors `tensor` gives by their official names and shapes.
    ///
    /// # Errors
    /// When sizes do not fit each other, or those of `tensor`.
    pub fn with<E: From<ModelError>>(
        sizes: LlamaSizes,
        device: &Device,
        tensor: Tensors<'_, E>,
    ) -> Result<Self, E> {
        sizes.check(Path::new("the model"))?;
        let table = tensor(EMBEDDING, &[sizes.vocab, sizes.hidden])?;
        let layers = (0..sizes.layers)
            .map(|layer| Layer::with(layer, &sizes, device, tensor))
            .collect::<Result<_, E>>()?;
        let head = match sizes.tied {
            true => None,
            false => Some(Linear {
                weight: parameter(
                    tensor(HEAD, &[sizes.vocab, sizes.hidden])?,
                    [sizes.vocab, sizes.hidden],
                    device,
                ),
                bias: None,
            }),
        };
        Ok(Self {
            embedding: Embedding {
                table: parameter(table, [sizes.vocab, sizes.hidden], device),
            },
            layers,
            norm: parameter(tensor(NORM, &[sizes.hidden])?, [sizes.hidden], device),
            head,
            sizes,
            mask: None,
        })
    }

    /// The same decoder with other weights of attention: of each layer those of queries, keys,
    /// values and output, where given. They may be results of a computation, through which
    /// gradients then go on.
    pub fn with_attention(&self, weights: Vec<[Option<Tensor<2>>; 4]>) -> Self {
        let mut model = self.clone();
        for (layer, weights) in model.layers.iter_mut().zip(weights) {
            let linears = [&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o];
            for (linear, weight) in linears.into_iter().zip(weights) {
                if let Some(weight) = weight {
                    linear.weight = Param::initialized(ParamId::new(), weight);
                }
            }
        }
        model
    }

    /// Its sizes.
    pub fn sizes(&self) -> &LlamaSizes {
        &self.sizes
    }

    /// The final, normed hidden states `[rows, hidden]` of texts one after the other.
    /// `starts` has the first row of each text and, at its end, the number of rows.
    ///
    /// # Panics
    /// When a token is not below the size of the vocabulary, or `starts` falls.
    pub fn states(
        &self,
        tokens: &[u32],
        starts: &[usize],
        hook: &mut dyn AttentionHook,
    ) -> Tensor<2> {
        let positions: Vec<u32> = starts
            .windows(2)
            .flat_map(|t| 0..(t[1] - t[0]) as u32)
            .collect();
        let rope = &self.sizes.rope;
        let angles = Angles::new(&positions, &rope.frequencies, rope.scale, rope.rotation);
        let mut h = self.embedding.forward(tokens);
        for (number, layer) in self.layers.iter().enumerate() {
            h = layer.forward(number, h, starts, &angles, self, hook);
        }
        ops::rms_norm(h, self.norm.val(), self.sizes.eps)
    }

    /// The output matrix, `[vocab, hidden]`.
    pub fn output_table(&self) -> Tensor<2> {
        match &self.head {
            Some(head) => head.weight.val(),
            None => self.embedding.table.val(),
        }
    }

    /// Logits `[rows, vocab]` of [`states`](Self::states).
    pub fn logits(&self, states: Tensor<2>) -> Tensor<2> {
        ops::linear(states, self.output_table(), None)
    }

    /// The mean over all rows but each text's last of `-log p(next token)`.
    ///
    /// # Panics
    /// As [`states`](Self::states), or where no text has two tokens.
    pub fn loss(
        &self,
        tokens: &[u32],
        starts: &[usize],
        hook: &mut dyn AttentionHook,
    ) -> Tensor<1> {
        let rows: Vec<u32> = starts
            .windows(2)
            .flat_map(|t| t[0]..t[1].saturating_sub(1).max(t[0]))
            .map(|row| row as u32)
            .collect();
        self.loss_after(&rows, tokens, starts, hook)
    }

    /// The same for chosen tokens: the mean of the negative log-probability of what follows
    /// each of `rows`, none of which may be the last token of a text.
    pub fn loss_after(
        &self,
        rows: &[u32],
        tokens: &[u32],
        starts: &[usize],
        hook: &mut dyn AttentionHook,
    ) -> Tensor<1> {
        let states = self.states(tokens, starts, hook);
        let targets: Vec<u32> = rows.iter().map(|&row| tokens[row as usize + 1]).collect();
        ops::cross_entropy(ops::rows(states, rows), self.output_table(), &targets)
    }

    /// The weights by their official names.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut all = vec![NamedTensor::new(EMBEDDING, &self.embedding.table.val())];
        for (number, layer) in self.layers.iter().enumerate() {
            all.extend(layer.tensors(number));
        }
        all.push(NamedTensor::new(NORM, &self.norm.val()));
        all.extend(
            self.head
                .iter()
                .map(|h| NamedTensor::new(HEAD, &h.weight.val())),
        );
        all
    }

    /// Writes `model.safetensors`, in half precision, and `config.json` into a folder, which
    /// is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, config: &LlamaConfig, folder: &Path) -> Result<(), ModelError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            |source| ModelError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(error(folder))?;
        let path = folder.join("model.safetensors");
        checkpoint::write_as(&path, &self.tensors(), Precision::Half)?;
        let path = folder.join("config.json");
        let text = serde_json::to_string_pretty(config).unwrap_or_default();
        atomic::write(&path, text.as_bytes()).map_err(error(&path))
    }
}

impl Layer {
    fn with<E>(
        number: usize,
        sizes: &LlamaSizes,
        device: &Device,
        tensor: Tensors<'_, E>,
    ) -> Result<Self, E> {
        let LlamaSizes {
            hidden,
            intermediate,
            head_dim,
            ..
        } = *sizes;
        let (q, kv) = (sizes.heads * head_dim, sizes.kv_heads * head_dim);
        let mut vector = |name: &str, len| -> Result<_, E> {
            let numbers = tensor(&format!("{}.{name}.weight", place(number)), &[len])?;
            Ok(parameter(numbers, [len], device))
        };
        let attention_norm = vector("input_layernorm", hidden)?;
        let mlp_norm = vector("post_attention_layernorm", hidden)?;
        let head_norms = match sizes.head_norms {
            true => vec![
                vector("self_attn.q_norm", head_dim)?,
                vector("self_attn.k_norm", head_dim)?,
            ],
            false => Vec::new(),
        };
        let mut linear = |name: &str, inputs, outputs, bias: bool| -> Result<_, E> {
            let name = format!("{}.{name}", place(number));
            let weight = tensor(&format!("{name}.weight"), &[outputs, inputs])?;
            let bias = match bias {
                true => Some(tensor(&format!("{name}.bias"), &[outputs])?),
                false => None,
            };
            Ok(Linear {
                weight: parameter(weight, [outputs, inputs], device),
                bias: bias.map(|b| parameter(b, [outputs], device)),
            })
        };
        let bias = sizes.attention_bias;
        Ok(Self {
            attention_norm,
            q: linear("self_attn.q_proj", hidden, q, bias)?,
            k: linear("self_attn.k_proj", hidden, kv, bias)?,
            v: linear("self_attn.v_proj", hidden, kv, bias)?,
            o: linear("self_attn.o_proj", q, hidden, false)?,
            head_norms,
            mlp_norm,
            gate: linear("mlp.gate_proj", hidden, intermediate, false)?,
            up: linear("mlp.up_proj", hidden, intermediate, false)?,
            down: linear("mlp.down_proj", intermediate, hidden, false)?,
        })
    }

    fn forward(
        &self,
        number: usize,
        h: Tensor<2>,
        starts: &[usize],
        angles: &Angles,
        model: &Llama,
        hook: &mut dyn AttentionHook,
    ) -> Tensor<2> {
        let sizes = &model.sizes;
        let n = ops::rms_norm(h.clone(), self.attention_norm.val(), sizes.eps);
        let [mut q, mut k] = [&self.q, &self.k].map(|linear| linear.forward(n.clone()));
        let v = self.v.forward(n);
        if let [of_q, of_k] = &self.head_norms[..] {
            q = ops::rms_norm(q, of_q.val(), sizes.eps);
            k = ops::rms_norm(k, of_k.val(), sizes.eps);
        }
        k = hook.keys_before_rope(number, k);
        if sizes.rope.layers[number] {
            q = ops::rotary(q, angles, sizes.head_dim);
            k = ops::rotary(k, angles, sizes.head_dim);
        }
        let [q, k, v] = hook.attention_inputs(number, [q, k, v]);
        let heads = SharedHeads {
            count: sizes.heads,
            kv: sizes.kv_heads,
            size: sizes.head_dim,
        };
        let out = ops::causal_attention(q, k, v, starts, heads, model.mask.as_ref());
        let h = h + self.o.forward(out);
        let n = ops::rms_norm(h.clone(), self.mlp_norm.val(), sizes.eps);
        let inner = ops::silu_mul(self.gate.forward(n.clone()), self.up.forward(n));
        h + self.down.forward(inner)
    }

    fn tensors(&self, number: usize) -> Vec<NamedTensor> {
        let place = place(number);
        let vector = |name: &str, x: &Param<Tensor<1>>| {
            NamedTensor::new(format!("{place}.{name}.weight"), &x.val())
        };
        let mut all = vec![
            vector("input_layernorm", &self.attention_norm),
            vector("post_attention_layernorm", &self.mlp_norm),
        ];
        let names = ["self_attn.q_norm", "self_attn.k_norm"];
        all.extend(
            names
                .iter()
                .zip(&self.head_norms)
                .map(|(n, x)| vector(n, x)),
        );
        let linears = [
            ("self_attn.q_proj", &self.q),
            ("self_attn.k_proj", &self.k),
            ("self_attn.v_proj", &self.v),
            ("self_attn.o_proj", &self.o),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ];
        for (name, linear) in linears {
            all.extend(linear.tensors(&format!("{place}.{name}")));
        }
        all
    }
}

fn place(layer: usize) -> String {
    format!("model.layers.{layer}")
}
