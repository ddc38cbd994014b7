//! How a command ends: exit codes and messages.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// How a command ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what was asked.
    Done,
    /// A search found nothing, or a check found damage.
    Negative,
    /// The user stopped it.
    Interrupted,
}

impl Outcome {
    /// The process' exit code.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Outcome::Done => 0,
            Outcome::Negative => 1,
            Outcome::Interrupted => 130,
        })
    }
}

/// The command cannot be carried out as it was typed.
#[derive(Debug)]
pub(crate) struct WrongUse(String);

impl fmt::Display for WrongUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUse {}

/// An error with exit code 2: `what` says what, where and what next.
pub(crate) fn wrong_use(what: impl Into<String>) -> anyhow::Error {
    WrongUse(what.into()).into()
}

/// Prints an error with its causes and gives the exit code. A reader that went
/// away (`keyfold ... | head`) is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    // When stderr is gone too, nobody is there to be told.
    let _ = write!(anstream::stderr(), "{}", message(error));
    ExitCode::from(if error.is::<WrongUse>() { 2 } else { 1 })
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// `keyfold: what` and one line per cause; causes that the line above already
/// tells are left out.
fn message(error: &anyhow::Error) -> String {
    let mut last = error.to_string();
    let mut text = format!("keyfold: {last}\n");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.contains(&cause) {
            text += &format!("  because: {cause}\n");
            last = cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_message_names_each_cause_once() {
        let low = io::Error::new(io::ErrorKind::PermissionDenied, "permission denied");
        let error = Err::<(), _>(low)
            .context("cannot read a.txt: permission denied")
            .context("cannot index notes; make it readable")
            .unwrap_err();
        assert_eq!(
            message(&error),
            "keyfold: cannot index notes; make it readable\n  \
             because: cannot read a.txt: permission denied\n"
        );
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("print");
        assert_eq!(report(&error), ExitCode::SUCCESS);
    }
}
