#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::Decoder;
use crate::roles::{Reads, Rows, Selector};
use crate::select::Budget;
use crate::select::baselines::OracleTopK;
use crate::session::{Policy, Session};
use crate::store::DenseStore;
use crate::test_store::{Fixture, assert_near, dims, numbers, softmax};
use crate::{LmError, ModelFile};
use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use proptest::prelude::*;
use std::path::Path;

const D: usize = 16;

fn filled(store: &mut dyn KvStore, dims: &Dims, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let wide = dims.kv_heads * dims.head_dim;
    let (keys, values) = (numbers(3, rows * wide), numbers(4, rows * wide));
    let positions: Vec<u32> = (0..rows as u32).collect();
    (0..dims.layers).for_each(|layer| store.append(layer, &positions, &keys, &values));
    (keys, values)
}

fn with_means(mut bases: Bases) -> Bases {
    for (i, basis) in bases.keys.iter_mut().chain(&mut bases.values).enumerate() {
        let d = basis.mean.len();
        *basis = HeadBasis::new(numbers(40 + i as u64, d), basis.directions.clone()).unwrap();
    }
    bases
}

fn store(dims: Dims, bases: &Bases, ranks: &Ranks, folded: bool) -> MatryoshkaStore {
    let bases = Arc::new(bases.clone());
    MatryoshkaStore::new(dims, bases, ranks, CacheType::F32, folded, 0).unwrap()
}

#[test]
fn all_dimensions_are_the_dense_cache() {
    let dims = dims(2, 4, 2, D);
    let bases = with_means(Bases::random(&dims, 1));
    let mut ours = store(dims, &bases, &Ranks::all(&dims, D), false);
    let mut dense = DenseStore::new(dims, CacheType::F32, 0).unwrap();
    filled(&mut ours, &dims, 21);
    filled(&mut dense, &dims, 21);
    let queries = numbers(5, 2 * D);
    let list = [0u32, 3, 20];
    for rows in [RowSet::Range(2, 19), RowSet::List(&list)] {
        let n = rows.len();
        let (mut a, mut b) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
        ours.dot(1, 1, &queries, rows, &mut a);
        dense.dot(1, 1, &queries, rows, &mut b);
        assert_near(&a, &b, 1e-4, "scores");
        let weights = numbers(6, 2 * n);
        let (mut a, mut b) = (vec![0.5; 2 * D], vec![0.5; 2 * D]);
        ours.mix(1, 1, &weights, rows, &mut a);
        dense.mix(1, 1, &weights, rows, &mut b);
        assert_near(&a, &b, 1e-4, "values");
    }
    let (mut keys, mut values) = (vec![0.0; 5 * D], vec![0.0; 5 * D]);
    let (mut other_keys, mut other_values) = (keys.clone(), values.clone());
    ours.read(0, 1, 7..12, &mut keys, &mut values);
    dense.read(0, 1, 7..12, &mut other_keys, &mut other_values);
    assert_near(&keys, &other_keys, 1e-5, "keys");
    assert_near(&values, &other_values, 1e-5, "values");
    // The same rows are dropped, replaced and kept.
    for store in [&mut ours as &mut dyn KvStore, &mut dense] {
        store.set_bias(0, 1, (0..10).map(|row| row as f32).collect());
        store.keep(0, 1, &[1, 4, 9, 15]);
        store.write(0, 1, &[2], &numbers(7, D), &numbers(8, D));
        store.truncate(12);
    }
    assert_eq!(ours.positions(0, 1), [1, 4, 9]);
    assert_eq!(ours.bias(0, 1), [1.0, 4.0, 9.0]);
    assert_eq!(dense.bias(0, 1), [1.0, 4.0, 9.0]);
    assert_eq!(ours.positions(1, 0).len(), 12);
    let (mut a, mut b) = (vec![0.0; 3], vec![0.0; 3]);
    ours.dot(0, 1, &queries[..D], RowSet::Range(0, 3), &mut a);
    dense.dot(0, 1, &queries[..D], RowSet::Range(0, 3), &mut b);
    assert_near(&a, &b, 1e-4, "scores of what is left");
}

