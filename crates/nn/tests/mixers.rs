//! Layers of Mamba, Mamba-2 and Hydra and their gradients against PyTorch (parity/mixers.py).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use keyfold_core::ModelFolder;
use keyfold_core::weights::Weights;
use keyfold_nn::checkpoint::{self, NamedTensor, numbers};
use keyfold_nn::mixers::{Hydra, HydraConfig, Mamba, Mamba2, Mamba2Config, MambaConfig};
use safetensors::SafeTensors;

/// Texts of 1, 3, 5 and 257 tokens: shorter than the convolution, and longer than a chunk.
const STARTS: [usize; 5] = [0, 1, 4, 9, 266];
const D: usize = 8;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mixers")
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// What PyTorch gave.
struct Expected(Vec<u8>);

impl Expected {
    fn read() -> Self {
        Self(std::fs::read(folder().join("expected.safetensors")).unwrap())
    }

    fn of(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).unwrap().data();
        let numbers = bytes.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn agree(&self, name: &str, found: &[f32], tolerance: f32) {
        let want = self.of(name);
        assert_eq!(found.len(), want.len(), "{name}");
        let most = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in found.iter().zip(&want).enumerate() {
            assert!((a - b).abs() < tolerance * most, "{name}[{i}]: {a} {b}");
        }
    }
}

fn weights(folder: &Path) -> Weights {
    Weights::open(&ModelFolder::find(&folder.to_string_lossy()).unwrap(), "").unwrap()
}

/// The layer's output, the gradient by its input and, by a step of rate 1, by its weights.
fn compare<M: Module + 'static>(
    kind: &str,
    layer: M,
    forward: impl Fn(&M, Tensor<2>) -> Tensor<2>,
    tensors: impl Fn(&M) -> Vec<NamedTensor>,
) {
    let expected = Expected::read();
    let of = |name: &str| {
        let data = TensorData::new(expected.of(name), [STARTS[4], D]);
        Tensor::<2>::from_data(data, &device())
    };
    let u = of("u").require_grad();
    let out = forward(&layer, u.clone());
    expected.agree(&format!("{kind}.out"), &numbers(&out), 1e-5);
    let gradients = (out * of("factors")).sum().backward();
    let by_u = numbers(&u.grad(&gradients).unwrap());
    expected.agree(&format!("{kind}.gradient.u"), &by_u, 2e-5);
    let before = tensors(&layer);
    let gradients = GradientsParams::from_grads(gradients, &layer);
    let after = tensors(&SgdConfig::new().init().step(1.0, layer, gradients));
    assert!(before.len() > 7);
    for (before, after) in before.iter().zip(&after) {
        let pairs = before.numbers.iter().zip(&after.numbers);
        let found: Vec<f32> = pairs.map(|(a, b)| a - b).collect();
        let name = before.name.replacen('.', ".gradient.", 1);
        expected.agree(&name, &found, 5e-5);
    }
}

#[test]
fn a_layer_of_mamba_is_that_of_transformers() {
    let config = MambaConfig {
        d_model: D,
        d_state: 3,
        dt_rank: 2,
        ..MambaConfig::default()
    };
    let layer = Mamba::load(&config, &weights(&folder()), "mamba", &device()).unwrap();
    let forward = |layer: &Mamba, u| layer.forward(u, &STARTS);
    compare("mamba", layer, forward, |layer| layer.tensors("mamba"));
}

#[test]
fn a_layer_of_mamba_2_is_that_of_transformers() {
    let config = Mamba2Config {
        d_model: D,
        d_state: 3,
        headdim: 4,
        ..Mamba2Config::default()
    };
    let layer = Mamba2::load(&config, &weights(&folder()), "mamba2", &device()).unwrap();
    let forward = |layer: &Mamba2, u| layer.forward(u, &STARTS);
    compare("mamba2", layer, forward, |layer| layer.tensors("mamba2"));
}

fn hydra() -> HydraConfig {
    HydraConfig {
        d_model: D,
        d_state: 3,
        headdim: 4,
        ..HydraConfig::default()
    }
}

#[test]
fn a_layer_of_hydra_is_that_of_pytorch() {
    let layer = Hydra::load(&hydra(), &weights(&folder()), "hydra", &device()).unwrap();
    let forward = |layer: &Hydra, u| layer.forward(u, &STARTS);
    compare("hydra", layer, forward, |layer| layer.tensors("hydra"));
}

#[test]
fn a_layer_that_is_written_is_read_again() {
    for shared in [false, true] {
        let config = HydraConfig { shared, ..hydra() };
        let layer = Hydra::init(&config, 0.3, 7, &device()).unwrap();
        let out = tempfile::tempdir().unwrap();
        checkpoint::write(
            &out.path().join("model.safetensors"),
            &layer.tensors("mixer"),
        )
        .unwrap();
        let again = Hydra::load(&config, &weights(out.path()), "mixer", &device()).unwrap();
        let data = TensorData::new(Expected::read().of("u"), [STARTS[4], D]);
        let u = Tensor::<2>::from_data(data, &device());
        let outputs = [&layer, &again].map(|l| numbers(&l.forward(u.clone(), &STARTS)));
        assert_eq!(outputs[0], outputs[1]);
        assert!(outputs[0].iter().any(|x| x.abs() > 1e-3));
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut HydraConfig)| {
        let mut config = hydra();
        change(&mut config);
        Hydra::init(&config, 0.1, 1, &device())
            .unwrap_err()
            .to_string()
    };
    assert!(with(&|c| c.headdim = 5).contains("headdim 5"));
    assert!(with(&|c| c.d_conv = 4).contains("d_conv"));
    assert!(with(&|c| c.ngroups = 3).contains("ngroups 3"));
    let wrong = MambaConfig {
        d_model: D,
        d_state: 5,
        ..MambaConfig::default()
    };
    let error = Mamba::load(&wrong, &weights(&folder()), "mamba", &device()).unwrap_err();
    assert!(error.to_string().contains("mamba."), "{error}");
}
