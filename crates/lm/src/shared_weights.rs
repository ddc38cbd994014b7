//! Models whose layers share the matrices of their attention: what is seen on a text before that,
//! and how such a model is saved.
//!
//! The method is [MASA](keyfold_compress::masa); here is what it needs of a model, and what it makes
//! of one. What is saved opens with [`ModelFile::open`] as every model does. Of a
//! folder the result is a folder, of a GGUF file a GGUF file; all other weights stay as they are.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use keyfold_compress::CompressError;
use keyfold_compress::masa::{self, MasaConfig, Pair, Projection, Shared};
use keyfold_core::{Progress, atomic};
use keyfold_kernels::blocks::{Activations, BlockType};
use keyfold_kernels::{Matrix, Team, product};

use crate::file::{group_name, pair_name};
use crate::linear::{DenseLinear, Linear};
use crate::model::{LinearName, load_linear};
use crate::session::{HookPoint, Observer, Policy, Session, Site};
use crate::store::CacheType;
use crate::{Decoder, LmError, ModelFile, Tensor};

/// What was seen of a model on a text.
pub struct Calibration {
    /// The mean of `x xᵀ` over the inputs of the projections that are asked for, `[in, in]`.
    moments: BTreeMap<(usize, LinearName), Vec<f64>>,
    /// Of each layer the distribution of the next token that the mean of its states over the
    /// text gives, through the final norm and the output matrix.
    pub distributions: Vec<Vec<f64>>,
}

/// A map whose inputs are summed up.
struct Watched {
    dense: DenseLinear,
    sum: Arc<Mutex<Vec<f64>>>,
}

impl Linear for Watched {
    fn rows(&self) -> usize {
        self.dense.rows()
    }

    fn cols(&self) -> usize {
        self.dense.cols()
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team) {
        let width = self.cols();
        let inputs = Matrix::new(x.values(), width);
        let mut products = vec![0.0; width * width];
        product(
            &mut products,
            width,
            inputs.t(),
            inputs,
            1.0,
            false,
            team.threads(),
        );
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        sum.resize(products.len(), 0.0);
        for (sum, x) in sum.iter_mut().zip(&products) {
            *sum += f64::from(*x);
        }
        drop(sum);
        self.dense.apply(x, out, decoding, team);
    }

    fn bytes_read(&self) -> u64 {
        self.dense.bytes_read()
    }
}

/// Sums of the states after each layer.
struct Means {
    sums: Vec<Vec<f64>>,
}

impl Observer for Means {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        if point.site != Site::ResidPost {
            return;
        }
        let sum = &mut self.sums[point.layer];
        for row in rows.chunks_exact(sum.len().max(1)) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
    }
}

/// Of queries, keys and values the same inputs are seen once.
fn watched(name: LinearName) -> LinearName {
    match name {
        LinearName::K | LinearName::V => LinearName::Q,
        LinearName::Up => LinearName::Gate,
        other => other,
    }
}

impl Calibration {
    /// Lets the model read `tokens`, which fit into its context.
    ///
    /// # Errors
    /// When there are no tokens, the model cannot be loaded, or `progress` asks to stop.
    pub fn read(
        file: &ModelFile,
        tokens: &[u32],
        names: &[LinearName],
        team: &Arc<Team>,
        progress: &dyn Progress,
    ) -> Result<Self, LmError> {
        let mut decoder = Decoder::load(file)?;
        let dims = decoder.config().dims;
        let mut sums = BTreeMap::new();
        for layer in 0..dims.layers {
            for name in names.iter().map(|name| watched(*name)) {
                let Some(dense) = load_linear(file, layer, name)? else {
                    continue;
                };
                if sums.contains_key(&(layer, name)) {
                    continue;
                }
                let sum = Arc::new(Mutex::new(Vec::new()));
                sums.insert((layer, name), Arc::clone(&sum));
                decoder.replace(layer, name, Box::new(Watched { dense, sum }))?;
            }
        }
        let decoder = Arc::new(decoder);
        let policy = Policy::dense(&decoder, CacheType::F32, tokens.len())?;
        let mut session = Session::new(Arc::clone(&decoder), policy, Arc::clone(team));
        let mut means = Means {
            sums: vec![vec![0.0; dims.hidden]; dims.layers],
        };
        session.observe(tokens, progress, &mut means)?;
        let count = tokens.len() as f64;
        let take = |sum: Arc<Mutex<Vec<f64>>>| {
            let mut sum = std::mem::take(&mut *sum.lock().unwrap_or_else(PoisonError::into_inner));
            sum.iter_mut().for_each(|x| *x /= count);
            sum
        };
        let distributions = means.sums.iter().map(|sum| {
            let mean: Vec<f32> = sum.iter().map(|x| (x / count) as f32).collect();
            distribution(&decoder, &mean, team)
        });
        Ok(Self {
            distributions: distributions.collect(),
            moments: sums
                .into_iter()
                .map(|(key, sum)| (key, take(sum)))
                .collect(),
        })
    }

