//! PDF, page by page, by pdf-extract: text in the order of the page's drawing, no layout.
//!
//! PDF readers meet files that make them hang, crash or take all memory, so the work is
//! done by a worker process with limits where one is given
//! ([`ReadOptions::pdf_worker`]). Without one it is done here, where a panic is caught
//! and streams that unpack to too much are refused beforehand, but an endless loop or
//! recursion is not.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use pdf_extract::{Document, PlainTextOutput, output_doc_page};
use serde::{Deserialize, Serialize};

use crate::ReadOptions;
use crate::error::Problem;
use crate::flow::{Flow, unpacks_to_more_than};

/// The first argument of a worker.
const COMMAND: &str = "__read-pdf";
const MEMORY: &str = "KEYFOLD_PDF_MEMORY";
const SECONDS: &str = "KEYFOLD_PDF_SECONDS";

/// The text of each page, or why there is none.
type Pages = Vec<Result<String, String>>;

#[derive(Serialize, Deserialize)]
enum Reply {
    Pages(Pages),
    Failed { why: String, what_to_do: String },
}

pub(super) fn read(path: &Path, bytes: &[u8], flow: &mut Flow) -> Result<(), Problem> {
    let options = flow.options();
    let reply = match &options.pdf_worker {
        Some(worker) => ask(worker, path, options)?,
        None => {
            check_streams(bytes, options)?;
            pages(bytes)
        }
    };
    let pages = match reply {
        Reply::Pages(pages) => pages,
        Reply::Failed { why, what_to_do } => return Err(Problem::fail(why, what_to_do)),
    };
    let (count, mut failed) = (pages.len(), 0);
    let mut why = String::new();
    for (number, page) in (1..).zip(pages) {
        match page {
            Ok(text) => {
                flow.set_part(Some(number))?;
                super::text::read(&join_hyphens(&text), flow)?;
            }
            Err(error) => {
                flow.warn(format!("page {number} could not be read: {error}"));
                failed += 1;
                why = error;
            }
        }
    }
    if failed == count {
        return Err(Problem::fail(
            format!("none of its {count} pages could be read: {why}"),
            "print it to a new PDF",
        ));
    }
    Ok(())
}

/// Joins words that are parted at a line's end.
fn join_hyphens(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("-\n") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let parted = before.ends_with(char::is_lowercase) && after.starts_with(char::is_lowercase);
        joined.push_str(if parted { before } else { &rest[..at + 2] });
        rest = after;
    }
    joined + rest
}

fn pages(bytes: &[u8]) -> Reply {
    let failed = |why: String, what_to_do: &str| Reply::Failed {
        why,
        what_to_do: what_to_do.to_string(),
    };
    let mut document = match caught(|| Document::load_mem(bytes).map_err(|e| e.to_string())) {
        Ok(document) => document,
        Err(why) => {
            return failed(
                format!("is a damaged PDF: {why}"),
                "it may be cut off; copy or download it again",
            );
        }
    };
    if document.is_encrypted()
        && caught(|| document.decrypt("").map_err(|e| e.to_string())).is_err()
    {
        return failed("is encrypted".to_string(), "save it without a password");
    }
    let numbers: Vec<u32> = document.get_pages().into_keys().collect();
    if numbers.is_empty() {
        return failed(
            "is a damaged PDF: it has no pages".to_string(),
            "it may be cut off; copy or download it again",
        );
    }
    let page = |number| {
        caught(|| {
            let mut text = String::new();
            let mut output = PlainTextOutput::new(&mut text);
            output_doc_page(&document, &mut output, number).map_err(|error| error.to_string())?;
            Ok(text)
        })
    };
    Reply::Pages(numbers.into_iter().map(page).collect())
}

fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(message.unwrap_or_else(|| "the reader broke down".to_string()))
    })
}

