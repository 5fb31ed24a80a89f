//! The map from guest StreamIDs to host StreamIDs.

mod common;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use common::SetOnDrop;
use ecmdq_engine::{HostStreamId, StreamId, StreamMap, StreamMapError};
use proptest::prelude::*;

fn insert(map: &StreamMap, guest: u32, host: u32) -> Result<(), StreamMapError> {
    map.insert(StreamId(guest), HostStreamId(host))
}

fn get(map: &StreamMap, guest: u32) -> Option<u32> {
    map.get(StreamId(guest)).map(|host| host.0)
}

#[test]
fn a_stream_is_found_under_its_own_name_only() {
    let map = StreamMap::new(4);
    assert_eq!(get(&map, 5), None);
    insert(&map, 5, 50).unwrap();
    assert_eq!(
        (get(&map, 5), get(&map, 4), get(&map, 50), get(&map, u32::MAX)),
        (Some(50), None, None, None)
    );
}

#[test]
fn insert_replaces() {
    let map = StreamMap::new(1);
    insert(&map, 5, 50).unwrap();
    insert(&map, 5, 51).unwrap();
    assert_eq!(get(&map, 5), Some(51));
}

#[test]
fn remove_says_whether_there_was_such_a_stream() {
    let map = StreamMap::new(2);
    insert(&map, 5, 50).unwrap();
    assert!(map.remove(StreamId(5)));
    assert_eq!(get(&map, 5), None);
    assert!(!map.remove(StreamId(5)));
    assert!(!map.remove(StreamId(6)));
}

#[test]
fn a_removed_stream_can_come_back_in_a_full_map() {
    let map = StreamMap::new(2);
    insert(&map, 1, 10).unwrap();
    insert(&map, 2, 20).unwrap();
    map.remove(StreamId(1));
    insert(&map, 1, 11).unwrap();
    assert_eq!((get(&map, 1), get(&map, 2)), (Some(11), Some(20)));
}

#[test]
fn a_full_map_refuses_new_streams_and_still_replaces() {
    let map = StreamMap::new(2);
    insert(&map, 1, 10).unwrap();
    insert(&map, 2, 20).unwrap();
    let full = insert(&map, 3, 30).unwrap_err();
    assert_eq!(full, StreamMapError::Full { capacity: 2 });
    assert_eq!(full.to_string(), "the stream map is full: it was made for 2 streams");
    insert(&map, 2, 21).unwrap();
    assert_eq!((get(&map, 2), get(&map, 3)), (Some(21), None));
}

#[test]
fn a_map_for_no_streams_has_none() {
    let map = StreamMap::new(0);
    assert_eq!(insert(&map, 0, 0), Err(StreamMapError::Full { capacity: 0 }));
    assert_eq!(get(&map, 0), None);
}

#[test]
fn stream_id_all_ones_is_reserved_on_both_sides() {
    let map = StreamMap::new(2);
    let reserved = insert(&map, u32::MAX, 1).unwrap_err();
    assert_eq!(reserved, StreamMapError::Reserved);
    assert_eq!(reserved.to_string(), "StreamID 0xffffffff cannot be mapped");
    assert_eq!(insert(&map, 1, u32::MAX), Err(StreamMapError::Reserved));
    assert_eq!((get(&map, u32::MAX), get(&map, 1)), (None, None));
    insert(&map, u32::MAX - 1, u32::MAX - 1).unwrap();
    assert_eq!(get(&map, u32::MAX - 1), Some(u32::MAX - 1));
}

#[test]
fn a_map_of_pairs_holds_them_all() {
    let pairs = [(1, 10), (2, 20), (1, 11)].map(|(guest, host)| (StreamId(guest), HostStreamId(host)));
    let map = StreamMap::from_pairs(pairs).unwrap();
    assert_eq!((get(&map, 1), get(&map, 2)), (Some(11), Some(20)));
    let reserved = StreamMap::from_pairs([(StreamId(u32::MAX), HostStreamId(0))]).unwrap_err();
    assert_eq!(reserved, StreamMapError::Reserved);
}

/// Fills the map for `capacity` streams that are `stride` apart, so that they collide in some way or other.
fn filled(capacity: u32, stride: u32) -> StreamMap {
    let map = StreamMap::new(capacity as usize);
    (0..capacity).for_each(|n| insert(&map, n.wrapping_mul(stride), n).unwrap());
    map
}

#[test]
fn removal_does_not_hide_streams_that_collided_with_the_removed_one() {
    for stride in [1, 8, 0x80, 0x100, 0x1_0000, 0x9e37_79b9] {
        let map = filled(500, stride);
        for n in (0..500u32).step_by(2) {
            assert!(map.remove(StreamId(n.wrapping_mul(stride))));
        }
        for n in 0..500u32 {
            let expected = (n % 2 == 1).then_some(n);
            assert_eq!(get(&map, n.wrapping_mul(stride)), expected, "stride {stride:#x}");
        }
    }
}

#[test]
fn readers_see_the_old_or_the_new_host_stream_and_nothing_else() {
    let map = filled(64, 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = SetOnDrop(&stop);
            for guest in (0..64).cycle().take(200_000) {
                let seen = get(&map, guest);
                assert!(seen.is_none_or(|host| host == guest || host == guest + 100), "{guest}: {seen:?}");
                assert_eq!(get(&map, guest + 64), None, "a stream that never was");
            }
        });
        for guest in (0..64).cycle().take_while(|_| !stop.load(Relaxed)) {
            insert(&map, guest, guest + 100).unwrap();
            assert_eq!(get(&map, guest), Some(guest + 100));
            assert!(map.remove(StreamId(guest)));
            assert_eq!(get(&map, guest), None);
            insert(&map, guest, guest).unwrap();
        }
    });
}

#[derive(Clone, Debug)]
enum Change {
    Insert(u32, u32),
    Remove(u32),
}

fn change() -> impl Strategy<Value = Change> {
    let stream = || prop_oneof![0u32..24, (0u32..24).prop_map(|n| n << 7), Just(u32::MAX)];
    prop_oneof![
        2 => (stream(), stream()).prop_map(|(guest, host)| Change::Insert(guest, host)),
        1 => stream().prop_map(Change::Remove),
    ]
}

proptest! {
    /// Against a hash map, and the set of streams that ever were in it.
    #[test]
    fn it_behaves_like_a_hash_map(changes in proptest::collection::vec(change(), 0..200)) {
        const CAPACITY: usize = 16;
        let map = StreamMap::new(CAPACITY);
        let mut model: HashMap<u32, Option<u32>> = HashMap::new();
        for change in changes {
            match change {
                Change::Insert(guest, host) => {
                    let reserved = guest == u32::MAX || host == u32::MAX;
                    let full = !model.contains_key(&guest) && model.len() == CAPACITY;
                    let expected = match (reserved, full) {
                        (true, _) => Err(StreamMapError::Reserved),
                        (_, true) => Err(StreamMapError::Full { capacity: CAPACITY }),
                        _ => { model.insert(guest, Some(host)); Ok(()) }
                    };
                    prop_assert_eq!(insert(&map, guest, host), expected);
                }
                Change::Remove(guest) => {
                    let was = model.get_mut(&guest).and_then(Option::take);
                    prop_assert_eq!(map.remove(StreamId(guest)), was.is_some());
                }
            }
            for guest in (0..24).chain((0..24).map(|n| n << 7)) {
                prop_assert_eq!(get(&map, guest), model.get(&guest).copied().flatten());
            }
        }
    }
}
