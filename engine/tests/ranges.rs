//! A host that lacks what the guest is shown: ranges are expanded, ATC_INV is dropped, and the rest is refused. And the
//! quirk of ranges of one page.

#[path = "commands/support/mod.rs"]
mod support;

use ecmdq_engine::rules::{End, MAX_EXPANSION, Quirk, Rules};
use ecmdq_engine::{Command, Features, StallModel, Vmid};
use proptest::prelude::*;
use support::*;

const NH_ALL: Command = Command([0x10 | (VMID as u64) << 32, 0]);

/// log2 of what one address without a granule stands for, from granule and level (facts sheet, section 1.7).
fn step_log2(tg: u64, ttl: u64) -> u32 {
    match (tg, ttl) {
        (1, 1) => 30,
        (1, 2) => 21,
        (1, _) => 12,
        (2, 1) => 36,
        (2, 2) => 25,
        (2, _) => 14,
        (3, 1) => 42,
        (3, 2) => 29,
        (3, _) => 16,
        _ => panic!("no granule"),
    }
}

/// The first and the last step of a canonical range, and log2 of their size.
fn steps([low, high]: [u64; 2]) -> (u128, u128, u32) {
    let (num, scale) = (u128::from(low >> 12 & 0x1f), (low >> 20 & 0x3f).min(39));
    let (ttl, tg) = (high >> 8 & 3, high >> 10 & 3);
    let address = u128::from(high >> 12 << 12);
    let bytes = (num + 1) << scale << (10 + 2 * tg);
    // No wrap past the top.
    let end = (address + bytes).min(1 << 64);
    let log2 = step_log2(tg, ttl);
    (address >> log2, (end - 1) >> log2, log2)
}

/// What the host without ranges gets for a command that a host with ranges would get.
fn check_expansion(canonical: [u64; 2], got: &Alone) -> Result<(), TestCaseError> {
    let [low, high] = canonical;
    prop_assert_eq!((got.taken, got.dropped, got.end), (1, 0, End::Batch));
    if high & 0xc00 == 0 {
        prop_assert_eq!((&got.host[..], got.widened), (&[Command(canonical)][..], 0));
        return Ok(());
    }
    let (first, last, log2) = steps(canonical);
    if last - first >= MAX_EXPANSION as u128 {
        prop_assert_eq!((&got.host[..], got.widened), (&[NH_ALL][..], 1));
        return Ok(());
    }
    prop_assert_eq!(got.widened, 0);
    for command in &got.host {
        // ASID, VMID, opcode and Leaf are the same, and no range field is left.
        prop_assert_eq!(command.0[0], low & 0xffff_ffff_0000_00ff);
        prop_assert_eq!(command.0[1] & 0xfff, high & 1);
    }
    let hit: Vec<_> = got.host.iter().map(|command| u128::from(command.0[1]) >> log2).collect();
    prop_assert_eq!(hit, (first..=last).collect::<Vec<_>>());
    Ok(())
}

/// The guest's command on a host without ranges, against the oracle on a host with them.
fn check(engine: &Engine, command: [u64; 2]) -> Result<(), TestCaseError> {
    let got = engine.alone(Command(command));
    match oracle(engine.on, command) {
        Fate::Host(canonical) => check_expansion(canonical, &got),
        _ => {
            prop_assert!(matches!(got.end, End::Illegal(_)) && got.taken == 0);
            Ok(())
        }
    }
}

fn without_ril(on: On) -> Engine {
    Engine::on_host(on, on.without(RIL))
}

#[test]
fn every_range_is_covered_and_not_more_than_rounded_out() {
    let engines = [On::ALL, On::ALL.without(DS)].map(without_ril);
    let addresses = [0, 0x0000_7fff_ffff_f001, 0xffff_ffff_ffe0_0000, 0xffff_ffff_ffff_f001];
    for fields in 0..1u64 << 16 {
        let (num, scale) = (fields & 0x1f, fields >> 5 & 0x3f);
        let low = 0x0056_0000_0000_0012 | num << 12 | scale << 20;
        let address = addresses[(fields % 3 + (fields >> 11 & 1)) as usize];
        for engine in &engines {
            check(engine, [low, fields >> 11 << 7 | address]).unwrap();
        }
    }
}

