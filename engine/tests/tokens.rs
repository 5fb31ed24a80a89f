//! Commands for the VMM: the queue waits until the token is given back, and nothing else does (facts sheet, sections 1.6 and
//! 1.9; docs/virtual-smmu.md, "Requests and tokens"). That a token is given back once only is by its type: it is consumed.

mod common;

use std::thread;

use common::reg::*;
use common::*;
use ecmdq_engine::rules::{PageResponse, Request, ResumeAction};
use ecmdq_engine::{Command, Features, StreamConfig, StreamId};

/// A machine with everything, SMMUEN and a queue of 2^4 entries, and its VMM.
fn machine() -> (Machine, Vmm) {
    machine_with(|f| *f = Features::everything())
}

/// The same with EL2 contexts, which exclude ECMDQs.
fn machine_at_el2() -> (Machine, Vmm) {
    machine_with(|f| {
        *f = Features::everything();
        (f.hyp, f.ecmdq) = (true, false);
    })
}

fn machine_with(change: impl FnOnce(&mut Features)) -> (Machine, Vmm) {
    let vmm = Vmm::default();
    let setup = Setup { on_request: vmm.on_request(), ..Setup::with(change) };
    let mut machine = Machine::new(setup);
    machine.guest.write(CR0, SMMUEN);
    machine.settle();
    vmm.complete();
    machine.settle();
    (machine.enabled(4), vmm)
}

/// As [`machine`], whose guest has sent a command, a CFGI_STE, which waits, and one more command.
fn waiting() -> (Machine, Vmm) {
    let (mut machine, vmm) = machine();
    machine.run(&[nh_asid(1), cfgi_ste(STREAM), nh_asid(2)]);
    assert_eq!((machine.guest.cons(), vmm.waiting()), (1, 1));
    assert_eq!(machine.take_received(), [host_asid(7, 1)]);
    (machine, vmm)
}

fn is_ste(request: Request) -> bool {
    request == Request::Streams(StreamConfig::One(StreamId(0x42)))
}

const RESUME: u64 = 0x44 | 0x42 << 32;

fn resume(action: ResumeAction) -> Request {
    Request::Resume { stream: StreamId(0x42), stag: 0xbeef, action }
}

fn answer(substream: Option<u32>, response: u8) -> Request {
    Request::PageResponse(PageResponse { stream: StreamId(0x42), substream, group: 0x1ab, response })
}

/// Every command that is the VMM's, spelled out by section 1.2, and the request that it becomes.
fn commands() -> Vec<(Command, Request)> {
    let streams = |config| Request::Streams(config);
    let range = |first, log2| streams(StreamConfig::Range { first: StreamId(first), log2 });
    let other = |command| (command, Request::Other(command));
    vec![
        (Command([0x03 | 0x42 << 32, 0]), streams(StreamConfig::One(StreamId(0x42)))),
        (Command([0x03 | 0x42 << 32, 1]), streams(StreamConfig::One(StreamId(0x42)))),
        (Command([0x04 | 0x45 << 32, 0]), range(0x44, 1)),
        (Command([0x04 | 0x1f7 << 32, 6]), range(0x180, 7)),
        (Command([0x04 | 0x42 << 32, 31]), streams(StreamConfig::All)),
        (Command([RESUME, 0xbeef]), resume(ResumeAction::Terminate)),
        (Command([RESUME | 1 << 12, 0xbeef]), resume(ResumeAction::Retry)),
        (Command([RESUME | 2 << 12, 0xbeef]), resume(ResumeAction::Abort)),
        (Command([0x45 | 0x42 << 32, 0]), Request::StallTerm(StreamId(0x42))),
        (Command([0x41 | 0x42 << 32, 0x21ab]), answer(None, 2)),
        (Command([0x41 | 1 << 11 | 0x777 << 12 | 0x42 << 32, 0x11ab]), answer(Some(0x777), 1)),
        other(Command([0x20, 0])),
        other(Command([0x28 | 3 << 32, 0])),
        other(Command([0x70, 0])),
    ]
}

#[test]
fn every_command_for_the_vmm_waits_with_cons_at_it() {
    for (command, expected) in commands() {
        let (mut machine, vmm) = machine_at_el2();
        machine.run(&[nh_asid(1), command, nh_asid(2), sync()]);
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.active(), vmm.waiting()), (1, 0, 1), "{command}");
        assert_eq!(machine.take_received(), [host_asid(7, 1)], "{command}: nothing behind it is taken");
        assert_eq!(vmm.complete(), expected, "{command}");
        assert_eq!(machine.guest.cons(), 1, "the worker passes it");
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.active(), vmm.waiting()), (4, 0, 0), "{command}");
        assert_eq!(machine.take_received(), [host_asid(7, 2), HOST_SYNC], "{command}");
    }
}

