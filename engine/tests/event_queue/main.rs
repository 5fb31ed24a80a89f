//! The event queue and the page request queue, which a VMM has the engine fill (IHI 0070 §3.5, §7.2, §7.4, §8).

mod interrupts;
mod life;
mod page_requests;
mod vm;

use ecmdq_engine::{FrontEnd, HostStreamId, NotRecorded, StreamIdOf};

use vm::*;

/// F_TRANSLATION of stream 0x42, and what a guest reads of it.
const EVENT: [u64; 4] = [0x0000_0042_0000_0010, 0x0000_0008_0000_0000, 0xdead_b000, 0x1234_5678_9abc_def0];

fn record(vm: &Vm) -> Result<(), NotRecorded> {
    vm.smmu.record_event(EVENT, StreamIdOf::Guest)
}

fn entry(vm: &Vm, at: u64) -> [u64; 4] {
    [0, 8, 16, 24].map(|offset| vm.word(at + offset))
}

#[test]
fn a_record_is_in_guest_memory_and_prod_behind_it_whatever_the_front_end() {
    for (name, front_end) in front_ends() {
        let vm = Vm::enabled(front_end, 2);
        assert_eq!(record(&vm), Ok(()), "{name}");
        assert_eq!((entry(&vm, RAM), entry(&vm, RAM + 32)), (EVENT, [0; 4]), "{name}");
        assert_eq!(vm.indices(&EVENTQ), (1, 0), "{name}");
        assert_eq!((vm.smmu.stats().recorded, vm.smmu.stats().lost, vm.active()), (1, 0, 0), "{name}");
    }
}

#[test]
fn records_go_round_the_queue_and_the_wrap_bit_toggles() {
    let vm = Vm::enabled(FrontEnd::Trapped, 1);
    let prods = [1, 2, 3, 0, 1].map(|prod| {
        vm.smmu.record_event([0x10, u64::from(prod), 0, 0], StreamIdOf::Guest).unwrap();
        vm.write(EVENTQ.cons, prod);
        vm.read(EVENTQ.prod)
    });
    assert_eq!(prods, [1, 2, 3, 0, 1]);
    assert_eq!(
        [entry(&vm, RAM), entry(&vm, RAM + 32)],
        [[0x10, 1, 0, 0], [0x10, 0, 0, 0]],
        "slots of 5 and 4"
    );
}

/// §7.4: a lost event toggles OVFLG unless it differs from OVACKFLG already; unacknowledged, further events are recorded.
#[test]
fn a_full_queue_overflows_once_until_that_is_acknowledged() {
    let vm = Vm::enabled(FrontEnd::Trapped, 1);
    let overflow = 1 << 31;
    assert_eq!([record(&vm), record(&vm)], [Ok(()); 2]);
    assert_eq!(vm.indices(&EVENTQ), (2, 0));
    assert_eq!([record(&vm), record(&vm)], [Err(NotRecorded::Full); 2]);
    assert_eq!(vm.indices(&EVENTQ), (overflow | 2, 0), "toggled once");
    vm.write(EVENTQ.cons, 1);
    assert_eq!(record(&vm), Ok(()), "room, though it is not acknowledged");
    assert_eq!(vm.read(EVENTQ.prod), overflow | 3);
    assert_eq!(record(&vm), Err(NotRecorded::Full));
    assert_eq!(vm.read(EVENTQ.prod), overflow | 3, "no second one can be told");
    vm.write(EVENTQ.cons, overflow | 1);
    assert_eq!(record(&vm), Err(NotRecorded::Full));
    assert_eq!(vm.read(EVENTQ.prod), 3, "acknowledged: it toggles back");
    assert_eq!((vm.smmu.stats().recorded, vm.smmu.stats().lost), (3, 4));
}

#[test]
fn a_disabled_queue_loses_events_without_a_trace_and_needs_no_smmuen() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    // CR0, and whether the event queue is enabled.
    for (cr0, expected) in [(0, Err(NotRecorded::Disabled)), (3, Err(NotRecorded::Disabled)), (4, Ok(()))] {
        vm.set(CR0, cr0);
        let before = vm.indices(&EVENTQ);
        assert_eq!(record(&vm), expected, "CR0 {cr0}");
        let recorded = u32::from(expected.is_ok());
        assert_eq!(vm.indices(&EVENTQ), (before.0 + recorded, before.1), "CR0 {cr0}");
    }
    vm.write(CR0, 0);
    assert_eq!(record(&vm), Ok(()), "disabling has not been acknowledged");
}

