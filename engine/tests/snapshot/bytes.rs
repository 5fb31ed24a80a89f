//! Snapshots as bytes: the layout of `docs/virtual-smmu.md`, and whatever else bytes may be.

use ecmdq_engine::{Snapshot, SnapshotError};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::traffic::Guest;
use crate::vm::Vm;

/// One of everything. The checksum is Python's `zlib.crc32` of the rest.
#[rustfmt::skip]
const BYTES: [u8; 120] = [
    b'E', b'C', b'M', b'D', b'Q', b'S', b'N', b'P',
    0x02, 0x00, 0x00, 0x00, 0x64, 0x00, 0x00, 0x00, // version, length
    0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22, 0x33, 0x33, 0x33, 0x33, // IDR0 to IDR6
    0x44, 0x44, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55, 0x66, 0x66, 0x66, 0x66, 0x77, 0x77, 0x77, 0x77,
    0x08, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, // CR0ACK, IRQ_CTRLACK
    0x01, 0x02, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // GERROR, GERRORN
    0x02, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // two registers, one queue
    0x20, 0x00, 0x00, 0x00, 0x09, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x80, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x03, 0x00, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, // queue 3: enabled and stopped, blame
    0x04, 0x10, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x80, 0x01, 0x00, 0x00, 0x83,
    0x0e, 0xa9, 0x3f, 0xc3,
];
/// Where the counts of the lists are, the flags of the queue, and the checksum.
const REGISTERS: usize = 60;
const QUEUES: usize = 64;
const FLAGS: usize = 96;
const CHECKSUM: usize = 116;

fn snapshot(state: Value) -> Snapshot {
    serde_json::from_value(state).unwrap()
}

/// What [`BYTES`] are.
fn state() -> Value {
    let queue = json!({
        "number": 3, "enabled": true, "stopped": true, "blame": 8,
        "base": 0x4000_1004, "prod": 0x8000_0002u32, "cons": 0x8300_0001u32,
    });
    json!({
        "version": 2,
        "idrs": [0x1111_1111, 0x2222_2222, 0x3333_3333, 0x4444_4444, 0x5555_5555, 0x6666_6666, 0x7777_7777],
        "registers": [[0x20, 9], [0x80, 0x1122_3344_5566_7788u64]],
        "cr0ack": 8, "irq_ctrlack": 5, "gerror": 0x201, "gerrorn": 1,
        "queues": [queue],
    })
}

