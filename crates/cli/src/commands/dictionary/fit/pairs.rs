//! A sparse autoencoder that learns from two rows at a time: what it reads, and what that is to
//! become (a transcoder) or what it does to a metric (attribution).

use super::*;

/// What goes with each row.
#[derive(Clone, Copy)]
pub(super) enum With<'a> {
    /// The row to be told from it.
    Target(&'a Path),
    /// The gradient of a metric by it.
    Gradient(&'a Path),
}

/// Learns from the rows of the data and those of another file, batch by batch.
pub(super) fn learn(args: &FitArgs, with: With, globals: &Globals) -> anyhow::Result<Outcome> {
    let (option, targets) = match with {
        With::Target(path) => ("--targets", path),
        With::Gradient(path) => ("--gradients", path),
    };
    let [data] = &args.data[..] else {
        return Err(wrong_use(format!("{option} goes with one file of rows")));
    };
    if args.rows.skip_missing {
        return Err(wrong_use(format!(
            "{option} needs a row for each of DATA; --skip-missing may leave out one of a pair"
        )));
    }
    let progress = StderrProgress::new(globals.quiet, 20);
    let rows = args.rows.open(data)?.read_all()?;
    let told = args.rows.open(targets)?.read_all()?;
    if rows.len() != told.len() {
        return Err(wrong_use(format!(
            "{} has {} rows, but {} has {}",
            targets.display(),
            told.len(),
            data.display(),
            rows.len()
        )));
    }
    check_patch(args.patch, told.width)?;
    if matches!(with, With::Gradient(_)) {
        check_width(told.width, rows.width)?;
    }
    let training = match args.resume {
        true => {
            let training = Training::resume(&Saved::load(&args.out)?)?;
            check_width(rows.width, training.sae().d_in)?;
            check_width(told.width, training.sae().d_out)?;
            training
        }
        false => {
            let defaults = SaeConfig {
                d_sae: args.components.map_or(0, |n| n as usize),
                d_out: match with {
                    With::Target(_) => told.width,
                    With::Gradient(_) => 0,
                },
                architecture: match with {
                    With::Target(_) => SaeMethod::default(),
                    With::Gradient(_) => SaeMethod::Attribution,
                },
                seed: globals.seed,
                ..SaeConfig::default()
            };
            Training::new(settings(args, &defaults)?, rows.width)?
        }
    };
    let mut training = writable(args, training)?;
    // More rows than there are is one batch.
    let batch = training.config().batch_size.min(rows.len().max(1));
    let (mut stopped, mut saved) = (false, Instant::now());
    let total = rows.len() as u64 * u64::from(args.epochs);
    progress.start("learn", "rows", Some(total));
    'all: for _ in 0..args.epochs {
        let parts = rows.values.chunks(batch * rows.width);
        for (part, told) in parts.zip(told.values.chunks(batch * told.width)) {
            if progress.cancelled() {
                stopped = true;
                break 'all;
            }
            match with {
                With::Target(_) => training.step(part, told)?,
                With::Gradient(_) => training.step_attributed(part, told)?,
            };
            progress.advance((part.len() / rows.width) as u64);
            progress.status(&training.status());
            if saved.elapsed() > SAVE_EVERY {
                save(args, &training)?;
                saved = Instant::now();
            }
        }
    }
    progress.finish();
    if training.steps() == 0 {
        return Ok(Outcome::Interrupted);
    }
    save(args, &training)?;
    let summary = Told {
        method: args.method,
        steps: training.steps(),
        status: training.status(),
    };
    tell(args, globals, &summary, &training.dictionary()?, &[])?;
    Ok(match stopped {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}
