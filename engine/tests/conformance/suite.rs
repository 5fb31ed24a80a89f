//! The contract, a function a clause. All of it is deterministic.

use ecmdq_engine::Command;
use ecmdq_engine::host::{Cause, Ticket};
use proptest::prelude::*;

use super::subject::{Device, Subject};

/// Commands that can be told apart.
fn commands(from: u64, n: usize) -> Vec<Command> {
    (from..).take(n).map(|i| Command([0x11 | 7 << 32 | i << 48, 0])).collect()
}

const ATC_INV: Command = Command([0x42 << 32 | 0x40, 52]);

/// Submits all, and lets the device work whenever the queue is full.
fn submit_all(subject: &mut dyn Subject, commands: &[Command]) {
    let mut sent = 0;
    for _ in 0..10_000 {
        sent += subject.queue().submit(&commands[sent..]);
        if sent == commands.len() {
            return;
        }
        subject.work();
    }
    panic!("the queue stays full");
}

/// A new ticket, once the device has worked and it has been seen reached or failed.
fn settle(subject: &mut dyn Subject) -> (Ticket, Option<Cause>) {
    let ticket = subject.queue().sync();
    for _ in 0..10 {
        subject.work();
        let reached = subject.queue().completed() >= ticket;
        if let Some(failure) = subject.queue().failure(ticket) {
            return (ticket, Some(failure.cause));
        }
        if reached {
            return (ticket, None);
        }
    }
    panic!("the ticket is neither reached nor failed");
}

pub fn takes_commands_in_order_and_says_how_many(subject: &mut dyn Subject) {
    let sent = commands(0, 10);
    assert_eq!(subject.queue().submit(&[]), 0);
    assert_eq!(subject.queue().submit(&sent[..3]), 3);
    assert_eq!(subject.queue().submit(&sent[3..]), 7);
    assert_eq!(subject.executed(), [], "the device has not worked");
    assert_eq!(settle(subject).1, None);
    assert_eq!(subject.executed(), sent);
}

pub fn a_full_queue_takes_less_and_goes_on_later(subject: &mut dyn Subject) {
    let sent = commands(0, 1000);
    let taken = subject.queue().submit(&sent);
    assert!((subject.capacity()..1000).contains(&taken), "{taken} of 1000");
    assert_eq!(subject.queue().submit(&sent[taken..]), 0, "it is full");
    submit_all(subject, &sent[taken..]);
    assert_eq!(settle(subject).1, None);
    assert_eq!(subject.executed(), sent);
}

pub fn a_ticket_is_reached_when_all_before_it_was_executed(subject: &mut dyn Subject) {
    let before = subject.queue().sync();
    assert!(subject.queue().completed() >= before, "nothing was submitted");
    subject.queue().submit(&commands(0, 5));
    let ticket = subject.queue().sync();
    assert!(ticket > before);
    assert!(subject.queue().completed() < ticket, "the device has not worked");
    assert_eq!(subject.queue().failure(ticket), None);
    // What comes later does not count.
    subject.queue().submit(&commands(5, 3));
    subject.work();
    assert!(subject.queue().completed() >= ticket);
    assert_eq!(subject.executed()[..5], commands(0, 5));
    let next = subject.queue().sync();
    assert!(next > ticket, "there is something new");
    subject.work();
    assert!(subject.queue().completed() >= next);
}

pub fn a_full_queue_still_gives_a_ticket(subject: &mut dyn Subject) {
    for round in 0..20 {
        let sent = commands(round * 1000, 1000);
        let taken = subject.queue().submit(&sent);
        assert!(taken > 0);
        let ticket = subject.queue().sync();
        assert!(subject.queue().completed() < ticket);
        subject.work();
        assert!(subject.queue().completed() >= ticket);
        assert_eq!(subject.executed().last(), sent[..taken].last());
    }
}

pub fn with_nothing_new_a_ticket_is_shared(subject: &mut dyn Subject) {
    subject.queue().submit(&commands(0, 1));
    let ticket = subject.queue().sync();
    assert_eq!(subject.queue().sync(), ticket);
    subject.work();
    assert_eq!(subject.queue().sync(), ticket, "also when it has been reached");
    assert!(subject.queue().completed() >= ticket);
}

