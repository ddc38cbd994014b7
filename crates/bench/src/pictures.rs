//! Pictures that are drawn, and patches of them.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// A grey picture of discs that cover each other, `[side, side]`, from 0 to 1: edges at all
/// sizes, as in photographs (the dead leaves model: Matheron 1968; Lee, Mumford and Huang 2001).
/// Each disc has a slope of grey and a little grain.
pub(crate) fn dead_leaves(side: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut picture = vec![0.5f32; side * side];
    let (least, most) = (3.0f64, side as f64 / 4.0);
    for _ in 0..side * side / 60 {
        // Radii by the power law r^-3, cut at both ends.
        let u: f64 = rng.random();
        let radius = (least.powi(-2) + u * (most.powi(-2) - least.powi(-2))).powf(-0.5);
        let (x, y): (f64, f64) = (
            rng.random_range(0.0..side as f64),
            rng.random_range(0.0..side as f64),
        );
        let grey: f32 = rng.random_range(0.1..0.9);
        let slope: [f64; 2] = [
            rng.random_range(-0.004..0.004),
            rng.random_range(-0.004..0.004),
        ];
        let rows = (y - radius).max(0.0) as usize..((y + radius) as usize + 1).min(side);
        for i in rows {
            let half = (radius.powi(2) - (i as f64 - y).powi(2)).max(0.0).sqrt();
            for j in (x - half).max(0.0) as usize..((x + half) as usize).min(side) {
                let shade = slope[0] * (j as f64 - x) + slope[1] * (i as f64 - y);
                picture[i * side + j] = grey + shade as f32;
            }
        }
    }
    for x in &mut picture {
        *x += rng.random_range(-0.01..0.01);
    }
    picture
}

/// `count` patches of `size` x `size` at random places, each without its mean, one a row.
pub(crate) fn patches(
    picture: &[f32],
    side: usize,
    size: usize,
    count: usize,
    seed: u64,
) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let across = side + 1 - size;
    let mut places: Vec<usize> = (0..across * across).collect();
    places.shuffle(&mut rng);
    let mut rows = Vec::with_capacity(count * size * size);
    for place in places.into_iter().cycle().take(count) {
        let (top, left) = (place / across, place % across);
        let start = rows.len();
        for i in top..top + size {
            rows.extend_from_slice(&picture[i * side + left..][..size]);
        }
        let patch = &mut rows[start..];
        let mean = patch.iter().sum::<f32>() / patch.len() as f32;
        patch.iter_mut().for_each(|x| *x -= mean);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_have_no_mean_and_much_to_say() {
        let picture = dead_leaves(64, 1);
        assert!(picture.iter().all(|x| (-0.6..=1.6).contains(x)));
        assert_ne!(picture, dead_leaves(64, 2));
        let rows = patches(&picture, 64, 8, 50, 3);
        assert_eq!(rows.len(), 50 * 64);
        for row in rows.chunks_exact(64) {
            assert!(row.iter().sum::<f32>().abs() < 1e-3);
        }
        assert!(rows.iter().any(|x| x.abs() > 0.1));
    }
}
