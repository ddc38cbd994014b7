//! The framework's dashboard in the terminal: curves of the loss and the validation.

use std::sync::Arc;

use burn::train::Interrupter;
use burn::train::logger::TrainingProgressLogger;
use burn::train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining};

use crate::Line;
use crate::metrics::Measured;

/// Asks whether the user told the dashboard to end the training.
#[derive(Clone)]
pub struct Stop(Interrupter);

impl Stop {
    /// True once she did.
    pub fn asked(&self) -> bool {
        self.0.should_stop()
    }
}

/// Draws the lines of a run on the whole terminal until it is dropped.
pub struct Dashboard {
    renderer: TuiMetricsRendererWrapper,
    interrupter: Interrupter,
    known: Vec<String>,
    done: u64,
}

impl Dashboard {
    /// Takes over the terminal.
    pub fn new(title: &str) -> Self {
        let interrupter = Interrupter::new();
        let mut renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
        renderer.start(1, 1, None, Some(title));
        Self {
            renderer,
            interrupter,
            known: Vec::new(),
            done: 0,
        }
    }

    /// How the user tells the dashboard to end the training.
    pub fn stop(&self) -> Stop {
        Stop(self.interrupter.clone())
    }

    /// So many steps are left.
    pub fn start(&mut self, steps: u64) {
        self.done = 0;
        self.renderer.start_split("train", steps as usize);
    }

    /// `n` more steps are done.
    pub fn advance(&mut self, n: u64) {
        self.done += n;
        self.renderer.update_split(self.done as usize);
    }

    /// Draws one line of measurements.
    pub fn line(&mut self, line: &Line) {
        match &line.what {
            Measured::Training {
                loss,
                parts,
                learning_rate,
                per_second,
            } => {
                self.point("loss", *loss, false);
                for (name, value) in parts {
                    self.point(name, *value, false);
                }
                self.point("learning rate", *learning_rate, false);
                self.point("items per second", *per_second, false);
            }
            Measured::Validation { loss, measures } => {
                self.point("loss", *loss, true);
                for (name, value) in measures {
                    self.point(name, *value, true);
                }
            }
        }
    }

    fn point(&mut self, name: &str, value: f64, validation: bool) {
        let id = MetricId::new(Arc::new(name.to_owned()));
        if !self.known.iter().any(|known| known == name) {
            self.known.push(name.to_owned());
            self.renderer.register_metric(MetricDefinition {
                metric_id: id.clone(),
                name: Arc::new(name.to_owned()),
                description: None,
                attributes: MetricAttributes::Numeric(NumericAttributes {
                    unit: None,
                    higher_is_better: false,
                }),
            });
        }
        let text = format!("{value:.6}");
        let entry = MetricEntry::new(id, SerializedEntry::new(text.clone(), text));
        let state = MetricState::Numeric(entry, Some(NumericEntry::Value(value)));
        match validation {
            true => self.renderer.update_valid(state),
            false => self.renderer.update_train(state),
        }
    }
}
