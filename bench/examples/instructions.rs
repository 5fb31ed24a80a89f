//! Counts the instructions of each step, and compares them with the committed figures; with `--update`, replaces those.
//!
//! The exit status is 1 if a step is more than 3 % away from its figure, in either direction: a figure that is too high would hide what
//! grows next. With another compiler than the figures name, the differences are shown, and say nothing.

use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use ecmdq_bench::report::Instructions;

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

fn main() -> ExitCode {
    match run(env::args().nth(1).as_deref()) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("instructions: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(option: Option<&str>) -> Result<ExitCode, String> {
    let update = match option {
        None => false,
        Some("--update") => true,
        Some(other) => return Err(format!("{other}: there is --update, or nothing")),
    };
    let new = count()?;
    if update {
        let text = serde_json::to_string_pretty(&new).map_err(|e| e.to_string())?;
        fs::write(FIGURES, text + "\n").map_err(|e| format!("{FIGURES}: {e}"))?;
        println!("{} steps written to {FIGURES}", new.steps.len());
        return Ok(ExitCode::SUCCESS);
    }
    let old = Instructions::committed()
        .ok_or_else(|| format!("{FIGURES} cannot be read: run this with --update"))?;
    let changes = old.changes(&new);
    changes.iter().for_each(|change| println!("{change}"));
    if old.compiler != new.compiler {
        println!("The figures are those of {}; this is {}: nothing is judged.", old.compiler, new.compiler);
        return Ok(ExitCode::SUCCESS);
    }
    if changes.is_empty() {
        println!("{} steps are within 3 % of their figures", new.steps.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("If that is meant, run this with --update, and say why in the commit.");
    Ok(ExitCode::FAILURE)
}

fn count() -> Result<Instructions, String> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let bench = ["bench", "-q", "-p", "ecmdq-bench", "--features", "callgrind", "--bench", "instructions"];
    let printed = Command::new(&cargo)
        .args(bench)
        .args(["--", "--output-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("{cargo}: {e}"))?;
    if !printed.status.success() {
        return Err(
            "the bench failed: it needs valgrind, and gungraun-runner of the version in Cargo.toml".into()
        );
    }
    let rustc = Command::new(env::var("RUSTC").unwrap_or_else(|_| "rustc".into())).arg("--version").output();
    let rustc = rustc.map_err(|e| format!("rustc: {e}"))?;
    let compiler = String::from_utf8_lossy(&rustc.stdout).trim().to_string();
    Instructions::from_bench(
        format!("{compiler}, {}", env::consts::ARCH),
        &String::from_utf8_lossy(&printed.stdout),
    )
}
