//! Model files of real sizes with random weights: for measuring speed where no real model is.
//!
//! The file is an ordinary GGUF that other programs read as well, so the same file serves
//! both sides of a comparison. What such a model writes means nothing.

use crate::LmError;
use crate::file::type_number;
use crate::mamba::{MambaConfig, MambaLm, tensor_shapes};
use keyfold_kernels::blocks::{BlockType, quantize};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::path::Path;

/// Sizes of a published model.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// GGUF's name of the architecture: `llama` or `qwen3`.
    pub architecture: &'static str,
    /// Layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Size of the feed-forward layer.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Length of a head's vectors.
    pub head_dim: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Longest context.
    pub context: usize,
}

impl Geometry {
    /// SmolLM-135M, with room for long contexts.
    pub fn smollm_135m() -> Self {
        Self {
            architecture: "llama",
            layers: 30,
            hidden: 576,
            intermediate: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab: 49_152,
            context: 65_536,
        }
    }

    /// Qwen3-0.6B.
    pub fn qwen3_06b() -> Self {
        Self {
            architecture: "qwen3",
            layers: 28,
            hidden: 1024,
            intermediate: 3072,
            heads: 16,
            kv_heads: 8,
            head_dim: 128,
            vocab: 151_936,
            context: 40_960,
        }
    }

    /// Llama-3-8B with so many of its 32 layers.
    pub fn llama3_8b(layers: usize) -> Self {
        Self {
            architecture: "llama",
            layers,
            hidden: 4096,
            intermediate: 14_336,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab: 128_256,
            context: 131_072,
        }
    }

    /// Name, rows and columns of every tensor; one row and no columns for a norm.
    fn tensors(&self) -> Vec<(String, usize, usize)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![
            ("token_embd.weight".to_owned(), self.vocab, self.hidden),
            ("output_norm.weight".to_owned(), 0, self.hidden),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, rows, cols| {
                all.push((format!("blk.{layer}.{name}.weight"), rows, cols))
            };
            add("attn_norm", 0, self.hidden);
            add("ffn_norm", 0, self.hidden);
            add("attn_q", q, self.hidden);
            add("attn_k", kv, self.hidden);
            add("attn_v", kv, self.hidden);
            add("attn_output", self.hidden, q);
            add("ffn_gate", self.intermediate, self.hidden);
            add("ffn_up", self.intermediate, self.hidden);
            add("ffn_down", self.hidden, self.intermediate);
            if self.architecture == "qwen3" {
                add("attn_q_norm", 0, self.head_dim);
                add("attn_k_norm", 0, self.head_dim);
            }
        }
        all
    }
}

/// The type of a tensor's blocks: `kind`, or one whose blocks divide its rows.
fn kind_for(kind: BlockType, cols: usize) -> BlockType {
    if kind.row_bytes(cols).is_some() {
        kind
    } else {
        BlockType::Q8_0
    }
}

/// Writes a model with random weights of type `kind` (norms are ones in `f32`).
///
/// # Errors
/// When the file cannot be written.
pub fn write_random(
    geometry: &Geometry,
    kind: BlockType,
    seed: u64,
    path: &Path,
) -> Result<(), LmError> {
    keyfold_core::atomic::write_with(path, |out| fill(geometry, kind, seed, out)).map_err(
        |source| LmError::Write {
            path: path.to_owned(),
            source,
        },
    )
}

const ALIGNMENT: usize = 32;

