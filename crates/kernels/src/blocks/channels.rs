//! Weights by input channel: the product with a vector of which most numbers are left out.
//!
//! ```text
//! out = sum over j of factors[j] * weights.row(channels[j])
//! ```
//!
//! A matrix `[inputs, outputs]` has the weights of one input next to each other, so that a
//! channel that is left out is not read at all; in the usual layout `[outputs, inputs]` its
//! weights lie in every cache line. A few channels at a time meet a strip of outputs that
//! stays in the first cache: four of `F32`, `F16` and `Bf16`, sixteen of `Q8_0`, `Q4_0`, `Q4_1`
//! and `Q4K`, whose factors are rounded (see [`groups`]). Other kinds are unpacked first. Cost:
//! the bytes of the channels that are named.

mod choose;
mod groups;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use choose::choose_channels;

use super::decode::decode_body;
use super::dot::{Output, products};
use super::{Activations, BlockMatrix, BlockType};
use crate::Team;
use crate::vector::{Eight, simd};
use std::cell::RefCell;
use std::ops::Range;

/// Channels of a matrix `[inputs, outputs]` and what they are multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct ChannelSum<'a> {
    /// A row for each input channel, its blocks along the outputs.
    pub weights: BlockMatrix<'a>,
    /// Which channels.
    pub channels: &'a [u32],
    /// The factor of each.
    pub factors: &'a [f32],
}

/// Outputs that stay in the first cache while channel after channel is added.
const STRIP: usize = 4096;

/// Channels that are added together.
const TOGETHER: usize = 4;

/// Writes the sum of all `terms` to `out`. The result does not depend on the team where the
/// length of `out` is a multiple of 32 (256 for `Q4K`), as it is for packed weights.
///
/// The two halves of the channels are summed up apart: two threads then read whole rows, which
/// memory brings faster than pieces of them.
///
/// # Panics
/// When a matrix has not `out.len()` columns, a channel is not there, or there are not as
/// many factors as channels.
pub fn sum_channels(out: &mut [f32], terms: &[ChannelSum], team: &Team) {
    let grain = terms.iter().map(|term| term.check(out.len()));
    let grain = grain.max().unwrap_or(1);
    in_halves(&mut [out], grain, team, |_, half, first, run| {
        for term in terms {
            term.half(half).add(first, run);
        }
    });
}

/// A map of which the channels of large inputs are read, and a few singular values for the
/// other inputs.
#[derive(Debug, Clone, Copy)]
pub struct SparseProduct<'a> {
    /// The channels that are read.
    pub kept: ChannelSum<'a>,
    /// What stands for the others.
    pub low: Option<LowRank<'a>>,
}

/// `upᵀ (down · rest)`: a map of low rank.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    down: BlockMatrix<'a>,
    up: BlockMatrix<'a>,
    rest: &'a Activations,
}

impl<'a> LowRank<'a> {
    /// `down` is `[rank, inputs]`, `up` `[rank, outputs]`; `rest` has one row.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn new(down: BlockMatrix<'a>, up: BlockMatrix<'a>, rest: &'a mut Activations) -> Self {
        assert!(
            down.rows == up.rows && down.cols == rest.cols() && rest.rows() == 1,
            "LowRank: shapes do not fit"
        );
        if down.kind.is_packed() {
            rest.round();
        }
        Self { down, up, rest }
    }

    /// Adds what one half of the ranks gives to the outputs `first ..`.
    fn add(&self, half: usize, first: usize, out: &mut [f32]) {
        let rank = self.down.rows;
        let range = [0..rank / 2, rank / 2..rank][half].clone();
        // Taken out: a thread may work for another team meanwhile.
        let (mut low, mut channels) = LOW.take();
        low.resize(rank, 0.0);
        channels.clear();
        channels.extend(range.start as u32..range.end as u32);
        let to = Output::new(&mut low, 1, rank);
        // SAFETY: given out once.
        products(&self.down, self.rest, &mut unsafe {
            to.columns(range.clone())
        });
        let term = ChannelSum {
            weights: self.up,
            channels: &channels,
            factors: &low[range],
        };
        term.add(first, out);
        LOW.set((low, channels));
    }
}

