//! `ecmdq decode`: a recorded stream, one command a line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ecmdq_bench::trace::{self, TraceError};

/// Options of `ecmdq decode`.
#[derive(Args, Debug)]
pub struct Options {
    /// Raw 16-byte little-endian commands; - is the standard input.
    file: PathBuf,
}

/// Prints index, raw words, name and fields of each command.
pub fn decode(options: &Options) -> Result<ExitCode, TraceError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (i, command) in trace::read(&options.file)?.into_iter().enumerate() {
        let [low, high] = command.0;
        // A closed pipe ends it like the end of the stream.
        if writeln!(out, "{i:>7}  {low:016x} {high:016x}  {command}").is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
