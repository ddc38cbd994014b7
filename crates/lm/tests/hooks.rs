//! Places inside a pass: what is seen there adds up, and what is changed there counts.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_lm::session::{HookPoint, Observer, Site};
use keyfold_lm::store::CacheType;
use keyfold_lm::{Decoder, ModelFile, Policy, Session};

const PROMPT: [u32; 5] = [3, 7, 11, 5, 2];

fn session(model: &str) -> Session {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = ModelFile::open(&root.join(model)).unwrap();
    let decoder = Arc::new(Decoder::load(&file).unwrap());
    let policy = Policy::dense(&decoder, CacheType::F32, 128).unwrap();
    Session::new(decoder, policy, Arc::new(Team::new(1)))
}

#[derive(Default)]
struct Kept(HashMap<HookPoint, Vec<f32>>);

impl Observer for Kept {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        self.0.insert(point, rows.to_vec());
    }
}

/// Puts rows in place of those of one point.
struct Put(HookPoint, Vec<f32>);

impl Observer for Put {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        if point == self.0 {
            rows.copy_from_slice(&self.1);
        }
    }
}

#[test]
fn states_add_up_and_looking_changes_nothing() {
    for model in ["llama", "gpt2", "qwen3"] {
        let mut plain = session(model);
        plain.prefill(&PROMPT, &NoProgress).unwrap();
        let mut seen = session(model);
        let mut kept = Kept::default();
        seen.observe(&PROMPT, &NoProgress, &mut kept).unwrap();
        assert_eq!(plain.logits(), seen.logits(), "{model}");
        let layers = seen.decoder().config().dims.layers;
        let of = |layer: usize, site: Site| &kept.0[&HookPoint { layer, site }];
        for layer in 0..layers {
            let sum = |a: Site, b: Site, to: Site| {
                let terms = of(layer, a).iter().zip(of(layer, b)).zip(of(layer, to));
                terms
                    .into_iter()
                    .all(|((a, b), to)| (a + b - to).abs() <= 1e-5 * (1.0 + to.abs()))
            };
            assert!(
                sum(Site::ResidPre, Site::AttnOut, Site::ResidMid),
                "{model} {layer}"
            );
            assert!(
                sum(Site::ResidMid, Site::MlpOut, Site::ResidPost),
                "{model} {layer}"
            );
            if layer > 0 {
                assert_eq!(of(layer, Site::ResidPre), of(layer - 1, Site::ResidPost));
            }
        }
    }
}

#[test]
fn states_of_another_prompt_carry_its_answer() {
    for site in [Site::ResidPost, Site::ResidPre, Site::ResidMid] {
        let other = [9, 4, 13, 1, 6];
        let layers = session("llama").decoder().config().dims.layers;
        let point = HookPoint {
            layer: layers - 1,
            site,
        };
        let mut theirs = session("llama");
        let mut kept = Kept::default();
        theirs.observe(&other, &NoProgress, &mut kept).unwrap();
        let mut put = Put(point, kept.0[&point].clone());
        let mut ours = session("llama");
        ours.observe(&PROMPT, &NoProgress, &mut put).unwrap();
        let far = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max)
        };
        assert!(far(ours.logits(), theirs.logits()) < 1e-5, "{site:?}");
    }
}

struct Both(Put, Kept);

impl Observer for Both {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        self.0.at(point, rows);
        self.1.at(point, rows);
    }
}

/// What is seen of a prompt; with `change`, what is seen once the numbers of a point are all that.
fn seen(model: &str, change: Option<(HookPoint, f32)>) -> Kept {
    let mut kept = Kept::default();
    session(model)
        .observe(&PROMPT, &NoProgress, &mut kept)
        .unwrap();
    let Some((point, number)) = change else {
        return kept;
    };
    let numbers = vec![number; kept.0[&point].len()];
    let mut both = Both(Put(point, numbers), Kept::default());
    session(model)
        .observe(&PROMPT, &NoProgress, &mut both)
        .unwrap();
    both.1
}

#[test]
fn queries_keys_and_values_are_seen_and_count() {
    for model in ["llama", "gpt2", "qwen3"] {
        let dims = session(model).decoder().config().dims;
        let at = |site| HookPoint { layer: 0, site };
        let plain = seen(model, None);
        let of = |kept: &Kept, site| kept.0[&at(site)].clone();
        let heads = dims.heads * dims.head_dim;
        let kv = dims.kv_heads * dims.head_dim;
        assert_eq!(of(&plain, Site::Q).len(), PROMPT.len() * heads, "{model}");
        assert_eq!(of(&plain, Site::K).len(), PROMPT.len() * kv, "{model}");
        // Weights of attention sum to 1, so that values of 3 are heads of 3.
        let z = of(&seen(model, Some((at(Site::V), 3.0))), Site::Z);
        assert!(z.iter().all(|x| (x - 3.0).abs() < 1e-5), "{model}: {z:?}");
        // Without queries, or keys, each token sees the mean of the values so far.
        let values = of(&plain, Site::V);
        for site in [Site::Q, Site::K] {
            let z = of(&seen(model, Some((at(site), 0.0))), Site::Z);
            for (i, z) in z.chunks_exact(heads).enumerate() {
                for (place, z) in z.iter().enumerate() {
                    let group = dims.heads / dims.kv_heads;
                    let (head, x) = (place / dims.head_dim / group, place % dims.head_dim);
                    let of = |token: usize| values[token * kv + head * dims.head_dim + x];
                    let mean = (0..=i).map(of).sum::<f32>() / (i + 1) as f32;
                    assert!((z - mean).abs() < 1e-5, "{model} {site:?}: {z} {mean}");
                }
            }
        }
    }
}

#[test]
fn heads_that_are_silenced_add_the_bias_alone() {
    let point = HookPoint {
        layer: 0,
        site: Site::Z,
    };
    let both = seen("llama", Some((point, 0.0)));
    let out = &both.0[&HookPoint {
        layer: 0,
        site: Site::AttnOut,
    }];
    assert!(
        out.iter().all(|x| *x == 0.0),
        "this model has no bias there"
    );
}
