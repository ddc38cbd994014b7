//! Tours: the shortest for few points, a good one for many.
//!
//! Up to [`EXACT`] points the shortest is found by Held and Karp's recurrence (1962, A Dynamic
//! Programming Approach to Sequencing Problems), `O(2^n n²)`:
//!
//! ```text
//! cost(S, j) = min over i in S without j of cost(S without j, i) + d(i, j)
//! ```
//!
//! Beyond that an insertion tour is made better by turning parts of it round (2-opt, Croes 1958)
//! and by moving up to three points (Or 1976), then shaken at four places and made better again
//! as often as time allows (Martin, Otto and Felten 1991). It is the best that is known here, not
//! the shortest for sure.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Points;
use super::geometry::distance;
use crate::InspectError;

/// Up to so many points the shortest tour is found.
pub const EXACT: usize = 15;

/// How many near points are tried.
const NEAR: usize = 8;

/// A tour and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tour {
    /// Points from 0, the first first.
    pub order: Vec<usize>,
    /// Its length, with the way back.
    pub length: f64,
    /// Whether no tour is shorter.
    pub exact: bool,
}

impl Tour {
    fn of(points: &Points, mut order: Vec<usize>, exact: bool) -> Self {
        let first = order.iter().position(|place| *place == 0).unwrap_or(0);
        order.rotate_left(first);
        // Of both directions the one whose second point comes first.
        if let [_, rest @ ..] = &mut order[..]
            && rest.first() > rest.last()
        {
            rest.reverse();
        }
        Self {
            length: length(points, &order),
            order,
            exact,
        }
    }
}

/// The length of a tour with the way back.
pub fn length(points: &Points, order: &[usize]) -> f64 {
    let all = points.all();
    let next = order.iter().cycle().skip(1);
    order
        .iter()
        .zip(next)
        .map(|(a, b)| distance(all[*a], all[*b]))
        .sum()
}

/// The shortest tour of up to [`EXACT`] points, a good one of more.
///
/// # Errors
/// When there are fewer than three points.
pub fn best_known(points: &Points, seed: u64) -> Result<Tour, InspectError> {
    match points.len() {
        n @ 0..3 => Err(InspectError::settings(format!(
            "{n} distinct points make no tour; it needs three"
        ))),
        3..=EXACT => Ok(exact(points)),
        _ => Ok(searched(points, seed)),
    }
}

/// The shortest tour, of 3 to [`EXACT`] points.
fn exact(points: &Points) -> Tour {
    let (n, all) = (points.len(), points.all());
    let m = n - 1;
    let d: Vec<f64> = (0..n * n)
        .map(|i| distance(all[i / n], all[i % n]))
        .collect();
    // Of the points 1 .. n: sets as bits, and the last that was visited.
    let mut cost = vec![f64::INFINITY; m << m];
    let mut before = vec![0u8; m << m];
    for j in 0..m {
        cost[(1 << j) * m + j] = d[j + 1];
    }
    for set in 1usize..1 << m {
        for j in (0..m).filter(|j| set >> j & 1 == 1) {
            let rest = set & !(1 << j);
            let ways = (0..m).filter(|i| rest >> i & 1 == 1);
            let ways = ways.map(|i| (cost[rest * m + i] + d[(i + 1) * n + j + 1], i));
            if let Some((best, i)) = ways.min_by(|a, b| a.0.total_cmp(&b.0)) {
                (cost[set * m + j], before[set * m + j]) = (best, i as u8);
            }
        }
    }
    let mut set = (1 << m) - 1;
    let home = |j: usize| cost[set * m + j] + d[j + 1];
    let mut last = (0..m)
        .min_by(|a, b| home(*a).total_cmp(&home(*b)))
        .unwrap_or(0);
    let mut order = vec![0];
    while set != 0 {
        order.push(last + 1);
        let next = usize::from(before[set * m + last]);
        set &= !(1 << last);
        last = next;
    }
    Tour::of(points, order, true)
}

