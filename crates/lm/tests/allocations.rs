//! A token is written without asking the system for memory, once a session has what it needs.

// A fixture that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::System;

use common::Model;
use keyfold_core::NoProgress;
use keyfold_lm::Policy;
use keyfold_lm::roles::{KvStore, RowSet};
use keyfold_lm::store::CacheType;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens that are counted.
const COUNTED: usize = 40;

/// Of the counted tokens, those for which memory was asked for, and how often in all.
fn allocations(model: &Model, policy: Policy) -> (usize, usize) {
    let mut session = model.session(policy);
    let prompt: Vec<u32> = (0..300).map(|i| 1 + i * 7 % 60).collect();
    session.prefill(&prompt, &NoProgress).unwrap();
    for token in 1..30 {
        session.step(token).unwrap();
    }
    let (mut tokens, mut all) = (0, 0);
    for token in 0..COUNTED {
        let region = Region::new(ALLOCATOR);
        session.step(1 + token as u32).unwrap();
        let seen = region.change();
        let asked = seen.allocations + seen.reallocations;
        tokens += usize::from(asked > 0);
        all += asked;
    }
    (tokens, all)
}

/// How often memory is asked for to read a cache of few bits, once it was read.
fn of_codes(model: &Model) -> usize {
    let dims = model.decoder.config().dims;
    let mut store = model.kvquant(3, &model.calibrate(1));
    let rows = 100;
    let count = rows * dims.kv_heads * dims.head_dim;
    let numbers: Vec<f32> = (0..count).map(|i| (i as f32).sin()).collect();
    let positions: Vec<u32> = (0..rows as u32).collect();
    store.append(0, &positions, &numbers, &numbers);
    let some: Vec<u32> = positions.iter().copied().step_by(3).collect();
    let wide = dims.group() * dims.head_dim;
    let mut scores = vec![0.0; dims.group() * rows];
    let mut sums = vec![0.0; wide];
    let mut read = || {
        for set in [RowSet::Range(0, rows), RowSet::List(&some)] {
            let scores = &mut scores[..dims.group() * set.len()];
            store.dot(0, 0, &numbers[..wide], set, scores);
            store.mix(0, 0, scores, set, &mut sums);
        }
    };
    read();
    let region = Region::new(ALLOCATOR);
    read();
    let seen = region.change();
    seen.allocations + seen.reallocations
}

/// One test alone, since what is counted is counted of all threads.
#[test]
fn a_token_is_written_without_allocations() {
    let model = Model::new();
    let dense = |cache| Policy::dense(&model.decoder, cache, 1024).unwrap();
    let mut ways = vec![
        ("f16", dense(CacheType::F16)),
        ("q8_0", dense(CacheType::Q8_0)),
        ("q4_0", dense(CacheType::Q4_0)),
    ];
    for (name, chosen) in model.selectors(vec![0, 1]) {
        let mut policy = dense(CacheType::F16);
        if let Policy::Roles { selector, .. } = &mut policy {
            *selector = Some(chosen);
        }
        ways.push((name, policy));
    }
    for (name, policy) in ways {
        let (tokens, all) = allocations(&model, policy);
        // A list that grows with the context may grow once in a while.
        assert!(
            tokens <= 2,
            "{name}: {all} for {tokens} of {COUNTED} tokens"
        );
    }
    assert_eq!(of_codes(&model), 0);
}
