//! Errors of a host ring: the SMMU's entries are the producers' from the error to its acknowledgement.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;

use ecmdq_engine::Command;
use ecmdq_engine::host::{Cause, Failure, HostQueue, NativeRing, RingFormat, Ticket};

use super::host_ring::{CMDQ, CONS, GERROR, GERRORN, PROD, entry, layout};
use super::memory::Memory;
use super::support::{index, until};
use crate::common::{CERROR_ILL, CMDQ_ERR, ERR, HOST_SYNC, illegal, nh_page};

/// An SMMU by plain accesses: takes entries until there were `n` that it could execute, with what stood in place of the
/// illegal ones, which it tells of.
fn smmu(memory: &Memory, format: RingFormat, n: usize) -> Vec<Command> {
    let (mut cons, mut error, mut executed) = (0, 0, Vec::new());
    while executed.len() < n {
        memory.wait(PROD, Acquire, |prod| index(prod & 0x1f) != cons);
        if entry(memory, cons) == illegal() {
            match format {
                RingFormat::Cmdq { .. } => {
                    error ^= CMDQ_ERR;
                    // Relaxed: GERROR orders it.
                    memory.store(CONS, CERROR_ILL << 24 | cons, Relaxed);
                    memory.store(GERROR, error, Release);
                    memory.wait(GERRORN, Acquire, |word| word == error);
                }
                RingFormat::Ecmdq => {
                    error ^= ERR;
                    memory.store(CONS, error | CERROR_ILL << 24 | cons, Release);
                    memory.wait(PROD, Acquire, |word| word & ERR == error);
                }
            }
        }
        executed.push(entry(memory, cons));
        cons = index(cons + 1);
        let flags = if format == RingFormat::Ecmdq { error } else { 0 };
        memory.store(CONS, flags | cons, Release);
    }
    executed
}

/// A ticket that is reached; the failures that a producer was told of before.
fn reach(ring: &mut NativeRing, ticket: Ticket) -> Vec<Failure> {
    until(|| ring.completed() >= ticket);
    std::iter::from_fn(|| ring.failure(ticket)).collect()
}

const ILLEGAL: Failure = Failure { cause: Cause::Illegal, command: Some(Command([0xff, 0])) };

#[test]
fn an_smmu_that_sees_the_acknowledgement_sees_the_entry_mended() {
    for format in [CMDQ, RingFormat::Ecmdq] {
        let (memory, layout) = layout(format, false);
        let mut ring = NativeRing::new(layout, 1).unwrap().pop().unwrap();
        thread::scope(|scope| {
            let smmu = scope.spawn(|| smmu(&memory, format, 40));
            for round in 0..10 {
                let (taken, ticket) = ring.submit_and_sync(&[nh_page(round), illegal(), nh_page(round)]);
                assert_eq!(taken, 3);
                assert_eq!(reach(&mut ring, ticket.unwrap()), [ILLEGAL]);
            }
            let executed = smmu.join().unwrap();
            let expected: Vec<_> =
                (0..10).flat_map(|round| [nh_page(round), HOST_SYNC, nh_page(round), HOST_SYNC]).collect();
            assert_eq!(executed, expected);
        });
    }
}

#[test]
fn every_producer_that_waits_behind_an_error_is_told_whoever_mended_it() {
    let (memory, layout) = layout(CMDQ, false);
    let mut rings = NativeRing::new(layout, 2).unwrap();
    let (mut second, mut first) = (rings.pop().unwrap(), rings.pop().unwrap());
    // Both have asked before the SMMU begins, and the tickets of both cover the command that is illegal.
    assert_eq!(second.submit(&[nh_page(1)]), 1);
    let (_, first_ticket) = first.submit_and_sync(&[illegal()]);
    let (_, second_ticket) = second.submit_and_sync(&[nh_page(2)]);
    thread::scope(|scope| {
        scope.spawn(|| smmu(&memory, CMDQ, 5));
        let told = [(first, first_ticket), (second, second_ticket)]
            .map(|(mut ring, ticket)| scope.spawn(move || reach(&mut ring, ticket.unwrap())));
        assert_eq!(told.map(|told| told.join().unwrap()), [vec![ILLEGAL], vec![ILLEGAL]]);
    });
}
