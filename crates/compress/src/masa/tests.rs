use keyfold_core::{NoProgress, StopAfter};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const ROWS: usize = 7;
const COLUMNS: usize = 5;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn layers(count: usize, seed: u64) -> Vec<Vec<f32>> {
    (0..count as u64)
        .map(|l| random(ROWS * COLUMNS, seed + l))
        .collect()
}

/// Inputs whose directions differ in size, and their moments.
fn inputs(seed: u64) -> (Vec<[f64; COLUMNS]>, Vec<f64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mix: Vec<f64> = (0..COLUMNS * COLUMNS)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let inputs: Vec<[f64; COLUMNS]> = (0..400)
        .map(|_| {
            let z: [f64; COLUMNS] =
                std::array::from_fn(|i| rng.random_range(-1.0..1.0) * 4f64.powi(-(i as i32)));
            std::array::from_fn(|i| (0..COLUMNS).map(|j| mix[i * COLUMNS + j] * z[j]).sum())
        })
        .collect();
    let mut moments = vec![0.0; COLUMNS * COLUMNS];
    for x in &inputs {
        for i in 0..COLUMNS {
            for j in 0..COLUMNS {
                moments[i * COLUMNS + j] += x[i] * x[j] / inputs.len() as f64;
            }
        }
    }
    (inputs, moments)
}

/// The mean of `|M x|²`.
fn output(matrix: &[f32], inputs: &[[f64; COLUMNS]]) -> f64 {
    let each = inputs.iter().map(|x| {
        let rows = matrix.chunks_exact(COLUMNS);
        rows.map(|row| {
            row.iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * x)
                .sum::<f64>()
                .powi(2)
        })
        .sum::<f64>()
    });
    each.sum::<f64>() / inputs.len() as f64
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn atoms_are_principal_directions() {
    let all = layers(6, 1);
    let matrices: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    // The long way: singular values of the matrix whose columns are the layers.
    let long = faer::Mat::from_fn(ROWS * COLUMNS, 6, |i, j| f64::from(all[j][i]));
    let singular: Vec<f64> = long
        .thin_svd()
        .unwrap()
        .S()
        .column_vector()
        .iter()
        .copied()
        .collect();
    for count in 1..=6 {
        let atoms = matrix_pca(&matrices, count).unwrap();
        assert_eq!(atoms.count, count);
        let size = ROWS * COLUMNS;
        for (i, a) in atoms.matrices.chunks_exact(size).enumerate() {
            for (j, b) in atoms.matrices.chunks_exact(size).enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                assert!(
                    (dot - f64::from(u8::from(i == j))).abs() < 1e-5,
                    "{i} {j} {dot}"
                );
            }
        }
        let tail: f64 = singular[count..].iter().map(|s| s * s).sum();
        let whole: f64 = singular.iter().map(|s| s * s).sum();
        let lost: f64 = (0..6).map(|l| distance(&atoms.mixture(l), &all[l])).sum();
        assert!((lost - tail).abs() < 1e-5 * whole, "{lost} {tail}");
        assert!((atoms.lost - tail).abs() < 1e-8 * whole);
        assert!((atoms.energy - (1.0 - tail / whole)).abs() < 1e-8);
    }
}

#[test]
fn layers_that_are_mixtures_need_no_more_atoms() {
    let two = layers(2, 9);
    let all: Vec<Vec<f32>> = (0..5)
        .map(|l| {
            two[0]
                .iter()
                .zip(&two[1])
                .map(|(a, b)| a * l as f32 - 0.5 * b)
                .collect()
        })
        .collect();
    let matrices: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    let atoms = matrix_pca(&matrices, 4).unwrap();
    assert_eq!(atoms.count, 2, "others would be rounding");
    for (l, matrix) in all.iter().enumerate() {
        assert!(distance(&atoms.mixture(l), matrix) < 1e-8);
    }
    let zeros = vec![0.0; 12];
    let none = matrix_pca(&[&zeros, &zeros], 1).unwrap();
    assert_eq!((none.count, none.mixture(1)), (0, zeros.clone()));
}