#[test]
fn ragged_ranks_take_the_bytes_that_they_name_and_come_back() {
    let dims = dims(2, 4, 2, D);
    let bases = Bases::random(&dims, 2);
    let ranks = Ranks {
        keys: vec![8, 16, 4, 1],
        values: vec![16, 8, 3, 12],
    };
    let mut ours = store(dims, &bases, &ranks, false);
    filled(&mut ours, &dims, 10);
    let numbers: usize = ranks.keys.iter().chain(&ranks.values).sum();
    assert_eq!(ours.bytes() as usize, 10 * (4 * numbers + 4 * 4));
    assert_eq!(ours.row_bytes(), ((8 + 16 + 4 + 1), (16 + 8 + 3 + 12)));
    let mut other = store(dims, &bases, &ranks, false);
    for layer in 0..2 {
        for head in 0..2 {
            let (positions, bytes) = ours.save(layer, head);
            assert!(!other.restore(layer, head, &positions[1..], &bytes));
            assert!(other.restore(layer, head, &positions, &bytes));
            assert_eq!(other.save(layer, head), (positions, bytes));
        }
    }
    let half = MatryoshkaStore::new(dims, Arc::new(bases), &ranks, CacheType::Q8_0, false, 0);
    assert!(half.unwrap_err().to_string().contains("blocks"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let small = dims(1, 2, 1, D);
    let bases = Arc::new(Bases::plain(&small));
    let made = |dims: Dims, ranks: &Ranks| {
        MatryoshkaStore::new(dims, Arc::clone(&bases), ranks, CacheType::F16, false, 0).is_ok()
    };
    assert!(made(small, &Ranks::all(&small, 1)));
    assert!(!made(small, &Ranks::all(&small, 0)));
    assert!(!made(small, &Ranks::all(&small, D + 1)));
    let large = dims(2, 2, 1, D);
    assert!(!made(large, &Ranks::all(&large, 8)));
    assert!(!made(small, &Ranks::all(&large, 8)));
    let mut skewed = Bases::plain(&small).keys[0].directions.clone();
    skewed[1] = 0.1;
    assert!(HeadBasis::new(vec![0.0; D], skewed).is_err());
    let uniform = Ranks::uniform(&small, 0.5);
    assert_eq!((uniform.keys[0], uniform.kept(&small)), (8, 0.5));
    assert_eq!(Ranks::uniform(&small, 0.01).keys[0], 2);
}

proptest! {
    #[test]
    fn cayley_form_there_and_back(seed in 0u64..500, d in 2usize..20) {
        let x = numbers(seed, d * d);
        let basis = from_cayley(vec![0.5; d], &x).unwrap();
        HeadBasis::new(basis.mean.clone(), basis.directions.clone()).unwrap();
        let lower = to_cayley(&basis).unwrap();
        let again = from_cayley(vec![0.5; d], &lower).unwrap();
        for (a, b) in basis.directions.iter().zip(&again.directions) {
            prop_assert!((a - b).abs() < 1e-5);
        }
        for (i, l) in lower.iter().enumerate() {
            let skew = if i % d < i / d { x[i] - x[i % d * d + i / d] } else { 0.0 };
            prop_assert!((l - skew).abs() < 2e-3, "{} {}", l, skew);
        }
    }
}

#[test]
fn bases_without_a_cayley_form_are_refused() {
    let of = |diagonal: [f32; 3]| {
        let mut directions = vec![0.0; 9];
        (0..3).for_each(|i| directions[4 * i] = diagonal[i]);
        to_cayley(&HeadBasis::new(vec![0.0; 3], directions).unwrap())
    };
    assert_eq!(of([1.0, 1.0, 1.0]).unwrap(), [0.0; 9]);
    let error = of([-1.0, 1.0, 1.0]).unwrap_err().to_string();
    assert!(error.contains("determinant"), "{error}");
    let error = of([-1.0, -1.0, 1.0]).unwrap_err().to_string();
    assert!(error.contains("inverse"), "{error}");
}

#[test]
fn principal_components_find_the_plane_that_rows_lie_in() {
    let dims = dims(1, 2, 2, D);
    let (u, v, c) = (numbers(1, D), numbers(2, D), numbers(9, D));
    let row = |a: f32, b: f32| (0..D).map(move |i| (i, a, b));
    let mut rows = Vec::new();
    for t in 0..60 {
        let (a, b) = ((t as f32).sin(), (0.7 * t as f32).cos());
        for _head in 0..2 {
            rows.extend(row(a, b).map(|(i, a, b)| c[i] + a * u[i] + b * v[i]));
        }
    }
    let mut moments = Moments::new(dims);
    let (first, second) = rows.split_at(25 * 2 * D);
    moments.add(0, first, first);
    moments.add(0, second, second);
    assert_eq!(moments.tokens(), 60);
    let bases = moments.bases(Around::Mean).unwrap();
    bases
        .keys
        .iter()
        .for_each(|b| assert!(to_cayley(b).is_ok()));
    let mut ours = store(dims, &bases, &Ranks::all(&dims, 2), false);
    let positions: Vec<u32> = (0..60).collect();
    ours.append(0, &positions, &rows, &rows);
    let (mut keys, mut values) = (vec![0.0; 60 * D], vec![0.0; 60 * D]);
    ours.read(0, 1, 0..60, &mut keys, &mut values);
    let expected: Vec<f32> = rows.chunks(2 * D).flat_map(|r| r[D..].to_vec()).collect();
    assert_near(&keys, &expected, 1e-4, "keys");
    assert_near(&values, &expected, 1e-4, "values");
    assert!(Moments::new(dims).bases(Around::Mean).is_err());
    // Three directions, since the mean is one of them now.
    let bases = moments.bases(Around::Zero).unwrap();
    assert!(bases.keys.iter().all(|basis| basis.mean == [0.0; D]));
    let mut ours = store(dims, &bases, &Ranks::all(&dims, 3), false);
    ours.append(0, &positions, &rows, &rows);
    ours.read(0, 1, 0..60, &mut keys, &mut values);
    assert_near(&values, &expected, 1e-4, "values around zero");
}

#[test]
fn attention_equals_that_of_the_authors() {
    // Heads 4, dimensions 16, 24 tokens; bases and means as parity/matryoshka.py makes them.
    let fixture = Fixture::open("matryoshka.safetensors");
    let dims = dims(1, 4, 4, D);
    let n = 24;
    let of = |matrix: &str, mean: &str| -> Vec<HeadBasis> {
        let (matrix, mean) = (fixture.floats(matrix), fixture.floats(mean));
        let each = matrix.chunks_exact(D * D).zip(mean.chunks_exact(D));
        each.map(|(m, mean)| {
            let directions = (0..D * D).map(|i| m[i % D * D + i / D]).collect();
            HeadBasis::new(mean.to_vec(), directions).unwrap()
        })
        .collect()
    };
    let bases = Bases {
        keys: of("key", "mean_key"),
        values: of("value", "mean_value"),
    };
    let ranks =
        |name: &str| -> Vec<usize> { fixture.integers(name).iter().map(|&r| r as usize).collect() };
    let ranks = Ranks {
        keys: ranks("key_ranks"),
        values: ranks("value_ranks"),
    };
    let mut ours = store(dims, &bases, &ranks, false);
    let positions: Vec<u32> = (0..n as u32).collect();
    ours.append(0, &positions, &fixture.floats("k"), &fixture.floats("v"));
    let (queries, expected) = (fixture.floats("q"), fixture.floats("out"));
    for (at, (query, expected)) in queries.chunks(D).zip(expected.chunks(D)).enumerate() {
        let (token, head) = (at / 4, at % 4);
        let rows = RowSet::Range(0, token + 1);
        let mut scores = vec![0.0; token + 1];
        ours.dot(0, head, query, rows, &mut scores);
        softmax(&mut scores, (D as f32).sqrt().recip());
        let mut out = vec![0.0; D];
        ours.mix(0, head, &scores, rows, &mut out);
        assert_near(&out, expected, 1e-4, "attention");
    }
    // Their Cayley form of the same bases.
    let theirs = fixture.floats("key_cayley");
    for (basis, x) in bases.keys.iter().zip(theirs.chunks_exact(D * D)) {
        let again = from_cayley(basis.mean.clone(), x).unwrap();
        assert_near(&again.directions, &basis.directions, 1e-4, "Cayley");
        assert_near(&to_cayley(basis).unwrap(), x, 2e-2, "Cayley form");
    }
}

struct World {
    file: ModelFile,
    bases: Arc<Bases>,
    team: Arc<Team>,
    tokens: Vec<u32>,
}

impl World {
    fn open(model: &str) -> Self {
        let folder = format!("{}/tests/fixtures/{model}", env!("CARGO_MANIFEST_DIR"));
        let file = ModelFile::open(Path::new(&folder)).unwrap();
        let decoder = Arc::new(Decoder::load(&file).unwrap());
        let dims = decoder.config().dims;
        let tokens: Vec<u32> = (0..64u32)
            .map(|i| (i * i * 7 + i) % dims.vocab as u32)
            .collect();
        let team = Arc::new(Team::new(2));
        let bases = principal(&decoder, &[&tokens[..]], Around::Mean, &team, &NoProgress).unwrap();
        let bases = Arc::new(bases);
        Self {
            file,
            bases,
            team,
            tokens,
        }
    }

    fn session(
        &self,
        ranks: Option<&Ranks>,
        fold: bool,
        selector: Option<Box<dyn Selector>>,
    ) -> Session {
        let mut decoder = Decoder::load(&self.file).unwrap();
        let dims = decoder.config().dims;
        let mut store: Box<dyn KvStore> =
            Box::new(DenseStore::new(dims, CacheType::F32, 0).unwrap());
        if let Some(ranks) = ranks {
            let folded = fold && fold_output(&mut decoder, &self.file, &self.bases, ranks).unwrap();
            assert_eq!(folded, fold);
            let bases = Arc::clone(&self.bases);
            let ours = MatryoshkaStore::new(dims, bases, ranks, CacheType::F32, folded, 0);
            store = Box::new(ours.unwrap());
        }
        let decoder = Arc::new(decoder);
        let mut policy = Policy::of(&decoder, store);
        if let Policy::Roles { selector: sel, .. } = &mut policy {
            *sel = selector;
        }
        Session::new(decoder, policy, Arc::clone(&self.team))
    }

    /// Logits after all tokens, the last ten written one by one.
    fn logits(&self, mut session: Session) -> Vec<f32> {
        let (prompt, rest) = self.tokens.split_at(54);
        session.prefill(prompt, &NoProgress).unwrap();
        rest.iter().for_each(|&t| session.step(t).unwrap());
        session.logits().to_vec()
    }
}

#[test]
fn whole_models_read_with_all_dimensions_and_folded_as_unfolded() {
    // Plain and interleaved rotary embedding, biases, norms of heads.
    for model in ["llama", "qwen2", "qwen3", "gguf-llama-f16"] {
        let world = World::open(model);
        let dims = world.file.config().dims;
        let dense = world.logits(world.session(None, false, None));
        let spread = dense.iter().fold(0f32, |a, x| a.max(x.abs()));
        let all = Ranks::all(&dims, dims.head_dim);
        for fold in [false, true] {
            let same = world.logits(world.session(Some(&all), fold, None));
            assert_near(&same, &dense, 1e-2 * spread, model);
        }
        // Turned weights are rounded to the kind of the file's, of 16 bits in some.
        let half = Ranks::all(&dims, dims.head_dim / 2);
        let unfolded = world.logits(world.session(Some(&half), false, None));
        let folded = world.logits(world.session(Some(&half), true, None));
        assert_near(&folded, &unfolded, 1e-2 * spread, model);
        let oracle = || Box::new(OracleTopK::new(Budget::Tokens(9), 0, dims).unwrap());
        let unfolded = world.logits(world.session(Some(&half), false, Some(oracle())));
        let folded = world.logits(world.session(Some(&half), true, Some(oracle())));
        assert_near(&folded, &unfolded, 1e-2 * spread, "selected");
        // Candidates read rows that are not stored: the same hidden states in both forms.
        let candidates = |fold: bool| {
            let mut session = world.session(Some(&half), fold, None);
            session.prefill(&world.tokens, &NoProgress).unwrap();
            session.candidates(&[1, 2, 3]).unwrap();
            session.logits().to_vec()
        };
        assert_near(
            &candidates(true),
            &candidates(false),
            1e-2 * spread,
            "candidates",
        );
    }
    let packed = World::open("gguf-llama-q8_0");
    let dims = packed.file.config().dims;
    let mut decoder = Decoder::load(&packed.file).unwrap();
    let ranks = Ranks::all(&dims, dims.head_dim);
    assert!(!fold_output(&mut decoder, &packed.file, &packed.bases, &ranks).unwrap());
}

#[test]
fn a_greedy_search_reaches_its_target_and_loses_less_than_the_same_for_all() {
    // The constructed model finds the token before by few dimensions of its first layer's keys,
    // and needs all of those that tell tokens apart.
    let scratch = tempfile::tempdir().unwrap();
    let recall = crate::recall::RecallConfig::default();
    recall.write_model(scratch.path()).unwrap();
    let decoder = Decoder::load(&ModelFile::open(scratch.path()).unwrap()).unwrap();
    let (decoder, team) = (Arc::new(decoder), Arc::new(Team::new(2)));
    let dims = decoder.config().dims;
    let tokens: Vec<u32> = (0..120u32).map(|i| (i * i * 7 + i) % 64).collect();
    let bases = principal(&decoder, &[&tokens[..]], Around::Mean, &team, &NoProgress).unwrap();
    let bases = Arc::new(bases);
    let search =
        |config: &RankSearch| search_ranks(&decoder, &bases, &tokens, config, &team, &NoProgress);
    let config = RankSearch {
        target: 0.75,
        interval: 8,
        ..RankSearch::default()
    };
    let found = search(&config).unwrap();
    let kept = found.kept(&dims);
    assert!((kept - 0.75).abs() < 1e-9, "{kept}");
    let states = |ranks: &Ranks| {
        let store = MatryoshkaStore::new(dims, Arc::clone(&bases), ranks, CacheType::F32, false, 0);
        let policy = Policy::of(&decoder, Box::new(store.unwrap()));
        let mut session = Session::new(Arc::clone(&decoder), policy, Arc::clone(&team));
        session.keep_hidden(true);
        session.prefill(&tokens, &NoProgress).unwrap();
        session.hidden().to_vec()
    };
    let whole = states(&Ranks::all(&dims, 64));
    let distance = |ranks: &Ranks| {
        let states = states(ranks);
        let each = states.iter().zip(&whole);
        each.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let uniform = distance(&Ranks::uniform(&dims, 0.75));
    assert!(
        distance(&found) < 0.5 * uniform,
        "{found:?} {} {uniform}",
        distance(&found)
    );
    for (target, interval) in [(0.0, 1), (1.1, 1), (0.1, 32)] {
        let bad = RankSearch {
            target,
            interval,
            ..config
        };
        assert!(matches!(search(&bad), Err(LmError::Input { .. })));
    }
}

#[test]
fn a_file_is_read_again_and_nonsense_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("bases");
    let world = World::open("llama");
    let decoder = Decoder::load(&world.file).unwrap();
    let dims = decoder.config().dims;
    let mut ranks = Ranks::uniform(&dims, 0.5);
    ranks.values[0] = 3;
    save(&path, &decoder, &world.bases, &ranks).unwrap();
    let (bases, again) = load(&path, &decoder).unwrap();
    assert_eq!(again, ranks);
    for (a, b) in bases
        .keys
        .iter()
        .chain(&bases.values)
        .zip(world.bases.keys.iter().chain(&world.bases.values))
    {
        assert_eq!((&a.mean, &a.directions), (&b.mean, &b.directions));
    }
    let other = Decoder::load(&World::open("qwen2").file).unwrap();
    let error = load(&path, &other).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    let bytes = std::fs::read(&path).unwrap();
    // Every byte of the header, whose entries lie in any order, and some of the numbers.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in (0..header).chain([(header + bytes.len()) / 2, bytes.len() - 1]) {
        for flip in [1, 0x10] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            std::fs::write(&path, &bad).unwrap();
            assert!(load(&path, &decoder).is_err(), "byte {at} of {header}");
        }
    }
    for len in [0, 7, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(load(&path, &decoder).is_err());
    }
    let mut wrong = ranks.clone();
    wrong.keys[0] = dims.head_dim + 1;
    save(&path, &decoder, &world.bases, &wrong).unwrap();
    assert!(
        load(&path, &decoder)
            .unwrap_err()
            .to_string()
            .contains("rank")
    );
}

