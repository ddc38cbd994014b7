//! What a selector notes of every key (labels, page bounds), kept in step with the store.

use crate::roles::{Dims, KvStore};

/// Notes of the keys of one layer and KV head, in the order of the store's rows.
pub(super) trait Notes {
    /// Notes the next row's key.
    fn push(&mut self, key: &[f32]);
    /// Rows that are noted.
    fn len(&self) -> usize;
    /// Forgets the rows from `rows` on.
    fn truncate(&mut self, rows: usize);
    /// Bytes that a scan of all notes reads.
    fn bytes(&self) -> u64;
}

/// Notes of all layers from `first_layer` on.
#[derive(Debug)]
pub(super) struct SideCache<N> {
    dims: Dims,
    first_layer: usize,
    /// `[layers][kv_heads]`.
    layers: Vec<Vec<Followed<N>>>,
}

#[derive(Debug)]
struct Followed<N> {
    notes: N,
    /// Whether rows of the store were dropped, so that a row is not its position.
    moved: bool,
    /// Whether the notes lag behind the store.
    stale: bool,
}

impl<N: Notes> SideCache<N> {
    /// Empty notes; `notes` gives those of every KV head of a layer.
    pub(super) fn new<E>(
        dims: Dims,
        first_layer: usize,
        notes: impl Fn(usize) -> Result<Vec<N>, E>,
    ) -> Result<Self, E> {
        let follow = |notes| Followed {
            notes,
            moved: false,
            stale: false,
        };
        let layers = (first_layer..dims.layers)
            .map(|layer| Ok(notes(layer)?.into_iter().map(follow).collect()))
            .collect::<Result<_, E>>()?;
        Ok(Self {
            dims,
            first_layer,
            layers,
        })
    }

    fn layer(&mut self, layer: usize) -> &mut [Followed<N>] {
        let layer = layer.checked_sub(self.first_layer);
        let heads = layer.and_then(|layer| self.layers.get_mut(layer));
        heads.map_or(&mut [], Vec::as_mut_slice)
    }

    /// Notes of a KV head.
    pub(super) fn of(&self, layer: usize, head: usize) -> &N {
        &self.layers[layer - self.first_layer][head].notes
    }

    /// Bytes that a scan of a layer's notes reads.
    pub(super) fn layer_bytes(&self, layer: usize) -> u64 {
        let heads = &self.layers[layer - self.first_layer];
        heads.iter().map(|head| head.notes.bytes()).sum()
    }

    /// Bytes of all notes.
    pub(super) fn bytes(&self) -> u64 {
        let heads = self.layers.iter().flatten();
        heads.map(|head| head.notes.bytes()).sum()
    }

    /// Notes appended keys, `[n, kv_heads, head_dim]`.
    pub(super) fn on_append(&mut self, layer: usize, keys: &[f32]) {
        let dims = self.dims;
        let heads = self.layer(layer);
        for row in keys.chunks_exact(dims.kv_heads * dims.head_dim) {
            for (head, key) in heads.iter_mut().zip(row.chunks_exact(dims.head_dim)) {
                if !head.stale {
                    head.notes.push(key);
                }
            }
        }
    }

    /// Notes what the store has of a layer and the notes lack.
    pub(super) fn catch_up(&mut self, layer: usize, store: &dyn KvStore) {
        let dim = self.dims.head_dim;
        for (number, head) in self.layer(layer).iter_mut().enumerate() {
            if !head.stale {
                continue;
            }
            let rows = head.notes.len()..store.len(layer, number);
            let mut keys = vec![0.0; rows.len() * dim];
            let mut values = vec![0.0; rows.len() * dim];
            store.read(layer, number, rows, &mut keys, &mut values);
            keys.chunks_exact(dim).for_each(|key| head.notes.push(key));
            head.stale = false;
        }
    }

    /// See [`Selector::changed`](crate::roles::Selector::changed).
    pub(super) fn changed(&mut self, layer: usize, head: usize, from: usize) {
        if let Some(head) = self.layer(layer).get_mut(head) {
            head.notes.truncate(from);
            head.moved = true;
            head.stale = true;
        }
    }

    /// See [`Selector::truncate`](crate::roles::Selector::truncate).
    pub(super) fn truncate(&mut self, position: u32) {
        for head in self.layers.iter_mut().flatten() {
            if head.moved {
                head.notes.truncate(0);
                head.stale = true;
            } else {
                head.notes.truncate(position as usize);
            }
        }
    }
}
