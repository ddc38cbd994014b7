//! `keyfold systems`.

use std::io::Write;

use unicode_width::UnicodeWidthStr;

use crate::args::Globals;
use crate::failure::{Outcome, wrong_use};
use crate::output::terminal::{self, BOLD, DIM, LINE};
use crate::systems::{self, State, System};

/// List the published systems that Keyfold has or plans
#[derive(Debug, clap::Args)]
pub(crate) struct SystemsArgs {
    /// Show these systems only, with all that is known of them
    #[arg(value_name = "SYSTEM")]
    slugs: Vec<String>,
    /// Show systems in this state only
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    /// Print the page docs/SYSTEMS.md
    #[arg(long, conflicts_with_all = ["json", "slugs", "state"])]
    markdown: bool,
}

pub(crate) fn run(args: &SystemsArgs, globals: &Globals) -> anyhow::Result<Outcome> {
    let all = systems::all()?;
    let mut out = anstream::stdout().lock();
    if args.markdown {
        out.write_all(systems::markdown(&all).as_bytes())?;
        return Ok(Outcome::Done);
    }
    if let Some(unknown) = args
        .slugs
        .iter()
        .find(|slug| all.iter().all(|s| s.slug != **slug))
    {
        return Err(wrong_use(format!(
            "no system '{unknown}'; 'keyfold systems' lists all of them"
        )));
    }
    let chosen: Vec<&System> = all
        .iter()
        .filter(|s| args.slugs.is_empty() || args.slugs.contains(&s.slug))
        .filter(|s| args.state.is_none_or(|state| s.state == state))
        .collect();
    if globals.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&chosen)?)?;
    } else if args.slugs.is_empty() {
        table(&mut out, &chosen)?;
    } else {
        for system in chosen {
            details(&mut out, system)?;
        }
    }
    Ok(Outcome::Done)
}

/// One line per system, grouped by area.
fn table(out: &mut impl Write, systems: &[&System]) -> std::io::Result<()> {
    let slug_width = systems.iter().map(|s| s.slug.len()).max().unwrap_or(0);
    // Two of indent, two gaps, "planned", the year.
    let title_width = terminal::width().map(|w| w.saturating_sub(slug_width + 2 + 9 + 6).max(20));
    let mut area = "";
    for s in systems {
        if s.area != area {
            area = &s.area;
            writeln!(out, "{BOLD}{area}{BOLD:#}")?;
        }
        let style = if s.state == State::Ready { LINE } else { DIM };
        writeln!(
            out,
            "  {:slug_width$}  {style}{:7}{style:#}  {} {}",
            s.slug,
            s.state.name(),
            s.year,
            shortened(&s.title, title_width)
        )?;
    }
    let ready = systems.iter().filter(|s| s.state == State::Ready).count();
    let owned: Vec<System> = systems.iter().map(|s| (*s).clone()).collect();
    writeln!(
        out,
        "{} entries from {} works: {ready} ready, {} planned",
        systems.len(),
        systems::works(&owned),
        systems.len() - ready
    )
}

fn details(out: &mut impl Write, s: &System) -> std::io::Result<()> {
    writeln!(out, "{BOLD}{}{BOLD:#} ({})", s.slug, s.state.name())?;
    writeln!(out, "  work        {}, {} ({})", s.authors, s.title, s.year)?;
    writeln!(out, "  claim       {}", s.claim)?;
    for file in &s.files {
        writeln!(out, "  code        {file}")?;
    }
    for command in &s.commands {
        writeln!(out, "  command     keyfold {command}")?;
    }
    writeln!(out, "  experiment  keyfold bench {}", s.experiment)
}

/// `text`, cut with an ellipsis where it is wider than `width` columns.
fn shortened(text: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|&width| text.width() > width) else {
        return text.to_owned();
    };
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + 1 >= width {
            break;
        }
        short.push(c);
    }
    short.truncate(short.trim_end().len());
    short + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_titles_end_in_an_ellipsis() {
        assert_eq!(shortened("Pointer Networks", None), "Pointer Networks");
        assert_eq!(shortened("Pointer Networks", Some(16)), "Pointer Networks");
        assert_eq!(shortened("Pointer Networks", Some(9)), "Pointer…");
    }
}