/// Products of several maps, each written to its part of `outs`, handed to the team once. Every
/// half of the channels and ranks is summed up apart, as in [`sum_channels`]; whoever has a part of
/// a half makes what it needs of `down · rest` itself, which takes less than another hand-out.
///
/// # Panics
/// As [`sum_channels`], or when there are not as many outputs as products.
pub fn sparse_products(outs: &mut [&mut [f32]], all: &[SparseProduct], team: &Team) {
    assert_eq!(outs.len(), all.len(), "sparse_products: outputs");
    let mut grain = 1;
    for (product, out) in all.iter().zip(&*outs) {
        grain = grain.max(product.kept.check(out.len()));
        if let Some(low) = &product.low {
            assert_eq!(low.up.cols, out.len(), "sparse_products: outputs");
            grain = grain.max(grain_of(low.up.kind));
        }
    }
    in_halves(outs, grain, team, |which, half, first, run| {
        all[which].kept.half(half).add(first, run);
        if let Some(low) = &all[which].low {
            low.add(half, first, run);
        }
    });
}

/// Outputs that a thread has of a kind are whole numbers of so many.
fn grain_of(kind: BlockType) -> usize {
    kind.block_len().max(32)
}

/// Fills `outs` with the sums of two halves, which the team shares: `add(which, half, first, run)`
/// adds a half of what belongs to output `which` to its numbers `first ..`, which begin as 0.
fn in_halves(
    outs: &mut [&mut [f32]],
    mut grain: usize,
    team: &Team,
    add: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
) {
    if outs.iter().any(|out| !out.len().is_multiple_of(grain)) {
        // Rows that are no blocks; a packed kind has whole ones.
        grain = 1;
    }
    let total: usize = outs.iter().map(|out| out.len()).sum();
    // Taken out: the caller's thread works as well.
    let mut halves = HALVES.take();
    halves.resize(2 * total, 0.0);
    let shapes = &*outs;
    team.split(&mut halves, grain, |mut at, mut run| {
        run.fill(0.0);
        // One half of all outputs lies before the other.
        let mut begin = 0;
        for half in 0..2 {
            for (which, out) in shapes.iter().enumerate() {
                let end = begin + out.len();
                if at < end && !run.is_empty() {
                    let (own, later) = run.split_at_mut((end - at).min(run.len()));
                    add(which, half, at - begin, own);
                    at += own.len();
                    run = later;
                }
                begin = end;
            }
        }
    });
    let (mut one, mut other) = halves.split_at(total);
    for out in outs {
        let (a, b);
        (a, one) = one.split_at(out.len());
        (b, other) = other.split_at(out.len());
        for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
            *out = a + b;
        }
    }
    HALVES.set(halves);
}

impl ChannelSum<'_> {
    /// The least number of outputs that a thread has.
    ///
    /// # Panics
    /// When the matrix has not `outputs` columns, a channel is not there, or there are not as many
    /// factors as channels.
    fn check(&self, outputs: usize) -> usize {
        let weights = &self.weights;
        assert_eq!(weights.cols, outputs, "sum_channels: outputs");
        assert_eq!(
            self.channels.len(),
            self.factors.len(),
            "sum_channels: factors"
        );
        let there = |&channel: &u32| (channel as usize) < weights.rows;
        assert!(self.channels.iter().all(there), "sum_channels: channel");
        grain_of(weights.kind)
    }

    /// The first or the second half of the channels.
    fn half(&self, half: usize) -> Self {
        let middle = self.channels.len() / 2;
        let range = [0..middle, middle..self.channels.len()][half].clone();
        Self {
            channels: &self.channels[range.clone()],
            factors: &self.factors[range],
            ..*self
        }
    }

    /// Adds it to the outputs `first ..`.
    fn add(&self, first: usize, out: &mut [f32]) {
        let add = match groups::grouped(self.weights.kind) {
            true => groups::add_channels,
            false => add_channels,
        };
        add(&self.weights, self.channels, self.factors, first, out);
    }
}

