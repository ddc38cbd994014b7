//! Transformers whose weights are written down, not learned: what a few layers can compute.
//!
//! Source: Akyürek et al. 2023, sections on gradient descent and ridge regression. A program is a
//! list of layers; each moves numbers from places of the sequence to the last token (a head
//! that looks at one place) and then adds products and sums of its own numbers (the MLP):
//!
//! - a sum: `u = gelu(u) - gelu(-u)`, exactly;
//! - a product: `l r = ((l + r)² - (l - r)²) / 4` with `u² ≈ √(π/2) (gelu(ε u) + gelu(-ε u)) / ε²`,
//!   whose relative error is about `ε² u² / 6`.
//!
//! [`gradient_descent`] makes two layers of each pair: `w ← w - 2 rate ((<w, x> - y) x + λ w)`.
//! [`ridge`] keeps `(XᵀX + λI)⁻¹` by Sherman and Morrison, and divides by Newton's steps
//! `r ← r (2 - c r)`. Both predict as the estimators do, up to the error of the products.

use std::ops::Range;

use super::{Sequence, Task};
use crate::InspectError;
use crate::small_transformer::{BlockConfig, Blocks, Layout};

/// What inputs of products are multiplied by.
const EPSILON: f64 = 0.004;

/// The score of a place that is looked at; others have 0, so that its weight rounds to 1.
const LOOK: f32 = 300.0;

/// Newton's steps of a division.
const NEWTON: usize = 9;

/// A sum of numbers of a token, each times a factor.
type Sum = Vec<(usize, f64)>;

/// What the MLP of a layer adds.
enum Term {
    /// `left · right`, added to each of `to` times its factor.
    Product { left: Sum, right: Sum, to: Sum },
    /// A sum, added to one number.
    Add { from: Sum, to: usize },
}

/// A head that looks at one place.
struct Move {
    place: usize,
    from: Range<usize>,
    to: usize,
}

/// One layer.
#[derive(Default)]
struct Layer {
    moves: Vec<Move>,
    terms: Vec<Term>,
}

/// Numbers of a token by name.
struct Slots {
    d: usize,
    next: usize,
}

impl Slots {
    fn take(&mut self, count: usize) -> Range<usize> {
        self.next += count;
        self.next - count..self.next
    }
}

/// A transformer for one length of sequence, with all weights written down.
pub struct Constructed {
    d: usize,
    pairs: usize,
    /// Where the place of a token is marked.
    places: Range<usize>,
    /// Where the prediction comes out.
    out: usize,
    /// Numbers that begin at another value than 0.
    begin: Vec<(usize, f32)>,
    blocks: Blocks,
    weights: Vec<f32>,
}

impl Constructed {
    /// Layers.
    pub fn layers(&self) -> usize {
        self.blocks.config.layers
    }

    /// Numbers of a state.
    pub fn width(&self) -> usize {
        self.blocks.config.width
    }

    /// What is predicted for the last `y` of a sequence from the pairs before it.
    ///
    /// # Errors
    /// When the sequence has another length or width than was built for.
    pub fn predict(&self, sequence: &Sequence) -> Result<f64, InspectError> {
        if sequence.d != self.d || sequence.y.len() != self.pairs + 1 {
            return Err(InspectError::Disagree {
                what: "pairs that this transformer reads, and of the sequence but its last"
                    .to_owned(),
                left: self.pairs,
                right: sequence.y.len().saturating_sub(1),
            });
        }
        let (width, length) = (self.width(), 2 * self.pairs + 1);
        let mut x = vec![0.0; width * length];
        for (place, token) in x.chunks_exact_mut(width).enumerate() {
            let pair = place / 2;
            match place % 2 {
                0 => {
                    let x = &sequence.x[pair * self.d..][..self.d];
                    token[..self.d]
                        .iter_mut()
                        .zip(x)
                        .for_each(|(t, x)| *t = *x as f32);
                }
                _ => token[0] = sequence.y[pair] as f32,
            }
            token[self.places.start + place] = 1.0;
            self.begin
                .iter()
                .for_each(|(slot, value)| token[*slot] = *value);
        }
        let out = self.blocks.forward(&self.weights, x, length, None).out;
        Ok(f64::from(out[(length - 1) * width + self.out]))
    }
}