fn fill(
    geometry: &Geometry,
    kind: BlockType,
    seed: u64,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let tensors = geometry.tensors();
    let mut head = Vec::new();
    let metadata = metadata(geometry);
    head.extend_from_slice(b"GGUF");
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.count as u64).to_le_bytes());
    head.extend_from_slice(&metadata.bytes);
    let mut offset = 0;
    let mut sizes = Vec::new();
    for (name, rows, cols) in &tensors {
        put_text(&mut head, name);
        let (kind, size) = match rows {
            0 => (BlockType::F32, 4 * cols),
            rows => {
                let kind = kind_for(kind, *cols);
                (kind, rows * kind.row_bytes(*cols).unwrap_or(0))
            }
        };
        let dims: &[usize] = if *rows == 0 {
            &[*cols]
        } else {
            &[*cols, *rows]
        };
        head.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter()
            .for_each(|d| head.extend_from_slice(&(*d as u64).to_le_bytes()));
        head.extend_from_slice(&type_number(kind).to_le_bytes());
        head.extend_from_slice(&(offset as u64).to_le_bytes());
        sizes.push((*rows, *cols, kind, size));
        offset += size.next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)?;
    let mut rng = SmallRng::seed_from_u64(seed);
    for (rows, cols, kind, size) in sizes {
        let bytes = match rows {
            0 => 1f32.to_le_bytes().repeat(cols),
            _ => random_rows(rows, cols, kind, &mut rng),
        };
        out.write_all(&bytes)?;
        out.write_all(&vec![0; size.next_multiple_of(ALIGNMENT) - size])?;
    }
    Ok(())
}

/// Rows of small random numbers. Some dozens are drawn and repeated: their values do not
/// matter, and quantising gigabytes would take longer than what is measured with them.
fn random_rows(rows: usize, cols: usize, kind: BlockType, rng: &mut SmallRng) -> Vec<u8> {
    let row_bytes = kind.row_bytes(cols).unwrap_or(0);
    let drawn = rows.min(37);
    let mut bytes = vec![0; drawn * row_bytes];
    // So that hidden states keep their size from layer to layer.
    let scale = (3.0 / cols as f32).sqrt();
    for row in bytes.chunks_exact_mut(row_bytes.max(1)) {
        let values: Vec<f32> = (0..cols)
            .map(|_| scale * rng.random_range(-1.0f32..1.0))
            .collect();
        quantize(kind, &values, row);
    }
    bytes
        .iter()
        .copied()
        .cycle()
        .take(rows * row_bytes)
        .collect()
}

/// Keys and values of the file.
#[derive(Default)]
struct Metadata {
    count: usize,
    bytes: Vec<u8>,
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend_from_slice(&(text.len() as u64).to_le_bytes());
    to.extend_from_slice(text.as_bytes());
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
    }

    fn number(&mut self, key: &str, value: usize) {
        self.key(key, 4);
        self.bytes.extend_from_slice(&(value as u32).to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.bytes, value);
    }

    fn texts(&mut self, key: &str, values: impl ExactSizeIterator<Item = String>) {
        self.key(key, 9);
        self.bytes.extend_from_slice(&8u32.to_le_bytes());
        self.bytes
            .extend_from_slice(&(values.len() as u64).to_le_bytes());
        values.for_each(|v| put_text(&mut self.bytes, &v));
    }
}

fn metadata(geometry: &Geometry) -> Metadata {
    let mut all = Metadata::default();
    let of = |name: &str| format!("{}.{name}", geometry.architecture);
    all.text("general.architecture", geometry.architecture);
    all.text("general.name", "random weights");
    all.number(&of("block_count"), geometry.layers);
    all.number(&of("context_length"), geometry.context);
    all.number(&of("embedding_length"), geometry.hidden);
    all.number(&of("feed_forward_length"), geometry.intermediate);
    all.number(&of("attention.head_count"), geometry.heads);
    all.number(&of("attention.head_count_kv"), geometry.kv_heads);
    all.number(&of("attention.key_length"), geometry.head_dim);
    all.number(&of("attention.value_length"), geometry.head_dim);
    all.number(&of("rope.dimension_count"), geometry.head_dim);
    all.number(&of("vocab_size"), geometry.vocab);
    all.float(&of("attention.layer_norm_rms_epsilon"), 1e-5);
    all.float(&of("rope.freq_base"), 100_000.0);
    // A byte-level vocabulary: the 256 bytes as GPT-2 writes them, and words nobody meets.
    all.text("tokenizer.ggml.model", "gpt2");
    all.text("tokenizer.ggml.pre", "gpt-2");
    all.texts("tokenizer.ggml.tokens", (0..geometry.vocab).map(token));
    all.texts("tokenizer.ggml.merges", (0..1).map(|_| "a b".to_owned()));
    all.number("tokenizer.ggml.bos_token_id", 256);
    all.number("tokenizer.ggml.eos_token_id", 257);
    all
}

