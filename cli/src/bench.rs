//! `ecmdq bench`: the engine beside its peers and the limit, as a page and as data.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ecmdq_bench::report::{Change, Effort, Figures, Part, Sharing, changes, html, measure, plots};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use thiserror::Error;

/// Options of `ecmdq bench`.
#[derive(Args, Debug)]
pub struct Options {
    /// Fewer cases and repetitions: one minute in place of six.
    #[arg(long)]
    quick: bool,
    /// Measure one part only.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Where to write `report.html`, `report.json`, and the plots.
    #[arg(long, value_name = "DIR", default_value = "report")]
    out: PathBuf,
    /// Show what is different from this older `report.json`, and by how much more than the noise.
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// With `--compare`: measure nothing, compare this `report.json` with the older one.
    #[arg(long, value_name = "NEW.json", requires = "compare")]
    with: Option<PathBuf>,
}

/// A part of the comparison.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Only {
    /// Commands a second.
    Rates,
    /// CMD_SYNCs that are waited for.
    RoundTrips,
    /// CMD_SYNCs of many guests, for each of the host.
    Merging,
    /// vCPUs that share a CMDQ.
    Sharing,
    /// A queue beside idle guests.
    Idle,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    #[error("{0}: {1}: is it a report.json of this version?")]
    Format(PathBuf, serde_json::Error),
    #[error("no memory for the comparison: {0}")]
    Measure(#[from] io::Error),
    #[error("the report cannot be made: {0}")]
    Report(Box<dyn std::error::Error>),
}

/// Measures, writes the report, prints the ratios. The exit status says nothing of the goals: they are no test.
pub fn bench(options: &Options) -> Result<ExitCode, Error> {
    // Before minutes have been spent.
    let old = options.compare.as_deref().map(read).transpose()?;
    let figures = match &options.with {
        Some(path) => read(path)?,
        None => {
            fs::create_dir_all(&options.out).map_err(|e| Error::File(options.out.clone(), e))?;
            let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
            let figures = measured(&options.only.map_or(effort, |only| effort.only(only.into())))?;
            write(&figures, &options.out)?;
            figures
        }
    };
    match old {
        Some(old) => print_changes(&changes(&old, &figures)),
        None => {
            print_goals(&figures);
            print_sharing(&figures);
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<Only> for Part {
    fn from(only: Only) -> Self {
        match only {
            Only::Rates => Self::Rates,
            Only::RoundTrips => Self::RoundTrips,
            Only::Merging => Self::Merging,
            Only::Sharing => Self::Sharing,
            Only::Idle => Self::Idle,
        }
    }
}

fn measured(effort: &Effort) -> Result<Figures, Error> {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    let progress =
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let figures = measure(effort, |next| {
        progress.set_message(next.to_string());
        progress.tick();
    })?;
    progress.finish_and_clear();
    Ok(figures)
}

fn read(path: &Path) -> Result<Figures, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::File(path.into(), e))?;
    serde_json::from_str(&text).map_err(|e| Error::Format(path.into(), e))
}

fn write(figures: &Figures, to: &Path) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(figures).map_err(|e| Error::Report(e.into()))?;
    let mut files = vec![
        ("report.json".to_string(), json + "\n"),
        ("report.html".to_string(), html(figures).map_err(Error::Report)?),
    ];
    for plot in plots(figures).map_err(Error::Report)? {
        files.push((format!("{}.svg", plot.name), plot.svg));
    }
    for (name, text) in files {
        let path = to.join(name);
        fs::write(&path, text).map_err(|e| Error::File(path, e))?;
    }
    Ok(())
}

fn print_goals(figures: &Figures) {
    say!("{}\n", figures.machine.sentence());
    if figures.goals.is_empty() {
        return;
    }
    say!("{:>8} {:>8} {:>9}  ", "measured", "goal", "the limit");
    for goal in &figures.goals {
        let bound = format!("{} {}", if goal.at_least { "≥" } else { "≤" }, goal.goal);
        let met = if goal.is_met() { "" } else { "  (not met)" };
        let limit = goal.limit.map(|limit| format!("{limit:.2}")).unwrap_or_default();
        say!("{:>8.2} {bound:>8} {limit:>9}  {}{met}", goal.measured.median, goal.what);
    }
}

fn print_sharing(figures: &Figures) {
    if let Some(ratio) = figures.beside_idle {
        say!("\none queue beside 256 idle guests : alone  {:.2}", ratio.median);
    }
    if figures.sharing.is_empty() {
        return;
    }
    say!("\nvCPUs with a TLBI and a CMD_SYNC at a time, medians");
    say!(
        "{:>9} {:>5}  {:<14} {:>12} {:>13} {:>13} {:>15}",
        "host SYNC",
        "vCPUs",
        "queues",
        "commands/s",
        "guest SYNCs/s",
        "of the limit",
        "for a host SYNC"
    );
    for sharing in &figures.sharing {
        let Sharing { vcpus, queues, host_sync_ns, .. } = sharing;
        let us = *host_sync_ns as f64 / 1e3;
        say!(
            "{us:>6} us {vcpus:>5}  {queues:<14} {:>12} {:>13} {:>13.3} {:>15.2}",
            HumanCount(sharing.commands_per_second.median as u64),
            HumanCount(sharing.syncs_per_second.median as u64),
            sharing.of_limit.median,
            sharing.guest_syncs_per_host_sync.median,
        );
    }
}

fn print_changes(changes: &[Change]) {
    say!("{:>8} {:>8} {:>8} {:>8}  ", "before", "now", "change", "noise");
    for change in changes {
        let verdict = match (change.is_real(), change.is_better()) {
            (false, _) => "",
            (true, true) => "  (better)",
            (true, false) => "  (worse)",
        };
        say!(
            "{:>8.3} {:>8.3} {:>+7.1}% {:>7.1}%  {}{verdict}",
            change.old.median,
            change.new.median,
            100.0 * change.relative(),
            100.0 * change.noise(),
            change.what,
        );
    }
}
