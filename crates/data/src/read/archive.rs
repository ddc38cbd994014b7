//! Zip archives (DOCX, ODT, EPUB), unpacked within limits.

use std::io::{Cursor, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::error::Problem;
use crate::flow::unpacks_to_more_than;
use crate::{Format, ReadOptions};

/// More members than any document has.
const MAX_MEMBERS: usize = 10_000;
/// A member past this size that is packed more than [`MAX_RATIO`] to one is a bomb.
const MIN_BOMB: u64 = 16 << 20;
const MAX_RATIO: u64 = 250;

pub(super) struct Archive<'f> {
    zip: ZipArchive<Cursor<&'f [u8]>>,
    /// What may still be unpacked.
    left: u64,
    options: &'f ReadOptions,
}

impl<'f> Archive<'f> {
    pub(super) fn open(bytes: &'f [u8], options: &'f ReadOptions) -> Result<Self, Problem> {
        Ok(Self {
            zip: open(bytes)?,
            left: options.max_unpacked_size,
            options,
        })
    }

    pub(super) fn names(&self) -> Vec<String> {
        names(&self.zip)
    }

    /// The bytes of a member; None if there is none of that name.
    pub(super) fn member(&mut self, name: &str) -> Result<Option<Vec<u8>>, Problem> {
        let file = match self.zip.by_name(name) {
            Ok(file) => file,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(damaged(&error)),
        };
        let packed = file.compressed_size().max(1);
        // The size in the archive's directory is only a claim.
        let mut bytes = Vec::new();
        file.take(self.left.saturating_add(1))
            .take(MIN_BOMB.max(packed.saturating_mul(MAX_RATIO)) + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(&ZipError::Io(error)))?;
        let size = bytes.len() as u64;
        if size > self.left {
            return Err(unpacks_to_more_than(self.options));
        }
        if size > MIN_BOMB && size / packed > MAX_RATIO {
            return Err(Problem::fail(
                format!("is a zip bomb: {name} unpacks to over {MAX_RATIO} times its size"),
                "do not open it",
            ));
        }
        self.left -= size;
        Ok(Some(bytes))
    }

    /// The same for a member that must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<Vec<u8>, Problem> {
        self.member(name)?.ok_or_else(|| {
            Problem::fail(
                format!("has no {name} inside"),
                "it may be damaged; save it again",
            )
        })
    }
}

fn open(bytes: &[u8]) -> Result<ZipArchive<Cursor<&[u8]>>, Problem> {
    if claimed_members(bytes) > MAX_MEMBERS {
        return Err(Problem::fail(
            format!("is a zip archive of more than {MAX_MEMBERS} members"),
            "unpack it to have its files read",
        ));
    }
    ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))
}

/// The number of members by the record at the end of the archive, which is read
/// before memory is taken for them. Archives of 65,535 members and more say so
/// elsewhere and have this number here.
fn claimed_members(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(22 + 65_535)..];
    let record = tail.windows(12).rposition(|w| w.starts_with(b"PK\x05\x06"));
    record.map_or(0, |at| {
        usize::from(u16::from_le_bytes([tail[at + 10], tail[at + 11]]))
    })
}

fn names(zip: &ZipArchive<Cursor<&[u8]>>) -> Vec<String> {
    zip.file_names_raw()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn damaged(error: &ZipError) -> Problem {
    match error {
        ZipError::UnsupportedArchive(why) => Problem::fail(
            format!("cannot be unpacked: {why}"),
            "save it without a password",
        ),
        error => Problem::fail(
            format!("is a damaged zip archive: {error}"),
            "it may be cut off; copy or download it again",
        ),
    }
}

/// What a zip archive holds.
pub(crate) fn detect(bytes: &[u8]) -> Result<Format, Problem> {
    let mut zip = open(bytes)?;
    let mut kind = Vec::new();
    if let Ok(mimetype) = zip.by_name("mimetype") {
        let read = mimetype.take(100).read_to_end(&mut kind);
        read.map_err(|error| damaged(&ZipError::Io(error)))?;
    }
    if kind.starts_with(b"application/epub") {
        return Ok(Format::Epub);
    }
    if kind.starts_with(b"application/vnd.oasis.opendocument.text") {
        return Ok(Format::Odt);
    }
    let names = names(&zip);
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    if has("word/document") {
        return Ok(Format::Docx);
    }
    if has("META-INF/container.xml") && names.iter().any(|name| name.ends_with(".opf")) {
        return Ok(Format::Epub);
    }
    let (kind, what_to_do) = if has("xl/") || kind.ends_with(b"spreadsheet") {
        ("a spreadsheet", "export it as CSV")
    } else if has("ppt/") || kind.ends_with(b"presentation") {
        ("a set of slides", "export it as PDF")
    } else {
        ("a zip archive", "unpack it to have its files read")
    };
    Err(Problem::skip(format!("is {kind}"), what_to_do))
}
