//! One file per experiment.