/// Rows of a prompt with weights by input channel: `out[n, outputs] = x[n, inputs] · weights`.
/// Tiles are unpacked to `f32`, as in [`matmul`](super::matmul).
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_channels(out: &mut [f32], weights: &BlockMatrix, x: &[f32], team: &Team) {
    let (inputs, outputs) = (weights.rows, weights.cols);
    let n = crate::dot::assert_rows(x.len(), inputs, "matmul_channels");
    let out = Output::new(out, n, outputs);
    let grain = if outputs.is_multiple_of(COLUMNS) {
        COLUMNS
    } else {
        weights.kind.block_len()
    };
    let (parts, grains) = (team.threads(), outputs / grain.max(1));
    team.run(|part| {
        let own = grains * part / parts * grain..grains * (part + 1) / parts * grain;
        for first in own.clone().step_by(COLUMNS) {
            let tile = first..(first + COLUMNS).min(own.end);
            // SAFETY: shares and the tiles of one do not overlap.
            let mut columns = unsafe { out.columns(tile.clone()) };
            UNPACKED.with_borrow_mut(|unpacked| {
                unpacked.resize(INPUTS * tile.len(), 0.0);
                for from in (0..inputs).step_by(INPUTS) {
                    let rows = from..(from + INPUTS).min(inputs);
                    let unpacked = &mut unpacked[..rows.len() * tile.len()];
                    for (row, to) in rows.clone().zip(unpacked.chunks_exact_mut(tile.len())) {
                        super::dequantize(weights.kind, part_of(weights, row, &tile), to);
                    }
                    columns.add_product(x, inputs, rows, unpacked);
                }
            });
        }
    });
}

/// Outputs and inputs of a tile in [`matmul_channels`].
const COLUMNS: usize = 256;
const INPUTS: usize = 128;

thread_local! {
    /// Unpacked weights.
    static UNPACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The sums of both halves of the channels.
    static HALVES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Products of a low rank, and the places of its ranks.
    static LOW: RefCell<(Vec<f32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Which bytes of a row hold some columns; whole blocks.
#[inline(always)]
fn bytes_of(kind: BlockType, columns: &Range<usize>) -> Range<usize> {
    let (len, size) = (kind.block_len(), kind.block_bytes());
    columns.start / len * size..columns.end / len * size
}

/// The bytes of some columns of a row; whole blocks.
#[inline(always)]
fn part_of<'a>(weights: &BlockMatrix<'a>, row: usize, columns: &Range<usize>) -> &'a [u8] {
    &weights.row(row)[bytes_of(weights.kind, columns)]
}

simd! {
    /// Adds channels to the outputs `first ..`, which begin with a block.
    fn add_channels(weights: &BlockMatrix, channels: &[u32], factors: &[f32], first: usize, out: &mut [f32]) = add_body;
}

#[inline(always)]
pub(super) fn add_body<V: Eight>(
    weights: &BlockMatrix,
    channels: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    match weights.kind {
        BlockType::F32 => add::<V, Single>(weights, channels, factors, first, out),
        BlockType::F16 => add::<V, Half>(weights, channels, factors, first, out),
        BlockType::Bf16 => add::<V, Brain>(weights, channels, factors, first, out),
        _ => add_unpacked::<V>(weights, channels, factors, first, out),
    }
}

/// A kind of number or block, in units of `LEN` outputs.
trait Unit {
    const LEN: usize;
    const BYTES: usize;
    /// Adds a unit of `C` rows times their factors to `out`.
    ///
    /// # Safety
    /// `BYTES` must be readable at each of `rows`.
    unsafe fn add<V: Eight, const C: usize>(
        rows: [*const u8; C],
        factors: [f32; C],
        out: &mut [f32],
    );
}

