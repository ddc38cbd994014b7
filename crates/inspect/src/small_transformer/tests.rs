use rand::SeedableRng;

use super::*;

fn loss(blocks: &Blocks, w: &[f32], x: &[f32], c: &[f32], length: usize) -> f64 {
    let out = blocks.forward(w, x.to_vec(), length, None).out;
    out.iter()
        .zip(c)
        .map(|(o, c)| f64::from(*o) * f64::from(*c))
        .sum()
}

/// The gradient of a random linear function of the output, against differences.
fn check(config: BlockConfig) {
    let (length, sequences) = (4, 2);
    let mut layout = Layout::default();
    let blocks = Blocks::new(config, &mut layout);
    let mut rng = StdRng::seed_from_u64(3);
    let mut w = layout.zeros();
    blocks.init(&mut w, &mut rng);
    let mut numbers =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    // Norms away from 1 and 0, so that their gradients say something.
    w.iter_mut()
        .zip(numbers(layout.len))
        .for_each(|(w, r)| *w += 0.3 * r);
    let x = numbers(length * sequences * config.width);
    let c = numbers(x.len());
    let mut gradient = layout.zeros();
    let trace = blocks.forward(&w, x.clone(), length, None);
    let dx = blocks.backward(&w, &trace, c.clone(), length, &mut gradient);
    gradients_match((&w, &gradient), (&x, &dx), &|w, x| {
        loss(&blocks, w, x, &c, length)
    });
}

/// Compares gradients of `loss` by some weights and by all inputs with differences.
pub(crate) fn gradients_match(
    (w, gradient): (&[f32], &[f32]),
    (x, dx): (&[f32], &[f32]),
    loss: &dyn Fn(&[f32], &[f32]) -> f64,
) {
    let step = 4e-3;
    let close = |analytic: f32, difference: f64, at: &str| {
        let difference = difference / (2.0 * f64::from(step));
        let error = (f64::from(analytic) - difference).abs();
        assert!(
            error < 0.02 * (1.0 + difference.abs()),
            "{at}: {analytic} {difference}"
        );
    };
    let moved = |numbers: &[f32], i: usize| {
        [step, -step].map(|by| {
            let mut numbers = numbers.to_vec();
            numbers[i] += by;
            numbers
        })
    };
    for i in (0..w.len()).step_by(7) {
        let [up, down] = moved(w, i).map(|w| loss(&w, x));
        close(gradient[i], up - down, &format!("weight {i}"));
    }
    for (i, slope) in dx.iter().enumerate() {
        let [up, down] = moved(x, i).map(|x| loss(w, &x));
        close(*slope, up - down, &format!("input {i}"));
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let config = BlockConfig {
        width: 6,
        heads: 2,
        head_dim: 3,
        mlp: 8,
        norm: true,
        layers: 2,
    };
    check(config);
    check(BlockConfig {
        norm: false,
        mlp: 0,
        ..config
    });
}

#[test]
fn no_token_sees_what_comes_after_it_or_another_sequence() {
    let config = BlockConfig {
        width: 4,
        heads: 2,
        head_dim: 2,
        mlp: 4,
        norm: true,
        layers: 2,
    };
    let mut layout = Layout::default();
    let blocks = Blocks::new(config, &mut layout);
    let mut w = layout.zeros();
    blocks.init(&mut w, &mut StdRng::seed_from_u64(1));
    let x: Vec<f32> = (0..2 * 3 * 4)
        .map(|i| ((i * 7) % 11) as f32 / 11.0)
        .collect();
    let before = blocks.forward(&w, x.clone(), 3, None).out;
    let mut changed = x;
    // The second token of the first sequence.
    changed[4] += 1.0;
    let after = blocks.forward(&w, changed, 3, None).out;
    assert_eq!(before[..4], after[..4]);
    assert_ne!(before[4..8], after[4..8]);
    assert_ne!(before[8..12], after[8..12]);
    assert_eq!(before[12..], after[12..]);
}

#[test]
fn an_edit_of_a_head_reaches_the_output() {
    let config = BlockConfig {
        width: 4,
        heads: 2,
        head_dim: 2,
        mlp: 0,
        norm: false,
        layers: 1,
    };
    let mut layout = Layout::default();
    let blocks = Blocks::new(config, &mut layout);
    let mut w = layout.zeros();
    blocks.init(&mut w, &mut StdRng::seed_from_u64(1));
    let x = vec![0.5; 8];
    let mut add = |_: usize, z: &mut [f32]| z[0] += 1.0;
    let plain = blocks.forward(&w, x.clone(), 2, None).out;
    let edited = blocks.forward(&w, x, 2, Some(&mut add)).out;
    let output = &w[blocks.parts(0).1.w.clone()];
    for i in 0..4 {
        let moved = edited[i] - plain[i];
        assert!(
            (moved - output[i * 4]).abs() < 1e-6,
            "the first token by the first column"
        );
        assert_eq!(edited[4 + i], plain[4 + i], "the second token stays");
    }
}

#[test]
fn the_rate_climbs_and_falls() {
    let rates: Vec<f64> = (0..100).map(|i| warm_cosine(i, 100, 1.0)).collect();
    let top = rates.iter().copied().fold(0.0, f64::max);
    assert!((top - 1.0).abs() < 1e-9 && rates[0] < 0.1 && rates[99] < 1e-2);
}
