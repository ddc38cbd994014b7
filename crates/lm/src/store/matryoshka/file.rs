//! Bases and ranks in a file.
//!
//! A safetensors file with the authors' names; `N` is a layer, `d` a head's dimensions:
//!
//! | tensor | shape | what |
//! |---|---|---|
//! | `model.layers.N.self_attn.{key,value}_unitary_transform_matrix` | `[kv_heads, d, d]` | U |
//! | `model.layers.N.self_attn.mean_{key,value}_states` | `[1, kv_heads, 1, d]` | μ |
//! | `model.layers.N.self_attn.{key,value}_ranks` | `[kv_heads]` u32 | ours |
//!
//! Trained files of the authors have `{key,value}_unitary_transform_weights` (Cayley form) and
//! `mean_{key,value}_weights` in their place, and no ranks. Metadata: `keyfold` (the version
//! of the format), `model`, `rotary` and `crc32` of all names and tensors in the order of the names. A
//! file without metadata is taken for one of the authors', with keys as Hugging Face's weights
//! have them; one with some of it alone is damaged.

use super::{Bases, HeadBasis, Ranks, from_cayley};
use crate::error::{invalid, io};
use crate::{Decoder, LmError};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const VERSION: &str = "2";

/// What the metadata of a file of ours names.
const OURS: [&str; 4] = ["keyfold", "model", "rotary", "crc32"];

/// Prefix of a layer's tensors.
fn layer_name(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.")
}

/// Writes bases and ranks, bound to the model.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, decoder: &Decoder, bases: &Bases, ranks: &Ranks) -> Result<(), LmError> {
    let config = decoder.config();
    let (heads, d) = (config.dims.kv_heads, config.dims.head_dim);
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for layer in 0..config.dims.layers {
        let own = layer * heads..(layer + 1) * heads;
        let name = layer_name(layer);
        for (what, bases, ranks) in [
            ("key", &bases.keys[own.clone()], &ranks.keys[own.clone()]),
            ("value", &bases.values[own.clone()], &ranks.values[own]),
        ] {
            let columns = bases.iter().flat_map(|b| {
                let number = move |i: usize| b.directions[i % d * d + i / d];
                (0..d * d).map(number)
            });
            let means = bases.iter().flat_map(|b| b.mean.iter().copied());
            let ranks = ranks.iter().flat_map(|&r| (r as u32).to_le_bytes());
            let mut put = |name: String, kind, shape, bytes| {
                tensors.insert(name, (kind, shape, bytes));
            };
            let matrix = format!("{name}{what}_unitary_transform_matrix");
            put(matrix, Dtype::F32, vec![heads, d, d], bytes(columns));
            let mean = format!("{name}mean_{what}_states");
            put(mean, Dtype::F32, vec![1, heads, 1, d], bytes(means));
            put(
                format!("{name}{what}_ranks"),
                Dtype::U32,
                vec![heads],
                ranks.collect(),
            );
        }
    }
    let mut crc = crc32fast::Hasher::new();
    for (name, (_, _, bytes)) in &tensors {
        crc.update(name.as_bytes());
        crc.update(bytes);
    }
    let metadata = HashMap::from([
        ("keyfold".to_owned(), VERSION.to_owned()),
        (
            "model".to_owned(),
            format!("{:016x}", decoder.fingerprint()),
        ),
        ("rotary".to_owned(), rotary(decoder).to_owned()),
        ("crc32".to_owned(), format!("{:08x}", crc.finalize())),
    ]);
    let views = tensors.iter().map(|(name, (kind, shape, bytes))| {
        let view = TensorView::new(*kind, shape.clone(), bytes)?;
        Ok((name.clone(), view))
    });
    let written = views
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(std::io::Error::other)
        .and_then(|bytes| keyfold_core::atomic::write(path, &bytes));
    written.map_err(|source| LmError::Write {
        path: path.to_owned(),
        source,
    })
}

/// How positions turn the model's keys.
fn rotary(decoder: &Decoder) -> &'static str {
    match decoder.config().rope() {
        Some(rope) if rope.interleaved => "interleaved",
        _ => "half",
    }
}

fn bytes(numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    numbers.flat_map(f32::to_le_bytes).collect()
}

/// How many heads of a layer have a basis in a file: a model's KV heads, or its query heads where
/// it was made as the authors do.
///
/// # Errors
/// When the file cannot be read or holds no bases.
pub fn heads_in(path: &Path) -> Result<usize, LmError> {
    let raw = std::fs::read(path).map_err(|e| io(path, e))?;
    let no_bases = |why: String| {
        let what = format!("it holds no bases for --cache matryoshka: {why}");
        invalid(path, what)
    };
    let file = SafeTensors::deserialize(&raw).map_err(|e| no_bases(e.to_string()))?;
    let name = layer_name(0);
    let found = ["matrix", "weights"].iter().find_map(|what| {
        let tensor = file.tensor(&format!("{name}key_unitary_transform_{what}"));
        tensor.ok()?.shape().first().copied()
    });
    found.ok_or_else(|| no_bases("there is none of layer 0".to_owned()))
}

