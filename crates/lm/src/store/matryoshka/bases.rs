//! The bases of heads, and how principal components give them.

use crate::roles::Dims;
use crate::session::{AttentionInputs, Observer, Policy, Session};
use crate::store::CacheType;
use crate::{Decoder, LmError};
use faer::{Mat, Side};
use keyfold_core::{NoProgress, Progress};
use keyfold_kernels::Team;
use keyfold_kernels::{add_bias, dot, matmul_nn, matmul_nt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How far `U Uᵀ` may be from the identity, by its largest number.
const ORTHOGONAL: f32 = 1e-3;

/// The basis of the keys or the values of a KV head.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadBasis {
    /// μ, subtracted before a vector is turned.
    pub mean: Vec<f32>,
    /// `Uᵀ`, `[d, d]`: one direction after the other.
    pub directions: Vec<f32>,
    /// `Uᵀ μ`.
    offset: Vec<f32>,
}

impl HeadBasis {
    /// Takes directions `[d, d]` and a mean.
    ///
    /// # Errors
    /// When the directions are not orthogonal and of length 1, or shapes do not fit.
    pub fn new(mean: Vec<f32>, directions: Vec<f32>) -> Result<Self, LmError> {
        let d = mean.len();
        let refuse = |what: String| Err(LmError::Input { what });
        if directions.len() != d * d || d == 0 {
            return refuse(format!(
                "matryoshka: {} numbers are no basis of {d} dimensions",
                directions.len()
            ));
        }
        let mut gram = vec![0.0; d * d];
        matmul_nt(&mut gram, &directions, &directions, d, d, d, 1);
        let off = gram.iter().enumerate().map(|(i, x)| {
            let identity = f32::from(u8::from(i / d == i % d));
            (x - identity).abs()
        });
        let worst = off.fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
        if worst.is_nan() || worst > ORTHOGONAL || !mean.iter().all(|x| x.is_finite()) {
            return refuse(format!(
                "matryoshka: a basis is not orthogonal (off by {worst:.2e}); calibrate again"
            ));
        }
        let offset = directions.chunks_exact(d).map(|u| dot(u, &mean)).collect();
        Ok(Self {
            mean,
            directions,
            offset,
        })
    }

    /// The first `out.len()` numbers of `Uᵀ (x - μ)`.
    pub fn turn(&self, x: &[f32], out: &mut [f32]) {
        let directions = self.directions.chunks_exact(self.mean.len());
        for ((out, u), offset) in out.iter_mut().zip(directions).zip(&self.offset) {
            *out = dot(u, x) - offset;
        }
    }

    /// `out` `[n, d]` from the first `rank` numbers `turned` `[n, rank]`.
    pub fn turn_back(&self, turned: &[f32], rank: usize, out: &mut [f32]) {
        let d = self.mean.len();
        let n = out.len() / d;
        matmul_nn(out, turned, &self.directions[..rank * d], n, d, rank, 1);
        add_bias(out, &self.mean);
    }
}

/// The bases of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Bases {
    /// Of keys, `[layers, kv_heads]`.
    pub keys: Vec<HeadBasis>,
    /// Of values, `[layers, kv_heads]`.
    pub values: Vec<HeadBasis>,
}

impl Bases {
    /// Refuses bases of another shape than the model's.
    ///
    /// # Errors
    /// When heads or their dimensions are not those of `dims`.
    pub fn check(&self, dims: &Dims) -> Result<(), LmError> {
        let heads = dims.layers * dims.kv_heads;
        let fits = |bases: &[HeadBasis]| {
            bases.len() == heads && bases.iter().all(|b| b.mean.len() == dims.head_dim)
        };
        if fits(&self.keys) && fits(&self.values) {
            return Ok(());
        }
        let d = self.keys.first().map_or(0, |b| b.mean.len());
        Err(LmError::Input {
            what: format!(
                "matryoshka: bases of {} heads with {d} dimensions; the model has {heads} with {}",
                self.keys.len(),
                dims.head_dim
            ),
        })
    }

    /// The channels as they are (a baseline: rows are cut).
    pub fn plain(dims: &Dims) -> Self {
        let d = dims.head_dim;
        let identity = Mat::from_fn(d, d, |i, j| f64::from(u8::from(i == j)));
        Self::each(dims, || identity.clone())
    }

    /// Directions drawn at random (a baseline).
    pub fn random(dims: &Dims, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let d = dims.head_dim;
        Self::each(dims, || {
            // Sums of uniform numbers are near enough to normal ones.
            let mut one = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            Mat::from_fn(d, d, |_, _| one()).qr().compute_thin_Q()
        })
    }

    fn each(dims: &Dims, mut basis: impl FnMut() -> Mat<f64>) -> Self {
        let mut all = || {
            let heads = 0..dims.layers * dims.kv_heads;
            heads
                .map(|_| of_columns(vec![0.0; dims.head_dim], &basis()))
                .collect()
        };
        Self {
            keys: all(),
            values: all(),
        }
    }
}

/// A basis whose directions are the columns of an orthogonal matrix.
pub(super) fn of_columns(mean: Vec<f32>, columns: &Mat<f64>) -> HeadBasis {
    let d = columns.nrows();
    let directions: Vec<f32> = (0..d * d).map(|i| columns[(i % d, i / d)] as f32).collect();
    let offset = directions.chunks_exact(d).map(|u| dot(u, &mean)).collect();
    HeadBasis {
        mean,
        directions,
        offset,
    }
}

