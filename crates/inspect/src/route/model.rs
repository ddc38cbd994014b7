//! Networks that are trained, in files.
//!
//! A folder holds `config.json` (what it answers, sizes, the numbers of points that it learned
//! from, and the checksum of the weights) and `model.safetensors` with the names of
//! [`keyfold_sequence::pointer`], in half precision. One for each task is part of the program: that
//! for hulls was made with the settings of `recipes/pointer-networks-small.toml`, the others by
//! trainings that were too short for their tasks.

use std::path::Path;

use half::f16;
use keyfold_core::atomic;
use keyfold_sequence::SequenceError;
use keyfold_sequence::pointer::beam::Task;
use keyfold_sequence::pointer::{PointerConfig, PointerNetwork};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Points, Worth, truth, worth};
use crate::InspectError;

const FORMAT: &str = "keyfold-pointer-1";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// A network and what it was trained for.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteModel {
    /// What it answers.
    pub task: Task,
    /// The least and the most points of the problems that it learned from.
    pub points: [usize; 2],
    /// The network.
    pub network: PointerNetwork,
}

#[derive(Serialize, Deserialize)]
struct Config {
    format: String,
    task: String,
    points: [usize; 2],
    input_size: usize,
    hidden_size: usize,
    /// blake3 of the file with the weights.
    weights: String,
}

/// An answer beside the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// The answer, with points from 0; rings are not closed.
    pub answer: Vec<usize>,
    /// The true one, or the best known tour.
    pub truth: Vec<usize>,
    /// What the answer is worth.
    pub worth: Worth,
    /// The sum of the logarithms of its probabilities.
    pub log_probability: f64,
    /// Whether the network itself ended it.
    pub ended: bool,
    /// How many points stand where another one does; a hull and triangles leave them out, and a
    /// tour visits them together.
    pub twins: usize,
}

/// The order that a network points out, of tasks that are not those of a plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Pointed {
    /// The answer, with points from 0.
    pub answer: Vec<usize>,
    /// The true one, where it can be known: of numbers that are sorted.
    pub truth: Option<Vec<usize>>,
    /// What the answer is worth, where the truth is known.
    pub worth: Option<Worth>,
    /// The sum of the logarithms of its probabilities.
    pub log_probability: f64,
    /// Whether the network itself ended it.
    pub ended: bool,
}

impl RouteModel {
    /// The model for a task that is part of the program.
    ///
    /// # Errors
    /// When there is none: for sorting, and for tasks of one's own.
    pub fn builtin(task: Task) -> Result<Self, InspectError> {
        let (config, weights): (&[u8], &[u8]) = match task {
            Task::Hull => (
                include_bytes!("../../models/hull/config.json"),
                include_bytes!("../../models/hull/model.safetensors"),
            ),
            Task::Delaunay => (
                include_bytes!("../../models/delaunay/config.json"),
                include_bytes!("../../models/delaunay/model.safetensors"),
            ),
            Task::Tour => (
                include_bytes!("../../models/tour/config.json"),
                include_bytes!("../../models/tour/model.safetensors"),
            ),
            Task::Sort | Task::Custom => {
                return Err(InspectError::settings(format!(
                    "no network for the task {task} is part of the program; 'keyfold train \
                     pointer-networks --set task={task}' makes one, to be given as a model"
                )));
            }
        };
        Self::from_files(Path::new("(built in)"), config, weights)
    }