#[test]
fn a_pair_loses_least_of_the_outputs() {
    let matrix = random(ROWS * COLUMNS, 3);
    let (inputs, moments) = inputs(4);
    let found = residual(&matrix, COLUMNS, &moments).unwrap();
    let whole: f64 = found.values.iter().map(|s| s * s).sum();
    assert!(
        (whole / output(&matrix, &inputs) - 1.0).abs() < 1e-2,
        "up to the ridge"
    );
    for rank in 0..=COLUMNS {
        let pair = found.pair(rank);
        assert_eq!(
            (pair.up.len(), pair.down.len()),
            (ROWS * rank, rank * COLUMNS)
        );
        let mut told = vec![0.0; matrix.len()];
        pair.add_to(&mut told);
        let rest: Vec<f32> = matrix.iter().zip(&told).map(|(a, b)| a - b).collect();
        let tail: f64 = found.values[rank..].iter().map(|s| s * s).sum();
        assert!(
            (output(&rest, &inputs) - tail).abs() < 2e-3 * whole,
            "{rank}"
        );
        let share = super::residual::output_size(&rest, COLUMNS, &moments);
        assert!((share - output(&rest, &inputs)).abs() < 1e-9 * whole);
    }
    // Of the same rank the best for the matrix itself is worse for its outputs.
    let identity: Vec<f64> = (0..25).map(|i| f64::from(u8::from(i % 6 == 0))).collect();
    let rest_of = |moments: &[f64]| {
        let mut rest = matrix.clone();
        let mut told = vec![0.0; matrix.len()];
        residual(&matrix, COLUMNS, moments)
            .unwrap()
            .pair(2)
            .add_to(&mut told);
        keyfold_kernels::axpy(&mut rest, -1.0, &told);
        output(&rest, &inputs)
    };
    assert!(rest_of(&moments) < 0.8 * rest_of(&identity));
}

#[test]
fn a_matrix_without_outputs_is_worth_no_more_than_others() {
    let mut moments = vec![0.0; COLUMNS * COLUMNS];
    for i in 0..3 {
        moments[i * (COLUMNS + 1)] = 1.0;
    }
    let mut matrix = random(ROWS * COLUMNS, 3);
    for row in matrix.chunks_exact_mut(COLUMNS) {
        row[..3].fill(0.0);
    }
    let size = super::residual::output_size(&matrix, COLUMNS, &moments);
    assert_eq!(size, 0.0);
    let found = residual(&matrix, COLUMNS, &moments).unwrap();
    let values: f64 = found.values.iter().map(|s| s * s).sum();
    let share = values / super::residual::whole_size(&matrix, COLUMNS, &moments);
    assert!((share - 1.0).abs() < 1e-6, "{share}");
}

#[test]
fn mixtures_are_fitted_to_the_outputs() {
    let all = layers(6, 20);
    let matrices: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    let (inputs, moments) = inputs(4);
    let mut atoms = matrix_pca(&matrices, 2).unwrap();
    let lost = |atoms: &Atoms, layer: usize| {
        let mut rest = all[layer].clone();
        keyfold_kernels::axpy(&mut rest, -1.0, &atoms.mixture(layer));
        output(&rest, &inputs) / output(&all[layer], &inputs)
    };
    let (mut before, mut after) = (0.0, 0.0);
    for (layer, matrix) in all.iter().enumerate() {
        before += lost(&atoms, layer);
        let found = super::residual::mixture(&atoms, matrix, COLUMNS, &moments).unwrap();
        atoms.coefficients[2 * layer..][..2].copy_from_slice(&found);
        let least = lost(&atoms, layer);
        assert!(least < 1.0 + 1e-3, "never worse than no matrix: {least}");
        for (s, by) in [(0, 0.3), (0, -0.3), (1, 0.3), (1, -0.3)] {
            let mut other = atoms.clone();
            other.coefficients[2 * layer + s] += by;
            assert!(lost(&other, layer) > least, "{layer} {s} {by}");
        }
        after += least;
    }
    assert!(after < 0.95 * before, "{after} {before}");
    // So they are in what is compressed.
    let one = [Projection {
        name: "q",
        layers: all.clone(),
        rows: ROWS,
        columns: COLUMNS,
        moments: vec![&moments[..]; 6],
    }];
    let config = MasaConfig {
        groups: 1,
        atoms: Some(2),
        residual: false,
        ..MasaConfig::default()
    };
    let shared = compress(&config, &one, &[0.0; 5], &NoProgress).unwrap();
    assert_eq!(shared[0].atoms.coefficients, atoms.coefficients);
    assert!(shared[0].output_errors.iter().all(|e| *e < 1.001));
}

#[test]
fn groups_are_cut_where_layers_drift_most() {
    let drifts = [0.1, 5.0, 0.2, 0.3, 7.0];
    let one = groups(&drifts, 1).unwrap();
    assert_eq!((one.len(), &one[0]), (1, &(0..6)));
    assert_eq!(groups(&drifts, 3).unwrap(), [0..2, 2..5, 5..6]);
    assert_eq!(groups(&drifts, 6).unwrap().len(), 6);
    assert!(groups(&drifts, 0).is_err() && groups(&drifts, 7).is_err());
    assert!((drift(&[0.5, 0.5], &[0.25, 0.75]) - 0.143_841).abs() < 1e-6);
    assert_eq!(drift(&[0.0, 1.0], &[0.0, 1.0]), 0.0);
}

fn projections(moments: &[f64], count: usize) -> Vec<Projection<'_>> {
    [("q", 1), ("k", 100)]
        .map(|(name, seed)| Projection {
            name,
            layers: layers(count, seed),
            rows: ROWS,
            columns: COLUMNS,
            moments: vec![moments; count],
        })
        .into()
}

