//! Documents in the order of their distance from queries.

use keyfold_kernels as kernels;
use keyfold_text::paragraph_vector::Embedded;

use crate::quality::{Relevant, average_precision, mean, ndcg};

/// The code and the real vector of a text; none without a known word.
pub(super) type Item = Option<Embedded>;

/// Texts as some method sees them.
pub(super) struct Items {
    pub(super) documents: Vec<Item>,
    pub(super) queries: Vec<Item>,
}

/// For each query the documents, best first.
pub(super) type Lists = Vec<Vec<usize>>;

impl Items {
    /// The real vectors of the documents.
    pub(super) fn reals(&self) -> impl Iterator<Item = &[f32]> {
        let known = self.documents.iter().flatten();
        known.filter_map(|item| item.real.as_deref())
    }

    /// Length of a real vector.
    pub(super) fn dim(&self) -> usize {
        self.reals().next().map_or(0, <[f32]>::len)
    }

    /// The same with other codes: the signs of what `sums` makes of the real vectors.
    pub(super) fn coded(&self, sums: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        let item = |item: &Item| -> Item {
            let real = item.as_ref()?.real.as_ref()?;
            Some(Embedded {
                code: pack(&sums(real)),
                real: Some(real.clone()),
            })
        };
        Self {
            documents: self.documents.iter().map(item).collect(),
            queries: self.queries.iter().map(item).collect(),
        }
    }

    /// All documents with a code, by Hamming distance; equal ones in their order.
    pub(super) fn by_codes(&self) -> Lists {
        let bytes = self.documents.iter().flatten().next();
        let words = bytes.map_or(0, |item| item.code.len().div_ceil(8));
        let empty = vec![0; words];
        let codes: Vec<u64> = (self.documents.iter())
            .flat_map(|item| item.as_ref().map_or(empty.clone(), |i| in_words(&i.code)))
            .collect();
        let mut distances = vec![0; self.documents.len()];
        let mut list = |query: &Item| {
            let Some(query) = query else {
                return Vec::new();
            };
            kernels::hamming_distances(&codes, &in_words(&query.code), &mut distances);
            let mut order: Vec<usize> = (0..self.documents.len())
                .filter(|d| self.documents[*d].is_some())
                .collect();
            order.sort_by_key(|d| distances[*d]);
            order
        };
        self.queries.iter().map(&mut list).collect()
    }

    /// All documents with a real vector, by cosine.
    pub(super) fn by_reals(&self) -> Lists {
        let all: Vec<usize> = (0..self.documents.len()).collect();
        let lists = vec![all; self.queries.len()];
        self.reranked(&lists, usize::MAX)
    }

    /// Lists whose first `many` are ordered anew by cosine.
    pub(super) fn reranked(&self, lists: &Lists, many: usize) -> Lists {
        let unit = |item: &Item| -> Option<Vec<f32>> {
            let real = item.as_ref()?.real.as_ref()?;
            let length = kernels::norm(real).max(1e-12);
            Some(real.iter().map(|x| x / length).collect())
        };
        let documents: Vec<Option<Vec<f32>>> = self.documents.iter().map(unit).collect();
        let list = |(query, list): (&Item, &Vec<usize>)| {
            let Some(query) = unit(query) else {
                return Vec::new();
            };
            let (first, rest) = list.split_at(many.min(list.len()));
            let scored = first.iter().filter_map(|d| {
                let real = documents[*d].as_ref()?;
                Some((kernels::dot(&query, real), *d))
            });
            let mut scored: Vec<(f32, usize)> = scored.collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let first = scored.into_iter().map(|(_, d)| d);
            first.chain(rest.iter().copied()).collect()
        };
        self.queries.iter().zip(lists).map(list).collect()
    }

    /// The mean over bits of how near each is to being 1 for half of the documents: 1
    /// where all are, 0 where all are constant.
    pub(super) fn balance(&self) -> f64 {
        let codes: Vec<&[u8]> = self.documents.iter().flatten().map(|i| &*i.code).collect();
        let bits = codes.first().map_or(0, |code| 8 * code.len());
        let one = |bit: usize| {
            let ones = codes
                .iter()
                .filter(|c| c[bit / 8] >> (7 - bit % 8) & 1 == 1);
            let share = ones.count() as f64 / codes.len() as f64;
            2.0 * share.min(1.0 - share)
        };
        mean(&(0..bits).map(one).collect::<Vec<f64>>())
    }
}

/// A code in words of 64 bits, the last filled up with zeros.
fn in_words(code: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(whole)
    };
    code.chunks(8).map(word).collect()
}

/// Numbers above 0 as bits, the first in the highest bit of the first byte.
pub(super) fn pack(sums: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        let bits = eight.iter().enumerate();
        bits.fold(0, |byte, (i, x)| byte | (u8::from(*x > 0.0) << (7 - i)))
    };
    sums.chunks(8).map(byte).collect()
}

/// How good lists are, query by query.
#[derive(Debug, Clone, Default)]
pub(super) struct Quality {
    pub(super) precision: Vec<f64>,
    pub(super) first_ten: Vec<f64>,
    pub(super) ndcg: Vec<f64>,
}

impl Quality {
    pub(super) fn of(lists: &Lists, relevant: &[Relevant]) -> Self {
        let each = |measure: &dyn Fn(&[usize], &Relevant) -> f64| -> Vec<f64> {
            let pairs = lists.iter().zip(relevant);
            pairs
                .map(|(list, relevant)| measure(list, relevant))
                .collect()
        };
        let ten = |list: &[usize], relevant: &Relevant| {
            let first = list.iter().take(10);
            let good = first.filter(|d| relevant.get(d).is_some_and(|gain| *gain > 0.0));
            good.count() as f64 / 10.0
        };
        Self {
            precision: each(&average_precision),
            first_ten: each(&ten),
            ndcg: each(&|list, relevant| ndcg(list, relevant, 10)),
        }
    }

    /// Query by query the mean over several seeds.
    pub(super) fn mean_of(all: &[Self]) -> Self {
        let part = |of: &dyn Fn(&Self) -> &Vec<f64>| -> Vec<f64> {
            let queries = all.first().map_or(0, |q| of(q).len());
            let at = |i: usize| mean(&all.iter().map(|q| of(q)[i]).collect::<Vec<f64>>());
            (0..queries).map(at).collect()
        };
        Self {
            precision: part(&|q| &q.precision),
            first_ten: part(&|q| &q.first_ten),
            ndcg: part(&|q| &q.ndcg),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(code: u8, real: [f32; 2]) -> Item {
        Some(Embedded {
            code: vec![code],
            real: Some(real.to_vec()),
        })
    }

    #[test]
    fn codes_and_real_vectors_rank_and_unknown_texts_are_nowhere() {
        let items = Items {
            documents: vec![
                item(0b1111_0000, [0.0, 1.0]),
                None,
                item(0b1111_1111, [1.0, 0.1]),
                item(0b1111_1110, [1.0, 0.0]),
            ],
            queries: vec![item(0b1111_1111, [2.0, 0.0]), None],
        };
        let lists = items.by_codes();
        assert_eq!(lists, [vec![2, 3, 0], vec![]]);
        assert_eq!(items.by_reals()[0], [3, 2, 0]);
        assert_eq!(items.reranked(&lists, 2)[0], [3, 2, 0]);
        assert_eq!(items.reranked(&lists, 1)[0], [2, 3, 0]);
        // Four bits are constant, three are 1 in two of three, one in one of three.
        assert!((items.balance() - 4.0 * (2.0 / 3.0) / 8.0).abs() < 1e-9);
    }
}