#[test]
fn leading_dimensions_label_keys_as_the_oracle_ranks_them() {
    use crate::select::double_sparsity::{DoubleSparsity, DoubleSparsityConfig};
    let world = World::open("llama");
    let dims = world.file.config().dims;
    let mut ours = store(dims, &world.bases, &Ranks::all(&dims, dims.head_dim), false);
    let config = DoubleSparsityConfig {
        heavy_const: Budget::Tokens(6),
        channels: Some(dims.head_dim),
        label_bits: 16,
        dense_layers: 0,
        ..DoubleSparsityConfig::default()
    };
    let mut selector = DoubleSparsity::with_bases(config, dims, &world.bases).unwrap();
    let (keys, values) = filled(&mut ours, &dims, 40);
    drop(values);
    let positions: Vec<u32> = (0..40).collect();
    selector.on_append(0, &positions, &keys);
    let mut oracle = OracleTopK::new(Budget::Tokens(6), 0, dims).unwrap();
    let queries = numbers(77, dims.heads * dims.head_dim);
    let team = Team::new(1);
    let choose = |s: &mut dyn Selector| {
        let (mut rows, mut ctx) = (Rows::default(), crate::roles::StepCtx::default());
        ctx.position = 39;
        s.select(0, &queries, &ours, &mut ctx, &team, &mut rows);
        assert_eq!(rows.reads, Reads::PerKvHead);
        rows.lists
    };
    let (a, b) = (choose(&mut selector), choose(&mut oracle));
    for (a, b) in a.iter().zip(&b) {
        let same = a.iter().filter(|r| b.contains(r)).count();
        assert!(same + 2 >= b.len(), "{a:?} {b:?}");
    }
}

