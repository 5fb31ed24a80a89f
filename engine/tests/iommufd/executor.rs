//! Calls and what becomes of tickets, trouble by trouble.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd::{self, Invalidate, IommufdExecutor, IommufdQueue};
use ecmdq_engine::host::{Cause, Failure, HostQueue, Identities, Ticket};
use rustix::io::Errno;

use crate::kernel::{GENERATIONS, Generation, Kernel};

struct Rig<K = Kernel> {
    kernel: K,
    queue: IommufdQueue,
    executor: IommufdExecutor<K>,
}

/// TLBI_NH_ASID, each of another ASID; VMID 0.
fn commands(n: u64) -> Vec<Command> {
    (0..n).map(|i| Command([0x11 | i << 48, 0])).collect()
}

const ATC_INV: Command = Command([0x42 << 32 | 0x40, 52]);

impl Rig {
    fn new(generation: Generation) -> Self {
        Self::before(Kernel::new(generation))
    }
}

impl<K: Invalidate + Clone> Rig<K> {
    fn before(kernel: K) -> Self {
        let (queue, executor) = iommufd::queue(kernel.clone(), 10).unwrap();
        Self { kernel, queue, executor }
    }

    /// Submits, asks for a ticket, and lets the executor work; what became of the ticket, `None` if it was reached.
    fn run(&mut self, commands: &[Command]) -> Option<Failure> {
        assert_eq!(self.queue.submit(commands), commands.len());
        self.sync()
    }

    fn sync(&mut self) -> Option<Failure> {
        let ticket = self.queue.sync();
        for _ in 0..1000 {
            self.executor.step();
            let reached = self.queue.completed() >= ticket;
            if let Some(failure) = self.queue.failure(ticket) {
                return Some(failure);
            }
            if reached {
                return None;
            }
        }
        panic!("neither reached nor failed");
    }
}

#[test]
fn it_takes_the_guests_own_identities() {
    assert_eq!(Rig::new(Generation::Grouped).queue.identities(), Identities::Guest);
}

#[test]
fn commands_go_in_calls_of_63_and_cmd_syncs_do_not_go() {
    let mut rig = Rig::new(Generation::Strict);
    assert_eq!(rig.run(&commands(130)), None);
    assert_eq!(rig.kernel.calls(), [63, 63, 4]);
    assert_eq!(rig.kernel.executed(), commands(130));
    assert_eq!(rig.run(&commands(1)), None);
    assert_eq!(rig.kernel.calls()[3..], [1]);
}

#[test]
fn nothing_is_called_for_a_ticket_alone() {
    let mut rig = Rig::new(Generation::Strict);
    assert_eq!(rig.sync(), None);
    assert_eq!(rig.executor.step(), 0);
    assert!(rig.kernel.calls().is_empty());
}

/// Three tickets: after one, two and three commands.
fn three_tickets(rig: &mut Rig) -> ([Ticket; 3], Vec<Command>) {
    let sent = commands(6);
    let tickets = [0..1, 1..3, 3..6].map(|range| {
        assert_eq!(rig.queue.submit(&sent[range.clone()]), range.len());
        rig.queue.sync()
    });
    (tickets, sent)
}

/// What becomes of tickets, in their order.
fn fates(rig: &mut Rig, tickets: [Ticket; 3]) -> [Option<Cause>; 3] {
    (0..20).for_each(|_| {
        rig.executor.step();
        rig.queue.completed();
    });
    tickets.map(|ticket| {
        assert!(rig.queue.completed() >= ticket);
        rig.queue.failure(ticket).map(|failure| failure.cause)
    })
}

#[test]
fn tickets_that_have_piled_up_share_a_call() {
    let mut rig = Rig::new(Generation::Strict);
    let (tickets, sent) = three_tickets(&mut rig);
    assert_eq!(rig.executor.step(), 9, "six commands and three CMD_SYNCs");
    assert_eq!(fates(&mut rig, tickets), [None; 3]);
    assert_eq!((rig.kernel.calls(), rig.kernel.executed()), (vec![6], sent));
}

