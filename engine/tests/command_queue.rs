//! The command queue: what is taken, when, from where, and what CONS says of it.

mod common;

use common::reg::*;
use common::*;
use ecmdq_engine::{Command, HostStreamId, StreamConfig, StreamId};
use proptest::prelude::*;

fn asids(range: std::ops::Range<u64>) -> Vec<Command> {
    range.map(nh_asid).collect()
}

fn host_asids(range: std::ops::Range<u64>) -> Vec<Command> {
    range.map(|asid| host_asid(7, asid)).collect()
}

#[test]
fn nothing_is_taken_before_the_queue_is_enabled() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start(4);
    machine.guest.stop();
    machine.run(&asids(0..3));
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 0));
}

#[test]
fn commands_that_stand_in_the_queue_when_it_is_enabled_are_taken_without_a_doorbell() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start(4);
    machine.guest.send(&asids(0..3));
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..3), 3));
}

#[test]
fn nothing_is_taken_beyond_prod() {
    let mut machine = Machine::with_queue(4);
    machine.guest.push(&asids(0..2));
    machine.guest.ring();
    machine.guest.push(&asids(2..9));
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..2), 2));
    machine.guest.ring();
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(2..9), 9));
}

#[test]
fn all_slots_of_a_full_queue_are_used_from_every_start() {
    for start in 0..16 {
        let mut machine = Machine::new(Setup::default());
        machine.guest.start_at(RING, 3, start);
        machine.worker.poll();
        machine.run(&asids(0..8));
        assert_eq!(machine.take_received(), host_asids(0..8), "start {start}");
        assert_eq!(machine.guest.cons(), (start + 8) % 16, "the wrap bit toggled");
    }
}

#[test]
fn a_queue_of_one_entry_works() {
    let mut machine = Machine::with_queue(0);
    for asid in 0..5 {
        machine.run(&[nh_asid(asid)]);
        assert_eq!(machine.take_received(), [host_asid(7, asid)]);
        assert_eq!(machine.guest.cons(), (asid as u32 + 1) % 2);
    }
}

#[test]
fn the_largest_queue_is_taken_in_one_go_across_its_end() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start_at(RING, 15, 0x7ff0);
    machine.worker.poll();
    machine.run(&asids(0..0x8000));
    assert_eq!(machine.take_received(), host_asids(0..0x8000));
    assert_eq!(machine.guest.cons(), 0xfff0);
}

#[test]
fn bits_above_the_wrap_bit_of_prod_have_no_effect() {
    let mut machine = Machine::with_queue(4);
    machine.guest.push(&asids(0..3));
    machine.guest.write(CMDQ_PROD, 0xffff_ffe0 | 3);
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..3), 3));
}

#[test]
fn a_queue_starts_at_the_cons_that_it_finds_when_enabled() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start_at(RING, 4, 0x1d);
    machine.guest.push(&asids(0..5));
    machine.guest.write(CMDQ_CONS, 0x01ff_ffe0 | 0x1d);
    machine.guest.ring();
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..5), 0x02));
}

/// Facts sheet, section 2.5.
#[test]
fn bits_above_the_wrap_bit_of_cons_read_as_zero_once_the_queue_is_enabled() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start(4);
    machine.guest.write(CMDQ_CONS, 0x80ff_ffe0);
    machine.worker.poll();
    assert_eq!(machine.guest.read(CMDQ_CONS) & 0x80ff_ffff, 0);
}

#[test]
fn cons_follows_batch_by_batch_and_never_passes_prod() {
    let mut machine = Machine::with_queue(8);
    machine.guest.send(&asids(0..200));
    let mut seen = 0;
    while machine.worker.poll() {
        let cons = machine.guest.cons();
        assert!(cons > seen && cons <= 200, "from {seen} to {cons}");
        seen = cons;
    }
    assert_eq!(seen, 200);
    machine.settle();
    assert_eq!(machine.take_received(), host_asids(0..200));
}

#[test]
fn a_slot_may_be_used_again_as_soon_as_cons_has_passed_it() {
    let mut machine = Machine::with_queue(1);
    machine.guest.send(&asids(0..2));
    machine.worker.poll();
    assert_eq!(machine.guest.cons(), 2);
    machine.guest.send(&asids(2..4));
    machine.settle();
    assert_eq!(machine.take_received(), host_asids(0..4));
}

#[test]
fn disabling_stops_consumption_and_keeps_cons() {
    let mut machine = Machine::with_queue(4);
    machine.run(&asids(0..3));
    machine.guest.stop();
    machine.guest.send(&asids(3..5));
    machine.worker.poll();
    assert!(!machine.guest.enabled());
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..3), 3));
    machine.guest.write(CR0, CMDQEN);
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(3..5), 5));
}

#[test]
fn a_queue_may_move_and_change_its_size_while_disabled() {
    let mut machine = Machine::with_queue(4);
    machine.run(&asids(0..3));
    machine.guest.stop();
    machine.worker.poll();
    machine.guest.start_at(RAM + 0x2000, 5, 0x3f);
    machine.worker.poll();
    machine.run(&asids(3..7));
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..7), 3));
}

#[test]
fn base_written_while_enabled_has_no_effect_until_the_queue_is_enabled_again() {
    let mut machine = Machine::with_queue(4);
    machine.guest.write_base(RAM | 3);
    machine.run(&asids(0..12));
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(0..12), 12));
    machine.guest.stop();
    machine.worker.poll();
    machine.guest.start_at(RAM, 3, 0);
    machine.worker.poll();
    machine.run(&asids(12..20));
    assert_eq!((machine.take_received(), machine.guest.cons()), (host_asids(12..20), 8));
}