#[test]
fn what_is_kept_is_what_was_asked_for_and_more_of_it_is_better() {
    let (_, moments) = inputs(8);
    let all = projections(&moments, 9);
    let drifts = [0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0];
    let whole = 2 * 9 * ROWS * COLUMNS;
    let mut before = f64::INFINITY;
    for keep in [0.4, 0.6, 0.8] {
        let config = MasaConfig {
            groups: 3,
            keep,
            ..MasaConfig::default()
        };
        let shared = compress(&config, &all, &drifts, &NoProgress).unwrap();
        let numbers: usize = shared.iter().map(Shared::numbers).sum();
        assert!(numbers as f64 <= keep * whole as f64);
        assert!(numbers as f64 > keep * whole as f64 - (ROWS + COLUMNS) as f64);
        let errors: f64 = shared
            .iter()
            .flat_map(|s| &s.output_errors)
            .map(|e| e * e)
            .sum();
        assert!(errors < 0.95 * before, "{keep}: {errors}");
        before = errors;
        for part in &shared {
            for (within, layer) in part.layers.clone().enumerate() {
                let true_one = &all[part.projection].layers[layer];
                let share = distance(&part.matrix(within), true_one)
                    / distance(&[0.0; ROWS * COLUMNS], true_one);
                assert!((share.sqrt() - part.errors[within]).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn without_pairs_atoms_alone_are_kept() {
    let mut all = projections(&[], 6);
    all.iter_mut().for_each(|p| p.moments.clear());
    let config = MasaConfig {
        groups: 1,
        keep: 1.0 / 3.0,
        residual: false,
        ..MasaConfig::default()
    };
    let shared = compress(&config, &all, &[0.0; 5], &NoProgress).unwrap();
    assert!(
        shared.iter().all(|s| s.atoms.count == 2),
        "a third of 6 layers"
    );
    assert!(shared.iter().all(|s| s.pairs.iter().all(|p| p.rank == 0)));
    assert!(shared[0].output_errors.is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let (_, moments) = inputs(8);
    let all = projections(&moments, 4);
    let drifts = [0.0; 3];
    let refusal = |config: &MasaConfig, all: &[Projection], drifts: &[f64]| {
        compress(config, all, drifts, &NoProgress)
            .unwrap_err()
            .to_string()
    };
    let default = MasaConfig {
        groups: 1,
        ..MasaConfig::default()
    };
    for keep in [0.0, 1.0, f64::NAN, -1.0] {
        let config = MasaConfig {
            keep,
            ..default.clone()
        };
        assert!(refusal(&config, &all, &drifts).contains("keep is"));
    }
    let many = MasaConfig {
        atoms: Some(5),
        ..default.clone()
    };
    assert!(refusal(&many, &all, &drifts).contains("5 atoms for a group of 4 layers"));
    let groups = MasaConfig {
        groups: 5,
        ..default.clone()
    };
    assert!(refusal(&groups, &all, &drifts).contains("5 groups"));
    assert!(refusal(&default, &all, &[0.0; 4]).contains("by layers"));
    let mut odd = projections(&moments, 4);
    odd[1].layers[2].pop();
    assert!(refusal(&default, &odd, &drifts).contains("k of layer 2"));
    odd[1].layers[2].push(f32::NAN);
    assert!(refusal(&default, &odd, &drifts).contains("not finite"));
    let mut blind = projections(&moments, 4);
    blind[0].moments.clear();
    assert!(refusal(&default, &blind, &drifts).contains("need a text"));
    let zeros = vec![0.0; 25];
    assert!(refusal(&default, &projections(&zeros, 4), &drifts).contains("all zero"));
    let stop = compress(&default, &all, &drifts, &StopAfter::new(1));
    assert_eq!(stop.unwrap_err(), CompressError::Cancelled);
}

#[test]
fn atoms_and_pairs_are_those_of_numpy() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/fixtures/masa.json")).unwrap();
    let read = |name: &str| -> Vec<f32> {
        let all = fixture[name].as_array().unwrap().iter();
        all.map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let (rows, columns) = (6, 4);
    let all = read("layers");
    let matrices: Vec<&[f32]> = all.chunks_exact(rows * columns).collect();
    let atoms = matrix_pca(&matrices, 2).unwrap();
    let mixtures: Vec<f32> = (0..matrices.len()).flat_map(|l| atoms.mixture(l)).collect();
    assert!(distance(&mixtures, &read("mixtures")).sqrt() < 1e-5);
    assert!((atoms.lost - fixture["lost"].as_f64().unwrap()).abs() < 1e-6);
    let moments: Vec<f64> = serde_json::from_value(fixture["moments"].clone()).unwrap();
    let found = residual(matrices[0], columns, &moments).unwrap();
    let values: Vec<f64> = serde_json::from_value(fixture["values"].clone()).unwrap();
    for (a, b) in found.values.iter().zip(values) {
        assert!((a / b - 1.0).abs() < 1e-8, "{a} {b}");
    }
    let mut told = vec![0.0; rows * columns];
    found.pair(2).add_to(&mut told);
    assert!(distance(&told, &read("pair")).sqrt() < 1e-5);
}