#[test]
fn tickets_that_share_a_call_are_reached_up_to_the_last_command_that_fits() {
    let mut rig = Rig::new(Generation::Strict);
    let sent = commands(100);
    let tickets: Vec<_> =
        sent.chunks(10).map(|chunk| (rig.queue.submit(chunk), rig.queue.sync()).1).collect();
    rig.executor.step();
    assert_eq!((rig.kernel.calls(), rig.kernel.executed()), (vec![63], sent[..63].to_vec()));
    let completed = rig.queue.completed();
    assert!(tickets[5] <= completed && completed < tickets[6]);
    rig.executor.step();
    assert_eq!(rig.kernel.calls(), [63, 37]);
    assert!(tickets[9] <= rig.queue.completed());
}

const CFGI_CD: Command = Command([0x42 << 32 | 0x05, 1]);
const TLBI: Command = Command([0x10, 0]);

/// A kernel that takes everything; the commands of each call.
fn recording() -> (MadeUp, Rc<RefCell<Vec<Vec<Command>>>>) {
    let calls: Rc<RefCell<Vec<Vec<Command>>>> = Rc::default();
    let seen = calls.clone();
    let kernel = MadeUp::new(move |commands| {
        seen.borrow_mut().push(commands.to_vec());
        Ok(())
    });
    (kernel, calls)
}

/// The calls for groups of commands with a ticket behind each, all of which are there when the executor begins.
fn calls_for(groups: &[&[Command]]) -> Vec<Vec<Command>> {
    let (kernel, calls) = recording();
    let mut rig = Rig::before(kernel);
    let mut last = Ticket::default();
    for group in groups {
        assert_eq!(rig.queue.submit(group), group.len());
        last = rig.queue.sync();
    }
    while rig.executor.step() > 0 {}
    assert!(rig.queue.completed() >= last);
    calls.take()
}

#[test]
fn a_call_mixes_nothing_with_what_must_be_executed_before() {
    let (cfgi, tlbi, atc): (&[_], &[_], &[_]) = (&[CFGI_CD], &[TLBI], &[ATC_INV]);
    // A TLB is refilled through configuration, an ATC through the TLB.
    assert_eq!(calls_for(&[cfgi, tlbi]), [cfgi, tlbi]);
    assert_eq!(calls_for(&[cfgi, atc]), [cfgi, atc]);
    assert_eq!(calls_for(&[tlbi, atc]), [tlbi, atc]);
    assert_eq!(calls_for(&[cfgi, tlbi, atc]), [cfgi, tlbi, atc]);
    // What is in front of the last ticket but one counts as well.
    assert_eq!(calls_for(&[cfgi, cfgi, tlbi]), [&[CFGI_CD; 2][..], tlbi]);
    assert_eq!(calls_for(&[&[ATC_INV, CFGI_CD], atc]), [&[ATC_INV, CFGI_CD][..], atc]);
    assert_eq!(calls_for(&[atc, tlbi, tlbi, atc]), [&[ATC_INV, TLBI, TLBI][..], atc]);
    // Within a group there is no order, and a new call begins anew.
    assert_eq!(calls_for(&[&[CFGI_CD, TLBI, ATC_INV]]), [[CFGI_CD, TLBI, ATC_INV]]);
    assert_eq!(calls_for(&[cfgi, &[TLBI, CFGI_CD], tlbi]), [cfgi, &[TLBI, CFGI_CD], tlbi]);
    assert_eq!(calls_for(&[cfgi, tlbi, cfgi, tlbi]), [cfgi, &[TLBI, CFGI_CD], tlbi]);
}

#[test]
fn a_call_mixes_what_has_no_order() {
    for same in [CFGI_CD, TLBI, ATC_INV] {
        assert_eq!(calls_for(&[&[same], &[same, same], &[same]]), [[same; 4]]);
    }
    assert_eq!(calls_for(&[&[ATC_INV], &[TLBI], &[CFGI_CD]]), [[ATC_INV, TLBI, CFGI_CD]]);
}

#[test]
fn of_tickets_that_share_a_call_only_the_one_behind_the_trouble_fails() {
    for generation in GENERATIONS {
        let mut rig = Rig::new(generation);
        rig.kernel.refuse(commands(2)[1]);
        let (tickets, _) = three_tickets(&mut rig);
        assert_eq!(fates(&mut rig, tickets), [None, Some(Cause::Illegal), None]);
        assert_eq!(rig.kernel.executed_once().len(), 5);

        let mut rig = Rig::new(generation);
        rig.kernel.set_silent(true);
        assert_eq!(rig.queue.submit(&[ATC_INV]), 1);
        let first = rig.queue.sync();
        let (tickets, sent) = three_tickets(&mut rig);
        assert_eq!(fates(&mut rig, [first, tickets[0], tickets[1]]), [Some(Cause::AtcTimeout), None, None]);
        assert_eq!(rig.kernel.executed_once(), sent);
    }
}

