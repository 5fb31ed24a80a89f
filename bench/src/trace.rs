//! Recorded command streams: raw 16-byte little-endian commands.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ecmdq_engine::Command;
use thiserror::Error;

/// Why a recorded stream cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a whole number of commands.
    #[error("{path}: {len} bytes is not a whole number of 16-byte commands: is it cut off?")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: usize,
    },
    /// The file has no commands.
    #[error("{path}: no commands")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// All commands of a file; `-` is the standard input.
///
/// # Errors
///
/// [`TraceError::Read`], [`TraceError::Truncated`].
pub fn read(path: &Path) -> Result<Vec<Command>, TraceError> {
    let fail = |source| TraceError::Read { path: path.into(), source };
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map_err(fail)?;
        bytes
    } else {
        std::fs::read(path).map_err(fail)?
    };
    let (entries, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(TraceError::Truncated { path: path.into(), len: bytes.len() });
    }
    Ok(commands(entries))
}

/// A stream of this repository, by its name: `msi-ril-2cpu-mixed`, `sev-noril-64k` or `ats-msi-ril-2cpu`; nothing by any other.
pub fn named(name: &str) -> Vec<Command> {
    let bytes: &[u8] = match name {
        "msi-ril-2cpu-mixed" => include_bytes!("../traces/msi-ril-2cpu-mixed.cmds"),
        "sev-noril-64k" => include_bytes!("../traces/sev-noril-64k.cmds"),
        "ats-msi-ril-2cpu" => include_bytes!("../traces/ats-msi-ril-2cpu.cmds"),
        _ => &[],
    };
    commands(bytes.as_chunks().0)
}

fn commands(entries: &[[u8; 16]]) -> Vec<Command> {
    let words = |entry| bytemuck::cast::<[u8; 16], [u64; 2]>(entry).map(u64::from_le);
    entries.iter().map(|entry| Command(words(*entry))).collect()
}
