//! What this process takes: memory, apart from files that are mapped, and processor time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of anonymous memory that this process holds now; none where the system
/// does not tell.
pub(crate) fn held() -> Option<u64> {
    told("RssAnon:")
}

/// The most bytes that this process ever had in memory, mapped files included; none
/// where the system does not tell.
pub(crate) fn most_resident() -> Option<u64> {
    told("VmHWM:")
}

/// Seconds that processors have worked for this process; none where the system does
/// not tell.
pub(crate) fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name of the program, which may hold blanks, come the fields from the
    // third on; the times are in hundredths of a second.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

fn told(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Runs `work` and gives the most memory that was held meanwhile, looked at
/// every few milliseconds.
pub(crate) fn most_during<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    let most = AtomicU64::new(held().unwrap_or(0));
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(held().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    let most = most.into_inner();
    (result, (most > 0).then_some(most))
}