/// Writes layers as weights.
fn build(
    (d, pairs): (usize, usize),
    (slots, places): (Slots, Range<usize>),
    out: usize,
    begin: Vec<(usize, f32)>,
    layers: Vec<Layer>,
) -> Constructed {
    let units = |layer: &Layer| -> usize {
        let count = |term: &Term| {
            if matches!(term, Term::Product { .. }) {
                4
            } else {
                2
            }
        };
        layer.terms.iter().map(count).sum()
    };
    let config = BlockConfig {
        width: slots.next,
        heads: layers
            .iter()
            .map(|l| l.moves.len())
            .max()
            .unwrap_or(1)
            .max(1),
        head_dim: d.max(1),
        mlp: layers.iter().map(units).max().unwrap_or(1).max(1),
        norm: false,
        layers: layers.len(),
    };
    let mut layout = Layout::default();
    let blocks = Blocks::new(config, &mut layout);
    let mut weights = layout.zeros();
    for (at, layer) in layers.iter().enumerate() {
        let (qkv, o, up, down) = blocks.parts(at);
        let inner = config.heads * config.head_dim;
        let root = (config.head_dim as f32).sqrt();
        for (head, step) in layer.moves.iter().enumerate() {
            let first = head * config.head_dim;
            // Every token asks the same: its key answers where the place is marked.
            weights[qkv.b.start + first] = LOOK * root;
            let key = qkv.w.start + (inner + first) * config.width;
            weights[key + places.start + step.place] = 1.0;
            for (i, from) in step.from.clone().enumerate() {
                let value = qkv.w.start + (2 * inner + first + i) * config.width;
                weights[value + from] = 1.0;
                weights[o.w.start + (step.to + i) * inner + first + i] = 1.0;
            }
        }
        let Some((up, down)) = up.zip(down) else {
            continue;
        };
        let mut unit = 0;
        let mut write = |input: &Sum, scale: f64, to: &Sum, factor: f64| {
            for (slot, c) in input {
                weights[up.w.start + unit * config.width + slot] += (scale * c) as f32;
            }
            for (slot, c) in to {
                weights[down.w.start + slot * config.mlp + unit] += (factor * c) as f32;
            }
            unit += 1;
        };
        for term in &layer.terms {
            match term {
                Term::Add { from, to } => {
                    write(from, 1.0, &vec![(*to, 1.0)], 1.0);
                    write(from, -1.0, &vec![(*to, 1.0)], -1.0);
                }
                Term::Product { left, right, to } => {
                    let square = (std::f64::consts::FRAC_PI_2).sqrt() / (EPSILON * EPSILON);
                    let negative: Sum = right.iter().map(|(s, c)| (*s, -c)).collect();
                    for (right, sign) in [(right, 1.0), (&negative, -1.0)] {
                        let sum: Sum = left.iter().chain(right).copied().collect();
                        write(&sum, EPSILON, to, sign * square / 4.0);
                        write(&sum, -EPSILON, to, sign * square / 4.0);
                    }
                }
            }
        }
    }
    Constructed {
        d,
        pairs,
        places,
        out,
        begin,
        blocks,
        weights,
    }
}

fn one(slot: usize) -> Sum {
    vec![(slot, 1.0)]
}

/// Takes away what a number holds.
fn clear(slot: usize) -> Term {
    Term::Add {
        from: vec![(slot, -1.0)],
        to: slot,
    }
}

fn product(left: usize, right: usize, to: Sum) -> Term {
    Term::Product {
        left: one(left),
        right: one(right),
        to,
    }
}

/// Slots that both programs have: those of the token, its place, a pair and the output.
struct Common {
    slots: Slots,
    places: Range<usize>,
    x: Range<usize>,
    y: usize,
    out: usize,
}

impl Common {
    fn new(task: &Task) -> Result<(Self, usize), InspectError> {
        task.check()?;
        let pairs = task.n.checked_sub(1).filter(|n| *n > 0).ok_or_else(|| {
            InspectError::settings("a program needs sequences of at least 2 pairs")
        })?;
        let d = task.d;
        let mut slots = Slots { d, next: 0 };
        slots.take(d + 1);
        let places = slots.take(2 * pairs + 1);
        let x = slots.take(d);
        let y = slots.take(1).start;
        let out = slots.take(1).start;
        Ok((
            Self {
                slots,
                places,
                x,
                y,
                out,
            },
            pairs,
        ))
    }

    /// Fetches a pair; its slots are empty.
    fn fetch(&self, pair: usize) -> Vec<Move> {
        vec![
            Move {
                place: 2 * pair,
                from: 0..self.slots.d,
                to: self.x.start,
            },
            Move {
                place: 2 * pair + 1,
                from: 0..1,
                to: self.y,
            },
        ]
    }

    fn clear_pair(&self) -> impl Iterator<Item = Term> {
        self.x.clone().chain([self.y]).map(clear)
    }

    /// `<w, x>` of the last token's own `x`.
    fn read_out(&self, w: &Range<usize>) -> Layer {
        let terms = w
            .clone()
            .enumerate()
            .map(|(k, w)| product(w, k, one(self.out)));
        Layer {
            moves: Vec::new(),
            terms: terms.collect(),
        }
    }
}

