//! Forecasts that learn nothing, beside which others must show what they are worth.

/// The last number again.
pub fn last(context: &[f32], horizon: usize) -> Vec<f32> {
    vec![context.last().copied().unwrap_or(0.0); horizon]
}

/// The number of a period ago; with less of the past than a period, the last number.
pub fn seasonal(context: &[f32], period: usize, horizon: usize) -> Vec<f32> {
    match context.len().checked_sub(period) {
        Some(from) if period > 0 => {
            let season = &context[from..];
            season.iter().copied().cycle().take(horizon).collect()
        }
        _ => last(context, horizon),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seasons_come_again() {
        let x = [9.0, 1.0, 2.0, 3.0];
        assert_eq!(seasonal(&x, 3, 5), [1.0, 2.0, 3.0, 1.0, 2.0]);
        assert_eq!(seasonal(&x, 5, 2), [3.0, 3.0]);
        assert_eq!(seasonal(&x, 0, 1), [3.0]);
        assert_eq!(last(&[], 2), [0.0, 0.0]);
    }
}
