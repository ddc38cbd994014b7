//! What R-Sparse learns from a text and from the weights: thresholds and factors.

use super::{Folded, Parts, Split, channel_kind};
use crate::linear::{DenseLinear, Linear};
use crate::model::{LinearName, load_linear};
use crate::prefill::dense::DensePrefill;
use crate::session::{Policy, Session};
use crate::store::CacheType;
use crate::{Decoder, LmError, ModelFile, Tensor};
use faer::Mat;
use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_kernels::blocks::{Activations, BlockType, quantize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Steps of a table of quantiles.
const STEPS: usize = 4096;

/// Quantiles of the sizes of a map's inputs: entry `i` is the largest of the smallest
/// `i / STEPS` of them.
type Quantiles = Vec<f32>;

fn quantiles(mut sizes: Vec<f32>) -> Quantiles {
    sizes.sort_unstable_by(f32::total_cmp);
    let n = sizes.len();
    let at = |i: usize| match n * i / STEPS {
        0 => -1.0,
        count => sizes[count - 1],
    };
    (0..=STEPS).map(at).collect()
}

/// What was seen of a map's inputs; nothing yet where empty.
#[derive(Debug, Clone, Default)]
struct Seen {
    plain: Quantiles,
    scaled: Quantiles,
}

/// A map whose inputs are looked at.
struct Watched {
    dense: DenseLinear,
    scales: Vec<f32>,
    seen: Arc<Mutex<Seen>>,
}

impl Linear for Watched {
    fn rows(&self) -> usize {
        self.dense.rows()
    }

    fn cols(&self) -> usize {
        self.dense.cols()
    }

    fn apply(&self, x: &mut Activations, out: &mut [f32], decoding: bool, team: &Team) {
        let plain: Vec<f32> = x.values().iter().map(|x| x.abs()).collect();
        let rows = plain.chunks_exact(self.scales.len());
        let scaled: Vec<f32> = rows
            .flat_map(|x| x.iter().zip(&self.scales).map(|(x, s)| x * s))
            .collect();
        let mut both = [plain, scaled];
        team.split(&mut both, 1, |_, run| {
            for sizes in run {
                *sizes = quantiles(std::mem::take(sizes));
            }
        });
        let [plain, scaled] = both;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { plain, scaled };
        self.dense.apply(x, out, decoding, team);
    }

    fn bytes_read(&self) -> u64 {
        self.dense.bytes_read()
    }
}

/// Norm of every column of `weight` `[out, in]`.
pub(super) fn column_norms(weight: &[f32], inputs: usize) -> Vec<f32> {
    let mut squares = vec![0f64; inputs];
    for row in weight.chunks_exact(inputs.max(1)) {
        for (sum, x) in squares.iter_mut().zip(row) {
            *sum += f64::from(*x).powi(2);
        }
    }
    squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
}

/// `W = U S Vᵀ` cut to a rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// How many singular values.
    pub rank: usize,
    /// `S Vᵀ`, `[rank, in]`.
    pub down: Vec<f32>,
    /// `Uᵀ`, `[rank, out]`.
    pub up: Vec<f32>,
}

/// The greatest `rank` singular values of `weight` `[outputs, inputs]`, in double precision.
///
/// # Errors
/// When the weights are not finite or the decomposition does not converge.
pub fn svd(weight: &[f32], inputs: usize, rank: usize) -> Result<Factors, LmError> {
    let failed = || LmError::Input {
        what: "r-sparse: a weight matrix has no singular values; is the model damaged?".into(),
    };
    let outputs = weight.len() / inputs.max(1);
    if !weight.iter().all(|x| x.is_finite()) {
        return Err(failed());
    }
    let matrix = Mat::from_fn(outputs, inputs, |i, j| f64::from(weight[i * inputs + j]));
    let svd = matrix.thin_svd().map_err(|_| failed())?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let rank = rank.min(s.nrows());
    let mut factors = Factors {
        rank,
        down: Vec::with_capacity(rank * inputs),
        up: Vec::with_capacity(rank * outputs),
    };
    for k in 0..rank {
        factors
            .down
            .extend((0..inputs).map(|j| (s[k] * v[(j, k)]) as f32));
        factors.up.extend((0..outputs).map(|i| u[(i, k)] as f32));
    }
    let finite = |x: &f32| x.is_finite();
    if !factors.down.iter().chain(&factors.up).all(finite) {
        return Err(failed());
    }
    Ok(factors)
}

