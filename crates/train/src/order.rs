//! Which examples a step takes, from the seed and the step's number alone, so that a
//! resumed run takes the same.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// A seed for step `number`.
pub fn step_seed(seed: u64, number: u64) -> u64 {
    let salt: u64 = StdRng::seed_from_u64(seed).random();
    salt ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The random numbers of step `number`.
pub fn step_rng(seed: u64, number: u64) -> StdRng {
    StdRng::seed_from_u64(step_seed(seed, number))
}

/// Batches of shuffled examples, epoch after epoch; the rest of an epoch that fills no
/// batch is left out of it.
#[derive(Debug, Clone)]
pub struct Batches {
    examples: usize,
    batch_size: usize,
    seed: u64,
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Batches {
    /// Batches of `batch_size` out of `examples`; a batch larger than all is all of them.
    pub fn new(examples: usize, batch_size: usize, seed: u64) -> Self {
        Self {
            examples,
            batch_size: batch_size.clamp(1, examples.max(1)),
            seed,
            epoch: None,
            order: Vec::new(),
        }
    }

    /// Batches of one epoch.
    pub fn per_epoch(&self) -> u64 {
        (self.examples / self.batch_size) as u64
    }

    /// The examples of batch `number`, from 0.
    pub fn batch(&mut self, number: u64) -> &[usize] {
        let per_epoch = self.per_epoch().max(1);
        let epoch = number / per_epoch;
        if self.epoch != Some(epoch) {
            self.order = (0..self.examples).collect();
            // Epochs are numbered from the far end, so that no step has the same numbers.
            self.order
                .shuffle(&mut step_rng(self.seed, u64::MAX - epoch));
            self.epoch = Some(epoch);
        }
        let at = (number % per_epoch) as usize * self.batch_size;
        &self.order[at..(at + self.batch_size).min(self.examples)]
    }
}

/// Splits `examples` into those to learn from and those held out for validation: a
/// share of them, drawn by `seed`, at least one of each kind where there are two.
pub fn hold_out(examples: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..examples).collect();
    order.shuffle(&mut step_rng(seed, 0));
    if share <= 0.0 || examples < 2 {
        order.sort_unstable();
        return (order, Vec::new());
    }
    let held = ((examples as f64 * share).round() as usize).clamp(1, examples - 1);
    let mut learn = order.split_off(held);
    order.sort_unstable();
    learn.sort_unstable();
    (learn, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_example_once_and_any_step_can_be_asked_for() {
        let mut all = Batches::new(20, 4, 7);
        let first: Vec<Vec<usize>> = (0..10).map(|n| all.batch(n).to_vec()).collect();
        let mut epoch: Vec<usize> = first[..5].concat();
        assert_ne!(epoch, first[5..].concat(), "epochs differ");
        epoch.sort_unstable();
        assert_eq!(epoch, (0..20).collect::<Vec<_>>());
        let mut again = Batches::new(20, 4, 7);
        assert_eq!(again.batch(8), first[8], "a resumed run takes the same");
        assert_ne!(Batches::new(20, 4, 8).batch(8), first[8]);
        assert_eq!(Batches::new(3, 8, 0).batch(5).len(), 3);
    }

    #[test]
    fn what_is_held_out_is_not_learned_from() {
        let (learn, held) = hold_out(50, 0.1, 3);
        assert_eq!((learn.len(), held.len()), (45, 5));
        assert!(held.iter().all(|h| !learn.contains(h)));
        assert_eq!(hold_out(2, 0.01, 0).1.len(), 1);
        assert_eq!(hold_out(1, 0.5, 0), (vec![0], vec![]));
    }
}
