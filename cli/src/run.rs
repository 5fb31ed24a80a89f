//! `ecmdq run`: emulated guests, one worker, a table.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use ecmdq_bench::workload::{NAMED, Workload, WorkloadError};
use ecmdq_bench::{
    CachesReport, GuestReport, IDLE_QUEUES, IdleReport, LiveModel, Mismatch, QueueKind, Report, Session,
    Settings, TraceError, Traffic, Verdict,
};
use ecmdq_engine::{SleeperKind, StatsReader};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use thiserror::Error;

/// Options of `ecmdq run`.
#[derive(Args, Debug)]
pub struct Options {
    /// How many emulated guests.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    guests: u16,
    /// Which of its queues a guest uses.
    #[arg(long, value_enum, default_value_t = Queue::Ecmdq)]
    queue: Queue,
    /// vCPUs of each guest, threads: each with an ECMDQ of its own, or all on the CMDQ.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,
    /// Do as this workload says: one of those known by name, or a TOML file. `list` shows the names.
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["guests", "queue", "queues", "replay", "host"])]
    workload: Option<String>,
    /// How long they send; each queue gets its traffic at least once.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Send this recorded stream (raw 16-byte commands) in place of the built-in mix.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// What executes the commands.
    #[arg(long, value_enum, default_value_t = Host::Ring)]
    host: Host,
    /// Compare every command that the host receives with what the guests sent, rewritten independently; with `--host model`,
    /// what has gone from its caches with what the guests named.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    verify: bool,
    /// Send nothing: measure for so long what a worker with 256 idle queues costs, then how long it takes to wake, and what being
    /// able to sleep costs.
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
          conflicts_with_all = ["guests", "queue", "queues", "seconds", "replay", "host", "verify", "workload"])]
    idle: Option<f64>,
    /// With `--idle`: what the worker sleeps on, in place of what it chooses.
    #[arg(long, value_enum, requires = "idle")]
    sleeper: Option<Sleeper>,
}

/// What a worker sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sleeper {
    IoUring,
    Epoll,
}

/// Which of its queues a guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Queue {
    /// The CMDQ, through register pages that are memory; all vCPUs share it.
    Cmdq,
    /// ECMDQs, on control pages that are memory; pages 0 and 1 trap.
    Ecmdq,
}

/// What executes the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Host {
    /// A native ring, and behind it an SMMU that counts them.
    Ring,
    /// A model SMMU, whose caches the guests fill, and look at after each CMD_SYNC.
    Model,
}

