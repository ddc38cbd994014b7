//! Reading rows: products, sums, and dense rows for prompts.

use std::cell::RefCell;
use std::ops::Range;

use keyfold_kernels::attention::Rotation;
use keyfold_kernels::axpy;
use keyfold_kernels::nuq::{
    Angles, GRANULE, KeyCodes, ValueCodes, dot_beside, dot_keys, mix_beside, mix_values, read_keys,
    read_values, widen_scales,
};

use super::head::Head;
use super::quantizer::Scale;
use super::rotary::Rotary;
use crate::roles::RowSet;

/// Rows whose weights are scaled together.
const NEAR: usize = 256;

/// Rows of one layer and KV head, to be read.
pub(super) struct View<'a> {
    pub(super) dim: usize,
    pub(super) turns: bool,
    pub(super) rotary: &'a Rotary,
    pub(super) keys: KeyCodes<'a>,
    pub(super) values: ValueCodes<'a>,
    pub(super) head: &'a Head,
}

/// Queries that were turned back, and where to.
#[derive(Default)]
struct Turned {
    queries: Vec<f32>,
    block: Option<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Buffers of products and sums.
#[derive(Default)]
struct Scratch {
    turned: Turned,
    scores: Vec<f32>,
    /// A first row, widened.
    row: Vec<f32>,
    /// Weights times the scales of their rows.
    scaled: Vec<f32>,
    /// Weights of some rows.
    near: Vec<f32>,
    /// Some rows of a list, counted from the first row of codes, and their scales.
    list: Vec<u32>,
    of_list: Vec<Scale>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How a number of one channel becomes numbers of two.
struct Turn {
    /// The other channel.
    partner: usize,
    cos: f32,
    /// With the sign of what goes to the other channel.
    sin: f32,
}

impl View<'_> {
    /// The run of granules from `granule` on, before `end`, that one block of angles reaches;
    /// the block, and the column of the first row.
    fn run(&self, granule: usize, end: usize) -> (usize, Option<(u32, usize)>) {
        if !self.turns {
            return (end.min(granule + 8), None);
        }
        let Some(start) = self.head.consecutive(granule) else {
            return (granule + 1, None);
        };
        let (block, column) = Rotary::place(start);
        let mut last = granule + 1;
        let mut next = start + GRANULE as u32;
        while last < end
            && Rotary::place(next).0 == block
            && self.head.consecutive(last) == Some(next)
        {
            last += 1;
            next += GRANULE as u32;
        }
        (last, Some((block, column)))
    }

    /// Calls `read(angles, column, queries)` with the queries and angles that fit a run.
    fn with_angles<R>(
        &self,
        granule: usize,
        place: Option<(u32, usize)>,
        queries: &[f32],
        turned: &mut Turned,
        read: impl FnOnce(Angles, usize, &[f32]) -> R,
    ) -> R {
        let Some((block, column)) = place else {
            if !self.turns {
                return read(Rotary::still(), 0, queries);
            }
            let first = self.head.sinks + granule * GRANULE;
            let end = self.head.positions.len().min(first + GRANULE);
            let positions = &self.head.positions[first..end];
            self.rotary
                .of_each(positions, &mut turned.cos, &mut turned.sin);
            let angles = Angles {
                cos: &turned.cos,
                sin: &turned.sin,
                stride: GRANULE,
            };
            return read(angles, 0, queries);
        };
        if turned.block != Some(block) {
            turned.queries.clear();
            turned.queries.extend_from_slice(queries);
            self.rotary.turn_back(block, &mut turned.queries, self.dim);
            turned.block = Some(block);
        }
        read(self.rotary.rests(), column, &turned.queries)
    }

    /// Products of the queries with all rows of the granules `granules` (counted from the
    /// first row of codes), `[g, granules * 8]`.
    fn scores(
        &self,
        granules: Range<usize>,
        place: Option<(u32, usize)>,
        queries: &[f32],
        turned: &mut Turned,
        out: &mut Vec<f32>,
    ) {
        let (rows, g) = (granules.len() * GRANULE, queries.len() / self.dim);
        out.clear();
        out.resize(g * rows, 0.0);
        self.with_angles(
            granules.start,
            place,
            queries,
            turned,
            |angles, column, queries| {
                dot_keys(self.keys, angles, granules.clone(), column, queries, out);
                let beside = self.head.key_outliers.view();
                let (dim, rotation) = (self.dim, self.keys.rotation);
                dot_beside(
                    beside, granules, dim, rotation, angles, column, queries, out,
                );
            },
        );
    }

    /// How a number of a channel is turned by the angles of a column.
    #[inline]
    fn turn(&self, channel: usize, pairs: usize, angles: Angles, column: usize) -> Option<Turn> {
        let (pair, partner, sign) = self.partner(channel, pairs)?;
        let at = pair * angles.stride + column;
        Some(Turn {
            partner,
            cos: angles.cos[at],
            sin: sign * angles.sin[at],
        })
    }