/// Nothing behind the command is even read: what stands there when the token comes back is what counts.
#[test]
fn what_is_behind_a_command_for_the_vmm_is_fetched_when_it_has_completed() {
    let (mut machine, vmm) = waiting();
    machine.guest.put(2, nh_asid(9));
    vmm.complete();
    machine.settle();
    assert_eq!(machine.take_received(), [host_asid(7, 9)]);
}

#[test]
fn a_token_that_the_callback_completes_costs_no_sweep() {
    let mut machine = Machine::with_queue(4);
    machine.guest.send(&[cfgi_ste(STREAM)]);
    machine.worker.poll();
    assert_eq!(machine.guest.cons(), 1);
}

#[test]
fn a_token_may_be_given_back_by_another_thread() {
    for act in [Act::Complete, Act::Reject, Act::Drop] {
        let (mut machine, vmm) = waiting();
        let (_, token) = vmm.take();
        thread::spawn(move || act.on(token)).join().unwrap();
        machine.settle();
        let expected = match act {
            Act::Complete => (3, None),
            Act::Reject => (1, Some(CERROR_ILL)),
            Act::Drop => (1, Some(CERROR_ABT)),
        };
        assert_eq!((machine.guest.cons(), machine.guest.error()), expected, "{act:?}");
    }
}

#[test]
fn a_cmd_sync_behind_a_command_for_the_vmm_waits_for_it() {
    let (mut machine, vmm) = machine();
    machine.run(&[cfgi_ste(STREAM), sync_msi(RAM + 0x804, 9)]);
    assert_eq!((machine.guest.cons(), machine.guest.u32_at(RAM + 0x804)), (0, 0));
    vmm.complete();
    machine.settle();
    assert_eq!((machine.guest.cons(), machine.guest.u32_at(RAM + 0x804)), (2, 9));
}

#[test]
fn several_commands_for_the_vmm_are_asked_for_one_by_one() {
    let (mut machine, vmm) = machine();
    machine.run(&[cfgi_ste(1), cfgi_ste(2), cfgi_ste(3)]);
    for stream in 1..=3 {
        assert_eq!((machine.guest.cons(), vmm.waiting()), (stream - 1, 1));
        assert_eq!(vmm.complete(), Request::Streams(StreamConfig::One(StreamId(stream))));
        machine.settle();
    }
    assert_eq!((machine.guest.cons(), vmm.waiting()), (3, 0));
}

#[test]
fn other_queues_and_other_guests_go_on() {
    let vmm = Vmm::default();
    let mut rig = Rig::new(1, 4, Script::at_once());
    let ecmdqs = Setup::with(|f| *f = f.with_ecmdqs(0, 0));
    rig.add(Setup { vmid: 2, on_request: vmm.on_request(), ..ecmdqs }, 4);
    rig.guests[1].send(&[cfgi_ste(STREAM), nh_asid(1)]);
    rig.poll_times(2);
    let mut queue = rig.guests[1].ecmdq(0);
    queue.start(4);
    rig.poll();
    queue.send(&[nh_asid(2), sync()]);
    rig.guests[0].send(&[nh_asid(3), sync()]);
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.cons(1), queue.cons()), (2, 0, 2));
    assert_eq!(vmm.waiting(), 1);
}

/// Section 3.3: the command that failed is fetched again; here it was mended, or the VMM knows better.
#[test]
fn a_rejected_command_is_illegal_and_is_fetched_again() {
    let (mut machine, vmm) = waiting();
    vmm.take().1.reject();
    machine.settle();
    assert_eq!(machine.guest.read(CMDQ_CONS), 0x0100_0001, "CERROR_ILL at the command");
    assert_eq!((machine.guest.active(), machine.take_received()), (CMDQ_ERR, vec![]));
    machine.guest.put(1, cfgi_ste(STREAM + 1));
    machine.guest.ack();
    machine.settle();
    assert_eq!(vmm.complete(), Request::Streams(StreamConfig::One(StreamId(0x43))));
    machine.settle();
    assert_eq!((machine.guest.cons(), machine.guest.active()), (3, 0));
}