/// The bytes with some of them changed, and the checksum that belongs to that.
fn forged(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = BYTES.to_vec();
    change(&mut bytes);
    let checksum = crc32fast::hash(&bytes[..CHECKSUM]);
    bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn the_bytes_are_as_the_layout_says() {
    assert_eq!(snapshot(state()).to_bytes(), BYTES);
    assert_eq!(Snapshot::from_bytes(&BYTES), Ok(snapshot(state())));
}

#[test]
fn bytes_of_any_other_length_are_refused() {
    for len in 0..BYTES.len() {
        let needed = if len < 16 { 72 } else { 120 };
        assert_eq!(Snapshot::from_bytes(&BYTES[..len]), Err(SnapshotError::Truncated { len, needed }));
    }
    for more in 1..20 {
        let bytes = [&BYTES[..], &vec![0; more]].concat();
        assert_eq!(Snapshot::from_bytes(&bytes), Err(SnapshotError::Trailing(more)));
    }
}

#[test]
fn a_single_bit_that_is_wrong_is_found() {
    for bit in 0..8 * BYTES.len() {
        let mut bytes = BYTES;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = Snapshot::from_bytes(&bytes).expect_err(&format!("bit {bit}"));
        let expected = match bit / 8 {
            0..8 => matches!(error, SnapshotError::Magic),
            8..12 => matches!(error, SnapshotError::Version(_) | SnapshotError::Checksum { .. }),
            12..16 => matches!(error, SnapshotError::Truncated { .. } | SnapshotError::Trailing(_)),
            _ => matches!(error, SnapshotError::Checksum { .. }),
        };
        assert!(expected, "bit {bit}: {error}");
    }
}

#[test]
fn bytes_that_somebody_made_are_refused_before_their_counts_are_believed() {
    let lists = Err(SnapshotError::Malformed("its lists are not as long as they say"));
    for at in [REGISTERS, QUEUES] {
        for n in [0, 3, 0x7fff_ffff, u32::MAX] {
            let bytes = forged(|bytes| bytes[at..at + 4].copy_from_slice(&n.to_le_bytes()));
            assert_eq!(Snapshot::from_bytes(&bytes), lists, "{n:#x} at {at}");
        }
    }
    // Two registers are as long as a queue.
    let swapped = forged(|bytes| (bytes[REGISTERS], bytes[QUEUES]) = (4, 0));
    assert!(Snapshot::from_bytes(&swapped).is_ok(), "what it means is for the virtual SMMU to judge");
    let flags = Err(SnapshotError::Malformed("a queue has flags that do not exist"));
    for (at, value) in [(FLAGS, 4), (FLAGS, 0x83), (FLAGS + 2, 1), (FLAGS + 3, 1)] {
        assert_eq!(Snapshot::from_bytes(&forged(|bytes| bytes[at] = value)), flags);
    }
    let mut short = b"ECMDQSNP\x02\0\0\0\0\0\0\0".to_vec();
    short.extend(crc32fast::hash(&short).to_le_bytes());
    assert_eq!(Snapshot::from_bytes(&short), Err(SnapshotError::Malformed("it is too short")));
}

#[test]
fn errors_say_what_to_do() {
    let text = |bytes: &[u8]| Snapshot::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(
        text(b"{\"version\":2}"),
        "this is no snapshot of a virtual SMMU: look for where in the VM's state it begins"
    );
    assert_eq!(
        text(&forged(|bytes| bytes[8] = 3)),
        "the snapshot has version 3, this is for versions 1 to 2: restore it with a version of ecmdq that knows it"
    );
    assert_eq!(
        text(&BYTES[..119]),
        "the snapshot is cut off, 119 bytes of 120: read all of it, or transfer it again"
    );
    assert_eq!(
        text(&[&BYTES[..], &[0]].concat()),
        "1 bytes follow the snapshot: hand over the snapshot alone"
    );
    let mut damaged = BYTES;
    damaged[119] = 0;
    assert_eq!(
        text(&damaged),
        "the snapshot is damaged, its checksum is 0xc33fa90e and not 0x003fa90e: transfer it again"
    );
}

/// A snapshot of the version before the bytes had no blame.
#[test]
fn a_snapshot_of_version_1_is_taken() {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(2);
    vm.smmu.pause();
    let saved = vm.smmu.save().unwrap();
    let mut state = serde_json::to_value(&saved).unwrap();
    state["version"] = json!(1);
    let queues = state["queues"].as_array_mut().unwrap();
    queues.iter_mut().for_each(|queue| assert!(queue.as_object_mut().unwrap().remove("blame").is_some()));
    let old = Snapshot::from_bytes(&snapshot(state).to_bytes()).unwrap();
    let new = Vm::new();
    new.smmu.pause();
    new.smmu.restore(&old).unwrap();
    assert_eq!(new.smmu.save().unwrap(), saved);
}

#[test]
fn only_an_enabled_queue_is_to_blame_and_only_of_errors_that_there_are() {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(2);
    vm.smmu.pause();
    let state = serde_json::to_value(vm.smmu.save().unwrap()).unwrap();
    let restore = |queue: usize, enabled: bool, blame: u8| {
        let mut state = state.clone();
        assert_eq!(state["queues"][queue]["enabled"], enabled);
        state["queues"][queue]["blame"] = json!(blame);
        vm.smmu.restore(&snapshot(state)).map_err(|error| error.to_string())
    };
    for bit in 0..8 {
        let enabled = restore(0, true, 1 << bit);
        assert_eq!(enabled.is_ok(), (1..=3).contains(&bit), "bit {bit}: {enabled:?}");
        assert_eq!(restore(1, false, 1 << bit).unwrap_err(), "the snapshot is corrupt: a queue");
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        words in any::<[u32; 11]>(),
        registers in vec(any::<(u32, u64)>(), 0..40),
        queues in vec(any::<(u32, bool, bool, u8, u64, u32, u32)>(), 0..40),
    ) {
        let queue = |&(number, enabled, stopped, blame, base, prod, cons): &_| json!({
            "number": number, "enabled": enabled, "stopped": stopped, "blame": blame,
            "base": base, "prod": prod, "cons": cons,
        });
        let state = snapshot(json!({
            "version": 2, "idrs": words[..7], "registers": registers,
            "cr0ack": words[7], "irq_ctrlack": words[8], "gerror": words[9], "gerrorn": words[10],
            "queues": queues.iter().map(queue).collect::<Vec<_>>(),
        }));
        let bytes = state.to_bytes();
        prop_assert_eq!(bytes.len(), 72 + 12 * registers.len() + 24 * queues.len());
        prop_assert_eq!(Snapshot::from_bytes(&bytes), Ok(state));
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Snapshot::from_bytes(&bytes);
        let mut of_ours = BYTES.to_vec();
        of_ours.splice(16.., bytes);
        let payload = (of_ours.len() - 16) as u32;
        of_ours[12..16].copy_from_slice(&payload.to_le_bytes());
        of_ours.extend(crc32fast::hash(&of_ours).to_le_bytes());
        if let Ok(snapshot) = Snapshot::from_bytes(&of_ours) {
            prop_assert_eq!(snapshot.to_bytes(), of_ours);
        }
    }
}
