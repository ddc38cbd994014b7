//! Settings, and what goes with rows.

use crate::{PredictError, Table};

/// What the classes are told from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// `Wᵀx`: a row needs no code to be told.
    #[default]
    Filter,
    /// The code of the row.
    Feature,
}

/// The algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Block-coordinate descent.
    #[default]
    Bcd,
    /// Low-rank projected gradient descent on the lifted problem.
    Lpgd,
}

/// How the class of a row is told by the variant `feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Telling {
    /// The code that rebuilds the row best, then the class.
    #[default]
    Naive,
    /// Code and class in turn, until the class stays.
    Alt,
    /// The class with which code and class together cost least.
    Exhaustive,
}

/// Settings, named as in the authors' code.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisedDictionaryConfig {
    /// Atoms.
    pub n_components: usize,
    /// Weight of the reconstruction.
    pub xi: f64,
    /// What the classes are told from.
    pub variant: Variant,
    /// The algorithm.
    pub solver: Solver,
    /// How `feature` tells.
    pub prediction: Telling,
    /// Whether codes and atoms are non-negative (block-coordinate descent only).
    pub nonneg: [bool; 2],
    /// Penalty on the sum of magnitudes of codes and of atoms.
    pub l1: [f64; 2],
    /// Penalty on half the sum of squares of codes and of atoms.
    pub l2: [f64; 2],
    /// Steps.
    pub iter: usize,
    /// How the largest step of block-coordinate descent shrinks; none: steps of any size.
    /// With the solver `lpgd` and `compat`, how its step shrinks.
    pub beta: Option<f64>,
    /// The largest step at the start.
    pub search_radius_const: f64,
    /// Step of `lpgd` with `compat`; otherwise it follows from the data.
    pub stepsize: f64,
    /// The last so many columns of a row are covariates.
    pub covariates: usize,
    /// Do as the released code does where it departs from the paper: one pass of the atoms
    /// per step, with a step that shrinks with the number of rows; for `lpgd` one step size
    /// for all, which shrinks faster than intended.
    pub compat: bool,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for SupervisedDictionaryConfig {
    fn default() -> Self {
        Self {
            n_components: 16,
            xi: 1.0,
            variant: Variant::Filter,
            solver: Solver::Bcd,
            prediction: Telling::Naive,
            nonneg: [true, true],
            l1: [0.0; 2],
            l2: [0.0; 2],
            iter: 200,
            beta: Some(1.0),
            search_radius_const: 1000.0,
            stepsize: 0.01,
            covariates: 0,
            compat: false,
            seed: 0,
        }
    }
}

pub(super) fn setting(setting: &'static str, what: String) -> PredictError {
    PredictError::Setting { setting, what }
}

/// Refuses settings that do not go with the rows; gives the columns that are no covariates.
pub(super) fn check(config: &SupervisedDictionaryConfig, x: &Table) -> Result<usize, PredictError> {
    let (n, q, r) = (x.rows(), config.covariates, config.n_components);
    let Some(p) = x.columns().checked_sub(q).filter(|p| *p > 0) else {
        let what = format!(
            "{q} of {} columns leave none for the dictionary",
            x.columns()
        );
        return Err(setting("covariates", what));
    };
    if r == 0 || r > p.min(n) {
        let what = format!(
            "{r} atoms for {n} rows of {p} columns; take from 1 to {}",
            p.min(n)
        );
        return Err(setting("n_components", what));
    }
    let positive = [
        ("xi", config.xi),
        ("l1", config.l1[0].min(config.l1[1])),
        ("l2", config.l2[0].min(config.l2[1])),
    ];
    for (name, value) in positive {
        if !value.is_finite() || value < 0.0 {
            return Err(setting(name, "must be 0 or more".into()));
        }
    }
    for (name, value) in [
        ("search_radius_const", config.search_radius_const),
        ("stepsize", config.stepsize),
    ] {
        if !value.is_finite() || value <= 0.0 {
            return Err(setting(name, "must be above 0".into()));
        }
    }
    if config.nonneg == [true, true] && config.solver == Solver::Bcd {
        for i in 0..n {
            let bad = x.row(i)[..p].iter().position(|v| *v < 0.0);
            if let Some(column) = bad {
                return Err(PredictError::Negative {
                    row: i,
                    column,
                    value: x.row(i)[column],
                });
            }
        }
    }
    Ok(p)
}
