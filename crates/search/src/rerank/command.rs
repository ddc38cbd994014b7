//! A scorer that is a program of the user: pairs go in as lines of JSON, numbers come
//! out.
//!
//! ```text
//! in    {"q": "a query", "item": "a passage"}
//! out   3.25
//! ```
//!
//! The program reads lines until its input ends and answers each with one line, a
//! number that is larger for better pairs, in the same order. It must write its
//! answers out (flush) when it waits for more. What it writes to stderr is shown.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use keyfold_core::{EncodeError, EncoderIdentity, PairScorer};

/// How long a program may take for one answer, unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end when its input has ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// Characters of an answer that errors show.
const SHOWN: usize = 80;

/// A program that scores pairs. It is started by the shell at the first pair, and
/// again after it failed.
pub struct CommandScorer {
    identity: EncoderIdentity,
    program: String,
    patience: Duration,
    running: Mutex<Option<Running>>,
}

impl CommandScorer {
    /// `program` is a line for the shell; `patience` is how long it may take for one
    /// answer. Its identity is that line: what a changed program would score
    /// otherwise is not known here.
    pub fn new(program: &str, patience: Duration) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"command\0");
        hasher.update(program.as_bytes());
        Self {
            identity: EncoderIdentity {
                name: program.to_owned(),
                hash: hasher.finalize().to_hex().to_string(),
                dim: 1,
            },
            program: program.to_owned(),
            patience,
            running: Mutex::new(None),
        }
    }

    fn failed(&self, what: String) -> EncodeError {
        EncodeError::Program {
            program: self.program.clone(),
            what,
        }
    }
}

impl PairScorer for CommandScorer {
    fn identity(&self) -> &EncoderIdentity {
        &self.identity
    }

    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>, EncodeError> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let mut place = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let mut running = match place.take() {
            Some(running) => running,
            None => Running::start(&self.program).map_err(|what| self.failed(what))?,
        };
        let scores = running.score(pairs, self.patience);
        match scores {
            Ok(scores) => {
                *place = Some(running);
                Ok(scores)
            }
            // Its answers no longer belong to what is asked; it is ended here.
            Err(what) => Err(self.failed(what)),
        }
    }
}

/// A program with threads that write to it and read from it, so that neither side
/// waits for the other with a full pipe.
struct Running {
    child: Child,
    /// None when its input has ended.
    questions: Option<Sender<String>>,
    answers: Receiver<std::io::Result<String>>,
}

impl Running {
    fn start(program: &str) -> Result<Self, String> {
        let mut command = if cfg!(windows) {
            let mut command = Command::new("cmd");
            command.arg("/C");
            command
        } else {
            let mut command = Command::new("sh");
            command.arg("-c");
            command
        };
        command.arg(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|e| format!("cannot be started: {e}"))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("has no input or output".to_owned());
        };
        let (questions, to_ask) = channel::<String>();
        std::thread::spawn(move || {
            for lines in to_ask {
                // A program that has ended is noticed by its missing answers.
                if input.write_all(lines.as_bytes()).is_err() || input.flush().is_err() {
                    break;
                }
            }
        });
        let (answered, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if answered.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            questions: Some(questions),
            answers,
        })
    }

    fn score(&mut self, pairs: &[(&str, &str)], patience: Duration) -> Result<Vec<f32>, String> {
        let line = |(q, item): &(&str, &str)| {
            let pair = serde_json::json!({ "q": q, "item": item });
            format!("{pair}\n")
        };
        let lines: String = pairs.iter().map(line).collect();
        let sent = self.questions.as_ref().map(|q| q.send(lines));
        // Writing fails only where the program has ended, and then so does reading.
        drop(sent);
        let mut scores = Vec::with_capacity(pairs.len());
        for _ in pairs {
            let line = match self.answers.recv_timeout(patience) {
                Ok(Ok(line)) => line,
                Ok(Err(e)) => return Err(format!("wrote what cannot be read: {e}")),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "gave no answer for {} s; it must answer every line and flush; \
                         --rerank-timeout gives it more time",
                        patience.as_secs_f32()
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended(scores.len())),
            };
            match line.trim().parse::<f32>() {
                Ok(score) if score.is_finite() => scores.push(score),
                _ => {
                    let shown: String = line.chars().take(SHOWN).collect();
                    return Err(format!(
                        "answered '{shown}' where a finite number belongs: one line with one \
                         number for each line that it reads"
                    ));
                }
            }
        }
        Ok(scores)
    }

    fn ended(&mut self, answers: usize) -> String {
        let how = match self.wait(FAREWELL) {
            Some(status) if status.success() => "ended".to_owned(),
            Some(status) => format!("ended with {status}"),
            None => "closed its output".to_owned(),
        };
        format!("{how} after {answers} answers; it must read and answer until its input ends")
    }

    /// How it ended, if it does so in time.
    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => return None,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.questions = None;
        if self.wait(FAREWELL).is_none() {
            // It may have ended just now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(program: &str, patience: Duration) -> String {
        let scorer = CommandScorer::new(program, patience);
        scorer
            .score(&[("a", "b"), ("c", "d")])
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn pairs_are_scored_in_order_by_one_process() {
        // Says how many lines it has read, and how long each is.
        let scorer = CommandScorer::new(
            r#"n=0; while read -r line; do n=$((n+1)); echo "$n.${#line}"; done"#,
            10 * SECOND,
        );
        let first = scorer
            .score(&[("a", "b"), ("a", "two\nlines \"quoted\"")])
            .unwrap();
        assert_eq!(first, [1.20, 2.40]);
        assert!(scorer.score(&[]).unwrap().is_empty());
        // Many more than fit into a pipe.
        let long = "x".repeat(5000);
        let pairs = vec![("q", long.as_str()); 200];
        let more = scorer.score(&pairs).unwrap();
        assert_eq!(more.len(), 200);
        assert!(more[0] > 3.0 && more[199] > 202.0);
    }

    #[test]
    fn programs_that_do_not_keep_to_it_are_named() {
        for (program, what) in [
            ("no-such-program-at-all", "ended with"),
            ("read -r line; echo 1", "after 1 answers"),
            ("while read -r line; do echo good; done", "'good'"),
            ("while read -r line; do echo NaN; done", "'NaN'"),
            ("exit 3", "3"),
        ] {
            let error = error(program, 10 * SECOND);
            assert!(error.contains(program) && error.contains(what), "{error}");
        }
        let error = error("sleep 20", SECOND / 20);
        assert!(error.contains("--rerank-timeout"), "{error}");
    }

    #[test]
    fn a_program_that_failed_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        // Fails the first time.
        let program = format!(
            "if [ -e {0} ]; then while read -r line; do echo 7; done; else touch {0}; fi",
            mark.display()
        );
        let scorer = CommandScorer::new(&program, 10 * SECOND);
        assert!(scorer.score(&[("a", "b")]).is_err());
        assert_eq!(scorer.score(&[("a", "b")]).unwrap(), [7.0]);
        let other = CommandScorer::new("cat", SECOND);
        assert_ne!(scorer.identity().hash, other.identity().hash);
    }
}