/// As the authors have it: a basis for each query head, on keys and values that were repeated.
#[test]
fn a_basis_for_each_query_head_goes_with_repeated_heads() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama"));
    let team = Arc::new(Team::new(2));
    let load = |repeat: bool| {
        let file = ModelFile::open(folder).unwrap();
        let file = if repeat {
            file.repeat_kv().unwrap()
        } else {
            file
        };
        let decoder = Arc::new(Decoder::load(&file).unwrap());
        (file, decoder)
    };
    let ((_, plain), (file, repeated)) = (load(false), load(true));
    let (dims, wide) = (plain.config().dims, repeated.config().dims);
    assert!(dims.group() > 1 && wide.kv_heads == dims.heads);
    let tokens: Vec<u32> = (1..60).collect();
    let logits = |decoder: &Arc<Decoder>, bases: &Bases, ranks: &Ranks| {
        let dims = decoder.config().dims;
        let store = Box::new(store(dims, bases, ranks, false));
        let bytes_per_row = store.row_bytes();
        let policy = Policy::of(decoder, store);
        let mut session = Session::new(Arc::clone(decoder), policy, Arc::clone(&team));
        session.prefill(&tokens, &NoProgress).unwrap();
        session.step(7).unwrap();
        (
            session.logits().to_vec(),
            session.cache_bytes(),
            bytes_per_row,
        )
    };
    // Each query head with the basis of the KV head that it had reads the same.
    let shared = with_means(Bases::random(&dims, 3));
    let each = |of: &[HeadBasis]| -> Vec<HeadBasis> {
        let heads = of
            .iter()
            .flat_map(|b| std::iter::repeat_n(b.clone(), dims.group()));
        heads.collect()
    };
    let own = Bases {
        keys: each(&shared.keys),
        values: each(&shared.values),
    };
    let half = dims.head_dim / 2;
    let (expected, bytes, _) = logits(&plain, &shared, &Ranks::all(&dims, half));
    let (found, more, _) = logits(&repeated, &own, &Ranks::all(&wide, half));
    assert_near(&found, &expected, 1e-4, "logits");
    // Which is why it is not the way that is taken by itself.
    assert_eq!(more, bytes * dims.group() as u64);
    // With all dimensions, whatever the bases of query heads, the model is as it was.
    let others = with_means(Bases::random(&wide, 4));
    let all = Ranks::all(&wide, wide.head_dim);
    let (found, ..) = logits(&repeated, &others, &all);
    let every = Ranks::all(&dims, dims.head_dim);
    let (expected, ..) = logits(&plain, &Bases::plain(&dims), &every);
    assert_near(&found, &expected, 1e-4, "logits");
    // A file of them tells whose they are, and the model without repeated heads refuses it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bases.safetensors");
    save(&path, &repeated, &others, &all).unwrap();
    assert_eq!(heads_in(&path).unwrap(), dims.heads);
    assert_eq!(super::load(&path, &repeated).unwrap().0, others);
    assert!(super::load(&path, &plain).is_err());
    drop(file);
}