/// §7.2.2, as a synchronous abort: PROD stays, GERROR.EVENTQ_ABT_ERR is active, and nothing is recorded until that is acknowledged.
#[test]
fn a_queue_outside_of_memory_aborts_until_that_is_acknowledged() {
    for base in [HOLE, RAM - 32, RAM + RAM_SIZE as u64, 0x00ff_ffff_ffff_ffe0] {
        let mut vm = Vm::new(FrontEnd::Trapped);
        vm.write_u64(EVENTQ.base, base & !0x1f);
        vm.set(CR0, 4);
        vm.set(IRQ_CTRL, 5);
        assert_eq!([record(&vm), record(&vm)], [Err(NotRecorded::Aborted); 2], "{base:#x}");
        assert_eq!((vm.indices(&EVENTQ), vm.active()), ((0, 0), 1 << 2), "{base:#x}");
        assert_eq!(vm.seen(), [Seen::Gerror(1 << 2)], "{base:#x}: and no interrupt of the queue");
        vm.acknowledge();
        assert_eq!((record(&vm), vm.active()), (Err(NotRecorded::Aborted), 1 << 2), "{base:#x}: again");
        assert_eq!(vm.seen(), [Seen::Gerror(0)], "{base:#x}");
        vm.acknowledge();
        vm.set(CR0, 0);
        vm.write_u64(EVENTQ.base, RAM);
        vm.set(CR0, 4);
        assert_eq!((record(&vm), vm.active()), (Ok(()), 0), "{base:#x}");
    }
}

#[test]
fn only_the_memory_of_the_entry_counts() {
    let vm = Vm::enabled(FrontEnd::Trapped, 2);
    vm.shrink(64);
    assert_eq!([record(&vm), record(&vm), record(&vm)], [Ok(()), Ok(()), Err(NotRecorded::Aborted)]);
    assert_eq!((vm.read(EVENTQ.prod), vm.active()), (2, 1 << 2));
}

/// §6.3.29: ADDR counts from the size of the queue on; LOG2SIZE is capped to EVENTQS, here 7.
#[test]
fn base_is_aligned_to_the_queue_and_its_size_is_capped() {
    // BASE, PROD, where the entry goes, PROD afterwards.
    for (base, prod, at, after) in [
        (RAM + 0x20, 1, RAM + 0x20, 0),
        ((RAM + 0x20) | 1, 0, RAM, 1),
        ((RAM + 0xfe0) | 2, 3, RAM + 0xf80 + 0x60, 4),
        ((RAM + 0x1fe0) | 31, 0x7f, RAM + 0x1000 + 0xfe0, 0x80),
        (RAM | 7, 0xf_ff01, RAM + 0x20, 2),
        (1 << 62 | RAM | 7, 0, RAM, 1),
    ] {
        let mut vm = Vm::new(FrontEnd::Trapped);
        vm.write_u64(EVENTQ.base, base);
        vm.write(EVENTQ.prod, prod);
        vm.write(EVENTQ.cons, prod);
        vm.set(CR0, 4);
        assert_eq!(record(&vm), Ok(()), "{base:#x}");
        assert_eq!((entry(&vm, at), vm.read(EVENTQ.prod)), (EVENT, after), "{base:#x}");
    }
}

/// §3.5.1 permits to take contradictory indices for a full queue.
#[test]
fn indices_that_contradict_each_other_are_a_full_queue() {
    for (prod, cons) in [(0, 1), (3, 0), (1, 2)] {
        let mut vm = Vm::new(FrontEnd::Trapped);
        vm.write_u64(EVENTQ.base, RAM | 1);
        vm.write(EVENTQ.prod, prod);
        vm.write(EVENTQ.cons, cons);
        vm.set(CR0, 4);
        assert_eq!(record(&vm), Err(NotRecorded::Full), "{prod} {cons}");
        assert_eq!((vm.read(EVENTQ.prod), entry(&vm, RAM)), (1 << 31 | prod, [0; 4]), "{prod} {cons}");
    }
}

/// A guest that shares the registers may write anything: records go to its own memory, or nowhere.
#[test]
fn forged_registers_harm_nobody() {
    let values = [0, 1, 5, 0x1f, 0xf_ffff, 0x8000_0000, u32::MAX];
    let bases = [0, 0x1f, RAM | 19, RAM + 0xffe0, u64::MAX, 1 << 55 | 19];
    for (_, front_end) in front_ends() {
        let mut vm = Vm::enabled(front_end, 2);
        for (base, prod) in bases.iter().flat_map(|base| values.map(|prod| (*base, prod))) {
            for cons in values {
                vm.write_u64(EVENTQ.base, base);
                vm.write_u64(PRIQ.base, base);
                for queue in [EVENTQ, PRIQ] {
                    vm.write(queue.prod, prod);
                    vm.write(queue.cons, cons);
                }
                let _ = record(&vm);
                let _ = vm.smmu.record_page_request([1 << 62 | 0x42, 0], StreamIdOf::Guest);
                vm.acknowledge();
            }
        }
        assert!(vm.seen().len() < 10_000);
    }
}

#[test]
fn the_hosts_name_of_a_stream_becomes_the_guests() {
    let vm = Vm::enabled(FrontEnd::Trapped, 2);
    let event = [0x0000_1042_0000_0010, 1, 2, 3];
    assert_eq!(vm.smmu.record_event(event, StreamIdOf::Host), Ok(()));
    assert_eq!(entry(&vm, RAM), [0x0000_0042_0000_0010, 1, 2, 3]);
    let foreign = Err(NotRecorded::ForeignStream(HostStreamId(0x42)));
    assert_eq!(vm.smmu.record_event(EVENT, StreamIdOf::Host), foreign);
    assert_eq!(vm.indices(&EVENTQ), (1, 0));
    let text = NotRecorded::ForeignStream(HostStreamId(0x42)).to_string();
    assert_eq!(text, "host StreamID 0x42 is none of the guest's: see its stream map");
}
