//! Products of many rows with few: the inner loop of MaxSim, of centroid scores
//! and of narrow matrix products.
//!
//! The few rows (a query) are rearranged once: a register holds `L` dimensions
//! of `8 / L` of them,
//!
//! ```text
//! L = 2:  [q0d0 q0d1 q1d0 q1d1 q2d0 q2d1 q3d0 q3d1]
//! ```
//!
//! and is multiplied with the same `L` dimensions of one of the many rows,
//! repeated: `[x0 x1 x0 x1 x0 x1 x0 x1]`. The many rows stay as they are. Several
//! of them times several registers are worked on at once (a tile), so that the
//! multiply-add units set the speed and not the loads. The larger `L`, the fewer
//! lanes stay empty and the more sums across lanes are left for the end.

use crate::vector::Eight;

/// Few rows, rearranged.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    /// How many rows.
    count: usize,
    /// Length of a row.
    depth: usize,
    /// How many dimensions are worked on before the next; the few rows in that
    /// many stay in the first cache.
    block: usize,
    /// `L`: 1, 2, 4 or 8.
    group: usize,
    /// By panel of registers, and in it by block: `[block / L, registers, 8]`.
    data: Vec<f32>,
}

/// How many rows before its turn a row is asked for.
const AHEAD: usize = 12;

/// Splits registers into panels of two and three; one alone is bound by its loads.
fn panels(registers: usize) -> impl Iterator<Item = usize> {
    let mut rest = registers;
    std::iter::from_fn(move || {
        let size = match rest {
            0 => return None,
            2 | 4 => 2,
            _ => rest.min(3),
        };
        rest -= size;
        Some(size)
    })
}

/// The `L` that takes least time for `count` rows of `depth`, of those that divide `block`.
fn best_group(count: usize, depth: usize, block: usize) -> usize {
    // In multiply-adds per row of the many: products, and sums across lanes
    // (so many steps for each result).
    let cost = |&(group, steps): &(usize, usize)| {
        let registers = (count * group).div_ceil(8);
        let products = registers * depth / group;
        let alone = if registers == 1 { products / 6 } else { 0 };
        products + alone + registers * steps
    };
    [(1, 0), (2, 2), (4, 4), (8, 6)]
        .into_iter()
        .filter(|(group, _)| block.is_multiple_of(*group) && depth.is_multiple_of(*group))
        .min_by_key(cost)
        .map_or(1, |(group, _)| group)
}

impl Lanes {
    /// Rearranges `count` rows of `depth` numbers that stand `stride` apart.
    ///
    /// With `block` below `depth` the products come in several parts, which the
    /// sink has to add up.
    ///
    /// # Panics
    /// When `rows` is too short.
    pub(crate) fn new(
        rows: &[f32],
        stride: usize,
        count: usize,
        depth: usize,
        block: usize,
    ) -> Self {
        let block = block.clamp(1, depth.max(1));
        let group = best_group(count, depth, block);
        let per_register = 8 / group;
        let registers = count.div_ceil(per_register);
        let mut data = vec![0.0; registers * 8 * depth / group];
        let mut rest = &mut data[..];
        let mut register = 0;
        for size in panels(registers) {
            let panel;
            (panel, rest) = rest.split_at_mut(size * 8 * depth / group);
            for place in 0..size {
                // Lanes beyond the last row repeat it, so that they never win.
                let row = |lane: usize| {
                    let row = (register * per_register + lane / group).min(count - 1);
                    &rows[row * stride..][..depth]
                };
                let lanes: [&[f32]; 8] = std::array::from_fn(row);
                let slots = panel.chunks_exact_mut(8).skip(place).step_by(size);
                for (d, slot) in (0..depth).step_by(group).zip(slots) {
                    for (l, x) in slot.iter_mut().enumerate() {
                        *x = lanes[l][d + l % group];
                    }
                }
                register += 1;
            }
        }
        Self {
            count,
            depth,
            block,
            group,
            data,
        }
    }

    fn registers(&self) -> usize {
        (self.count * self.group).div_ceil(8)
    }

    /// How many numbers [`Best`] needs.
    pub(crate) fn width(&self) -> usize {
        8 * self.registers()
    }

    /// The greatest product of every few-row, from what [`Best`] kept.
    pub(crate) fn results<'a>(&self, best: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        best.iter().step_by(self.group).take(self.count).copied()
    }
}

/// What is done with the products of a tile.
pub(crate) trait Sink {
    /// Takes the products of the many-rows `first..first + rows` (`rows <= R`)
    /// with the registers from `register` on. Every product fills `L` lanes.
    /// What stands for rows beyond `rows` repeats the last.
    fn take<V: Eight, const L: usize, const R: usize, const REGISTERS: usize>(
        &mut self,
        first: usize,
        rows: usize,
        register: usize,
        products: &[[V; REGISTERS]; R],
        // Whether they belong to sums that were handed over before.
        add: bool,
    );
}

