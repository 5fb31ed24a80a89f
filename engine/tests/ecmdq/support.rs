//! Machines with ECMDQs, with each front end.

use crate::common::*;

/// A word of RAM that is in no queue.
pub const WORD: u64 = RAM + 0x804;
/// Where no guest has memory.
pub const HOLE: u64 = 0x1000;

/// A guest with 2^`pages` control pages of 2^`queues` ECMDQs each.
pub fn setup(direct: bool, pages: u8, queues: u8) -> Setup {
    Setup { direct, ..Setup::with(|f| *f = f.with_ecmdqs(pages, queues)) }
}

/// Runs a test with all pages shared, and with trapped registers and mapped control pages. No queue is enabled.
pub fn on_both(pages: u8, queues: u8, test: impl Fn(Machine)) {
    for direct in [false, true] {
        println!("direct: {direct}");
        test(Machine::new(setup(direct, pages, queues)));
    }
}

/// As [`on_both`], with one control page of four ECMDQs, the first of which is enabled with 2^4 entries.
pub fn on_a_queue(test: impl Fn(Machine, Ecmdq)) {
    on_both(0, 2, |mut machine| {
        let queue = started(&mut machine, 0, 4);
        test(machine, queue);
    });
}

/// An enabled queue of 2^`log2` entries.
pub fn started(machine: &mut Machine, number: usize, log2: u32) -> Ecmdq {
    let mut queue = machine.guest.ecmdq(number);
    queue.start(log2);
    machine.settle();
    assert!(queue.enabled());
    queue
}

/// One guest with four ECMDQs, of which the first two, and the CMDQ, are enabled, before a host that is late.
pub fn late_host(direct: bool) -> (Rig, [Ecmdq; 2]) {
    late_host_of(setup(direct, 0, 2))
}

pub fn late_host_of(setup: Setup) -> (Rig, [Ecmdq; 2]) {
    let mut rig = Rig::new(0, 4, Script::default());
    rig.add(setup, 4);
    let queues = [0, 1].map(|number| {
        let mut queue = rig.guests[0].ecmdq(number);
        queue.start(4);
        rig.poll();
        assert!(queue.enabled());
        queue
    });
    (rig, queues)
}
