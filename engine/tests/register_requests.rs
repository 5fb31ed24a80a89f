//! Registers that the VMM follows: SMMUEN and GBPA (facts sheet, sections 2.2 and 2.3; docs/virtual-smmu.md).

mod common;

use common::reg::*;
use common::*;
use ecmdq_engine::StreamTable;
use ecmdq_engine::rules::Request;

const CR1: usize = 0x28;
const STRTAB_BASE: usize = 0x80;
const STRTAB_BASE_CFG: usize = 0x88;
const UPDATE: u32 = 1 << 31;

/// A machine with ECMDQs, whose guest's registers are shared or trap.
fn machine(direct: bool) -> (Machine, Vmm) {
    let vmm = Vmm::default();
    let features = Setup::with(|f| *f = f.with_ecmdqs(0, 0));
    (Machine::new(Setup { direct, on_request: vmm.on_request(), ..features }), vmm)
}

/// As [`machine`], with SMMUEN, CMDQEN, and a queue of 2^4 entries.
fn enabled(direct: bool) -> (Machine, Vmm) {
    let (mut machine, vmm) = machine(direct);
    machine.guest.write(CR0, SMMUEN);
    machine.settle();
    vmm.complete();
    machine.settle();
    (machine.enabled(4), vmm)
}

fn on_both(test: impl Fn(bool)) {
    for direct in [false, true] {
        println!("direct: {direct}");
        test(direct);
    }
}

#[test]
fn smmuen_tells_the_vmm_where_the_stream_table_is() {
    on_both(|direct| {
        let (mut machine, vmm) = machine(direct);
        machine.guest.write(CR1, 0xd75);
        machine.guest.write_u64(STRTAB_BASE, 1 << 62 | 0x4008_0000);
        machine.guest.write(STRTAB_BASE_CFG, 0x1_0210);
        machine.settle();
        assert_eq!(vmm.waiting(), 0);
        machine.guest.write(CR0, SMMUEN);
        machine.settle();
        let table = StreamTable { base: 0x4000_0000_4008_0000, config: 0x1_0210, cr1: 0xd75 };
        assert_eq!(vmm.complete(), Request::Enable(table));
        assert_eq!(machine.worker.guests().next().unwrap().stream_table(), table);
        machine.settle();
        assert_eq!((machine.guest.read(CR0ACK), vmm.waiting()), (SMMUEN, 0));
    });
}

/// Section 2.2: the fields of CR0 are independent.
#[test]
fn smmuen_is_acknowledged_when_the_vmm_has_followed_and_other_fields_at_once() {
    on_both(|direct| {
        let (mut machine, vmm) = machine(direct);
        machine.guest.write(CR0, SMMUEN | EVENTQEN | CMDQEN);
        machine.worker.poll();
        assert_eq!(machine.guest.read(CR0ACK), EVENTQEN | CMDQEN);
        machine.guest.write(CR0, SMMUEN | CMDQEN);
        machine.settle();
        assert_eq!(machine.guest.read(CR0ACK), CMDQEN, "both ways");
        vmm.complete();
        assert_eq!(machine.guest.read(CR0ACK), CMDQEN, "the worker acknowledges");
        machine.worker.poll();
        assert_eq!((machine.guest.read(CR0ACK), vmm.waiting()), (SMMUEN | CMDQEN, 0), "asked once");
    });
}

#[test]
fn clearing_smmuen_asks_the_vmm_as_well() {
    on_both(|direct| {
        let (mut machine, vmm) = enabled(direct);
        machine.guest.write(CR0, CMDQEN);
        machine.settle();
        assert_eq!(machine.guest.read(CR0ACK), SMMUEN | CMDQEN);
        assert_eq!(vmm.complete(), Request::Disable);
        machine.settle();
        assert_eq!((machine.guest.read(CR0ACK), vmm.waiting()), (CMDQEN, 0));
    });
}

#[test]
fn no_commands_are_taken_while_smmuen_is_pending() {
    on_both(|direct| {
        for (before, after) in [(0, SMMUEN), (SMMUEN, 0)] {
            let (mut machine, vmm) = enabled(direct);
            let mut queue = machine.guest.ecmdq(0);
            queue.start(4);
            machine.guest.write(CR0, before | CMDQEN);
            machine.settle();
            if before == 0 {
                vmm.complete();
                machine.settle();
            }
            machine.guest.write(CR0, after | CMDQEN);
            machine.settle();
            queue.send(&[nh_asid(1), sync()]);
            machine.run(&[nh_asid(2), sync()]);
            machine.settle();
            assert_eq!((machine.guest.cons(), queue.cons(), machine.take_received()), (0, 0, vec![]));
            vmm.complete();
            machine.settle();
            assert_eq!((machine.guest.cons(), queue.cons()), (2, 2), "SMMUEN {before} to {after}");
        }
    });
}

#[test]
fn a_cmd_sync_that_was_taken_before_completes_while_smmuen_is_pending() {
    let vmm = Vmm::default();
    let mut rig = Rig::new(0, 4, Script::default());
    rig.add(Setup { on_request: vmm.on_request(), ..Setup::default() }, 4);
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.guests[0].write(CR0, SMMUEN | CMDQEN);
    rig.poll();
    rig.guests[0].send(&[nh_asid(2)]);
    rig.host.finish(1);
    rig.poll_times(2);
    assert_eq!((rig.cons(0), rig.host.received().len()), (2, 1));
    vmm.complete();
    rig.poll_times(2);
    assert_eq!(rig.cons(0), 3);
}

