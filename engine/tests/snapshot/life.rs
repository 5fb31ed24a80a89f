//! Pausing, resuming, resetting, disabling.

use std::sync::atomic::Ordering::Acquire;

use ecmdq_engine::rules::Request;

use crate::common::{RAM, cfgi_ste, host_page, nh_page, sync_msi};
use crate::traffic::{CMDQEN, CR0, CR0ACK, EVENTQEN, GBPA, Guest, Random, SMMUEN, UPDATE, seed};
use crate::vm::{EN, QUEUES, VMID, Vm};

const PROD: usize = 8;
const CONS: usize = 12;
const MSI: u64 = RAM + 0x9000;

/// A machine whose SMMU is enabled and whose queues of 16 entries, a page each, are enabled.
fn enabled() -> Vm {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(1);
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(1);
    assert_eq!(vm.read(CR0ACK), CMDQEN | SMMUEN);
    vm
}

/// TLBI, CMD_SYNC with an MSI, TLBI on a queue, and the doorbell.
fn send_three(vm: &Vm, queue: usize) {
    let ring = RAM + 0x1000 * queue as u64;
    for (slot, command) in [nh_page(1), sync_msi(MSI, 5), nh_page(2)].into_iter().enumerate() {
        vm.put(ring + 16 * slot as u64, command);
    }
    vm.queue_write(queue, PROD, if queue == 0 { 3 } else { EN | 3 });
}

fn cons(vm: &Vm, queue: usize) -> u32 {
    vm.queue_read(queue, CONS) & 0xf_ffff
}

fn msi(vm: &Vm) -> u32 {
    vm.ram.load_u32(0x9000, Acquire)
}

#[test]
fn saving_and_restoring_need_a_pause() {
    let vm = enabled();
    assert_eq!(vm.smmu.save().unwrap_err().to_string(), "the virtual SMMU is not paused");
    vm.smmu.pause();
    let saved = vm.smmu.save().unwrap();
    vm.smmu.resume();
    assert!(vm.smmu.save().is_err());
    assert!(vm.smmu.restore(&saved).is_err());
}

#[test]
fn while_it_is_paused_nothing_is_taken_and_nothing_completes() {
    for queue in 0..QUEUES {
        let mut vm = enabled();
        send_three(&vm, queue);
        vm.poll(1);
        assert_eq!((cons(&vm, queue), vm.host.syncs()), (1, 1));
        vm.smmu.pause();
        vm.smmu.pause();
        vm.host.finish_all();
        vm.poll(10);
        vm.write(CR0, CMDQEN | SMMUEN | EVENTQEN);
        vm.poll(10);
        assert_eq!((cons(&vm, queue), msi(&vm)), (1, 0), "the host is done, and nobody has been told");
        assert_eq!(vm.read(CR0ACK), CMDQEN | SMMUEN);
        assert_eq!(vm.host.received().len(), 2, "what is behind the CMD_SYNC had been taken before");
        // No doorbell: every queue is looked at.
        vm.smmu.resume();
        vm.poll(2);
        assert_eq!((cons(&vm, queue), msi(&vm)), (3, 5));
        assert_eq!(vm.read(CR0ACK), CMDQEN | SMMUEN | EVENTQEN);
        assert_eq!(*vm.host.received(), [host_page(VMID, 1), host_page(VMID, 2)]);
    }
}

#[test]
fn a_doorbell_while_paused_is_answered_after_it() {
    for queue in 0..QUEUES {
        let mut vm = enabled();
        vm.smmu.pause();
        send_three(&vm, queue);
        vm.poll(5);
        assert_eq!(cons(&vm, queue), 0);
        vm.smmu.resume();
        vm.smmu.resume();
        vm.poll(1);
        assert_eq!(cons(&vm, queue), 1);
    }
}

#[test]
fn a_request_that_was_pending_is_asked_again_and_the_old_token_means_nothing() {
    for queue in 0..QUEUES {
        let mut vm = enabled();
        let ring = RAM + 0x1000 * queue as u64;
        vm.put(ring, cfgi_ste(1));
        vm.queue_write(queue, PROD, if queue == 0 { 1 } else { EN | 1 });
        vm.poll(1);
        let (asked, old) = vm.asked.lock().unwrap().pop_front().unwrap();
        let mut new = vm.moved();
        new.smmu.resume();
        new.poll(1);
        let (enable, token) = new.asked.lock().unwrap().pop_front().unwrap();
        assert!(matches!(enable, Request::Enable(_)), "{enable:?}");
        assert_eq!(new.read(CR0ACK), CMDQEN | SMMUEN, "the guest does not see that the VMM is new");
        assert!(new.asked.lock().unwrap().is_empty(), "nothing else before the streams are attached");
        token.complete();
        new.poll(3);
        assert_eq!(new.asked.lock().unwrap().front().unwrap().0, asked);
        old.complete();
        new.poll(1);
        assert_eq!(cons(&new, queue), 0);
        new.asked.lock().unwrap().pop_front().unwrap().1.complete();
        new.poll(1);
        assert_eq!(cons(&new, queue), 1);
    }
}