#[inline(always)]
fn add<V: Eight, U: Unit>(
    weights: &BlockMatrix,
    channels: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    // From as many runs of the list as channels are added together, as `groups` has it.
    let run = channels.len() / TOGETHER;
    for (s, strip) in out.chunks_mut(STRIP).enumerate() {
        let at = first + s * STRIP;
        let bytes = bytes_of(weights.kind, &(at..at + strip.len()));
        let row = |place: usize| &weights.row(channels[place] as usize)[bytes.clone()];
        for i in 0..run {
            let mut rows = [row(i); TOGETHER];
            let (mut next, mut of) = ([rows[0].as_ptr(); TOGETHER], [0.0; TOGETHER]);
            for c in 0..TOGETHER {
                rows[c] = row(c * run + i);
                next[c] = row((c * run + i + 1).min(channels.len() - 1)).as_ptr();
                of[c] = factors[c * run + i];
            }
            add_rows::<V, U, TOGETHER>(weights.kind, rows, next, of, strip);
        }
        for (&channel, &factor) in channels.iter().zip(factors).skip(TOGETHER * run) {
            let row = &weights.row(channel as usize)[bytes.clone()];
            add_rows::<V, U, 1>(weights.kind, [row], [row.as_ptr()], [factor], strip);
        }
    }
}

/// Adds `C` rows to a strip; asks for the next ones meanwhile.
#[inline(always)]
fn add_rows<V: Eight, U: Unit, const C: usize>(
    kind: BlockType,
    rows: [&[u8]; C],
    next: [*const u8; C],
    factors: [f32; C],
    out: &mut [f32],
) {
    let units = out.len() / U::LEN;
    assert!(rows.iter().all(|row| row.len() >= units * U::BYTES));
    let (whole, rest) = out.split_at_mut(units * U::LEN);
    for (u, out) in whole.chunks_exact_mut(U::LEN).enumerate() {
        let mut at = [rows[0].as_ptr(); C];
        for c in 0..C {
            let mut line = 0;
            while line < U::BYTES {
                V::prefetch_line(next[c].wrapping_add(u * U::BYTES + line));
                line += 64;
            }
            at[c] = rows[c].as_ptr().wrapping_add(u * U::BYTES);
        }
        // SAFETY: every row has the bytes of all units by the assertion above.
        unsafe { U::add::<V, C>(at, factors, out) };
    }
    if !rest.is_empty() {
        // Only numbers that are no blocks leave a rest.
        let mut numbers = [0.0; 32];
        let numbers = &mut numbers[..rest.len()];
        for (row, factor) in rows.iter().zip(factors) {
            decode_body::<V>(kind, &row[units * U::BYTES..], numbers);
            for (out, x) in rest.iter_mut().zip(&*numbers) {
                *out += factor * x;
            }
        }
    }
}

/// Kinds that are unpacked to memory first.
#[inline(always)]
fn add_unpacked<V: Eight>(
    weights: &BlockMatrix,
    channels: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let columns = first..first + out.len();
    // Taken out, since a closure would be compiled for the oldest processors.
    let mut numbers = UNPACKED.take();
    numbers.resize(out.len(), 0.0);
    for (&channel, factor) in channels.iter().zip(factors) {
        let row = part_of(weights, channel as usize, &columns);
        decode_body::<V>(weights.kind, row, &mut numbers);
        for (out, x) in out.iter_mut().zip(&numbers) {
            *out += factor * x;
        }
    }
    UNPACKED.set(numbers);
}

/// Eight outputs at `8 * i`.
#[inline(always)]
fn load<V: Eight>(out: &[f32], i: usize) -> V {
    V::load(&out[8 * i..8 * i + 8])
}

#[inline(always)]
fn store<V: Eight>(x: V, out: &mut [f32], i: usize) {
    x.store(&mut out[8 * i..8 * i + 8]);
}

