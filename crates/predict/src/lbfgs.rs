//! Minimum of a smooth function by L-BFGS (Liu and Nocedal: On the limited memory BFGS
//! method for large scale optimization, 1989).
//!
//! The step length is found by the bracketing of Lewis and Overton (2013), which needs only
//! the weak Wolfe conditions. It stops for a reason that it tells; a minimum that was not
//! reached is never passed off as one.

use keyfold_core::Progress;

use crate::algebra::dot;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LbfgsConfig {
    /// Steps at most.
    pub max_iter: usize,
    /// The measure of the gradient below which a point counts as the minimum.
    pub tol: f64,
    /// Steps that are remembered.
    pub history: usize,
}

/// Why the search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopped {
    /// The gradient is as small as was asked.
    Converged,
    /// No step makes the value smaller in floating point: as good as converged.
    NoProgress,
    /// `max_iter` steps were not enough.
    Iterations,
    /// The user asked to stop.
    Cancelled,
}

impl Stopped {
    /// True when more steps would not have helped.
    pub fn is_converged(self) -> bool {
        matches!(self, Self::Converged | Self::NoProgress)
    }
}

/// Where the search ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The value there.
    pub value: f64,
    /// The measure of the gradient there.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
    /// Why it ended.
    pub stopped: Stopped,
}

/// A value with the measure of its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// The value of the function.
    pub value: f64,
    /// How large the gradient is, in the terms of [`LbfgsConfig::tol`].
    pub gradient: f64,
}

const ARMIJO: f64 = 1e-4;
const CURVATURE: f64 = 0.9;
const TRIALS: usize = 40;

