//! `ecmdq run`: the table, replayed streams, exit status.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn ecmdq(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecmdq")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file of raw commands in the directory that cargo gives to tests.
fn stream(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn raw(commands: &[[u64; 2]]) -> Vec<u8> {
    commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn without_a_command_it_runs_and_verifies() {
    let output = ecmdq(&["--seconds", "0", "--guests", "2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("SYNC p99"), "{text}");
    assert!(text.contains("verified: 35,082 commands reached the host, each once"), "{text}");
}

#[test]
fn recorded_streams_replay_clean() {
    // Two end without a CMD_SYNC; the replay adds one.
    for (name, sent, forwarded) in [
        ("msi-ril-2cpu-mixed", "20,001", "9,997"),
        ("sev-noril-64k", "20,001", "18,814"),
        ("ats-msi-ril-2cpu", "20,000", "6,665"),
    ] {
        let file = format!("{}/../bench/traces/{name}.cmds", env!("CARGO_MANIFEST_DIR"));
        let output = ecmdq(&["run", "--seconds", "0", "--guests", "1", "--verify", "--replay", &file]);
        let text = stdout(&output);
        assert!(output.status.success(), "{name}: {text}{}", stderr(&output));
        assert!(text.contains(sent), "{name}: {text}");
        assert!(text.contains(&format!("verified: {forwarded} commands")), "{name}: {text}");
    }
}

#[test]
fn queues_of_a_guest_share_its_line_of_the_table() {
    // 17,541 commands reach the host for each queue; the first guest's line has all that both queues took.
    let lines = |arguments: &[&str], guests: usize, verified: &str| {
        let output = ecmdq(&[&["--seconds", "0"], arguments].concat());
        let text = stdout(&output);
        assert!(output.status.success(), "{arguments:?}: {text}{}", stderr(&output));
        assert!(text.contains(&format!("verified: {verified} commands")), "{arguments:?}: {text}");
        let table = text.lines().skip(1).take_while(|line| !line.trim_start().starts_with("all")).count();
        assert_eq!(table, guests, "{text}");
    };
    lines(&["--guests", "1"], 1, "17,541");
    lines(&["--guests", "1", "--queue", "ecmdq"], 1, "17,541");
    lines(&["--guests", "2", "--queue", "cmdq"], 2, "35,082");
    lines(&["--guests", "2", "--queues", "3"], 2, "105,246");
}

#[test]
fn threads_are_not_without_end() {
    let output = ecmdq(&["--guests", "5", "--queues", "256"]);
    assert_eq!(output.status.code(), Some(2));
    let message = "--guests 5 --queues 256: more than 1024 queues in all, with a thread each";
    assert_eq!(stderr(&output), format!("ecmdq: {message}\n"));
}

#[test]
fn vcpus_may_share_the_cmdq() {
    for host in ["ring", "model"] {
        let options = ["--seconds", "0", "--guests", "2", "--queue", "cmdq", "--queues", "3", "--host", host];
        let output = ecmdq(&options);
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("verified: "), "{}", stdout(&output));
    }
}

#[test]
fn workloads_run_and_are_verified() {
    for (workload, mark) in
        [("crowded", "verified: "), ("bursts", "verified: "), ("flood", "guest 3 was hostile")]
    {
        let output = ecmdq(&["--workload", workload, "--seconds", "0.1"]);
        assert!(output.status.success(), "{workload}: {}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains(mark), "{workload}: {}", stdout(&output));
    }
}

/// What a workload of one's own comes to.
fn own(name: &str, text: &str) -> String {
    let file = stream(name, format!("about = \"\"\nseed = 1\n{text}").as_bytes());
    let output = ecmdq(&["--workload", &file.to_string_lossy(), "--seconds", "0"]);
    assert!(output.status.success(), "{name}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

#[test]
fn a_workload_may_be_ones_own() {
    let text = own("own.toml", "[[action]]\ndo = \"flush\"\n");
    assert!(text.contains("verified: 2,048 commands"), "{text}");
    stream("beside.cmds", &raw(&[[0x0001_0000_0000_0011, 0], [0x10, 0], [0x46, 0]]));
    let text = own("replay.toml", "[[action]]\ndo = \"replay\"\ntrace = \"beside.cmds\"\n");
    assert!(text.contains("verified: 4,096 commands"), "{text}");
}

#[test]
fn more_commands_than_the_queue_has_entries_are_sent_in_parts() {
    // With a pace a vCPU sends one group at least, and here no more.
    let text =
        own("long.toml", "queue_log2 = 7\npace = { mean_ns = 0 }\n[[action]]\ndo = \"unmap\"\npages = 512\n");
    assert!(text.contains("verified: 512 commands"), "{text}");
}

#[test]
fn a_hostile_guest_is_hostile_on_a_shared_cmdq_as_well() {
    let text = own(
        "hostile.toml",
        "queue = \"cmdq\"\nvcpus = 2\nguests = 2\nhostile = 1\n[[action]]\ndo = \"flush\"\n",
    );
    assert!(text.contains("guest 1 was hostile") && text.contains("verified: 4,096 commands"), "{text}");
    // It waits for no CMD_SYNC.
    let hostile = text.lines().find(|line| line.trim_start().starts_with("1 ")).unwrap();
    assert!(hostile.contains(" 0.0 us     0.0 us     0.0 us "), "{text}");
}

#[test]
fn workloads_are_listed_and_a_bad_one_is_told_in_a_line() {
    let list = stdout(&ecmdq(&["--workload", "list"]));
    assert!(list.lines().count() == 11 && list.contains("strict-4k   each DMA buffer"), "{list}");
    for (text, message) in [
        ("about = \"\"\nseed = 1\naction = []\n", "there is no action"),
        ("about = \"\"\nseed = 1\nspeed = 2\n", "unknown field `speed`"),
    ] {
        let file = stream("bad.toml", text.as_bytes());
        let output = ecmdq(&["--workload", &file.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(2));
        let told = stderr(&output);
        assert!(told.starts_with("ecmdq: --workload ") && told.contains(message), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn a_rejected_command_is_named_and_fails_the_run() {
    let file = stream("illegal.cmds", &raw(&[[0x10, 0], [0x46, 0], [0x0100_0000_0000_0110, 0], [0x46, 0]]));
    for queue in ["cmdq", "ecmdq"] {
        let file = file.to_str().unwrap();
        let output = ecmdq(&["run", "--seconds", "0", "--guests", "1", "--queue", queue, "--replay", file]);
        assert_eq!(output.status.code(), Some(1));
        let text = stdout(&output);
        assert!(text.contains("guest 0, queue 0: command error 1 at CONS 0x2: TLBI_NH_ALL"), "{text}");
    }
}

#[test]
fn bad_streams_are_one_line_that_names_the_file() {
    let truncated = stream("truncated.cmds", &[0x10; 40]);
    let empty = stream("empty.cmds", &[]);
    let missing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("missing.cmds");
    for (file, why) in [
        (truncated, "40 bytes is not a whole number of 16-byte commands: is it cut off?"),
        (empty, "no commands"),
        (missing, "No such file or directory (os error 2)"),
    ] {
        let output = ecmdq(&["run", "--replay", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(stderr(&output), format!("ecmdq: --replay {}: {why}\n", file.display()));
    }
}

#[test]
fn bad_options_are_named() {
    for (arguments, option) in [
        (&["--guests", "0"][..], "--guests"),
        (&["--seconds=-1"], "--seconds"),
        (&["--seconds=soon"], "--seconds"),
        (&["--queue=priq"], "--queue"),
        (&["--queues=257"], "--queues"),
        (&["--verify=perhaps"], "--verify"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = ecmdq(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.contains(option) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn on_a_model_guests_lose_just_what_they_name() {
    for arguments in [&["--guests", "3"][..], &["--guests", "2", "--queues", "2"], &["--queue", "cmdq"]] {
        let output = ecmdq(&[&["run", "--seconds", "0", "--host", "model", "--verify"], arguments].concat());
        let text = stdout(&output);
        assert!(output.status.success(), "{arguments:?}: {text}{}", stderr(&output));
        assert!(text.contains("entries looked at, and none was wrong"), "{text}");
        assert!(text.contains("entries filled, "), "{text}");
    }
}

#[test]
fn a_recorded_stream_says_nothing_to_a_model() {
    let file = stream("for-model.cmds", &raw(&[[0x10, 0], [0x46, 0]]));
    let output = ecmdq(&["run", "--host", "model", "--replay", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let message = "--replay with --host model: a recorded stream does not say what was cached";
    assert_eq!(stderr(&output), format!("ecmdq: {message}\n"));
}

#[test]
fn a_pipe_that_is_closed_ends_nothing() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecmdq"));
    let command = command.args(["run", "--workload", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Whoever reads it has gone before it starts.
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}
