//! Learning in context: sequences of examples of a linear function, and what predicts the next.
//!
//! [`algorithms`] compares what a transformer predicts with what estimators would;
//! [`softmax`] trains one layer of attention and reads what each head does.

pub mod algorithms;
pub mod constructed;
pub mod learner;
pub mod probe;
pub mod softmax;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::InspectError;
use crate::random::normal;

/// A distribution of numbers: `scale · N(0, 1) + shift`, as in `normal*2.5+0`, or `scale · U(0, 1) + shift`, as
/// in `uniform*2+-1`; or several with commas, of which every number chooses one by chance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Distribution {
    parts: Vec<Part>,
}

/// One of the distributions that are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Part {
    /// What a number of mean 0 and variance 1 is multiplied by.
    scale: f64,
    /// What is added.
    shift: f64,
    /// Whether numbers are even from 0 to 1, in place of normal.
    #[serde(default)]
    uniform: bool,
}

impl Default for Distribution {
    fn default() -> Self {
        Self::normal(1.0, 0.0)
    }
}

impl Distribution {
    /// `scale · N(0, 1) + shift`.
    pub fn normal(scale: f64, shift: f64) -> Self {
        let uniform = false;
        Self {
            parts: vec![Part {
                scale,
                shift,
                uniform,
            }],
        }
    }

    fn draw(&self, rng: &mut StdRng) -> f64 {
        let part = match &self.parts[..] {
            [part] => part,
            parts => &parts[rng.random_range(0..parts.len())],
        };
        let number = match part.uniform {
            true => rng.random(),
            false => normal(rng),
        };
        part.scale * number + part.shift
    }
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, part) in self.parts.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let kind = if part.uniform { "uniform" } else { "normal" };
            write!(f, "{comma}{kind}*{}+{}", part.scale, part.shift)?;
        }
        Ok(())
    }
}

impl From<Distribution> for String {
    fn from(distribution: Distribution) -> Self {
        distribution.to_string()
    }
}

impl std::str::FromStr for Part {
    type Err = InspectError;

    fn from_str(text: &str) -> Result<Self, InspectError> {
        let read = || {
            let (kind, numbers) = text.trim().split_once('*')?;
            let (scale, shift) = numbers.split_once('+')?;
            Some(Self {
                uniform: match kind {
                    "normal" => false,
                    "uniform" => true,
                    _ => return None,
                },
                scale: scale.trim().parse().ok().filter(|x: &f64| x.is_finite())?,
                shift: shift.trim().parse().ok().filter(|x: &f64| x.is_finite())?,
            })
        };
        read().ok_or_else(|| {
            InspectError::settings(format!(
                "'{text}' is no distribution; write it as normal*SCALE+SHIFT or uniform*SCALE+SHIFT, as in \
                 normal*2.5+0, or several with commas for a mixture"
            ))
        })
    }
}

impl std::str::FromStr for Distribution {
    type Err = InspectError;

    fn from_str(text: &str) -> Result<Self, InspectError> {
        let parts: Result<Vec<Part>, _> = text.split(',').map(str::parse).collect();
        Ok(Self { parts: parts? })
    }
}

/// A distribution in a file: as text, or as the one part of files before there were mixtures.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Part(Part),
}

impl TryFrom<Written> for Distribution {
    type Error = InspectError;

    fn try_from(written: Written) -> Result<Self, InspectError> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Part(part) => Ok(Self { parts: vec![part] }),
        }
    }
}

/// Linear tasks: `w`, then `n` pairs of `x` and `y = <w, x> + noise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Numbers of `x`.
    pub d: usize,
    /// Pairs of a sequence.
    pub n: usize,
    /// Where `x` is from.
    pub x: Distribution,
    /// Where `w` is from.
    pub w: Distribution,
    /// Standard deviation of the noise.
    pub noise: f64,
}

