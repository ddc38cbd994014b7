//! Rotary embedding of queries and keys by their positions, and of far queries by one angle.

/// Frequencies of a model's rotary embedding: a pair of numbers of a head turns by
/// `position * inv_freq[i]`; what follows the first `2 * len` numbers stays.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Angle per position of every pair.
    pub inv_freq: Vec<f32>,
    /// What cosines and sines are multiplied by (YaRN; else 1).
    pub scale: f32,
    /// Whether pair `i` is the numbers `2i` and `2i + 1`, and not `i` and `i + len`.
    pub interleaved: bool,
}

/// Cosines and sines of the positions of a call.
#[derive(Debug)]
pub(super) struct Angles {
    rotary: Rotary,
    /// `[positions, pairs]`.
    turns: Vec<(f32, f32)>,
    far: Vec<(f32, f32)>,
}

impl Angles {
    /// `far` is the position to which queries turn for far keys.
    pub(super) fn new(rotary: Rotary, far: u32) -> Self {
        let mut angles = Self {
            rotary,
            turns: Vec::new(),
            far: Vec::new(),
        };
        angles.far = angles.of(far).collect();
        angles
    }

    fn of(&self, position: u32) -> impl Iterator<Item = (f32, f32)> {
        // Double precision, so that distances stay exact at positions of millions.
        let scale = f64::from(self.rotary.scale);
        self.rotary.inv_freq.iter().map(move |&frequency| {
            let (sin, cos) = (f64::from(position) * f64::from(frequency)).sin_cos();
            ((cos * scale) as f32, (sin * scale) as f32)
        })
    }

    /// Makes the angles of a call's positions.
    pub(super) fn prepare(&mut self, positions: &[u32]) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.clear();
        turns.extend(positions.iter().flat_map(|&position| self.of(position)));
        self.turns = turns;
    }

    /// Turns `rows` `[n, wide]`, the first of which is number `from` of the call.
    pub(super) fn rotate(&self, rows: &mut [f32], wide: usize, from: usize, dim: usize) {
        let pairs = self.rotary.inv_freq.len();
        for (row, turns) in rows
            .chunks_exact_mut(wide)
            .zip(self.turns.chunks_exact(pairs).skip(from))
        {
            row.chunks_exact_mut(dim)
                .for_each(|head| turn(head, turns, self.rotary.interleaved));
        }
    }

    /// Turns all heads of `rows` by the one angle of far queries.
    pub(super) fn rotate_far(&self, rows: &mut [f32], dim: usize) {
        rows.chunks_exact_mut(dim)
            .for_each(|head| turn(head, &self.far, self.rotary.interleaved));
    }
}

fn turn(head: &mut [f32], turns: &[(f32, f32)], interleaved: bool) {
    let turned = |a: f32, b: f32, (cos, sin): (f32, f32)| (a * cos - b * sin, b * cos + a * sin);
    if interleaved {
        for (pair, &turn) in head.chunks_exact_mut(2).zip(turns) {
            (pair[0], pair[1]) = turned(pair[0], pair[1], turn);
        }
        return;
    }
    let (first, second) = head[..2 * turns.len()].split_at_mut(turns.len());
    for ((a, b), &turn) in first.iter_mut().zip(second).zip(turns) {
        (*a, *b) = turned(*a, *b, turn);
    }
}
