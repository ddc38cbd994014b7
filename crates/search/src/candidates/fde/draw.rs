//! Random numbers for planes, projections and sketches.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::libstdcxx::Libstdcxx;
use super::{FdeConfig, Generator};

/// A generator as the parameters name it.
pub(super) enum Draw {
    ChaCha(Box<StdRng>),
    Libstdcxx(Box<Libstdcxx>),
}

impl Draw {
    /// A fresh one for a repetition.
    pub(super) fn new(config: &FdeConfig, repetition: usize) -> Self {
        let seed = config.seed.wrapping_add(repetition as u64);
        match config.generator {
            Generator::ChaCha => Self::ChaCha(Box::new(StdRng::seed_from_u64(seed))),
            // The authors' seeds have 32 bits.
            Generator::Libstdcxx => Self::Libstdcxx(Box::new(Libstdcxx::new(seed as u32))),
        }
    }

    /// From N(0, 1).
    pub(super) fn normal(&mut self) -> f32 {
        match self {
            Self::ChaCha(rng) => standard_normal(rng),
            Self::Libstdcxx(rng) => rng.normal(),
        }
    }

    /// 1 or -1.
    pub(super) fn sign(&mut self) -> f32 {
        match self {
            Self::ChaCha(rng) => match rng.random() {
                true => 1.0,
                false => -1.0,
            },
            Self::Libstdcxx(rng) => rng.sign(),
        }
    }

    /// One of `places`, and a sign.
    pub(super) fn place_and_sign(&mut self, places: usize) -> (u32, f32) {
        let place = match self {
            Self::ChaCha(rng) => rng.random_range(0..places) as u32,
            // At most 2^24 coordinates.
            Self::Libstdcxx(rng) => rng.place(places as u32),
        };
        (place, self.sign())
    }
}

/// A number drawn from N(0, 1).
pub(super) fn standard_normal(rng: &mut StdRng) -> f32 {
    keyfold_core::normal(|| rng.random()) as f32
}
