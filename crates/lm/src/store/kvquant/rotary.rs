//! Angles of the positions of stored keys. A position is a multiple of 64 and a rest: a query
//! is turned back by the multiple, once for 64 rows, and the keys are turned by the rest.

use std::cell::RefCell;

use keyfold_kernels::attention::{Rotation, rotate};
use keyfold_kernels::nuq::{Angles, GRANULE};

use crate::config::{Config, RopeScaling, rope_frequencies};
use crate::refusal::Refusal;

/// Positions that a query is turned for at once.
const BLOCK: u32 = 64;

/// Columns of the tables of rests: a granule may begin at the last.
const COLUMNS: usize = BLOCK as usize + GRANULE;

thread_local! {
    /// Cosines and sines of one position.
    static ANGLES: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// Angles as one model has them.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    pub(super) rotation: Rotation,
    inv_freq: Vec<f64>,
    /// Per layer, whether it rotates at all.
    layers: Vec<bool>,
    scale: f32,
    /// Rests: `[pairs, COLUMNS]`, scaled.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Multiples: for each, cosines and negative sines of the pairs.
    multiples: Vec<f32>,
}

impl Rotary {
    /// The model's own angles.
    ///
    /// # Errors
    /// When they depend on the length of the text.
    pub(super) fn new(config: &Config) -> Result<Self, Refusal> {
        let (inv_freq, scale, interleaved, layers) = match config.rope() {
            None => (Vec::new(), 1.0, false, vec![false; config.dims.layers]),
            Some(rope) if matches!(rope.scaling, RopeScaling::Dynamic { .. }) => {
                return Err(Refusal::setting(
                    super::METHOD,
                    "this model stretches its rotary angles with the length of the text, so \
                     stored keys would have to be turned anew; choose another --cache",
                ));
            }
            Some(rope) => {
                let (inv_freq, scale) = rope_frequencies(config, config.max_position_embeddings);
                (inv_freq, scale, rope.interleaved, rope.layers.clone())
            }
        };
        Ok(Self::with(inv_freq, scale, interleaved, layers))
    }

    /// Pairs are turned by these angles for each position; cosines and sines are scaled.
    pub(super) fn with(
        inv_freq: Vec<f32>,
        scale: f32,
        interleaved: bool,
        layers: Vec<bool>,
    ) -> Self {
        let inv_freq: Vec<f64> = inv_freq.into_iter().map(f64::from).collect();
        let rest = |angle: fn(f64) -> f64| -> Vec<f32> {
            let of_pair = |f: &f64| {
                let f = *f;
                (0..COLUMNS).map(move |j| (f64::from(scale) * angle(j as f64 * f)) as f32)
            };
            inv_freq.iter().flat_map(of_pair).collect()
        };
        Self {
            rotation: match interleaved {
                true => Rotation::Interleaved,
                false => Rotation::Half,
            },
            layers,
            scale,
            cos: rest(f64::cos),
            sin: rest(f64::sin),
            multiples: Vec::new(),
            inv_freq,
        }
    }

    /// Whether a layer rotates.
    pub(super) fn turns(&self, layer: usize) -> bool {
        self.layers[layer] && !self.inv_freq.is_empty()
    }

    /// Makes room for positions up to `position`.
    pub(super) fn reach(&mut self, position: u32) {
        let pairs = self.inv_freq.len();
        if pairs == 0 {
            return;
        }
        let held = self.multiples.len() / (2 * pairs);
        for block in held..=(position / BLOCK) as usize {
            let start = block as f64 * f64::from(BLOCK);
            let cos = self.inv_freq.iter().map(|f| (start * f).cos() as f32);
            self.multiples.extend(cos);
            let sin = self.inv_freq.iter().map(|f| -(start * f).sin() as f32);
            self.multiples.extend(sin);
        }
    }

    /// Bytes of the tables.
    pub(super) fn bytes(&self) -> u64 {
        4 * (self.cos.len() + self.sin.len() + self.multiples.len()) as u64
    }

