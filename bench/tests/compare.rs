//! Everything that is compared carries all commands, and completes each CMD_SYNC.

use std::time::Duration;

use ecmdq_bench::compare::{
    BesideIdle, Executed, Guests, Lane, Limit, Load, OneCmdq, Open, OwnEcmdqs, Ran, Schedule, WAYS, open,
    ping_pong,
};
use ecmdq_bench::trace;
use hdrhistogram::Histogram;

/// The engine with a guest for each queue, too.
fn ways() -> impl Iterator<Item = (&'static str, Open)> {
    WAYS.into_iter().chain([("guests", open::<Guests> as Open)])
}

fn lane(open: Open, queues: usize) -> Box<dyn Lane> {
    open(queues).expect("memory")
}

#[test]
fn every_command_reaches_the_host() {
    for (name, open) in ways() {
        for queues in [1, 3] {
            let mut lane = lane(open, queues);
            // Odd sizes, so that rings wrap within groups and chains are not full.
            for (batch, groups) in [(1, 50), (17, 100), (254, 12)] {
                let before = lane.executed();
                let Ran { commands: sent, .. } = lane.run(&Load::stream(batch), groups);
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
    for (name, open) in ways().filter(|(name, _)| *name != "limit") {
        let mut lane = lane(open, 2);
        let Ran { commands: sent, .. } = lane.run(&Load::synced(2), 60);
        assert_eq!(sent, 180, "{name}");
        let Executed { commands, syncs } = lane.executed();
        // A queue waits for each of its CMD_SYNCs: one of the host serves two at most.
        assert!(commands == 120 && (30..=60).contains(&syncs), "{name}: {commands} {syncs}");
    }
}

#[test]
fn vcpus_that_do_not_wait_for_each_other_send_all_in_all() {
    let ways: [(&str, Open); 5] = [
        ("one CMDQ", open::<OneCmdq<0>>),
        ("one CMDQ, late", open::<OneCmdq<20_000>>),
        ("an ECMDQ each", open::<OwnEcmdqs<0>>),
        ("an ECMDQ each, late", open::<OwnEcmdqs<20_000>>),
        ("raw rings", open::<Limit>),
    ];
    for (name, open) in ways {
        // More groups than the queue has room for.
        for (vcpus, groups) in [(1, 700), (5, 1000)] {
            let mut lane = lane(open, vcpus);
            let Ran { commands: sent, time, .. } = lane.run(&Load::of_vcpus(1), groups);
            assert_eq!(sent, 2 * groups as u64, "{name}");
            let Executed { commands, syncs } = lane.executed();
            match name {
                "raw rings" => assert_eq!((commands, syncs), (sent, 0)),
                _ => assert!(
                    commands == groups as u64 && (groups / vcpus..=groups).contains(&(syncs as usize))
                ),
            }
            if name.ends_with("late") {
                assert!(time >= Duration::from_micros(20) * syncs as u32, "{name}: {syncs} in {time:?}");
            }
        }
    }
}

#[test]
fn of_guests_beside_idle_ones_one_sends() {
    let mut lane = lane(open::<BesideIdle>, 5);
    assert_eq!(lane.run(&Load::stream(17), 100).commands, 1700);
    assert_eq!(lane.executed().commands, 1700);
}

#[test]
fn recorded_streams_go_through_everything() {
    let stream = trace::named("ats-msi-ril-2cpu");
    assert_eq!(stream.len(), 20_000);
    for (name, open) in ways() {
        let mut lane = lane(open, 1);
        for load in [Load::recorded(&stream), Load::crowded(&stream, 64)] {
            let before = lane.executed().commands;
            let Ran { commands: sent, .. } = lane.run(&load, 150);
            let executed = lane.executed().commands - before;
            assert!(sent >= 150 && executed > 0 && executed <= sent, "{name}: {executed} of {sent}");
        }
    }
}

#[test]
fn each_request_is_timed_once() {
    let schedule = Schedule { interval: Duration::from_micros(1), requests: 200 };
    let histogram = || Histogram::<u64>::new_with_bounds(1, 1 << 40, 3).expect("bounds");
    for (name, open) in ways() {
        let mut times = histogram();
        lane(open, 1).round_trips(1, schedule, &mut times);
        assert_eq!(times.len(), 200, "{name}");
    }
    let mut times = histogram();
    ping_pong(schedule, &mut times);
    assert_eq!(times.len(), 200);
}
