//! Seeds that follow from what they are for, and numbers drawn from a normal distribution.

/// The seed of a text: its hash. What is drawn for the text is the same wherever and
/// whenever it is drawn.
pub fn seed_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()[..8]
        .iter()
        .fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

/// A number of mean 0 and variance 1 from two that `even` draws evenly from `[0, 1)` (Box and
/// Muller 1958). The generator of random numbers is the caller's.
pub fn normal(mut even: impl FnMut() -> f64) -> f64 {
    let (radius, angle) = (even(), even());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_0_variance_1_and_the_right_tail() {
        // Even numbers without a generator: multiples of an irrational number.
        let mut i = 0u32;
        let n = 20_000;
        let numbers: Vec<f64> = (0..n)
            .map(|_| {
                i += 1;
                let mut parts = [0.754_877_666_246_693, 0.569_840_290_998_053]
                    .map(|x: f64| (x * f64::from(i)).fract())
                    .into_iter();
                normal(|| parts.next().unwrap())
            })
            .collect();
        let mean = numbers.iter().sum::<f64>() / f64::from(n);
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        let beyond = numbers.iter().filter(|x| x.abs() > 2.0).count() as f64 / f64::from(n);
        assert!(mean.abs() < 5e-3, "{mean}");
        assert!((variance - 1.0).abs() < 1e-2, "{variance}");
        assert!((beyond - 0.0455).abs() < 2e-3, "{beyond}");
        assert_eq!(normal(|| 0.0), 0.0);
    }
}
