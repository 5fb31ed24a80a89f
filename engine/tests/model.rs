//! The model SMMU: what each command removes, spelled out.

use ecmdq_engine::host::model::{AtcEntry, Caches, ConfigEntry, Entry, Granule, ModelSmmu, Pace, TlbEntry};
use ecmdq_engine::host::{Cause, HostQueue};
use ecmdq_engine::{Command, Features, HostStreamId, Vmid};

fn features() -> Features {
    let mut features = Features::linux();
    (features.ats, features.ssid_bits) = (true, 7);
    features
}

fn tlb(vmid: u16, asid: Option<u16>, address: u64, granule: Granule, level: u8, leaf: bool) -> Entry {
    Entry::Tlb(TlbEntry { vmid: Vmid(vmid), asid, address, granule, level, leaf })
}

fn atc(stream: u32, substream: Option<u32>, address: u64, bytes_log2: u8) -> Entry {
    Entry::Atc(AtcEntry { stream: HostStreamId(stream), substream, address, bytes_log2 })
}

/// A name for each entry.
fn entries() -> Vec<(&'static str, Entry)> {
    use Granule::{K4, K16, K64};
    let page = |vmid, asid, n: u64| tlb(vmid, asid, n << 12, K4, 3, true);
    let stream = HostStreamId(5);
    vec![
        ("page 0", page(1, Some(9), 0)),
        ("page 1", page(1, Some(9), 1)),
        ("page 2", page(1, Some(9), 2)),
        ("page 511", page(1, Some(9), 511)),
        ("page 512", page(1, Some(9), 512)),
        ("top page", page(1, Some(9), 0xf_ffff_ffff_ffff)),
        ("global page 1", page(1, None, 1)),
        ("another ASID's page 1", page(1, Some(8), 1)),
        ("another VMID's page 1", page(2, Some(9), 1)),
        ("2M block 0", tlb(1, Some(9), 0, K4, 2, true)),
        ("table of block 0", tlb(1, Some(9), 0, K4, 2, false)),
        ("table of 1G", tlb(1, Some(9), 0, K4, 1, false)),
        ("16K page 0", tlb(1, Some(9), 0, K16, 3, true)),
        ("64K page 0", tlb(1, Some(9), 0, K64, 3, true)),
        ("STE", Entry::Config(ConfigEntry::Ste(stream))),
        ("CD 0", Entry::Config(ConfigEntry::Cd(stream, 0))),
        ("CD 65", Entry::Config(ConfigEntry::Cd(stream, 65))),
        ("L1CD 0", Entry::Config(ConfigEntry::L1Cd { stream, first: 0, log2: 6 })),
        ("L1CD 64", Entry::Config(ConfigEntry::L1Cd { stream, first: 64, log2: 6 })),
        ("another's CD 0", Entry::Config(ConfigEntry::Cd(HostStreamId(4), 0))),
        ("ATC 0", atc(5, None, 0, 12)),
        ("ATC 3", atc(5, None, 0x3000, 12)),
        ("ATC 2M", atc(5, None, 0, 21)),
        ("ATC top", atc(5, None, !0xfff, 12)),
        ("ATC 0 of PASID 1", atc(5, Some(1), 0, 12)),
        ("ATC 0 of PASID 2", atc(5, Some(2), 0, 12)),
        ("ATC 3 of PASID 2", atc(5, Some(2), 0x3000, 12)),
        ("another's ATC 0", atc(4, None, 0, 12)),
    ]
}

/// The names of what a command removes.
fn removed(command: [u64; 2]) -> Vec<&'static str> {
    let mut caches = Caches::new(&features());
    for (name, entry) in entries() {
        assert!(caches.insert(entry), "{name}");
        assert!(!caches.insert(entry), "{name} is there already");
    }
    caches.record();
    assert_eq!(caches.execute(Command(command)), Ok(()), "{}", Command(command));
    let gone: Vec<_> = entries().into_iter().filter(|(_, entry)| !caches.contains(*entry)).collect();
    assert_eq!((caches.removed(), caches.len()), (gone.len() as u64, entries().len() - gone.len()));
    let mut told = caches.take_removed();
    told.sort();
    let mut expected: Vec<_> = gone.iter().map(|(_, entry)| *entry).collect();
    expected.sort();
    assert_eq!(told, expected, "what is told is what is gone");
    gone.into_iter().map(|(name, _)| name).collect()
}

const VMID: u64 = 1 << 32;
const VA: u64 = 0x12 | VMID | 9 << 48;
const VAA: u64 = 0x13 | VMID;
const OF_4K: u64 = 1 << 10;
const STREAM: u64 = 5 << 32;
const ATC: u64 = 0x40 | STREAM;
const SSV: u64 = 1 << 11;
const GLOBAL: u64 = 1 << 9;

