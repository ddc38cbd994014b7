//! The small model of bytes that comes with the project: it reads text, and finds records that
//! only stand in its context, whatever keeps or chooses that context.

// A model that cannot be read fails the test.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use keyfold_core::NoProgress;
use keyfold_kernels::Team;
use keyfold_lm::decoding::argmax;
use keyfold_lm::roles::Selector;
use keyfold_lm::select::Budget;
use keyfold_lm::select::baselines::SlidingWindow;
use keyfold_lm::select::tidal::{Tidal, TidalConfig};
use keyfold_lm::store::CacheType;
use keyfold_lm::{Decoder, ModelFile, Policy, Session, SpecialTokens, Tokenizer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct Model {
    decoder: Arc<Decoder>,
    tokenizer: Tokenizer,
    team: Arc<Team>,
}

/// Records, and a question for one of the first.
struct Records {
    prompt: String,
    value: String,
}

impl Model {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/bytes");
        let file = ModelFile::open(&folder).unwrap();
        Self {
            decoder: Arc::new(Decoder::load(&file).unwrap()),
            tokenizer: file.tokenizer().unwrap(),
            team: Arc::new(Team::new(2)),
        }
    }

    fn records(&self, count: usize, seed: u64) -> Records {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut prompt = String::new();
        let mut all = Vec::new();
        for _ in 0..count {
            let key: String = (0..3).map(|_| rng.random_range('a'..='z')).collect();
            let value: String = (0..3).map(|_| rng.random_range('A'..='Z')).collect();
            prompt += &format!("{key}{value};");
            all.push((key, value));
        }
        let (key, value) = all.swap_remove(rng.random_range(0..count / 2));
        prompt += &format!("?{key}");
        Records { prompt, value }
    }

    fn session(&self, cache: CacheType, select: Option<Box<dyn Selector>>) -> Session {
        let mut policy = Policy::dense(&self.decoder, cache, 1024).unwrap();
        if let Policy::Roles { selector, .. } = &mut policy {
            *selector = select;
        }
        Session::new(Arc::clone(&self.decoder), policy, Arc::clone(&self.team))
    }

    /// The likeliest three bytes after the prompt.
    fn answer(&self, mut session: Session, prompt: &str) -> String {
        let text = self.tokenizer.encode(prompt, SpecialTokens::Plain).unwrap();
        let tokens = [self.tokenizer.prefix(), &text].concat();
        // The last token is written, so that a selector chooses what it reads.
        let (last, rest) = tokens.split_last().unwrap();
        session.prefill(rest, &NoProgress).unwrap();
        session.step(*last).unwrap();
        let mut answer = Vec::new();
        for _ in 0..3 {
            let token = argmax(session.logits());
            answer.push(token);
            session.step(token).unwrap();
        }
        self.tokenizer.decode(&answer)
    }

    fn right(&self, count: usize, make: impl Fn(&Self) -> Session) -> usize {
        let asked = (0..12).map(|seed| self.records(count, seed));
        asked
            .filter(|r| self.answer(make(self), &r.prompt) == r.value)
            .count()
    }
}

#[test]
fn records_are_found_in_the_context() {
    let model = Model::new();
    let right = model.right(20, |m| m.session(CacheType::F16, None));
    assert!(right >= 9, "{right} of 12");
    // Eight bits do not change that much.
    let packed = model.right(20, |m| m.session(CacheType::Q8_0, None));
    assert!(packed + 2 >= right, "{packed} of 12, {right} in 16 bits");
}

#[test]
fn chosen_rows_find_what_a_window_has_lost() {
    let model = Model::new();
    let dims = model.decoder.config().dims;
    let tidal = |m: &Model| {
        let config = TidalConfig {
            top_k: Budget::Tokens(48),
            sparse_layer_start: 2,
            correction_layers: vec![4],
            ..TidalConfig::default()
        };
        m.session(
            CacheType::F16,
            Some(Box::new(Tidal::new(config, dims).unwrap())),
        )
    };
    let window = |m: &Model| {
        let newest = SlidingWindow::new(44, 4, 0, dims).unwrap();
        m.session(CacheType::F16, Some(Box::new(newest)))
    };
    let (chosen, newest) = (model.right(20, tidal), model.right(20, window));
    assert!(chosen >= newest + 4, "{chosen} chosen, {newest} newest");
}

#[test]
fn text_is_read_better_than_by_the_frequencies_of_letters() {
    let model = Model::new();
    let text = "What is the city but the people? The people are the city, and the king is but \
                a man, as I am; the morning comes with the light of the sun, my good lord.";
    let text = model.tokenizer.encode(text, SpecialTokens::Plain).unwrap();
    let tokens = [model.tokenizer.prefix(), &text].concat();
    let mut session = model.session(CacheType::F16, None);
    let found =
        keyfold_lm::perplexity::log_probabilities(&mut session, &tokens, &NoProgress).unwrap();
    let bits = -found.iter().sum::<f64>() / found.len() as f64 / std::f64::consts::LN_2;
    // Letters and spaces by their frequencies: about 4.2 bits.
    assert!(bits < 3.0, "{bits} bits a byte");
}
