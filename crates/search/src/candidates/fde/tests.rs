use keyfold_kernels::{dot, maxsim, normalize_rows};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::draw::standard_normal;
use super::*;

fn config(r: usize, k: usize, p: usize) -> FdeConfig {
    FdeConfig {
        num_repetitions: r,
        num_simhash_projections: k,
        projection_dimension: p,
        ..FdeConfig::default()
    }
}

fn identity(r: usize, k: usize) -> FdeConfig {
    FdeConfig {
        projection_type: Projection::Identity,
        ..config(r, k, 0)
    }
}

fn unit_rows(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rows: Vec<f32> = (0..n * dim).map(|_| standard_normal(&mut rng)).collect();
    normalize_rows(&mut rows, dim);
    rows
}

/// Two planes in two dimensions: the axes.
fn quadrants(fill: bool) -> Fde {
    let config = FdeConfig {
        fill_empty_partitions: fill,
        ..identity(1, 2)
    };
    let planes = vec![1.0, 0.0, 0.0, 1.0];
    Fde::with_matrices(2, config, None, planes, Vec::new(), Vec::new()).unwrap()
}

#[test]
fn an_encoding_worked_out_by_hand() {
    // Cells are Gray codes of the sides: -- 0, -+ 1, ++ 2, +- 3.
    let rows = [1.0, 2.0, 3.0, 4.0, 5.0, -6.0];
    let plain = quadrants(false);
    let want = [0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 5.0, -6.0];
    assert_eq!(plain.document(&rows).unwrap(), want);
    let query = plain.query(&rows).unwrap();
    assert_eq!(query.blocks, [2, 3]);
    assert_eq!(query.values, [4.0, 6.0, 5.0, -6.0]);
    assert_eq!(query.dot(&want), 8.0 + 18.0 + 25.0 + 36.0);
    // -- differs from +- in one side, from ++ in two; -+ from ++ in one, whose
    // first vector it gets, not the mean.
    let filled = quadrants(true);
    let want = [5.0, -6.0, 1.0, 2.0, 2.0, 3.0, 5.0, -6.0];
    assert_eq!(filled.document(&rows).unwrap(), want);
    assert_eq!(filled.query(&rows).unwrap(), query);
}

#[test]
fn encodings_are_those_of_published_implementations() {
    #[derive(serde::Deserialize)]
    struct Fixture {
        dim: usize,
        rows: Vec<f32>,
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        by: String,
        planes: Vec<f32>,
        projections: Vec<f32>,
        last: Vec<(u32, f32)>,
        repetitions: usize,
        simhash: usize,
        width: usize,
        fill: bool,
        document: Vec<f32>,
        query: Vec<f32>,
    }
    let fixture: Fixture =
        serde_json::from_str(include_str!("../../../tests/fixtures/muvera.json")).unwrap();
    for case in fixture.cases {
        let config = FdeConfig {
            projection_type: match case.projections.is_empty() {
                true => Projection::Identity,
                false => Projection::Dense,
            },
            fill_empty_partitions: case.fill,
            final_projection_dimension: (!case.last.is_empty()).then_some(case.document.len()),
            ..config(case.repetitions, case.simhash, case.width)
        };
        let (width, cells) = (config.width(fixture.dim), config.partitions());
        let fde = Fde::with_matrices(
            fixture.dim,
            config,
            None,
            case.planes,
            case.projections,
            case.last,
        )
        .unwrap();
        // fastembed numbers cells by their sides, plane j being bit j.
        let reorder = |ours: Vec<f32>| match case.by.as_str() {
            "fastembed" => {
                let mut theirs = vec![0.0; ours.len()];
                for (b, block) in ours.chunks(width).enumerate() {
                    let sides = simhash_sides((b % cells) as u16);
                    let plain = usize::from(sides.reverse_bits() >> (16 - case.simhash));
                    theirs[(b / cells * cells + plain) * width..][..width].copy_from_slice(block);
                }
                theirs
            }
            _ => ours,
        };
        let document = reorder(fde.document(&fixture.rows).unwrap());
        let query = reorder(fde.query(&fixture.rows).unwrap().to_dense(fde.len()));
        for (got, want) in [(document, case.document), (query, case.query)] {
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() < 1e-4 * (1.0 + want.abs()),
                    "{}: {got} {want}",
                    case.by
                );
            }
        }
    }
}

