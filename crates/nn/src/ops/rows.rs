//! Rows of a table.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::operator::{Array, Operator, apply};

/// The rows `ids` of `table` `[any, width]`, in that order.
///
/// # Panics
/// When an id is not below the number of rows.
pub fn rows(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    apply(Rows(ids.into()), [table.into()])
}

#[derive(Clone, Debug)]
struct Rows(Arc<[u32]>);

impl Operator<1> for Rows {
    /// Rows and width of the table.
    type Saved = [usize; 2];

    fn forward(&self, [table]: [Array; 1]) -> (Array, [usize; 2]) {
        let sizes @ [_, width] = table.sizes();
        let table = table.numbers();
        let mut out = Vec::with_capacity(self.0.len() * width);
        for &id in self.0.iter() {
            out.extend_from_slice(&table[id as usize * width..][..width]);
        }
        (Array::new(out, [self.0.len(), width]), sizes)
    }

    fn backward(&self, [count, width]: [usize; 2], g: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let mut table = vec![0.0; count * width];
        let rows = g.numbers().chunks_exact(width.max(1));
        for (&id, row) in self.0.iter().zip(rows) {
            keyfold_kernels::add_assign(&mut table[id as usize * width..][..width], row);
        }
        [Some(Array::new(table, [count, width]))]
    }
}
