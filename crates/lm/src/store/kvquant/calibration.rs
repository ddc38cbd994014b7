//! What KVQuant knows of a model before it reads anything: thresholds of the channels of keys,
//! and tables. One safetensors file; tables of 2, 3 and 4 bits are in it.
//!
//! ```text
//! layers.N.k.{upper,lower}            [kv_heads * head_dim]
//! layers.N.{k,v}.centroids.BITS       [2^BITS]
//! layers.N.{k,v}.qnorm.BITS           [2]: scale, offset
//! ```
//!
//! all in 32 bits, and in the header's metadata: `format` (`keyfold-kvquant`), `version`,
//! `model` (a hash of what makes keys and values), `sparsity_threshold`, `tokens`, `fisher`,
//! `checksum` (CRC-32 of the other entries and of the tensors, both by name). Channels are
//! numbered as Hugging Face's weights have them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;

use keyfold_core::atomic;
use keyfold_core::weights::PickledArrays;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::{KvQuantConfig, METHOD, check_threshold};
use crate::LmError;
use crate::file::ModelFile;
use crate::refusal::Refusal;
use crate::roles::Dims;

const FORMAT: &str = "keyfold-kvquant";
const VERSION: &str = "2";

/// A fitted table of one size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fitted {
    pub(super) centroids: Vec<f32>,
    /// Q-Norm's scale and offset.
    pub(super) norm: [f32; 2],
}

/// Of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OfLayer {
    /// Thresholds of the channels of keys.
    pub(super) upper: Vec<f32>,
    pub(super) lower: Vec<f32>,
    /// Of 2, 3 and 4 bits. No centroids where there are none of a size.
    pub(super) keys: [Fitted; 3],
    pub(super) values: [Fitted; 3],
}

/// Thresholds and tables of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Hash of what makes the model's keys and values; none where that is not known (a file of
    /// the authors).
    pub model: Option<u64>,
    /// Share of numbers within the thresholds.
    pub sparsity_threshold: f64,
    /// Tokens that it was made of.
    pub tokens: u64,
    /// Whether gradients weighed the numbers.
    pub fisher: bool,
    pub(super) layers: Vec<OfLayer>,
}

/// A hash of the tensors that make a model's keys and values.
///
/// # Errors
/// When a tensor cannot be read.
pub fn model_hash(file: &ModelFile) -> Result<u64, LmError> {
    let mut hash = [crc32fast::Hasher::new(), crc32fast::Hasher::new()];
    let mut names: Vec<&str> = file.names().collect();
    names.sort_unstable();
    for name in names {
        let of = |part: &str| name.contains(part);
        let which = match (of(".k_proj.") || of(".k_norm."), of(".v_proj.")) {
            (true, _) => 0,
            (_, true) => 1,
            _ => continue,
        };
        hash[which].update(file.tensor(name)?.bytes());
    }
    let [keys, values] = hash.map(crc32fast::Hasher::finalize);
    Ok(u64::from(keys) << 32 | u64::from(values))
}

/// Numbers of channels in the order in which the model has them: files number them as Hugging
/// Face's weights do, where the pair of channel `c` is `c + d/2`.
pub(super) fn channels(numbers: &[f32], head_dim: usize, interleaved: bool) -> Vec<f32> {
    if !interleaved {
        return numbers.to_vec();
    }
    let mut out = numbers.to_vec();
    let heads = out.chunks_exact_mut(head_dim);
    for (to, from) in heads.zip(numbers.chunks_exact(head_dim)) {
        for (c, x) in from.iter().enumerate() {
            to[2 * (c % (head_dim / 2)) + c / (head_dim / 2)] = *x;
        }
    }
    out
}

/// The way back of [`channels`].
pub(super) fn published(numbers: &[f32], head_dim: usize, interleaved: bool) -> Vec<f32> {
    if !interleaved {
        return numbers.to_vec();
    }
    let mut out = numbers.to_vec();
    let heads = out.chunks_exact_mut(head_dim);
    for (to, from) in heads.zip(numbers.chunks_exact(head_dim)) {
        for (c, to) in to.iter_mut().enumerate() {
            *to = from[2 * (c % (head_dim / 2)) + c / (head_dim / 2)];
        }
    }
    out
}