/// The token of an id.
fn token(id: usize) -> String {
    match id {
        0..256 => byte_character(id as u8).to_string(),
        256 => "<|begin|>".to_owned(),
        257 => "<|end|>".to_owned(),
        258 => "ab".to_owned(),
        _ => format!("w{id}"),
    }
}

/// GPT-2's printable character of a byte.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count();
    char::from_u32(256 + before as u32).unwrap_or('?')
}

/// A Mamba model with random weights in memory, set up as its authors do before training.
///
/// # Errors
/// When the configuration makes no model.
pub fn random_mamba(config: MambaConfig, seed: u64) -> Result<MambaLm, LmError> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut draw = |name: &str, shape: &[usize]| -> Vec<f32> {
        let len = shape.iter().product();
        let last = shape.last().copied().unwrap_or(1);
        let bound = match name.rsplit_once('.').map_or(name, |(start, _)| start) {
            n if n.ends_with("norm") || n.ends_with("norm_f") => return vec![1.0; len],
            n if n.ends_with("embedding") || n.ends_with("lm_head") => 0.035,
            n if n.ends_with("mixer") && name.ends_with(".D") => return vec![1.0; len],
            // Decays of 1 to d_state, or to 16.
            n if n.ends_with("mixer") && name.ends_with("A_log") => {
                return match shape.len() {
                    1 => (0..len)
                        .map(|_| rng.random_range(1f32..16.0).ln())
                        .collect(),
                    _ => (0..len).map(|i| (1.0 + (i % last) as f32).ln()).collect(),
                };
            }
            // softplus gives steps from 0.001 to 0.1.
            _ if name.ends_with("dt_bias") || name.ends_with("dt_proj.bias") => {
                return (0..len).map(|_| rng.random_range(-6.9..-2.25)).collect();
            }
            _ => (1.0 / last as f32).sqrt(),
        };
        (0..len).map(|_| rng.random_range(-bound..bound)).collect()
    };
    let numbers = tensor_shapes(&config).into_iter().map(|(name, shape)| {
        let numbers = draw(&name, &shape);
        (name, (shape, numbers))
    });
    let numbers = numbers.collect();
    MambaLm::from_numbers(config, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFile;
    use crate::model::Decoder;
    use crate::session::{Policy, Session};
    use crate::store::CacheType;
    use std::sync::Arc;

    #[test]
    fn a_random_model_is_read_and_run() {
        let scratch = tempfile::tempdir().unwrap();
        for architecture in ["llama", "qwen3"] {
            let geometry = Geometry {
                architecture,
                layers: 2,
                hidden: 256,
                intermediate: 512,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocab: 300,
                context: 128,
            };
            for kind in [BlockType::Q4_1, BlockType::Q4K, BlockType::F16] {
                let path = scratch.path().join("model.gguf");
                write_random(&geometry, kind, 1, &path).unwrap();
                let file = ModelFile::open(&path).unwrap();
                let decoder = Arc::new(Decoder::load(&file).unwrap());
                let policy = Policy::dense(&decoder, CacheType::F16, 16).unwrap();
                let team = Arc::new(keyfold_kernels::Team::new(1));
                let mut session = Session::new(decoder, policy, team);
                session
                    .prefill(&[1, 2, 3], &keyfold_core::NoProgress)
                    .unwrap();
                assert!(session.logits().iter().all(|l| l.is_finite()));
            }
        }
    }
}