/// Thresholds of every linear map of a model, for any split.
pub struct Calibration {
    seen: BTreeMap<(usize, LinearName), Seen>,
    tokens: usize,
}

impl Calibration {
    /// Lets the model read `tokens` (the paper: 512) with all its weights.
    ///
    /// # Errors
    /// When there are no tokens or the model cannot be loaded.
    pub fn read(file: &ModelFile, tokens: &[u32], team: &Arc<Team>) -> Result<Self, LmError> {
        let mut decoder = Decoder::load(file)?;
        let mut watched = Vec::new();
        for (layer, name, dense) in linears(file)? {
            let scales = column_norms(&dense.weight().to_f32(), dense.cols());
            let seen = Arc::new(Mutex::new(Seen::default()));
            watched.push(((layer, name), Arc::clone(&seen)));
            let watch = Watched {
                dense,
                scales,
                seen,
            };
            decoder.replace(layer, name, Box::new(watch))?;
        }
        let decoder = Arc::new(decoder);
        let mut policy = Policy::dense(&decoder, CacheType::F32, tokens.len())?;
        if let Policy::Roles { prefill, .. } = &mut policy {
            let config = decoder.config();
            // All in one chunk: a table of quantiles is of one pass.
            let windows = config.sliding_window.clone();
            *prefill = Box::new(DensePrefill::new(config.dims, windows, tokens.len()));
        }
        let mut session = Session::new(decoder, policy, Arc::clone(team));
        session.prefill(tokens, &NoProgress)?;
        let take = |seen: Arc<Mutex<Seen>>| {
            std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
        };
        Ok(Self {
            seen: watched.into_iter().map(|(key, s)| (key, take(s))).collect(),
            tokens: tokens.len(),
        })
    }

    /// Tokens that were read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// τ of a map; none where ρ = 0.
    ///
    /// # Errors
    /// When the map was not calibrated.
    pub fn threshold(
        &self,
        layer: usize,
        name: LinearName,
        split: &Split,
    ) -> Result<Option<f32>, LmError> {
        if split.rho == 0.0 {
            return Ok(None);
        }
        let place = (split.quantile().clamp(0.0, 1.0) * STEPS as f64).round() as usize;
        let found = self.seen.get(&(layer, name)).and_then(|seen| {
            let table = if split.scaled() {
                &seen.scaled
            } else {
                &seen.plain
            };
            table.get(place).copied()
        });
        found.map(Some).ok_or_else(|| LmError::Input {
            what: format!(
                "r-sparse: {} of layer {layer} has no threshold; calibrate this model",
                name.path()
            ),
        })
    }
}

impl Factors {
    /// The first `rank` of `numbers` `[self.rank, width]`, in blocks of 8 bits, or of 16 bits where
    /// rows are no whole blocks; none where it is 0.
    fn packed(&self, numbers: &[f32], rank: usize) -> Option<Tensor> {
        let width = numbers.len() / self.rank.max(1);
        let rank = rank.min(self.rank);
        if rank == 0 {
            return None;
        }
        let kinds = [BlockType::Q8_0, BlockType::F16];
        let fits = |kind: &BlockType| kind.row_bytes(width).is_some();
        let kind = kinds.into_iter().find(fits).unwrap_or(BlockType::F16);
        let mut bytes = vec![0; rank * kind.row_bytes(width).unwrap_or(0)];
        quantize(kind, &numbers[..rank * width], &mut bytes);
        Some(Tensor::in_memory(kind, vec![rank, width], bytes))
    }
}

impl Parts {
    /// A map with weights `weight` `[out, in]`, which are kept as `kind` (or their own), of
    /// `rank` of the `factors`, if any.
    pub fn new(
        weight: &Tensor,
        split: &Split,
        threshold: Option<f32>,
        factors: Option<(&Factors, usize)>,
        kind: Option<BlockType>,
    ) -> Self {
        let (inputs, outputs) = (weight.row_len(), weight.rows());
        let numbers = weight.to_f32();
        let kind = channel_kind(kind.unwrap_or(weight.kind()), outputs);
        Self {
            scales: match split.scaled() {
                true => column_norms(&numbers, inputs),
                false => Vec::new(),
            },
            weight: by_channel(&numbers, inputs, outputs, kind),
            threshold,
            down: factors.and_then(|(f, rank)| f.packed(&f.down, rank)),
            up: factors.and_then(|(f, rank)| f.packed(&f.up, rank)),
            bias: None,
            cap: None,
        }
    }
}

