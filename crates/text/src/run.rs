//! Running many texts through a backbone: the texts are sorted by length,
//! packed without padding, and the packs shared between threads.
//!
//! A text's numbers do not depend on its neighbours in a pack: the linear
//! layers work row by row, and attention stays within a text.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyfold_core::EncodeError;

use crate::backbone::{Backbone, Packed};

/// Tokens of a pack: enough for the matrix products to run at full speed, few
/// enough for the activations to stay near the processor.
const PACK: usize = 512;
/// Below this a pack is not worth a thread of its own.
const SMALLEST_PACK: usize = 64;

/// One text as the backbone takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) ids: Vec<u32>,
    /// How many of the first tokens can be attended to.
    pub(crate) visible: usize,
    /// Where the second of two texts begins; the number of ids if it is one.
    pub(crate) second: usize,
    /// Positions that are left out before the second text.
    pub(crate) gap: usize,
}

impl Input {
    /// One text of which all can be seen.
    pub(crate) fn text(ids: Vec<u32>) -> Self {
        Self {
            visible: ids.len(),
            second: ids.len(),
            gap: 0,
            ids,
        }
    }
}

/// The number of threads that an option asks for; 0 means all of the machine's.
pub(crate) fn thread_count(option: usize) -> usize {
    if option > 0 {
        return option;
    }
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Runs `inputs` through the backbone and gives what `finish` makes of each
/// text's hidden states. `finish` gets the inputs of a pack, by their place in
/// `inputs`, with the pack and its states `[tokens, hidden]`, and returns one
/// result for each.
pub(crate) fn run<T: Send>(
    backbone: &Backbone,
    inputs: &[Input],
    threads: usize,
    finish: impl Fn(&[usize], &Packed, Vec<f32>) -> Result<Vec<T>, EncodeError> + Sync,
) -> Result<Vec<T>, EncodeError> {
    let packs = packs(inputs, threads);
    let workers = threads.min(packs.len()).max(1);
    let threads_each = (threads / workers).max(1);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new(inputs.iter().map(|_| None).collect());
    let work = || -> Result<(), EncodeError> {
        while let Some(places) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut pack = Packed::default();
            for &i in places {
                let input = &inputs[i];
                pack.push(&input.ids, input.visible, input.second, input.gap);
            }
            let states = backbone.forward(&pack, threads_each);
            let done = finish(places, &pack, states)?;
            let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
            for (&i, value) in places.iter().zip(done) {
                results[i] = Some(value);
            }
        }
        Ok(())
    };
    if workers == 1 {
        work()?;
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            handles
                .into_iter()
                .try_for_each(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
        })?;
    }
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    Ok(results.into_iter().flatten().collect())
}

/// Places of `inputs`, longest first, in groups of about [`PACK`] tokens.
fn packs(inputs: &[Input], threads: usize) -> Vec<Vec<usize>> {
    let total: usize = inputs.iter().map(|i| i.ids.len()).sum();
    let size = total.div_ceil(threads).clamp(SMALLEST_PACK, PACK);
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(inputs[i].ids.len()));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for i in order {
        let len = inputs[i].ids.len();
        match packs.last_mut() {
            Some(pack) if len <= room => {
                pack.push(i);
                room -= len;
            }
            _ => {
                packs.push(vec![i]);
                room = size.saturating_sub(len);
            }
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_hold_every_text_once_and_stay_small() {
        let inputs: Vec<Input> = (0..100)
            .map(|i| Input::text(vec![0; (i * 37) % 200]))
            .collect();
        for threads in [1, 2, 64] {
            let packs = packs(&inputs, threads);
            let mut all: Vec<usize> = packs.iter().flatten().copied().collect();
            all.sort();
            assert_eq!(all, (0..100).collect::<Vec<_>>());
            for pack in &packs {
                let tokens: usize = pack.iter().map(|&i| inputs[i].ids.len()).sum();
                assert!(pack.len() == 1 || tokens <= PACK);
            }
        }
    }
}
