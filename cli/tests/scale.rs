//! `ecmdq scale`: the plan, costs from a file, exit status.

use std::path::Path;
use std::process::{Command, Output};

fn scale(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecmdq")).arg("scale").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SMALL: [&str; 6] = ["--vms", "4", "--devices", "1", "--rate", "10000"];

#[test]
fn what_it_prints_as_costs_it_takes_as_costs() {
    let first = scale(&[&SMALL[..], &["--costs", "default"]].concat());
    let printed = text(&first.stdout);
    assert!(
        first.status.success() && printed.contains("  workers              1, up to 4 guests each"),
        "{printed}"
    );
    let costs = printed.split("\n\n").next().unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("costs.toml");
    std::fs::write(&file, costs).unwrap();
    let again = text(&scale(&[&SMALL[..], &["--costs", file.to_str().unwrap()]].concat()).stdout);
    assert_eq!(printed.split("memory").next(), again.split("memory").next());
}

#[test]
fn what_cannot_be_is_said() {
    let too_much = scale(&["--vms", "4", "--rate", "10000000", "--cores", "1", "--costs", "default"]);
    assert_eq!(too_much.status.code(), Some(1));
    assert!(text(&too_much.stdout).contains("not with 1 workers"));
    let no_file = scale(&["--costs", "/nowhere"]);
    assert_eq!(no_file.status.code(), Some(2));
    assert!(text(&no_file.stderr).starts_with("ecmdq: --costs /nowhere: "));
}
