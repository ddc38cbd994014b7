//! The state after a prompt, in a file: a long prefix is read once.
//!
//! ```text
//! magic "KFPROMPT" | version u32 | model u64 | store u32 | tokens u32 | layers u32 | kv heads u32
//! tokens, u32 each
//! for each layer and KV head: rows u32 | bytes u64 | positions, u32 each | bytes
//! CRC-32 of everything before
//! ```
//!
//! All little-endian. A file is bound to the weights it was made with and to the type of
//! the cache ([`KvStore::tag`](crate::roles::KvStore::tag)). Logits are not kept: the last token is read again.

use crate::LmError;
use crate::session::Session;
use keyfold_core::Progress;
use std::path::Path;

const MAGIC: &[u8; 8] = b"KFPROMPT";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 4 * 4;

/// Saves the text that a session has read.
///
/// # Errors
/// When a method changes the rows (evictors, act-qkv), or the file cannot be written.
pub fn save(session: &mut Session, path: &Path) -> Result<(), LmError> {
    let model = session.decoder().fingerprint();
    let dims = session.decoder().config().dims;
    let (store, tokens) = session.saved_parts().ok_or_else(more_than_rows)?;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&model.to_le_bytes());
    let sizes = [tokens.len(), dims.layers, dims.kv_heads].map(|n| n as u32);
    for n in [store.tag()].iter().chain(&sizes) {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    tokens
        .iter()
        .for_each(|t| bytes.extend_from_slice(&t.to_le_bytes()));
    for layer in 0..dims.layers {
        for kv_head in 0..dims.kv_heads {
            let (positions, rows) = store.save(layer, kv_head);
            bytes.extend_from_slice(&(positions.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
            positions
                .iter()
                .for_each(|p| bytes.extend_from_slice(&p.to_le_bytes()));
            bytes.extend_from_slice(&rows);
        }
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    keyfold_core::atomic::write(path, &bytes).map_err(|source| LmError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads `prompt`, of which the file may hold a beginning. Returns how many tokens did not
/// have to be read again.
///
/// # Errors
/// When the file is damaged or belongs to another model or another type of cache, and as
/// [`Session::prefill`].
pub fn prefill(
    session: &mut Session,
    path: &Path,
    prompt: &[u32],
    progress: &dyn Progress,
) -> Result<usize, LmError> {
    restore(session, path)?;
    let held = session.tokens();
    let same = held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    // At least one token is read: it gives the logits.
    let same = same.min(prompt.len().saturating_sub(1));
    session.truncate(same)?;
    session.prefill(&prompt[same..], progress)?;
    Ok(same)
}

/// Puts the text of a file into an empty session.
fn restore(session: &mut Session, path: &Path) -> Result<(), LmError> {
    let bytes = std::fs::read(path).map_err(|source| LmError::Io {
        path: path.to_owned(),
        source,
    })?;
    let bad = |what: &str| LmError::Invalid {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let damaged = || bad("the saved prompt is damaged; delete it and read the prompt again");
    if bytes.len() < HEADER + 4 || &bytes[..8] != MAGIC {
        return Err(bad("this is no saved prompt"));
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    let mut reader = Reader { rest: &body[8..] };
    if reader.u32() != Some(VERSION) {
        return Err(bad(
            "the saved prompt is of another version of keyfold; read the prompt again",
        ));
    }
    if crc32fast::hash(body).to_le_bytes() != crc {
        return Err(damaged());
    }
    let dims = session.decoder().config().dims;
    if reader.u64() != Some(session.decoder().fingerprint()) {
        return Err(bad(
            "the saved prompt was made with another model; read the prompt again",
        ));
    }
    let tag = reader.u32();
    let count = reader.u32().ok_or_else(damaged)? as usize;
    if (reader.u32(), reader.u32()) != (Some(dims.layers as u32), Some(dims.kv_heads as u32)) {
        return Err(damaged());
    }
    let read = reader.u32s(count).ok_or_else(damaged)?;
    if read.iter().any(|t| *t as usize >= dims.vocab) {
        return Err(damaged());
    }
    let (store, tokens) = session.saved_parts().ok_or_else(more_than_rows)?;
    if tag != Some(store.tag()) {
        return Err(bad(
            "the saved prompt was made with another --cache; name that one",
        ));
    }
    for layer in 0..dims.layers {
        for kv_head in 0..dims.kv_heads {
            let rows = reader.u32().ok_or_else(damaged)? as usize;
            let len = reader.u64().ok_or_else(damaged)? as usize;
            let positions = reader.u32s(rows).ok_or_else(damaged)?;
            let bytes = reader.take(len).ok_or_else(damaged)?;
            if positions.iter().any(|p| *p as usize >= count) {
                return Err(damaged());
            }
            if !store.restore(layer, kv_head, &positions, bytes) {
                return Err(damaged());
            }
        }
    }
    *tokens = read;
    session.rows_replaced();
    Ok(())
}

fn more_than_rows() -> LmError {
    let what = "a prompt can be saved without --evict and --select act-qkv only: they do not keep its rows";
    LmError::Input { what: what.into() }
}

/// Takes numbers from the front of bytes.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn u32s(&mut self, n: usize) -> Option<Vec<u32>> {
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(
            bytes
                .chunks_exact(4)
                .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect(),
        )
    }
}