/// Around what principal directions are sought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Around {
    /// The mean, as the authors do. Rows far from it but near zero, such as the values of a
    /// first token that takes much attention, lose what the mean has outside the kept
    /// directions.
    #[default]
    Mean,
    /// Zero: what is near zero stays there.
    Zero,
}

/// Means and second moments of keys and values over a text.
#[derive(Debug, Clone)]
pub struct Moments {
    dims: Dims,
    /// Of keys and values, `[layers, kv_heads]`.
    heads: Vec<[Sums; 2]>,
    turned: Vec<f32>,
    gram: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Sums {
    tokens: u64,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Moments {
    /// Nothing seen yet.
    pub fn new(dims: Dims) -> Self {
        let d = dims.head_dim;
        let sums = Sums {
            tokens: 0,
            first: vec![0.0; d],
            second: vec![0.0; d * d],
        };
        Self {
            heads: vec![[sums.clone(), sums]; dims.layers * dims.kv_heads],
            dims,
            turned: Vec::new(),
            gram: vec![0.0; d * d],
        }
    }

    /// Adds keys (after rotary embedding) and values of a layer, `[n, kv_heads, head_dim]`.
    pub fn add(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (d, kv_heads) = (self.dims.head_dim, self.dims.kv_heads);
        let n = keys.len() / (kv_heads * d);
        for kv_head in 0..kv_heads {
            let both = &mut self.heads[layer * kv_heads + kv_head];
            for (sums, rows) in both.iter_mut().zip([keys, values]) {
                // `[d, n]`, so that the product of it with itself is the second moment.
                self.turned.clear();
                for i in 0..d {
                    let column = rows.iter().skip(kv_head * d + i).step_by(kv_heads * d);
                    self.turned.extend(column);
                }
                let turned = &self.turned;
                matmul_nt(&mut self.gram, turned, turned, d, d, n, 1);
                for (sum, x) in sums.second.iter_mut().zip(&self.gram) {
                    *sum += f64::from(*x);
                }
                for (sum, row) in sums.first.iter_mut().zip(turned.chunks_exact(n.max(1))) {
                    *sum += row.iter().map(|x| f64::from(*x)).sum::<f64>();
                }
                sums.tokens += n as u64;
            }
        }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.heads.first().map_or(0, |[keys, _]| keys.tokens)
    }

    /// Principal components of every head, the greatest variance first; the sign of the first
    /// is such that the determinant is 1, as training asks for.
    ///
    /// # Errors
    /// When nothing was seen or it was not finite.
    pub fn bases(&self, around: Around) -> Result<Bases, LmError> {
        let of = |which: usize| -> Result<Vec<HeadBasis>, LmError> {
            let heads = self.heads.iter();
            heads.map(|both| both[which].basis(around)).collect()
        };
        Ok(Bases {
            keys: of(0)?,
            values: of(1)?,
        })
    }
}

impl Sums {
    fn basis(&self, around: Around) -> Result<HeadBasis, LmError> {
        let failed = || LmError::Input {
            what: "matryoshka: keys or values of the text have no principal components; is it \
                   empty, or the model damaged?"
                .into(),
        };
        let (d, n) = (self.first.len(), self.tokens as f64);
        if self.tokens == 0 || !self.second.iter().all(|x| x.is_finite()) {
            return Err(failed());
        }
        let mean: Vec<f64> = match around {
            Around::Mean => self.first.iter().map(|x| x / n).collect(),
            Around::Zero => vec![0.0; d],
        };
        let covariance = Mat::from_fn(d, d, |i, j| self.second[i * d + j] / n - mean[i] * mean[j]);
        let eigen = covariance
            .self_adjoint_eigen(Side::Lower)
            .map_err(|_| failed())?;
        let (s, u) = (eigen.S().column_vector(), eigen.U());
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|&a, &b| s[b].total_cmp(&s[a]));
        let mut columns = Mat::from_fn(d, d, |i, j| u[(i, order[j])]);
        if columns.determinant() < 0.0 {
            for i in 0..d {
                columns[(i, 0)] = -columns[(i, 0)];
            }
        }
        Ok(of_columns(
            mean.iter().map(|&x| x as f32).collect(),
            &columns,
        ))
    }
}

impl Observer for Moments {
    fn attention(&mut self, seen: &AttentionInputs) {
        self.add(seen.layer, seen.keys, seen.values);
    }
}

/// Principal components of what a model keeps of some texts, each read by itself. Bases of keys
/// depend on the positions that they were seen at: give texts as long as those to come.
///
/// # Errors
/// When there is no text or a session fails; [`LmError::Stopped`] where `progress` asked to stop.
pub fn principal(
    decoder: &Arc<Decoder>,
    texts: &[&[u32]],
    around: Around,
    team: &Arc<Team>,
    progress: &dyn Progress,
) -> Result<Bases, LmError> {
    let mut moments = Moments::new(decoder.config().dims);
    progress.start("principal components", "texts", Some(texts.len() as u64));
    for text in texts {
        if progress.cancelled() {
            progress.finish();
            return Err(LmError::Stopped);
        }
        let policy = Policy::dense(decoder, CacheType::F16, text.len())?;
        let mut session = Session::new(Arc::clone(decoder), policy, Arc::clone(team));
        session.observe(text, &NoProgress, &mut moments)?;
        progress.advance(1);
    }
    progress.finish();
    moments.bases(around)
}
