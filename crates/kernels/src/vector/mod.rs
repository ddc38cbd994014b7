//! Several numbers at once, on whatever vector unit the machine has.
//!
//! A kernel is written once, over [`Vector`]; [`simd!`] compiles it for AVX2 and
//! FMA and for any machine, and chooses when the program runs. A kernel's body has no closure
//! around its arithmetic: what the compiler does not inline it makes for any machine, and every
//! operation becomes a call.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx2;

/// Numbers that are worked on in lockstep. Lanes do not meet, except in sums.
pub(crate) trait Vector: Copy {
    /// How many numbers.
    const LEN: usize;
    /// The same number in every lane.
    fn splat(x: f32) -> Self;
    /// The first [`Vector::LEN`] numbers of a slice.
    fn load(from: &[f32]) -> Self;
    /// Loads from memory without a check.
    ///
    /// # Safety
    /// [`Vector::LEN`] numbers must be readable at `from`.
    unsafe fn load_at(from: *const f32) -> Self;
    /// Writes the first [`Vector::LEN`] numbers of a slice.
    fn store(self, to: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once where the machine can.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self * factor - term`, rounded once where the machine can.
    fn mul_sub(self, factor: Self, term: Self) -> Self;
    /// The greater one; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The lesser one; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// `yes` where `self < bound`, else `no`.
    fn if_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// The bits of every lane, as an integer, plus `add`, then moved left by `left`.
    fn shift_bits(self, add: u32, left: u32) -> Self;
    /// Sum of the lanes.
    fn sum(self) -> f32;
}

/// A [`Vector`] of eight numbers.
pub(crate) trait Eight: Vector {
    /// Whether large kernels shall work on several rows with several inputs at once; where
    /// it hardly pays, it only takes time to compile.
    const TILES: bool;
    /// `L` numbers (1, 2, 4 or 8) from memory, repeated to fill the lanes.
    ///
    /// # Safety
    /// `L` numbers must be readable at `from`.
    unsafe fn repeat_at<const L: usize>(from: *const f32) -> Self;
    /// In every lane the sum of its group of `L` neighbours (1, 2, 4 or 8).
    fn sum_groups<const L: usize>(self) -> Self;
    /// Eight entries of a table: lane `l` takes the one that bits
    /// `first + l * BITS ..` of `codes` number. With `BITS` 1 or 2 `low` holds
    /// the table over and over, with 3 the table, with 4 its first half and `high` the second.
    fn look_up<const BITS: u32>(codes: u32, first: u32, low: Self, high: Self) -> Self;
    /// Bit `l` says whether lane `l` is less than that of `bound`.
    fn less_mask(self, bound: Self) -> u32;
    fn to_array(self) -> [f32; 8];
    /// Asks for numbers that will be needed soon.
    fn prefetch(numbers: &[f32]);
    /// Asks for the cache line at an address, which need not be valid, to be brought to the second
    /// cache: many more lines can be on their way there than to the first, and what is asked for
    /// some kilobytes before its turn does not push out what the first one holds.
    fn prefetch_line(at: *const u8);
    /// Eight `f32` of any alignment.
    ///
    /// # Safety
    /// 32 bytes must be readable at `from`.
    unsafe fn load_f32_at(from: *const u8) -> Self;
    /// Eight `f16`, widened.
    ///
    /// # Safety
    /// 16 bytes must be readable at `from`, whatever its alignment.
    unsafe fn load_f16_at(from: *const u8) -> Self;
    /// An `f16` in every lane.
    ///
    /// # Safety
    /// 2 bytes must be readable at `from`.
    unsafe fn splat_f16_at(from: *const u8) -> Self;
    /// Eight `bf16`, widened.
    ///
    /// # Safety
    /// 16 bytes must be readable at `from`, whatever its alignment.
    unsafe fn load_bf16_at(from: *const u8) -> Self;
    /// Eight signed bytes, as numbers.
    ///
    /// # Safety
    /// 8 bytes must be readable at `from`.
    unsafe fn load_i8_at(from: *const u8) -> Self;
    /// The low and the high four bits of eight bytes, as numbers.
    ///
    /// # Safety
    /// 8 bytes must be readable at `from`.
    unsafe fn load_nibbles_at(from: *const u8) -> (Self, Self);
    /// Products of 32 rows of codes with one row of signed bytes. Rows lie in pairs of
    /// bytes, `[pairs, 32, 2]`; a byte holds the code of one column (at most 127), or with
    /// `nibbles` in its high half that of the column two further on.
    ///
    /// # Panics
    /// When `signed` is shorter than the codes.
    fn label_products(codes: &[u8], signed: &[i8], nibbles: bool) -> [i32; 32];
    /// The sums of the lanes of four vectors.
    fn sum_each(four: [Self; 4]) -> [f32; 4];
}

/// Two vectors in lockstep: hides the latency of long chains of operations.
#[derive(Clone, Copy)]
pub(crate) struct Pair<V>(V, V);

impl<V: Vector> Pair<Pair<V>> {
    /// Sum of the four vectors.
    #[inline(always)]
    pub(crate) fn fold(self) -> V {
        (self.0.0.add(self.0.1)).add(self.1.0.add(self.1.1))
    }
}

impl<V: Vector> Vector for Pair<V> {
    const LEN: usize = 2 * V::LEN;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(V::splat(x), V::splat(x))
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(V::load(from), V::load(&from[V::LEN..]))
    }
    #[inline(always)]
    unsafe fn load_at(from: *const f32) -> Self {
        // SAFETY: twice V::LEN numbers are readable by contract.
        unsafe { Self(V::load_at(from), V::load_at(from.add(V::LEN))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        self.0.store(to);
        self.1.store(&mut to[V::LEN..]);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0), self.1.add(other.1))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0), self.1.sub(other.1))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0), self.1.mul(other.1))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(self.0.div(other.0), self.1.div(other.1))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(
            self.0.mul_add(factor.0, term.0),
            self.1.mul_add(factor.1, term.1),
        )
    }
    #[inline(always)]
    fn mul_sub(self, factor: Self, term: Self) -> Self {
        Self(
            self.0.mul_sub(factor.0, term.0),
            self.1.mul_sub(factor.1, term.1),
        )
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn if_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Self(
            self.0.if_less(bound.0, yes.0, no.0),
            self.1.if_less(bound.1, yes.1, no.1),
        )
    }
    #[inline(always)]
    fn shift_bits(self, add: u32, left: u32) -> Self {
        Self(self.0.shift_bits(add, left), self.1.shift_bits(add, left))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.add(self.1).sum()
    }
}

/// Whether AVX2, FMA and F16C may be used (every processor with the first has the
/// others). The answer is cached by the standard library.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("fma") && has!("f16c")
}

/// Whether products of bytes may be added up in fours, in registers of up to 64 bytes (AVX-512
/// with VNNI), beside what [`has_avx2`] tells.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_vnni() -> bool {
    use std::arch::is_x86_feature_detected as has;
    let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl");
    has_avx2() && wide && has!("avx512vnni")
}

/// Defines a function that runs `body::<Avx2>` compiled for AVX2, FMA and F16C on
/// machines that have them, and `body::<Portable>` elsewhere.
///
/// `body` and all that it calls must be `#[inline(always)]`, to be compiled for
/// the vector unit of the caller. Closures are not inlined in time; a trait
/// with a function is (see `math::Map`).
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        #[inline]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            // Apart, so that the registers it saves are not saved for the fast one.
            #[cfg_attr(target_arch = "x86_64", cold, inline(never))]
            #[allow(clippy::too_many_arguments)]
            fn portable($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::vector::Portable>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::vector::Avx2>($($arg),*)
                }
                if $crate::vector::has_avx2() {
                    // SAFETY: the machine has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use simd;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every operation on the two vectors, in one list.
    #[inline(always)]
    fn all<V: Eight>(a: &[f32], b: &[f32], out: &mut Vec<f32>) {
        let (x, y) = (V::load(a), V::load(b));
        let (z, s) = (V::splat(0.75), V::splat(2.0));
        let results = [
            x.add(y),
            x.sub(y),
            x.mul(y),
            x.div(s),
            x.max(y),
            x.min(y),
            x.abs(),
            x.if_less(y, z, s),
            x.shift_bits(126, 3),
            x.sum_groups::<1>(),
            x.sum_groups::<2>(),
            x.sum_groups::<4>(),
            x.sum_groups::<8>(),
            V::look_up::<1>(a[0].to_bits(), 24, z.if_less(z, z, s), x),
            V::look_up::<2>(
                a[1].to_bits(),
                16,
                V::load(&[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]),
                x,
            ),
            V::look_up::<3>(a[3].to_bits(), 5, x, y),
            V::look_up::<4>(a[2].to_bits(), 0, x, y),
            // SAFETY: the tests hand over eight numbers.
            unsafe { V::repeat_at::<1>(a.as_ptr()) },
            unsafe { V::repeat_at::<2>(a.as_ptr()) },
            unsafe { V::repeat_at::<4>(a.as_ptr()) },
            unsafe { V::repeat_at::<8>(a.as_ptr()) },
        ];
        for r in results {
            out.extend(r.to_array());
        }
        let bytes = a.as_ptr().cast::<u8>();
        // SAFETY: eight numbers are 32 bytes.
        unsafe {
            let (low, high) = V::load_nibbles_at(bytes.add(3));
            for r in [
                V::load_f16_at(bytes.add(1)),
                V::load_bf16_at(bytes.add(5)),
                V::splat_f16_at(bytes.add(7)),
                V::load_f32_at(bytes),
                V::load_i8_at(bytes.add(9)),
                low,
                high,
            ] {
                out.extend(r.to_array());
            }
        }
        let mut stored = [0.0; 8];
        x.store(&mut stored);
        out.extend(stored);
        out.push(x.less_mask(y) as f32);
    }

    simd! { fn all_here(a: &[f32], b: &[f32], out: &mut Vec<f32>) = all; }

    #[inline(always)]
    fn rounded<V: Eight>(a: &[f32], b: &[f32]) -> (f32, [f32; 8], [f32; 8]) {
        let (x, y) = (V::load(a), V::load(b));
        let half = V::splat(0.5);
        (
            x.sum(),
            x.mul_add(y, half).to_array(),
            x.mul_sub(y, half).to_array(),
        )
    }

    simd! { fn rounded_here(a: &[f32], b: &[f32]) -> (f32, [f32; 8], [f32; 8]) = rounded; }

    #[inline(always)]
    fn sums<V: Eight>(a: &[f32], b: &[f32]) -> [f32; 4] {
        let (x, y) = (V::load(a), V::load(b));
        V::sum_each([x, y, x.add(y), x.mul(y)])
    }

    simd! { fn sums_here(a: &[f32], b: &[f32]) -> [f32; 4] = sums; }

    proptest! {
        #[test]
        fn the_vector_unit_agrees_with_portable_code_to_the_bit(
            a in prop::collection::vec(any::<f32>(), 8),
            b in prop::collection::vec(any::<f32>(), 8),
        ) {
            let (mut here, mut portable) = (Vec::new(), Vec::new());
            all_here(&a, &b, &mut here);
            all::<Portable>(&a, &b, &mut portable);
            for (x, y) in here.iter().zip(&portable) {
                prop_assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
            }
        }

        #[test]
        fn sums_agree_up_to_rounding(
            a in prop::collection::vec(-1f32..1.0, 8),
            b in prop::collection::vec(-1f32..1.0, 8),
        ) {
            let (sum, fused, less) = rounded_here(&a, &b);
            let (portable_sum, unfused, unfused_less) = rounded::<Portable>(&a, &b);
            prop_assert_eq!(sum, portable_sum);
            prop_assert_eq!(Portable::load(&a).sum_groups::<2>().to_array()[6], a[6] + a[7]);
            prop_assert!((f64::from(sum) - a.iter().map(|&x| f64::from(x)).sum::<f64>()).abs() < 2e-6);
            for (x, y) in sums_here(&a, &b).iter().zip(sums::<Portable>(&a, &b)) {
                prop_assert!((x - y).abs() < 2e-6);
            }
            for l in 0..8 {
                prop_assert!((fused[l] - unfused[l]).abs() < 2e-7);
                prop_assert!((unfused[l] - (a[l] * b[l] + 0.5)).abs() < 2e-7);
                prop_assert!((less[l] - unfused_less[l]).abs() < 2e-7);
                prop_assert!((less[l] - (a[l] * b[l] - 0.5)).abs() < 2e-7);
            }
        }
    }
}
