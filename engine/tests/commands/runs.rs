//! One odd command in a run of equal ones: every place, every bit.

use ecmdq_engine::Command;
use ecmdq_engine::rules::End;

use crate::support::*;

/// Commands that a run may be of: to the host, to nowhere, and dropped.
const OF: [[u64; 2]; 16] = [
    [0x0000_0001_0000_3801, 0],
    [0x0000_0001_0000_5005, 1],
    [0x8000_0000_0000_0006, 0],
    [0x0000_0005_0000_0006, 0],
    [0x0000_1234_0000_0010, 0],
    [0x0056_1234_0000_0011, 0],
    [0x0056_1234_0000_0012, 0xffff_8000_1234_5001],
    [0x0056_1234_0100_5012, 0xffff_8000_1234_5701],
    [0x0056_1234_0000_5012, 0xffff_8000_1234_4900],
    [0x0000_1234_0000_0013, 0x0000_8000_1234_4a01],
    [0x0000_1234_0020_0013, 0x0000_8000_1234_0b80],
    // One bit less, and it is a range of one page.
    [0x0000_1234_0000_1013, 0x0000_8000_1234_5401],
    [0x0000_1234_0000_0013, 0x0000_8000_1234_5600],
    [0x0000_0000_0000_0030, 0],
    // One bit more, and its size is too large.
    [0x0000_0001_0000_0040, 0x1234_5678_9abc_d034],
    [0x0000_0001_0000_3a40, 0x1234_5678_9abc_d00c],
];

/// What a run of `length` commands becomes, with an odd one at `at`.
fn check(engine: &Engine, [common, odd]: [&(Command, Alone); 2], length: usize, at: usize) {
    let mut batch = vec![common.0; length];
    batch[at] = odd.0;
    let goes_on = odd.1.end == End::Batch;
    let behind = if goes_on { length - at - 1 } else { 0 };
    let mut expected = common.1.host.repeat(at);
    expected.extend(&odd.1.host);
    expected.extend(common.1.host.repeat(behind));
    let mut to = vec![Command::default(); length];
    let applied = engine.rules.apply(&engine.streams, &batch, &mut to);
    let what = format!("{} at {at} of {length} {}", odd.0, common.0);
    assert_eq!(applied.taken, at + odd.1.taken + behind, "{what}");
    assert_eq!(to[..applied.host], expected, "{what}");
    assert!(to[applied.host..].iter().all(|command| *command == Command::default()), "{what}");
    assert_eq!(applied.dropped, common.1.dropped * (at + behind) + odd.1.dropped, "{what}");
    assert_eq!(applied.end, odd.1.end, "{what}");
}

fn with_alone(engine: &Engine, words: [u64; 2]) -> (Command, Alone) {
    (Command(words), engine.alone(Command(words)))
}

fn every_bit_at(lengths: &[usize], places: impl Fn(usize) -> Vec<usize>) {
    let engine = Engine::new(On::ALL);
    for template in OF {
        let common = with_alone(&engine, template);
        assert_eq!(common.1.end, End::Batch);
        for bit in 0..128 {
            let odd = with_alone(&engine, turned(template, [bit]));
            for length in lengths {
                places(*length).into_iter().for_each(|at| check(&engine, [&common, &odd], *length, at));
            }
        }
    }
}

#[test]
fn every_bit_at_every_place_of_short_runs() {
    every_bit_at(&[7, 8, 9, 15, 16, 17], |length| (0..length).collect());
}

#[test]
fn every_bit_at_some_places_of_long_runs() {
    every_bit_at(&[40, 63, 64], |length| vec![0, 7, 8, 31, length - 2, length - 1]);
}

#[test]
fn another_command_at_every_place_of_a_run_of_every_length() {
    let engine = Engine::new(On::ALL);
    let odd = [[0x0000_0000_0000_0046, 0], [0x0000_0009_0000_0006, 0]];
    for common in OF.map(|template| with_alone(&engine, template)) {
        for odd in odd.map(|words| with_alone(&engine, words)) {
            for length in 1..=64 {
                (0..length).for_each(|at| check(&engine, [&common, &odd], length, at));
            }
        }
    }
}

#[test]
fn an_illegal_command_ends_a_run_before_itself_and_nothing_behind_it_is_sent() {
    let engine = Engine::new(On::ALL);
    for length in 1..=64 {
        for at in 0..length {
            let mut batch = vec![Command([0x11, 0]); length];
            batch[at] = Command([0x111, 0]);
            let mut to = vec![Command::default(); length];
            let applied = engine.rules.apply(&engine.streams, &batch, &mut to);
            assert_eq!((applied.taken, applied.host), (at, at));
            assert!(matches!(applied.end, End::Illegal(rejected) if rejected.command == batch[at]));
        }
    }
}

#[test]
fn a_run_stops_exactly_where_the_room_ends() {
    let engine = Engine::new(On::ALL);
    for room in 0..=64 {
        let mut to = vec![Command::default(); room];
        let applied = engine.rules.apply(&engine.streams, &[Command([0x10, 0]); 64], &mut to);
        assert_eq!((applied.taken, applied.host, applied.end), (room, room, End::Batch));
    }
}

#[test]
fn what_needs_no_room_is_taken_without_room() {
    let engine = Engine::new(On::ALL);
    let batch = [[0x01, 0], [0x0000_0009_0000_0006, 0], [0x46, 0]].map(Command);
    let applied = engine.rules.apply(&engine.streams, &batch, &mut []);
    assert_eq!((applied.taken, applied.host, applied.dropped), (3, 0, 1));
    assert!(matches!(applied.end, End::Sync(_)));
}
