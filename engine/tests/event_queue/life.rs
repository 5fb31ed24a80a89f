//! Pause, reset, snapshots, and memory that changes.

use ecmdq_engine::{FrontEnd, NotRecorded, Snapshot, StreamIdOf};

use crate::vm::*;
use crate::{entry, record};

#[test]
fn nothing_is_recorded_while_it_is_paused() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    vm.smmu.pause();
    assert_eq!(record(&vm), Err(NotRecorded::Paused));
    assert_eq!((vm.indices(&EVENTQ), entry(&vm, RAM), vm.smmu.stats().lost), ((0, 0), [0; 4], 0));
    vm.smmu.resume();
    assert_eq!((record(&vm), vm.seen()), (Ok(()), vec![Seen::EventWire(1)]));
}

#[test]
fn a_reset_disables_the_queue_and_forgets_its_interrupt() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    record(&vm).unwrap();
    vm.smmu.reset();
    assert_eq!((record(&vm), vm.indices(&EVENTQ)), (Err(NotRecorded::Disabled), (0, 0)));
    assert_eq!(vm.seen(), []);
}

#[test]
fn indices_and_overflow_survive_a_snapshot() {
    let vm = Vm::enabled(FrontEnd::Trapped, 1);
    assert_eq!([record(&vm), record(&vm), record(&vm)], [Ok(()), Ok(()), Err(NotRecorded::Full)]);
    vm.write(EVENTQ.cons, 1);
    assert!(vm.smmu.record_page_request([0x42, 0], StreamIdOf::Guest).is_ok());
    vm.smmu.pause();
    let bytes = vm.smmu.save().unwrap().to_bytes();
    for (name, front_end) in front_ends() {
        let mut other = Vm::new(front_end);
        other.smmu.pause();
        other.smmu.restore(&Snapshot::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!(record(&other), Err(NotRecorded::Paused), "{name}");
        other.smmu.resume();
        assert_eq!((other.indices(&EVENTQ), other.indices(&PRIQ)), ((1 << 31 | 2, 1), (1, 0)), "{name}");
        assert_eq!(record(&other), Ok(()), "{name}");
        assert_eq!(other.indices(&EVENTQ), (1 << 31 | 3, 1), "{name}");
        assert_eq!(record(&other), Err(NotRecorded::Full), "{name}");
        other.settle();
    }
}

/// What was due when the state was saved is due after the restore: the guest may have been told or not.
#[test]
fn an_interrupt_that_was_due_is_sent_after_a_restore() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    record(&vm).unwrap();
    vm.smmu.pause();
    assert_eq!(vm.seen(), [], "the worker has not seen it yet");
    let mut other = Vm::new(FrontEnd::Direct);
    other.smmu.pause();
    other.smmu.restore(&vm.smmu.save().unwrap()).unwrap();
    assert_eq!(other.seen(), []);
    other.smmu.resume();
    assert_eq!(other.seen(), [Seen::EventWire(1)]);
    vm.smmu.resume();
    assert_eq!(vm.seen(), [Seen::EventWire(1)]);
}

#[test]
fn an_active_abort_survives_a_snapshot() {
    let vm = Vm::enabled(FrontEnd::Trapped, 2);
    vm.shrink(0);
    assert_eq!(record(&vm), Err(NotRecorded::Aborted));
    vm.smmu.pause();
    let mut other = Vm::new(FrontEnd::Trapped);
    other.smmu.pause();
    other.smmu.restore(&vm.smmu.save().unwrap()).unwrap();
    other.smmu.resume();
    assert_eq!((record(&other), other.active()), (Err(NotRecorded::Aborted), 1 << 2));
    other.acknowledge();
    assert_eq!(record(&other), Ok(()));
}

#[test]
fn memory_that_goes_is_not_written_and_memory_that_comes_back_is() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    assert_eq!(record(&vm), Ok(()));
    vm.shrink(0);
    assert_eq!(record(&vm), Err(NotRecorded::Aborted));
    assert_eq!((entry(&vm, RAM + 32), vm.read(EVENTQ.prod)), ([0; 4], 1));
    vm.shrink(RAM_SIZE);
    assert_eq!(record(&vm), Err(NotRecorded::Aborted), "not acknowledged");
    vm.acknowledge();
    assert_eq!((record(&vm), vm.read(EVENTQ.prod)), (Ok(()), 2));
}
