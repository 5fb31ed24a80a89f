//! VMMs that do not do their part: callbacks that panic, tokens that never come back, a virtual SMMU that is busy for long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_engine::rules::Request;
use ecmdq_engine::{CommandError, EventKind, Interrupts, OnRequest};
use vm_memory::GuestAddress;

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// An ECMDQ of the bad guest sends a TLBI and a CMD_SYNC, and goes on.
fn ecmdq_goes_on(rig: &mut Rig, queue: &mut Ecmdq) {
    queue.send(&[nh_asid(1), sync()]);
    rig.poll_times(4);
    assert_eq!((queue.cons(), queue.error()), (queue.prod(), None));
}

fn started_ecmdq(rig: &mut Rig) -> Ecmdq {
    let mut queue = rig.guests[0].ecmdq(1);
    queue.start(6);
    rig.poll();
    assert!(queue.enabled());
    queue
}

/// Only `queue` is quarantined, once, and this is said of it.
fn assert_quarantined(told: &[EventKind], queue: Option<usize>, text: &str) {
    let quarantined: Vec<_> =
        told.iter().filter(|event| matches!(event, EventKind::Quarantined { .. })).cloned().collect();
    assert_eq!(quarantined, [EventKind::Quarantined { queue, message: text.into() }], "{told:?}");
}

#[test]
fn a_token_that_never_comes_back_keeps_its_own_queue_waiting_and_no_other() {
    let vmm = Vmm::default();
    let mut rig = rig(Setup { on_request: vmm.on_request(), ..setup(1) });
    let mut ecmdq = started_ecmdq(&mut rig);
    rig.guests[0].send(&[cfgi_ste(STREAM), sync()]);
    for _ in 0..20 {
        others_go_on(&mut rig);
        ecmdq_goes_on(&mut rig, &mut ecmdq);
    }
    assert_eq!((rig.cons(0), rig.guests[0].active(), vmm.waiting()), (0, 0, 1));
    assert_eq!(told(&rig), []);
    vmm.complete();
    rig.poll_times(4);
    assert_eq!(rig.cons(0), 2);
}

#[test]
fn a_request_callback_that_panics_quarantines_the_queue_that_asked_until_a_reset() {
    quiet_panics();
    let on_request: OnRequest = Box::new(|request, token| match request {
        Request::Streams(_) => panic!("this VMM panics on purpose"),
        _ => token.complete(),
    });
    let mut rig = rig(Setup { on_request: Some(on_request), ..setup(1) });
    let mut ecmdq = started_ecmdq(&mut rig);
    rig.guests[0].send(&[nh_asid(1), cfgi_ste(STREAM), sync()]);
    for _ in 0..10 {
        others_go_on(&mut rig);
        ecmdq_goes_on(&mut rig, &mut ecmdq);
    }
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ABT), 1), "at the command that asked");
    let events = told(&rig);
    assert_quarantined(&events, Some(0), "this VMM panics on purpose");
    assert!(events.contains(&EventKind::QueueStopped { queue: 0, error: CommandError::Abt }));
    // It does not go on if it is acknowledged, nor if it is enabled again, and nobody is asked again.
    rig.guests[0].ack();
    rig.poll_times(4);
    rig.guests[0].stop();
    rig.poll_times(4);
    rig.guests[0].start(4);
    rig.guests[0].send(&[nh_asid(2), sync()]);
    rig.poll_times(4);
    assert_eq!((rig.cons(0), rig.guests[0].stats.read().requests, told(&rig).len()), (0, 1, 0));
    others_go_on(&mut rig);
    ecmdq_goes_on(&mut rig, &mut ecmdq);
    rig.handle(0).reset();
    rig.guests[0].start(4);
    rig.poll();
    rig.guests[0].send(&[nh_asid(3), sync()]);
    rig.poll_times(4);
    assert_eq!((rig.cons(0), rig.guests[0].active()), (2, 0), "a reset revives it");
    others_go_on(&mut rig);
}

#[test]
fn a_callback_that_panics_at_a_register_quarantines_the_guest_until_a_reset() {
    quiet_panics();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let on_request: OnRequest = Box::new(move |_, token| {
        if counted.fetch_add(1, Relaxed) == 0 {
            panic!("SMMUEN on purpose");
        }
        token.complete();
    });
    let mut rig = rig(Setup { on_request: Some(on_request), ..setup(1) });
    rig.guests[0].write(CR0, CMDQEN | SMMUEN);
    others_go_on(&mut rig);
    assert_quarantined(&told(&rig), None, "SMMUEN on purpose");
    rig.guests[0].send(&[nh_asid(1), sync()]);
    others_go_on(&mut rig);
    assert_eq!((rig.cons(0), calls.load(Relaxed)), (0, 1), "nothing of it is served");
    rig.handle(0).reset();
    rig.guests[0].write(CR0, SMMUEN);
    rig.guests[0].start(4);
    rig.poll_times(2);
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll_times(4);
    assert_eq!((rig.cons(0), calls.load(Relaxed)), (2, 2));
    others_go_on(&mut rig);
}

/// What panics.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Gerror,
    CmdSync,
    Msi,
}

impl Interrupts for Wire {
    fn gerror(&mut self) {
        assert_ne!(*self, Self::Gerror, "on purpose");
    }

    fn cmd_sync(&mut self) {
        assert_ne!(*self, Self::CmdSync, "on purpose");
    }

    fn msi(&mut self, _: GuestAddress, _: u32) -> bool {
        assert_ne!(*self, Self::Msi, "on purpose");
        true
    }
}

#[test]
fn interrupts_that_panic_concern_their_guest_alone() {
    quiet_panics();
    for wire in [Wire::Gerror, Wire::CmdSync, Wire::Msi] {
        let mut rig = rig(Setup { interrupts: Box::new(wire), ..setup(1) });
        rig.guests[0].write(IRQ_CTRL, 1);
        let mut ecmdq = started_ecmdq(&mut rig);
        let command = if wire == Wire::Gerror { illegal() } else { sync_msi(0x8000_0000, 1) };
        rig.guests[0].send(&[command]);
        others_go_on(&mut rig);
        let events = told(&rig);
        let quarantined = |event: &&EventKind| matches!(event, EventKind::Quarantined { queue: Some(0), .. });
        assert_eq!(events.iter().filter(quarantined).count(), 1, "{wire:?}: {events:?}");
        assert!(rig.guests[0].error().is_some(), "{wire:?}");
        ecmdq_goes_on(&mut rig, &mut ecmdq);
        others_go_on(&mut rig);
    }
}

#[test]
fn while_a_vmm_is_busy_with_its_virtual_smmu_the_cmd_syncs_of_others_complete() {
    let (mut busy, slow, ram) = BusyVmm::new();
    let mut rig = rig(Setup { ram: Some(slow), ..setup(1) });
    rig.guests[0].ram = ram;
    rig.guests[0].start(4);
    busy.begin(rig.handle(0));
    rig.guests[0].send(&[nh_asid(1), sync()]);
    // Should they not, the VMM must come to an end all the same: whoever drops the rig waits for it.
    let went_on = catch_unwind(AssertUnwindSafe(|| (0..10).for_each(|_| others_go_on(&mut rig))));
    let cons = rig.cons(0);
    busy.end();
    assert!(went_on.is_ok() && cons == 0);
    rig.poll_times(4);
    assert_eq!(rig.cons(0), 2);
}