    /// The pair of a channel, the other channel of it, and the sign with which turning brings
    /// a number there.
    #[inline]
    fn partner(&self, channel: usize, pairs: usize) -> Option<(usize, usize, f32)> {
        if channel >= 2 * pairs {
            return None;
        }
        Some(match self.keys.rotation {
            Rotation::Half if channel < pairs => (channel, channel + pairs, 1.0),
            Rotation::Half => (channel - pairs, channel - pairs, -1.0),
            Rotation::Interleaved => {
                let sign = if channel.is_multiple_of(2) { 1.0 } else { -1.0 };
                (channel / 2, channel ^ 1, sign)
            }
        })
    }

    /// A key that is kept in 16 bits, turned.
    fn sink_key(&self, row: usize, key: &mut Vec<f32>) {
        let half = &self.head.sink_keys[row * self.dim..][..self.dim];
        key.clear();
        key.extend(half.iter().map(|x| x.to_f32()));
        if self.turns {
            self.rotary.turn(self.head.positions[row], key);
        }
    }

    pub(super) fn dot(&self, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        SCRATCH.with_borrow_mut(|scratch| self.dot_with(scratch, queries, rows, out));
    }

    fn dot_with(&self, scratch: &mut Scratch, queries: &[f32], rows: RowSet, out: &mut [f32]) {
        let Scratch {
            turned,
            scores,
            row: key,
            ..
        } = scratch;
        // What lies there is of other queries.
        turned.block = None;
        let n = rows.len();
        let sinks = self.head.sinks;
        // The i-th row of the set; ascending.
        let row_at = |i: usize| match rows {
            RowSet::Range(from, _) => from + i,
            RowSet::List(list) => list[i] as usize,
        };
        let mut i = 0;
        while i < n && row_at(i) < sinks {
            self.sink_key(row_at(i), key);
            for (q, query) in queries.chunks_exact(self.dim).enumerate() {
                out[q * n + i] = keyfold_kernels::dot(query, key);
            }
            i += 1;
        }
        let end = match rows {
            RowSet::Range(_, to) => to.saturating_sub(sinks).div_ceil(GRANULE),
            // Granules of a list are taken one by one.
            RowSet::List(_) => 0,
        };
        while i < n {
            let first = row_at(i) - sinks;
            let granule = first / GRANULE;
            let (last, place) = self.run(granule, end.max(granule + 1));
            self.scores(granule..last, place, queries, turned, scores);
            let width = (last - granule) * GRANULE;
            // Rows of the set that the run has.
            let count = match rows {
                RowSet::Range(..) => (n - i).min(last * GRANULE - first),
                RowSet::List(list) => list[i..]
                    .iter()
                    .take_while(|&&row| row as usize - sinks < last * GRANULE)
                    .count(),
            };
            for (q, scores) in scores.chunks_exact(width).enumerate() {
                let to = &mut out[q * n + i..][..count];
                match rows {
                    RowSet::Range(..) => {
                        to.copy_from_slice(&scores[first - granule * GRANULE..][..count]);
                    }
                    RowSet::List(list) => {
                        for (to, &row) in to.iter_mut().zip(&list[i..]) {
                            *to = scores[row as usize - sinks - granule * GRANULE];
                        }
                    }
                }
            }
            i += count;
        }
    }

    pub(super) fn mix(&self, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        SCRATCH.with_borrow_mut(|scratch| self.mix_with(scratch, weights, rows, out));
    }

