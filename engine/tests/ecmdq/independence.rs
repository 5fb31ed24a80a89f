//! Queues do not wait for each other: facts sheet, sections 4.3 and 4.4.

use std::mem;
use std::sync::{Arc, Mutex};

use ecmdq_engine::{Command, Token};

use crate::common::*;
use crate::support::*;

/// The CMDQ or an ECMDQ.
enum Queue {
    Cmdq,
    Ecmdq(Ecmdq),
}

impl Queue {
    fn send(&mut self, rig: &mut Rig, commands: &[Command]) {
        match self {
            Self::Cmdq => rig.guests[0].send(commands),
            Self::Ecmdq(queue) => queue.send(commands),
        }
    }

    fn cons(&self, rig: &Rig) -> u32 {
        match self {
            Self::Cmdq => rig.cons(0),
            Self::Ecmdq(queue) => queue.cons(),
        }
    }
}

/// A rig whose VMM keeps every token, and two of its queues: the CMDQ first, last, or not at all.
fn queues(case: usize) -> (Rig, [Queue; 2], Arc<Mutex<Vec<Token>>>) {
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let kept = tokens.clone();
    let on_request = Box::new(move |_, token| kept.lock().unwrap().push(token));
    let (rig, [a, b]) =
        late_host_of(Setup { on_request: Some(on_request), ..setup(case.is_multiple_of(2), 0, 2) });
    let queues = match case / 2 {
        0 => [Queue::Cmdq, Queue::Ecmdq(a)],
        1 => [Queue::Ecmdq(a), Queue::Cmdq],
        _ => [Queue::Ecmdq(a), Queue::Ecmdq(b)],
    };
    (rig, queues, tokens)
}

/// What holds a queue up at its first command.
#[test]
fn a_queue_that_is_held_up_holds_up_no_other() {
    let obstacles = [
        ("a CMD_SYNC that waits for the host", sync()),
        ("an error", illegal()),
        ("a request that waits for the VMM", cfgi_ste(STREAM)),
    ];
    for case in 0..6 {
        for (what, obstacle) in obstacles {
            println!("case {case}: {what}");
            let (mut rig, [mut held, mut free], _tokens) = queues(case);
            held.send(&mut rig, &[nh_asid(1), obstacle, nh_asid(2)]);
            rig.poll_times(3);
            assert_eq!(held.cons(&rig), 1);
            free.send(&mut rig, &[nh_asid(3), sync(), nh_asid(4)]);
            rig.poll_times(3);
            let ahead = if obstacle == sync() { &[1, 2, 3, 4][..] } else { &[1, 3, 4] };
            let expected: Vec<_> = ahead.iter().map(|asid| host_asid(7, *asid)).collect();
            assert_eq!(*rig.host.received(), expected);
            assert_eq!(free.cons(&rig), 1, "up to its own CMD_SYNC");
            // The host synchronises for one queue after the other, where both wait for that.
            let syncs = if obstacle == sync() { 2 } else { 1 };
            for ticket in 1..=syncs {
                rig.host.finish(ticket);
                rig.poll_times(3);
            }
            assert_eq!((free.cons(&rig), rig.host.syncs()), (3, syncs));
            assert_eq!(held.cons(&rig), if obstacle == sync() { 3 } else { 1 });
        }
    }
}

/// Section 4.4: what another queue has not consumed is not waited for.
#[test]
fn a_cmd_sync_waits_for_what_its_own_queue_consumed_and_for_no_more() {
    for case in 0..6 {
        let (mut rig, [mut stopped, mut queue], _tokens) = queues(case);
        stopped.send(&mut rig, &[illegal(), nh_asid(1)]);
        rig.poll_times(2);
        queue.send(&mut rig, &[sync()]);
        rig.poll_times(2);
        assert_eq!((queue.cons(&rig), rig.host.syncs()), (1, 0), "nothing to wait for");
        queue.send(&mut rig, &[nh_asid(2), sync()]);
        rig.poll_times(3);
        assert_eq!((queue.cons(&rig), rig.host.syncs()), (2, 1));
        rig.host.finish(1);
        rig.poll_times(2);
        assert_eq!((queue.cons(&rig), stopped.cons(&rig)), (3, 0));
    }
}

/// The host's first synchronisation covers one queue's command only, and completes that queue's CMD_SYNC only.
#[test]
fn a_cmd_sync_is_not_completed_by_a_synchronisation_before_its_commands() {
    for case in 0..6 {
        let (mut rig, [mut early, mut late], _tokens) = queues(case);
        early.send(&mut rig, &[nh_asid(1), sync()]);
        rig.poll();
        late.send(&mut rig, &[nh_asid(2), sync()]);
        rig.poll();
        rig.host.finish(1);
        rig.poll_times(3);
        assert_eq!((early.cons(&rig), late.cons(&rig), rig.host.syncs()), (2, 1, 2));
        rig.host.finish(2);
        rig.poll();
        assert_eq!(late.cons(&rig), 2);
    }
}

#[test]
fn requests_of_two_queues_are_settled_in_any_order() {
    for case in 0..6 {
        let (mut rig, [mut a, mut b], tokens) = queues(case);
        a.send(&mut rig, &[cfgi_ste(1), nh_asid(1)]);
        rig.poll();
        b.send(&mut rig, &[cfgi_ste(2), nh_asid(2)]);
        rig.poll();
        let [first, second] = mem::take(&mut *tokens.lock().unwrap()).try_into().unwrap();
        second.complete();
        rig.poll();
        assert_eq!((a.cons(&rig), b.cons(&rig)), (0, 2));
        first.complete();
        rig.poll();
        assert_eq!((a.cons(&rig), b.cons(&rig)), (2, 2));
    }
}

#[test]
fn every_queue_completes_its_own_cmd_sync_by_its_own_msi() {
    on_both(2, 2, |mut machine| {
        machine.guest.start(4);
        let mut queues: Vec<_> = (0..16).map(|number| started(&mut machine, number, 4)).collect();
        for round in 0..20 {
            for (number, queue) in queues.iter_mut().enumerate() {
                let at = queue.slot(queue.prod() + 1);
                queue.send(&[nh_asid(number as u64), sync_msi(at, 0)]);
            }
            let at = machine.guest.slot(machine.guest.prod() + 1);
            machine.guest.send(&[nh_asid(16), sync_msi(at, 0)]);
            machine.settle();
            let mut received = machine.take_received();
            assert_eq!(received.pop(), Some(HOST_SYNC), "one synchronisation, behind everything");
            received.sort_by_key(|command| command.0);
            assert_eq!(
                received,
                [&[], &(0..17).map(|asid| host_asid(7, asid)).collect::<Vec<_>>()[..]].concat()
            );
            let done = (2 * round + 2) % 32;
            for queue in &queues {
                assert_eq!(queue.cons_word(), 0x8000_0000 | done);
                assert_eq!(machine.guest.u32_at(queue.slot(done + 31)), 0, "the MSI");
            }
            assert_eq!((machine.guest.cons(), machine.guest.u32_at(at)), (done, 0));
        }
        assert_eq!(machine.guest.stats.read().syncs, 20 * 17);
    });
}
