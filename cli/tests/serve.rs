//! `ecmdq serve`: a guest in another process than the engine, and what is wrong with its options.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_bench::{Driver, Registers, Sync};
use ecmdq_engine::{Command as Cmd, memory};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

const SIZE: u64 = 4 << 20;
const BASE: u64 = 0x4000_0000;
const SMMU: u64 = BASE + SIZE - 0x10_0000;

fn path(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

fn option(name: &str, value: impl ToString) -> String {
    format!("--{name}={}", value.to_string())
}

fn serve(arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecmdq"));
    command.arg("serve").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn fails(arguments: &[String], message: &str) {
    let output: Output = serve(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("ecmdq: {message}\n"));
}

fn wait_for(what: &Path, child: &mut Child) {
    let start = Instant::now();
    while !what.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        assert!(start.elapsed() < Duration::from_secs(600), "never became ready");
        thread::sleep(Duration::from_millis(5));
    }
}

fn terminate(mut child: Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

fn map(mem: &Path) -> SharedRegion {
    let file: File = OpenOptions::new().read(true).write(true).open(mem).unwrap();
    memory::map(&file, SIZE as usize).unwrap()
}

#[test]
fn a_guest_in_another_process_is_served_until_sigterm() {
    let (mem, ready, stats) = (path("served.ram"), path("served.ready"), path("served.json"));
    let arguments = [
        option("mem", mem.display()),
        option("size", SIZE),
        option("smmu-pa", format!("{SMMU:#x}")),
        option("ready", ready.display()),
        option("stats", stats.display()),
        "--coh".into(),
        "--msi".into(),
        "--ril".into(),
    ];
    let mut child = serve(&arguments).spawn().unwrap();
    wait_for(&ready, &mut child);

    let ram = map(&mem);
    let registers = ram.part((SMMU - BASE) as usize, 0x2_0000).unwrap();
    let ring = ram.part(0, 16 << 4).unwrap();
    let mut driver = Driver::cmdq(&registers, GuestAddress(BASE), ring, 4).unwrap();
    for i in 0..100 {
        let sync = if i % 2 == 0 { Sync::Msi } else { Sync::Cons };
        driver.send(&[Cmd([0x0001_0000_0000_0012, i << 12]), Cmd([0x99_0000_0001, 0])], sync).unwrap();
    }
    terminate(child);

    let text = fs::read_to_string(&stats).unwrap();
    for line in [
        "  \"commands\": 300,",
        "  \"syncs\": 100,",
        "  \"msis\": 50,",
        "  \"rejected\": 0,",
        "  \"last_rejected\": null,",
        "  \"host_commands\": 100,",
        "  \"host_syncs\": 100,",
        "    \"TLBI_NH_VA\": 100",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
}

#[test]
fn a_guest_in_another_process_finds_ecmdqs_behind_page_1() {
    let (mem, ready, stats) = (path("ecmdq.ram"), path("ecmdq.ready"), path("ecmdq.json"));
    let arguments = [
        option("mem", mem.display()),
        option("size", SIZE),
        option("smmu-pa", format!("{SMMU:#x}")),
        option("ready", ready.display()),
        option("stats", stats.display()),
        option("ecmdq", "2x4"),
        "--coh".into(),
        "--msi".into(),
    ];
    let mut child = serve(&arguments).spawn().unwrap();
    wait_for(&ready, &mut child);

    let ram = map(&mem);
    let registers = Registers::Memory(ram.part((SMMU - BASE) as usize, 0x4_0000).unwrap());
    registers.reset().unwrap();
    // The last queue of the first page, and the first of the second.
    let mut drivers = [3, 4].map(|number| {
        let at = u64::from(number) << 8;
        let ring = ram.part(at as usize, 16 << 4).unwrap();
        Driver::ecmdq(&registers, number, GuestAddress(BASE + at), ring, 4).unwrap()
    });
    for _ in 0..50 {
        for driver in &mut drivers {
            driver.send(&[Cmd([0x0001_0000_0000_0011, 0])], Sync::Msi).unwrap();
        }
    }
    let no_ecmdq = Driver::ecmdq(&registers, 8, GuestAddress(BASE), ram.part(0, 16 << 4).unwrap(), 4);
    assert_eq!(no_ecmdq.unwrap_err().to_string(), "there is no ECMDQ 8");
    terminate(child);

    let text = fs::read_to_string(&stats).unwrap();
    for line in ["  \"commands\": 200,", "  \"msis\": 100,", "    \"TLBI_NH_ASID\": 100"] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
}

#[test]
fn ecmdqs_that_cannot_be_are_refused() {
    let mem = path("no-ecmdq.ram");
    let start = [option("mem", mem.display()), option("size", SIZE), option("smmu-pa", SMMU)];
    let with = |more: &[&str]| -> Vec<String> {
        start.iter().cloned().chain(more.iter().map(|argument| argument.to_string())).collect()
    };
    for (value, why) in [
        ("4", "not PAGESxQUEUES"),
        ("1x3", "3 is no power of two up to 256"),
        ("512x1", "512 is no power of two up to 256"),
        ("0x1", "0 is no power of two up to 256"),
        ("1xall", "invalid digit found in string"),
    ] {
        let message = format!("invalid value '{value}' for '--ecmdq <PAGESxQUEUES>': {why}");
        fails(&with(&["--coh", "--msi", &option("ecmdq", value)]), &message);
    }
    fails(
        &with(&["--coh", "--ecmdq=1x1"]),
        "ECMDQ without MSI: a CMD_SYNC of each queue signals by an MSI of its own",
    );
    fails(
        &with(&["--coh", "--msi", "--ecmdq=16x1"]),
        &format!("--smmu-pa {SMMU:#x}: not on a 64 KiB boundary with 0x120000 bytes of RAM behind it"),
    );
}

#[test]
fn a_ram_file_of_the_wrong_size_is_refused() {
    let mem = path("wrong-size.ram");
    fs::write(&mem, [0; 4096]).unwrap();
    fails(
        &[option("mem", mem.display()), option("size", SIZE), option("smmu-pa", SMMU)],
        &format!("--mem {}: the file has 4096 bytes, --size says {SIZE}", mem.display()),
    );
    assert_eq!(fs::metadata(&mem).unwrap().len(), 4096, "it is left as it was");
}

#[test]
fn a_ram_file_that_cannot_be_made_is_named() {
    let mem = path("no-such-directory").join("ram");
    fails(
        &[option("mem", mem.display()), option("size", SIZE), option("smmu-pa", SMMU)],
        &format!("--mem {}: No such file or directory (os error 2)", mem.display()),
    );
}

#[test]
fn register_pages_outside_ram_are_refused() {
    let mem = path("registers.ram");
    for smmu in [BASE - 0x1_0000, BASE + SIZE - 0x1_0000, BASE + 0x8000, u64::MAX] {
        fails(
            &[option("mem", mem.display()), option("size", SIZE), option("smmu-pa", smmu)],
            &format!("--smmu-pa {smmu:#x}: not on a 64 KiB boundary with 0x20000 bytes of RAM behind it"),
        );
    }
}

#[test]
fn a_queue_size_that_no_smmu_has_is_refused() {
    let mem = path("cmdqs.ram");
    fails(
        &[option("mem", mem.display()), option("size", SIZE), option("smmu-pa", SMMU), option("cmdqs", 20)],
        "CMDQS is 20, must be within 7 to 19: Linux refuses queues of up to 64 entries, the architecture ends at 2^19",
    );
}
