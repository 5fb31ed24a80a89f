//! Tickets tell the truth, whatever the kernel does: several outstanding, refused commands, silent endpoints, failing calls.

use std::env;

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd;
use ecmdq_engine::host::{Cause, HostQueue, Ticket};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rustix::io::Errno;

use crate::kernel::{GENERATIONS, Generation, Kernel};

/// Commands with a ticket behind them, of which one may be refused, and one may be an ATC_INV.
#[derive(Clone, Debug)]
struct Batch {
    len: usize,
    refused: Option<Index>,
    atc_inv: Option<Index>,
    /// Whether the executor gets to do something before the next batch.
    steps: usize,
}

fn batch() -> impl Strategy<Value = Batch> {
    let rarely = || prop::option::weighted(0.2, any::<Index>());
    (1..100_usize, rarely(), rarely(), 0..4_usize).prop_map(|(len, refused, atc_inv, steps)| Batch {
        len,
        refused,
        atc_inv,
        steps,
    })
}

/// What was submitted, and what is true of it.
#[derive(Default)]
struct Sent {
    all: Vec<Command>,
    refused: Vec<Command>,
    atc_invs: Vec<Command>,
    tickets: Vec<(Ticket, usize)>,
}

impl Sent {
    /// The commands of a batch: no two of all batches are alike.
    fn add(&mut self, batch: &Batch) -> Vec<Command> {
        let number = self.tickets.len() as u64;
        let mut commands: Vec<_> =
            (0..batch.len as u64).map(|i| Command([0x12 | i << 48, number << 12])).collect();
        if let Some(at) = batch.atc_inv {
            *at.get_mut(&mut commands) = Command([0x42 << 32 | 0x40, number << 12]);
            self.atc_invs.push(*at.get(&commands));
        }
        if let Some(at) = batch.refused {
            self.refused.push(*at.get(&commands));
        }
        self.all.extend_from_slice(&commands);
        commands
    }
}

/// `ECMDQ_CASES` is the number of cases.
fn cases() -> u32 {
    env::var("ECMDQ_CASES").map_or(256, |cases| cases.parse().expect("ECMDQ_CASES is a number"))
}

fn check(
    generation: Generation,
    batches: &[Batch],
    silent: bool,
    faults: Vec<Errno>,
) -> Result<(), TestCaseError> {
    let kernel = Kernel::new(generation);
    kernel.set_silent(silent);
    let may_time_out = silent || faults.contains(&Errno::TIMEDOUT);
    kernel.fail(faults);
    let (mut queue, mut executor) = iommufd::queue(kernel.clone(), 10).unwrap();
    let (mut sent, mut illegal, mut late) = (Sent::default(), Vec::new(), 0);
    for batch in batches {
        let commands = sent.add(batch);
        if let Some(refused) = batch.refused {
            kernel.refuse(*refused.get(&commands));
        }
        prop_assert_eq!(queue.submit(&commands), commands.len());
        let ticket = queue.sync();
        sent.tickets.push((ticket, sent.all.len()));
        (0..batch.steps).for_each(|_| {
            executor.step();
        });
    }
    let mut outstanding = sent.tickets.clone();
    let mut idle = 0;
    while !outstanding.is_empty() {
        executor.step();
        let completed = queue.completed();
        let (ticket, covers) = outstanding[0];
        idle += 1;
        prop_assert!(idle < 500, "neither reached nor failed");
        if let Some(failure) = queue.failure(ticket) {
            match failure.cause {
                Cause::Illegal => illegal.extend(failure.command),
                Cause::AtcTimeout => late += 1,
                other => prop_assert!(false, "{:?}", other),
            }
        } else if completed >= ticket {
            let executed = kernel.executed();
            for command in &sent.all[..covers] {
                let done = executed.contains(command)
                    || illegal.contains(command)
                    || late > 0 && sent.atc_invs.contains(command);
                prop_assert!(done, "{} was lost", command);
            }
        } else {
            continue;
        }
        idle = 0;
        outstanding.remove(0);
        if outstanding.is_empty() && queue.sync() > ticket {
            // The last one has failed: what it covered is done when this one is reached.
            outstanding.push((queue.sync(), sent.all.len()));
        }
    }
    prop_assert_eq!(&illegal, &sent.refused, "each is named, in order, and no other");
    prop_assert!(late == 0 || may_time_out && !sent.atc_invs.is_empty());
    let executed = kernel.executed();
    let is_told = |command| executed.contains(command) || illegal.contains(command) || late > 0;
    prop_assert!(sent.atc_invs.iter().all(is_told), "an ATC_INV was left out, and nobody was told");
    prop_assert!(sent.refused.iter().all(|command| !executed.contains(command)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn a_ticket_that_is_reached_covers_what_was_executed_or_told(
        batches in vec(batch(), 1..8),
        generation in select(GENERATIONS.to_vec()),
        silent in any::<bool>(),
        faults in vec(select(vec![Errno::NOMEM, Errno::INTR, Errno::AGAIN, Errno::TIMEDOUT]), 0..7),
    ) {
        check(generation, &batches, silent, faults)?;
    }
}
