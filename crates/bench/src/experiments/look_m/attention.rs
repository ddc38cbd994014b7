//! The error of one head's attention on rows around few centres.

use keyfold_kernels::Team;
use keyfold_lm::attention::DecodeAttention;
use keyfold_lm::roles::{KvStore, Rows, TokenKinds};
use keyfold_lm::store::{CacheType, DenseStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::Scale;
use crate::plot::Line;
use crate::random::normal;

const DIM: usize = 64;
const CENTRES: usize = 32;
const NOISE: f32 = 0.22;
const QUERIES: usize = 64;

/// What was measured before with rows kept by their attention, at 0.2, 0.1 and 0.05 of them.
const KEEP: [f64; 3] = [0.2, 0.1, 0.05];
const SHEET: [(Merge, bool, [f64; 3]); 4] = [
    (Merge::None, false, [0.51, 0.72, 0.93]),
    (Merge::Pivotal, false, [0.47, 0.64, 0.81]),
    (Merge::Average, false, [0.29, 0.35, 0.57]),
    (Merge::Average, true, [0.14, 0.26, 0.51]),
];

/// Rows and queries around common centres.
struct Data {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Data {
    fn new(rows: usize, rng: &mut StdRng) -> Self {
        let mut draw = |n: usize| -> Vec<f32> { (0..n * DIM).map(|_| normal(rng)).collect() };
        let (centres, means) = (draw(CENTRES), draw(CENTRES));
        let near = |of: &[f32], which: &[usize], rng: &mut StdRng| -> Vec<f32> {
            let row = |&c: &usize| of[c * DIM..(c + 1) * DIM].to_vec();
            let rows = which.iter().flat_map(row);
            rows.map(|x| x + NOISE * normal(rng)).collect()
        };
        let pick = |n: usize, rng: &mut StdRng| -> Vec<usize> {
            (0..n).map(|_| rng.random_range(0..CENTRES)).collect()
        };
        let (of_rows, of_queries) = (pick(rows, rng), pick(QUERIES, rng));
        Self {
            keys: near(&centres, &of_rows, rng),
            values: near(&means, &of_rows, rng),
            queries: near(&centres, &of_queries, rng),
        }
    }
}

/// Attention of each query, one after the other.
fn attend(store: &dyn KvStore, dims: &Dims, queries: &[f32]) -> Vec<f32> {
    let (team, rows) = (Team::new(1), Rows::default());
    let mut attention = DecodeAttention::default();
    let mut all = vec![0.0; queries.len()];
    for (query, out) in queries.chunks_exact(DIM).zip(all.chunks_exact_mut(DIM)) {
        attention.attend(
            0,
            dims,
            query,
            u32::MAX - 1,
            None,
            store,
            &rows,
            None,
            &team,
            out,
        );
    }
    all
}

/// Attention that every row gets from the queries.
fn mass(store: &dyn KvStore, queries: &[f32]) -> Vec<f32> {
    let rows = store.len(0, 0);
    let mut mass = vec![0.0; rows];
    let mut scores = vec![0.0; rows];
    for query in queries.chunks_exact(DIM) {
        let all = keyfold_lm::roles::RowSet::Range(0, rows);
        store.dot(0, 0, query, all, &mut scores);
        let scale = 1.0 / (DIM as f32).sqrt();
        let partial = keyfold_kernels::attention::Partial::of(&mut scores, scale);
        keyfold_kernels::axpy(&mut mass, 1.0 / partial.sum, &scores);
    }
    mass
}

pub(super) fn errors(
    options: &BenchOptions,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
    findings: &mut Vec<String>,
) -> Result<(Value, Vec<Line>), BenchError> {
    let (rows, draws) = match options.scale {
        Scale::Smoke => (576, 1),
        Scale::Small => (2304, 10),
        Scale::Full => (2304, 50),
    };
    let dims = cache_dims(1, 1, 1, DIM);
    let title = format!(
        "relative error of {QUERIES} queries' attention to {rows} rows around {CENTRES} centres, mean of {draws}; rows kept by \
         the attention that they got; the sheet's numbers in brackets"
    );
    let mut table = Table::new(
        &title,
        &["dropped rows are", "0.2 kept", "0.1 kept", "0.05 kept"],
    );
    progress.start("errors", "ways", Some(SHEET.len() as u64));
    let (mut values, mut lines, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for (merge, counted, sheet) in SHEET {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut errors = [0.0; 3];
        for draw in 0..draws {
            let seed = options.seed.wrapping_add(draw);
            let data = Data::new(rows, &mut StdRng::seed_from_u64(seed));
            let store = DenseStore::new(dims, CacheType::F32, rows);
            let mut full = store.ok_or_else(|| BenchError::data("look-m", "no store"))?;
            let positions: Vec<u32> = (0..rows as u32).collect();
            full.append(0, &positions, &data.keys, &data.values);
            let exact = attend(&full, &dims, &data.queries);
            let mass = mass(&full, &data.queries);
            for (error, keep) in errors.iter_mut().zip(KEEP) {
                // No images are named: every row is kept for its attention or goes.
                let config = LookMConfig {
                    ratios: Ratios {
                        hh_ratio: keep,
                        recent_ratio: 0.0,
                    },
                    merge,
                    merge_mass: counted,
                };
                let mut evictor = LookM::new(config, dims).map_err(failed("look-m"))?;
                let mut store = full.clone();
                evictor.after_prefill(0, &mass, &TokenKinds::default(), &mut store);
                let got = attend(&store, &dims, &data.queries);
                *error += relative_error(&got, &exact) / draws as f64;
            }
        }
        let name = match (merge, counted) {
            (Merge::None, _) => "dropped".to_owned(),
            (merge, false) => format!("merged, {merge}"),
            (merge, true) => format!("merged, {merge}, and counted"),
        };
        let cell = |i: usize| format!("{:.2} ({:.2})", errors[i], sheet[i]);
        table.row([name.clone(), cell(0), cell(1), cell(2)]);
        values.push(json!({"way": name, "keep": KEEP, "errors": errors, "sheet": sheet}));
        lines.push((name, KEEP.into_iter().zip(errors).collect()));
        found.push(errors);
        progress.advance(1);
    }
    progress.finish();
    tables.push(table);
    let below = |a: usize, b: usize| (0..3).all(|i| found[a][i] < found[b][i]);
    findings.push(format!(
        "merging is better than dropping: {} ({:.2} against {:.2} at 0.1); averages better than the paper's pivotal merge: {} \
         ({:.2}); counting what merged rows stand for, which is not in the paper, better still: {} ({:.2}).",
        holds(below(1, 0)), found[1][1], found[0][1], holds(below(2, 1)), found[2][1], holds(below(3, 2)), found[3][1],
    ));
    Ok((json!(values), lines))
}
