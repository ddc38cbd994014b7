//! Networks that were trained apart, unit by unit: Li et al., Convergent Learning: Do different
//! neural networks learn the same representations? (ICLR 2016).
//!
//! Networks of two hidden layers of 64 units on 1,000 digits, begun from different seeds;
//! correlations over 797 others. Pairs of trained networks stand beside pairs that were not
//! trained, and beside the same network on shuffled inputs.

mod mlp;

use keyfold_core::Progress;
use keyfold_inspect::convergent::{
    Activations, OneToOne, clusters, correlations, greedy, mutual_information, sparse_prediction,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;

use crate::plot;
use crate::report::{Report, Table as Shown, reached};
use crate::samples;
use crate::{BenchError, BenchOptions, Experiment, Scale};
use mlp::{HIDDEN, Mlp};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "convergent-learning",
    about: "which units two networks share: one to one, as few to one, as groups, against chance",
    run,
};

const LEARN: usize = 1000;
const ALPHAS: [f64; 4] = [1e-3, 1e-2, 3e-2, 1e-1];

/// What the specification's own run gave: greedy, matching, same partner of trained pairs;
/// greedy and matching of pairs that were not trained.
const THEN: [[f64; 5]; 2] = [
    [0.727, 0.683, 0.45, 0.426, 0.378],
    [0.779, 0.739, 0.47, 0.391, 0.351],
];

/// Errors and numbers of weights of the lasso there, in the first layer; the best single
/// unit errs by 0.472.
const LASSO_THEN: [(f64, f64); 4] = [(0.036, 49.5), (0.057, 26.5), (0.085, 17.9), (0.155, 10.7)];

/// Groups that the units of a layer are cut into.
const GROUPS: usize = 20;

/// Means over pairs of networks of one layer.
#[derive(Default, Clone)]
struct Layer {
    trained: Vec<OneToOne>,
    untrained: Vec<OneToOne>,
    chance: Vec<OneToOne>,
    /// Best single unit, then each weight of the lasso: error and number of weights.
    sparse: Vec<Vec<(f64, f64)>>,
    /// Groups with units of both, their coherence, and coherence by chance.
    groups: Vec<[f64; 3]>,
    /// Share of units whose partner is the same by correlation and by mutual information.
    by_information: Vec<f64>,
    /// Units that never changed, of both networks of every pair.
    dead: usize,
}

fn run(options: &BenchOptions, progress: &dyn Progress) -> Result<Report, BenchError> {
    let (networks, epochs) = match options.scale {
        Scale::Smoke => (2, 5),
        Scale::Small => (4, 300),
        Scale::Full => (8, 300),
    };
    let digits = samples::digits()?;
    let width = digits.x.columns();
    // Writers follow each other in the file, so the pictures are mixed first.
    let mut order: Vec<usize> = (0..digits.x.rows()).collect();
    order.shuffle(&mut StdRng::seed_from_u64(options.seed));
    let pictures = digits.x.numbers();
    let row = |i: &usize| pictures[i * width..][..width].iter().map(|x| *x as f32);
    let x: Vec<f32> = order.iter().flat_map(row).collect();
    let labels: Vec<usize> = order.iter().map(|i| digits.labels.codes()[*i]).collect();
    let (learn, tell) = x.split_at(LEARN * width);
    progress.start("networks", "networks", Some(networks as u64));
    let (mut trained, mut untrained, mut accuracy) = (Vec::new(), Vec::new(), Vec::new());
    for network in 0..networks as u64 {
        if progress.cancelled() {
            return Err(BenchError::Cancelled);
        }
        let mut model = Mlp::new(width, 10, options.seed.wrapping_add(network));
        untrained.push(seen(&model, learn, tell)?);
        model.train(learn, &labels[..LEARN], epochs);
        accuracy.push(model.accuracy(tell, &labels[LEARN..]));
        trained.push(seen(&model, learn, tell)?);
        progress.advance(1);
    }
    progress.finish();
    let mut layers = vec![Layer::default(); 2];
    for (at, layer) in layers.iter_mut().enumerate() {
        for i in 0..networks {
            for j in i + 1..networks {
                if progress.cancelled() {
                    return Err(BenchError::Cancelled);
                }
                measure(layer, (&trained[i][at], &trained[j][at]), options.seed)?;
                let (a, b) = (&untrained[i][at], &untrained[j][at]);
                layer
                    .untrained
                    .push(OneToOne::of(correlations(&a.told, &b.told)?.between()));
            }
        }
    }
    report(&layers, &accuracy, labels.len() - LEARN)
}

