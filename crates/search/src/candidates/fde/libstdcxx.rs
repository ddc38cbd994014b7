//! The random numbers of GNU's C++ library, so that encodings can be those of the
//! authors' program (google/graph-mining) to the bit.
//!
//! - `mt19937` (Matsumoto, Nishimura 1998);
//! - `normal_distribution<float>`: the polar method (Marsaglia, Bray 1964), which gives
//!   the second number of a pair first and keeps the other;
//! - `uniform_int_distribution`: the upper half of a product (Lemire 2019), as since
//!   GCC 11;
//! - `bernoulli_distribution(0.5)`: two draws for a sign.

const N: usize = 624;
const M: usize = 397;

/// The generator, with what its normal distribution keeps.
pub(super) struct Libstdcxx {
    state: [u32; N],
    next: usize,
    kept: Option<f32>,
}

impl Libstdcxx {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let before = state[i - 1];
            let mixed = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30));
            state[i] = mixed.wrapping_add(i as u32);
        }
        Self {
            state,
            next: N,
            kept: None,
        }
    }

    fn draw(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let both = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if both & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (both >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut x = self.state[self.next];
        self.next += 1;
        x ^= x >> 11;
        x ^= (x << 7) & 0x9d2c_5680;
        x ^= (x << 15) & 0xefc6_0000;
        x ^ (x >> 18)
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f32 {
        let share = self.draw() as f32 / 4_294_967_296.0;
        if share < 1.0 {
            share
        } else {
            1.0f32.next_down()
        }
    }

    /// From N(0, 1).
    pub(super) fn normal(&mut self) -> f32 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        loop {
            let (x, y) = (2.0 * self.share() - 1.0, 2.0 * self.share() - 1.0);
            let square = x * x + y * y;
            if square <= 1.0 && square != 0.0 {
                // By way of double precision, so that it is the same everywhere.
                let logarithm = f64::from(square).ln() as f32;
                let factor = (-2.0 * logarithm / square).sqrt();
                self.kept = Some(x * factor);
                return y * factor;
            }
        }
    }

    /// A number below `places`, which is at least 1.
    pub(super) fn place(&mut self, places: u32) -> u32 {
        let places = places.max(1);
        let mut product = u64::from(self.draw()) * u64::from(places);
        if (product as u32) < places {
            let least = places.wrapping_neg() % places;
            while (product as u32) < least {
                product = u64::from(self.draw()) * u64::from(places);
            }
        }
        (product >> 32) as u32
    }

    /// 1 or -1.
    pub(super) fn sign(&mut self) -> f32 {
        let (low, high) = (f64::from(self.draw()), f64::from(self.draw()));
        let two = 4_294_967_296.0;
        if (low + high * two) / (two * two) < 0.5 {
            1.0
        } else {
            -1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What parity/libstdcxx.cpp drew.
    #[derive(serde::Deserialize)]
    struct Case {
        seed: u32,
        width: u32,
        places: u32,
        normal: Vec<f32>,
        sketch: Vec<f32>,
        last: Vec<f32>,
    }

    #[test]
    fn numbers_are_those_of_the_library() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/fixtures/libstdcxx.json")).unwrap();
        for case in cases {
            let mut rng = Libstdcxx::new(case.seed);
            for (i, &expected) in case.normal.iter().enumerate() {
                assert_eq!(rng.normal(), expected, "{} {i}", case.seed);
            }
            for (places, pairs) in [(case.width, &case.sketch), (case.places, &case.last)] {
                let mut rng = Libstdcxx::new(case.seed);
                for pair in pairs.chunks(2) {
                    assert_eq!([rng.place(places) as f32, rng.sign()], pair[..]);
                }
            }
        }
        // The 10,000th number that the standard asks for.
        let mut rng = Libstdcxx::new(5489);
        let last = (0..10_000).map(|_| rng.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