#[test]
fn a_dropped_token_is_an_abort_and_the_vmm_is_asked_again() {
    let (mut machine, vmm) = waiting();
    drop(vmm.take());
    machine.settle();
    assert_eq!(machine.guest.read(CMDQ_CONS), 0x0200_0001, "CERROR_ABT at the command");
    assert_eq!((machine.guest.active(), vmm.waiting()), (CMDQ_ERR, 0));
    machine.guest.ack();
    machine.settle();
    assert!(is_ste(vmm.complete()));
    machine.settle();
    assert_eq!((machine.guest.cons(), machine.guest.active()), (3, 0));
    assert_eq!(machine.take_received(), [host_asid(7, 2)]);
}

#[test]
fn an_ecmdq_tells_a_rejected_and_a_dropped_token_by_its_own_registers() {
    for (act, cons) in [(Act::Reject, 0x8180_0001), (Act::Drop, 0x8280_0001)] {
        let (mut machine, vmm) = machine();
        let mut queue = machine.guest.ecmdq(255);
        queue.start(4);
        machine.settle();
        queue.send(&[nh_asid(1), cfgi_ste(STREAM), nh_asid(2)]);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8000_0001);
        act.on(vmm.take().1);
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (cons, CMDQP_ERR), "{act:?}");
        queue.ack();
        machine.settle();
        assert!(is_ste(vmm.complete()));
        machine.settle();
        assert_eq!((queue.cons(), queue.error()), (3, None));
    }
}

#[test]
fn a_token_of_before_a_reset_has_no_effect() {
    for act in [Act::Complete, Act::Reject, Act::Drop] {
        let (mut machine, vmm) = waiting();
        let (_, old) = vmm.take();
        machine.worker.guests().next().unwrap().reset();
        machine.settle();
        machine.guest.start(4);
        machine.run(&[cfgi_ste(STREAM), nh_asid(3)]);
        assert_eq!((machine.guest.cons(), vmm.waiting()), (0, 1));
        act.on(old);
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.active()), (0, 0), "{act:?}: the new one is pending");
        vmm.complete();
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.active()), (2, 0));
    }
}

#[test]
fn a_token_that_is_given_back_while_nothing_waits_has_no_effect() {
    for act in [Act::Complete, Act::Reject, Act::Drop] {
        let (mut machine, vmm) = waiting();
        machine.worker.guests().next().unwrap().reset();
        act.on(vmm.take().1);
        machine.settle();
        machine.guest.start(4);
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.read(GERROR)), (0, 0), "{act:?}");
    }
}

/// Section 2.2: after CMDQEN 1 to 0, CONS is at the first command that is not consumed.
#[test]
fn a_queue_that_was_disabled_while_it_waited_asks_again_and_ignores_the_old_token() {
    for act in [Act::Complete, Act::Reject, Act::Drop] {
        let (mut machine, vmm) = waiting();
        let (_, old) = vmm.take();
        machine.guest.stop();
        machine.settle();
        assert_eq!((machine.guest.enabled(), machine.guest.cons()), (false, 1));
        machine.guest.write(CR0, SMMUEN | CMDQEN);
        machine.settle();
        assert_eq!(vmm.waiting(), 1, "asked again");
        act.on(old);
        machine.settle();
        assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0), "{act:?}");
        vmm.complete();
        machine.settle();
        assert_eq!(machine.guest.cons(), 3);
    }
}

/// What a token brings while the SMMU is paused is seen afterwards.
#[test]
fn a_token_may_be_given_back_while_the_smmu_is_paused() {
    let (mut machine, vmm) = waiting();
    let smmu = machine.worker.guests().next().unwrap().clone();
    smmu.pause();
    vmm.complete();
    machine.settle();
    assert_eq!(machine.guest.cons(), 1);
    smmu.resume();
    machine.settle();
    assert_eq!(machine.guest.cons(), 3);
}

/// Tokens outlive the virtual SMMU without harm.
#[test]
fn a_token_may_outlive_its_smmu() {
    let (machine, vmm) = waiting();
    drop(machine);
    vmm.complete();
}

#[test]
fn requests_are_counted_and_those_that_failed() {
    let (mut machine, vmm) = machine();
    let before = machine.guest.stats.read();
    assert_eq!((before.requests, before.requests_failed), (1, 0), "SMMUEN");
    machine.run(&[cfgi_ste(STREAM), nh_asid(1)]);
    for (act, requests, failed, commands) in
        [(Act::Reject, 2, 1, 0), (Act::Drop, 3, 2, 0), (Act::Complete, 4, 2, 2)]
    {
        act.on(vmm.take().1);
        machine.settle();
        let stats = machine.guest.stats.read();
        assert_eq!((stats.requests, stats.requests_failed), (requests, failed), "{act:?}");
        assert_eq!((stats.commands, stats.rejected), (commands, 0), "no rule was broken");
        machine.guest.ack();
        machine.settle();
    }
}
