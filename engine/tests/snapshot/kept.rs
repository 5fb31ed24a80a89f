//! What a guest would miss if a snapshot did not have it.

use std::sync::atomic::Ordering::Acquire;

use ecmdq_engine::host::Cause::AtcTimeout;

use crate::common::{RAM, atc_inv, sync_msi};
use crate::traffic::{CMDQEN, CR0, CR0ACK, GERROR, GERRORN, Guest, SMMUEN};
use crate::vm::{EN, ERR, QUEUES, Vm};

const PROD: usize = 8;
const CONS: usize = 12;

fn complete_requests(vm: &mut Vm) {
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(2);
}

/// The host failed to invalidate an ATC before the move. After it the host succeeds, but the endpoint may still have what
/// the guest invalidated before: the CMD_SYNC must say so.
#[test]
fn a_cmd_sync_that_was_to_fail_fails_after_a_move_and_once() {
    for queue in 0..QUEUES {
        let mut vm = Vm::new();
        Guest::start(&vm);
        vm.poll(1);
        complete_requests(&mut vm);
        let ring = RAM + 0x1000 * queue as u64;
        vm.put(ring, atc_inv(1));
        vm.put(ring + 16, sync_msi(RAM + 0x9000, 5));
        vm.queue_write(queue, PROD, if queue == 0 { 2 } else { EN | 2 });
        vm.poll(1);
        vm.smmu.pause();
        vm.host.fail(1, AtcTimeout);
        vm.poll(2);
        let mut new = vm.moved().moved();
        new.smmu.resume();
        new.poll(2);
        complete_requests(&mut new);
        // What makes the new host forget everything, then the CMD_SYNC.
        for _ in 0..2 {
            new.host.finish_all();
            new.poll(3);
        }
        let cons = new.queue_read(queue, CONS);
        assert_eq!((cons & 0xf_ffff, cons >> 24 & 7), (1, 3), "CERROR_ATC_INV_SYNC at the CMD_SYNC");
        assert_eq!(new.ram.load_u32(0x9000, Acquire), 0, "not complete");
        new.write(GERRORN, new.read(GERROR));
        if queue != 0 {
            new.queue_write(queue, PROD, EN | cons & ERR | 2);
        }
        new.poll(3);
        new.host.finish_all();
        new.poll(3);
        assert_eq!(new.queue_read(queue, CONS) & 0xf_ffff, 2);
        assert_eq!(new.ram.load_u32(0x9000, Acquire), 5);
    }
}

/// RA, address bits below the size of the ring, and a LOG2SIZE above the cap mean nothing, and read back all the same
/// (facts sheet, section 2.5).
#[test]
fn base_reads_back_after_a_move_as_it_was_written() {
    let mut vm = Vm::new();
    let base = 1 << 62 | RAM | 0xffe0 | 31;
    (0..QUEUES).for_each(|queue| vm.write_base(queue, base));
    (1..QUEUES).for_each(|queue| vm.queue_write(queue, PROD, EN));
    vm.write(CR0, CMDQEN | SMMUEN);
    vm.poll(2);
    complete_requests(&mut vm);
    assert_eq!(vm.read(CR0ACK) & CMDQEN, CMDQEN);
    assert_eq!(vm.queue_read(QUEUES - 1, CONS), EN);
    let new = vm.moved().moved();
    for queue in 0..QUEUES {
        assert_eq!((new.queue_read(queue, 0), new.queue_read(queue, 4)), (base as u32, (base >> 32) as u32));
    }
}

/// Of a mapped queue the guest can overwrite BASE at any time; what it describes counts when the queue is enabled.
#[test]
fn base_that_is_overwritten_while_its_queue_is_enabled_does_not_move_the_queue() {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(1);
    complete_requests(&mut vm);
    vm.write_base(1, (RAM + 0x7000) | 2);
    let new = vm.moved_without_comparing();
    assert_eq!((new.queue_read(1, 0), new.queue_read(1, 4)), (0x4000_1004, 0));
}

/// ERR of a disabled CMDQ is the guest's to write; the code of an error that is active is not.
#[test]
fn a_code_that_is_none_and_was_written_while_an_error_is_active_does_not_come_back_enabled() {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(2);
    vm.write(GERRORN, 1);
    vm.write(CR0, 0);
    vm.poll(1);
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(1);
    vm.write(0x9c, 0x7f00_0000);
    let mut new = vm.moved();
    new.smmu.resume();
    new.write(CR0, CMDQEN);
    new.poll(2);
    assert_eq!(new.read(0x9c), 0);
    new.moved();
}