/// One step of gradient descent for each pair, at this rate and weight decay.
///
/// # Errors
/// When the task makes no sense.
pub fn gradient_descent(task: &Task, rate: f64, decay: f64) -> Result<Constructed, InspectError> {
    let (mut c, pairs) = Common::new(task)?;
    let d = task.d;
    let w = c.slots.take(d);
    let rest = c.slots.take(1).start;
    let mut layers = Vec::new();
    for pair in 0..pairs {
        // rest = <w, x> - y
        let mut terms: Vec<Term> = (0..d)
            .map(|k| product(w.start + k, c.x.start + k, one(rest)))
            .collect();
        terms.push(Term::Add {
            from: vec![(c.y, -1.0)],
            to: rest,
        });
        layers.push(Layer {
            moves: c.fetch(pair),
            terms,
        });
        // w -= 2 rate (rest x + decay w)
        let mut terms: Vec<Term> = (0..d)
            .map(|k| product(rest, c.x.start + k, vec![(w.start + k, -2.0 * rate)]))
            .collect();
        if decay != 0.0 {
            terms.extend(w.clone().map(|w| Term::Add {
                from: vec![(w, -2.0 * rate * decay)],
                to: w,
            }));
        }
        terms.push(clear(rest));
        terms.extend(c.clear_pair());
        layers.push(Layer {
            moves: Vec::new(),
            terms,
        });
    }
    layers.push(c.read_out(&w));
    let Common {
        slots, places, out, ..
    } = c;
    Ok(build((d, pairs), (slots, places), out, Vec::new(), layers))
}

/// Ridge regression with penalty `lambda`; `largest` is the greatest `‖x‖²` for which divisions are
/// right.
///
/// # Errors
/// When the task or the penalty makes no sense.
pub fn ridge(task: &Task, lambda: f64, largest: f64) -> Result<Constructed, InspectError> {
    let (mut c, pairs) = Common::new(task)?;
    if lambda.is_nan() || lambda <= 0.0 || largest.is_nan() || largest <= 0.0 {
        return Err(InspectError::settings(
            "ridge regression by a program needs lambda and the largest ‖x‖² above 0",
        ));
    }
    let d = task.d;
    let inverse = c.slots.take(d * d);
    let (u, v, moment, w) = (
        c.slots.take(d),
        c.slots.take(d),
        c.slots.take(d),
        c.slots.take(d),
    );
    let (divisor, r, t, one_slot) = (
        c.slots.take(1).start,
        c.slots.take(1).start,
        c.slots.take(1).start,
        c.slots.take(1).start,
    );
    // 1 + xᵀA⁻¹x lies between 1 and this; r begins where both ends are equally far.
    let most = 1.0 + largest / lambda;
    let start = 2.0 / (1.0 + most);
    let layer = |terms: Vec<Term>| Layer {
        moves: Vec::new(),
        terms,
    };
    let mut layers = Vec::new();
    for pair in 0..pairs {
        // u = A⁻¹ x, moment += x y
        let mut terms = Vec::new();
        for i in 0..d {
            for j in 0..d {
                terms.push(product(
                    inverse.start + i * d + j,
                    c.x.start + j,
                    one(u.start + i),
                ));
            }
            terms.push(product(c.x.start + i, c.y, one(moment.start + i)));
        }
        layers.push(Layer {
            moves: c.fetch(pair),
            terms,
        });
        // divisor = 1 + xᵀu, r = where Newton begins
        let mut terms: Vec<Term> = (0..d)
            .map(|k| product(c.x.start + k, u.start + k, one(divisor)))
            .collect();
        terms.push(Term::Add {
            from: one(one_slot),
            to: divisor,
        });
        terms.push(Term::Add {
            from: vec![(one_slot, start)],
            to: r,
        });
        terms.extend(c.clear_pair());
        layers.push(layer(terms));
        for _ in 0..NEWTON {
            // t = divisor r, then r += r - r t
            layers.push(layer(vec![product(divisor, r, one(t))]));
            layers.push(layer(vec![
                Term::Product {
                    left: one(r),
                    right: vec![(one_slot, 1.0), (t, -1.0)],
                    to: one(r),
                },
                clear(t),
            ]));
        }
        // v = u r, then A⁻¹ -= u vᵀ
        let terms = (0..d).map(|k| product(u.start + k, r, one(v.start + k)));
        layers.push(layer(terms.collect()));
        let mut terms = Vec::new();
        for i in 0..d {
            for j in 0..d {
                let to = vec![(inverse.start + i * d + j, -1.0)];
                terms.push(product(u.start + i, v.start + j, to));
            }
        }
        terms.extend(u.clone().chain(v.clone()).chain([divisor, r]).map(clear));
        layers.push(layer(terms));
    }
    let mut terms = Vec::new();
    for i in 0..d {
        for j in 0..d {
            terms.push(product(
                inverse.start + i * d + j,
                moment.start + j,
                one(w.start + i),
            ));
        }
    }
    layers.push(layer(terms));
    layers.push(c.read_out(&w));
    let mut begin: Vec<(usize, f32)> = (0..d)
        .map(|i| (inverse.start + i * d + i, (1.0 / lambda) as f32))
        .collect();
    begin.push((one_slot, 1.0));
    let Common {
        slots, places, out, ..
    } = c;
    Ok(build((d, pairs), (slots, places), out, begin, layers))
}

#[cfg(test)]
mod tests;