/// Keeps the greatest product of every few-row. NaN is passed over.
pub(crate) struct Best<'a> {
    /// 8 numbers per register, at first `-inf`.
    pub(crate) best: &'a mut [f32],
    /// What the products of each of the many rows are multiplied with first.
    pub(crate) scales: Option<&'a [f32]>,
}

impl Sink for Best<'_> {
    #[inline(always)]
    fn take<V: Eight, const L: usize, const R: usize, const REGISTERS: usize>(
        &mut self,
        first: usize,
        rows: usize,
        register: usize,
        products: &[[V; REGISTERS]; R],
        add: bool,
    ) {
        debug_assert!(!add, "a maximum needs whole sums");
        let mut scales = [V::splat(1.0); R];
        if let Some(all) = self.scales {
            for (r, scale) in scales.iter_mut().enumerate() {
                *scale = V::splat(all[first + r.min(rows - 1)]);
            }
        }
        for v in 0..REGISTERS {
            let slot = &mut self.best[8 * (register + v)..][..8];
            let mut best = V::load(slot);
            for (row, &scale) in products.iter().zip(&scales) {
                best = row[v].mul(scale).max(best);
            }
            best.store(slot);
        }
    }
}

/// Keeps, for every many-row, the greatest product and with which few-row, in 8
/// lanes each. NaN is passed over.
pub(crate) struct Nearest<'a> {
    /// `[many, 8]`, at first `-inf`.
    pub(crate) best: &'a mut [f32],
    /// `[many, 8]`: the register, as a number.
    pub(crate) register: &'a mut [f32],
}

impl Sink for Nearest<'_> {
    #[inline(always)]
    fn take<V: Eight, const L: usize, const R: usize, const REGISTERS: usize>(
        &mut self,
        first: usize,
        rows: usize,
        register: usize,
        products: &[[V; REGISTERS]; R],
        add: bool,
    ) {
        debug_assert!(!add, "a maximum needs whole sums");
        for (r, products) in products.iter().enumerate() {
            if r >= rows {
                break;
            }
            let best_slot = &mut self.best[8 * (first + r)..][..8];
            let register_slot = &mut self.register[8 * (first + r)..][..8];
            let mut best = V::load(best_slot);
            let mut place = V::load(register_slot);
            for (v, &x) in products.iter().enumerate() {
                // Exact: there are fewer than 2^24 registers.
                let here = V::splat((register + v) as f32);
                place = best.if_less(x, here, place);
                best = x.max(best);
            }
            best.store(best_slot);
            place.store(register_slot);
        }
    }
}

impl Lanes {
    /// The few-row that [`Nearest`] found for one of the many rows, the first of
    /// equals, and the product; `None` where no product was above `-inf`.
    pub(crate) fn nearest(&self, best: &[f32], register: &[f32]) -> Option<(usize, f32)> {
        let lanes = || (0..8).step_by(self.group);
        let highest = lanes().fold(f32::NEG_INFINITY, |a, l| a.max(best[l]));
        // Without branches, which nobody could predict.
        let row = |l: usize| {
            let row = (register[l] as usize * 8 + l) / self.group;
            if best[l] == highest { row } else { usize::MAX }
        };
        let first = lanes().map(row).min()?.min(self.count - 1);
        (highest > f32::NEG_INFINITY).then_some((first, highest))
    }
}

/// Writes the products to a matrix `[many, few]`.
pub(crate) struct Matrix<'a> {
    pub(crate) out: &'a mut [f32],
    /// Distance of its rows.
    pub(crate) stride: usize,
    /// How many few-rows there are.
    pub(crate) columns: usize,
}

impl Sink for Matrix<'_> {
    #[inline(always)]
    fn take<V: Eight, const L: usize, const R: usize, const REGISTERS: usize>(
        &mut self,
        first: usize,
        rows: usize,
        register: usize,
        products: &[[V; REGISTERS]; R],
        add: bool,
    ) {
        for (r, products) in products.iter().enumerate() {
            if r >= rows {
                break;
            }
            // All lanes beyond the columns repeat the last: `zip` leaves them out.
            let row = &mut self.out[(first + r) * self.stride..][..self.columns];
            for (v, &x) in products.iter().enumerate() {
                let slot = &mut row[(register + v) * (8 / L)..];
                if L == 1 && slot.len() >= 8 {
                    let x = if add { x.add(V::load(slot)) } else { x };
                    x.store(slot);
                } else {
                    let lanes = x.to_array();
                    for (slot, &x) in slot.iter_mut().zip(lanes.iter().step_by(L)) {
                        *slot = if add { *slot + x } else { x };
                    }
                }
            }
        }
    }
}

