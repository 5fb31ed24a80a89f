//! What a producer of a native ring hears of errors that it asks for late, or of tickets that it never asked about.

mod common;

use common::*;
use ecmdq_engine::host::Cause::{AtcTimeout, Illegal};
use ecmdq_engine::host::{Cause, Failure, HostQueue, NativeRing, RingConsumer, Ticket};
use ecmdq_engine::{Command, CommandError, Opcode};

/// As many failures as a producer keeps apart that it has not asked for.
const APART: u64 = 64;

struct Pair {
    rings: Vec<NativeRing>,
    smmu: RingConsumer,
}

impl Pair {
    fn new() -> Self {
        let (rings, smmu) = NativeRing::several_with_consumer(4, 2).unwrap();
        Self { rings, smmu }
    }

    /// A producer's command fails, and its CMD_SYNC completes; nobody has asked yet.
    fn fail(&mut self, producer: usize, cause: Cause, command: Command) -> Ticket {
        let ring = &mut self.rings[producer];
        assert_eq!(ring.submit(&[command]), 1);
        let ticket = ring.sync();
        let mut told = false;
        while ring.completed() < ticket {
            self.smmu.poll_with(|commands| {
                let sync = commands.iter().position(|command| command.opcode() == Opcode::CMD_SYNC);
                match (std::mem::replace(&mut told, true), cause) {
                    (false, Illegal) => (0, Some(CommandError::Ill)),
                    (false, _) => (sync.unwrap(), Some(CommandError::AtcInvSync)),
                    (true, _) => (commands.len(), None),
                }
            });
        }
        ticket
    }

    /// A command of producer 1 fails.
    fn other_fails(&mut self, cause: Cause) {
        self.fail(1, cause, nh_asid(1));
    }
}

#[test]
fn of_more_failures_than_are_kept_apart_it_is_lost_whose_they_were_and_not_that_they_were() {
    for (before, cause) in
        [(Illegal, Illegal), (AtcTimeout, AtcTimeout), (AtcTimeout, Illegal), (Illegal, AtcTimeout)]
    {
        let mut pair = Pair::new();
        (0..APART).for_each(|_| pair.other_fails(before));
        let ticket = pair.fail(0, cause, nh_asid(2));
        (0..3).for_each(|_| pair.other_fails(cause));
        let Failure { cause: told, command } = pair.rings[0].failure(ticket).expect("its command failed");
        assert_eq!((told, command), (cause, None), "after {before:?}");
    }
}

#[test]
fn a_failure_is_told_with_its_command_while_there_are_few() {
    let mut pair = Pair::new();
    (1..APART).for_each(|_| pair.other_fails(Illegal));
    let ticket = pair.fail(0, Illegal, nh_asid(2));
    let failure = Failure { cause: Illegal, command: Some(nh_asid(2)) };
    assert_eq!((pair.rings[0].failure(ticket), pair.rings[0].failure(ticket)), (Some(failure), None));
}

#[test]
fn a_failure_is_told_though_many_tickets_have_been_asked_for_since() {
    let (mut ring, mut smmu) = NativeRing::with_consumer(10).unwrap();
    let tickets: Vec<_> = (0..200)
        .map(|asid| {
            assert_eq!(ring.submit(&[nh_asid(asid)]), 1);
            ring.sync()
        })
        .collect();
    let mut told = false;
    while ring.completed() < tickets[199] {
        smmu.poll_with(|commands| match std::mem::replace(&mut told, true) {
            false => (0, Some(CommandError::Ill)),
            true => (commands.len(), None),
        });
    }
    let failure = Failure { cause: Illegal, command: Some(nh_asid(0)) };
    assert_eq!((ring.failure(tickets[0]), ring.failure(tickets[1])), (Some(failure), None));
}

#[test]
fn what_failed_for_another_between_a_ticket_that_failed_and_the_next_is_not_told_with_that() {
    let mut pair = Pair::new();
    let ticket = pair.fail(1, AtcTimeout, nh_asid(1));
    assert!(pair.rings[1].failure(ticket).is_some());
    pair.fail(0, AtcTimeout, nh_asid(2));
    let ring = &mut pair.rings[1];
    assert_eq!(ring.submit(&[nh_asid(3)]), 1);
    let ticket = ring.sync();
    while ring.completed() < ticket {
        pair.smmu.poll(|_| ());
    }
    assert_eq!(ring.failure(ticket), None);
}
