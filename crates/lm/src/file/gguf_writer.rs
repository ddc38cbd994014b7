//! GGUF files written anew, with other tensors.

use std::io::{self, Write};

use keyfold_kernels::blocks::BlockType;

use super::gguf::Gguf;
use super::shared::PREFIX;
use super::tensor::Tensor;

/// The number of a block type in the file.
pub(crate) fn type_number(kind: BlockType) -> u32 {
    match kind {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q5_0 => 6,
        BlockType::Q5_1 => 7,
        BlockType::Q8_0 => 8,
        BlockType::Q4K => 12,
        BlockType::Q5K => 13,
        BlockType::Q6K => 14,
        BlockType::Bf16 => 30,
    }
}

impl Gguf {
    /// Writes the file with its metadata as they are, without the tensors `dropped` and those that
    /// layers share, and with `added` ones.
    pub(crate) fn write_changed(
        &self,
        dropped: &[String],
        added: &[(String, Tensor)],
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut tensors: Vec<(&str, &Tensor)> = self
            .tensors
            .iter()
            .filter(|(name, _)| !dropped.contains(name) && !name.starts_with(PREFIX))
            .map(|(name, tensor)| (&**name, tensor))
            .collect();
        tensors.sort_unstable_by_key(|(name, _)| *name);
        tensors.extend(added.iter().map(|(name, tensor)| (&**name, tensor)));
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((self.entries.1 as u64).to_le_bytes());
        head.extend_from_slice(&self.file[self.entries.0.clone()]);
        let mut offset = 0;
        for (name, tensor) in &tensors {
            head.extend((name.len() as u64).to_le_bytes());
            head.extend_from_slice(name.as_bytes());
            head.extend((tensor.shape().len() as u32).to_le_bytes());
            let sizes = tensor.shape().iter().rev();
            sizes.for_each(|size| head.extend((*size as u64).to_le_bytes()));
            head.extend(type_number(tensor.kind()).to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().len().next_multiple_of(self.alignment);
        }
        head.resize(head.len().next_multiple_of(self.alignment), 0);
        out.write_all(&head)?;
        for (_, tensor) in tensors {
            let bytes = tensor.bytes();
            out.write_all(bytes)?;
            out.write_all(&vec![
                0;
                bytes.len().next_multiple_of(self.alignment)
                    - bytes.len()
            ])?;
        }
        Ok(())
    }
}
