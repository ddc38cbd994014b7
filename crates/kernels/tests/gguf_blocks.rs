//! Blocks of GGUF files against the `gguf` package (`parity/gguf_blocks.py`), to the bit.

use keyfold_kernels::blocks::{BlockType, dequantize, quantize};

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }

    fn count(&mut self) -> usize {
        u32::from_le_bytes(*self.take(4).first_chunk().expect("four bytes")) as usize
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        let words = self.take(4 * n).as_chunks().0;
        words.iter().map(|w| f32::from_le_bytes(*w)).collect()
    }
}

#[test]
fn every_kind_agrees_with_the_gguf_package() {
    let mut file = Reader(include_bytes!("fixtures/gguf_blocks.bin"));
    let mut quantized = 0;
    for kind in BlockType::ALL {
        let name = file.take(8);
        assert_eq!(name.split(|&b| b == 0).next(), Some(kind.name().as_bytes()));
        let (blocks, len, size) = (file.count(), file.count(), file.count());
        let known = file.count() == 1;
        assert_eq!((len, size), (kind.block_len(), kind.block_bytes()));
        let bytes = file.take(blocks * size);
        let want = file.numbers(blocks * len);
        let mut got = vec![0.0; blocks * len];
        dequantize(kind, bytes, &mut got);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(
                got.to_bits(),
                want.to_bits(),
                "{}: {got} {want}",
                kind.name()
            );
        }
        if known {
            let values = file.numbers(blocks * len);
            let want = file.take(blocks * size);
            let mut got = vec![0; blocks * size];
            quantize(kind, &values, &mut got);
            assert!(got == want, "quantize {}", kind.name());
            quantized += 1;
        }
    }
    assert!(file.0.is_empty() && quantized == 8);
}