/// Refuses a file whose streams, pictures aside, unpack to too much.
fn check_streams(bytes: &[u8], options: &ReadOptions) -> Result<(), Problem> {
    const WORD: &[u8] = b"stream";
    let mut left = options.max_unpacked_size;
    let starts = bytes.windows(WORD.len()).enumerate();
    for (at, _) in starts.filter(|(_, window)| *window == WORD) {
        let data = &bytes[at + WORD.len()..];
        let data = data.strip_prefix(b"\r").unwrap_or(data);
        let Some(data) = data.strip_prefix(b"\n") else {
            continue;
        };
        let dictionary = &bytes[at.saturating_sub(300)..at];
        if dictionary.ends_with(b"end") || dictionary.windows(6).any(|w| w == b"/Image") {
            continue;
        }
        let mut unpacked = flate2::read::ZlibDecoder::new(data).take(left.saturating_add(1));
        let mut buffer = [0; 16 << 10];
        // A stream that does not unpack is no danger.
        while let Ok(size @ 1..) = unpacked.read(&mut buffer) {
            if size as u64 > left {
                return Err(unpacks_to_more_than(options));
            }
            left -= size as u64;
        }
    }
    Ok(())
}

/// Has a worker read the file.
fn ask(worker: &Path, path: &Path, options: &ReadOptions) -> Result<Reply, Problem> {
    let seconds = options.pdf_timeout.as_secs().max(1);
    let mut child = Command::new(worker)
        .arg(COMMAND)
        .arg(path)
        .env(MEMORY, options.pdf_max_memory.to_string())
        .env(SECONDS, seconds.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            Problem::fail(
                format!("PDF worker {} does not start: {error}", worker.display()),
                "install the program again",
            )
        })?;
    let output = output(&mut child, options);
    // It has said all or is to say no more.
    let _ = child.kill();
    let status = child.wait();
    let output = output?;
    // Should a parser print something, it stands on lines before.
    let reply = output.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    serde_json::from_slice(reply).map_err(|_| {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Problem::fail(
            format!("broke the PDF reader ({status}), perhaps for want of memory"),
            "raise --pdf-max-memory, or print it to a new PDF",
        )
    })
}

fn output(child: &mut Child, options: &ReadOptions) -> Result<Vec<u8>, Problem> {
    let Some(stdout) = child.stdout.take() else {
        return Ok(Vec::new());
    };
    let limit = options.max_unpacked_size;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout
            .take(limit.saturating_add(1))
            .read_to_end(&mut output);
        // Nobody listens any more after the time-out.
        let _ = sender.send(read.map(|_| output));
    });
    let Ok(output) = receiver.recv_timeout(options.pdf_timeout) else {
        return Err(Problem::fail(
            format!("took the PDF reader more than {:?}", options.pdf_timeout),
            "raise --pdf-timeout, or print it to a new PDF",
        ));
    };
    let output = output.map_err(|error| Problem::io(&error))?;
    if output.len() as u64 > limit {
        return Err(unpacks_to_more_than(options));
    }
    Ok(output)
}

/// Runs a PDF worker: reads the file that is the last of `args` (those behind
/// `__read-pdf`) and writes what it finds to stdout, as [`read`](crate::read()) in the
/// process that started it expects. Gives the exit code.
///
/// It bounds its own address space and processor time as its parent says, and silences
/// panics, so call it first thing, in a process that does nothing else.
pub fn pdf_worker_main(args: &[OsString]) -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    limit_resources();
    let Some(path) = args.last() else {
        return 2;
    };
    let reply = match std::fs::read(path) {
        Ok(bytes) => pages(&bytes),
        Err(error) => Reply::Failed {
            why: format!("cannot be read: {error}"),
            what_to_do: "it changed meanwhile; try again".to_string(),
        },
    };
    let Ok(json) = serde_json::to_vec(&reply) else {
        return 1;
    };
    match std::io::stdout().write_all(&[b"\n", json.as_slice()].concat()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[cfg(unix)]
fn limit_resources() {
    use rlimit::Resource;
    let variable = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let limits = [
        (Resource::AS, variable(MEMORY)),
        // The parent's clock may have stopped with the parent.
        (Resource::CPU, variable(SECONDS)),
        (Resource::CORE, Some(0)),
    ];
    for (resource, limit) in limits {
        if let Some(limit) = limit {
            // A stricter limit may be in force already.
            let _ = rlimit::setrlimit(resource, limit, limit);
        }
    }
}

#[cfg(not(unix))]
fn limit_resources() {}

#[cfg(test)]
#[path = "pdf_tests.rs"]
mod tests;