    fn mix_with(&self, scratch: &mut Scratch, weights: &[f32], rows: RowSet, out: &mut [f32]) {
        let Scratch {
            row: value,
            scaled,
            near,
            list,
            of_list,
            ..
        } = scratch;
        let n = rows.len();
        let (sinks, dim) = (self.head.sinks, self.dim);
        let row_at = |i: usize| match rows {
            RowSet::Range(from, _) => from + i,
            RowSet::List(list) => list[i] as usize,
        };
        let mut i = 0;
        while i < n && row_at(i) < sinks {
            let half = &self.head.sink_values[row_at(i) * dim..][..dim];
            value.clear();
            value.extend(half.iter().map(|x| x.to_f32()));
            for (q, out) in out.chunks_exact_mut(dim).enumerate() {
                axpy(out, weights[q * n + i], value);
            }
            i += 1;
        }
        let g = out.len() / dim;
        scaled.resize(g * NEAR.min(n), 0.0);
        let (mut scales, mut zeros) = ([0.0; NEAR], [0.0; NEAR]);
        while i < n {
            let count = NEAR.min(n - i);
            let scaled = &mut scaled[..g * count];
            let set = match rows {
                RowSet::Range(from, _) => RowSet::Range(from + i - sinks, from + i + count - sinks),
                RowSet::List(all) => {
                    list.clear();
                    list.extend(all[i..i + count].iter().map(|&r| r - sinks as u32));
                    RowSet::List(list)
                }
            };
            let (scales, zeros) = (&mut scales[..count], &mut zeros[..count]);
            match set {
                RowSet::Range(from, to) => widen_scales(&self.head.scales[from..to], scales, zeros),
                RowSet::List(list) => {
                    of_list.clear();
                    of_list.extend(list.iter().map(|&row| self.head.scales[row as usize]));
                    widen_scales(of_list, scales, zeros);
                }
            }
            for (q, scaled) in scaled.chunks_exact_mut(count).enumerate() {
                let weights = &weights[q * n + i..][..count];
                for (to, (weight, scale)) in scaled.iter_mut().zip(weights.iter().zip(&*scales)) {
                    *to = weight * scale;
                }
                let zero = keyfold_kernels::dot(weights, zeros);
                let out = &mut out[q * dim..][..dim];
                out.iter_mut().for_each(|x| *x += zero);
            }
            mix_values(self.values, scaled, set, out);
            let beside = &self.head.value_outliers;
            match set {
                RowSet::Range(from, to) => {
                    near.clear();
                    let of_query = |q: usize| &weights[q * n + i..][..count];
                    (0..g).for_each(|q| near.extend_from_slice(of_query(q)));
                    mix_beside(beside.view(), dim, near, (from, to), out);
                }
                RowSet::List(list) => {
                    for (at, &row) in list.iter().enumerate() {
                        for entry in beside.of_row(row as usize) {
                            let (channel, residual) = (entry.channel(), entry.residual());
                            for q in 0..g {
                                out[q * dim + channel] += weights[q * n + i + at] * residual;
                            }
                        }
                    }
                }
            }
            i += count;
        }
    }

    pub(super) fn read(&self, rows: Range<usize>, keys: &mut [f32], values: &mut [f32]) {
        let (sinks, dim) = (self.head.sinks, self.dim);
        let mut turned = Turned::default();
        let mut key = Vec::new();
        let mut granule_keys = vec![0.0; GRANULE * dim];
        for row in rows.start..rows.end.min(sinks) {
            self.sink_key(row, &mut key);
            let to = (row - rows.start) * dim..(row - rows.start + 1) * dim;
            keys[to.clone()].copy_from_slice(&key);
            let half = &self.head.sink_values[row * dim..][..dim];
            let to = values[to].iter_mut();
            to.zip(half).for_each(|(to, x)| *to = x.to_f32());
        }
        let first = rows.start.max(sinks);
        if first >= rows.end {
            return;
        }
        let packed = first - sinks..rows.end - sinks;
        for granule in packed.start / GRANULE..packed.end.div_ceil(GRANULE) {
            self.granule_keys(granule, &mut turned, &mut granule_keys);
            for (r, from) in granule_keys.chunks_exact(dim).enumerate() {
                let row = granule * GRANULE + r;
                if packed.contains(&row) {
                    keys[(row + sinks - rows.start) * dim..][..dim].copy_from_slice(from);
                }
            }
        }
        let scales: Vec<[f32; 2]> = self.head.scales[packed.clone()]
            .iter()
            .map(|s| s.map(half::f16::to_f32))
            .collect();
        let values = &mut values[(first - rows.start) * dim..];
        read_values(self.values, packed.start, &scales, values);
        for (i, row) in packed.enumerate() {
            for entry in self.head.value_outliers.of_row(row) {
                values[i * dim + entry.channel()] += entry.residual();
            }
        }
    }

    /// The eight keys of a granule, turned.
    fn granule_keys(&self, granule: usize, turned: &mut Turned, out: &mut [f32]) {
        let dim = self.dim;
        let (_, place) = self.run(granule, granule + 1);
        let none: &[f32] = &[];
        // Keys are turned by the whole angle: a block's first position too.
        self.with_angles(granule, place, none, turned, |angles, column, _| {
            read_keys(self.keys, angles, granule, column, out);
            for entry in self.head.key_outliers.of_granule(granule) {
                let (channel, residual) = (entry.channel(), entry.residual());
                let row = &mut out[entry.row() * dim..][..dim];
                match self.turn(channel, angles.pairs(), angles, column + entry.row()) {
                    None => row[channel] += residual,
                    Some(turn) => {
                        row[channel] += residual * turn.cos;
                        row[turn.partner] += residual * turn.sin;
                    }
                }
            }
        });
        if let Some((block, _)) = place {
            self.rotary.turn_on(block, out, dim);
        }
    }
}
