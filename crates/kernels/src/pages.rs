//! Large runs of bytes that are read again and again.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Bytes of a large page, where the system has them.
const LARGE: usize = 2 << 20;

/// Zeroed bytes on large pages where the system gives them: fewer pages are to be looked up, which
/// takes longer than a read where they are many.
#[derive(Debug, Default)]
pub struct Pages {
    // Nothing can be mapped of no bytes.
    map: Option<MmapMut>,
    len: usize,
}

impl Pages {
    /// `len` bytes, all 0. They take memory once they are touched.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let size = match len < LARGE {
            true => len,
            // Whole pages are laid where large ones can be.
            false => len.next_multiple_of(LARGE),
        };
        let Ok(map) = MmapMut::map_anon(size) else {
            handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>()));
        };
        #[cfg(target_os = "linux")]
        if size >= LARGE {
            // A wish; small pages do too.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Self {
            map: Some(map),
            len,
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().map_or(&[], |map| &map[..self.len])
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.map
            .as_deref_mut()
            .map_or(&mut [], |map| &mut map[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_and_keep_what_is_written() {
        for len in [0, 1, 4097, LARGE - 1, LARGE, 3 * LARGE + 5] {
            let mut pages = Pages::zeroed(len);
            assert_eq!(pages.len(), len);
            assert!(pages.iter().all(|&byte| byte == 0));
            for (i, byte) in pages.iter_mut().enumerate() {
                *byte = (i % 251) as u8;
            }
            assert!(pages.iter().enumerate().all(|(i, &b)| b == (i % 251) as u8));
        }
    }
}
