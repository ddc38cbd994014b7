//! Random numbers that follow from a seed and a place alone.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
//! of a counter: number `i` of a stream needs no number before it, so the numbers are the
//! same whatever number of threads draws them, and after a resumed run.

/// A new seed for the part `part` of what `seed` belongs to.
pub fn derive(seed: u64, part: u64) -> u64 {
    mix(seed ^ mix(part.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// `count` numbers of a normal distribution with mean 0 and deviation `deviation`.
pub fn normal(seed: u64, count: usize, deviation: f32) -> Vec<f32> {
    let pairs = (0..count.div_ceil(2) as u64).flat_map(|i| {
        // Box and Muller 1958; the first number is above 0, for the logarithm.
        let radius = (-2.0 * (1.0 - unit(seed, 2 * i)).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(seed, 2 * i + 1);
        [radius * angle.cos(), radius * angle.sin()]
    });
    pairs
        .take(count)
        .map(|x| (x * f64::from(deviation)) as f32)
        .collect()
}

/// Number `i` of the stream, evenly from `[0, 1)`.
pub fn unit(seed: u64, i: u64) -> f64 {
    (derive(seed, i) >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_mean_and_deviation() {
        let x = normal(7, 20_001, 0.02);
        assert_eq!(x.len(), 20_001);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 6e-4, "{mean}");
        assert!((variance.sqrt() - 0.02).abs() < 4e-4, "{variance}");
        let within = x.iter().filter(|x| x.abs() < 0.02).count() as f32 / x.len() as f32;
        assert!((within - 0.6827).abs() < 0.012, "{within}");
        assert_eq!(x, normal(7, 20_001, 0.02));
        assert_ne!(x[..9], normal(8, 9, 0.02)[..]);
    }
}
