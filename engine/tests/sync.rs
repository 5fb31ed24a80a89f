//! CMD_SYNC: when it completes, and how it tells.

mod common;

use std::sync::atomic::Ordering::{Acquire, Release};

use common::reg::*;
use common::*;
use ecmdq_engine::memory::{self, GuestRam};
use ecmdq_engine::{Command, Features};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

/// Where no guest has memory.
const HOLE: u64 = 0x1000;
/// A word of RAM that is not in the queue.
const WORD: u64 = RAM + 0x804;

/// A machine whose guest has sent one CMD_SYNC, [`WORD`] and its neighbours filled before.
fn after_sync(features: Features, sync: Command) -> Machine {
    let mut machine = Machine::new(Setup { features, ..Setup::default() }).enabled(4);
    (0..3).for_each(|n| machine.guest.set_u32(WORD - 4 + 4 * n, 0x5555_5555));
    machine.run(&[sync]);
    machine
}

/// [`WORD`] between its neighbours.
fn words(machine: &Machine) -> [u32; 3] {
    [WORD - 4, WORD, WORD + 4].map(|at| machine.guest.u32_at(at))
}

const UNTOUCHED: [u32; 3] = [0x5555_5555; 3];

#[test]
fn every_kind_of_sync_completes_by_cons() {
    for sync in [sync(), sync_sev(), sync_msi(WORD, 1), sync_msi(0, 1)] {
        let machine = after_sync(Features::default(), sync);
        assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0), "{sync}");
    }
}

#[test]
fn sev_completes_likewise_when_the_smmu_has_it() {
    let machine = after_sync(features(|f| f.sev = true), sync_sev());
    assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0));
}

#[test]
fn an_msi_writes_its_32_bits_and_no_more() {
    let machine = after_sync(Features::default(), sync_msi(WORD, 0xcafe_f00d));
    assert_eq!(words(&machine), [0x5555_5555, 0xcafe_f00d, 0x5555_5555]);
    assert_eq!(machine.guest.stats.read().msis, 1);
}

#[test]
fn an_msi_may_be_aimed_at_the_syncs_own_slot() {
    let mut machine = Machine::with_queue(4);
    for index in 0..40 {
        let at = machine.guest.slot(index);
        machine.run(&[sync_msi(at, 0)]);
        assert_eq!(machine.guest.cons(), (index + 1) % 32);
        let word = machine.guest.u32_at(at);
        assert_eq!((word, machine.guest.u32_at(at + 4), machine.guest.u32_at(at + 8)), (0, 0, at as u32));
    }
}

#[test]
fn an_msi_may_be_aimed_at_the_last_word_of_the_queue() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[sync_msi(RING + 0xfc, 3), sync_msi(RING + 0x100, 4)]);
    assert_eq!([0xf8, 0xfc, 0x100, 0x104].map(|at| machine.guest.u32_at(RING + at)), [0, 3, 4, 0]);
}

#[test]
fn msi_fields_are_ignored_unless_cs_is_irq() {
    for cs in [0, 2] {
        for address in [WORD, HOLE] {
            let sync = Command([0x46 | cs << 12 | 3 << 22 | 0xf << 24 | 9 << 32, address]);
            let machine = after_sync(Features::default(), sync);
            assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0));
            assert_eq!(words(&machine), UNTOUCHED);
        }
    }
}

#[test]
fn msi_fields_are_ignored_without_the_msi_feature() {
    for address in [WORD, HOLE] {
        let machine = after_sync(features(|f| f.msi = false), sync_msi(address, 9));
        assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0));
        assert_eq!((words(&machine), machine.guest.stats.read().msis), (UNTOUCHED, 0));
    }
}

#[test]
fn address_0_means_no_msi() {
    let machine = after_sync(Features::default(), sync_msi(0, 9));
    assert_eq!((machine.guest.active(), machine.guest.stats.read().msis), (0, 0));
}

#[test]
fn the_irq_enables_do_not_gate_the_msi() {
    let machine = after_sync(Features::default(), sync_msi(WORD, 9));
    assert_eq!((machine.guest.read(IRQ_CTRL), words(&machine)[1]), (0, 9));
}

#[test]
fn an_msi_address_is_cut_to_the_output_address_size_after_the_test_for_0() {
    let machine = after_sync(Features::default(), sync_msi(1 << 44 | WORD, 9));
    assert_eq!((words(&machine)[1], machine.guest.active()), (9, 0));
    let machine = after_sync(Features::default(), sync_msi(1 << 44, 9));
    assert_eq!((machine.guest.cons(), machine.guest.active()), (1, MSI_CMDQ_ABT_ERR));
}

#[test]
fn an_msi_that_finds_no_memory_is_an_error_and_the_sync_is_complete() {
    let machine = after_sync(Features::default(), sync_msi(HOLE, 9));
    assert_eq!((machine.guest.cons(), machine.guest.active()), (1, MSI_CMDQ_ABT_ERR));
    assert_eq!(machine.guest.error(), None, "the queue is not in error");
    let stats = machine.guest.stats.read();
    assert_eq!((stats.msis, stats.msi_aborts, stats.syncs), (0, 1, 1));
}

#[test]
fn a_repeated_msi_abort_is_recorded_once_until_it_is_acknowledged() {
    let mut machine = after_sync(Features::default(), sync_msi(HOLE, 9));
    machine.run(&[sync_msi(RAM + RAM_SIZE, 9), sync_msi(WORD, 9), nh_asid(1), sync()]);
    assert_eq!((machine.guest.read(GERROR), machine.guest.cons()), (0x10, 5), "the queue went on");
    assert_eq!(words(&machine)[1], 9, "later MSIs are sent");
    machine.guest.ack();
    machine.settle();
    assert_eq!(machine.guest.read(GERROR), 0x10);
    machine.run(&[sync_msi(HOLE, 9)]);
    assert_eq!((machine.guest.read(GERROR), machine.guest.active()), (0, MSI_CMDQ_ABT_ERR));
}