#[test]
fn a_refused_command_is_found_wherever_it_is_and_all_others_are_executed() {
    for generation in GENERATIONS {
        for at in [0, 1, 2, 31, 32, 61, 62, 63, 64, 100, 126, 127] {
            let mut rig = Rig::new(generation);
            let sent = commands(128);
            rig.kernel.refuse(sent[at]);
            let failure = rig.run(&sent).expect("the ticket fails");
            assert_eq!((failure.cause, failure.command), (Cause::Illegal, Some(sent[at])), "{at}");
            assert_eq!(rig.sync(), None, "the next ticket is reached");
            let others: Vec<_> = sent.iter().copied().filter(|command| *command != sent[at]).collect();
            assert_eq!(rig.kernel.executed_once(), others, "{generation:?}, bad at {at}");
        }
    }
}

#[test]
fn want_of_memory_and_interruptions_are_tried_again() {
    for fault in [Errno::NOMEM, Errno::INTR, Errno::AGAIN] {
        let mut rig = Rig::new(Generation::Grouped);
        rig.kernel.fail([fault; 5]);
        assert_eq!(rig.run(&commands(100)), None, "{fault:?}");
        assert_eq!(rig.kernel.executed(), commands(100));
        assert_eq!(rig.kernel.calls(), [63, 63, 63, 63, 63, 63, 37]);
    }
}

#[test]
fn what_says_nothing_of_the_hardware_never_counts_as_the_end() {
    for fault in [Errno::NOMEM, Errno::INTR, Errno::AGAIN] {
        let mut rig = Rig::new(Generation::Grouped);
        rig.kernel.fail([fault; 500]);
        assert_eq!(rig.run(&commands(1)), None, "{fault:?}");
        assert_eq!(rig.kernel.executed(), commands(1));
    }
}

#[test]
fn what_there_was_no_memory_for_a_hundred_times_is_executed_once_and_acknowledged() {
    for fault in [Errno::NOMEM, Errno::INTR, Errno::AGAIN] {
        // Three tickets, which share a call; and one, which has its own.
        let mut rig = Rig::new(Generation::Grouped);
        rig.kernel.fail([fault; 100]);
        let (tickets, sent) = three_tickets(&mut rig);
        for call in 1..=100 {
            assert_eq!((rig.executor.step(), rig.kernel.calls().len()), (0, call), "one call a step");
        }
        assert!(rig.queue.completed() < tickets[0] && rig.kernel.executed().is_empty());
        assert_eq!(fates(&mut rig, tickets), [None; 3], "{fault:?}");
        assert_eq!(rig.kernel.executed(), sent);

        rig.kernel.fail([fault; 100]);
        assert_eq!(rig.run(&commands(2)), None, "{fault:?}");
        assert_eq!(rig.kernel.executed()[sent.len()..], commands(2));
        assert_eq!(rig.kernel.calls().len(), 101 + 101);
    }
}

#[test]
fn an_smmu_that_is_late_gets_the_commands_again() {
    let mut rig = Rig::new(Generation::Strict);
    rig.kernel.fail([Errno::TIMEDOUT; 3]);
    assert_eq!(rig.run(&commands(50)), None);
    assert_eq!(rig.kernel.executed_once(), commands(50));
}

#[test]
fn an_atc_inv_that_times_out_fails_the_ticket_and_the_rest_is_executed() {
    let mut rig = Rig::new(Generation::Grouped);
    let sent = [&commands(20)[..], &[ATC_INV], &commands(30)[20..]].concat();
    rig.kernel.set_silent(true);
    assert_eq!(rig.run(&sent), Some(Failure { cause: Cause::AtcTimeout, command: None }));
    assert_eq!(rig.kernel.executed_once(), commands(30));
    assert_eq!(rig.kernel.calls(), [31, 30]);
    rig.kernel.set_silent(false);
    assert_eq!(rig.sync(), None, "it is told once");
    assert_eq!(rig.run(&[ATC_INV]), None);
}