/// Activations of one layer.
struct Seen {
    /// On the pictures that were told apart from those learned.
    told: Activations,
    /// On those learned, then on the others.
    all: Activations,
}

fn seen(model: &Mlp, learn: &[f32], tell: &[f32]) -> Result<Vec<Seen>, BenchError> {
    let (learned, told) = (model.forward(learn), model.forward(tell));
    let layer = |at: usize| {
        let new = |values: Vec<f32>| Activations::new("activations", values, HIDDEN);
        Ok(Seen {
            told: new(told[at].clone())?,
            all: new([&learned[at][..], &told[at]].concat())?,
        })
    };
    vec![layer(0), layer(1)].into_iter().collect()
}

fn measure(layer: &mut Layer, (a, b): (&Seen, &Seen), seed: u64) -> Result<(), BenchError> {
    let c = correlations(&a.told, &b.told)?;
    layer.trained.push(OneToOne::of(c.between()));
    layer.dead += c.a.dead.len() + c.b.dead.len();
    let shuffled = b.told.shuffled(seed);
    let chance = correlations(&a.told, &shuffled)?;
    layer.chance.push(OneToOne::of(chance.between()));
    let sparse = sparse_prediction(&a.all, &b.all, LEARN, &ALPHAS)?;
    layer
        .sparse
        .push(sparse.iter().map(|p| (p.error, p.weights)).collect());
    let found = clusters(&c, GROUPS)?;
    let both = found
        .iter()
        .filter(|g| !g.a.is_empty() && !g.b.is_empty())
        .count();
    let coherence = |groups: &[keyfold_inspect::convergent::Cluster]| {
        let large = groups.iter().filter(|g| g.a.len() + g.b.len() > 1);
        let sums = large.fold((0.0, 0.0), |(sum, n), g| (sum + g.coherence, n + 1.0));
        sums.0 / f64::max(sums.1, 1.0)
    };
    layer.groups.push([
        both as f64,
        coherence(&found),
        coherence(&clusters(&chance, GROUPS)?),
    ]);
    let information = mutual_information((&a.told, &c.a), (&b.told, &c.b))?;
    let (by_correlation, by_nats) = (greedy(c.between()), greedy(information.nats.as_ref()));
    let same = by_correlation
        .iter()
        .zip(&by_nats)
        .filter(|(p, q)| p.partner == q.partner);
    layer
        .by_information
        .push(same.count() as f64 / by_correlation.len() as f64);
    Ok(())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
    sum / f64::max(count, 1.0)
}

/// The least and the most greedy correlation of pairs of networks.
fn spread(pairs: &[OneToOne]) -> [f64; 2] {
    let of = |f: fn(f64, f64) -> f64, from| pairs.iter().map(|p| p.greedy).fold(from, f);
    [of(f64::min, f64::INFINITY), of(f64::max, f64::NEG_INFINITY)]
}

