//! Everything that is compared carries all commands, and completes each CMD_SYNC.

use std::time::Duration;

use ecmdq_bench::compare::{
    Array, Deque, Engine, Executed, Guests, Lane, Limit, Load, Pair, Rtrb, Schedule, Transport, Trap,
    Virtqueue, ping_pong,
};
use ecmdq_bench::trace;
use hdrhistogram::Histogram;

type Open = fn(usize) -> Box<dyn Lane>;

fn open<T: Transport + 'static>(queues: usize) -> Box<dyn Lane> {
    Box::new(Pair::open::<T>(queues).expect("memory"))
}

const WAYS: [(&str, Open); 10] = [
    ("limit", open::<Limit>),
    ("engine", open::<Engine>),
    ("guests", open::<Guests>),
    ("virtqueue 1", open::<Virtqueue<1>>),
    ("virtqueue 16", open::<Virtqueue<16>>),
    ("virtqueue 64", open::<Virtqueue<64>>),
    ("ArrayQueue", open::<Array>),
    ("rtrb", open::<Rtrb>),
    ("Mutex<VecDeque>", open::<Deque>),
    ("trap", open::<Trap>),
];

#[test]
fn every_command_reaches_the_host() {
    for (name, open) in WAYS {
        for queues in [1, 3] {
            let mut lane = open(queues);
            // Odd sizes, so that rings wrap within groups and chains are not full.
            for (batch, groups) in [(1, 50), (17, 100), (254, 12)] {
                let before = lane.executed();
                let (sent, _) = lane.run(&Load::stream(batch), groups);
                assert_eq!(sent, (batch * groups) as u64, "{name}");
                assert_eq!(
                    lane.executed().commands - before.commands,
                    sent,
                    "{name}, {queues} queues, {batch}"
                );
            }
        }
    }
}

#[test]
fn every_cmd_sync_is_covered_by_one_of_the_host() {
    for (name, open) in WAYS.into_iter().filter(|(name, _)| *name != "limit") {
        let mut lane = open(2);
        let (sent, _) = lane.run(&Load::synced(2), 60);
        assert_eq!(sent, 180, "{name}");
        let Executed { commands, syncs } = lane.executed();
        // A queue waits for each of its CMD_SYNCs: one of the host serves two at most.
        assert!(commands == 120 && (30..=60).contains(&syncs), "{name}: {commands} {syncs}");
    }
}

#[test]
fn recorded_streams_go_through_everything() {
    let stream = trace::named("ats-msi-ril-2cpu");
    assert_eq!(stream.len(), 20_000);
    for (name, open) in WAYS {
        let mut lane = open(1);
        for load in [Load::recorded(&stream), Load::crowded(&stream, 64)] {
            let before = lane.executed().commands;
            let (sent, _) = lane.run(&load, 150);
            let executed = lane.executed().commands - before;
            assert!(sent >= 150 && executed > 0 && executed <= sent, "{name}: {executed} of {sent}");
        }
    }
}

#[test]
fn each_request_is_timed_once() {
    let schedule = Schedule { interval: Duration::from_micros(1), requests: 200 };
    let histogram = || Histogram::<u64>::new_with_bounds(1, 1 << 40, 3).expect("bounds");
    for (name, open) in WAYS {
        let mut times = histogram();
        open(1).round_trips(1, schedule, &mut times);
        assert_eq!(times.len(), 200, "{name}");
    }
    let mut times = histogram();
    ping_pong(schedule, &mut times);
    assert_eq!(times.len(), 200);
}
