//! Gradients made shorter.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// `grads` times `factor`, then as a whole at most `max_norm` long (0 for any length).
pub(super) fn scale<M: Module>(
    model: &M,
    mut grads: GradientsParams,
    factor: f64,
    max_norm: f64,
) -> GradientsParams {
    let mut factor = factor;
    if max_norm > 0.0 {
        let mut squares = Squares {
            grads: &grads,
            sum: 0.0,
        };
        model.visit(&mut squares);
        let norm = squares.sum.sqrt() * factor;
        // The same small number as torch's clip_grad_norm_.
        factor *= (max_norm / (norm + 1e-6)).min(1.0);
    }
    if factor != 1.0 {
        model.visit(&mut Scale {
            grads: &mut grads,
            factor,
        });
    }
    grads
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sum: f64,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.sum += f64::from(grad.powi_scalar(2).sum().into_scalar::<f32>());
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.factor));
        }
    }
}
