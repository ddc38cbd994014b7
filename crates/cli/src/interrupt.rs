//! Ctrl-C: the first press asks the work to stop at its next safe point, the
//! second ends the process at once.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C (and a request to terminate) only asks; see [`requested`].
pub(crate) fn listen() {
    // A handler that cannot be set leaves the default: Ctrl-C ends the process,
    // and the store opens at its last commit.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        let _ = writeln!(
            std::io::stderr(),
            "\nkeyfold: stopping at the next safe point; what is done is kept. \
             Press Ctrl-C again to quit at once."
        );
    });
}

/// True once the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
