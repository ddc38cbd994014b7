//! The state after a prompt, in a file: a long beginning is read once.
//!
//! ```text
//! magic "KFMAMBA\0" | version u32 | model u64 | tokens u32 | logits u32 | layers u32
//! tokens, u32 each | logits, f32 each
//! for each layer: numbers u32, f32 each (convolution) | numbers u32, f32 each (scan)
//! CRC-32 of everything before
//! ```
//!
//! All little-endian. A file is bound to the weights it was made with. A state cannot go
//! back: it helps a prompt that goes on where it was saved, and no other.

use std::path::Path;

use keyfold_core::Progress;

use super::model::{LayerState, MambaState};
use super::session::MambaSession;
use crate::LmError;
use crate::error::{invalid, io};
use crate::reading::Reading;

const MAGIC: &[u8; 8] = b"KFMAMBA\0";
const VERSION: u32 = 1;

/// Saves the text that a session has read.
///
/// # Errors
/// When the file cannot be written.
pub fn save(session: &MambaSession, path: &Path) -> Result<(), LmError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&session.lm().fingerprint().to_le_bytes());
    let layers = &session.state().layers;
    let count = |n: usize, bytes: &mut Vec<u8>| bytes.extend_from_slice(&(n as u32).to_le_bytes());
    count(session.tokens().len(), &mut bytes);
    count(session.logits().len(), &mut bytes);
    count(layers.len(), &mut bytes);
    let tokens = session.tokens().iter().flat_map(|t| t.to_le_bytes());
    bytes.extend(tokens);
    let floats =
        |x: &[f32], bytes: &mut Vec<u8>| bytes.extend(x.iter().flat_map(|x| x.to_le_bytes()));
    floats(session.logits(), &mut bytes);
    for layer in layers {
        for part in [&layer.conv, &layer.ssm] {
            count(part.len(), &mut bytes);
            floats(part, &mut bytes);
        }
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    keyfold_core::atomic::write(path, &bytes).map_err(|source| LmError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads `prompt` with an empty session, from where the file's text ends if the prompt begins
/// with it. Returns how many tokens did not have to be read.
///
/// # Errors
/// When the file is damaged or belongs to another model, and as [`Reading::prefill`].
pub fn prefill(
    session: &mut MambaSession,
    path: &Path,
    prompt: &[u32],
    progress: &dyn Progress,
) -> Result<usize, LmError> {
    let (tokens, logits, state) = load(session, path)?;
    let held = tokens.len();
    if !prompt.starts_with(&tokens) {
        session.prefill(prompt, progress)?;
        return Ok(0);
    }
    session.restore(tokens, state, logits);
    if held < prompt.len() {
        session.prefill(&prompt[held..], progress)?;
    }
    Ok(held)
}

type Saved = (Vec<u32>, Vec<f32>, MambaState);

fn load(session: &MambaSession, path: &Path) -> Result<Saved, LmError> {
    let bytes = std::fs::read(path).map_err(|e| io(path, e))?;
    let damaged = || {
        invalid(
            path,
            "the saved state is damaged; delete it and read the prompt again",
        )
    };
    if bytes.len() < MAGIC.len() + 4 || &bytes[..8] != MAGIC {
        return Err(invalid(path, "this is no saved state of a Mamba model"));
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    let mut reader = Reader(&body[8..]);
    if reader.u32() != Some(VERSION) {
        let what = "the saved state is of another version of keyfold; read the prompt again";
        return Err(invalid(path, what));
    }
    if crc32fast::hash(body).to_le_bytes() != crc {
        return Err(damaged());
    }
    if reader.u64() != Some(session.lm().fingerprint()) {
        let what = "the saved state was made with another model; read the prompt again";
        return Err(invalid(path, what));
    }
    let mut parts = || -> Option<Saved> {
        let (tokens, logits) = (reader.u32()? as usize, reader.u32()? as usize);
        let layers = reader.u32()? as usize;
        let tokens: Vec<u32> = reader.words(tokens)?.map(u32::from_le_bytes).collect();
        let logits = reader.floats(logits)?;
        let mut state = session.lm().empty_state();
        let known = tokens.iter().all(|&t| (t as usize) < session.vocab());
        let fits = logits.len() == session.vocab() && layers == state.layers.len();
        if tokens.is_empty() || !known || !fits {
            return None;
        }
        for LayerState { conv, ssm } in &mut state.layers {
            for part in [conv, ssm] {
                let count = reader.u32()? as usize;
                let numbers = reader.floats(count)?;
                if numbers.len() != part.len() {
                    return None;
                }
                *part = numbers;
            }
        }
        reader.0.is_empty().then_some((tokens, logits, state))
    };
    parts().ok_or_else(damaged)
}

/// Takes numbers from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn words(&mut self, n: usize) -> Option<impl Iterator<Item = [u8; 4]> + 'a> {
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.as_chunks::<4>().0.iter().copied())
    }

    /// Numbers, which must be finite: a state never loses one that is not.
    fn floats(&mut self, n: usize) -> Option<Vec<f32>> {
        let numbers: Vec<f32> = self.words(n)?.map(f32::from_le_bytes).collect();
        numbers.iter().all(|x| x.is_finite()).then_some(numbers)
    }
}
