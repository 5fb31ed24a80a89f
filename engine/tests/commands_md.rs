//! `docs/commands.md` is made from the table of commands. When the table changes, make it anew:
//! `ECMDQ_UPDATE_DOCS=1 cargo test -p ecmdq-engine --test commands_md`.

use std::fmt::Write;

use ecmdq_engine::command::table::{COMMANDS, Check, Field, Role, Spec, When, find};
use ecmdq_engine::rules::{End, MAX_EXPANSION, Quirk, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, Opcode, StreamId, StreamMap, Vmid};

const INTRODUCTION: &str = "\
# Commands

Made from the table of commands in `engine/src/command/table.rs`; a test fails when it is out of date.

The verdict is that under the default features: stage 1, MSI, range invalidation, 16-bit ASIDs, no ATS, no PRI, no stalls, no
SubstreamIDs. `host`: to the host queue. `vsmmu`: to the VMM, as a typed request; the queue goes on when it has been taken.
`none`: taken, and nothing happens. `sync`: CMD_SYNC. `CERROR_ILL`: the queue stops at it.

Fields are given with their bits in the first (0) or second (1) word. All other bits are reserved: set, they raise CERROR_ILL.
Fields in *italics* must be zero. A condition stands behind a field that only some features bring.

| Opcode | Command | Verdict | Needs | Fields | What the host gets |
|---|---|---|---|---|---|
";

#[test]
fn the_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
    let page = page();
    if std::env::var_os("ECMDQ_UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap();
    assert!(there == page, "docs/commands.md is out of date: ECMDQ_UPDATE_DOCS=1 makes it anew");
}

fn page() -> String {
    let mut page = INTRODUCTION.to_string();
    let mut next = 0;
    for spec in COMMANDS {
        reserved(&mut page, next, u16::from(spec.opcode.0));
        next = u16::from(spec.opcode.0) + 1;
        let fields: Vec<_> = spec.fields.iter().map(field).collect();
        writeln!(
            page,
            "| {:#04x} | {} | {} | {} | {} | {} |",
            spec.opcode.0,
            spec.name,
            verdict(spec),
            spec.needs.text(),
            fields.join(", "),
            host(spec)
        )
        .unwrap();
    }
    reserved(&mut page, next, 0x100);
    writeln!(
        page,
        "\nCFGI_STE_RANGE with Range=31 is CFGI_ALL.\n\n## On a host without what the guest is shown\n"
    )
    .unwrap();
    writeln!(
        page,
        "Range invalidation: a range becomes up to {MAX_EXPANSION} commands without one; a longer one becomes TLBI_NH_ALL of \
         the guest's VMID, counted as widened. (TLBI_NH_ASID would be too little: it leaves global entries.) ATS: ATC_INV is \
         checked and has no effect. Everything else that a guest is shown, the host must have.\n\n## Quirks\n"
    )
    .unwrap();
    for (_, name, reason) in Quirk::ALL {
        writeln!(page, "* `{name}`: {reason}.").unwrap();
    }
    page
}

fn reserved(page: &mut String, from: u16, to: u16) {
    match to - from {
        0 => {}
        1 => writeln!(page, "| {from:#04x} | reserved | CERROR_ILL | | | |").unwrap(),
        _ => writeln!(page, "| {from:#04x} to {:#04x} | reserved | CERROR_ILL | | | |", to - 1).unwrap(),
    }
}

fn field(field: &Field) -> String {
    let Field { name, word, msb, lsb, .. } = field;
    let bits = if msb == lsb { format!("{word}[{msb}]") } else { format!("{word}[{msb}:{lsb}]") };
    let name = if field.role == Role::Zero { format!("*{name}*") } else { name.to_string() };
    let when = match (field.when, field.narrow) {
        (When::Always, None) => String::new(),
        (When::Always, Some((wide, msb))) => format!(" (to {msb} without {})", wide.text()),
        (when, None) => format!(" ({})", when.text()),
        (when, Some((wide, msb))) => format!(" ({}; to {msb} without {})", when.text(), wide.text()),
    };
    format!("{name} {bits}{when}")
}

/// What the default rules make of the command with all fields zero.
fn verdict(spec: &Spec) -> &'static str {
    let features = Features::default();
    let rules = Rules::new(&features, &features, Vmid(1), &[]).unwrap();
    let streams = StreamMap::from_pairs([(StreamId(0), HostStreamId(1))]).unwrap();
    let command = Command([u64::from(spec.opcode.0), 0]);
    let applied = rules.apply(&streams, &[command], &mut [Command::default(); MAX_EXPANSION]);
    match applied.end {
        End::Batch if applied.host == 1 => "host",
        End::Batch => "none",
        End::Request(_) => "vsmmu",
        End::Sync(_) => "sync",
        End::Illegal(_) => "CERROR_ILL",
    }
}

fn host(spec: &Spec) -> String {
    if spec.to != ecmdq_engine::command::table::Destination::Host {
        return String::new();
    }
    let roles = |spec: &Spec, role| spec.fields.iter().any(|field| field.role == role);
    let host = find(spec.host).unwrap();
    let mut parts = Vec::new();
    if host.opcode != spec.opcode {
        parts.push(host.name);
    }
    if roles(host, Role::Vmid) {
        parts.push("our VMID");
    }
    if roles(spec, Role::Stream) {
        parts.push("the host's StreamID; nothing if the guest does not own the stream");
    }
    match spec.check {
        Check::Range => parts.push("no TTL128"),
        Check::AtcInv => parts.push("SSV, SubstreamID and Global only with SSV and SubstreamIDs"),
        Check::Substream => parts.push("nothing if there is no such SubstreamID"),
        Check::Nothing | Check::Resp | Check::Signal => {}
    }
    parts.join("; ")
}

#[test]
fn every_opcode_stands_in_the_table_once_and_in_order() {
    assert!(COMMANDS.is_sorted_by(|a, b| a.opcode < b.opcode));
    assert!(COMMANDS.iter().all(|spec| find(spec.opcode).unwrap().name == spec.name));
    assert_eq!(find(Opcode(0x2b)).map(|spec| spec.name), None);
}
