//! Times the heads on rows in a file, for `parity/peers/predict.py`:
//! `time_heads FILE ROWS COLUMNS CLASSES TOL`, where FILE holds the rows and then the classes,
//! all as f64. With `--processor` behind, times are those of the processor, of all threads
//! together (Linux only), for a machine that does other work as well.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use keyfold_core::NoProgress;
use keyfold_predict::logistic::{Logistic, LogisticConfig};
use keyfold_predict::naive_bayes::{NaiveBayes, NaiveBayesConfig, Variances};
use keyfold_predict::{Classifier, Labels, Table};

/// Seconds that all threads were on a processor; 0 where the system does not say.
fn processor() -> Result<f64, std::io::Error> {
    let mut nanoseconds = 0.0;
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Ok(0.0);
    };
    for task in tasks {
        let line = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let on = line.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        nanoseconds += on.unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, rows, columns, _, tol, more @ ..] = &args[..] else {
        return Err("FILE ROWS COLUMNS CLASSES TOL [--processor]".into());
    };
    let by_processor = more.iter().any(|a| a == "--processor");
    let (rows, columns): (usize, usize) = (rows.parse()?, columns.parse()?);
    let bytes = std::fs::read(file)?;
    let all = bytes.as_chunks::<8>().0.iter();
    let mut all: Vec<f64> = all.map(|b| f64::from_le_bytes(*b)).collect();
    let names: Vec<String> = (all.split_off(rows * columns).iter())
        .map(|c| c.to_string())
        .collect();
    let (x, labels) = (Table::new(columns, all)?, Labels::new(&names));
    let timed = |f: &mut dyn FnMut()| -> Result<f64, std::io::Error> {
        let (begin, before) = (Instant::now(), processor()?);
        f();
        Ok(match by_processor {
            true => processor()? - before,
            false => begin.elapsed().as_secs_f64(),
        })
    };
    let config = LogisticConfig {
        tol: tol.parse()?,
        ..Default::default()
    };
    for _ in 0..3 {
        let (mut nb, mut lr) = (None, None);
        let fit_nb = timed(&mut || {
            nb = Some(NaiveBayes::fit(&x, &labels, &NaiveBayesConfig::default()));
        })?;
        let fit_lr = timed(&mut || lr = Some(Logistic::fit(&x, &labels, &config, &NoProgress)))?;
        let (Some(nb), Some(lr)) = (nb.transpose()?, lr.transpose()?) else {
            return Err("nothing was fitted".into());
        };
        let mut told = None;
        let predict = timed(&mut || told = Some(nb.predict(&x)))?;
        // The quadratic form, which scikit-learn has.
        let per_class = NaiveBayesConfig {
            variances: Variances::PerClass,
            ..Default::default()
        };
        let mut quadratic = None;
        let fit_quadratic = timed(&mut || {
            quadratic = Some(NaiveBayes::fit(&x, &labels, &per_class));
        })?;
        let quadratic = quadratic.transpose()?.ok_or("nothing was fitted")?;
        let predict_quadratic = timed(&mut || told = Some(quadratic.predict(&x)))?;
        println!(
            "{{\"naive_bayes\": {fit_nb}, \"logistic\": {fit_lr}, \"predict\": {predict}, \
             \"per_class\": {fit_quadratic}, \"predict_per_class\": {predict_quadratic}, \
             \"accuracy_per_class\": {}, \"steps\": {}, \"gradient\": {}, \"loss\": {}, \"accuracy\": {}}}",
            quadratic.score(&x, &labels)?,
            lr.told().iterations,
            lr.told().gradient,
            lr.told().loss,
            lr.score(&x, &labels)?,
        );
    }
    Ok(())
}
