//! For `search`: what PLAID finds of the ten passages that MaxSim puts first.

use keyfold_core::Vectors;
use keyfold_kernels::{maxsim, top_k};
use keyfold_search::candidates::{CandidateOptions, Method, PlaidLike, PlaidOptions, nearest};
use keyfold_search::store::Snapshot;

use crate::report::{Table, reached};
use crate::{BenchError, BenchOptions};

/// Passages that are looked for.
const K: usize = 10;
/// Bits, and for what share of the queries the ten shall be the same.
const AIMS: [(u32, f64); 2] = [(4, 0.95), (2, 0.85)];

/// The ten of each query, ascending.
pub(super) type Tens = Vec<Vec<u64>>;

/// What PLAID finds in a store.
pub(super) struct Checked {
    pub(super) bits: u32,
    /// Share of the queries with the same ten as every passage of the store compared.
    pub(super) same_as_stored: f64,
    /// The same of the vectors as the model gives them.
    pub(super) same_as_given: f64,
    /// Share of these ten that is found.
    pub(super) recall: f64,
}

/// The ten of each query by the vectors as the model gives them.
pub(super) fn truth(documents: &[Vectors], queries: &[Vectors]) -> Tens {
    let ten = |query: &Vectors| {
        let scores: Vec<f32> = documents
            .iter()
            .map(|d| maxsim(query.as_slice(), d.as_slice(), query.dim()))
            .collect();
        sorted(
            top_k(&scores, K)
                .into_iter()
                .map(|(_, i)| u64::from(i))
                .collect(),
        )
    };
    queries.iter().map(ten).collect()
}

/// Searches a store as fast-plaid does by default: 8 centroids, 4096 passages.
pub(super) fn check(
    snapshot: &Snapshot,
    queries: &[Vectors],
    truth: &Tens,
    options: &BenchOptions,
) -> Result<Checked, BenchError> {
    let by = |method| CandidateOptions {
        method,
        plaid: PlaidOptions {
            like: PlaidLike::FastPlaid,
            ..PlaidOptions::default()
        },
        // Else so few passages would all be compared.
        exact: K,
        threads: options.thread_count(),
        ..CandidateOptions::default()
    };
    let tens = |method| -> Result<Tens, BenchError> {
        let mut all = Tens::new();
        for query in queries {
            let (found, _) = nearest(snapshot.segments(), query, K, None, &by(method))?;
            all.push(sorted(found.into_iter().map(|r| r.passage).collect()));
        }
        Ok(all)
    };
    let (found, stored) = (tens(Method::Plaid)?, tens(Method::Exhaustive)?);
    let many = queries.len().max(1) as f64;
    let same = |other: &Tens| {
        let pairs = found.iter().zip(other);
        pairs.filter(|(a, b)| a == b).count() as f64 / many
    };
    let shares = found.iter().zip(truth).map(|(found, ten)| {
        let met = ten
            .iter()
            .filter(|i| found.binary_search(i).is_ok())
            .count();
        met as f64 / ten.len().max(1) as f64
    });
    Ok(Checked {
        bits: snapshot.bits().number(),
        same_as_stored: same(&stored),
        same_as_given: same(truth),
        recall: shares.sum::<f64>() / many,
    })
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

/// All checks as a table.
pub(super) fn table(checked: &[Checked]) -> Table {
    let mut table = Table::new(
        "PLAID, 8 centroids and 4096 passages",
        &[
            "bits",
            "the ten of the store",
            "the ten of the model's vectors",
            "share of these",
        ],
    );
    for c in checked {
        table.row([
            c.bits.to_string(),
            format!("{:.1} %", 100.0 * c.same_as_stored),
            format!("{:.1} %", 100.0 * c.same_as_given),
            format!("{:.3}", c.recall),
        ]);
    }
    table
}

/// How the checks stand to what is aimed at.
pub(super) fn findings(checked: &[Checked]) -> Vec<String> {
    let finding = |(bits, aim): (u32, f64)| {
        let c = checked.iter().find(|c| c.bits == bits)?;
        Some(format!(
            "PLAID in {bits} bits finds the ten of the store's vectors for {:.1} % of the queries, and \
             those of the model's for {:.1} %; aim: the same ten for at least {:.0} %, {} and {}.",
            100.0 * c.same_as_stored,
            100.0 * c.same_as_given,
            100.0 * aim,
            reached(c.same_as_stored >= aim),
            reached(c.same_as_given >= aim)
        ))
    };
    AIMS.into_iter().filter_map(finding).collect()
}