impl Task {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), InspectError> {
        if self.d == 0 || self.n == 0 {
            return Err(InspectError::settings(
                "a task needs x of at least one number, and at least one pair",
            ));
        }
        match self.noise >= 0.0 && self.noise.is_finite() {
            true => Ok(()),
            false => Err(InspectError::settings(format!(
                "noise is {}; it must be 0 or more",
                self.noise
            ))),
        }
    }

    /// Sequences drawn by a seed.
    pub fn sample(&self, count: usize, seed: u64) -> Vec<Sequence> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut sequence = || {
            let w: Vec<f64> = (0..self.d).map(|_| self.w.draw(&mut rng)).collect();
            let x = (0..self.n * self.d).map(|_| self.x.draw(&mut rng));
            let x: Vec<f64> = x.collect();
            let y = x.chunks_exact(self.d).map(|x| dot(x, &w));
            let mut y: Vec<f64> = y.collect();
            if self.noise > 0.0 {
                y.iter_mut().for_each(|y| {
                    *y += self.noise * normal(&mut rng);
                });
            }
            Sequence { d: self.d, x, y, w }
        };
        (0..count).map(|_| sequence()).collect()
    }
}

/// One sequence of a [`Task`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Numbers of an `x`.
    pub d: usize,
    /// `[n, d]`
    pub x: Vec<f64>,
    /// `[n]`
    pub y: Vec<f64>,
    /// The function.
    pub w: Vec<f64>,
}

impl Sequence {
    /// The pairs in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&[f64], f64)> {
        self.x.chunks_exact(self.d).zip(self.y.iter().copied())
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_inputs_are_drawn_from_what_is_said() {
        let task = Task {
            d: 3,
            n: 4,
            x: "uniform*2+-1".parse().unwrap(),
            w: "normal*0.5+2.5".parse().unwrap(),
            noise: 0.0,
        };
        let sequences = task.sample(500, 1);
        let (mut sum, mut count) = (0.0, 0.0);
        for s in &sequences {
            assert!(s.x.iter().all(|x| (-1.0..1.0).contains(x)));
            assert_eq!(s.y[2], dot(&s.x[6..9], &s.w));
            sum += s.w.iter().sum::<f64>();
            count += s.w.len() as f64;
        }
        assert!(sequences.iter().any(|s| s.x.iter().any(|x| *x < -0.9)));
        assert!((sum / count - 2.5).abs() < 0.1, "{}", sum / count);
        for wrong in ["uniform*2", "", "normal*1+0,", "normal*inf+0"] {
            assert!(wrong.parse::<Distribution>().is_err(), "{wrong}");
        }
        assert!("even*2+1".parse::<Distribution>().is_err());
    }
    #[test]
    fn every_number_of_a_mixture_chooses_its_part() {
        let mixed: Distribution = "normal*0+1,normal*0+2, uniform*0.5+5".parse().unwrap();
        let task = Task {
            d: 3,
            n: 200,
            x: mixed.clone(),
            w: Distribution::default(),
            noise: 0.0,
        };
        let x = &task.sample(10, 1)[0].x;
        let share = |near: f64, far: f64| {
            let inside = x.iter().filter(|x| (near..=far).contains(*x)).count();
            inside as f64 / x.len() as f64
        };
        for (near, far) in [(1.0, 1.0), (2.0, 2.0), (5.0, 5.5)] {
            let share = share(near, far);
            assert!((share - 1.0 / 3.0).abs() < 0.06, "{near}: {share}");
        }
        // By number, not by row.
        assert!(x.chunks(3).any(|row| row[0] != row[1]));
        let text = serde_json::to_string(&mixed).unwrap();
        assert_eq!(text, r#""normal*0+1,normal*0+2,uniform*0.5+5""#);
        assert_eq!(serde_json::from_str::<Distribution>(&text).unwrap(), mixed);
        let before = r#"{"scale": 2.5, "shift": 0.0}"#;
        let before: Distribution = serde_json::from_str(before).unwrap();
        assert_eq!(before, Distribution::normal(2.5, 0.0));
    }
}
