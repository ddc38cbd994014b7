//! A file as `torch.save` writes it: a zip archive without compression, with a pickle that
//! describes a dictionary, and an entry per tensor.
//!
//! A pickle is a program for a stack machine; this writes the few instructions that a
//! dictionary of tensors, texts and numbers needs.

use std::io::{self, Cursor, Write};
use std::path::Path;

use keyfold_core::atomic;
use safetensors::tensor::Dtype;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::tensors::Tensor;

/// What a dictionary holds.
pub(super) enum Item {
    Tensor(Tensor),
    Text(String),
    Int(u32),
    Dict(Vec<(&'static str, Item)>),
}

/// Writes a dictionary, whole or not at all.
pub(super) fn write(path: &Path, items: &[(&'static str, Item)]) -> io::Result<()> {
    let mut pickle = Pickle {
        bytes: vec![0x80, 2],
        storages: Vec::new(),
    };
    pickle.dict(items);
    pickle.bytes.push(b'.');
    // PyTorch maps files into memory, and wants tensors at whole blocks of 64 bytes.
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let aligned = stored.with_alignment(64);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let mut entry = |name: &str, bytes: &[u8], options| -> io::Result<()> {
        archive
            .start_file(format!("archive/{name}"), options)
            .map_err(io::Error::other)?;
        archive.write_all(bytes)
    };
    entry("data.pkl", &pickle.bytes, stored)?;
    entry("byteorder", b"little", stored)?;
    for (key, storage) in pickle.storages.iter().enumerate() {
        entry(&format!("data/{key}"), storage, aligned)?;
    }
    entry("version", b"3\n", stored)?;
    let bytes = archive.finish().map_err(io::Error::other)?.into_inner();
    atomic::write(path, &bytes)
}

struct Pickle<'a> {
    bytes: Vec<u8>,
    storages: Vec<&'a [u8]>,
}

impl<'a> Pickle<'a> {
    fn dict(&mut self, items: &'a [(&'static str, Item)]) {
        self.bytes.extend(b"}(");
        for (name, item) in items {
            self.text(name);
            match item {
                Item::Tensor(tensor) => self.tensor(tensor),
                Item::Text(text) => self.text(text),
                Item::Int(int) => self.int(*int as usize),
                Item::Dict(items) => self.dict(items),
            }
        }
        self.bytes.push(b'u');
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn int(&mut self, int: usize) {
        // As many bytes as it takes, the last of them for the sign.
        let bytes = (int as u64).to_le_bytes();
        let len = 8 - int.leading_zeros() as usize / 8 + 1;
        self.bytes.extend([0x8a, len as u8]);
        self.bytes.extend(bytes.iter().chain(&[0]).take(len));
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(b'c');
        self.bytes.extend(format!("{module}\n{name}\n").as_bytes());
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&mut self, tensor: &'a Tensor) {
        let size = tensor.dtype.bitsize() / 8;
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.text("storage");
        self.global(
            "torch",
            if tensor.dtype == Dtype::I64 {
                "LongStorage"
            } else {
                "FloatStorage"
            },
        );
        let key = self.storages.len().to_string();
        self.text(&key);
        self.text("cpu");
        self.int(tensor.bytes.len() / size);
        self.bytes.extend(b"tQ");
        self.int(0);
        self.tuple(&tensor.shape);
        let strides: Vec<usize> = (0..tensor.shape.len())
            .map(|axis| tensor.shape[axis + 1..].iter().product())
            .collect();
        self.tuple(&strides);
        // No gradient; an empty OrderedDict of hooks.
        self.bytes.push(0x89);
        self.global("collections", "OrderedDict");
        self.bytes.extend(b")RtR");
        self.storages.push(&tensor.bytes);
    }

    fn tuple(&mut self, numbers: &[usize]) {
        self.bytes.push(b'(');
        numbers.iter().for_each(|n| self.int(*n));
        self.bytes.push(b't');
    }
}
