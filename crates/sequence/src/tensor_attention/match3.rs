//! Match3: for each of some numbers, whether two others (or the same) make the sum 0 modulo `M`.
//!
//! C. Sanford, D. Hsu and M. Telgarsky, 2023, Representational Strengths and Limitations of
//! Transformers: no single layer of ordinary attention of moderate size does this; one that
//! attends to pairs does, with these weights, where `a = 2π x / M`:
//!
//! ```text
//! Q  = β [cos a, -cos a, -sin a, -sin a, 1]     Q·(K1 ⊙ K2) = β cos(a_i + a_j + a_k)
//! K1 = [cos a, sin a, cos a, sin a, 0]          and for a null position β τ,
//! K2 = [cos a, sin a, sin a, cos a, 0]          τ between 1 and the next cosine
//! V1 = V2 = 1, and 0 at the null position
//! ```

use super::Attention;
use crate::SequenceError;
use keyfold_kernels::Team;

/// Whether some `j` and `k` give `x_i + x_j + x_k = 0` modulo `modulus`, for each `i`.
///
/// # Errors
/// When the modulus is 0 or there are too many numbers.
pub fn match3(x: &[u64], modulus: u64, team: &Team) -> Result<Vec<bool>, SequenceError> {
    if modulus == 0 {
        return Err(SequenceError::Refused(
            "the modulus must be at least 1".into(),
        ));
    }
    if x.is_empty() {
        return Ok(Vec::new());
    }
    let around = std::f64::consts::TAU;
    let m = modulus as f64;
    let beta = 40.0 * m * m;
    let tau = (1.0 + (around / m).cos()) / 2.0;
    let (mut q, mut k1, mut k2, mut v) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &x in x {
        let (sin, cos) = (around * (x % modulus) as f64 / m).sin_cos();
        q.extend([cos, -cos, -sin, -sin, 1.0].map(|x| beta * x));
        k1.extend([cos, sin, cos, sin, 0.0]);
        k2.extend([cos, sin, sin, cos, 0.0]);
        v.push(1.0);
    }
    // The null position.
    q.extend([0.0; 5]);
    k1.extend([0.0, 0.0, 0.0, 0.0, if modulus == 1 { 0.0 } else { tau }]);
    k2.extend([0.0, 0.0, 0.0, 0.0, 1.0]);
    v.push(0.0);
    let attention = Attention::new(&q, vec![&k1, &k2], vec![&v, &v], 5)?.with_scale(1.0);
    let out = attention.exact(team)?;
    Ok(out[..x.len()].iter().map(|&y| y > 0.5).collect())
}