/// Why there is no table.
#[derive(Debug, Error)]
pub enum Error {
    #[error("--replay {0}")]
    Replay(#[from] TraceError),
    #[error("--workload {0}")]
    Workload(#[from] WorkloadError),
    #[error("--guests {guests} --queues {queues}: more than {MOST_QUEUES} queues in all, with a thread each")]
    Threads { guests: u16, queues: u16 },
    #[error("--replay with --host model: a recorded stream does not say what was cached")]
    ReplayOnModel,
    #[error("no memory for the guests: {0}")]
    Setup(#[from] io::Error),
}

const QUEUE_LOG2: u32 = 13;
const HOST_LOG2: u32 = 12;
const MOST_QUEUES: u32 = 1024;

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if (0.0..=86_400.0).contains(&value) { Ok(value) } else { Err("not within 0 to 86400".into()) }
}

/// Runs the main job. The exit status is 1 if anything was lost, duplicated or wrong.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    if let Some(seconds) = options.idle {
        let sleeper = options.sleeper.map(|sleeper| match sleeper {
            Sleeper::IoUring => SleeperKind::IoUring,
            Sleeper::Epoll => SleeperKind::Epoll,
        });
        print_idle(&ecmdq_bench::idle(Duration::from_secs_f64(seconds), sleeper)?);
        return Ok(ExitCode::SUCCESS);
    }
    let settings = match options.workload.as_deref() {
        Some("list") => {
            NAMED.into_iter().for_each(|(name, _)| print_workload(name));
            return Ok(ExitCode::SUCCESS);
        }
        Some(name) => {
            let time = Duration::from_secs_f64(options.seconds);
            Settings { verify: options.verify, ..Settings::of(&Workload::open(name)?, time) }
        }
        None => settings(options)?,
    };
    let report = match options.host {
        Host::Ring => {
            let session = Session::new(settings)?;
            watch(&session.stats_readers(), options.seconds, || session.run())
        }
        Host::Model if options.replay.is_some() => return Err(Error::ReplayOnModel),
        Host::Model => {
            let session = LiveModel::new(settings)?;
            watch(&session.stats_readers(), options.seconds, || session.run())
        }
    };
    print(&report);
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_workload(name: &str) {
    if let Ok(workload) = Workload::open(name) {
        say!("{name:<12}{}", workload.about);
    }
}

/// Without a workload.
fn settings(options: &Options) -> Result<Settings, Error> {
    let Options { guests, queue, queues, .. } = *options;
    if u32::from(guests) * u32::from(queues) > MOST_QUEUES {
        return Err(Error::Threads { guests, queues });
    }
    let traffic = match &options.replay {
        Some(path) => Traffic::from_trace(path)?,
        None => Traffic::mix(),
    };
    Ok(Settings {
        guests,
        hostile: 0,
        queue: match queue {
            Queue::Cmdq => QueueKind::Cmdq,
            Queue::Ecmdq => QueueKind::Ecmdq,
        },
        queues,
        time: Duration::from_secs_f64(options.seconds),
        traffic: vec![traffic],
        pace: None,
        queue_log2: QUEUE_LOG2,
        host_log2: HOST_LOG2,
        verify: options.verify,
    })
}

/// Runs a session on a thread of its own, and shows how far it is.
fn watch(readers: &[StatsReader], seconds: f64, run: impl FnOnce() -> Report + Send) -> Report {
    thread::scope(|scope| {
        let running = scope.spawn(run);
        show_progress(readers, seconds, || running.is_finished());
        running.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
}

/// One line on a terminal, nothing elsewhere, until `done`.
fn show_progress(readers: &[StatsReader], seconds: f64, done: impl Fn() -> bool) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg}").unwrap_or(ProgressStyle::default_spinner()),
    );
    let start = Instant::now();
    while !done() {
        let commands: u64 = readers.iter().map(|reader| reader.read().commands).sum();
        let elapsed = start.elapsed().as_secs_f64();
        bar.set_message(format!(
            "{elapsed:.1} of {seconds:.1} s, {} guests, {} commands, {} commands/s",
            readers.len(),
            HumanCount(commands),
            HumanCount((commands as f64 / elapsed.max(1e-3)) as u64)
        ));
        bar.tick();
        thread::sleep(Duration::from_millis(50));
    }
    bar.finish_and_clear();
}

fn print_idle(report: &IdleReport) {
    let IdleReport { time, processor, sleeper, sleeps, wake_ns, bare_ns, adaptive, spinning } = report;
    say!(
        "{IDLE_QUEUES} idle queues, {:.1} s, on {}",
        time.as_secs_f64(),
        match sleeper {
            Some(SleeperKind::IoUring) => "io_uring",
            Some(SleeperKind::Epoll) => "epoll",
            None => "nothing",
        }
    );
    match processor {
        Some(processor) => {
            say!("  processor time {:.3} ms, slept {sleeps} times", processor.as_secs_f64() * 1e3)
        }
        None => say!("  processor time is not told by this system, slept {sleeps} times"),
    }
    say!("wake-up, {} times{:>17} {:>10} {:>10}", wake_ns.len(), "p50", "p99", "max");
    for (name, times) in [("doorbell to command taken", wake_ns), ("bare eventfd", bare_ns)] {
        let at = |quantile| micros(times.value_at_quantile(quantile));
        say!("  {name:<27}{:>10} {:>10} {:>10}", at(0.5), at(0.99), at(1.0));
    }
    let ratio = |quantile| {
        wake_ns.value_at_quantile(quantile) as f64 / bare_ns.value_at_quantile(quantile).max(1) as f64
    };
    say!("  {:<27}{:>10.2} {:>10.2}", "ratio", ratio(0.5), ratio(0.99));
    say!(
        "one busy queue: {} commands/s, {} if the worker never sleeps: {:+.1} %",
        count(*adaptive as u64),
        count(*spinning as u64),
        (adaptive / spinning - 1.0) * 100.0
    );
}

