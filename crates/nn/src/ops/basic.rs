//! Linear layer, layer norm, rows of a table, dropout.

use burn::tensor::{Int, Tensor, TensorData};

use crate::random;

/// `x Wᵀ + b`: `x` is `[rows, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let y = x.matmul(weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Every row of `x` `[rows, width]` scaled and shifted to mean 0 and variance 1, then
/// times `weight` plus `bias`, both `[width]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let (variance, mean) = x.clone().var_mean_bias(1);
    let normal = (x - mean) / (variance + eps).sqrt();
    normal * weight.unsqueeze() + bias.unsqueeze()
}

/// The rows `ids` of `table` `[any, width]`.
///
/// # Panics
/// When an id is not below the number of rows.
pub fn rows(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i64> = ids.iter().map(|&i| i64::from(i)).collect();
    let count = ids.len();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &table.device());
    table.select(0, ids)
}

/// Sets each number to 0 with probability `rate` and scales the others by `1 / (1 - rate)`;
/// which ones follows from `seed`.
pub fn dropout<const D: usize>(x: Tensor<D>, rate: f64, seed: u64) -> Tensor<D> {
    if rate == 0.0 {
        return x;
    }
    let shape = x.dims();
    let scale = (1.0 / (1.0 - rate)) as f32;
    let count: usize = shape.iter().product();
    let mask = (0..count as u64).map(|i| {
        if random::unit(seed, i) < rate {
            0.0
        } else {
            scale
        }
    });
    let mask = TensorData::new(mask.collect::<Vec<f32>>(), shape);
    let mask = Tensor::from_data(mask, &x.device());
    x * mask
}
