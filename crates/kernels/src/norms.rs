//! Functions of whole rows: layer norm, RMS norm, softmax.

use crate::dot::assert_rows;

/// Layer norm of every row of `x` (`[n, dim]`): `(x - mean) / √(var + eps) * weight + bias`.
///
/// # Panics
/// When a length does not fit `dim`.
pub fn layer_norm(x: &mut [f32], dim: usize, weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    assert_rows(x.len(), dim, "layer_norm");
    assert_eq!(weight.len(), dim, "layer_norm: length of weight");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), dim, "layer_norm: length of bias");
    }
    for row in x.chunks_exact_mut(dim.max(1)) {
        let mean = row.iter().sum::<f32>() / dim as f32;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / dim as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (i, x) in row.iter_mut().enumerate() {
            *x = (*x - mean) * scale * weight[i] + bias.map_or(0.0, |b| b[i]);
        }
    }
}

/// RMS norm of every row of `x` (`[n, dim]`): `x / √(mean(x²) + eps) * weight`.
///
/// # Panics
/// When a length does not fit `dim`.
pub fn rms_norm(x: &mut [f32], dim: usize, weight: &[f32], eps: f32) {
    assert_rows(x.len(), dim, "rms_norm");
    assert_eq!(weight.len(), dim, "rms_norm: length of weight");
    for row in x.chunks_exact_mut(dim.max(1)) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / dim as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter_mut()
            .zip(weight)
            .for_each(|(x, w)| *x *= scale * w);
    }
}

/// Softmax of every row of `x` (`[n, cols]`). `-inf` gives 0 (a masked place);
/// a row of nothing else gives zeros; a row with NaN or `+inf` gives NaN.
///
/// # Panics
/// When `x` is no whole number of rows.
pub fn softmax_rows(x: &mut [f32], cols: usize) {
    assert_rows(x.len(), cols, "softmax_rows");
    for row in x.chunks_exact_mut(cols.max(1)) {
        let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        if max == f32::NEG_INFINITY && row.iter().all(|x| !x.is_nan()) {
            row.fill(0.0);
            continue;
        }
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let scale = 1.0 / row.iter().sum::<f32>();
        row.iter_mut().for_each(|x| *x *= scale);
    }
}