fn report(layers: &[Layer], accuracy: &[f64], told: usize) -> Result<Report, BenchError> {
    let three = |x: f64| format!("{x:.3}");
    let mut one = Shown::new(
        "one unit to one (mean correlation)",
        &[
            "layer, networks",
            "greedy",
            "least to most",
            "matching",
            "same partner",
            "specification",
        ],
    );
    let mut few = Shown::new(
        "few units to one: squared error as a part of the variance, first layer",
        &["from", "error", "units", "specification"],
    );
    let mut many = Shown::new(
        &format!("many units to many: {GROUPS} groups of both networks"),
        &[
            "layer",
            "with units of both",
            "coherence",
            "by chance",
            "partners by information the same",
        ],
    );
    let (mut values, mut bars) = (Vec::new(), Vec::new());
    for (at, layer) in layers.iter().enumerate() {
        let then = THEN[at];
        let kinds = [
            (
                "trained",
                &layer.trained,
                format!("{} / {} / {}", then[0], then[1], then[2]),
            ),
            (
                "not trained",
                &layer.untrained,
                format!("{} / {}", then[3], then[4]),
            ),
            ("shuffled", &layer.chance, "0.05 to 0.08".to_owned()),
        ];
        for (name, pairs, then) in kinds {
            let found = [
                mean(pairs.iter().map(|p| p.greedy)),
                mean(pairs.iter().map(|p| p.matching)),
                mean(pairs.iter().map(|p| p.same)),
            ];
            let [a, b, c] = found.map(three);
            let [least, most] = spread(pairs);
            let spread = format!("{least:.3} to {most:.3}");
            one.row([format!("{}, {name}", at + 1), a, spread, b, c, then]);
            bars.push((format!("layer {}, {name}", at + 1), found[0]));
            values.push(json!({"layer": at + 1, "networks": name, "greedy": found[0], "matching": found[1], "same": found[2], "least": least, "most": most}));
        }
        let group = |i: usize| mean(layer.groups.iter().map(|g| g[i]));
        many.row([
            (at + 1).to_string(),
            format!("{:.1}", group(0)),
            three(group(1)),
            three(group(2)),
            format!("{:.2}", mean(layer.by_information.iter().copied())),
        ]);
    }
    let sparse = |i: usize| {
        let runs = &layers[0].sparse;
        (
            mean(runs.iter().map(|r| r[i].0)),
            mean(runs.iter().map(|r| r[i].1)),
        )
    };
    let single = sparse(0);
    few.row([
        "best single unit".to_owned(),
        three(single.0),
        "1.0".to_owned(),
        "0.472".to_owned(),
    ]);
    for (i, alpha) in ALPHAS.iter().enumerate() {
        let (error, units) = sparse(i + 1);
        let then = LASSO_THEN[i];
        few.row([
            format!("lasso, alpha {alpha}"),
            three(error),
            format!("{units:.1}"),
            format!("{} ({})", then.0, then.1),
        ]);
        values.push(json!({"lasso": alpha, "error": error, "units": units}));
    }
    let of = |pairs: &[OneToOne]| mean(pairs.iter().map(|p| p.greedy));
    let ordered = layers.iter().all(|l| {
        let (trained, untrained, chance) = (of(&l.trained), of(&l.untrained), of(&l.chance));
        trained > untrained + 0.1 && untrained > chance + 0.1
    });
    let first = &layers[0];
    let (trained, untrained, chance) =
        (of(&first.trained), of(&first.untrained), of(&first.chance));
    let many_error = sparse(4);
    // Every network stands in equally many pairs.
    let dead: usize = layers.iter().map(|l| l.dead).sum();
    let units: usize = layers.iter().map(|l| 2 * HIDDEN * l.trained.len()).sum();
    let findings = vec![
        format!(
            "aim: trained far above not trained far above chance (0.73 / 0.43 / 0.06); {trained:.2} / \
             {untrained:.2} / {chance:.2}: {}",
            reached(ordered)
        ),
        format!(
            "aim: few to one is far better than one to one; {:.3} with {:.1} units against {:.3}: {}",
            many_error.0,
            many_error.1,
            single.0,
            reached(many_error.0 < 0.5 * single.0)
        ),
        format!(
            "the networks tell {:.1} % of {told} digits right; {:.0} % of their units never changed and were \
             left out",
            100.0 * mean(accuracy.iter().copied()),
            100.0 * dead as f64 / units.max(1) as f64
        ),
    ];
    let svg = plot::bars(
        "Best partner in another network",
        "mean correlation",
        &bars,
        None,
    )?;
    Ok(Report {
        name: EXPERIMENT.name.to_owned(),
        tables: vec![one, few, many],
        findings,
        values: json!({"results": values, "accuracy": accuracy}),
        svg,
    })
}