pub fn anything_in_any_order_is_executed_once_and_tickets_tell_the_truth<S: Subject>(new: impl Fn() -> S) {
    let operations = prop::collection::vec((0..4_u8, 0..40_usize), 1..80);
    proptest!(ProptestConfig::with_cases(64), |(operations in operations)| {
        let mut subject = new();
        let mut sent = Vec::new();
        // Each ticket, and how much it covers.
        let mut tickets: Vec<(Ticket, usize)> = Vec::new();
        for (operation, n) in operations {
            match operation {
                0 | 1 => {
                    let more = commands(sent.len() as u64, n);
                    let taken = subject.queue().submit(&more);
                    sent.extend_from_slice(&more[..taken]);
                }
                2 => {
                    let ticket = subject.queue().sync();
                    prop_assert!(tickets.last().is_none_or(|(last, _)| *last <= ticket));
                    tickets.push((ticket, sent.len()));
                }
                _ => subject.work(),
            }
            let completed = subject.queue().completed();
            for (ticket, covers) in &tickets {
                prop_assert!(completed < *ticket || subject.executed().len() >= *covers);
            }
        }
        prop_assert_eq!(settle(&mut subject).1, None);
        prop_assert_eq!(subject.executed(), &sent[..]);
    });
}

/// CFGI_CD, TLBI_NH_ASID and ATC_INV: a cache is filled through those of the commands before.
const RANKS: [Command; 3] = [Command([0x42 << 32 | 0x05, 1]), Command([0x11 | 7 << 32, 0]), ATC_INV];

/// Every order of four groups of commands, each of one of the first `kinds` kinds, which are those that the device takes.
pub fn what_is_submitted_behind_a_sync_begins_behind_it<S: Subject>(new: impl Fn() -> S, kinds: usize) {
    for number in 0..kinds.pow(4) {
        let ranks = [0, 1, 2, 3].map(|place| number / kinds.pow(place) % kinds);
        let mut subject = new();
        let mut last = Ticket::default();
        for (place, rank) in ranks.into_iter().enumerate() {
            let group = [RANKS[rank]; 2];
            if place % 2 == number % 2 {
                let (taken, ticket) = subject.queue().submit_and_sync(&group);
                assert_eq!(taken, group.len());
                last = ticket.expect("all were taken");
            } else {
                assert_eq!(subject.queue().submit(&group), group.len());
                subject.meddle();
                last = subject.queue().sync();
            }
        }
        subject.work();
        assert!(subject.queue().completed() >= last);
        let groups = subject.groups();
        let sent: Vec<_> = ranks.into_iter().flat_map(|rank| [RANKS[rank]; 2]).collect();
        assert_eq!(groups.concat(), sent);
        // The number of the group that each command was in.
        let in_group: Vec<_> =
            (0..).zip(&groups).flat_map(|(n, group)| group.iter().map(move |_| n)).collect();
        let all = 0..ranks.len();
        for (before, behind) in all.clone().flat_map(|before| all.clone().map(move |behind| (before, behind)))
        {
            if before < behind && ranks[before] < ranks[behind] {
                assert!(in_group[2 * before + 1] < in_group[2 * behind], "it begins too early: {groups:x?}");
            }
        }
    }
}

pub fn an_illegal_command_is_left_out_and_named(subject: &mut dyn Subject) {
    let sent = commands(0, 9);
    subject.set_device(Device::Refuses(sent[4]));
    subject.queue().submit(&sent);
    let ticket = subject.queue().sync();
    let failure = (0..10).find_map(|_| {
        subject.work();
        subject.queue().completed();
        subject.queue().failure(ticket)
    });
    let failure = failure.expect("the ticket fails");
    assert_eq!((failure.cause, failure.command), (Cause::Illegal, Some(sent[4])));
    assert_eq!(settle(subject).1, None, "it goes on");
    assert_eq!(subject.executed(), [&sent[..4], &sent[5..]].concat());
    submit_all(subject, &commands(9, 100));
    assert_eq!(settle(subject).1, None);
}

pub fn an_atc_timeout_fails_a_ticket_and_the_next_is_reached(subject: &mut dyn Subject) {
    subject.set_device(Device::TimesOut);
    let sent = [&commands(0, 2)[..], &[ATC_INV], &commands(2, 2)].concat();
    subject.queue().submit(&sent);
    assert_eq!(settle(subject).1, Some(Cause::AtcTimeout));
    assert_eq!(settle(subject).1, None, "once is enough");
    let others = |executed: &[Command]| executed.iter().filter(|c| **c != ATC_INV).count();
    assert_eq!(others(subject.executed()), 4, "all but the ATC_INV has been executed");
}

pub fn a_dead_device_fails_every_ticket_and_never_blocks(subject: &mut dyn Subject) {
    subject.queue().submit(&commands(0, 3));
    subject.set_device(Device::Gone);
    assert_eq!(settle(subject).1, Some(Cause::DeviceGone));
    for round in 1..200 {
        let taken = subject.queue().submit(&commands(round * 100, 100));
        assert!(taken > 0, "what will never be executed does not fill the queue");
        assert_eq!(settle(subject).1, Some(Cause::DeviceGone));
    }
    assert_eq!(subject.executed(), []);
}
