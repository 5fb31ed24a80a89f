//! The list of the document, and filters made from it.

use std::io;

use seccompiler::{BpfProgram, TargetArch};
use serde_json::json;

const DOCUMENT: &str = include_str!("../../../docs/embedding.md");
/// How the list's first line begins.
const HEAD: &str = "| system calls of ";

/// A row of the list.
pub struct Row {
    pub of: String,
    /// On all architectures.
    everywhere: Vec<String>,
    /// On x86_64 only.
    x86_64: Vec<String>,
}

/// The list.
pub fn rows() -> Vec<Row> {
    let list = DOCUMENT.lines().skip_while(|line| !line.starts_with(HEAD)).skip(2);
    list.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [_, of, everywhere, x86_64, _] = cells[..] else { panic!("not a row of the list: {line}") };
            let calls = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Row { of: of.into(), everywhere: calls(everywhere), x86_64: calls(x86_64) }
        })
        .collect()
}

/// The system calls of some rows.
pub fn calls(of: &[&str], arch: TargetArch) -> Vec<String> {
    let mut calls = Vec::new();
    let rows = rows();
    for of in of {
        let row = rows.iter().find(|row| row.of == *of).unwrap_or_else(|| panic!("no row: {of}"));
        calls.extend_from_slice(&row.everywhere);
        if arch == TargetArch::x86_64 {
            calls.extend_from_slice(&row.x86_64);
        }
    }
    calls
}

/// A filter that allows these, and raises SIGSYS at any other.
pub fn filter(calls: &[String], arch: TargetArch) -> BpfProgram {
    let allowed: Vec<_> = calls.iter().map(|name| json!({ "syscall": name })).collect();
    let filter = json!({ "worker": {
        "mismatch_action": "trap", "match_action": "allow", "filter": allowed,
    } });
    let text = filter.to_string();
    let mut compiled = seccompiler::compile_from_json(text.as_bytes(), arch).unwrap();
    compiled.remove("worker").unwrap()
}

/// Confines this thread.
pub fn confine(filter: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(filter).map_err(io::Error::other)
}