    /// The mean of `x xᵀ` over the inputs of a projection; none where it was not asked for.
    pub fn moments(&self, layer: usize, name: LinearName) -> Option<&[f64]> {
        self.moments.get(&(layer, watched(name))).map(Vec::as_slice)
    }
}

fn distribution(decoder: &Decoder, state: &[f32], team: &Team) -> Vec<f64> {
    let mut x = Activations::default();
    decoder.final_norm(state, &mut x, team);
    let mut logits = Vec::new();
    decoder.logits(&mut x, &mut logits, team);
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let each: Vec<f64> = logits
        .iter()
        .map(|l| f64::from(l - greatest).exp())
        .collect();
    let total: f64 = each.iter().sum();
    each.into_iter().map(|p| p / total).collect()
}

/// Numbers in 16 bits, beside their name.
fn halves(name: String, shape: Vec<usize>, numbers: &[f32]) -> Result<(String, Tensor), LmError> {
    let halves: Vec<f16> = numbers.iter().map(|x| f16::from_f32(*x)).collect();
    if !halves.iter().all(|x| x.is_finite()) {
        return Err(LmError::Input {
            what: format!("{name} holds a number that 16 bits cannot"),
        });
    }
    let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok((name, Tensor::in_memory(BlockType::F16, shape, bytes)))
}

impl From<CompressError> for LmError {
    fn from(e: CompressError) -> Self {
        match e {
            CompressError::Cancelled => Self::Stopped,
            other => Self::Input {
                what: other.to_string(),
            },
        }
    }
}

/// Lets layers share the projections `names`. Without a calibration groups are of one size, and
/// there are no pairs.
///
/// # Errors
/// When the model has no such projection, a setting makes no sense for it, or `progress` asks to
/// stop.
pub fn share(
    file: &ModelFile,
    names: &[LinearName],
    config: &MasaConfig,
    seen: Option<&Calibration>,
    progress: &dyn Progress,
) -> Result<Vec<Shared>, LmError> {
    let layers = file.config().dims.layers;
    let drifts: Vec<f64> = match seen {
        Some(seen) => {
            let pairs = seen.distributions.windows(2);
            pairs.map(|p| masa::drift(&p[0], &p[1])).collect()
        }
        None => even(layers, config.groups),
    };
    let projections = names
        .iter()
        .map(|name| projection(file, *name, seen))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(masa::compress(config, &projections, &drifts, progress)?)
}

/// Drifts whose cuts make groups of one size.
fn even(layers: usize, groups: usize) -> Vec<f64> {
    let group = |layer: usize| layer * groups / layers.max(1);
    (1..layers)
        .map(|l| f64::from(u8::from(group(l) != group(l - 1))))
        .collect()
}

fn projection<'a>(
    file: &ModelFile,
    name: LinearName,
    seen: Option<&'a Calibration>,
) -> Result<Projection<'a>, LmError> {
    let mut projection = Projection {
        name: name.path(),
        layers: Vec::new(),
        rows: 0,
        columns: 0,
        moments: Vec::new(),
    };
    for layer in 0..file.config().dims.layers {
        let linear = load_linear(file, layer, name)?.ok_or_else(|| LmError::Input {
            what: format!("layer {layer} has no {}", name.path()),
        })?;
        let weight = linear.weight();
        (projection.rows, projection.columns) = (weight.rows(), weight.row_len());
        projection.layers.push(weight.to_f32());
        projection
            .moments
            .extend(seen.and_then(|seen| seen.moments(layer, name)));
    }
    Ok(projection)
}