#[test]
fn streams_are_mapped_and_commands_for_others_have_no_effect() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[cfgi_cd(NO_STREAM), cfgi_cd(STREAM), nh_asid(1)]);
    assert_eq!(machine.take_received(), [Command([0x1042_0000_0005, 1]), host_asid(7, 1)]);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (3, 0));
    assert_eq!(machine.guest.stats.read().dropped, 1);
}

#[test]
fn the_vmm_learns_of_stream_table_changes_in_order() {
    let mut machine = Machine::with_queue(4);
    let (range, all) = (Command([0x1235_0000_0004, 3]), Command([0x04, 31]));
    machine.run(&[cfgi_ste(5), range, nh_asid(1), all, sync()]);
    let first = StreamId(0x1230);
    assert_eq!(
        machine.guest.take_configs(),
        [StreamConfig::One(StreamId(5)), StreamConfig::Range { first, log2: 4 }, StreamConfig::All]
    );
    assert_eq!(machine.take_received(), [host_asid(7, 1), HOST_SYNC]);
    assert_eq!(machine.guest.cons(), 5);
}

#[test]
fn what_the_vmm_changes_for_a_cfgi_ste_holds_for_the_next_command() {
    let on_config = |streams: &ecmdq_engine::StreamMap| {
        streams.insert(StreamId(NO_STREAM as u32), HostStreamId(0x99)).unwrap();
    };
    let mut machine = Machine::new(Setup { on_config: Box::new(on_config), ..Setup::default() }).enabled(4);
    machine.run(&[cfgi_cd(NO_STREAM), cfgi_ste(NO_STREAM), cfgi_cd(NO_STREAM)]);
    assert_eq!(machine.take_received(), [Command([0x99_0000_0005, 1])]);
}

#[test]
fn hints_are_consumed_and_go_nowhere() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[Command([0x42_0000_0001, 0]), Command([0x42_0000_0002, 0x1000]), sync()]);
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 3));
}

/// Facts sheet, section 1.5: ATC_INV is ignored when SMMUEN=0.
#[test]
fn atc_inv_is_ignored_while_the_smmu_is_disabled() {
    let mut machine = Machine::new(Setup::with(|f| f.ats = true)).enabled(4);
    let atc_inv = Command([0x42_0000_0040, 52]);
    machine.run(&[atc_inv]);
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 1));
    machine.guest.write(CR0, CMDQEN | 1);
    machine.worker.poll();
    machine.run(&[atc_inv]);
    assert_eq!(machine.take_received(), [Command([0x1042_0000_0040, 52])]);
}

#[test]
fn the_statistics_count_what_happened() {
    let mut machine = Machine::with_queue(4);
    let msi = sync_msi(RAM, 1);
    machine.run(&[nh_asid(1), cfgi_cd(NO_STREAM), cfgi_ste(1), nh_asid(2), sync(), msi, illegal()]);
    let stats = machine.guest.stats.read();
    assert_eq!((stats.commands, stats.syncs, stats.msis), (6, 2, 1));
    assert_eq!((stats.forwarded, stats.dropped, stats.requests, stats.rejected), (2, 1, 1, 1));
    assert_eq!((stats.aborts, stats.msi_aborts, stats.inconsistent), (0, 0, 0));
    assert_eq!(machine.worker.guests().next().unwrap().stats(), stats);
}

#[test]
fn guests_do_not_see_each_others_commands() {
    let mut rig = Rig::new(3, 4, Script::at_once());
    for (guest, asid) in rig.guests.iter_mut().zip(1..) {
        guest.send(&[nh_asid(asid), cfgi_cd(STREAM), sync()]);
    }
    rig.poll_times(2);
    let received = rig.host.received().to_vec();
    for vmid in 1..=3 {
        let expected = [host_asid(vmid, vmid), Command([vmid << 48 | 0x05, 1])];
        let owner = |c: &Command| c.0[0] >> if c.0[0] & 0xff == 0x05 { 48 } else { 32 } & 0xffff;
        let of_guest: Vec<_> = received.iter().copied().filter(|command| owner(command) == vmid).collect();
        assert_eq!(of_guest, expected);
        assert_eq!(rig.cons(vmid as usize - 1), 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the size, the start and the bursts: every command once, in order, and CONS at its end.
    #[test]
    fn every_command_arrives_once_and_in_order(
        log2 in 0u32..8,
        start: u32,
        bursts in proptest::collection::vec((1u32..200, 0usize..3), 1..20),
    ) {
        let mut machine = Machine::new(Setup::default());
        let (index_mask, mut next) = ((2 << log2) - 1, 0);
        machine.guest.start_at(RING, log2, start & index_mask);
        machine.worker.poll();
        for (burst, polls) in bursts {
            let n = u64::from(burst.min(machine.guest.room()));
            machine.guest.send(&asids(next..next + n));
            next += n;
            (0..polls).for_each(|_| { machine.worker.poll(); });
        }
        machine.settle();
        prop_assert_eq!(machine.take_received(), host_asids(0..next));
        prop_assert_eq!(machine.guest.cons(), machine.guest.prod());
        prop_assert_eq!(machine.guest.cons(), (start.wrapping_add(next as u32)) & index_mask);
    }
}