/// Reads bases and ranks for a model.
///
/// # Errors
/// When the file cannot be read, is damaged, or was made for another model, a basis is not
/// orthogonal or a rank out of range.
pub fn load(path: &Path, decoder: &Decoder) -> Result<(Bases, Ranks), LmError> {
    let config = decoder.config();
    let dims = config.dims;
    let (heads, d) = (dims.kv_heads, dims.head_dim);
    let raw = std::fs::read(path).map_err(|e| io(path, e))?;
    let refuse = |what: String| invalid(path, what);
    let no_bases = |e: safetensors::SafeTensorError| {
        refuse(format!("it holds no bases for --cache matryoshka: {e}"))
    };
    let (_, header) = SafeTensors::read_metadata(&raw).map_err(no_bases)?;
    let file = SafeTensors::deserialize(&raw).map_err(no_bases)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let ours = OURS.iter().any(|key| metadata.contains_key(*key));
    if ours {
        check(path, &metadata, &file, decoder)?;
    }
    let numbers = |name: &str, shape: &[usize]| -> Result<Option<Vec<f32>>, LmError> {
        let Ok(tensor) = file.tensor(name) else {
            return Ok(None);
        };
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            return Err(refuse(format!(
                "tensor '{name}' is {:?} {:?}; the model asks for {shape:?} in single precision \
                 (a basis for each KV head, or one for each query head with repeated heads)",
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let words = tensor.data().as_chunks::<4>().0;
        Ok(Some(words.iter().map(|w| f32::from_le_bytes(*w)).collect()))
    };
    let interleaved = config.rope().is_some_and(|r| r.interleaved) && !ours;
    let mut bases = Bases {
        keys: Vec::new(),
        values: Vec::new(),
    };
    let mut ranks = Ranks::all(&dims, d);
    for layer in 0..dims.layers {
        let name = layer_name(layer);
        for what in ["key", "value"] {
            let missing = |tensor: String| refuse(format!("tensor '{tensor}' is missing"));
            let (matrix, weights) = (
                format!("{name}{what}_unitary_transform_matrix"),
                format!("{name}{what}_unitary_transform_weights"),
            );
            let (states, trained) = (
                format!("{name}mean_{what}_states"),
                format!("{name}mean_{what}_weights"),
            );
            let mean_shape = [1, heads, 1, d];
            let means = match numbers(&trained, &mean_shape)? {
                Some(means) => means,
                None => numbers(&states, &mean_shape)?.ok_or_else(|| missing(states))?,
            };
            let cayley = numbers(&weights, &[heads, d, d])?;
            let free = cayley.is_some();
            let all = match cayley {
                Some(all) => all,
                None => numbers(&matrix, &[heads, d, d])?.ok_or_else(|| missing(matrix))?,
            };
            for (mean, own) in means.chunks_exact(d).zip(all.chunks_exact(d * d)) {
                let basis = if free {
                    from_cayley(mean.to_vec(), own)
                } else {
                    let transposed = (0..d * d).map(|i| own[i % d * d + i / d]).collect();
                    HeadBasis::new(mean.to_vec(), transposed)
                };
                let basis = basis.map_err(|e| refuse(e.to_string()))?;
                match what {
                    "key" if interleaved => bases.keys.push(interleave(&basis)?),
                    "key" => bases.keys.push(basis),
                    _ => bases.values.push(basis),
                }
            }
            if let Ok(tensor) = file.tensor(&format!("{name}{what}_ranks")) {
                if tensor.dtype() != Dtype::U32 || tensor.shape() != [heads] {
                    return Err(refuse(format!(
                        "ranks of layer {layer} are no {heads} integers"
                    )));
                }
                let to = if what == "key" {
                    &mut ranks.keys
                } else {
                    &mut ranks.values
                };
                let words = tensor.data().as_chunks::<4>().0;
                for (to, word) in to[layer * heads..].iter_mut().zip(words) {
                    *to = u32::from_le_bytes(*word) as usize;
                }
            }
        }
    }
    ranks.check(&dims).map_err(|e| refuse(e.to_string()))?;
    Ok((bases, ranks))
}

/// Version, checksum and model of a file of ours.
fn check(
    path: &Path,
    metadata: &HashMap<String, String>,
    file: &SafeTensors,
    decoder: &Decoder,
) -> Result<(), LmError> {
    let is = |key: &str, value: &str| metadata.get(key).is_some_and(|v| v == value);
    if metadata.contains_key("keyfold") && !is("keyfold", VERSION) {
        let what = "it is of another version of keyfold; make it again: keyfold lm calibrate";
        return Err(invalid(path, what));
    }
    let mut names = file.names();
    names.sort_unstable();
    let mut crc = crc32fast::Hasher::new();
    for name in names {
        if let Ok(tensor) = file.tensor(name) {
            crc.update(name.as_bytes());
            crc.update(tensor.data());
        }
    }
    let whole = is("keyfold", VERSION) && is("rotary", rotary(decoder));
    if !whole || !is("crc32", &format!("{:08x}", crc.finalize())) {
        let what = "it is damaged; make it again: keyfold lm calibrate";
        return Err(invalid(path, what));
    }
    if !is("model", &format!("{:016x}", decoder.fingerprint())) {
        let what = "its bases are of another model; make some for this: keyfold lm calibrate";
        return Err(invalid(path, what));
    }
    Ok(())
}

/// The basis for keys whose pair `c`, `c + d/2` lies at `2c`, `2c + 1`.
fn interleave(basis: &HeadBasis) -> Result<HeadBasis, LmError> {
    let d = basis.mean.len();
    let turn = |row: &[f32]| -> Vec<f32> {
        let place = |i: usize| row[i / 2 + d / 2 * (i % 2)];
        (0..d).map(place).collect()
    };
    let directions = basis.directions.chunks_exact(d).flat_map(turn).collect();
    HeadBasis::new(turn(&basis.mean), directions)
}