#[test]
fn short_ranges_become_their_pages() {
    let host = |words| without_ril(On::ALL).alone(Command(words)).host;
    // Two pages of 4K; the first of them.
    let pages = [0x1000, 0x2000].map(|page| Command([0x13 | (VMID as u64) << 32, page | 1]));
    assert_eq!(host([0x1013, 0x1000 | 0x401]), pages);
    assert_eq!(host([0x13, 0x1000 | 0x701]), pages[..1]);
    // 512 pages of 4K that are one block of level 2.
    assert_eq!(host([0x0090_0013, 0x20_0000 | 0x601]), [Command([0x13 | (VMID as u64) << 32, 0x20_0001])]);
}

#[test]
fn a_range_of_as_many_pages_as_are_expanded_is_not_widened_and_a_longer_one_is() {
    let engine = without_ril(On::ALL);
    // NUM=31 SCALE=1: 64 pages. Then one step more: NUM=1 SCALE=6 is 128.
    let most = engine.alone(Command([0x0011_f012, 0x8000_0400]));
    assert_eq!((most.host.len(), most.widened), (64, 0));
    let more = engine.alone(Command([0x0060_1012, 0x8000_0400]));
    assert_eq!((more.host, more.widened), (vec![NH_ALL], 1));
}

#[test]
fn an_expansion_for_which_there_is_no_room_is_not_begun() {
    let engine = without_ril(On::ALL);
    let batch = [Command([0x10, 0]), Command([0x7012, 0x8000_0400]), Command([0x46, 0])];
    for room in 0..9 {
        let mut to = vec![Command::default(); room];
        let applied = engine.rules.apply(&engine.streams, &batch, &mut to);
        let taken = usize::from(room > 0);
        assert_eq!((applied.taken, applied.host, applied.end), (taken, taken, End::Batch), "room {room}");
    }
    let applied = engine.rules.apply(&engine.streams, &batch, &mut [Command::default(); 9]);
    assert_eq!((applied.taken, applied.host), (3, 9));
}

#[test]
fn every_atc_inv_is_checked_and_dropped_on_a_host_without_ats() {
    for on in combinations_with(0x40) {
        let engine = Engine::on_host(on, on.without(ATS));
        for size in 0..=0xfff {
            for low in [0x40, 0x1_0000_0a40, 0x9_0123_4840, 0x440, 0x140] {
                let legal = oracle(on, [low, size]) != Fate::Ill;
                let got = engine.alone(Command([low, size]));
                assert_eq!((got.taken, got.dropped), (legal.into(), legal.into()), "{low:#x} {size:#x}");
                assert!(got.host.is_empty() && matches!(got.end, End::Illegal(_)) != legal);
            }
        }
    }
}

/// Makes rules for a guest that has something which its host, with stage 1 alone, has not.
fn beyond(change: impl Fn(&mut Features)) -> Result<(), String> {
    let mut guest = stage_1();
    change(&mut guest);
    on_host(&guest, &stage_1())
}

fn on_host(guest: &Features, host: &Features) -> Result<(), String> {
    Rules::new(guest, host, Vmid(1), &[]).map(drop).map_err(|beyond| beyond.to_string())
}

fn stage_1() -> Features {
    let mut features = Features::none();
    features.s1p = true;
    features
}

#[test]
fn what_only_the_host_can_do_is_refused_when_it_cannot() {
    let lacks = |field, guest, host| Err(format!("the guest is shown {field}={guest}, the host has {host}"));
    assert_eq!(on_host(&stage_1(), &Features::none()), lacks("S1P", 1, 0));
    assert_eq!(on_host(&Features::none(), &Features::none()), lacks("S1P", 1, 0));
    assert_eq!(beyond(|guest| guest.httu = 2), lacks("HTTU", 2, 0));
    assert_eq!(beyond(|guest| guest.asid16 = true), lacks("ASID16", 1, 0));
    assert_eq!(beyond(|guest| guest.cd2l = true), lacks("CD2L", 1, 0));
    assert_eq!(beyond(|guest| guest.st2l = true), lacks("ST_LEVEL", 1, 0));
    assert_eq!(beyond(|guest| guest.sid_bits = 17), lacks("SIDSIZE", 17, 16));
    assert_eq!(beyond(|guest| guest.ssid_bits = 1), lacks("SSIDSIZE", 1, 0));
    assert_eq!(beyond(|guest| guest.oas = 5), lacks("OAS", 5, 4));
    assert_eq!(beyond(|guest| guest.gran4k = true), lacks("GRAN4K", 1, 0));
    assert_eq!(beyond(|guest| guest.gran16k = true), lacks("GRAN16K", 1, 0));
    assert_eq!(beyond(|guest| guest.gran64k = true), lacks("GRAN64K", 1, 0));
    assert_eq!(beyond(|guest| guest.ds = true), lacks("DS", 1, 0));
    assert_eq!(beyond(|guest| guest.d128 = true), lacks("D128", 1, 0));
}

