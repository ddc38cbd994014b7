//! What atoms keep of patches of pictures.

use faer::{Mat, Side};
use keyfold_core::Progress;
use keyfold_data::rows::{RowOptions, read_rows};
use keyfold_dictionary::{Coder, Dictionary, FrankWolfe, FrankWolfeConfig, Learner, Schedule};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{by_scale, failed};
use crate::pictures::{dead_leaves, patches};
use crate::report::Table;
use crate::{BenchError, BenchOptions};

/// Height and width of a patch.
const SIZE: usize = 8;
const WIDTH: usize = SIZE * SIZE;

/// Numbers of a patch that are kept.
const KEPT: usize = 8;

/// The energy that is lost on one picture.
pub(super) struct Picture {
    pub(super) name: String,
    random: f64,
    pub(super) dct: f64,
    pub(super) pca: f64,
    pub(super) ours: f64,
    pub(super) ours_from_dct: f64,
}

pub(super) struct Patches {
    pub(super) pictures: Vec<Picture>,
}

pub(super) fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Patches, BenchError> {
    let (train, test) = (
        by_scale(options.scale, 4_000, 40_000, 40_000),
        by_scale(options.scale, 500, 4_000, 4_000),
    );
    let mut pictures = Vec::new();
    for (name, rows) in all_rows(options, train + test)? {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        progress.start("patches", "pictures", None);
        let held_out = rows.len() / WIDTH / 11;
        let (test, train) = rows.split_at(held_out * WIDTH);
        pictures.push(measure(name, train, test, options.seed)?);
        progress.finish();
    }
    Ok(Patches { pictures })
}

/// The user's patches, or those of drawn pictures.
fn all_rows(options: &BenchOptions, count: usize) -> Result<Vec<(String, Vec<f32>)>, BenchError> {
    let Some(path) = &options.data else {
        let side = by_scale(options.scale, 128, 512, 512);
        let pictures = 0..by_scale(options.scale, 1, 3, 3) as u64;
        let rows = |i: u64| {
            let seed = options.seed.wrapping_add(i);
            let picture = dead_leaves(side, seed);
            let rows = patches(&picture, side, SIZE, count, seed);
            (format!("drawn discs {}", i + 1), rows)
        };
        return Ok(pictures.map(rows).collect());
    };
    let files: Vec<_> = match path.is_dir() {
        true => {
            let entries =
                std::fs::read_dir(path).map_err(|e| BenchError::data(path, e.to_string()))?;
            let entries = entries.flatten().map(|e| e.path());
            let mut files: Vec<_> = entries
                .filter(|p| p.extension().is_some_and(|e| e == "npy"))
                .collect();
            files.sort();
            files
        }
        false => vec![path.clone()],
    };
    let read = |file: &std::path::PathBuf| {
        let rows = read_rows(file, &RowOptions::default())
            .map_err(|e| BenchError::data(file, e.to_string()))?;
        if rows.width != WIDTH || rows.len() < 1100 {
            return Err(BenchError::data(
                file,
                format!(
                    "it holds {} rows of {} numbers; give 1,100 patches of {WIDTH} or more",
                    rows.len(),
                    rows.width
                ),
            ));
        }
        let name = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok((name, rows.values))
    };
    files.iter().map(read).collect()
}

fn measure(name: String, train: &[f32], test: &[f32], seed: u64) -> Result<Picture, BenchError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let uniform = Mat::from_fn(WIDTH, WIDTH, |_, _| rng.random::<f64>());
    let random = uniform.qr().compute_thin_Q();
    let dct = cosine_basis();
    let pca = principal_components(train)?;
    let learned = |start: &Mat<f64>| -> Result<Mat<f64>, BenchError> {
        let config = FrankWolfeConfig {
            schedule: Schedule::Reference,
            batch_size: 64,
            center: false,
            ..FrankWolfeConfig::default()
        };
        let mut learner = FrankWolfe::with_start(config, start.as_ref()).map_err(failed)?;
        learner.partial_fit(train).map_err(failed)?;
        learner.atoms().map_err(failed)
    };
    let lost = |atoms: &Mat<f64>| lost(atoms, test);
    Ok(Picture {
        name,
        random: lost(&random)?,
        dct: lost(&dct)?,
        pca: lost(&pca)?,
        ours: lost(&learned(&random)?)?,
        ours_from_dct: lost(&learned(&dct)?)?,
    })
}

/// What part of the energy is lost with the largest numbers kept.
fn lost(atoms: &Mat<f64>, rows: &[f32]) -> Result<f64, BenchError> {
    let components = (0..WIDTH * WIDTH).map(|i| atoms[(i / WIDTH, i % WIDTH)] as f32);
    let dictionary = Dictionary {
        components: components.collect(),
        width: WIDTH,
        mean: Vec::new(),
        coder: Coder::TopK { k: KEPT },
    };
    dictionary.relative_error(rows).map_err(failed)
}

/// The two-dimensional cosine basis, one atom per row.
fn cosine_basis() -> Mat<f64> {
    let one = |k: usize, x: usize| {
        let scale = if k == 0 { 1.0 } else { 2f64 } / SIZE as f64;
        scale.sqrt() * (std::f64::consts::PI * (x as f64 + 0.5) * k as f64 / SIZE as f64).cos()
    };
    Mat::from_fn(WIDTH, WIDTH, |i, j| {
        one(i / SIZE, j / SIZE) * one(i % SIZE, j % SIZE)
    })
}

fn principal_components(rows: &[f32]) -> Result<Mat<f64>, BenchError> {
    let mut covariance = vec![0f32; WIDTH * WIDTH];
    let x = keyfold_kernels::Matrix::new(rows, WIDTH);
    keyfold_kernels::product(&mut covariance, WIDTH, x.t(), x, 1.0, false, 1);
    // The product is symmetric but for rounding.
    let symmetric = Mat::from_fn(WIDTH, WIDTH, |i, j| {
        f64::from(covariance[i * WIDTH + j] + covariance[j * WIDTH + i]) / 2.0
    });
    let eigen = symmetric.self_adjoint_eigen(Side::Lower).map_err(|_| {
        BenchError::data(
            "frank-wolfe-dictionary",
            "principal components did not converge",
        )
    })?;
    Ok(eigen.U().transpose().to_owned())
}

impl Patches {
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(
            "energy of 8 x 8 patches that is lost with 8 of 64 numbers kept",
            &[
                "picture",
                "random",
                "cosines",
                "principal",
                "Frank-Wolfe",
                "from cosines",
            ],
        );
        for p in &self.pictures {
            let [random, dct, pca, ours, from_dct] =
                [p.random, p.dct, p.pca, p.ours, p.ours_from_dct].map(|x| format!("{x:.4}"));
            table.row([p.name.clone(), random, dct, pca, ours, from_dct]);
        }
        table
    }

    pub(super) fn values(&self) -> Vec<Value> {
        let picture = |p: &Picture| {
            json!({
                "picture": p.name,
                "random": p.random,
                "dct": p.dct,
                "pca": p.pca,
                "frank_wolfe": p.ours,
                "frank_wolfe_from_dct": p.ours_from_dct,
            })
        };
        self.pictures.iter().map(picture).collect()
    }
}