#[test]
fn an_atc_inv_alone_that_times_out_fails_the_ticket() {
    let mut rig = Rig::new(Generation::Grouped);
    rig.kernel.set_silent(true);
    assert_eq!(rig.run(&[ATC_INV]).map(|failure| failure.cause), Some(Cause::AtcTimeout));
    assert_eq!(rig.kernel.calls(), [1], "and no empty call was made");
}

#[test]
fn a_refused_command_beside_an_atc_inv_that_times_out_is_found() {
    for generation in GENERATIONS {
        for (atc, bad) in [(0, 5), (5, 0), (5, 6), (20, 50), (50, 20)] {
            let mut rig = Rig::new(generation);
            let mut sent = commands(60);
            sent[atc] = ATC_INV;
            rig.kernel.refuse(sent[bad]);
            rig.kernel.set_silent(true);
            rig.queue.submit(&sent);
            let failures: Vec<_> = std::iter::from_fn(|| rig.sync()).take(10).collect();
            let illegal = Failure { cause: Cause::Illegal, command: Some(sent[bad]) };
            let late = Failure { cause: Cause::AtcTimeout, command: None };
            assert!(failures == [illegal, late] || failures == [late, illegal], "{failures:?}");
            let others: Vec<_> = (0..60).filter(|i| *i != atc && *i != bad).map(|i| sent[i]).collect();
            assert_eq!(rig.kernel.executed_once(), others, "{generation:?}, {atc} and {bad}");
        }
    }
}

#[test]
fn what_cannot_get_better_is_the_end() {
    let never = [Errno::NODEV, Errno::NOENT, Errno::INVAL, Errno::OPNOTSUPP, Errno::BADF, Errno::FAULT];
    for fault in never.into_iter().chain([Errno::TIMEDOUT]) {
        for sent in [commands(3), [&commands(3)[..], &[ATC_INV]].concat()] {
            let mut rig = Rig::new(Generation::Grouped);
            rig.kernel.go(fault);
            assert_eq!(rig.run(&sent).map(|failure| failure.cause), Some(Cause::DeviceGone), "{fault:?}");
            let bound = if fault == Errno::TIMEDOUT { 30 } else { 4 };
            assert!(rig.kernel.calls().len() <= bound, "{fault:?}: {:?}", rig.kernel.calls());
        }
    }
}

/// A kernel that a test makes up; how many calls there were.
#[derive(Clone)]
struct MadeUp(Rc<Answer>, Rc<Cell<u32>>);

type Answer = dyn Fn(&[Command]) -> Result<(), Errno>;

impl MadeUp {
    fn new(answer: impl Fn(&[Command]) -> Result<(), Errno> + 'static) -> Self {
        Self(Rc::new(answer), Rc::default())
    }
}

impl Invalidate for MadeUp {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        self.1.update(|calls| calls + 1);
        Ok(self.0(commands)?)
    }
}

#[test]
fn half_a_group_that_is_done_over_and_over_is_no_progress() {
    // It refuses long calls, executes the first command, and never again anything.
    let first = commands(1)[0];
    let mut rig = Rig::before(MadeUp::new(move |commands| match commands {
        [_, _, ..] => Err(Errno::IO),
        [command] if *command == first => Ok(()),
        _ => Err(Errno::TIMEDOUT),
    }));
    assert_eq!(rig.run(&commands(2)).map(|failure| failure.cause), Some(Cause::DeviceGone));
    assert!(rig.kernel.1.get() < 50, "{} calls", rig.kernel.1.get());
}

#[test]
fn a_command_that_is_refused_only_after_atc_invs_were_late_is_named() {
    // The vDEVICE of a command goes while the endpoint of another is waited for.
    let mut sent = commands(9);
    let bad = sent[5];
    (sent[1], sent[3]) = (ATC_INV, ATC_INV);
    let mut rig = Rig::before(MadeUp::new(move |commands| match commands {
        _ if commands.contains(&ATC_INV) => Err(Errno::TIMEDOUT),
        _ if commands.contains(&bad) => Err(Errno::IO),
        _ => Ok(()),
    }));
    assert_eq!(rig.run(&sent), Some(Failure { cause: Cause::Illegal, command: Some(bad) }));
    assert_eq!(rig.sync(), Some(Failure { cause: Cause::AtcTimeout, command: None }));
    assert_eq!(rig.sync(), None);
}