#[test]
fn a_host_may_have_more_and_what_is_limited_to_it_fits() {
    let (all, little) = (Features::everything(), stage_1());
    assert_eq!(on_host(&little, &all), Ok(()));
    assert!(on_host(&all, &little).is_err());
    assert_eq!(on_host(&all.limited_to(&little), &little), Ok(()));
    assert_eq!(all.limited_to(&all), all);
    assert_eq!(little.limited_to(&all), little, "nothing is added");
}

#[test]
fn what_the_vmm_can_do_itself_is_not_refused() {
    let all: [fn(&mut Features); 9] = [
        |guest| guest.s2p = true,
        |guest| guest.hyp = true,
        |guest| guest.ats = true,
        |guest| guest.pri = true,
        |guest| guest.ril = true,
        |guest| guest.mpam = true,
        |guest| guest.dpt = true,
        |guest| guest.stall = StallModel::Supported,
        |guest| guest.stall = StallModel::Forced,
    ];
    for change in all {
        assert_eq!(beyond(change), Ok(()));
    }
}

#[test]
fn ssidsize_may_be_as_the_hosts_or_less() {
    for (guest, host) in (0..=20).flat_map(|guest| (0..=20).map(move |host| (guest, host))) {
        let on = |ssid_bits| On { flags: S1P, ssid_bits }.features();
        assert_eq!(Rules::new(&on(guest), &on(host), Vmid(1), &[]).is_ok(), guest <= host);
    }
}

#[test]
fn a_range_of_one_page_without_a_level_is_one_address_with_the_quirk_and_illegal_without() {
    let quirk = On { flags: EVERY, ..On::ALL };
    for tg in [0x400, 0x800, 0xc00] {
        for host in [On::ALL, On::ALL.without(RIL)] {
            let fate = |on| Engine::on_host(on, host).alone(Command([0x0005_0000_0000_0012, 0x1_0001 | tg]));
            assert!(matches!(fate(On::ALL).end, End::Illegal(_)));
            let one = Command([0x0005_0000_0000_0012 | (VMID as u64) << 32, 0x1_0001]);
            assert_eq!((fate(quirk).host, fate(quirk).widened), (vec![one], 0));
        }
    }
}

#[test]
fn the_quirk_has_a_name() {
    assert_eq!(Quirk::named("one-page-range"), Some(Quirk::OnePageRange));
    assert_eq!(Quirk::named("one page range"), None);
}

/// A TLBI by address, mostly legal.
fn tlbi() -> impl Strategy<Value = [u64; 2]> {
    let fields = (any::<u64>(), 0..=12u64, 0..4u64, 0..4u64, any::<u64>(), any::<bool>());
    (fields, proptest::bool::weighted(0.1)).prop_map(|((num, scale, ttl, tg, address, leaf), ttl128)| {
        let low = (num & 0x1f) << 12 | scale << 20 | (num >> 8 & 0xff) << 48 | 0x12;
        let hints = u64::from(ttl128) << 7 | ttl << 8 | tg << 10 | u64::from(leaf);
        [low, address & !0xfff | hints]
    })
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn random_ranges_are_covered_and_not_more_than_rounded_out(guest in guest(), command in tlbi()) {
        let guest = On { flags: guest.flags | S1P | RIL, ..guest };
        check(&without_ril(guest), command)?;
    }

    #[test]
    fn other_commands_do_not_care_whether_the_host_has_ranges(guest in guest(), command in command()) {
        prop_assume!(!matches!(command[0] & 0xff, 0x12 | 0x13));
        prop_assert_eq!(without_ril(guest).alone(Command(command)), Engine::new(guest).alone(Command(command)));
    }
}
