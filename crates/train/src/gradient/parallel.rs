//! Several devices at once, by the framework's own workers.

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::module::{Module, ModuleDisplay};
use burn::optim::GradientsParams;
use burn::tensor::{Device, ExecutionError};
use burn::train::train::MultiDevicesTrainStep;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

use super::{Measured, Task, backward};
use crate::LearnError;

/// One worker per device; each gets a copy of the weights in every step.
pub(super) struct Workers<M: Module + ModuleDisplay + 'static> {
    step: MultiDevicesTrainStep<Carrier<M>>,
}

/// A model in the shape in which the framework's workers take it.
#[derive(Module, Debug)]
struct Carrier<M: Module + ModuleDisplay> {
    model: M,
}

/// The forward and backward pass of one micro-batch.
type Pass<M> = Box<dyn FnOnce(&M) -> (GradientsParams, Measured) + Send>;

/// What goes to a worker, with its place among the micro-batches of the step.
struct Job<M> {
    place: usize,
    pass: Pass<M>,
}

/// What comes back beside the gradients.
struct Done {
    place: usize,
    measured: Measured,
}

impl ItemLazy for Done {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl<M: Module + ModuleDisplay + 'static> TrainStep for Carrier<M> {
    type Input = Job<M>;
    type Output = Done;

    fn step(&self, job: Job<M>) -> TrainOutput<Done> {
        let (grads, measured) = (job.pass)(&self.model);
        TrainOutput {
            grads,
            item: Done {
                place: job.place,
                measured,
            },
        }
    }
}

/// The framework asks for this of every model; validation here is the task's.
impl<M: Module + ModuleDisplay> InferenceStep for Carrier<M> {
    type Input = ();
    type Output = Done;

    fn step(&self, (): ()) -> Done {
        Done {
            place: 0,
            measured: Measured {
                loss: 0.0,
                parts: Vec::new(),
                items: 0,
            },
        }
    }
}

/// The one job of a worker in this step.
struct One<M>(Option<Job<M>>);

impl<M> Iterator for One<M> {
    type Item = Result<Job<M>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl<M> DataLoaderIterator<Job<M>> for One<M> {
    fn progress(&self) -> Progress {
        Progress::new(1, 1, None)
    }
}

impl<M: Module + ModuleDisplay + 'static> Workers<M> {
    pub(super) fn new(devices: usize, device: &Device) -> Self {
        Self {
            step: MultiDevicesTrainStep::new(&vec![device.clone(); devices]),
        }
    }

    /// Gradients and losses of one micro-batch per device, in their order.
    pub(super) fn step<T: Task<Model = M>>(
        &self,
        model: &M,
        batches: Vec<T::Batch>,
    ) -> Result<Vec<(GradientsParams, Measured)>, LearnError> {
        let mut jobs: Vec<Box<dyn DataLoaderIterator<Job<M>>>> = Vec::new();
        for (place, batch) in batches.into_iter().enumerate() {
            let pass: Pass<M> = Box::new(move |model| backward::<T>(model, batch));
            jobs.push(Box::new(One(Some(Job { place, pass }))));
        }
        let carrier = Carrier {
            model: model.clone(),
        };
        let (mut outputs, _) = self
            .step
            .step(&mut jobs, &carrier)
            .map_err(|e| LearnError::Data(e.to_string()))?;
        // Sums of more than two depend on their order, and workers end in any.
        outputs.sort_by_key(|output| output.output.item.place);
        Ok(outputs
            .into_iter()
            .map(|output| (output.output.grads, output.output.item.measured))
            .collect())
    }
}
