//! What every host command is, whatever the guest sent.

use ecmdq_engine::Command;
use proptest::prelude::*;

use crate::support::*;

/// The VMID or the StreamID is the guest's own, and the opcode is one of the few that a host gets.
fn belongs_to_the_guest(low: u64) -> bool {
    match low & 0xff {
        0x05 | 0x06 | 0x40 => STREAMS.iter().any(|(_, host)| u64::from(*host) == low >> 32),
        0x10..=0x13 => low >> 32 & 0xffff == u64::from(VMID),
        _ => false,
    }
}

/// Legal for certain, by the kernel's checks of commands from a VMM (facts sheet, 6.5), on a host with these features.
fn every_kernel_takes(host: On, [low, high]: [u64; 2]) -> bool {
    let asid = if host.has(ASID16) { 0xffff << 48 } else { 0x00ff << 48 };
    let vmid = 0xffff << 32;
    match low & 0xff {
        0x05 => low & 0xf00 == 0 && high & !1 == 0,
        0x06 => low & 0xffff_ff00 == 0 && high == 0,
        0x10 => low & !vmid == 0x10 && high == 0,
        0x11 => low & !(vmid | asid) == 0x11 && high == 0,
        0x12 => range(host, low & !(vmid | asid), high),
        0x13 => range(host, low & !vmid, high),
        0x40 => {
            let substream = low & 0xffff_fa00;
            let with_ssv = host.ssid_bits > 0 && low & 0x800 != 0;
            host.has(ATS)
                && low & 0x500 == 0
                && (substream == 0 || with_ssv)
                && high & 0xfc0 == 0
                && high & 0x3f <= 52
        }
        _ => false,
    }
}

/// `low` is without VMID and ASID.
fn range(host: On, low: u64, high: u64) -> bool {
    let (num_scale, ttl, tg) = (low & !0xff, high >> 8 & 3, high >> 10 & 3);
    let fields = if host.has(DS) { 0x03f1_f000 } else { 0x01f1_f000 };
    let no_others = num_scale & !fields == 0 && high & 0xfe & !1 == 0;
    let by_tg = match tg {
        0 => num_scale == 0 && ttl == 0,
        2 if ttl == 1 && !host.has(DS) => false,
        _ => host.has(RIL) && (num_scale != 0 || ttl != 0),
    };
    no_others && by_tg
}

/// The guest's host commands for one command.
fn host_commands(guest: On, host: On, command: [u64; 2]) -> Vec<Command> {
    Engine::on_host(guest, host).alone(Command(command)).host
}

/// A guest that is like its host, and has the host's StreamIDs.
fn like_the_host(host: On) -> Engine {
    Engine::with_streams(host, host, STREAMS.map(|(_, host)| (host, host)))
}

proptest! {
    #![proptest_config(config(700))]

    #[test]
    fn host_commands_name_only_what_is_the_guests(
        (guest, host) in host_for(guest()),
        command in command(),
    ) {
        for Command([low, high]) in host_commands(guest, host, command) {
            prop_assert!(belongs_to_the_guest(low), "{low:#018x} {high:#018x}");
        }
    }

    #[test]
    fn host_commands_are_such_as_every_kernel_takes(
        (guest, host) in host_for(guest()),
        command in command(),
    ) {
        for Command(words) in host_commands(guest, host, command) {
            prop_assert!(every_kernel_takes(host, words), "{words:#018x?} with {host:?}");
        }
    }

    #[test]
    fn host_commands_are_fixed_points(
        (guest, host) in host_for(guest()),
        command in command(),
    ) {
        for canonical in host_commands(guest, host, command) {
            prop_assert_eq!(like_the_host(host).fate(canonical.0), Fate::Host(canonical.0));
        }
    }

    #[test]
    fn host_commands_of_runs_are_fixed_points_as_runs(
        (guest, host) in host_for(guest()),
        run in run(),
    ) {
        let engine = Engine::on_host(guest, host);
        let canonical: Vec<_> = run.iter().flat_map(|words| engine.alone(Command(*words)).host).collect();
        let mut again = vec![Command::default(); canonical.len()];
        let engine = like_the_host(host);
        let applied = engine.rules.apply(&engine.streams, &canonical, &mut again);
        prop_assert_eq!((applied.taken, applied.host), (canonical.len(), canonical.len()));
        prop_assert_eq!(again, canonical);
    }
}