/// Minimises `f` from `x`. `f` writes its gradient into the second slice.
pub fn minimise(
    x: Vec<f64>,
    mut f: impl FnMut(&[f64], &mut [f64]) -> Evaluation,
    config: LbfgsConfig,
    progress: &dyn Progress,
) -> Minimum {
    let n = x.len();
    let mut gradient = vec![0.0; n];
    let mut here = f(&x, &mut gradient);
    let mut x = x;
    let mut memory = Memory::new(config.history);
    let (mut next, mut next_gradient) = (vec![0.0; n], vec![0.0; n]);
    let mut iterations = 0;
    let stopped = loop {
        if here.gradient <= config.tol {
            break Stopped::Converged;
        }
        if iterations >= config.max_iter {
            break Stopped::Iterations;
        }
        if progress.cancelled() {
            break Stopped::Cancelled;
        }
        let mut direction = memory.direction(&gradient);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 || !slope.is_finite() {
            memory.forget();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        let start = match memory.is_empty() {
            true => 1.0 / (-slope).sqrt().max(1.0),
            false => 1.0,
        };
        let found = search(start, slope, here.value, |t| {
            for i in 0..n {
                next[i] = x[i] + t * direction[i];
            }
            let there = f(&next, &mut next_gradient);
            (there, dot(&direction, &next_gradient))
        });
        let Some(there) = found else {
            // With a bent memory the direction may be at fault; the gradient never is.
            if memory.is_empty() {
                break Stopped::NoProgress;
            }
            memory.forget();
            continue;
        };
        memory.remember(&x, &next, &gradient, &next_gradient);
        std::mem::swap(&mut x, &mut next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        let gain = here.value - there.value;
        here = there;
        iterations += 1;
        let scale = here.value.abs().max(1e-300);
        if gain <= 4.0 * f64::EPSILON * scale && here.gradient > config.tol {
            if memory.is_empty() {
                break Stopped::NoProgress;
            }
            memory.weak += 1;
            if memory.weak > 3 {
                break Stopped::NoProgress;
            }
        }
    };
    Minimum {
        x,
        value: here.value,
        gradient: here.gradient,
        iterations,
        stopped,
    }
}

/// A step length by bisection; the last point that `at` evaluated is the one returned.
fn search(
    start: f64,
    slope: f64,
    value: f64,
    mut at: impl FnMut(f64) -> (Evaluation, f64),
) -> Option<Evaluation> {
    let (mut low, mut high, mut t) = (0.0, f64::INFINITY, start);
    // What the sums of `f` may err.
    let noise = 4.0 * f64::EPSILON * value.abs();
    for _ in 0..TRIALS {
        let (there, there_slope) = at(t);
        let enough = there.value <= value + ARMIJO * t * slope + noise;
        if !enough || !there.value.is_finite() {
            high = t;
            // The minimum of the parabola through what is known, kept off the ends.
            let bend = there.value - value - t * slope;
            let guess = match bend.is_finite() && low == 0.0 {
                true => -slope * t * t / (2.0 * bend),
                false => 0.5 * (low + high),
            };
            t = guess.clamp(low + 0.1 * (high - low), low + 0.5 * (high - low));
            continue;
        }
        if there_slope < CURVATURE * slope {
            low = t;
            t = match high.is_finite() {
                true => 0.5 * (low + high),
                // Where the slope would be 0 if it went on as it changed so far.
                false => {
                    let zero = t * slope / (slope - there_slope).min(-f64::MIN_POSITIVE);
                    zero.clamp(2.0 * t, 8.0 * t)
                }
            };
            continue;
        }
        return Some(there);
    }
    None
}

/// The last steps and what they did to the gradient.
struct Memory {
    most: usize,
    steps: Vec<(Vec<f64>, Vec<f64>, f64)>,
    /// Steps in a row that gained nothing.
    weak: usize,
}

impl Memory {
    fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            steps: Vec::new(),
            weak: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn forget(&mut self) {
        self.steps.clear();
    }

    fn remember(&mut self, x: &[f64], next: &[f64], gradient: &[f64], next_gradient: &[f64]) {
        let minus =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let (s, y) = (minus(next, x), minus(next_gradient, gradient));
        let product = dot(&s, &y);
        if product > 1e-16 * dot(&y, &y) && product > 0.0 {
            if self.steps.len() == self.most {
                self.steps.remove(0);
            }
            self.steps.push((s, y, 1.0 / product));
        }
    }

    /// `-H · gradient` by the two loops.
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut factors = Vec::with_capacity(self.steps.len());
        for (s, y, inverse) in self.steps.iter().rev() {
            let a = inverse * dot(s, &q);
            q.iter_mut().zip(y).for_each(|(q, y)| *q -= a * y);
            factors.push(a);
        }
        if let Some((_, y, inverse)) = self.steps.last() {
            let scale = 1.0 / (inverse * dot(y, y));
            q.iter_mut().for_each(|q| *q *= scale);
        }
        for ((s, y, inverse), a) in self.steps.iter().zip(factors.iter().rev()) {
            let b = inverse * dot(y, &q);
            q.iter_mut().zip(s).for_each(|(q, s)| *q += (a - b) * s);
        }
        q
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfold_core::{NoProgress, StopAfter};

    const CONFIG: LbfgsConfig = LbfgsConfig {
        max_iter: 200,
        tol: 1e-9,
        history: 10,
    };

    fn rosenbrock(x: &[f64], g: &mut [f64]) -> Evaluation {
        let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
        g[0] = -2.0 * a - 400.0 * x[0] * b;
        g[1] = 200.0 * b;
        Evaluation {
            value: a * a + 100.0 * b * b,
            gradient: g[0].abs().max(g[1].abs()),
        }
    }

    #[test]
    fn the_banana_valley_is_walked_to_its_end() {
        let found = minimise(vec![-1.2, 1.0], rosenbrock, CONFIG, &NoProgress);
        assert_eq!(found.stopped, Stopped::Converged);
        assert!((found.x[0] - 1.0).abs() < 1e-6 && (found.x[1] - 1.0).abs() < 1e-6);
        assert!(found.iterations < 80, "{}", found.iterations);
    }

    #[test]
    fn a_first_step_that_is_far_too_short_grows_by_more_than_doubling() {
        let mut calls = 0;
        let found = minimise(
            vec![0.0],
            |x, g| {
                calls += 1;
                let rest = x[0] - 1e6;
                g[0] = 1e-6 * rest;
                Evaluation {
                    value: 0.5e-6 * rest * rest,
                    gradient: g[0].abs(),
                }
            },
            CONFIG,
            &NoProgress,
        );
        assert_eq!(found.stopped, Stopped::Converged);
        assert!((found.x[0] - 1e6).abs() < 1e-2, "{}", found.x[0]);
        // Doubling alone takes twenty.
        assert!(calls <= 12, "{calls}");
    }

    #[test]
    fn it_says_when_it_did_not_get_there() {
        let few = LbfgsConfig {
            max_iter: 3,
            ..CONFIG
        };
        let found = minimise(vec![-1.2, 1.0], rosenbrock, few, &NoProgress);
        assert_eq!(found.stopped, Stopped::Iterations);
        assert!(found.value < 24.2 && found.gradient > 1e-3);
        let stopped = minimise(vec![-1.2, 1.0], rosenbrock, CONFIG, &StopAfter::new(0));
        assert_eq!(stopped.stopped, Stopped::Cancelled);
        // The root of a rounding error is as near as a parabola allows.
        let hard = LbfgsConfig { tol: 0.0, ..CONFIG };
        let found = minimise(
            vec![3.0],
            |x, g| {
                g[0] = 2.0 * (x[0] - 0.1);
                Evaluation {
                    value: (x[0] - 0.1) * (x[0] - 0.1) + 1.0,
                    gradient: g[0].abs() + 1e-30,
                }
            },
            hard,
            &NoProgress,
        );
        assert!(found.stopped.is_converged() && (found.x[0] - 0.1).abs() < 1e-7);
    }
}
