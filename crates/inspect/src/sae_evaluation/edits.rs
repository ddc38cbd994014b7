//! Changing one attribute of a prompt by changing few features.

use keyfold_kernels as kernels;

use super::{Coded, ScaledSae};

/// An activation that was changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The new activation.
    pub row: Vec<f32>,
    /// Features that were changed or taken out.
    pub features: Vec<u32>,
    /// Features that were put in, where these are others.
    pub added: Vec<u32>,
    /// Sum of the weights of `features` in the reconstruction of the prompt.
    pub weight: f64,
}

/// The code of each feature of two rows: feature, of the first, of the second.
fn both(a: (&[u32], &[f32]), b: (&[u32], &[f32])) -> Vec<(u32, f32, f32)> {
    let mut all: Vec<(u32, f32, f32)> = a.0.iter().zip(a.1).map(|(j, x)| (*j, *x, 0.0)).collect();
    for (j, x) in b.0.iter().zip(b.1) {
        match all.iter_mut().find(|entry| entry.0 == *j) {
            Some(entry) => entry.2 = *x,
            None => all.push((*j, 0.0, *x)),
        }
    }
    all.sort_by_key(|entry| entry.0);
    all
}

/// Features for which an edit needs no label: `m` times the one whose change from prompt to
/// counterfactual brings the activation nearest to the counterfactual's. With `r` what is still
/// missing, a change `c d` makes it `‖r‖² + 2 c r·d + c² ‖d‖²`, so that no vector is made but for
/// the one that is taken. Stops before `m` where none comes nearer.
pub fn greedy(
    sae: &ScaledSae,
    (clean, coded): (&[f32], &Coded),
    (target, coded_target): (&[f32], &Coded),
    row: usize,
    m: usize,
) -> Edit {
    let d = sae.sae.d_out;
    let mut edited = clean[row * d..][..d].to_vec();
    let target = &target[row * d..][..d];
    let mut rest: Vec<f32> = edited.iter().zip(target).map(|(a, t)| a - t).collect();
    let entries = both(coded.codes.row(row), coded_target.codes.row(row));
    let mut left: Vec<(u32, Vec<f32>)> = entries
        .iter()
        .filter(|(_, from, to)| from != to)
        .map(|(j, from, to)| (*j, sae.atom(*j).map(|x| x * (to - from)).collect()))
        .collect();
    let mut features = Vec::new();
    while features.len() < m {
        let gain =
            |change: &[f32]| 2.0 * kernels::dot(&rest, change) + kernels::dot(change, change);
        let scored = left.iter().map(|(_, change)| gain(change)).enumerate();
        let Some((at, gain)) = scored.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            break;
        };
        if gain >= 0.0 {
            break;
        }
        let (feature, change) = left.remove(at);
        kernels::add_assign(&mut rest, &change);
        kernels::add_assign(&mut edited, &change);
        features.push(feature);
    }
    Edit {
        weight: weight_of(sae, coded, row, &features),
        row: edited,
        features,
        added: Vec::new(),
    }
}

/// Features chosen by what they stand for: of the prompt's active features the `m` best of
/// `ranking[old]` go out, of the counterfactual's the `m` best of `ranking[new]` come in, each
/// with its own code.
pub fn by_score(
    sae: &ScaledSae,
    (clean, coded): (&[f32], &Coded),
    coded_target: &Coded,
    row: usize,
    (old, new): (&[u32], &[u32]),
    m: usize,
) -> Edit {
    let d = sae.sae.d_out;
    let mut edited = clean[row * d..][..d].to_vec();
    let mut change = |coded: &Coded, ranking: &[u32], sign: f32| {
        let (features, values) = coded.codes.row(row);
        let active: Vec<(u32, f32)> = features
            .iter()
            .copied()
            .zip(values.iter().copied())
            .filter(|(_, x)| *x > 0.0)
            .collect();
        let best = ranking
            .iter()
            .filter_map(|j| active.iter().find(|a| a.0 == *j));
        let chosen: Vec<(u32, f32)> = best.take(m).copied().collect();
        for (j, x) in &chosen {
            edited
                .iter_mut()
                .zip(sae.atom(*j))
                .for_each(|(e, a)| *e += sign * x * a);
        }
        chosen.into_iter().map(|(j, _)| j).collect::<Vec<u32>>()
    };
    let features = change(coded, old, -1.0);
    let added = change(coded_target, new, 1.0);
    Edit {
        weight: weight_of(sae, coded, row, &features),
        row: edited,
        features,
        added,
    }
}

fn weight_of(sae: &ScaledSae, coded: &Coded, row: usize, chosen: &[u32]) -> f64 {
    let (features, _) = coded.codes.row(row);
    let weights = features.iter().zip(sae.weights(coded, row));
    weights
        .filter(|(j, _)| chosen.contains(j))
        .map(|(_, w)| w)
        .sum()
}