fn print(report: &Report) {
    say!(
        "{:>6} {:>14} {:>12} {:>13} {:>10} {:>10} {:>10} {:>9}",
        "guest",
        "commands",
        "SYNCs",
        "commands/s",
        "SYNC p50",
        "SYNC p99",
        "SYNC max",
        "rejected"
    );
    let mut total = (0, 0, 0);
    for (number, guest) in report.guests.iter().enumerate() {
        print_guest(number, guest, report.time);
        let stats = guest.stats;
        total = (total.0 + stats.commands, total.1 + stats.syncs, total.2 + stats.rejected);
    }
    let (commands, syncs, rejected) = total;
    say!(
        "{:>6} {:>14} {:>12} {:>13} {:>32} {:>9}",
        "all",
        count(commands),
        count(syncs),
        count((commands as f64 / report.time.as_secs_f64()) as u64),
        "",
        count(rejected)
    );
    say!();
    say!(
        "host queue received {} commands and {} CMD_SYNCs: {:.1} guest SYNCs for each of its own",
        count(report.host_commands()),
        count(report.host_syncs()),
        syncs as f64 / report.host_syncs().max(1) as f64
    );
    for (opcode, n) in &report.host {
        say!("{:>21}  {opcode}", count(*n));
    }
    say!();
    for (number, guest) in report.guests.iter().enumerate() {
        if guest.hostile {
            say!("guest {number} was hostile");
            continue;
        }
        for (queue, error) in &guest.errors {
            say!("guest {number}, queue {queue}: {error}");
        }
        if guest.stats.commands != guest.sent {
            say!("guest {number}: sent {} commands, {} were taken", guest.sent, guest.stats.commands);
        }
    }
    match &report.caches {
        Some(caches) => print_caches(caches),
        None => print_verdict(report),
    }
}

fn print_caches(CachesReport { filled, removed, looked_at, wrong, first }: &CachesReport) {
    say!("caches: {} entries filled, {} removed", count(*filled), count(*removed));
    match wrong {
        0 => say!("verified: {} entries looked at, and none was wrong", count(*looked_at)),
        _ => say!("NOT CLEAN: {} of {} entries looked at were wrong", count(*wrong), count(*looked_at)),
    }
    if let Some(first) = first {
        say!("first, {first}");
    }
}

fn print_guest(number: usize, guest: &GuestReport, time: Duration) {
    let stats = guest.stats;
    say!(
        "{number:>6} {:>14} {:>12} {:>13} {:>10} {:>10} {:>10} {:>9}",
        count(stats.commands),
        count(stats.syncs),
        count((stats.commands as f64 / time.as_secs_f64()) as u64),
        micros(guest.sync_ns.value_at_quantile(0.5)),
        micros(guest.sync_ns.value_at_quantile(0.99)),
        micros(guest.sync_ns.max()),
        count(stats.rejected)
    );
}

fn print_verdict(report: &Report) {
    match &report.verdict {
        None => say!("not verified; the counts {}", if report.is_clean() { "agree" } else { "DISAGREE" }),
        Some(Verdict { right, wrong: 0, lost: 0, .. }) => {
            say!(
                "verified: {} commands reached the host, each once, in order and rewritten rightly",
                count(*right)
            );
        }
        Some(Verdict { right, wrong, lost, first }) => {
            say!("NOT CLEAN: {} right, {} wrong, {} lost", count(*right), count(*wrong), count(*lost));
            if let Some(first) = first {
                let expected = first.expected.map_or("nothing".into(), |command| command.to_string());
                let Mismatch { guest, queue, received, .. } = first;
                say!("first, guest {guest}, queue {queue}: expected {expected}, received {received}");
            }
        }
    }
}

fn count(n: u64) -> String {
    HumanCount(n).to_string()
}

fn micros(ns: u64) -> String {
    format!("{:.1} us", ns as f64 / 1e3)
}