#[test]
fn each_command_removes_what_it_names_and_nothing_else() {
    let of_asid: &[_] = &[
        "page 0",
        "page 1",
        "page 2",
        "page 511",
        "page 512",
        "top page",
        "2M block 0",
        "table of block 0",
        "table of 1G",
        "16K page 0",
        "64K page 0",
    ];
    let cases: [([u64; 2], &[&str]); 28] = [
        ([0x11 | VMID | 9 << 48, 0], of_asid),
        ([0x11 | VMID | 7 << 48, 0], &[]),
        // Addresses without a granule: entries of any granule and level.
        (
            [VA, 0x1000],
            &[
                "page 1",
                "global page 1",
                "2M block 0",
                "table of block 0",
                "table of 1G",
                "16K page 0",
                "64K page 0",
            ],
        ),
        ([VA, 0x1001], &["page 1", "global page 1", "2M block 0", "16K page 0", "64K page 0"]),
        ([VA, 0x20_0001], &["page 512"]),
        ([VA, !0xffe], &["top page"]),
        (
            [VAA, 0x1001],
            &["page 1", "global page 1", "another ASID's page 1", "2M block 0", "16K page 0", "64K page 0"],
        ),
        ([0x12 | VMID | 7 << 48, 0x1001], &["global page 1"]),
        // Ranges: of one granule, to the last page, no page further.
        ([VA | 1 << 12, 0x1001 | OF_4K], &["page 1", "page 2", "global page 1", "2M block 0"]),
        ([VA | 1 << 12, 0x2001 | OF_4K], &["page 2", "2M block 0"]),
        ([VA | 1 << 20, 0x1f_f001 | OF_4K], &["page 511", "page 512", "2M block 0"]),
        ([VA | 8 << 12 | 1 << 20, !0xffe | OF_4K], &["top page"]),
        ([VA | 1 << 12, 0x1 | 2 << 10], &["16K page 0"]),
        // The hint: leaves of that level, and the tables above it.
        ([VA | 1 << 12, 0x1001 | OF_4K | 3 << 8], &["page 1", "page 2", "global page 1"]),
        ([VA, OF_4K | 2 << 8], &["2M block 0", "table of 1G"]),
        ([VA, OF_4K | 2 << 8 | 1], &["2M block 0"]),
        ([VA, OF_4K | 3 << 8], &["page 0", "table of block 0", "table of 1G"]),
        ([0x05 | STREAM, 1], &["CD 0"]),
        ([0x05 | STREAM, 0], &["CD 0", "L1CD 0"]),
        ([0x05 | STREAM | 65 << 12, 0], &["CD 65", "L1CD 64"]),
        ([0x06 | STREAM, 0], &["CD 0", "CD 65", "L1CD 0", "L1CD 64"]),
        ([0x03 | STREAM, 1], &["STE", "CD 0", "CD 65", "L1CD 0", "L1CD 64"]),
        ([0x04 | STREAM, 0], &["STE", "CD 0", "CD 65", "L1CD 0", "L1CD 64", "another's CD 0"]),
        ([ATC, 0x3000], &["ATC 3", "ATC 2M"]),
        ([ATC, 0x3000 | 2], &["ATC 0", "ATC 3", "ATC 2M"]),
        ([ATC, 52], &["ATC 0", "ATC 3", "ATC 2M", "ATC top"]),
        ([ATC | SSV | 2 << 12, 0], &["ATC 0 of PASID 2"]),
        ([ATC | SSV | GLOBAL, 2], &["ATC 0 of PASID 1", "ATC 0 of PASID 2", "ATC 3 of PASID 2"]),
    ];
    for (command, expected) in cases {
        assert_eq!(removed(command), expected, "{}", Command(command));
    }
}

#[test]
fn whole_vmids_and_everything() {
    let all = removed([0x30, 0]);
    assert_eq!((all.len(), all.contains(&"another VMID's page 1")), (14, true));
    let of_vmid = removed([0x10 | VMID, 0]);
    assert_eq!((of_vmid.len(), of_vmid.contains(&"another VMID's page 1")), (13, false));
    assert_eq!(removed([0x10 | 2 << 32, 0]), ["another VMID's page 1"]);
    let configuration = removed([0x04, 31]);
    assert_eq!(configuration, ["STE", "CD 0", "CD 65", "L1CD 0", "L1CD 64", "another's CD 0"]);
}

#[test]
fn what_a_strict_host_refuses_has_no_effect_and_is_told() {
    let refused = [
        [0xff, 0],
        [0x11 | VMID, 1],
        [VA, OF_4K],
        [VA | 1 << 12, 0x1000],
        [VA | 1 << 25, OF_4K],
        [VA, 0x80],
        [0x05 | STREAM | SSV, 0],
        [ATC, 53],
        [ATC | GLOBAL, 0],
        [0x20, 0],
    ];
    for command in refused.map(Command) {
        let mut model = ModelSmmu::new(&features());
        model.caches().insert(entries()[0].1);
        assert_eq!(model.submit(&[command]), 1);
        let ticket = model.sync();
        assert_eq!(model.completed(), ticket);
        assert_eq!(model.failure(ticket).and_then(|failure| failure.command), Some(command));
        assert_eq!(model.caches().len(), 1);
    }
    let mut caches = Caches::new(&Features::minimal());
    for beyond in [[0x12 | 1 << 12, OF_4K], [ATC, 0], [0x11 | 1 << 56, 0], [0x05 | 1 << 12, 0]] {
        assert!(caches.execute(Command(beyond)).is_err(), "{}", Command(beyond));
    }
}

#[test]
fn what_was_put_off_is_carried_out_before_what_is_behind_it() {
    let [cd, asid, all] = [[5 << 32 | 0x05, 1], [0x11 | VMID, 0], [0x10 | VMID, 0]].map(Command);
    let mut model = ModelSmmu::new(&features());
    model.set_pace(Pace::ByHand);
    // The first two tickets fail, all their commands being put off.
    for command in [cd, asid] {
        model.fail_next(Cause::Transient);
        model.submit(&[command]);
        let ticket = model.sync();
        assert_eq!(model.work(usize::MAX, |command| panic!("{command} is put off")), 2);
        assert_eq!(model.failure(ticket).map(|failure| failure.cause), Some(Cause::Transient));
    }
    model.submit(&[all]);
    let ticket = model.sync();
    let mut done = Vec::new();
    model.work(1, |command| done.push(command));
    assert_eq!(done, [cd, asid, all]);
    model.work(usize::MAX, |command| panic!("{command} is carried out again"));
    assert_eq!((model.completed(), model.failure(ticket)), (ticket, None));
}