    /// Reads a folder of [`save`](Self::save).
    ///
    /// # Errors
    /// When a file is missing, damaged or of another kind.
    pub fn load(folder: &Path) -> Result<Self, InspectError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|e| InspectError::io(&path, e))
        };
        Self::from_files(folder, &read(CONFIG)?, &read(WEIGHTS)?)
    }

    fn from_files(folder: &Path, config: &[u8], weights: &[u8]) -> Result<Self, InspectError> {
        let path = folder.join(CONFIG);
        let wrong = |what: String| InspectError::format(&path, what);
        let config: Config = serde_json::from_slice(config).map_err(|e| wrong(e.to_string()))?;
        if config.format != FORMAT {
            return Err(wrong(format!(
                "its format is '{}' and not {FORMAT}; 'keyfold train pointer-networks' makes such \
                 folders",
                config.format
            )));
        }
        if config.weights != blake3::hash(weights).to_hex().as_str() {
            return Err(InspectError::format(
                &folder.join(WEIGHTS),
                "its checksum is not the one in config.json: it is damaged, or of another model",
            ));
        }
        let task = config.task.parse().map_err(wrong)?;
        let wanted = match task {
            Task::Hull | Task::Delaunay | Task::Tour => 2,
            Task::Sort => 1,
            Task::Custom => config.input_size,
        };
        if config.input_size != wanted {
            return Err(wrong(format!(
                "input_size is {}, not {wanted}",
                config.input_size
            )));
        }
        let sizes = PointerConfig {
            input_size: config.input_size,
            hidden_size: config.hidden_size,
        };
        Ok(Self {
            task,
            points: config.points,
            network: network(&folder.join(WEIGHTS), sizes, weights)?,
        })
    }

    /// Writes the model into a folder, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), InspectError> {
        std::fs::create_dir_all(folder).map_err(|e| InspectError::io(folder, e))?;
        let path = folder.join(WEIGHTS);
        let bytes = weights(&self.network).map_err(|what| InspectError::format(&path, what))?;
        atomic::write(&path, &bytes).map_err(|e| InspectError::io(&path, e))?;
        let sizes = self.network.config();
        let config = Config {
            format: FORMAT.to_owned(),
            task: self.task.name().to_owned(),
            points: self.points,
            input_size: sizes.input_size,
            hidden_size: sizes.hidden_size,
            weights: blake3::hash(&bytes).to_hex().to_string(),
        };
        let path = folder.join(CONFIG);
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|e| InspectError::format(&path, e.to_string()))?;
        atomic::write(&path, &text).map_err(|e| InspectError::io(&path, e))
    }

    /// The order of numbers, or the answer of a task of one's own, for rows as wide as the
    /// network's points. Numbers to be sorted are scaled to what the network learned from, from 0
    /// to 1, where they lie outside of it.
    ///
    /// # Errors
    /// When there is no row, a row of another width, or a number that is not finite.
    pub fn point(&self, rows: &[f32], beam: usize, rules: bool) -> Result<Pointed, InspectError> {
        let width = self.network.config().input_size;
        if rows.len() / width > super::MOST_POINTS {
            return Err(InspectError::settings(format!(
                "{} points are too many; a network that points reads up to {}",
                rows.len() / width,
                super::MOST_POINTS
            )));
        }
        let sorts = self.task == Task::Sort;
        let scaled = match sorts {
            true => into_unit(rows),
            false => rows.to_vec(),
        };
        let answer = self
            .network
            .answer(&scaled, self.task, beam, rules)
            .map_err(refused)?;
        let places: Vec<usize> = answer.places.iter().map(|place| place - 1).collect();
        let truth = sorts.then(|| super::sorted(rows));
        Ok(Pointed {
            worth: truth.as_ref().map(|truth| super::in_place(&places, truth)),
            truth,
            answer: places,
            log_probability: answer.log_probability,
            ended: answer.ended,
        })
    }

    /// Answers for points, beside the truth; `seed` is that of the search for a tour.
    ///
    /// # Errors
    /// When there are too few distinct points, or all lie on a line and the task is no tour.
    pub fn solve(
        &self,
        points: &Points,
        beam: usize,
        rules: bool,
        seed: u64,
    ) -> Result<Solved, InspectError> {
        let (kept, numbers) = points.distinct();
        let truth = truth(&kept, self.task, seed)?;
        let answer = self
            .network
            .answer(&kept.for_network(), self.task, beam, rules)
            .map_err(refused)?;
        let mut places: Vec<usize> = answer.places.iter().map(|place| place - 1).collect();
        let ring = self.task != Task::Delaunay;
        if ring && places.len() > 1 && places.first() == places.last() {
            places.pop();
        }
        let worth = worth(&kept, self.task, &places, &truth);
        // Of each kept point the points that stand there.
        let mut there = vec![Vec::new(); kept.len()];
        for (point, number) in numbers.iter().enumerate() {
            there[*number].push(point);
        }
        let back = |places: &[usize]| -> Vec<usize> {
            let each = places.iter().flat_map(|place| match self.task {
                Task::Tour => &there[*place][..],
                _ => &there[*place][..1],
            });
            each.copied().collect()
        };
        Ok(Solved {
            answer: back(&places),
            truth: back(&truth),
            worth,
            log_probability: answer.log_probability,
            ended: answer.ended,
            twins: points.len() - kept.len(),
        })
    }
}

/// Numbers as they are where all lie from 0 to 1, else scaled to that.
fn into_unit(numbers: &[f32]) -> Vec<f32> {
    let low = numbers.iter().copied().fold(f32::INFINITY, f32::min);
    let high = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if low >= 0.0 && high <= 1.0 {
        return numbers.to_vec();
    }
    let (low, high) = (f64::from(low), f64::from(high));
    let wide = if high > low { high - low } else { 1.0 };
    let each = |x: &f32| ((f64::from(*x) - low) / wide) as f32;
    numbers.iter().map(each).collect()
}

fn refused(e: SequenceError) -> InspectError {
    InspectError::settings(e.to_string())
}

fn weights(network: &PointerNetwork) -> Result<Vec<u8>, String> {
    let tensors = network.tensors();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| {
            let halves = t.numbers.iter().map(|x| f16::from_f32(*x).to_le_bytes());
            halves.flatten().collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(t, bytes)| {
        TensorView::new(Dtype::F16, t.shape.clone(), bytes).map(|view| (t.name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}

fn network(
    path: &Path,
    sizes: PointerConfig,
    bytes: &[u8],
) -> Result<PointerNetwork, InspectError> {
    let wrong = |what: String| InspectError::format(path, what);
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
    let read = |name: &str, shape: &[usize]| {
        let refuse = |what: String| Err(SequenceError::Refused(what));
        let Ok(view) = file.tensor(name) else {
            return refuse(format!("it has no tensor '{name}'"));
        };
        if view.shape() != shape || view.dtype() != Dtype::F16 {
            return refuse(format!(
                "tensor '{name}' is {:?} of {:?} and not of halves, {shape:?}",
                view.shape(),
                view.dtype()
            ));
        }
        let halves = view.data().as_chunks::<2>().0.iter();
        let numbers: Vec<f32> = halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect();
        match numbers.iter().all(|x| x.is_finite()) {
            true => Ok(numbers),
            false => refuse(format!("tensor '{name}' holds a number that is not finite")),
        }
    };
    PointerNetwork::with(sizes, read).map_err(|e: SequenceError| wrong(e.to_string()))
}
