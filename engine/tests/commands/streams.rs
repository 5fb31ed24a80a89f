//! Which streams a configuration command names, and which of them the guest owns, against plain models.

use std::collections::BTreeMap;

use ecmdq_engine::{HostStreamId, StreamConfig, StreamId, StreamMap};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

/// StreamIDs at the edges of ranges, and any.
fn stream() -> impl Strategy<Value = u32> {
    let edge = (0u32..32, 0u32..3).prop_map(|(log2, up)| (1u32 << log2).wrapping_add(up).wrapping_sub(1));
    prop_oneof![0u32..40, edge, any::<u32>()]
}

/// As the rules make them: ranges begin at a multiple of their size.
fn streams() -> impl Strategy<Value = StreamConfig> {
    prop_oneof![
        stream().prop_map(|one| StreamConfig::One(StreamId(one))),
        (stream(), 1u32..=31).prop_map(|(stream, log2)| {
            StreamConfig::Range { first: StreamId(stream >> log2 << log2), log2 }
        }),
        Just(StreamConfig::All),
    ]
}

fn first_and_last(config: StreamConfig) -> (u64, u64) {
    match config {
        StreamConfig::One(StreamId(one)) => (one.into(), one.into()),
        StreamConfig::Range { first, log2 } => (first.0.into(), u64::from(first.0) + (1 << log2) - 1),
        StreamConfig::All => (0, u32::MAX.into()),
    }
}

fn named(config: StreamConfig, stream: u32) -> bool {
    let (first, last) = first_and_last(config);
    (first..=last).contains(&u64::from(stream))
}

#[test]
fn a_range_contains_its_first_and_last_stream_and_not_those_beside_it() {
    for log2 in 1..=31 {
        for first in [0u32, 0x8000_0000 >> (31 - log2)] {
            let range = StreamConfig::Range { first: StreamId(first), log2 };
            let last = first + ((1u32 << log2) - 1);
            assert!(range.contains(StreamId(first)) && range.contains(StreamId(last)), "{range:?}");
            assert!(!range.contains(StreamId(last.wrapping_add(1))) || last == u32::MAX && first == 0);
            assert!(first == 0 || !range.contains(StreamId(first - 1)), "{range:?}");
        }
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn contains_is_between_first_and_last(config in streams(), stream in stream()) {
        prop_assert_eq!(config.contains(StreamId(stream)), named(config, stream));
        let (first, last) = first_and_last(config);
        prop_assert!(config.contains(StreamId(first as u32)) && config.contains(StreamId(last as u32)));
    }

    #[test]
    fn owned_are_the_mapped_streams_that_are_named(
        config in streams(),
        changes in vec((stream(), prop_oneof![3 => stream().prop_map(Some), 1 => Just(None)]), 0..60),
    ) {
        let map = StreamMap::new(changes.len());
        let mut model = BTreeMap::new();
        for (guest, host) in changes.into_iter().filter(|(guest, host)| *guest != !0 && *host != Some(!0)) {
            match host {
                Some(host) => {
                    map.insert(StreamId(guest), HostStreamId(host)).unwrap();
                    model.insert(StreamId(guest), HostStreamId(host));
                }
                None => prop_assert_eq!(map.remove(StreamId(guest)), model.remove(&StreamId(guest)).is_some()),
            }
        }
        let mut owned: Vec<_> = map.owned(config).collect();
        owned.sort();
        let expected: Vec<_> = model.into_iter().filter(|(guest, _)| named(config, guest.0)).collect();
        prop_assert_eq!(owned, expected);
    }
}
