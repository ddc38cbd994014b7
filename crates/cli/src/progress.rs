//! Progress of long work on stderr: a bar on a terminal, a plain line now and
//! then elsewhere, nothing with `--quiet`.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use keyfold_core::Progress;

use crate::output::terminal::printable;
use crate::{interrupt, place};

/// How often a plain line is written where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Draws progress on stderr and asks to stop when the user pressed Ctrl-C.
pub(crate) struct StderrProgress {
    mode: Mode,
    /// Notes beyond this number are only counted.
    note_limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Quiet,
}

#[derive(Default)]
struct State {
    stage: Option<Stage>,
    notes: usize,
    said: HashSet<String>,
}

struct Stage {
    name: String,
    unit: String,
    total: Option<u64>,
    done: u64,
    /// How it goes, beside the count.
    status: String,
    started: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl StderrProgress {
    /// Progress for one command; also makes Ctrl-C a request to stop.
    pub(crate) fn new(quiet: bool, note_limit: usize) -> Self {
        interrupt::listen();
        let mode = if quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bar
        } else {
            Mode::Lines
        };
        Self {
            mode,
            note_limit,
            state: Mutex::default(),
        }
    }

    /// Says something about the whole run, once, unless the user wants quiet.
    pub(crate) fn say(&self, line: &str) {
        let first = self.state().said.insert(line.to_owned());
        if first && self.mode != Mode::Quiet {
            write_line(&format!("keyfold: {}", printable(line)));
        }
    }

