//! ViM2: what it learns, what it writes and reads again, and what is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::Device;
use keyfold_core::{ModelFolder, NoProgress};
use keyfold_nn::checkpoint::numbers;
use keyfold_nn::random;
use keyfold_train::gradient::OptimConfig;
use keyfold_train::{Place, Report, RunConfig, TrainError};
use keyfold_vision::vim2::{Classifier, Vim2, Vim2Config, Vim2Training, train};
use keyfold_vision::{Picture, Pictures};

const SIDE: usize = 20;

fn sizes() -> Vim2Config {
    Vim2Config {
        image_size: SIDE,
        dims: vec![8, 8],
        depths: vec![2, 1],
        token_mixers: 1,
        channel_width: 4,
        d_state: 4,
        num_classes: 2,
        ..Vim2Config::default()
    }
}

/// Stripes along rows, or along columns.
fn stripes(count: usize) -> Pictures {
    let one = |i: usize| {
        let class = i % 2;
        let phase = random::unit(5, i as u64) * 6.0;
        let grey = |at: usize| {
            let along = if class == 0 { at / SIDE } else { at % SIDE };
            (128.0 + 100.0 * (along as f64 * 1.6 + phase).sin()) as u8
        };
        let bytes: Vec<u8> = (0..SIDE * SIDE * 3).map(|b| grey(b / 3)).collect();
        (Picture::of_bytes(SIDE, &bytes), class)
    };
    Pictures {
        classes: vec!["lying".into(), "standing".into()],
        all: (0..count).map(one).collect(),
    }
}

fn config() -> Vim2Training {
    Vim2Training {
        model: Vim2Config {
            num_classes: 0,
            ..sizes()
        },
        held_out: 0.25,
        batch_size: 8,
        optim: OptimConfig {
            learning_rate: 5e-3,
            max_steps: 80,
            accumulation: 1,
            ..Vim2Training::default().optim
        },
        run: RunConfig {
            validate_every: 80,
            ..RunConfig::default()
        },
        ..Vim2Training::default()
    }
}

fn trained(pictures: &Pictures, config: &Vim2Training, out: &Path) -> Result<Report, TrainError> {
    let place = Place {
        out,
        resume: false,
        progress: &NoProgress,
        watch: &mut |_| {},
    };
    train(pictures, config, place)
}

#[test]
fn stripes_are_told_apart_by_what_was_written() {
    let pictures = stripes(48);
    let out = tempfile::tempdir().unwrap();
    trained(&pictures, &config(), out.path()).unwrap();
    let folder = ModelFolder::find(&out.path().to_string_lossy()).unwrap();
    let model = Classifier::load(&folder).unwrap();
    assert_eq!(model.classes(), ["lying", "standing"]);
    let new = stripes(100);
    let shown: Vec<&Picture> = new.all[60..].iter().map(|(p, _)| p).collect();
    let found = model.probabilities(&shown);
    let right = found
        .iter()
        .zip(&new.all[60..])
        .filter(|(p, (_, class))| p[*class] > 0.5);
    assert!(right.count() >= 36);
    assert!(
        found
            .iter()
            .all(|p| (p.iter().sum::<f32>() - 1.0).abs() < 1e-5)
    );

    // A picture alone has what it has among others.
    let alone = model.probabilities(&shown[7..8]);
    assert!(
        alone[0]
            .iter()
            .zip(&found[7])
            .all(|(a, b)| (a - b).abs() < 1e-5)
    );

    let again = tempfile::tempdir().unwrap();
    model.save(again.path()).unwrap();
    let file = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(file(out.path()), file(again.path()));
    std::fs::write(again.path().join("config.json"), "{\"model_type\":\"vit\"}").unwrap();
    let folder = ModelFolder::find(&again.path().to_string_lossy()).unwrap();
    assert!(Classifier::load(&folder).is_err());
}

#[test]
fn every_weight_learns() {
    let device = Device::flex().autodiff();
    let model = Vim2::init(&sizes(), 3, &device).unwrap();
    let pictures = stripes(3);
    let shown: Vec<&Picture> = pictures.all.iter().map(|(p, _)| p).collect();
    let out = model.forward(&shown);
    assert_eq!(out.dims(), [3, 2]);
    // Large enough that steps of all weights are seen in single precision.
    let loss = (out.clone() * out).sum().mul_scalar(1e4);
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let before = model.tensors();
    let after = SgdConfig::new()
        .init()
        .step(1.0, model, gradients)
        .tensors();
    let still: Vec<&str> = (before.iter().zip(&after))
        .filter(|(a, b)| a.numbers == b.numbers)
        .map(|(a, _)| a.name.as_str())
        .collect();
    // A softmax of one weight is 1 whatever the weight.
    let first = |name: &&str| {
        ["alpha.0", "beta.0", "gamma.0"]
            .iter()
            .any(|first| name.ends_with(first))
    };
    assert!(still.iter().all(first), "{still:?}");
    assert!(
        after
            .iter()
            .all(|t| t.numbers.iter().all(|x| x.is_finite()))
    );
}

#[test]
fn the_last_point_reaches_the_scores() {
    let device = Device::flex().autodiff();
    let model = Vim2::init(&sizes(), 3, &device).unwrap();
    let pictures = stripes(2);
    let loss = |picture: &Picture| {
        let out = model.forward(&[picture, &pictures.all[1].0]);
        f64::from(numbers(&out)[0])
    };
    let mut moved = pictures.all[0].0.clone();
    let last = moved.numbers.len() - 1;
    moved.numbers[last] += 1.0;
    assert!((loss(&moved) - loss(&pictures.all[0].0)).abs() > 1e-6);
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Vim2Config)| {
        let mut config = sizes();
        change(&mut config);
        Vim2::init(&config, 1, &Device::flex())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&|c| c.image_size = 7).contains("image_size is 7"));
    assert!(refused(&|c| c.image_size = 1 << 40).contains("8192 and 12 are the most"));
    assert!(refused(&|c| c.channel_width = 3).contains("channel_width 3"));
    assert!(refused(&|c| c.depths = vec![1]).contains("depths"));
    assert!(refused(&|c| c.d_state = 0).contains("d_state is 0"));
    let out = tempfile::tempdir().unwrap();
    let mut other = config();
    other.model.num_classes = 5;
    let error = trained(&stripes(8), &other, out.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("num_classes is 5; there are 2"), "{error}");
    other = config();
    other.model.image_size = 16;
    let error = trained(&stripes(8), &other, out.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("16 rows"), "{error}");
}