/// The many rows: `count` of them, `stride` apart, or those at `places` among them.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    pub(crate) places: Option<&'a [u32]>,
    /// Whether they come from memory or a far cache, so that asking for them
    /// ahead of time is worth the while (twice the speed; from a near cache it
    /// costs a tenth).
    pub(crate) far: bool,
}

/// Hands the products of all of `many` with all of `few` to `sink`.
///
/// # Panics
/// When `many` are not as long as `few`.
#[inline(always)]
pub(crate) fn product<V: Eight, S: Sink>(many: Rows, few: &Lanes, sink: &mut S) {
    if few.count == 0 {
        return;
    }
    match few.group {
        1 => many.meet::<V, S, 1>(few, sink),
        2 => many.meet::<V, S, 2>(few, sink),
        4 => many.meet::<V, S, 4>(few, sink),
        _ => many.meet::<V, S, 8>(few, sink),
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn meet<V: Eight, S: Sink, const L: usize>(self, few: &Lanes, sink: &mut S) {
        let mut register = 0;
        let mut data = &few.data[..];
        for size in panels(few.registers()) {
            let panel;
            (panel, data) = data.split_at(8 * size * few.depth / L);
            // Rows at once: as many as the registers allow.
            match size {
                1 => self.panel::<V, S, L, 8, 1>(panel, few, register, sink),
                2 => self.panel::<V, S, L, 6, 2>(panel, few, register, sink),
                _ => self.panel::<V, S, L, 3, 3>(panel, few, register, sink),
            }
            register += size;
        }
    }

    /// Some dimensions of a row.
    #[inline(always)]
    fn row(&self, row: usize, from: usize, depth: usize) -> &[f32] {
        let row = self.places.map_or(row, |places| places[row] as usize);
        &self.rows[row * self.stride + from..][..depth]
    }

    /// All rows with one panel, `R` rows at once.
    #[inline(always)]
    fn panel<V: Eight, S: Sink, const L: usize, const R: usize, const REGISTERS: usize>(
        self,
        panel: &[f32],
        few: &Lanes,
        register: usize,
        sink: &mut S,
    ) {
        for from in (0..few.depth).step_by(few.block) {
            let depth = few.block.min(few.depth - from);
            let own = &panel[8 * REGISTERS * (from / L)..][..8 * REGISTERS * (depth / L)];
            let mut first = 0;
            while first < self.count {
                let rows = (self.count - first).min(R);
                let mut pointers = [self.rows.as_ptr(); R];
                for (r, pointer) in pointers.iter_mut().enumerate() {
                    *pointer = self.row(first + r.min(rows - 1), from, depth).as_ptr();
                }
                if self.far && register == 0 {
                    // Later panels find the rows in a cache; they come here first.
                    for later in first + AHEAD..(first + AHEAD + R).min(self.count) {
                        V::prefetch(self.row(later, from, depth));
                    }
                }
                // SAFETY: every pointer is to `depth` numbers and `own` has as
                // many as the tile reads, both by the slicing above.
                let products =
                    unsafe { tile::<V, L, R, REGISTERS>(pointers, depth / L, own.as_ptr()) };
                sink.take::<V, L, R, REGISTERS>(first, rows, register, &products, from > 0);
                first += R;
            }
        }
    }
}

/// Products of `R` rows with a panel.
///
/// # Safety
/// `steps * L` numbers must be readable at every pointer of `rows`, and
/// `steps * 8 * REGISTERS` at `panel`.
#[inline(always)]
unsafe fn tile<V: Eight, const L: usize, const R: usize, const REGISTERS: usize>(
    rows: [*const f32; R],
    steps: usize,
    panel: *const f32,
) -> [[V; REGISTERS]; R] {
    let zero = V::splat(0.0);
    let mut sums = [[zero; REGISTERS]; R];
    for step in 0..steps {
        // SAFETY: step < steps, so by contract all these numbers are readable.
        unsafe {
            let mut few = [zero; REGISTERS];
            for (v, few) in few.iter_mut().enumerate() {
                *few = V::load_at(panel.add(8 * (REGISTERS * step + v)));
            }
            for r in 0..R {
                let x = V::repeat_at::<L>(rows[r].add(L * step));
                for v in 0..REGISTERS {
                    sums[r][v] = x.mul_add(few[v], sums[r][v]);
                }
            }
        }
    }
    for row in &mut sums {
        for sum in row {
            *sum = sum.sum_groups::<L>();
        }
    }
    sums
}