/// Guest memory that is the register pages: an MSI can then be aimed at CMDQ_CONS itself, and what that word is
/// in the end tells which of the two was written last.
struct Registers(SharedRegion);

impl GuestRam for Registers {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.0.part((at.0 as usize).checked_sub(RAM as usize)?, len)
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        self.region(at, 4).map(|word| word.store_u32(0, value.to_le(), Release)).is_some()
    }

    fn refresh(&mut self) {}
}

/// CMDQ_CONS after a CMD_SYNC in a queue at `ring` of the register pages whose MSI overwrites CMDQ_CONS.
fn cons_overwritten_by_msi(ring: usize) -> u32 {
    let pages = memory::memfd("test-registers", PAGES).unwrap().1;
    let ram = Some(Box::new(Registers(pages.clone())) as Box<dyn GuestRam>);
    let mut machine = Machine::new(Setup { ram, pages: Some(pages.clone()), ..Setup::default() });
    machine.guest.start_at(RAM + ring as u64, 2, 0);
    machine.worker.poll();
    let sync = sync_msi(RAM + CMDQ_CONS as u64, 0xdead_beef);
    pages.store_u64(ring, sync.0[0], Release);
    pages.store_u64(ring + 8, sync.0[1], Release);
    pages.store_u32(CMDQ_PROD, 1, Release);
    machine.settle();
    assert_eq!(machine.guest.stats.read().msis, 1);
    pages.load_u32(CMDQ_CONS, Acquire)
}

#[test]
fn the_msi_is_written_after_cons() {
    assert_eq!(cons_overwritten_by_msi(0x1_0000), 0xdead_beef, "an MSI to elsewhere");
    assert_eq!(cons_overwritten_by_msi(0x80), 0xdead_beef, "an MSI into the queue");
}

/// A guest that has sent one command and a CMD_SYNC with an MSI to [`WORD`], before a host that is late.
fn waiting() -> Rig {
    let mut rig = Rig::new(1, 4, Script::default());
    rig.guests[0].send(&[nh_asid(1), sync_msi(WORD, 9)]);
    rig.poll_times(10);
    assert_eq!((rig.cons(0), rig.host.syncs()), (1, 1), "CONS is at the CMD_SYNC");
    rig
}

#[test]
fn a_sync_completes_only_when_the_host_has_finished() {
    let mut rig = waiting();
    assert_eq!(rig.guests[0].u32_at(WORD), 0);
    rig.host.finish(1);
    rig.poll();
    assert_eq!((rig.cons(0), rig.guests[0].u32_at(WORD)), (2, 9));
}

#[test]
fn what_is_illegal_behind_a_sync_is_looked_at_again_when_cons_has_reached_it() {
    let mut rig = waiting();
    rig.guests[0].send(&[nh_asid(2), illegal(), nh_asid(3)]);
    rig.poll_times(10);
    assert_eq!((rig.cons(0), rig.guests[0].error()), (1, None));
    rig.guests[0].put(3, nh_asid(5));
    rig.host.finish(1);
    rig.poll_times(2);
    let expected = [1, 2, 5, 3].map(|asid| host_asid(1, asid));
    assert_eq!(*rig.host.received(), expected);
    assert_eq!((rig.cons(0), rig.guests[0].error()), (5, None));
}

#[test]
fn a_sync_in_the_middle_of_a_published_batch_holds_cons_back_and_not_the_commands_behind_it() {
    let mut rig = Rig::new(1, 4, Script::default());
    rig.guests[0].send(&[nh_asid(1), sync(), nh_asid(2), sync(), nh_asid(3)]);
    for (cons, received) in [(1, 3), (5, 3)] {
        rig.poll_times(5);
        assert_eq!((rig.cons(0), rig.host.received().len()), (cons, received));
        rig.host.finish_all();
    }
}

#[test]
fn a_sync_with_nothing_before_it_needs_no_host() {
    let mut rig = Rig::new(1, 4, Script::default());
    rig.guests[0].send(&[sync(), cfgi_cd(NO_STREAM), sync()]);
    rig.poll_times(4);
    assert_eq!((rig.cons(0), rig.host.syncs()), (3, 0));
}

#[test]
fn disabling_drops_a_sync_that_waits() {
    let mut rig = waiting();
    rig.guests[0].stop();
    rig.poll();
    assert!(!rig.guests[0].enabled());
    rig.host.finish(1);
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.guests[0].u32_at(WORD)), (1, 0), "CONS stays at the CMD_SYNC");
}

#[test]
fn a_dropped_sync_is_taken_again_when_the_queue_is_enabled_again() {
    let mut rig = waiting();
    rig.guests[0].stop();
    rig.poll();
    rig.guests[0].write(CR0, CMDQEN);
    rig.poll_times(3);
    assert_eq!(rig.cons(0), 1, "and waits again");
    rig.host.finish(1);
    rig.poll();
    assert_eq!((rig.cons(0), rig.guests[0].u32_at(WORD)), (2, 9));
}

#[test]
fn the_ticket_of_a_dropped_sync_does_not_complete_a_new_one() {
    let mut rig = waiting();
    rig.guests[0].stop();
    rig.poll();
    rig.guests[0].start(4);
    rig.guests[0].send(&[nh_asid(2), sync()]);
    rig.poll_times(3);
    rig.host.finish(1);
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.host.syncs()), (1, 2));
    rig.host.finish(2);
    rig.poll();
    assert_eq!(rig.cons(0), 2);
}
