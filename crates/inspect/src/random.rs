//! Numbers that are drawn.

use std::sync::LazyLock;

use rand::{Rng, RngCore};

/// A number of mean 0 and variance 1.
pub(crate) fn normal(rng: &mut impl RngCore) -> f64 {
    keyfold_core::normal(|| rng.random())
}

/// Layers of the ziggurat.
const LAYERS: usize = 128;

/// Where its tail begins, and the area of a layer (Marsaglia and Tsang 2000).
const TAIL: f64 = 3.442_619_855_899;
const AREA: f64 = 9.912_563_035_262_17e-3;

/// Right ends of the layers, the widest first, and the density there.
struct Ziggurat {
    x: [f64; LAYERS + 1],
    f: [f64; LAYERS + 1],
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp()
}

static ZIGGURAT: LazyLock<Ziggurat> = LazyLock::new(|| {
    let mut x = [0.0; LAYERS + 1];
    x[0] = AREA / density(TAIL);
    x[1] = TAIL;
    for i in 2..LAYERS {
        let above = density(x[i - 1]) + AREA / x[i - 1];
        x[i] = (-2.0 * above.ln()).sqrt();
    }
    let mut f = x.map(density);
    f[0] = 0.0;
    Ziggurat { x, f }
});

/// Fills `out` with numbers of mean 0 and variance 1, several times as fast as [`normal`]: most need
/// one random word and one product.
pub(crate) fn normals(rng: &mut impl RngCore, out: &mut [f32]) {
    let z = &*ZIGGURAT;
    out.iter_mut()
        .for_each(|out| *out = from_ziggurat(z, rng) as f32);
}

fn from_ziggurat(z: &Ziggurat, rng: &mut impl RngCore) -> f64 {
    loop {
        let word = rng.next_u64();
        let layer = (word & 127) as usize;
        // From -1 to 1, of the upper 53 bits.
        let u = (word >> 11) as f64 * (2.0 / (1u64 << 53) as f64) - 1.0;
        let x = u * z.x[layer];
        if x.abs() < z.x[layer + 1] {
            return x;
        }
        if layer == 0 {
            return tail(rng).copysign(u);
        }
        let height = z.f[layer] + rng.random::<f64>() * (z.f[layer + 1] - z.f[layer]);
        if height < density(x) {
            return x;
        }
    }
}

/// What lies beyond the widest layer.
fn tail(rng: &mut impl RngCore) -> f64 {
    loop {
        let mut exponential = || -(1.0 - rng.random::<f64>()).ln();
        let (x, y) = (exponential() / TAIL, exponential());
        if 2.0 * y > x * x {
            return TAIL + x;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn the_ziggurat_draws_from_the_normal_distribution() {
        let mut out = vec![0.0; 400_000];
        normals(&mut SmallRng::seed_from_u64(1), &mut out);
        let n = out.len() as f64;
        let moment = |p: i32| out.iter().map(|x| f64::from(*x).powi(p)).sum::<f64>() / n;
        for (power, want) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)] {
            let found = moment(power);
            assert!(
                (found - want).abs() < 0.02 * (1.0 + 5.0 * want),
                "{power}: {found}"
            );
        }
        // Shares beyond 1, 2, 3 and 3.6, which lies in the tail.
        for (x, want) in [
            (1.0, 0.31731),
            (2.0, 0.04550),
            (3.0, 0.0026998),
            (3.6, 0.00031822),
        ] {
            let share = out.iter().filter(|o| o.abs() > x).count() as f64 / n;
            assert!(
                (share - want).abs() < 4.0 * (want / n).sqrt(),
                "{x}: {share}"
            );
        }
    }
}