/// The tour that always goes to the nearest point that was not visited, from the first.
pub fn nearest_neighbour(points: &Points) -> Vec<usize> {
    let all = points.all();
    let mut left: Vec<usize> = (1..all.len()).collect();
    let mut order = vec![0];
    let mut here = all.first().copied().unwrap_or_default();
    while let Some(at) = (0..left.len())
        .min_by(|a, b| distance(here, all[left[*a]]).total_cmp(&distance(here, all[left[*b]])))
    {
        let next = left.swap_remove(at);
        here = all[next];
        order.push(next);
    }
    order
}

/// The tour that grows by the point that is farthest from it, put where it costs least
/// (Rosenkrantz, Stearns and Lewis 1977).
pub fn farthest_insertion(points: &Points) -> Vec<usize> {
    let all = points.all();
    let n = all.len();
    let mut order = vec![0];
    let mut far: Vec<f64> = all.iter().map(|p| distance(*p, all[0])).collect();
    let mut inside = vec![false; n];
    inside[0] = true;
    while let Some(next) = (0..n)
        .filter(|i| !inside[*i])
        .max_by(|a, b| far[*a].total_cmp(&far[*b]))
    {
        let detour = |at: usize| {
            let (a, b) = (all[order[at]], all[order[(at + 1) % order.len()]]);
            distance(a, all[next]) + distance(all[next], b) - distance(a, b)
        };
        let at = (0..order.len()).min_by(|a, b| detour(*a).total_cmp(&detour(*b)));
        order.insert(at.unwrap_or(0) + 1, next);
        inside[next] = true;
        for (far, p) in far.iter_mut().zip(all) {
            *far = far.min(distance(*p, all[next]));
        }
    }
    order
}

/// A tour that is searched for.
fn searched(points: &Points, seed: u64) -> Tour {
    let n = points.len();
    let mut search = Search::new(points, farthest_insertion(points));
    search.improve((0..n).collect());
    let mut rng = StdRng::seed_from_u64(seed);
    // A shake costs a copy of the tour.
    let shakes = (4_000_000 / n).min(40 * n);
    let mut best = length(points, &search.order);
    for _ in 0..shakes {
        let before = search.order.clone();
        let touched = search.shake(&mut rng);
        search.improve(touched);
        let now = length(points, &search.order);
        if now < best {
            best = now;
        } else {
            search.set(before);
        }
    }
    Tour::of(points, search.order, false)
}