impl Calibration {
    pub(super) fn layers(&self) -> &[OfLayer] {
        &self.layers
    }

    /// Refuses a model of other sizes.
    ///
    /// # Errors
    /// When layers or channels of keys are not as many.
    pub fn check_sizes(&self, dims: &Dims) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        let width = dims.kv_heads * dims.head_dim;
        let mut widths = self.layers.iter().map(|l| l.upper.len());
        let found = widths.find(|&n| n != width).unwrap_or(width);
        if self.layers.len() != dims.layers || found != width {
            return refuse(format!(
                "the calibration is of a model of {} layers and {found} channels of keys; this \
                 one has {} and {width}",
                self.layers.len(),
                dims.layers
            ));
        }
        Ok(())
    }

    /// Refuses what does not fit a model or the settings.
    pub(super) fn check(&self, dims: &Dims, config: &KvQuantConfig) -> Result<(), Refusal> {
        self.check_sizes(dims)?;
        let refuse = |what: String| Err(Refusal::setting(METHOD, what));
        if (self.sparsity_threshold - config.sparsity_threshold).abs() > 1e-6 {
            return refuse(format!(
                "the calibration is for {:.2} % outliers, not for {:.2} %; calibrate anew",
                100.0 * (1.0 - self.sparsity_threshold),
                100.0 * (1.0 - config.sparsity_threshold)
            ));
        }
        let size = usize::from(config.abits - 2);
        let lacks =
            |l: &OfLayer| l.keys[size].centroids.is_empty() || l.values[size].centroids.is_empty();
        if config.datatype == super::Datatype::Nuq && self.layers.iter().any(lacks) {
            return refuse(format!(
                "the calibration has no tables of {} bits; calibrate anew",
                config.abits
            ));
        }
        Ok(())
    }

    /// Refuses another model than `hash` says.
    ///
    /// # Errors
    /// When the calibration was made with other weights.
    pub fn check_model(&self, hash: u64) -> Result<(), Refusal> {
        match self.model {
            Some(own) if own != hash => Err(Refusal::setting(
                METHOD,
                "the calibration was made with another model (its key and value projections \
                 differ); run 'keyfold lm calibrate --cache kvquant' with this one",
            )),
            _ => Ok(()),
        }
    }

    /// Tells this calibration under `config` from others, for saved prompts.
    pub(super) fn tag(&self, config: &KvQuantConfig) -> u32 {
        let mut hash = crc32fast::Hasher::new();
        for (name, numbers) in self.tensors() {
            hash.update(name.as_bytes());
            hash.update(bytemuck::cast_slice(numbers.as_ref()));
        }
        hash.update(format!("{config:?}").as_bytes());
        // Never that of a plain store.
        hash.finalize() | 1 << 31
    }

    /// All tensors by name.
    fn tensors<'a>(&'a self) -> BTreeMap<String, Cow<'a, [f32]>> {
        let mut all = BTreeMap::new();
        for (n, layer) in self.layers.iter().enumerate() {
            let mut put = |name: String, numbers: &'a [f32]| {
                all.insert(format!("layers.{n}.{name}"), Cow::Borrowed(numbers));
            };
            put("k.upper".into(), &layer.upper);
            put("k.lower".into(), &layer.lower);
            for (part, tables) in [("k", &layer.keys), ("v", &layer.values)] {
                for (bits, table) in (2..).zip(tables) {
                    if !table.centroids.is_empty() {
                        put(format!("{part}.centroids.{bits}"), &table.centroids);
                        put(format!("{part}.qnorm.{bits}"), &table.norm);
                    }
                }
            }
        }
        all
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Refusal> {
        let io = |source| Refusal::Io {
            path: path.to_owned(),
            source,
        };
        let tensors = self.tensors();
        let model = self.model.map(|m| format!("{m:016x}")).unwrap_or_default();
        let mut metadata: HashMap<String, String> = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("model", model),
            ("sparsity_threshold", self.sparsity_threshold.to_string()),
            ("tokens", self.tokens.to_string()),
            ("fisher", self.fisher.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let checksum = checksum(&metadata, &tensors);
        metadata.insert("checksum".to_owned(), checksum);
        let views: Result<Vec<(String, TensorView)>, _> = tensors
            .iter()
            .map(|(name, numbers)| {
                let bytes = bytemuck::cast_slice(numbers.as_ref());
                let view = TensorView::new(Dtype::F32, vec![numbers.len()], bytes)?;
                Ok((name.clone(), view))
            })
            .collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|e| io(std::io::Error::other(e)))?;
        atomic::write(path, &bytes).map_err(io)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is none of these, damaged, or of another version.
    pub fn load(path: &Path) -> Result<Self, Refusal> {
        let bytes = std::fs::read(path).map_err(|source| Refusal::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes).map_err(|what| Refusal::File {
            path: path.to_owned(),
            what,
        })
    }

    /// Reads the bytes of a file; the error says what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let none = "this is no calibration of kvquant; make one with 'keyfold lm calibrate --cache kvquant'";
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|_| none.to_owned())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| metadata.get(name).map(String::as_str).unwrap_or_default();
        if field("format") != FORMAT {
            return Err(none.to_owned());
        }
        if field("version") != VERSION {
            return Err(format!(
                "version {} of the format is not known here; calibrate anew",
                field("version")
            ));
        }
        let damaged = |what: &str| format!("the calibration is damaged ({what}); calibrate anew");
        let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 || view.shape().len() != 1 {
                return Err(damaged(&name));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            let numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b)).collect();
            if numbers.iter().any(|x| !x.is_finite()) {
                return Err(damaged(&name));
            }
            tensors.insert(name, Cow::Owned(numbers));
        }
        if checksum(&metadata, &tensors) != field("checksum") {
            return Err(damaged("its checksum is wrong"));
        }
        let model = match field("model") {
            "" => None,
            text => Some(u64::from_str_radix(text, 16).map_err(|_| damaged("model"))?),
        };
        let sparsity_threshold = parsed(&metadata, "sparsity_threshold").map_err(damaged)?;
        check_threshold(sparsity_threshold).map_err(|_| damaged("sparsity_threshold"))?;
        let count = (0..).take_while(|n| tensors.contains_key(&format!("layers.{n}.k.upper")));
        let layers: Result<Vec<OfLayer>, String> = count
            .map(|n| layer(&tensors, n).ok_or_else(|| damaged(&format!("layer {n}"))))
            .collect();
        let layers = layers?;
        let same = |l: &OfLayer| l.upper.len() == layers[0].upper.len();
        if layers.is_empty() || !layers.iter().all(same) {
            return Err(damaged("its layers differ in size"));
        }
        Ok(Self {
            model,
            sparsity_threshold,
            tokens: parsed(&metadata, "tokens").map_err(damaged)?,
            fisher: parsed(&metadata, "fisher").map_err(damaged)?,
            layers,
        })
    }

    /// Takes what the authors' program wrote (`quantizers.pickle`): for each layer
    /// `model.layers.N.self_attn.{k,v}_proj` a tuple of upper and lower thresholds, a list of
    /// one table, and with Q-Norm scale and offset. Nothing in the file is run.
    /// `sparsity_threshold` is not in it and must be that of its making.
    ///
    /// # Errors
    /// When the file cannot be read, or lacks one of these.
    pub fn from_pickle(path: &Path, sparsity_threshold: f64) -> Result<Self, Refusal> {
        check_threshold(sparsity_threshold)?;
        let wrong = |what: String| Refusal::File {
            path: path.to_owned(),
            what,
        };
        let file = PickledArrays::open(path).map_err(|e| Refusal::File {
            path: path.to_owned(),
            what: e.to_string(),
        })?;
        let mut layers = Vec::new();
        let key = |n: usize, part: &str| format!("model.layers.{n}.self_attn.{part}_proj");
        while let Some(keys) = file.get(&key(layers.len(), "k")) {
            let n = layers.len();
            let values = file.get(&key(n, "v")).unwrap_or_default();
            let numbers = |i: usize| keys.get(i).map(|a| a.numbers.clone()).unwrap_or_default();
            let (upper, lower) = (numbers(0), numbers(1));
            let tables = |arrays: &[keyfold_core::weights::Array]| -> Option<[Fitted; 3]> {
                let mut centroids = arrays.get(2)?.numbers.clone();
                centroids.sort_by(f32::total_cmp);
                let norm = match (arrays.get(3), arrays.get(4)) {
                    (Some(scale), Some(offset)) => {
                        [*scale.numbers.first()?, *offset.numbers.first()?]
                    }
                    _ => [1.0, 0.0],
                };
                if !centroids.iter().chain(&norm).all(|x| x.is_finite()) {
                    return None;
                }
                let size = [4, 8, 16].iter().position(|&n| n == centroids.len())?;
                let mut all = [(); 3].map(|()| Fitted {
                    centroids: Vec::new(),
                    norm: [1.0, 0.0],
                });
                all[size] = Fitted { centroids, norm };
                Some(all)
            };
            let (Some(of_keys), Some(of_values)) = (tables(keys), tables(values)) else {
                return Err(wrong(format!(
                    "layer {n} has no tables of 4, 8 or 16 finite numbers for keys and values"
                )));
            };
            let finite = |x: &Vec<f32>| x.iter().all(|x| x.is_finite());
            if upper.is_empty() || upper.len() != lower.len() || !finite(&upper) || !finite(&lower)
            {
                return Err(wrong(format!("the thresholds of layer {n} are damaged")));
            }
            layers.push(OfLayer {
                upper,
                lower,
                keys: of_keys,
                values: of_values,
            });
        }
        if layers.is_empty() {
            let what =
                "it has no model.layers.0.self_attn.k_proj; it is none of KVQuant's quantizers";
            return Err(wrong(what.into()));
        }
        Ok(Self {
            model: None,
            sparsity_threshold,
            tokens: 0,
            fisher: false,
            layers,
        })
    }
}

