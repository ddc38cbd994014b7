//! Settings, and what goes with rows.

use crate::PredictError;

/// How a row becomes heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// By a fixed Gaussian matrix for each codebook, its columns of length 1.
    #[default]
    RandomProjection,
    /// Cut: `codebooks · key_dim` columns.
    Chunk,
    /// By one linear layer without a bias, drawn as torch draws it; weights that were learned elsewhere
    /// are put in by [`with_keys`](super::KeyValueBottleneck::with_keys).
    LearnedProjection,
}

/// What makes scores of the values that a row has looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decoder {
    /// Their mean: a value has a number for each class.
    #[default]
    CodebookVotingLogits,
    /// A linear layer on all of them; learned with the first rows, then held.
    LinearProbe,
    /// A layer of [`decoder_hidden`](KeyValueBottleneckConfig::decoder_hidden) numbers before it.
    Mlp,
}

/// Where keys begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitMode {
    /// Drawn from the normal distribution.
    #[default]
    Random,
    /// By k-means of the rows.
    Kmeans,
}

/// What moves the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Plain gradient steps.
    #[default]
    Sgd,
    /// Adam, whose averages last from one call to the next.
    Adam,
}

/// Settings, named as in the authors' code; the default is the paper's main run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyValueBottleneckConfig {
    /// Codebooks.
    pub num_codebooks: usize,
    /// Pairs of a codebook.
    pub key_value_pairs_per_codebook: usize,
    /// Numbers of a key.
    pub dim_keys: usize,
    /// Numbers of a value, for decoders with weights; 0 for as many as there are classes at first.
    pub dim_values: usize,
    /// How a row becomes heads.
    pub splitting_mode: Split,
    /// What makes scores of values.
    pub decoder: Decoder,
    /// Numbers between the two layers of the decoder `mlp`.
    pub decoder_hidden: usize,
    /// Learning rate (of Adam) of decoders with weights.
    pub decoder_lr: f32,
    /// Where keys begin.
    pub init_mode: InitMode,
    /// Rounds of k-means.
    pub kmeans_iters: usize,
    /// Pairs that are looked up in each codebook.
    pub topk: usize,
    /// How much of the moving averages stays in a step.
    pub decay: f32,
    /// Added to the use of a key, so that no key is divided by 0.
    pub eps: f32,
    /// A key that is used less than this part of an even share is moved to a row.
    pub dead_factor: f32,
    /// Passes over the rows that place the keys.
    pub init_epochs: usize,
    /// Rows of a step that places keys.
    pub init_batch: usize,
    /// Passes over the rows that are learned.
    pub epochs: usize,
    /// Rows of a step that learns.
    pub batch: usize,
    /// Learning rate.
    pub lr: f32,
    /// What moves the values.
    pub optimizer: Optimizer,
    /// What of the truth is spread over all classes.
    pub label_smoothing: f32,
    /// Longest gradient of a step; 0 for any length.
    pub clip: f32,
    /// Deviation of the normal distribution that values begin with; 0 for zeros.
    pub init_values: f32,
    /// Do as the released code does after k-means: moving averages that know nothing of it.
    pub compat: bool,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for KeyValueBottleneckConfig {
    fn default() -> Self {
        Self {
            num_codebooks: 256,
            key_value_pairs_per_codebook: 4096,
            dim_keys: 14,
            dim_values: 0,
            splitting_mode: Split::RandomProjection,
            decoder: Decoder::CodebookVotingLogits,
            decoder_hidden: 128,
            decoder_lr: 1e-3,
            init_mode: InitMode::Random,
            kmeans_iters: 10,
            topk: 1,
            decay: 0.95,
            eps: 1e-5,
            dead_factor: 0.1,
            init_epochs: 10,
            init_batch: 256,
            epochs: 2000,
            batch: 256,
            lr: 0.3,
            optimizer: Optimizer::Sgd,
            label_smoothing: 0.1,
            clip: 1.0,
            init_values: 0.0,
            compat: false,
            seed: 0,
        }
    }
}

pub(super) fn setting(setting: &'static str, what: String) -> PredictError {
    PredictError::Setting { setting, what }
}

pub(super) fn check(config: &KeyValueBottleneckConfig, columns: usize) -> Result<(), PredictError> {
    let (c, k, j) = (
        config.num_codebooks,
        config.dim_keys,
        config.key_value_pairs_per_codebook,
    );
    let counts = [
        ("num_codebooks", c),
        ("key_value_pairs_per_codebook", j),
        ("dim_keys", k),
        ("batch", config.batch),
        ("init_batch", config.init_batch),
        ("decoder_hidden", config.decoder_hidden),
    ];
    if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
        return Err(setting(name, "must be 1 or more".into()));
    }
    if c.checked_mul(j).and_then(|x| x.checked_mul(k)).is_none() || j > u32::MAX as usize {
        return Err(setting("num_codebooks", "the table is too large".into()));
    }
    if config.topk == 0 || config.topk > j {
        return Err(setting("topk", format!("must be from 1 to the {j} pairs")));
    }
    if config.splitting_mode == Split::Chunk && columns != c * k {
        let what = format!(
            "{c} codebooks of {k} numbers need {} columns, but rows have {columns}",
            c * k
        );
        return Err(setting("splitting_mode", what));
    }
    let voting = config.decoder == Decoder::CodebookVotingLogits;
    if voting && config.dim_values != 0 {
        let what = "is for decoder=linear-probe or mlp; voting has a number for each class";
        return Err(setting("dim_values", what.into()));
    }
    if !voting && config.topk != 1 {
        let what = "must be 1 with a decoder that has weights";
        return Err(setting("topk", what.into()));
    }
    let parts = [
        ("decoder_lr", config.decoder_lr, f32::MAX),
        ("decay", config.decay, 1.0),
        ("label_smoothing", config.label_smoothing, 1.0),
        ("eps", config.eps, f32::MAX),
        ("dead_factor", config.dead_factor, f32::MAX),
        ("lr", config.lr, f32::MAX),
        ("clip", config.clip, f32::MAX),
        ("init_values", config.init_values, f32::MAX),
    ];
    match (parts.iter()).find(|(_, x, most)| !x.is_finite() || *x < 0.0 || x > most) {
        None => Ok(()),
        Some((name, ..)) => Err(setting(name, "is out of its range".into())),
    }
}
