//! The supervised dictionary against the authors' package and released code.

use keyfold_core::NoProgress;
use keyfold_predict::supervised_dictionary::{
    Solver, Start, SupervisedDictionary, SupervisedDictionaryConfig, Variant,
};
use keyfold_predict::{Labels, Linear, Table};

use super::{close, fixture, names, numbers, table};

#[test]
fn atoms_codes_and_weights_are_the_authors() {
    let all = fixture("supervised_dictionary");
    let rows = table(&all["x"]);
    for case in all["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let settings = &case["settings"];
        let lifted = case["solver"] == "SMF_LPGD";
        let aux = (!case["aux"].is_null()).then(|| table(&case["aux"]));
        let x = match &aux {
            None => rows.clone(),
            Some(aux) => {
                let wide = (0..rows.rows()).flat_map(|i| [rows.row(i), aux.row(i)].concat());
                Table::new(rows.columns() + aux.columns(), wide.collect()).unwrap()
            }
        };
        let beta = table(&case["beta_start"]);
        let regression = Linear {
            coef: (0..beta.rows())
                .flat_map(|i| beta.row(i)[1..].to_vec())
                .collect(),
            intercept: (0..beta.rows()).map(|i| beta.row(i)[0]).collect(),
        };
        let config = SupervisedDictionaryConfig {
            n_components: 3,
            xi: case["xi"].as_f64().unwrap(),
            variant: match settings["option"].as_str() {
                Some("feature") => Variant::Feature,
                _ => Variant::Filter,
            },
            solver: if lifted { Solver::Lpgd } else { Solver::Bcd },
            iter: case["iterations"].as_u64().unwrap() as usize,
            beta: Some(if lifted { 0.1 } else { 1.0 }),
            search_radius_const: settings["search_radius_const"].as_f64().unwrap_or(1000.0),
            covariates: aux.map_or(0, |aux| aux.columns()),
            compat: case["compat"] == true,
            ..Default::default()
        };
        let start = Start {
            atoms: numbers(&all["w_start"]),
            codes: numbers(&all["h_start"]),
            regression,
        };
        let labels = Labels::new(&names(&case["labels"]));
        let (model, codes) =
            SupervisedDictionary::fit_from(&x, &labels, &config, Some(start), &NoProgress).unwrap();
        let mut want = table(&case["w"]).numbers().to_vec();
        let mut got: Vec<f64> = model.inverse_transform(&identity(3));
        let mut want_codes = numbers(&case["h"]);
        let mut got_codes = codes;
        // Both sides give atoms as columns; ours come as rows of three atoms.
        want = transposed(&want, 3);
        let beta = table(&case["beta"]);
        let mut want_beta: Vec<f64> = (0..beta.rows())
            .flat_map(|i| beta.row(i)[1..].to_vec())
            .collect();
        let mut got_beta = model.regression().coef.clone();
        if lifted {
            // The sign of a singular vector is arbitrary.
            let (p, n) = (want.len() / 3, got_codes.len() / 3);
            for j in 0..3 {
                let sign = |w: &[f64]| w[j * p..(j + 1) * p].iter().sum::<f64>().signum();
                let columns = got_beta.len();
                for (w, h, b, s) in [
                    {
                        let s = sign(&want);
                        (&mut want, &mut want_codes, &mut want_beta, s)
                    },
                    {
                        let s = sign(&got);
                        (&mut got, &mut got_codes, &mut got_beta, s)
                    },
                ] {
                    w[j * p..(j + 1) * p].iter_mut().for_each(|x| *x *= s);
                    h[j * n..(j + 1) * n].iter_mut().for_each(|x| *x *= s);
                    assert!(j < columns);
                    b[j] *= s;
                }
            }
        }
        close(&format!("{name}: atoms"), &got, &want, 1e-6);
        close(&format!("{name}: codes"), &got_codes, &want_codes, 1e-6);
        close(&format!("{name}: weights"), &got_beta, &want_beta, 1e-5);
    }
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n)
        .map(|i| f64::from(u8::from(i % (n + 1) == 0)))
        .collect()
}

fn transposed(numbers: &[f64], columns: usize) -> Vec<f64> {
    let rows = numbers.len() / columns;
    let place = |i: usize| numbers[i % rows * columns + i / rows];
    (0..numbers.len()).map(place).collect()
}
