//! Codes against scikit-learn and against their own definition.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, directions, normal, single, tensors};
use keyfold_dictionary::{Coder, Codes, Dictionary, DictionaryError, SparseCoder};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

#[test]
fn codes_are_those_of_scikit_learn() {
    let t = tensors("coders.safetensors");
    let (x, d) = (single(&t["x"].1), single(&t["d"].1));
    let omp = Coder::Omp {
        n_nonzero_coefs: Some(4),
        tol: None,
    };
    let until = Coder::Omp {
        n_nonzero_coefs: None,
        tol: Some(2.0),
    };
    let mut cases = vec![
        ("omp".to_owned(), omp),
        ("omp_tol".to_owned(), until),
        (
            "threshold".to_owned(),
            Coder::Threshold {
                alpha: 0.5,
                positive: false,
            },
        ),
    ];
    for alpha in [0.05, 0.5] {
        for (positive, end) in [(false, ""), (true, "_positive")] {
            let name = format!("lasso_{alpha}{end}");
            cases.push((name.clone(), Coder::LassoLars { alpha, positive }));
            cases.push((name, Coder::LassoCd { alpha, positive }));
        }
    }
    for (name, coder) in cases {
        let codes = SparseCoder::new(&d, 12, coder).unwrap().encode(&x).unwrap();
        let difference = apart(&codes.to_dense(), &t[&name].1);
        assert!(difference < 2e-3, "{name} {coder:?}: {difference}");
    }
}