    /// How many notes were not shown.
    pub(crate) fn hidden_notes(&self) -> usize {
        self.state().notes.saturating_sub(self.note_limit)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic elsewhere leaves the counters usable.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Progress for StderrProgress {
    fn start(&self, stage: &str, unit: &str, total: Option<u64>) {
        let now = Instant::now();
        let bar = match self.mode {
            Mode::Bar => bar(stage, unit, total),
            _ => ProgressBar::hidden(),
        };
        let stage = Stage {
            name: stage.to_owned(),
            unit: unit.to_owned(),
            total,
            done: 0,
            status: String::new(),
            started: now,
            last_line: now,
            bar,
        };
        if let Some(old) = self.state().stage.replace(stage) {
            old.bar.finish_and_clear();
        }
    }

    fn advance(&self, n: u64) {
        let mut state = self.state();
        let Some(stage) = &mut state.stage else {
            return;
        };
        stage.done += n;
        stage.bar.inc(n);
        if self.mode == Mode::Lines && stage.last_line.elapsed() >= LINE_INTERVAL {
            stage.last_line = Instant::now();
            write_line(&stage.line(stage.started.elapsed()));
        }
    }

    fn set_total(&self, total: u64) {
        if let Some(stage) = &mut self.state().stage {
            if stage.total.is_none() {
                stage.bar.set_style(style(&stage.unit, true));
            }
            stage.total = Some(total);
            stage.bar.set_length(total);
        }
    }

    fn status(&self, text: &str) {
        if let Some(stage) = &mut self.state().stage {
            stage.bar.set_message(format!("{}, {text}", stage.name));
            stage.status = format!(", {text}");
        }
    }

    fn finish(&self) {
        if let Some(stage) = self.state().stage.take() {
            stage.bar.finish_and_clear();
            // A stage that was long enough for lines also tells its end.
            if self.mode == Mode::Lines && stage.started.elapsed() >= LINE_INTERVAL {
                write_line(&stage.line(stage.started.elapsed()));
            }
        }
    }

    fn note(&self, line: &str) {
        let mut state = self.state();
        state.notes += 1;
        if self.mode == Mode::Quiet || state.notes > self.note_limit {
            return;
        }
        let line = printable(&place::without_here(line));
        match &state.stage {
            Some(stage) if self.mode == Mode::Bar => stage.bar.suspend(|| write_line(&line)),
            _ => write_line(&line),
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::requested()
    }
}

impl Stage {
    /// `reading: 1,200 of 5,000 files, 240/s, 16 seconds left`
    fn line(&self, elapsed: Duration) -> String {
        let rate = self.done as f64 / elapsed.as_secs_f64().max(1e-9);
        let amount = |n: u64| match self.unit.as_str() {
            "bytes" => HumanBytes(n).to_string(),
            _ => with_separators(n),
        };
        let (of, left) = match self.total {
            Some(total) => {
                let seconds = total.saturating_sub(self.done) as f64 / rate.max(1e-9);
                let left = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
                (
                    format!(" of {}", amount(total)),
                    format!(", {} left", HumanDuration(left)),
                )
            }
            None => (String::new(), String::new()),
        };
        let unit = match self.unit.as_str() {
            "bytes" => String::new(),
            unit => format!(" {unit}"),
        };
        let rate = match rate < 10.0 {
            true => format!("{rate:.1}"),
            false => amount(rate as u64),
        };
        format!(
            "{}: {}{of}{unit}{}, {rate}/s{left}",
            self.name,
            amount(self.done),
            self.status
        )
    }
}

fn bar(stage: &str, unit: &str, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    bar.set_style(style(unit, total.is_some()));
    bar.set_message(stage.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style(unit: &str, known_total: bool) -> ProgressStyle {
    // A unit with braces would be a broken template; the plain bar serves then.
    ProgressStyle::with_template(&template(unit, known_total))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn template(unit: &str, known_total: bool) -> String {
    match (unit, known_total) {
        ("bytes", true) => {
            "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left".to_owned()
        }
        ("bytes", false) => "{spinner} {msg}: {bytes}, {bytes_per_sec}".to_owned(),
        (_, true) => format!(
            "{{msg}} [{{bar:30}}] {{human_pos}} of {{human_len}} {unit}, {{per_sec}}, {{eta}} left"
        ),
        (_, false) => format!("{{spinner}} {{msg}}: {{human_pos}} {unit}"),
    }
}

fn write_line(line: &str) {
    // Progress that nobody can read must not stop the work.
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// 1234567 as `1,234,567`.
pub(crate) fn with_separators(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_rate_and_time_left() {
        let started = Instant::now();
        let mut stage = Stage {
            name: "reading".into(),
            unit: "files".into(),
            total: Some(3000),
            done: 1000,
            status: String::new(),
            started,
            last_line: started,
            bar: ProgressBar::hidden(),
        };
        assert_eq!(
            stage.line(Duration::from_secs(10)),
            "reading: 1,000 of 3,000 files, 100/s, 20 seconds left"
        );
        stage.status = ", loss 0.25".into();
        assert_eq!(
            stage.line(Duration::from_secs(10)),
            "reading: 1,000 of 3,000 files, loss 0.25, 100/s, 20 seconds left"
        );
        stage.status.clear();
        stage.total = None;
        stage.done = 15;
        assert_eq!(
            stage.line(Duration::from_secs(10)),
            "reading: 15 files, 1.5/s"
        );
        stage.unit = "bytes".into();
        stage.total = Some(4 << 20);
        stage.done = 1 << 20;
        assert_eq!(
            stage.line(Duration::from_secs(1)),
            "reading: 1.00 MiB of 4.00 MiB, 1.00 MiB/s, 3 seconds left"
        );
    }

    #[test]
    fn templates_of_all_kinds_are_valid() {
        for unit in ["files", "bytes"] {
            for known in [true, false] {
                ProgressStyle::with_template(&template(unit, known)).unwrap();
            }
        }
    }

    #[test]
    fn notes_beyond_the_limit_are_counted() {
        let progress = StderrProgress {
            mode: Mode::Quiet,
            note_limit: 2,
            state: Mutex::default(),
        };
        for i in 0..5 {
            progress.note(&format!("skipped {i}"));
        }
        assert_eq!(progress.hidden_notes(), 3);
    }
}