#[test]
fn without_planes_and_projection_it_is_the_product_of_sum_and_mean() {
    let (query, document) = (unit_rows(5, 6, 1), unit_rows(9, 6, 2));
    let fde = Fde::new(6, identity(3, 0), None).unwrap();
    let got = fde
        .query(&query)
        .unwrap()
        .dot(&fde.document(&document).unwrap())
        / 3.0;
    let all = query
        .chunks(6)
        .flat_map(|q| document.chunks(6).map(move |d| dot(q, d)));
    assert!((got - all.sum::<f32>() / 9.0).abs() < 1e-5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn without_projection_the_error_is_one_sided(
        (nq, nd) in (1usize..12, 1usize..20),
        k in 0usize..6,
        seed: u64,
    ) {
        // A mean over a cell is never above the best of the document, and a cell
        // that is filled has a vector of it.
        let (query, document) = (unit_rows(nq, 10, seed), unit_rows(nd, 10, !seed));
        let fde = Fde::new(10, FdeConfig { fill_empty_partitions: true, seed, ..identity(4, k) }, None).unwrap();
        let got = fde.query(&query).unwrap().dot(&fde.document(&document).unwrap()) / 4.0;
        prop_assert!(got <= maxsim(&query, &document, 10) + 1e-4);
    }

    #[test]
    fn a_document_alone_and_among_others_is_the_same(
        counts in prop::collection::vec(0usize..9, 1..6),
        fill: bool,
        last in prop_oneof![Just(None), Just(Some(13))],
        mean: bool,
        seed: u64,
    ) {
        let n: usize = counts.iter().sum();
        let rows = unit_rows(n, 6, seed);
        let mean = mean.then(|| unit_rows(1, 6, !seed));
        let c = FdeConfig { fill_empty_partitions: fill, final_projection_dimension: last, ..config(2, 3, 4) };
        let fde = Fde::new(6, c, mean.as_deref()).unwrap();
        let mut all = vec![9.0; counts.len() * fde.len()];
        fde.documents(&rows, &counts, &mut all).unwrap();
        let mut first = 0;
        for (&count, all) in counts.iter().zip(all.chunks(fde.len())) {
            let own = fde.document(&rows[first * 6..(first + count) * 6]).unwrap();
            for (x, y) in own.iter().zip(all) {
                prop_assert!((x - y).abs() < 1e-5);
            }
            first += count;
        }
    }

    #[test]
    fn the_order_of_vectors_does_not_matter_without_filling(seed: u64, by in 1usize..8) {
        let rows = unit_rows(8, 6, seed);
        let turned = [&rows[by * 6..], &rows[..by * 6]].concat();
        let fde = Fde::new(6, config(3, 3, 4), None).unwrap();
        let (a, b) = (fde.document(&rows).unwrap(), fde.document(&turned).unwrap());
        for (x, y) in a.iter().zip(b) {
            prop_assert!((x - y).abs() < 1e-5);
        }
    }
}

#[test]
fn near_queries_score_nearly_maxsim() {
    // The query is the document with noise; another document has nothing to do
    // with it. More planes bring the score nearer to MaxSim.
    let dim = 32;
    let document = unit_rows(12, dim, 3);
    let mut query = document[..6 * dim].to_vec();
    let noise = unit_rows(6, dim, 4);
    query.iter_mut().zip(noise).for_each(|(q, n)| *q += 0.2 * n);
    normalize_rows(&mut query, dim);
    let exact = maxsim(&query, &document, dim);
    let score = |c: FdeConfig, document: &[f32]| {
        let r = c.num_repetitions as f32;
        let fde = Fde::new(dim, c, None).unwrap();
        fde.query(&query)
            .unwrap()
            .dot(&fde.document(document).unwrap())
            / r
    };
    let filled = |c: FdeConfig| FdeConfig {
        fill_empty_partitions: true,
        ..c
    };
    let few = score(filled(identity(30, 1)), &document);
    let many = score(filled(identity(30, 5)), &document);
    assert!(few < many && many < exact + 1e-4, "{few} {many} {exact}");
    assert!(many > 0.75 * exact, "{many} {exact}");
    // Both projections, and the final one, keep products on the average.
    for projection_type in [Projection::Dense, Projection::Count] {
        let c = FdeConfig {
            projection_type,
            ..filled(config(400, 5, 8))
        };
        let projected = score(c.clone(), &document);
        assert!((projected - many).abs() < 0.1 * exact, "{projected} {many}");
        let last = FdeConfig {
            final_projection_dimension: Some(4096),
            ..c
        };
        let shortened = score(last, &document);
        assert!((shortened - many).abs() < 0.2 * exact, "{shortened} {many}");
    }
    let other = score(filled(config(400, 5, 8)), &unit_rows(12, dim, 5));
    assert!(other < 0.5 * exact, "{other} {exact}");
}

#[test]
fn centring_makes_encodings_of_skewed_vectors_tell_documents_apart() {
    // All vectors have a large part in common; a query is a part of a document.
    let (dim, n) = (32, 200);
    let common = unit_rows(1, dim, 1);
    let skewed = |rows: Vec<f32>| {
        let mut rows = rows;
        for row in rows.chunks_mut(dim) {
            row.iter_mut().zip(&common).for_each(|(x, c)| *x += 3.0 * c);
        }
        normalize_rows(&mut rows, dim);
        rows
    };
    let documents: Vec<Vec<f32>> = (0..n).map(|i| skewed(unit_rows(20, dim, 10 + i))).collect();
    let mut mean = vec![0.0; dim];
    for row in documents.iter().flat_map(|d| d.chunks(dim)) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, x)| *m += x / (20 * n) as f32);
    }
    let found = |mean: Option<&[f32]>| {
        let fde = Fde::new(dim, config(10, 4, 8), mean).unwrap();
        let encoded: Vec<Vec<f32>> = documents.iter().map(|d| fde.document(d).unwrap()).collect();
        let first = |(i, d): (usize, &Vec<f32>)| {
            let query = fde.query(&d[..5 * dim]).unwrap();
            let scores: Vec<f32> = encoded.iter().map(|e| query.dot(e)).collect();
            scores.iter().all(|&s| s <= scores[i])
        };
        documents.iter().enumerate().filter(|&x| first(x)).count()
    };
    let (plain, centred) = (found(None), found(Some(&mean)));
    assert!(centred > 180 && plain < 130, "{plain} {centred}");
}

