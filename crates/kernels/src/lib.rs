//! Arithmetic on slices: dot products, matrix products, the element-wise
//! functions of encoders, MaxSim, top-k, k-means, folding, residual codes, product
//! quantisation, codes into small tables, SimHash, selective scans, posting lists, packed weights of language models, rows by number, distances of binary codes, and
//! what [training](learn) needs.
//!
//! Matrices are `&[f32]` in row-major order. The processor's vector units are
//! found at run time; every kernel that uses them has a portable twin that runs
//! elsewhere and that the tests compare it with.
//!
//! A slice whose length does not fit the stated shape is an error of the
//! program and panics. Data never does: empty input, NaN and infinities give a
//! defined result.

// Vector intrinsics and the matrix product behind a pointer interface need it.
// Each block says why it is sound.
#![allow(unsafe_code)]
// Coefficients of polynomials stand as they were derived.
#![allow(clippy::excessive_precision)]

mod activations;
pub mod attention;
pub mod blocks;
mod coarse;
mod conv;
mod dot;
pub mod double;
pub mod fold;
mod gather;
mod hamming;
pub mod kmeans;
pub mod labels;
mod lanes;
mod lasso;
pub mod learn;
mod mapped;
mod math;
mod matmul;
mod maxsim;
mod norms;
pub mod nuq;
mod pages;
pub mod peak;
mod postings;
mod pq;
pub mod residual;
pub mod scan;
mod simhash;
mod team;
mod topk;
mod vector;

pub use activations::{exp, gelu, gelu_tanh, relu, sigmoid, silu, silu_mul, softplus, tanh};
pub use coarse::{COARSE_LANES, CoarseRow, best_of_columns, coarse_rows, nearest_codes};
pub use conv::depthwise_conv;
pub use dot::{add_assign, add_bias, dot, norm, normalize_rows, orthonormalize_rows};
pub use gather::{axpy, gather_add, gather_dots};
pub use hamming::hamming_distances;
pub use lasso::{lasso_sweep, place_of_largest};
pub use mapped::MappedFile;
pub use matmul::{
    Matrix, centroid_scores, matmul_nn, matmul_nn_strided, matmul_nt, matmul_nt_strided, product,
};
pub use maxsim::{MaxSim, maxsim, maxsim_alignment};
pub use norms::{exp_rows, layer_norm, rms_norm, softmax_rows};
pub use pages::Pages;
pub use postings::{add_postings, add_scaled};
pub use pq::{PQ_BLOCK, PqError, PqQuery, ProductQuantizer};
pub use residual::maxsim_packed;
pub use simhash::{MAX_PLANES, simhash_cells, simhash_sides};
pub use team::Team;
pub use topk::{TopK, top_k, top_k_rows};