#[test]
fn a_new_vmm_is_told_of_gbpa() {
    const ABORT: u32 = 1 << 20;
    let mut vm = Vm::new();
    vm.write(GBPA, UPDATE | ABORT);
    vm.poll(1);
    assert_eq!(vm.asked.lock().unwrap().front().unwrap().0, Request::UpdateGbpa(ABORT));
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(1);
    assert_eq!(vm.read(GBPA), ABORT);
    let mut new = vm.moved();
    new.smmu.resume();
    new.poll(1);
    assert_eq!(new.asked.lock().unwrap().pop_front().unwrap().0, Request::UpdateGbpa(ABORT));
    assert_eq!(new.read(GBPA), ABORT, "the guest sees no update");
}

/// Facts sheet, section 2.3: Update was 0, so the write counts, and Update falls when it has been followed.
#[test]
fn a_guest_updates_gbpa_while_a_new_vmm_is_still_being_told_of_it() {
    const ABORT: u32 = 1 << 20;
    let mut vm = Vm::new();
    vm.write(GBPA, UPDATE | ABORT);
    vm.poll(1);
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(1);
    let mut new = vm.moved();
    new.smmu.resume();
    new.poll(1);
    let (told, token) = new.asked.lock().unwrap().pop_front().unwrap();
    assert_eq!(told, Request::UpdateGbpa(ABORT));
    new.write(GBPA, UPDATE | 1);
    new.poll(1);
    token.complete();
    new.poll(2);
    assert_eq!(new.read(GBPA), UPDATE | 1, "nobody has followed it");
    let (asked, token) = new.asked.lock().unwrap().pop_front().unwrap();
    assert_eq!(asked, Request::UpdateGbpa(1));
    token.complete();
    new.poll(1);
    assert_eq!(new.read(GBPA), 1);
}

#[test]
fn a_new_host_invalidates_everything_before_the_first_command() {
    let vm = enabled();
    send_three(&vm, 1);
    let mut new = vm.moved();
    new.smmu.resume();
    for _ in 0..6 {
        new.poll(1);
        new.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
        new.host.finish_all();
    }
    let received = new.host.received().to_vec();
    let (configuration, rest) = received.split_at(2);
    let (tlb, rest) = rest.split_at(1);
    let (atc, rest) = rest.split_at(2);
    let full = Vm::full_invalidation();
    assert!(
        configuration.iter().all(|command| full[..2].contains(command))
            && configuration[0] != configuration[1]
    );
    assert_eq!(tlb, &full[2..3]);
    assert!(atc.iter().all(|command| full[3..].contains(command)) && atc[0] != atc[1]);
    assert_eq!(rest, [host_page(VMID, 1), host_page(VMID, 2)]);
    assert_eq!((cons(&new, 1), msi(&new)), (3, 5));
}

#[test]
fn a_reset_at_any_moment_is_as_power_on_and_the_driver_starts_over() {
    let mut random = Random(seed());
    let fresh = Vm::new().registers();
    let mut vm = Vm::new();
    for round in 0..60 {
        let mut guest = Guest::start(&vm);
        for _ in 0..random.below(150) {
            guest.step(&mut vm, &mut random);
        }
        if random.one_in(3) {
            vm.smmu.pause();
        }
        vm.smmu.reset();
        assert_eq!(vm.registers(), fresh, "round {round}");
        vm.smmu.resume();
        // What was under way is over: tokens mean nothing, and what the host still completes is nobody's.
        vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.reject());
        vm.host.set_room(usize::MAX);
        vm.poll(2);
        vm.host.finish_all();
        vm.poll(2);
        assert_eq!(vm.registers(), fresh, "round {round}");
        for at in (0..0x1_0000).step_by(8) {
            vm.ram.store_u64(at, 0, std::sync::atomic::Ordering::Release);
        }
        let mut again = Vm::replaced_host(vm);
        let mut guest = Guest::start(&again);
        (0..200).for_each(|_| guest.step(&mut again, &mut random));
        guest.finish(&mut again, &mut random);
        again.smmu.reset();
        vm = again;
    }
}

#[test]
fn a_queue_disabled_with_a_cmd_sync_on_its_way_forgets_it_and_takes_it_again() {
    for queue in 0..QUEUES {
        let mut vm = enabled();
        send_three(&vm, queue);
        vm.poll(1);
        let enable = |vm: &Vm, on: bool| match queue {
            0 => vm.write(CR0, SMMUEN | if on { CMDQEN } else { 0 }),
            _ => vm.queue_write(queue, PROD, 3 | if on { EN } else { 0 }),
        };
        enable(&vm, false);
        vm.poll(1);
        vm.host.finish_all();
        vm.poll(3);
        assert_eq!(
            (vm.queue_read(queue, CONS), msi(&vm)),
            (1, 0),
            "it is disabled, and points at the CMD_SYNC"
        );
        let mut vm = vm.moved();
        vm.smmu.resume();
        for _ in 0..6 {
            vm.poll(1);
            vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
        }
        assert_eq!((vm.queue_read(queue, CONS), msi(&vm)), (1, 0), "it stays disabled");
        // The new host has forgotten everything.
        vm.host.finish_all();
        enable(&vm, true);
        vm.poll(2);
        vm.host.finish_all();
        vm.poll(2);
        assert_eq!((cons(&vm, queue), msi(&vm)), (3, 5));
        assert_eq!(vm.host.received()[5..], [host_page(VMID, 2)]);
    }
}