/// CRC-32, in hexadecimal, of all entries of the metadata but the checksum itself and of all
/// tensors, by name. A zero byte ends each name and text of the metadata.
fn checksum(
    metadata: &HashMap<String, String>,
    tensors: &BTreeMap<String, Cow<'_, [f32]>>,
) -> String {
    let mut hash = crc32fast::Hasher::new();
    let mut entries: Vec<_> = metadata.iter().collect();
    entries.sort_unstable();
    for (name, text) in entries {
        if name != "checksum" {
            for part in [name, text] {
                hash.update(part.as_bytes());
                hash.update(&[0]);
            }
        }
    }
    for (name, numbers) in tensors {
        hash.update(name.as_bytes());
        for x in numbers.as_ref() {
            hash.update(&x.to_le_bytes());
        }
    }
    format!("{:08x}", hash.finalize())
}

/// What the text of an entry of the metadata stands for; its name where that is nothing.
fn parsed<'a, T: FromStr>(of: &HashMap<String, String>, name: &'a str) -> Result<T, &'a str> {
    let text = of.get(name).ok_or(name)?;
    text.parse().map_err(|_| name)
}

fn layer(tensors: &BTreeMap<String, Cow<'_, [f32]>>, n: usize) -> Option<OfLayer> {
    let get = |name: String| Some(tensors.get(&format!("layers.{n}.{name}"))?.to_vec());
    let (upper, lower) = (get("k.upper".into())?, get("k.lower".into())?);
    let tables = |part: &str| -> Option<[Fitted; 3]> {
        let mut all = [(); 3].map(|()| Fitted {
            centroids: Vec::new(),
            norm: [1.0, 0.0],
        });
        for (bits, to) in (2..).zip(&mut all) {
            let Some(centroids) = get(format!("{part}.centroids.{bits}")) else {
                continue;
            };
            let norm = get(format!("{part}.qnorm.{bits}"))?;
            if centroids.len() != 1 << bits || !centroids.is_sorted() {
                return None;
            }
            *to = Fitted {
                centroids,
                norm: norm.try_into().ok()?,
            };
        }
        Some(all)
    };
    (upper.len() == lower.len() && !upper.is_empty()).then_some(OfLayer {
        keys: tables("k")?,
        values: tables("v")?,
        upper,
        lower,
    })
}
