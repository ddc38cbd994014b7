//! Drawing the words that did not occur.

use rand::Rng;
use rand::rngs::SmallRng;

/// Draws words by number.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    kind: Kind,
    /// `ln(1 - p)` of every word, `p` its probability in one draw.
    log_missed: Vec<f64>,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Walker's alias method (Vose 1991): a place is drawn evenly, and gives its own
    /// word below the threshold, else the other one.
    Alias(Vec<(u32, u32)>),
    /// `p(i) = ln((i + 2) / (i + 1)) / ln(V + 1)`: words by falling frequency follow
    /// Zipf's law.
    LogUniform,
}

impl Sampler {
    /// Words in proportion to `count^power`; word2vec takes 0.75 (Mikolov et al. 2013).
    pub(crate) fn unigram(counts: &[u64], power: f64) -> Self {
        let weights: Vec<f64> = counts.iter().map(|&c| (c as f64).powf(power)).collect();
        let total: f64 = weights.iter().sum();
        let probability = |w: &f64| w / total;
        let log_missed = weights.iter().map(|w| (-probability(w)).ln_1p());
        Self {
            log_missed: log_missed.collect(),
            kind: Kind::Alias(alias(&weights, total)),
        }
    }

    /// Words that are numbered by falling frequency, without looking at the counts.
    pub(crate) fn log_uniform(words: usize) -> Self {
        let range = ((words + 1) as f64).ln();
        let log_missed = |i: usize| (-(((i + 2) as f64) / ((i + 1) as f64)).ln() / range).ln_1p();
        Self {
            kind: Kind::LogUniform,
            log_missed: (0..words).map(log_missed).collect(),
        }
    }

    /// How many words there are.
    fn words(&self) -> usize {
        self.log_missed.len()
    }

    /// One word.
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> u32 {
        match &self.kind {
            Kind::Alias(table) => {
                let bits: u64 = rng.random();
                let place = ((bits >> 32) * table.len() as u64) >> 32;
                let (threshold, other) = table[place as usize];
                if (bits as u32) < threshold {
                    place as u32
                } else {
                    other
                }
            }
            Kind::LogUniform => {
                let words = self.words();
                let value = (rng.random::<f64>() * ((words + 1) as f64).ln()).exp() - 1.0;
                (value as u32).min(words.saturating_sub(1) as u32)
            }
        }
    }

    /// `many` different words in order, and in `log_expected` the logarithm of how often
    /// each was expected. Where there are fewer than twice as many words, all of them.
    pub(crate) fn distinct(
        &self,
        many: usize,
        rng: &mut SmallRng,
        words: &mut Vec<u32>,
    ) -> Expected<'_> {
        words.clear();
        if self.words() < 2 * many {
            words.extend(0..self.words() as u32);
            return Expected {
                sampler: self,
                draws: None,
            };
        }
        let mut draws = 0;
        while words.len() < many {
            let word = self.draw(rng);
            draws += 1;
            if let Err(place) = words.binary_search(&word) {
                words.insert(place, word);
            }
        }
        Expected {
            sampler: self,
            draws: Some(f64::from(draws)),
        }
    }
}

/// How often words were expected among those drawn.
pub(crate) struct Expected<'a> {
    sampler: &'a Sampler,
    /// None when all words were taken.
    draws: Option<f64>,
}

impl Expected<'_> {
    /// `ln(1 - (1 - p)^draws)`; 0 when all words were taken.
    pub(crate) fn log(&self, word: u32) -> f32 {
        match self.draws {
            Some(draws) => (-(draws * self.sampler.log_missed[word as usize]).exp_m1()).ln() as f32,
            None => 0.0,
        }
    }
}

fn alias(weights: &[f64], total: f64) -> Vec<(u32, u32)> {
    let n = weights.len();
    let mut share: Vec<f64> = weights.iter().map(|w| w / total * n as f64).collect();
    let mut table: Vec<(u32, u32)> = (0..n as u32).map(|i| (u32::MAX, i)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| share[i] < 1.0);
    while let (Some(&s), Some(&l)) = (small.last(), large.last()) {
        small.pop();
        table[s] = ((share[s] * f64::from(u32::MAX)) as u32, l as u32);
        share[l] -= 1.0 - share[s];
        if share[l] < 1.0 {
            large.pop();
            small.push(l);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn shares(sampler: &Sampler, words: usize) -> Vec<f64> {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut seen = vec![0.0; words];
        for _ in 0..200_000 {
            seen[sampler.draw(&mut rng) as usize] += 1.0 / 200_000.0;
        }
        seen
    }

    #[test]
    fn words_come_as_often_as_their_probability_says() {
        let counts = [1000, 100, 10, 1];
        let weights = counts.map(|c| (c as f64).powf(0.75));
        let total: f64 = weights.iter().sum();
        let sampler = Sampler::unigram(&counts, 0.75);
        for (seen, weight) in shares(&sampler, 4).into_iter().zip(weights) {
            assert!((seen - weight / total).abs() < 0.004, "{seen}");
        }
        let zipf = Sampler::log_uniform(100);
        let seen = shares(&zipf, 100);
        assert!((seen[0] - 2f64.ln() / 101f64.ln()).abs() < 0.004);
        assert!((seen[9] - (11f64 / 10.0).ln() / 101f64.ln()).abs() < 0.004);
    }

    #[test]
    fn different_words_are_as_often_among_those_drawn_as_expected() {
        let counts: Vec<u64> = (1..=40).rev().collect();
        let sampler = Sampler::unigram(&counts, 1.0);
        let mut rng = SmallRng::seed_from_u64(2);
        let mut words = Vec::new();
        let (mut seen, mut expected) = (vec![0.0; 40], vec![0.0; 40]);
        for _ in 0..4000 {
            let by = sampler.distinct(8, &mut rng, &mut words);
            assert!(words.is_sorted_by(|a, b| a < b) && words.len() == 8);
            words.iter().for_each(|&w| seen[w as usize] += 1.0 / 4000.0);
            (0..40).for_each(|w| expected[w as usize] += f64::from(by.log(w)).exp() / 4000.0);
        }
        for (s, e) in seen.iter().zip(&expected) {
            assert!((s - e).abs() < 0.03, "{s} {e}");
        }
        // Of few words all are taken, once.
        let by = sampler.distinct(30, &mut rng, &mut words);
        assert_eq!(by.log(39), 0.0);
        assert_eq!(words, (0..40).collect::<Vec<u32>>());
    }
}