    /// The block of a position, and its place there.
    pub(super) fn place(position: u32) -> (u32, usize) {
        (position / BLOCK, (position % BLOCK) as usize)
    }

    /// Angles within a block, for layers that rotate.
    pub(super) fn rests(&self) -> Angles<'_> {
        Angles {
            cos: &self.cos,
            sin: &self.sin,
            stride: if self.inv_freq.is_empty() { 0 } else { COLUMNS },
        }
    }

    /// No angles, for layers that do not rotate.
    pub(super) fn still() -> Angles<'static> {
        Angles {
            cos: &[],
            sin: &[],
            stride: 0,
        }
    }

    /// Turns queries `[any, head_dim]` back by a block's first position.
    pub(super) fn turn_back(&self, block: u32, queries: &mut [f32], head_dim: usize) {
        let pairs = self.inv_freq.len();
        let both = &self.multiples[block as usize * 2 * pairs..][..2 * pairs];
        let (cos, negative_sin) = both.split_at(pairs);
        rotate(queries, head_dim, cos, negative_sin, self.rotation);
    }

    /// Turns keys `[any, head_dim]` on by a block's first position.
    pub(super) fn turn_on(&self, block: u32, keys: &mut [f32], head_dim: usize) {
        let pairs = self.inv_freq.len();
        let both = &self.multiples[block as usize * 2 * pairs..][..2 * pairs];
        let (cos, negative_sin) = both.split_at(pairs);
        let angles = cos.iter().zip(negative_sin).map(|(&c, &s)| (c, -s));
        self.turn_by(angles, keys, head_dim);
    }

    /// Cosine and sine of every pair at a position, scaled.
    fn of(&self, position: u32) -> impl Iterator<Item = (f32, f32)> + '_ {
        let pairs = self.inv_freq.len();
        let (block, place) = Self::place(position);
        let both = &self.multiples[block as usize * 2 * pairs..][..2 * pairs];
        let (of_block, negative_sin) = both.split_at(pairs);
        (0..pairs).map(move |pair| {
            let (c, s) = (of_block[pair], -negative_sin[pair]);
            let (d, t) = (
                self.cos[pair * COLUMNS + place],
                self.sin[pair * COLUMNS + place],
            );
            (c * d - s * t, s * d + c * t)
        })
    }

    /// Turns keys `[any, head_dim]` by the cosine and sine of every pair.
    fn turn_by(&self, angles: impl Iterator<Item = (f32, f32)>, x: &mut [f32], head_dim: usize) {
        ANGLES.with_borrow_mut(|(cos, sin)| {
            cos.clear();
            sin.clear();
            for (c, s) in angles {
                cos.push(c);
                sin.push(s);
            }
            rotate(x, head_dim, cos, sin, self.rotation);
        });
    }

    /// Turns a key of a position back: the way that it was before rotary embedding.
    pub(super) fn undo(&self, position: u32, key: &mut [f32]) {
        // Both are scaled; the way back is not.
        let back = 1.0 / (self.scale * self.scale);
        let angles = self.of(position).map(|(c, s)| (c * back, s * -back));
        let head_dim = key.len();
        self.turn_by(angles, key, head_dim);
    }

    /// Turns a key of a position.
    pub(super) fn turn(&self, position: u32, key: &mut [f32]) {
        let head_dim = key.len();
        self.turn_by(self.of(position), key, head_dim);
    }

    /// Angles of eight positions, `[pairs, 8]`.
    pub(super) fn of_each(&self, positions: &[u32], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        let pairs = self.inv_freq.len();
        cos.clear();
        sin.clear();
        cos.resize(pairs * GRANULE, 0.0);
        sin.resize(pairs * GRANULE, 0.0);
        for (row, &position) in positions.iter().enumerate() {
            for (pair, (c, s)) in self.of(position).enumerate() {
                cos[pair * GRANULE + row] = c;
                sin[pair * GRANULE + row] = s;
            }
        }
    }
}
