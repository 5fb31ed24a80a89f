//! The index arithmetic against a plain model: a counter that never wraps.

use ecmdq_ring::{Index, QueueSize};
use proptest::prelude::*;

/// Every size that there is.
fn sizes() -> impl Iterator<Item = QueueSize> {
    (0..=19).map(|log2| QueueSize::from_log2(log2).unwrap())
}

/// The index of the `count`-th entry since the beginning.
fn at(count: u64, size: QueueSize) -> Index {
    let (slot, wrap) = model(count, size);
    size.index(slot | wrap << size.log2())
}

/// The register value of the `count`-th entry since the beginning, by division alone.
fn model(count: u64, size: QueueSize) -> (u32, u32) {
    let n = u64::from(size.entries());
    ((count % n) as u32, ((count / n) % 2) as u32)
}

#[test]
fn log2_sizes_0_to_19_exist_and_no_others() {
    for log2 in 0..=19 {
        let size = QueueSize::from_log2(log2).unwrap();
        assert_eq!((size.log2(), size.entries(), size.bytes()), (log2, 1 << log2, 16 << log2));
    }
    assert_eq!(QueueSize::from_log2(20), None);
    assert_eq!(QueueSize::from_log2(u32::MAX), None);
}

#[test]
fn a_size_above_the_cap_is_capped() {
    let cap = QueueSize::from_log2(13).unwrap();
    assert_eq!(QueueSize::capped(12, cap).log2(), 12);
    assert_eq!(QueueSize::capped(13, cap).log2(), 13);
    assert_eq!(QueueSize::capped(14, cap).log2(), 13);
    assert_eq!(QueueSize::capped(31, cap).log2(), 13);
}

#[test]
fn the_architectures_example_of_128_entries() {
    let size = QueueSize::from_log2(7).unwrap();
    assert_eq!(size.index(0x1234_56ff).raw(), 0xff, "bits above the wrap bit 7 are ignored");
    assert_eq!(size.slot(size.index(0xff)), 0x7f);
    assert_eq!(size.advance(size.index(0x7f), 1).raw(), 0x80, "the wrap bit toggles");
    assert_eq!(size.advance(size.index(0xff), 1).raw(), 0x00);
    assert_eq!(size.used(size.index(0x85), size.index(0x05)), Ok(128), "full");
    assert_eq!(size.used(size.index(0x05), size.index(0x05)), Ok(0), "empty");
    assert!(size.used(size.index(0x86), size.index(0x05)).is_err(), "WR > RD, wraps differ");
    assert!(size.used(size.index(0x04), size.index(0x05)).is_err(), "WR < RD, wraps equal");
}

#[test]
fn every_pair_of_indices_of_small_queues() {
    for log2 in 0..=5 {
        let size = QueueSize::from_log2(log2).unwrap();
        let n = size.entries();
        for prod in 0..2 * n {
            for cons in 0..2 * n {
                let distance = (prod + 2 * n - cons) % (2 * n);
                let used = size.used(size.index(prod), size.index(cons));
                assert_eq!(used.ok(), (distance <= n).then_some(distance), "2^{log2}: {prod} {cons}");
            }
        }
    }
}

proptest! {
    #[test]
    fn advancing_counts_entries_modulo_twice_the_size(start in 0u64..1 << 40, n: u32) {
        for size in sizes() {
            let end = size.advance(at(start, size), n);
            prop_assert_eq!(end, at(start + u64::from(n), size));
            prop_assert_eq!(size.slot(end), model(start + u64::from(n), size).0);
            prop_assert!(end.raw() < 2 * size.entries());
        }
    }

    #[test]
    fn used_is_the_difference_of_the_counts(cons in 0u64..1 << 40, used: u32) {
        for size in sizes() {
            let used = used % (2 * size.entries());
            let got = size.used(at(cons + u64::from(used), size), at(cons, size));
            prop_assert_eq!(got.ok(), (used <= size.entries()).then_some(used));
        }
    }

    #[test]
    fn bits_above_the_wrap_bit_never_matter(word: u32, high: u32) {
        for size in sizes() {
            let below = 2 * size.entries() - 1;
            prop_assert_eq!(size.index(word), size.index(word & below | high & !below));
            prop_assert_eq!(size.index(size.index(word).raw()), size.index(word));
        }
    }
}

#[test]
fn zero_is_an_index_of_every_queue() {
    assert!(sizes().all(|size| size.index(0) == Index::ZERO));
}