#[test]
fn bad_parameters_and_vectors_are_refused() {
    let refused = |c: FdeConfig| Fde::new(8, c, None).unwrap_err().to_string();
    assert!(refused(config(0, 3, 4)).contains("num_repetitions"));
    assert!(refused(config(1, 3, 0)).contains("projection_dimension"));
    assert!(refused(config(1, 3, 9)).contains("at most to 8"));
    // Twenty planes: how large that would be is said.
    assert!(refused(config(20, 20, 8)).contains("671088640 bytes"));
    assert!(refused(config(usize::MAX, 16, 8)).contains("MB for each document"));
    let last = FdeConfig {
        final_projection_dimension: Some(0),
        ..config(1, 1, 4)
    };
    assert!(refused(last).contains("final_projection_dimension"));
    let fde = Fde::new(8, config(2, 2, 4), None).unwrap();
    assert_eq!(fde.document(&[f32::NAN; 8]), Err(FdeError::NotFinite));
    assert_eq!(fde.query(&[f32::INFINITY; 8]), Err(FdeError::NotFinite));
    assert!(matches!(
        fde.document(&[0.0; 9]),
        Err(FdeError::Shape { .. })
    ));
    assert!(matches!(fde.query(&[0.0; 7]), Err(FdeError::Shape { .. })));
    // Nothing is nothing.
    assert_eq!(fde.document(&[]).unwrap(), vec![0.0; fde.len()]);
    assert!(fde.query(&[]).unwrap().blocks.is_empty());
    let mean = [0.0; 3];
    assert!(Fde::new(8, config(1, 1, 4), Some(&mean)).is_err());
    let bad = Fde::with_matrices(2, identity(1, 1), None, vec![f32::NAN; 2], vec![], vec![]);
    assert_eq!(bad.unwrap_err(), FdeError::NotFinite);
}

#[test]
fn filling_is_found_out_and_kept() {
    // Of one vector each: a query in the next cell meets nothing unless it is filled.
    let rows = unit_rows(200, 8, 9);
    let options: FdeOptions = "reps=2,simhash=4,proj=8,fill=auto".parse().unwrap();
    let train = |options: &FdeOptions| FdeCoder::train(&rows, &[1; 200], 8, options, 1, 1).unwrap();
    let coder = train(&options);
    assert!(coder.fde().config().fill_empty_partitions);
    let again = FdeCoder::from_bytes(&coder.to_bytes().unwrap()).unwrap();
    assert_eq!(again, coder);
    assert_eq!(again.options(), &options);
    let off = train(&"reps=2,simhash=4,proj=8".parse().unwrap());
    assert!(!off.fde().config().fill_empty_partitions);
}

#[test]
fn the_authors_generator_has_the_authors_sketches_only() {
    let drawn = |projection_type| FdeConfig {
        projection_type,
        generator: Generator::Libstdcxx,
        ..config(2, 3, 4)
    };
    let dense = Fde::new(8, drawn(Projection::Dense), None);
    assert_eq!(dense, Err(FdeError::NoDense));
    let count = Fde::new(8, drawn(Projection::Count), None).unwrap();
    let other = Fde::new(
        8,
        FdeConfig {
            generator: Generator::ChaCha,
            ..drawn(Projection::Count)
        },
        None,
    );
    assert_ne!(count.planes, other.unwrap().planes);
    // Every number of a vector goes to one place, by the draws of parity/libstdcxx.cpp.
    let mut draws = Draw::new(count.config(), 1);
    for d in 0..8 {
        let (place, sign) = draws.place_and_sign(4);
        let column: Vec<f32> = (0..4).map(|w| count.projections[(4 + w) * 8 + d]).collect();
        let mut expected = vec![0.0; 4];
        expected[place as usize] = sign;
        assert_eq!(column, expected);
    }
}