/// The conditions of a minimum of `½‖x - cD‖² + α‖c‖₁`.
fn is_lasso(
    x: &[f32],
    d: &[f32],
    code: (&[u32], &[f32]),
    alpha: f32,
    positive: bool,
) -> Result<(), String> {
    let n = x.len();
    let mut rest = x.to_vec();
    keyfold_kernels::gather_add(
        &mut rest,
        d,
        code.0,
        &code.1.iter().map(|v| -v).collect::<Vec<_>>(),
    );
    let scale = keyfold_kernels::norm(x).max(1e-3);
    for (j, atom) in d.chunks_exact(n).enumerate() {
        let product = keyfold_kernels::dot(&rest, atom);
        let ok = match code.0.iter().position(|a| *a as usize == j) {
            Some(place) => (product - alpha * code.1[place].signum()).abs() < 2e-3 * scale,
            None if positive => product < alpha + 2e-3 * scale,
            None => product.abs() < alpha + 2e-3 * scale,
        };
        if !ok {
            return Err(format!("atom {j}: {product} at alpha {alpha}"));
        }
    }
    if positive && code.1.iter().any(|v| *v < 0.0) {
        return Err("a negative number".to_owned());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_lasso_coders_find_the_minimum(
        width in 1usize..20,
        atoms in 1usize..40,
        alpha in 0.02f32..1.0,
        positive: bool,
        seed: u64,
    ) {
        let d = directions(atoms, width, seed);
        let mut rng = StdRng::seed_from_u64(!seed);
        let x: Vec<f32> = (0..3 * width).map(|_| normal(&mut rng)).collect();
        for coder in [Coder::LassoCd { alpha, positive }, Coder::LassoLars { alpha, positive }] {
            let codes = SparseCoder::new(&d, width, coder).unwrap().encode(&x).unwrap();
            for (i, row) in x.chunks_exact(width).enumerate() {
                if let Err(what) = is_lasso(row, &d, codes.row(i), alpha, positive) {
                    prop_assert!(false, "{coder:?}: {what}");
                }
            }
        }
    }

    #[test]
    fn pursuit_leaves_a_rest_that_no_atom_in_use_explains(
        width in 2usize..20,
        atoms in 2usize..40,
        most in 1usize..6,
        seed: u64,
    ) {
        let d = directions(atoms, width, seed);
        let mut rng = StdRng::seed_from_u64(!seed);
        let x: Vec<f32> = (0..width).map(|_| normal(&mut rng)).collect();
        let coder = Coder::Omp { n_nonzero_coefs: Some(most.min(atoms)), tol: None };
        let codes = SparseCoder::new(&d, width, coder).unwrap().encode(&x).unwrap();
        let (used, values) = codes.row(0);
        prop_assert!(used.len() <= most);
        prop_assert!(used.windows(2).all(|w| w[0] < w[1]), "in order, each once");
        let mut rest = x.clone();
        keyfold_kernels::gather_add(&mut rest, &d, used, &values.iter().map(|v| -v).collect::<Vec<_>>());
        for j in used {
            let product = keyfold_kernels::dot(&rest, &d[*j as usize * width..][..width]);
            prop_assert!(product.abs() < 2e-3 * (1.0 + keyfold_kernels::norm(&x)), "{product}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit(seed: u64) {
        let d = directions(30, 16, seed);
        let x = directions(600, 16, !seed);
        let coder = SparseCoder::new(&d, 16, Coder::LassoCd { alpha: 0.1, positive: false }).unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| coder.encode(&x).unwrap())
        };
        prop_assert_eq!(with(1), with(3));
    }
}

#[test]
fn a_dictionary_of_axes_codes_by_its_definition() {
    let d = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let x = [3.0, -2.0, 0.5];
    let code = |coder| {
        SparseCoder::new(&d, 3, coder)
            .unwrap()
            .encode(&x)
            .unwrap()
            .to_dense()
    };
    let alpha = 1.0;
    let shrunk = [2.0, -1.0, 0.0];
    assert_eq!(
        code(Coder::Threshold {
            alpha,
            positive: false
        }),
        shrunk
    );
    assert_eq!(
        code(Coder::LassoCd {
            alpha,
            positive: false
        }),
        shrunk
    );
    assert_eq!(
        code(Coder::LassoLars {
            alpha,
            positive: false
        }),
        shrunk
    );
    assert_eq!(
        code(Coder::LassoLars {
            alpha,
            positive: true
        }),
        [2.0, 0.0, 0.0]
    );
    assert_eq!(code(Coder::HardThreshold { alpha }), [3.0, -2.0, 0.0]);
    assert_eq!(code(Coder::TopK { k: 1 }), [3.0, 0.0, 0.0]);
    assert_eq!(
        code(Coder::Omp {
            n_nonzero_coefs: Some(2),
            tol: None
        }),
        [3.0, -2.0, 0.0]
    );
    let split = Codes::from_dense(&shrunk, 3).split_sign();
    assert_eq!(split.to_dense(), [2.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn equal_and_zero_atoms_do_no_harm() {
    // Twice the same atom, a zero one, and rows of zeros.
    let d = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.6, 0.8];
    let x = [2.0, 1.0, 0.0, 0.0];
    for coder in [
        Coder::Omp {
            n_nonzero_coefs: Some(4),
            tol: None,
        },
        Coder::LassoCd {
            alpha: 0.1,
            positive: false,
        },
        Coder::LassoLars {
            alpha: 0.0,
            positive: false,
        },
        Coder::TopK { k: 4 },
    ] {
        let codes = SparseCoder::new(&d, 2, coder).unwrap().encode(&x).unwrap();
        assert!(codes.to_dense().iter().all(|v| v.is_finite()), "{coder:?}");
        assert_eq!(codes.row(1).0.len(), 0, "{coder:?}: zeros need no atom");
        if !matches!(coder, Coder::TopK { .. }) {
            let again = codes.decode(&d, 2);
            assert!(
                (again[0] - 2.0).abs() < 0.2 && (again[1] - 1.0).abs() < 0.2,
                "{coder:?} {again:?}"
            );
        }
    }
}

#[test]
fn rows_that_cannot_be_coded_are_refused_by_place() {
    let dictionary = |coder| Dictionary {
        components: directions(4, 3, 1),
        width: 3,
        mean: Vec::new(),
        coder,
    };
    let good = dictionary(Coder::TopK { k: 2 });
    let error = good.transform(&[0.0; 4]).unwrap_err();
    assert!(matches!(error, DictionaryError::Part { expected: 3, .. }));
    assert!(matches!(good.transform(&[]), Err(DictionaryError::Empty)));
    let error = good
        .transform(&[0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0])
        .unwrap_err();
    assert!(error.to_string().contains("row 2, column 2"), "{error}");
    for bad in [
        Coder::TopK { k: 0 },
        Coder::TopK { k: 5 },
        Coder::LassoCd {
            alpha: -1.0,
            positive: false,
        },
        Coder::Threshold {
            alpha: f32::NAN,
            positive: false,
        },
        Coder::Omp {
            n_nonzero_coefs: Some(9),
            tol: None,
        },
    ] {
        let error = dictionary(bad).transform(&[0.0; 3]).unwrap_err();
        assert!(
            matches!(error, DictionaryError::Settings(_)),
            "{bad:?} {error}"
        );
    }
    assert!(
        good.inverse_transform(&Codes::from_dense(&[1.0; 5], 5))
            .is_err()
    );
}
