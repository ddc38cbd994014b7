//! How good predictions are.

use crate::Labels;

/// Area under the receiver operating characteristic: the chance that a row of the second
/// class has the greater score, ties counting half. `None` where a class is missing.
pub fn auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut below, mut sum) = (0.0, 0.0);
    let mut i = 0;
    while i < order.len() {
        let tie = order[i..].iter();
        let tie = tie.take_while(|&&j| scores[j] == scores[order[i]]).count();
        let up = order[i..i + tie].iter().filter(|&&j| positive[j]).count() as f64;
        let down = tie as f64 - up;
        sum += up * (below + 0.5 * down);
        below += down;
        i += tie;
    }
    let up = scores.len() as f64 - below;
    (up > 0.0 && below > 0.0).then(|| sum / (up * below))
}

/// The score at which true positives less false positives are greatest (Youden); rows at
/// it or above count as positive.
pub fn best_threshold(scores: &[f64], positive: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let up = positive.iter().filter(|p| **p).count().max(1) as f64;
    let down = positive.iter().filter(|p| !**p).count().max(1) as f64;
    let (mut best, mut threshold) = (0.0, f64::INFINITY);
    let (mut hits, mut false_alarms) = (0.0, 0.0);
    for (place, &i) in order.iter().enumerate() {
        match positive[i] {
            true => hits += 1.0,
            false => false_alarms += 1.0,
        }
        let next = order.get(place + 1);
        // Only between different scores can a threshold lie.
        if next.is_some_and(|&j| scores[j] == scores[i]) {
            continue;
        }
        let gain = hits / up - false_alarms / down;
        if gain > best {
            best = gain;
            threshold = scores[i];
        }
    }
    match threshold.is_finite() {
        true => threshold,
        false => 0.0,
    }
}

/// Mean of `-ln p` of the true classes; probabilities below 1e-300 count as that.
pub fn log_loss(probabilities: &[f64], codes: &[usize]) -> f64 {
    let classes = probabilities.len() / codes.len().max(1);
    let rows = probabilities.chunks_exact(classes.max(1)).zip(codes);
    let sum: f64 = rows.map(|(p, &y)| -p[y].max(1e-300).ln()).sum();
    // Rows told for sure give -0.
    (sum / codes.len().max(1) as f64).max(0.0)
}

/// Expected calibration error: rows are put into 15 bins by the probability of the
/// predicted class; the mean distance between that probability and the share that is right.
pub fn calibration_error(probabilities: &[f64], codes: &[usize]) -> f64 {
    const BINS: usize = 15;
    let classes = probabilities.len() / codes.len().max(1);
    let mut bins = [(0.0, 0.0, 0.0); BINS];
    for (p, &y) in probabilities.chunks_exact(classes.max(1)).zip(codes) {
        let best = crate::algebra::argmax(p);
        let bin = ((p[best] * BINS as f64) as usize).min(BINS - 1);
        bins[bin].0 += 1.0;
        bins[bin].1 += p[best];
        bins[bin].2 += f64::from(u8::from(best == y));
    }
    let apart: f64 = bins
        .iter()
        .map(|(_, sure, right)| (sure - right).abs())
        .sum();
    apart / codes.len().max(1) as f64
}

/// Rows by true class (first) and predicted class.
pub fn confusion(predicted: &[usize], codes: &[usize], classes: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![0; classes]; classes];
    for (&p, &y) in predicted.iter().zip(codes) {
        all[y][p] += 1;
    }
    all
}

/// F-score of each class, from [`confusion`]; 0 where a class was neither there nor
/// predicted.
pub fn f_scores(confusion: &[Vec<usize>]) -> Vec<f64> {
    let score = |k: usize| {
        let right = confusion[k][k] as f64;
        let there: usize = confusion[k].iter().sum();
        let told: usize = confusion.iter().map(|row| row[k]).sum();
        2.0 * right / ((there + told) as f64).max(1.0)
    };
    (0..confusion.len()).map(score).collect()
}

/// Root of the mean squared error.
pub fn rmse(predicted: &[f64], truth: &[f64]) -> f64 {
    let sum: f64 = predicted
        .iter()
        .zip(truth)
        .map(|(p, y)| (p - y).powi(2))
        .sum();
    (sum / truth.len().max(1) as f64).sqrt()
}

/// Mean absolute error.
pub fn mae(predicted: &[f64], truth: &[f64]) -> f64 {
    let sum: f64 = predicted
        .iter()
        .zip(truth)
        .map(|(p, y)| (p - y).abs())
        .sum();
    sum / truth.len().max(1) as f64
}

/// Share of the variance that is explained; what scikit-learn's regressors call score.
pub fn r_squared(predicted: &[f64], truth: &[f64]) -> f64 {
    let mean = truth.iter().sum::<f64>() / truth.len().max(1) as f64;
    let all: f64 = truth.iter().map(|y| (y - mean).powi(2)).sum();
    let rest: f64 = predicted
        .iter()
        .zip(truth)
        .map(|(p, y)| (p - y).powi(2))
        .sum();
    1.0 - rest / all
}

/// Nine digits: what is told in JSON and read again is then the same number.
pub(crate) fn short(x: f64) -> f64 {
    format!("{x:.8e}").parse().unwrap_or(x)
}

/// Of each row the positive class of two: whether its code is 1.
pub fn is_second(labels: &Labels) -> Vec<bool> {
    labels.codes().iter().map(|&c| c == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let positive = [true, false, true, false];
        assert_eq!(auc(&[3.0, 1.0, 2.0, 0.0], &positive), Some(1.0));
        assert_eq!(auc(&[0.0, 1.0, 2.0, 3.0], &positive), Some(0.25));
        assert_eq!(auc(&[1.0; 4], &positive), Some(0.5));
        assert_eq!(auc(&[1.0; 2], &[true; 2]), None);
    }

    #[test]
    fn the_threshold_parts_best_not_at_a_half() {
        let scores = [-3.0, -2.0, -1.5, -1.0, -0.5];
        let positive = [false, false, true, true, true];
        assert_eq!(best_threshold(&scores, &positive), -1.5);
        // Nothing to part.
        assert_eq!(best_threshold(&[1.0, 1.0], &[true, false]), 0.0);
    }

    #[test]
    fn calibration_counts_what_is_claimed_against_what_is_right() {
        let sure = [0.9, 0.1].repeat(10);
        let mut codes = vec![0; 9];
        codes.push(1);
        assert!(calibration_error(&sure, &codes) < 1e-12);
        assert!((calibration_error(&sure, &[1; 10]) - 0.9).abs() < 1e-12);
        let want = -(0.9 * 0.9f64.ln() + 0.1 * 0.1f64.ln());
        assert!((log_loss(&sure, &codes) - want).abs() < 1e-12);
    }

    #[test]
    fn f_scores_of_a_known_table() {
        let table = confusion(&[0, 0, 1, 1, 1], &[0, 1, 1, 1, 0], 2);
        assert_eq!(table, [[1, 1], [1, 2]]);
        let f = f_scores(&table);
        assert!((f[0] - 0.5).abs() < 1e-12 && (f[1] - 2.0 / 3.0).abs() < 1e-12);
        assert!((rmse(&[1.0, 3.0], &[0.0, 3.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(mae(&[1.0, 3.0], &[0.0, 3.0]), 0.5);
        assert_eq!(r_squared(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 1.0);
    }
}