/// Section 2.2: a field that is changed again before its Update completes. Shared registers cannot ignore the write: the
/// first change is completed, then the second is followed.
#[test]
fn a_second_change_of_smmuen_is_followed_after_the_first() {
    let (mut machine, vmm) = machine(false);
    machine.guest.write(CR0, SMMUEN);
    machine.settle();
    machine.guest.write(CR0, 0);
    machine.settle();
    assert_eq!(vmm.waiting(), 1);
    assert!(matches!(vmm.complete(), Request::Enable(_)));
    machine.settle();
    assert_eq!((machine.guest.read(CR0ACK), vmm.complete()), (SMMUEN, Request::Disable));
    machine.settle();
    assert_eq!(machine.guest.read(CR0ACK), 0);
}

#[test]
fn a_trapped_second_change_of_smmuen_is_ignored() {
    let (mut machine, vmm) = machine(true);
    machine.guest.write(CR0, SMMUEN);
    machine.settle();
    machine.guest.write(CR0, EVENTQEN);
    assert_eq!(machine.guest.read(CR0), SMMUEN | EVENTQEN);
    vmm.complete();
    machine.settle();
    assert_eq!((machine.guest.read(CR0ACK), vmm.waiting()), (SMMUEN | EVENTQEN, 0));
}

#[test]
fn gbpa_update_falls_when_the_vmm_has_followed() {
    on_both(|direct| {
        let (mut machine, vmm) = machine(direct);
        machine.guest.write(GBPA, UPDATE | 0x0010_1004);
        machine.settle();
        assert_eq!(machine.guest.read(GBPA), UPDATE | 0x0010_1004);
        assert_eq!(vmm.complete(), Request::UpdateGbpa(0x0010_1004));
        machine.settle();
        assert_eq!((machine.guest.read(GBPA), vmm.waiting()), (0x0010_1004, 0));
    });
}

/// Section 2.3: it is one register of its own; commands and CR0 do not wait for it.
#[test]
fn nothing_else_waits_for_gbpa() {
    on_both(|direct| {
        let (mut machine, vmm) = enabled(direct);
        machine.guest.write(GBPA, UPDATE | 0x10_0000);
        machine.run(&[nh_asid(1), sync()]);
        machine.guest.write(CR0, CMDQEN);
        machine.settle();
        assert_eq!((machine.guest.cons(), vmm.waiting()), (2, 2));
        assert_eq!((vmm.complete(), vmm.complete()), (Request::UpdateGbpa(0x10_0000), Request::Disable));
        machine.settle();
        assert_eq!((machine.guest.read(CR0ACK), machine.guest.read(GBPA)), (CMDQEN, 0x10_0000));
    });
}

/// A register write cannot fail (section 2.2: the Update finishes in finite time). GERROR.SFM_ERR is bit 8.
#[test]
fn a_register_request_that_fails_ends_its_handshake_and_raises_sfm_err() {
    // What is written where; the register that shows the end of the handshake, before and after.
    let cases = [
        ("Enable", 0, CR0, SMMUEN, CR0ACK, 0, SMMUEN),
        ("Disable", SMMUEN, CR0, 0, CR0ACK, SMMUEN, 0),
        ("Bypass", 0, GBPA, UPDATE | 0x10_0000, GBPA, UPDATE | 0x10_0000, 0x10_0000),
    ];
    for (what, cr0, register, value, shows, pending, ended) in cases {
        for act in [Act::Reject, Act::Drop] {
            on_both(|direct| {
                println!("{what}, {act:?}");
                let (mut machine, vmm) = machine(direct);
                machine.guest.write(CR0, cr0);
                machine.settle();
                (0..vmm.waiting()).for_each(|_| vmm.take().1.complete());
                machine.settle();
                machine.guest.write(register, value);
                machine.settle();
                assert_eq!((machine.guest.read(shows), machine.guest.active()), (pending, 0));
                act.on(vmm.take().1);
                machine.settle();
                assert_eq!((machine.guest.read(shows), machine.guest.read(GERROR)), (ended, 0x100));
                let stats = machine.guest.stats.read();
                assert_eq!((stats.requests_failed, vmm.waiting()), (1, 0), "it is not asked again");
                machine.guest.start(4);
                machine.settle();
                machine.run(&[nh_asid(1), sync()]);
                assert_eq!(
                    (machine.guest.cons(), machine.guest.active()),
                    (2, SFM_ERR),
                    "nothing is stopped"
                );
                machine.guest.ack();
                machine.settle();
                assert_eq!(machine.guest.active(), 0);
            });
        }
    }
}

#[test]
fn a_register_token_of_before_a_reset_has_no_effect() {
    for (register, value) in [(CR0, SMMUEN), (GBPA, UPDATE | 0x10_0000)] {
        for act in [Act::Complete, Act::Reject, Act::Drop] {
            let (mut machine, vmm) = machine(false);
            machine.guest.write(register, value);
            machine.settle();
            let (_, old) = vmm.take();
            machine.worker.guests().next().unwrap().reset();
            machine.settle();
            machine.guest.write(register, value);
            machine.settle();
            act.on(old);
            machine.settle();
            let pending = if register == CR0 { (CR0ACK, 0) } else { (GBPA, value) };
            assert_eq!(
                (machine.guest.read(pending.0), machine.guest.read(GERROR)),
                (pending.1, 0),
                "{act:?}"
            );
            vmm.complete();
            machine.settle();
            let ended = if register == CR0 { SMMUEN } else { 0x10_0000 };
            assert_eq!(machine.guest.read(pending.0), ended);
        }
    }
}
