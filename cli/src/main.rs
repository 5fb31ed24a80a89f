//! The program `ecmdq`: runs emulated guests against the engine, serves a real one, shows and translates commands.

/// Prints a line. Who has closed the pipe wants no more of them.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

mod bench;
mod decode;
mod run;
mod scale;
mod serve;
mod translate;
mod values;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// SMMUv3 invalidations without exits: command queues in shared memory, served by a polling engine.
///
/// Without a command, `run`.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Job>,
    #[command(flatten)]
    run: run::Options,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Lets emulated guests drive one worker, and shows what came of it.
    Run(run::Options),
    /// Measures the engine beside its peers and the limit, and writes a report.
    Bench(bench::Options),
    /// Says how many workers, how much memory and how much of the host queues a host with many guests needs.
    Scale(scale::Options),
    /// Serves one guest whose RAM is a file, until SIGTERM or SIGINT.
    Serve(serve::Options),
    /// Prints a stream of raw commands, one a line.
    Decode(decode::Options),
    /// Prints what the rules make of each command of a stream.
    Translate(translate::Options),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => return mistake(one_line(&e.to_string())),
        Err(help) => {
            print!("{help}");
            return ExitCode::SUCCESS;
        }
    };
    let result = match cli.command.unwrap_or(Job::Run(cli.run)) {
        Job::Run(options) => run::run(&options).map_err(|e| e.to_string()),
        Job::Bench(options) => bench::bench(&options).map_err(|e| e.to_string()),
        Job::Scale(options) => scale::scale(&options).map_err(|e| e.to_string()),
        Job::Serve(options) => serve::serve(&options).map_err(|e| e.to_string()),
        Job::Decode(options) => decode::decode(&options).map_err(|e| e.to_string()),
        Job::Translate(options) => translate::translate(&options).map_err(|e| e.to_string()),
    };
    match result {
        Ok(code) => code,
        Err(message) => mistake(&message),
    }
}

/// The first line says what is wrong; the usage that follows is there with `--help`.
fn one_line(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line)
}

fn mistake(message: &str) -> ExitCode {
    eprintln!("ecmdq: {message}");
    ExitCode::from(2)
}
