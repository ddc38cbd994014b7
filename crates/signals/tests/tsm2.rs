//! TSM2 and its gradients against PyTorch (parity/mamba_mixer.py), alone and in a batch, and what it
//! learns.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::weights::Weights;
use keyfold_core::{ModelFolder, NoProgress};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::random;
use keyfold_sequence::mamba_mixer::Averaging;
use keyfold_signals::tsm2::{Forecaster, Inputs, Tsm2, Tsm2Config, Tsm2Training, train};
use keyfold_signals::{Errors, Series, Windows, simple};
use keyfold_train::gradient::OptimConfig;
use keyfold_train::{Place, Report, RunConfig, TrainError};
use safetensors::SafeTensors;

fn device() -> Device {
    Device::flex().autodiff()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/tsm2/{name}"))
}

fn expected(name: &str, tensor: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bytes = file.tensor(tensor).unwrap().data().to_vec();
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn agree(name: &str, found: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(found.len(), want.len(), "{name}");
    let most = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(want).enumerate() {
        assert!((a - b).abs() < tolerance * most, "{name}[{i}]: {a} {b}");
    }
}

/// A model and what it is shown.
fn fixture(name: &str) -> (Tsm2, Inputs) {
    let sizes = std::fs::read(folder(name).join("sizes.json")).unwrap();
    let sizes: Tsm2Config = serde_json::from_slice(&sizes).unwrap();
    let place = ModelFolder::find(&folder(name).to_string_lossy()).unwrap();
    let weights = Weights::open(&place, "").unwrap();
    let model = Tsm2::load(&sizes, &weights, &device()).unwrap();
    let of = |wanted: bool, tensor: &str| match wanted {
        true => expected(name, tensor),
        false => Vec::new(),
    };
    let inputs = Inputs {
        columns: 3,
        contexts: expected(name, "contexts"),
        future: of(sizes.future_features > 0, "future"),
        statics: of(sizes.static_features > 0, "statics"),
    };
    (model, inputs)
}

#[test]
fn forecasts_and_gradients_are_those_of_pytorch() {
    for name in ["plain", "features"] {
        let (model, inputs) = fixture(name);
        let out = model.forward(&inputs, None);
        agree(name, &numbers(&out), &expected(name, "out"), 2e-5);
        let factors = TensorData::new(expected(name, "factors"), out.dims());
        let loss = (out * Tensor::from_data(factors, &device())).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let before = model.tensors();
        let after = SgdConfig::new()
            .init()
            .step(1.0, model, gradients)
            .tensors();
        assert!(before.len() > 60, "{}", before.len());
        for (before, after) in before.iter().zip(&after) {
            let pairs = before.numbers.iter().zip(&after.numbers);
            let found: Vec<f32> = pairs.map(|(a, b)| a - b).collect();
            let tensor = format!("gradient.{}", before.name);
            agree(&tensor, &found, &expected(name, &tensor), 2e-4);
        }
    }
}

#[test]
fn a_window_in_a_batch_has_the_forecast_that_it_has_alone() {
    let (model, inputs) = fixture("features");
    let together = numbers(&model.forward(&inputs, None));
    for (half, found) in together.chunks_exact(together.len() / 2).enumerate() {
        let part = |all: &[f32]| all[half * all.len() / 2..(half + 1) * all.len() / 2].to_vec();
        let alone = Inputs {
            contexts: part(&inputs.contexts),
            future: part(&inputs.future),
            ..inputs.clone()
        };
        agree("alone", &numbers(&model.forward(&alone, None)), found, 1e-5);
    }
}

#[test]
fn every_kind_of_average_learns_and_odd_sizes_are_no_trouble() {
    for (averaging, channel_mixer, mlp) in [
        (Averaging::Softmax, true, false),
        (Averaging::Raw, true, false),
        (Averaging::Raw, true, true),
        (Averaging::Plain, true, false),
        (Averaging::Raw, false, false),
        (Averaging::Softmax, false, false),
    ] {
        // One column, a single patch, a length that no stride divides.
        for (seq_len, columns) in [(5, 1), (23, 4)] {
            let sizes = Tsm2Config {
                seq_len,
                pred_len: 3,
                patch_len: 5,
                stride: 3,
                d_model: 5,
                num_layers: 3,
                averaging,
                channel_mixer,
                mlp_channels: if mlp { columns } else { 0 },
                ..Tsm2Config::default()
            };
            let model = Tsm2::init(&sizes, 3, &device()).unwrap();
            let inputs = Inputs {
                columns,
                contexts: random::normal(5, 2 * columns * seq_len, 1.0),
                ..Inputs::default()
            };
            let out = model.forward(&inputs, Some(9));
            assert_eq!(out.dims(), [2 * columns, 3]);
            let gradients =
                GradientsParams::from_grads((out.clone() * out).sum().backward(), &model);
            let before = model.tensors();
            let after = SgdConfig::new()
                .init()
                .step(1.0, model, gradients)
                .tensors();
            let still: Vec<&str> = (before.iter().zip(&after))
                .filter(|(a, b)| a.numbers == b.numbers)
                .map(|(a, _)| a.name.as_str())
                .collect();
            // A softmax of one number is 1, and a norm over one patch is its bias.
            let may_stay = |name: &&str| name.ends_with(".0") || seq_len == 5;
            assert!(still.iter().all(may_stay), "{averaging:?} {still:?}");
            let averages = after.iter().filter(|t| t.name.starts_with("alpha")).count();
            assert_eq!(averages, if averaging == Averaging::Plain { 0 } else { 3 });
        }
    }
}

#[test]
fn linear_maps_over_columns_are_kept_and_tell_one_column_from_another() {
    let mut config = small();
    config.model.mlp_channels = 2;
    config.optim.max_steps = 4;
    let series = seasonal(200);
    let out = tempfile::tempdir().unwrap();
    trained(&series, None, &config, out.path()).unwrap();
    let place = ModelFolder::find(&out.path().to_string_lossy()).unwrap();
    let model = Forecaster::load(&place).unwrap();
    let names: Vec<String> = model
        .model()
        .tensors()
        .into_iter()
        .map(|t| t.name)
        .collect();
    assert!(
        names.contains(&"channel_mlps_up.0.weight".into()),
        "{names:?}"
    );
    assert!(!names.iter().any(|n| n.starts_with("channel_mixers")));
    let influence = model.influence(&series, None).unwrap();
    assert!(
        influence[0][1] > 1e-3 && influence[1][0] > 1e-3,
        "{influence:?}"
    );
    let path = place.file("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let other = text.replace("\"mlp_channels\": 2", "\"mlp_channels\": 3");
    std::fs::write(&path, other).unwrap();
    let wrong = Forecaster::load(&place).err().unwrap().to_string();
    assert!(
        wrong.contains("config.json") && wrong.contains("mlp_channels is 3"),
        "{wrong}"
    );
}

fn seasonal(rows: usize) -> Series {
    let at = |t: usize, column: usize| {
        let t = t as f64;
        let season = (std::f64::consts::TAU * (t / 12.0 + column as f64 / 3.0)).sin();
        100.0 * (1 + column) as f64 + season * 20.0 + (t / 97.0).cos() * 8.0
    };
    Series {
        names: vec!["a".into(), "b".into()],
        columns: (0..2)
            .map(|column| (0..rows).map(|t| at(t, column)).collect())
            .collect(),
        times: Vec::new(),
    }
}

fn small() -> Tsm2Training {
    Tsm2Training {
        model: Tsm2Config {
            seq_len: 48,
            pred_len: 12,
            patch_len: 8,
            stride: 4,
            d_model: 8,
            d_state: 4,
            num_layers: 1,
            dropout: 0.0,
            ..Tsm2Config::default()
        },
        batch_size: 16,
        optim: OptimConfig {
            learning_rate: 5e-3,
            max_steps: 120,
            ..Tsm2Training::default().optim
        },
        run: RunConfig {
            validate_every: 20,
            checkpoint_every: 20,
            ..RunConfig::default()
        },
        ..Tsm2Training::default()
    }
}

fn trained(
    series: &Series,
    statics: Option<&Series>,
    config: &Tsm2Training,
    out: &Path,
) -> Result<Report, TrainError> {
    let place = Place {
        out,
        resume: false,
        progress: &NoProgress,
        watch: &mut |_| {},
    };
    train(series, statics, config, place)
}

#[test]
fn a_season_is_forecast_better_than_by_its_last_value() {
    let series = seasonal(600);
    let out = tempfile::tempdir().unwrap();
    let report = trained(&series, None, &small(), out.path()).unwrap();
    let place = ModelFolder::find(&out.path().to_string_lossy()).unwrap();
    let model = Forecaster::load(&place).unwrap();
    assert_eq!(model.learned().targets, ["a", "b"]);

    let windows = Windows::new(48, 12, 480..600).unwrap();
    let columns = model.learned().scaler.scaled(&series);
    let some = windows.some(20);
    let told = |number: usize, column: usize| -> Vec<f32> {
        let until = series.part(0..windows.context(number).end);
        let scaler = &model.learned().scaler;
        let forecast = model.forecast(&until, None).unwrap();
        let scaled = forecast[column].iter();
        scaled
            .map(|x| ((x - scaler.mean[column]) / scaler.deviation[column]) as f32)
            .collect()
    };
    let ours = Errors::of(&columns, &windows, &some, told);
    let last = Errors::of(&columns, &windows, &some, |number, column| {
        simple::last(&columns[column][windows.context(number)], 12)
    });
    assert!(ours.mse < 0.2 * last.mse, "{ours:?} {last:?}");
    let (_, best) = report.best.unwrap();
    assert!(best < 0.2 * last.mse, "{best} {last:?}");

    // Held at its mean, a column no longer tells how it goes on.
    let influence = model.influence(&series, None).unwrap();
    assert!(
        influence[0][0] > 0.2 && influence[1][1] > 0.2,
        "{influence:?}"
    );

    let short = series.part(0..40);
    let error = model.forecast(&short, None).unwrap_err().to_string();
    assert!(error.contains("40 rows are too few"), "{error}");
    let mut renamed = series.clone();
    renamed.names[1] = "c".into();
    let error = model.forecast(&renamed, None).unwrap_err().to_string();
    assert!(error.contains("no column 'b'"), "{error}");
}

#[test]
fn known_and_still_features_are_learned_and_asked_for() {
    let mut series = seasonal(300);
    series.names.push("holiday".into());
    series
        .columns
        .push((0..300).map(|t| f64::from(t % 7 == 0)).collect());
    let statics = Series {
        names: vec!["size".into()],
        columns: vec![vec![3.0, 5.0]],
        times: vec!["b".into(), "a".into()],
    };
    let mut config = small();
    config.future = vec!["holiday".into()];
    config.optim.max_steps = 2;
    let out = tempfile::tempdir().unwrap();
    trained(&series, Some(&statics), &config, out.path()).unwrap();
    let place = ModelFolder::find(&out.path().to_string_lossy()).unwrap();
    let model = Forecaster::load(&place).unwrap();
    assert_eq!(model.model().config().static_features, 1);
    assert_eq!(
        model.learned().statics,
        [1.0, -1.0],
        "by name, in the order of the columns"
    );

    let error = model.forecast(&series, None).unwrap_err().to_string();
    assert!(error.contains("coming rows of holiday"), "{error}");
    let coming = |value: f64, rows: usize| Series {
        names: vec!["holiday".into()],
        columns: vec![vec![value; rows]],
        times: Vec::new(),
    };
    let error = model.forecast(&series, Some(&coming(1.0, 11)));
    assert!(error.unwrap_err().to_string().contains("has 11 rows"));
    let [no, yes] = [0.0, 1.0].map(|x| model.forecast(&series, Some(&coming(x, 12))).unwrap());
    assert_ne!(no, yes);
    assert!(no.concat().iter().all(|x| x.is_finite()));
}

#[test]
fn what_cannot_be_learned_is_refused_by_name() {
    let series = seasonal(200);
    let refused = |change: &dyn Fn(&mut Tsm2Training)| {
        let mut config = small();
        change(&mut config);
        let out = tempfile::tempdir().unwrap();
        trained(&series, None, &config, out.path())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&|c| c.targets = vec!["z".into()]).contains("no column 'z', but: a, b"));
    assert!(refused(&|c| c.model.seq_len = 500).contains("rows are too few"));
    assert!(refused(&|c| c.model.pred_len = 0).contains("pred_len"));
    assert!(refused(&|c| c.model.patch_len = 60).contains("seq_len is 48"));
    assert!(refused(&|c| c.model.dropout = 1.0).contains("dropout is 1"));
    assert!(refused(&|c| c.held_out = 1.0).contains("held_out is 1"));
    assert!(refused(&|c| c.model.static_features = 2).contains("static_features is 2"));
    assert!(refused(&|c| c.model.mlp_channels = 3).contains("2 columns are forecast"));
    assert!(
        refused(&|c| {
            c.model.mlp_channels = 2;
            c.model.channel_mixer = false;
        })
        .contains("channel_mixer is false")
    );
    assert!(
        refused(&|c| {
            c.targets = vec!["a".into()];
            c.future = vec!["a".into()];
        })
        .contains("'a' is forecast and known at once")
    );
}