struct Search<'a> {
    all: &'a [[f64; 2]],
    /// Near points of each, the nearest first.
    near: Vec<Vec<usize>>,
    order: Vec<usize>,
    /// Where each point stands in the order.
    place: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(points: &'a Points, order: Vec<usize>) -> Self {
        let all = points.all();
        let near = (0..all.len()).map(|i| {
            let mut others: Vec<usize> = (0..all.len()).filter(|j| *j != i).collect();
            let by = |a: &usize, b: &usize| {
                distance(all[i], all[*a]).total_cmp(&distance(all[i], all[*b]))
            };
            let kept = NEAR.min(others.len());
            if kept < others.len() {
                others.select_nth_unstable_by(kept, by);
            }
            others.truncate(kept);
            others.sort_unstable_by(by);
            others
        });
        let mut search = Self {
            all,
            near: near.collect(),
            order: Vec::new(),
            place: vec![0; all.len()],
        };
        search.set(order);
        search
    }

    fn set(&mut self, order: Vec<usize>) {
        for (at, point) in order.iter().enumerate() {
            self.place[*point] = at;
        }
        self.order = order;
    }

    fn d(&self, a: usize, b: usize) -> f64 {
        distance(self.all[a], self.all[b])
    }

    fn next(&self, point: usize) -> usize {
        self.order[(self.place[point] + 1) % self.order.len()]
    }

    fn last(&self, point: usize) -> usize {
        let n = self.order.len();
        self.order[(self.place[point] + n - 1) % n]
    }

    /// Turns round what stands from `from` to `to`, going forward; the rest instead where that is
    /// shorter.
    fn reverse(&mut self, from: usize, to: usize) {
        let n = self.order.len();
        let (mut i, mut j) = (self.place[from], self.place[to]);
        let mut inside = (j + n - i) % n + 1;
        if 2 * inside > n {
            (i, j) = ((j + 1) % n, (i + n - 1) % n);
            inside = n - inside;
        }
        for _ in 0..inside / 2 {
            self.order.swap(i, j);
            self.place[self.order[i]] = i;
            self.place[self.order[j]] = j;
            (i, j) = ((i + 1) % n, (j + n - 1) % n);
        }
    }

    /// Makes the tour shorter around points until nothing near them does.
    fn improve(&mut self, mut waiting: Vec<usize>) {
        let mut is_waiting = vec![false; self.order.len()];
        waiting.iter().for_each(|p| is_waiting[*p] = true);
        while let Some(point) = waiting.pop() {
            is_waiting[point] = false;
            while let Some(touched) = self.turn(point).or_else(|| self.carry(point)) {
                for other in touched {
                    if !is_waiting[other] {
                        is_waiting[other] = true;
                        waiting.push(other);
                    }
                }
            }
        }
    }

    /// 2-opt: joins a point with one that is nearer than its neighbour.
    fn turn(&mut self, a: usize) -> Option<[usize; 4]> {
        for forward in [true, false] {
            let step = |p: usize| if forward { self.next(p) } else { self.last(p) };
            let b = step(a);
            let old = self.d(a, b);
            for &c in &self.near[a] {
                let new = self.d(a, c);
                if new >= old {
                    break;
                }
                let d = step(c);
                if c == b || d == a {
                    continue;
                }
                if new + self.d(b, d) < old + self.d(c, d) - 1e-12 {
                    match forward {
                        true => self.reverse(b, c),
                        false => self.reverse(c, b),
                    }
                    return Some([a, b, c, d]);
                }
            }
        }
        None
    }

    /// Or-opt: carries one to three points that end with `a` to a place beside a near point.
    fn carry(&mut self, a: usize) -> Option<[usize; 4]> {
        let n = self.order.len();
        for count in 1..=3.min(n.saturating_sub(3)) {
            for forward in [true, false] {
                let step = |p: usize| if forward { self.next(p) } else { self.last(p) };
                let back = |p: usize| if forward { self.last(p) } else { self.next(p) };
                let segment: Vec<usize> = std::iter::successors(Some(a), |p| Some(back(*p)))
                    .take(count)
                    .collect();
                let tail = segment[count - 1];
                let (before, after) = (back(tail), step(a));
                let freed = self.d(before, tail) + self.d(a, after) - self.d(before, after);
                for &c in &self.near[a] {
                    let joined = self.d(a, c);
                    if joined >= freed {
                        break;
                    }
                    if segment.contains(&c) {
                        continue;
                    }
                    // `a` comes to stand beside `c`; its tail beside either neighbour of `c`.
                    for other in [self.next(c), self.last(c)] {
                        if segment.contains(&other) {
                            continue;
                        }
                        let gain = freed + self.d(c, other) - joined - self.d(tail, other);
                        if gain > 1e-12 {
                            self.insert(&segment, c, other);
                            return Some([a, before, after, c]);
                        }
                    }
                }
            }
        }
        None
    }

    /// Takes a segment out and puts it between two neighbours, its first beside `c`.
    fn insert(&mut self, segment: &[usize], c: usize, other: usize) {
        let mut rest: Vec<usize> = self
            .order
            .iter()
            .copied()
            .filter(|p| !segment.contains(p))
            .collect();
        let at = rest.iter().position(|p| *p == c).unwrap_or(0);
        if rest[(at + 1) % rest.len()] == other {
            rest.splice(at + 1..at + 1, segment.iter().copied());
        } else {
            rest.splice(at..at, segment.iter().rev().copied());
        }
        self.set(rest);
    }

    /// Exchanges two neighbouring parts of up to 50 points; the points at the cuts.
    fn shake(&mut self, rng: &mut StdRng) -> Vec<usize> {
        let n = self.order.len();
        let longest = 50.min((n - 2) / 2);
        let [first, second] = [0; 2].map(|_: usize| rng.random_range(1..=longest.max(1)));
        let from = rng.random_range(0..n);
        self.order.rotate_left(from);
        self.order[1..1 + first + second].rotate_left(first);
        let touched = [
            0,
            1,
            second,
            second + 1,
            first + second,
            (first + second + 1) % n,
        ];
        let touched = touched.map(|at| self.order[at]).to_vec();
        let order = std::mem::take(&mut self.order);
        self.set(order);
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Points {
        let mut rng = StdRng::seed_from_u64(seed);
        let points = (0..n).map(|_| [rng.random(), rng.random()]);
        Points::new(points.collect()).unwrap()
    }

    /// The shortest of all tours, one by one.
    fn brute(points: &Points) -> f64 {
        fn go(points: &Points, order: &mut Vec<usize>, best: &mut f64) {
            if order.len() == points.len() {
                *best = best.min(length(points, order));
                return;
            }
            for next in 1..points.len() {
                if !order.contains(&next) {
                    order.push(next);
                    go(points, order, best);
                    order.pop();
                }
            }
        }
        let mut best = f64::INFINITY;
        go(points, &mut vec![0], &mut best);
        best
    }

    fn is_tour(order: &[usize], n: usize) -> bool {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        sorted.into_iter().eq(0..n)
    }

    #[test]
    fn the_shortest_tour_is_the_shortest_of_all() {
        for seed in 0..12 {
            let points = random(3 + seed as usize % 6, seed);
            let tour = best_known(&points, 0).unwrap();
            assert!(tour.exact && is_tour(&tour.order, points.len()));
            assert_eq!(tour.order[0], 0);
            assert!((tour.length - brute(&points)).abs() < 1e-12);
        }
    }

    #[test]
    fn the_search_finds_what_is_exact_and_beats_simple_ways() {
        for seed in 0..10 {
            let points = random(15, 100 + seed);
            let (found, best) = (searched(&points, 0), exact(&points));
            assert!(is_tour(&found.order, 15));
            assert!(
                found.length < best.length * (1.0 + 1e-9),
                "{} {}",
                found.length,
                best.length
            );
        }
        for n in [16, 40, 150] {
            let points = random(n, n as u64);
            let tour = best_known(&points, 1).unwrap();
            assert!(!tour.exact && is_tour(&tour.order, n));
            assert_eq!(tour.length, length(&points, &tour.order));
            for simple in [nearest_neighbour(&points), farthest_insertion(&points)] {
                assert!(is_tour(&simple, n));
                assert!(tour.length <= length(&points, &simple) + 1e-9);
            }
            // 0.7124 √(n A) for many points in a square (Johnson, McGeoch), more near its edge.
            let usual = 0.7124 * (n as f64).sqrt() * (1.0 + 0.33 / n as f64);
            assert!(tour.length < 1.35 * usual, "{} {usual}", tour.length);
        }
    }

    #[test]
    fn points_on_a_line_and_two_alone() {
        let line: Vec<[f64; 2]> = (0..40).map(|i| [f64::from(i * 7 % 40), 2.0]).collect();
        let tour = best_known(&Points::new(line).unwrap(), 0).unwrap();
        assert!((tour.length - 78.0).abs() < 1e-9, "{}", tour.length);
        assert!(best_known(&random(2, 0), 0).is_err());
    }
}