/// `weight` `[out, in]` as a row for each input, packed as `kind`, whose blocks divide `out`.
pub fn by_channel(weight: &[f32], inputs: usize, outputs: usize, kind: BlockType) -> Tensor {
    let row_bytes = kind.row_bytes(outputs).unwrap_or(0);
    let mut bytes = vec![0; inputs * row_bytes];
    // A few channels together, so that a line of the cache is used for all of them.
    const TOGETHER: usize = 16;
    let mut rows = vec![0.0; TOGETHER * outputs];
    let chunks = bytes.chunks_mut((TOGETHER * row_bytes).max(1));
    for (chunk, to) in chunks.enumerate() {
        let first = chunk * TOGETHER;
        let count = to.len() / row_bytes.max(1);
        for (o, from) in weight.chunks_exact(inputs).enumerate() {
            for (c, x) in from[first..first + count].iter().enumerate() {
                rows[c * outputs + o] = *x;
            }
        }
        let rows = rows.chunks_exact(outputs);
        for (row, to) in rows.zip(to.chunks_exact_mut(row_bytes)) {
            quantize(kind, row, to);
        }
    }
    Tensor::in_memory(kind, vec![inputs, outputs], bytes)
}

/// How a model is folded.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldOptions {
    /// In which kind weights are kept; the file's own, or the nearest, where none is named.
    pub kind: Option<BlockType>,
    /// Channels of a token at most, as a multiple of the mean.
    pub cap: Option<f64>,
    /// Ranks as the authors' script counts them (see [`Split::authors_rank`]).
    pub authors_rank: bool,
}

/// Every linear map of a model, layer by layer.
///
/// # Errors
/// When a tensor cannot be read.
pub fn linears(file: &ModelFile) -> Result<Vec<(usize, LinearName, DenseLinear)>, LmError> {
    let mut all = Vec::new();
    for layer in 0..file.config().dims.layers {
        for name in LinearName::ALL {
            if let Some(linear) = load_linear(file, layer, name)? {
                all.push((layer, name, linear));
            }
        }
    }
    Ok(all)
}

/// Folds every linear map of a model: `splits` has one for each, layer by layer, or one for all.
///
/// # Errors
/// When there are as many splits as neither, one is no share, the cap leaves no channel, a tensor
/// cannot be read, or a matrix has no singular values; [`LmError::Stopped`] where `progress`
/// asked to stop.
pub fn fold(
    file: &ModelFile,
    calibration: &Calibration,
    splits: &[Split],
    options: &FoldOptions,
    progress: &dyn Progress,
) -> Result<Vec<Folded>, LmError> {
    let config = file.config();
    let linears = linears(file)?;
    if splits.len() != 1 && splits.len() != linears.len() {
        let what = format!(
            "r-sparse: {} pairs of rho and sparsity for {} linear maps; the file is of another model",
            splits.len(),
            linears.len()
        );
        return Err(LmError::Input { what });
    }
    if let Some(cap) = options.cap.filter(|cap| cap.is_nan() || *cap <= 0.0) {
        let what = format!("r-sparse: cap = {cap} leaves no channel; it must be above 0");
        return Err(LmError::Input { what });
    }
    progress.start("folding", "matrices", Some(linears.len() as u64));
    let mut folded = Vec::with_capacity(linears.len());
    for ((layer, name, linear), split) in linears.into_iter().zip(splits.iter().cycle()) {
        if progress.cancelled() {
            progress.finish();
            return Err(LmError::Stopped);
        }
        split.validate()?;
        let (inputs, outputs) = (linear.cols(), linear.rows());
        let attention = !matches!(name, LinearName::Gate | LinearName::Up | LinearName::Down);
        let rank = match options.authors_rank && attention && split.scaled() {
            true => split.authors_rank(inputs, outputs, config.dims.hidden),
            false => split.rank(inputs, outputs),
        };
        let cap = options
            .cap
            .map(|cap| (cap * split.channels(inputs)).ceil() as usize);
        let factors = match rank {
            0 => None,
            rank => Some(svd(&linear.weight().to_f32(), inputs, rank)?),
        };
        let threshold = calibration.threshold(layer, name, split)?;
        let factors = factors.as_ref().map(|f| (f, rank));
        let mut parts = Parts::new(linear.weight(), split, threshold, factors, options.kind);
        parts.bias = linear.bias().map(<[f32]>::to_vec);
        parts.cap = cap;
        folded.push(Folded {
            layer,
            name,
            split: *split,
            parts,
        });
        progress.advance(1);
    }
    progress.finish();
    Ok(folded)
}
