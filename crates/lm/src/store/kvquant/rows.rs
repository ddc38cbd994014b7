//! What the engine does with the store.

use std::ops::Range;
use std::sync::Arc;

use super::head::{Head, Packed};
use super::quantizer::Outlier;
use super::{KvQuantStore, Work};
use crate::roles::{KvStore, Needs, RowSet};

/// The outliers of the channels `span`, counted from its first.
fn of_head(all: &[Outlier], span: Range<usize>) -> impl Iterator<Item = Outlier> + '_ {
    let first = span.start;
    let own = all.iter().filter(move |o| span.contains(&o.channel));
    own.map(move |o| Outlier {
        channel: o.channel - first,
        residual: o.residual,
    })
}

impl KvStore for KvQuantStore {
    fn needs(&self) -> Needs {
        Needs {
            keys_before_rope: self.before_rope,
            ..Needs::default()
        }
    }

    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]) {
        let (dim, kv_heads, bits) = (self.dims.head_dim, self.dims.kv_heads, self.bits());
        let width = kv_heads * dim;
        if let Some(&last) = positions.last() {
            self.rotary.reach(last);
        }
        let layers = Arc::clone(&self.layers);
        let of_layer = &layers[layer];
        let mut work = std::mem::take(&mut self.work);
        work.key_codes.resize(width, 0);
        work.value_codes.resize(width, 0);
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (&position, (keys, values)) in positions.iter().zip(rows) {
            let sink = (position as usize) < self.config.first_few_fp16
                && (0..kv_heads).all(|h| self.head(layer, h).packed() == 0);
            if sink {
                for kv_head in 0..kv_heads {
                    let span = kv_head * dim..(kv_head + 1) * dim;
                    let head = self.head_mut(layer, kv_head);
                    head.push_sink(position, &keys[span.clone()], &values[span]);
                }
                continue;
            }
            let w = &mut work;
            let (codes, outliers) = (&mut w.key_codes, &mut w.key_outliers);
            of_layer
                .keys
                .encode(0, keys, &mut w.scaled, codes, outliers);
            let (codes, outliers) = (&mut w.value_codes, &mut w.value_outliers);
            let scale = of_layer
                .values
                .encode(values, &mut w.scaled, codes, outliers);
            for kv_head in 0..kv_heads {
                let span = kv_head * dim..(kv_head + 1) * dim;
                self.head_mut(layer, kv_head).push(
                    position,
                    bits,
                    &work.key_codes[span.clone()],
                    &work.value_codes[span.clone()],
                    scale,
                    of_head(&work.key_outliers, span.clone()),
                    of_head(&work.value_outliers, span),
                );
            }
        }
        self.work = work;
    }

    fn len(&self, layer: usize, kv_head: usize) -> usize {
        self.head(layer, kv_head).positions.len()
    }

    fn positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        &self.head(layer, kv_head).positions
    }

    fn dot(&self, layer: usize, kv_head: usize, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        self.view(layer, kv_head).dot(queries, rows, out);
    }

    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        self.view(layer, kv_head).mix(weights, rows, out);
    }

    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        self.view(layer, kv_head).read(rows, keys, values);
    }

    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        self.head_mut(layer, kv_head)
            .rebuild(keep, bits, dim, |_| None);
    }

    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        let layers = Arc::clone(&self.layers);
        let of_layer = &layers[layer];
        let mut head = std::mem::take(self.head_mut(layer, kv_head));
        let turns = self.rotary.turns(layer);
        let mut key = Vec::new();
        let mut work = Work {
            key_codes: vec![0; dim],
            value_codes: vec![0; dim],
            ..Work::default()
        };
        let mut new: Vec<Option<Packed>> = Vec::new();
        new.resize_with(head.positions.len(), || None);
        for (i, &row) in rows.iter().enumerate() {
            let row = row as usize;
            key.clear();
            key.extend_from_slice(&keys[i * dim..(i + 1) * dim]);
            let value = &values[i * dim..(i + 1) * dim];
            if turns {
                self.rotary.undo(head.positions[row], &mut key);
            }
            if row < head.sinks {
                let half = |to: &mut half::f16, x: &f32| *to = half::f16::from_f32(*x);
                let to = head.sink_keys[row * dim..][..dim].iter_mut();
                to.zip(&key).for_each(|(to, x)| half(to, x));
                let to = head.sink_values[row * dim..][..dim].iter_mut();
                to.zip(value).for_each(|(to, x)| half(to, x));
                continue;
            }
            let w = &mut work;
            let (codes, outliers) = (&mut w.key_codes, &mut w.key_outliers);
            let first = kv_head * dim;
            of_layer
                .keys
                .encode(first, &key, &mut w.scaled, codes, outliers);
            let (codes, outliers) = (&mut w.value_codes, &mut w.value_outliers);
            let scale = of_layer
                .values
                .encode(value, &mut w.scaled, codes, outliers);
            new[row] = Some(Packed {
                keys: work.key_codes.clone(),
                values: work.value_codes.clone(),
                scale,
                key_outliers: work.key_outliers.clone(),
                value_outliers: work.value_outliers.clone(),
            });
        }
        let all: Vec<u32> = (0..head.positions.len() as u32).collect();
        head.rebuild(&all, bits, dim, |row| new[row].take());
        *self.head_mut(layer, kv_head) = head;
    }

    fn bias(&self, layer: usize, kv_head: usize) -> &[f32] {
        &self.head(layer, kv_head).bias
    }

    fn set_bias(&mut self, layer: usize, kv_head: usize, bias: Vec<f32>) {
        self.head_mut(layer, kv_head).bias = bias;
    }

    fn truncate(&mut self, position: u32) {
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        for head in &mut self.heads {
            let rows = head.positions.partition_point(|&p| p < position);
            head.truncate(rows, bits, dim);
        }
    }

    fn bytes(&self) -> u64 {
        self.heads.iter().map(Head::bytes).sum()
    }

    fn row_bytes(&self) -> (u64, u64) {
        let codes = self.dims.head_dim as f64 * self.bits() as f64 / 8.0;
        let per_row = |of: fn(&Head) -> u64| {
            let rows: usize = self.heads.iter().map(Head::packed).sum();
            self.heads.iter().map(of).sum::<u64>() as f64 / rows.max(1) as f64
        };
        let keys = codes + per_row(|h| h.key_outliers.bytes());
        let values = codes + per_row(|h| h.value_outliers.bytes()) + 4.0;
        (keys.round() as u64, values.round() as u64)
    }

    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn tag(&self) -> u32 {
        self.tag
    }

    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>) {
        let head = self.head(layer, kv_head);
        (head.positions.clone(), head.save())
    }

    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool {
        if !positions.is_sorted_by(|a, b| a < b) {
            return false;
        }
        let (bits, dim) = (self.bits(), self.dims.head_dim);
        let Some(head) = Head::restore(positions, bytes, bits, dim) else {
            return false;
        };
        if let Some(&last) = positions.last() {
            self.rotary.reach(last);
        }
        *self.head_mut(layer, kv_head) = head;
        true
    }
}