macro_rules! numbers {
    ($name:ident, $bytes:literal, $load:ident) => {
        struct $name;
        impl Unit for $name {
            const LEN: usize = 32;
            const BYTES: usize = 32 * $bytes;
            #[inline(always)]
            unsafe fn add<V: Eight, const C: usize>(
                rows: [*const u8; C],
                factors: [f32; C],
                out: &mut [f32],
            ) {
                assert_eq!(out.len(), 32);
                for i in 0..4 {
                    let mut sum: V = load(out, i);
                    for c in 0..C {
                        // SAFETY: 8 (i + 1) <= 32 numbers are readable by contract.
                        let x = unsafe { V::$load(rows[c].add(8 * $bytes * i)) };
                        sum = x.mul_add(V::splat(factors[c]), sum);
                    }
                    store(sum, out, i);
                }
            }
        }
    };
}
numbers!(Single, 4, load_f32_at);
numbers!(Half, 2, load_f16_at);
numbers!(Brain, 2, load_bf16_at);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::dequantize;
    use crate::blocks::tests::{numbers, packed};
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn maps_handed_out_together_are_as_those_by_themselves(
            kind in prop::sample::select(vec![BlockType::F16, BlockType::Q8_0, BlockType::Q4K]),
            inputs in 1usize..4,
            blocks in prop::collection::vec(1usize..5, 1..4),
            rank in 0usize..40,
            threads in 1usize..5,
            seed: u64,
        ) {
            let inputs = 32 * inputs;
            let mut rng = SmallRng::seed_from_u64(!seed);
            let x = numbers(inputs, seed ^ 7);
            // Of each map: weights, factors of a low rank, and channels.
            let maps: Vec<_> = blocks
                .iter()
                .enumerate()
                .map(|(i, blocks)| {
                    let outputs = blocks * kind.block_len().max(32);
                    let seed = seed.wrapping_add(i as u64);
                    let chosen: Vec<u32> = (0..inputs as u32).filter(|_| rng.random()).collect();
                    let factors: Vec<f32> = chosen.iter().map(|&c| x[c as usize]).collect();
                    let mut rest = x.clone();
                    chosen.iter().for_each(|&c| rest[c as usize] = 0.0);
                    (
                        outputs,
                        packed(kind, &numbers(inputs * outputs, seed)),
                        packed(BlockType::Q8_0, &numbers(rank * inputs, seed ^ 1)),
                        packed(BlockType::Q8_0, &numbers(rank * outputs, seed ^ 2)),
                        chosen,
                        factors,
                        rest,
                    )
                })
                .collect();
            let matrix = |kind, rows, cols, bytes| BlockMatrix::new(kind, rows, cols, bytes).unwrap();
            let team = Team::new(threads);
            let mut rests: Vec<Activations> = maps
                .iter()
                .map(|map| {
                    let mut rest = Activations::new();
                    rest.set(&map.6, inputs);
                    rest
                })
                .collect();
            // One after the other, as sums of two terms.
            let mut expected = Vec::new();
            let every: Vec<u32> = (0..rank as u32).collect();
            for ((outputs, weights, down, up, chosen, factors, _), rest) in maps.iter().zip(&mut rests) {
                let mut low = vec![0.0; rank];
                // By halves too: a sum of another order can lie on the other side of a boundary
                // of rounding once it is a factor, which is a step and no longer an ulp.
                let (one, other) = low.split_at_mut(rank / 2);
                let (first, second) = down.split_at(down.len() / rank.max(1) * (rank / 2));
                for (low, down) in [(one, first), (other, second)] {
                    let down = matrix(BlockType::Q8_0, low.len(), inputs, down);
                    crate::blocks::matvec(low, &down, rest, &Team::new(1));
                }
                let mut out = vec![9.0; *outputs];
                let terms = [
                    ChannelSum { weights: matrix(kind, inputs, *outputs, weights), channels: chosen, factors },
                    ChannelSum { weights: matrix(BlockType::Q8_0, rank, *outputs, up), channels: &every, factors: &low },
                ];
                sum_channels(&mut out, &terms, &team);
                expected.push(out);
            }
            let mut outs: Vec<Vec<f32>> = maps.iter().map(|map| vec![9.0; map.0]).collect();
            let mut outs: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
            let products: Vec<SparseProduct> = maps
                .iter()
                .zip(&mut rests)
                .map(|((outputs, weights, down, up, chosen, factors, _), rest)| SparseProduct {
                    kept: ChannelSum { weights: matrix(kind, inputs, *outputs, weights), channels: chosen, factors },
                    low: Some(LowRank::new(
                        matrix(BlockType::Q8_0, rank, inputs, down),
                        matrix(BlockType::Q8_0, rank, *outputs, up),
                        rest,
                    )),
                })
                .collect();
            sparse_products(&mut outs, &products, &team);
            for (out, expected) in outs.iter().zip(&expected) {
                let size = expected.iter().fold(1f32, |a, x| a.max(x.abs()));
                for (a, b) in out.iter().zip(expected) {
                    prop_assert!((a - b).abs() <= 1e-5 * size, "{a} {b}");
                }
            }
        }

        #[test]
        fn sums_are_those_of_the_unpacked_channels(
            kind in prop::sample::select(BlockType::ALL.to_vec()),
            inputs in 1usize..30,
            blocks in 1usize..6,
            odd in 0usize..9,
            threads in 1usize..4,
            seed: u64,
        ) {
            let outputs = match kind.block_len() {
                1 => 40 * blocks * blocks + odd,
                n => n * blocks,
            };
            let bytes = packed(kind, &numbers(inputs * outputs, seed));
            let weights = BlockMatrix::new(kind, inputs, outputs, &bytes).unwrap();
            let mut w = vec![0.0; inputs * outputs];
            dequantize(kind, &bytes, &mut w);
            let mut rng = SmallRng::seed_from_u64(!seed);
            let channels: Vec<u32> = (0..inputs as u32).filter(|_| rng.random()).collect();
            let factors = numbers(channels.len(), seed ^ 5);
            let term = ChannelSum { weights, channels: &channels, factors: &factors };
            let definition = |o: usize| -> f64 {
                let terms = channels.iter().zip(&factors);
                terms.map(|(&c, &f)| f64::from(f) * f64::from(w[c as usize * outputs + o])).sum()
            };
            let mut out = vec![9.0; outputs];
            sum_channels(&mut out, &[term], &Team::new(threads));
            let mut twin = vec![0.0; outputs];
            for half in [0, 1] {
                let ChannelSum { weights, channels, factors } = term.half(half);
                match groups::grouped(kind) {
                    true => groups::cover(&weights, channels, factors, 0, &mut twin, groups::portable),
                    false => add_body::<crate::vector::Portable>(&weights, channels, factors, 0, &mut twin),
                }
            }
            // What machines with AVX2 alone do.
            #[cfg(target_arch = "x86_64")]
            if groups::grouped(kind) && crate::vector::has_avx2() {
                let mut plain = vec![0.0; outputs];
                for half in [0, 1] {
                    let ChannelSum { weights, channels, factors } = term.half(half);
                    groups::cover(&weights, channels, factors, 0, &mut plain, |kind, group, out| {
                        // SAFETY: the machine has AVX2, FMA and F16C.
                        unsafe { x86::add_group(kind, group, out) };
                    });
                }
                for (plain, twin) in plain.iter().zip(&twin) {
                    prop_assert!((plain - twin).abs() < 2e-5, "{kind:?}: {plain} {twin}");
                }
            }
            // Rounded factors are off by half a step each, times a code's distance from the middle.
            let rounding = match kind {
                BlockType::Q8_0 => 5e-3,
                kind if groups::grouped(kind) => 6e-3,
                _ => 0.0,
            } * channels.len() as f64 + 2e-5;
            for (o, (got, twin)) in out.iter().zip(&twin).enumerate() {
                let want = definition(o);
                prop_assert!((f64::from(*got) - want).abs() < rounding, "{kind:?} {o}: {got} {want}");
                prop_assert!((got - twin).abs() < 2e-5, "{kind:?} {o}: {got} {twin}");
            }
            // Two terms are added, and nothing is left of what was there.
            let mut double = vec![7.0; outputs];
            sum_channels(&mut double, &[term, term], &Team::new(1));
            for (double, one) in double.iter().zip(&out) {
                prop_assert!((double - 2.0 * one).abs() < 4e-5);
            }
            let mut none = vec![7.0; outputs];
            sum_channels(&mut none, &[], &Team::new(1));
            prop_assert!(none.iter().all(|&x| x == 0.0));

            let n = 1 + odd;
            let x = numbers(n * inputs, seed ^ 9);
            let mut product = vec![9.0; n * outputs];
            matmul_channels(&mut product, &weights, &x, &Team::new(threads));
            for (row, x) in product.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
                for (o, got) in row.iter().enumerate() {
                    let want: f64 = x.iter().enumerate()
                        .map(|(i, &x)| f64::from(x) * f64::from(w[i * outputs + o]))
                        .sum();
                    prop_assert!((f64::from(*got) - want).abs() < 3e-5, "{kind:?}: {got} {want}");
                }
            }
        }
    }
}
