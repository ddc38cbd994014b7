//! How an operator over slices enters the framework's graph of gradients.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex, TensorMetadata};
use burn::tensor::{Tensor, TensorData};

type Cpu = Autodiff<Flex>;

/// A function of `N` tensors that gives one, with its gradient.
pub(crate) trait Operator<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The result, and what the backward pass needs.
    fn forward(&self, inputs: [Array; N]) -> (Array, Self::Saved);

    /// The gradients by the inputs that are `wanted`, from that of the result.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: Array,
        wanted: [bool; N],
    ) -> [Option<Array>; N];
}

/// Numbers in memory, row-major. A clone shares them.
#[derive(Clone, Debug)]
pub(crate) struct Array(FloatTensor<Flex>);

impl Array {
    /// Of as many numbers as the shape has.
    pub(crate) fn new<const D: usize>(numbers: Vec<f32>, shape: [usize; D]) -> Self {
        Self(Flex::float_from_data(
            TensorData::new(numbers, shape),
            &Default::default(),
        ))
    }

    fn of(tensor: FloatTensor<Flex>) -> Self {
        Self(tensor.to_contiguous())
    }

    /// The numbers of a tensor that is in no graph of gradients.
    pub(crate) fn plain<const D: usize>(tensor: Tensor<D>) -> Self {
        match Input::from(tensor.without_autodiff()) {
            Input::Plain(tensor) => Self::of(tensor),
            Input::Tracked(tensor) => Self::of(tensor.into_primitive()),
        }
    }

    pub(crate) fn into_tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<Flex>(self.0)
    }

    pub(crate) fn numbers(&self) -> &[f32] {
        let (from, to) = self.range();
        &self.0.storage::<f32>()[from..to]
    }

    /// Copies them if they are shared.
    pub(crate) fn numbers_mut(&mut self) -> &mut [f32] {
        let (from, to) = self.range();
        &mut self.0.storage_mut::<f32>()[from..to]
    }

    /// Where the numbers lie in what the framework holds.
    fn range(&self) -> (usize, usize) {
        let layout = self.0.layout();
        let all = (0, layout.num_elements());
        layout.contiguous_offsets().unwrap_or(all)
    }

    /// Rows and columns of a matrix.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        let shape = self.0.shape();
        let columns = shape.last().copied().unwrap_or(1);
        let rows = self.0.layout().num_elements().checked_div(columns);
        [rows.unwrap_or(shape.first().copied().unwrap_or(0)), columns]
    }
}

/// An argument of an operator.
pub(crate) enum Input {
    Plain(FloatTensor<Flex>),
    Tracked(FloatTensor<Cpu>),
}

impl<const D: usize> From<Tensor<D>> for Input {
    /// # Panics
    /// When the tensor is not on the CPU.
    fn from(tensor: Tensor<D>) -> Self {
        const WHERE: &str = "these operators run on Device::flex(), with autodiff or without";
        if tensor.is_autodiff() {
            Self::Tracked(tensor.try_into_primitive::<Cpu>().expect(WHERE))
        } else {
            Self::Plain(tensor.try_into_primitive::<Flex>().expect(WHERE))
        }
    }
}

/// Applies an operator; the result takes part in the graph when an input does.
pub(crate) fn apply<const N: usize, const D: usize>(
    operator: impl Operator<N>,
    inputs: [Input; N],
) -> Tensor<D> {
    if inputs.iter().all(|i| matches!(i, Input::Plain(_))) {
        let arrays = inputs.map(|input| match input {
            Input::Plain(tensor) => Array::of(tensor),
            Input::Tracked(tensor) => Array::of(tensor.into_primitive()),
        });
        return Tensor::from_primitive::<Flex>(operator.forward(arrays).0.0);
    }
    let inputs = inputs.map(|input| match input {
        Input::Plain(tensor) => Cpu::from_inner(tensor),
        Input::Tracked(tensor) => tensor,
    });
    let nodes = inputs.each_ref().map(|input| input.node());
    let arrays = inputs.map(|input| Array::of(input.into_primitive()));
    let (result, saved) = operator.forward(arrays);
    let step = Step(PhantomData);
    let result = match step
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish((operator, saved), result.0),
        OpsKind::UnTracked(prepared) => prepared.finish(result.0),
    };
    Tensor::from_primitive::<Cpu>(result)
}

/// The backward pass of an operator, as the framework sees it.
#[derive(Debug)]
struct Step<O>(PhantomData<O>);

impl<O: Operator<N>, const N: usize> Backward<Flex, N> for Step<O> {
    type State = (O, O::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Array::of(gradients.consume::<Flex>(&ops.node));
        let (operator, saved) = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let all = operator.backward(saved, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(all) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<Flex>(node.id, gradient.0);
            }
        }
    }
}

/// Rows that one piece of work takes. Fixed, so that sums over pieces are added in the same
/// order whatever the number of threads.
pub(crate) const BLOCK: usize = 32;

/// Threads for one large product.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Cuts `numbers` into parts of these lengths, the first first.
pub(crate) fn cut(
    mut numbers: &mut [f32],
    lengths: impl IntoIterator<Item = usize>,
) -> Vec<&mut [f32]> {
    let parts = lengths.into_iter().map(|length| {
        let (part, rest) = std::mem::take(&mut numbers).split_at_mut(length);
        numbers = rest;
        part
    });
    parts.collect()
}

/// Sums of what blocks of rows gave, in the order of the blocks.
pub(crate) fn sum(parts: Vec<Vec<f32>>, length: usize) -> Vec<f32> {
    let mut all = vec![0.0; length];
    for part in parts {
        keyfold_kernels::add_assign(&mut all, &part);
    }
    all
}
