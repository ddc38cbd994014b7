//! Threads that are ready at once.
//!
//! Decoding one token is some two hundred matrix-vector products of ten microseconds
//! each. Handing one to a thread pool that sleeps costs more than the product, so the
//! threads of a team look for work for a while before they sleep. And on a busy machine
//! the caller does not wait for a thread that has no core: it takes over what nobody
//! has begun.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a thread looks for work before it sleeps: some 50 microseconds.
const LOOKS: usize = 2_000;

/// How often the caller looks whether all are done before it lets others run; on a busy
/// machine the thread that it waits for may need this one's core.
const PATIENCE: usize = 10_000;

type Job = *const (dyn Fn(usize) + Sync);

thread_local! {
    /// Whether this thread is at work for a team; what it hands out then runs on it alone.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

struct Shared {
    /// Counts the jobs; a change is the signal to begin.
    round: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// For each part but the caller's the round in which it was last begun.
    begun: Box<[AtomicU64]>,
    /// Parts but the caller's that are not done in this round.
    pending: AtomicUsize,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the caller alone, while `pending` is 0 (so no worker reads
// it) and before the release of `round`; workers read it after they acquired `round` and
// began a part of it, which they count off `pending` afterwards. The job itself is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A few threads that share work in parts of microseconds.
///
/// Work is cut into the same parts whoever does them, so results do not depend on timing.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One caller at a time.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Team {
    /// A team of `threads` threads, of which the caller is one; 0 means one for each core.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            round: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            begun: (1..threads).map(|_| AtomicU64::new(0)).collect(),
            pending: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .map_while(|part| {
                let shared = Arc::clone(&shared);
                let name = format!("team-{part}");
                // Where the system gives no more threads, the team is smaller.
                let spawned = std::thread::Builder::new()
                    .name(name)
                    .spawn(move || work(&shared, part));
                spawned.ok()
            })
            .collect();
        Self {
            shared,
            workers,
            turn: Mutex::new(()),
        }
    }

    /// How many parts [`run`](Self::run) makes.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(part)` once for every part of `0..threads()`, on as many threads as have
    /// a core, and returns when all are done. A call from within a job runs its parts one
    /// by one.
    ///
    /// # Panics
    /// When a part panicked.
    pub fn run(&self, job: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || AT_WORK.get() {
            (0..self.threads()).for_each(job);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let job: &(dyn Fn(usize) + Sync) = &job;
        // SAFETY: only the lifetime is widened. The workers use the job before they lower
        // `pending`, and this function does not return, nor unwind, before `pending` is 0.
        let widened: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: `pending` is 0 here, so that no worker reads `job`; `turn` keeps other
        // callers out.
        unsafe { *shared.job.get() = Some(widened) };
        shared.pending.store(self.workers.len(), Ordering::Relaxed);
        let round = shared.round.fetch_add(1, Ordering::SeqCst) + 1;
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            // Whoever counts as a sleeper holds this lock until it waits.
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        AT_WORK.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        for part in 1..self.threads() {
            shared.work(part, round);
        }
        AT_WORK.set(false);
        let mut looks = 0;
        while shared.pending.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < PATIENCE {
                spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let theirs = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Cuts `out` into one run of whole `grain`s for each thread and calls
    /// `job(first, run)`, where `first` is the place of `run` in `out`.
    ///
    /// # Panics
    /// When `grain` is 0 or does not divide the length of `out`, or a part panicked.
    pub fn split<T: Send>(
        &self,
        out: &mut [T],
        grain: usize,
        job: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(grain > 0 && out.len().is_multiple_of(grain), "split: grain");
        let (parts, grains) = (self.threads(), out.len() / grain);
        let out = Parts(out.as_mut_ptr(), PhantomData);
        self.run(|part| {
            // Runs that differ by one grain at most, the longer ones first.
            let place = |part: usize| (grains / parts * part + part.min(grains % parts)) * grain;
            let (first, end) = (place(part), place(part + 1));
            if first < end {
                // SAFETY: runs of different parts do not overlap and end where `out` does;
                // each part is run once, while `out` is borrowed exclusively.
                let run = unsafe { out.run(first, end - first) };
                job(first, run);
            }
        });
    }
}

/// A slice that is cut by the threads that share it.
struct Parts<'a, T>(*mut T, PhantomData<&'a mut [T]>);

// SAFETY: `run` is unsafe: whoever calls it keeps threads apart; the numbers may be sent.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// # Safety
    /// The run must lie in the slice, and nobody else may have a part of it.
    unsafe fn run(&self, first: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), len) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        drop(
            self.shared
                .sleep
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// The life of a worker.
fn work(shared: &Shared, part: usize) {
    AT_WORK.set(true);
    let mut seen = 0;
    loop {
        seen = next_round(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        shared.work(part, seen);
    }
}

impl Shared {
    /// Does a part of a round that has been seen, unless somebody began it.
    fn work(&self, part: usize, round: u64) {
        // In every round each part is begun once, so that this fails for one that is over.
        let begun = self.begun[part - 1].compare_exchange(
            round - 1,
            round,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if begun.is_err() {
            return;
        }
        // SAFETY: the caller wrote `job` before the round that was seen, keeps what it
        // points to alive, and writes again only after `pending` was released below.
        let done = catch_unwind(AssertUnwindSafe(|| unsafe {
            if let Some(job) = *self.job.get() {
                (*job)(part);
            }
        }));
        if let Err(panic) = done {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.pending.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until the round is no longer `seen`.
fn next_round(shared: &Shared, seen: u64) -> u64 {
    for _ in 0..LOOKS {
        let round = shared.round.load(Ordering::Acquire);
        if round != seen {
            return round;
        }
        spin_loop();
    }
    let mut guard = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    // Either this sees the new round, or the caller sees a sleeper and wakes it.
    let round = loop {
        let round = shared.round.load(Ordering::SeqCst);
        if round != seen {
            break round;
        }
        guard = shared
            .wake
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner);
    };
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
    drop(guard);
    round
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    #[test]
    fn every_part_runs_once_whether_the_team_sleeps_or_not() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            let counts: Vec<AtomicU32> = (0..threads).map(|_| AtomicU32::new(0)).collect();
            for round in 0..2_000 {
                if round % 500 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                team.run(|part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2_000));
        }
    }

    #[test]
    fn splits_cover_everything_in_whole_grains() {
        let team = Team::new(3);
        for grains in 0..20 {
            let mut out = vec![0usize; grains * 4];
            team.split(&mut out, 4, |first, run| {
                assert!(first % 4 == 0 && run.len() % 4 == 0);
                for (i, x) in run.iter_mut().enumerate() {
                    *x = first + i + 1;
                }
            });
            assert!(out.iter().enumerate().all(|(i, &x)| x == i + 1));
        }
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for bad in 0..2 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(|part| assert!(part != bad, "part {part}"));
            }));
            assert!(result.is_err());
        }
        let sum = AtomicU32::new(0);
        team.run(|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_team_can_be_used_from_within_and_by_many() {
        let team = Team::new(2);
        let sum = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.run(|_| {
                            team.run(|_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 200 * 4);
    }
}