/// The tensors of shared projections, by the names under which they are saved.
fn tensors(shared: &[Shared], names: &[LinearName]) -> Result<Vec<(String, Tensor)>, LmError> {
    let mut all = Vec::new();
    for part in shared {
        let (role, [rows, columns]) = (role(part, names)?, part.shape);
        let layers = layers(part);
        let count = part.layers.len();
        let thin = |p: &Pair| p.up.len() == rows * p.rank && p.down.len() == p.rank * columns;
        let fits = part.pairs.len() == count
            && part.pairs.iter().all(thin)
            && part.atoms.matrices.len() == part.atoms.count * rows * columns
            && part.atoms.coefficients.len() == part.atoms.count * count;
        if !fits || count == 0 {
            return Err(LmError::Input {
                what: format!("the atoms and mixtures of {role} do not fit each other"),
            });
        }
        let name = |what| group_name(&layers, role, what);
        let atoms = part.atoms.count;
        if atoms > 0 {
            let shape = vec![atoms, rows, columns];
            all.push(halves(name("atoms"), shape, &part.atoms.matrices)?);
            let mixture = Tensor::from_f32(vec![count, atoms], &part.atoms.coefficients);
            all.extend(mixture.map(|mixture| (name("coefficients"), mixture)));
        }
        for (layer, pair) in part.layers.clone().zip(&part.pairs) {
            let mut write = |rank: usize, up: &[f32], down: &[f32]| {
                let name = |half| pair_name(layer, role, half);
                all.push(halves(name("up"), vec![rows, rank], up)?);
                all.push(halves(name("down"), vec![rank, columns], down)?);
                Ok::<_, LmError>(())
            };
            match pair.rank {
                0 if atoms > 0 => {}
                // Without atoms a pair of zeros tells that nothing is there.
                0 => write(1, &vec![0.0; rows], &vec![0.0; columns])?,
                rank => write(rank, &pair.up, &pair.down)?,
            }
        }
    }
    Ok(all)
}

fn role(part: &Shared, names: &[LinearName]) -> Result<&'static str, LmError> {
    let name = names.get(part.projection).ok_or_else(|| LmError::Input {
        what: format!("there is no name for projection {}", part.projection),
    })?;
    Ok(name.path())
}

fn layers(part: &Shared) -> RangeInclusive<usize> {
    part.layers.start..=part.layers.end.saturating_sub(1)
}

/// Files of a folder that belong to a model beside its weights.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes a model with what [`share`] made of the projections `names` into the folder `out`, which is
/// made; gives the file with the weights.
///
/// # Errors
/// When projections lie together in one tensor of the file, what is shared does not fit, or a file
/// cannot be written.
pub fn save(
    file: &ModelFile,
    names: &[LinearName],
    shared: &[Shared],
    out: &Path,
) -> Result<PathBuf, LmError> {
    let mut added = tensors(shared, names)?;
    let mut gone = Vec::new();
    for part in shared {
        let role = role(part, names)?;
        gone.extend(
            part.layers
                .clone()
                .map(|l| format!("model.layers.{l}.{role}.weight")),
        );
    }
    let write = |path: &Path, source| LmError::Write {
        path: path.to_owned(),
        source,
    };
    std::fs::create_dir_all(out).map_err(|e| write(out, e))?;
    if let Some(gguf) = file.gguf() {
        let path = out.join("model.gguf");
        let stored = file.stored_names(&gone)?;
        // What was shared before and is not now stays whole.
        let mut whole = file.stored_tensors();
        whole.retain(|name, _| !gguf.has(name) && !stored.contains(name));
        added.extend(whole);
        atomic::write_with(&path, |to| gguf.write_changed(&stored, &added, to))
            .map_err(|e| write(&path, e))?;
        return Ok(path);
    }
    let folder = file.path().parent().unwrap_or(Path::new("."));
    for name in BESIDE {
        let from = folder.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(|e| crate::error::io(&from, e))?;
            let to = out.join(name);
            atomic::write(&to, &bytes).map_err(|e| write(&to, e))?;
        }
    }
    let dropped = file.stored_names(&gone)?;
    let mut kept = file.stored_tensors();
    kept.retain(|name, _| !dropped.contains(name));
    kept.extend(added);
    let path = out.join("model.safetensors");
    let bytes = as_safetensors(&path, &kept)?;
    atomic::write_with(&path, |to| to.write_all(&bytes)).map_err(|e| write(&path, e))?;
    Ok(path)
}

fn as_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, LmError> {
    use safetensors::tensor::{Dtype, TensorView};
    let wrong = |e: safetensors::SafeTensorError| crate::error::invalid(path, e.to_string());
    let views = tensors.iter().map(|(name, tensor)| {
        let kind = match tensor.kind() {
            BlockType::F16 => Dtype::F16,
            BlockType::Bf16 => Dtype::BF16,
            // Safetensors hold no other kinds that are read here.
            _ => Dtype::F32,
        };
        TensorView::new(kind, tensor.shape().to_vec(), tensor.bytes()).map(|view| (name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(wrong)?;
    safetensors::serialize(views, None).map_err(wrong)
}

#[cfg(test)]
mod tests;
