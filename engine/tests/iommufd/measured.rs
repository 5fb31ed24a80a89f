//! The simulated kernels against what real ones answered: Linux 7.3.4 and 7.2.13, in front of QEMU's SMMU and of one with ATS,
//! SubstreamIDs and range invalidation. What Linux 7.3.4 made of a command is as it was seen in the SMMU's queue.

use ecmdq_engine::Command;
use rustix::io::Errno;

use crate::kernel::{FULL_HOST, GENERATIONS, Generation, Host, Kernel};

const QEMU: Host = Host { ats: false, ril: true, ssid_bits: 0 };

/// Which of them took a command: Linux 7.3 in front of QEMU's SMMU, of the full one, and Linux 7.2.
type Took = (bool, bool, bool);
const ALL: Took = (true, true, true);
const FULL: Took = (false, true, true);
const LENIENT: Took = (false, false, true);
const NONE: Took = (false, false, false);

/// What was sent, who took it, and, if the full SMMU did, what Linux 7.3 made of it.
const ANSWERS: [([u64; 2], Took, [u64; 2]); 48] = [
    ([0x0000_0000_0000_0010, 0], ALL, [0x0000_0001_0000_0010, 0]),
    ([0x0000_0055_0000_0010, 0], ALL, [0x0000_0001_0000_0010, 0]),
    ([0x0005_0000_0000_0011, 0], ALL, [0x0005_0001_0000_0011, 0]),
    ([0x0005_0055_0000_0011, 0], ALL, [0x0005_0001_0000_0011, 0]),
    ([0x0005_0000_0000_0012, 0x1001], ALL, [0x0005_0001_0000_0012, 0x1001]),
    ([0x0005_0055_0000_0012, 0x1000], ALL, [0x0005_0001_0000_0012, 0x1000]),
    ([0x0000_0000_0000_0013, 0x1000], ALL, [0x0000_0001_0000_0013, 0x1000]),
    ([0x0005_0000_0000_0013, 0x1000], LENIENT, [0; 2]),
    ([0x0000_0000_0000_0030, 0], ALL, [0x0000_0001_0000_0010, 0]),
    ([0x0000_0001_0000_0030, 0], LENIENT, [0; 2]),
    ([0x0005_0000_0000_3012, 0x1400], ALL, [0x0005_0001_0000_3012, 0x1400]),
    ([0x0005_0000_0000_0012, 0x1400], LENIENT, [0; 2]),
    ([0x0005_0000_0000_1012, 0x1000], LENIENT, [0; 2]),
    ([0x0005_0000_0000_0012, 0x1300], LENIENT, [0; 2]),
    ([0x0005_0000_0000_0012, 0x1700], ALL, [0x0005_0001_0000_0012, 0x1700]),
    ([0x0005_0000_0000_1012, 0x4900], LENIENT, [0; 2]),
    ([0x0005_0000_0200_3012, 0x1400], LENIENT, [0; 2]),
    ([0x0000_0042_0000_0005, 1], ALL, [0x0000_0100_0000_0005, 1]),
    ([0x0000_0099_0000_0005, 1], NONE, [0; 2]),
    ([0x0000_0042_0000_0805, 1], LENIENT, [0; 2]),
    ([0x0000_0042_0000_1005, 1], FULL, [0x0000_0100_0000_1005, 1]),
    ([0x0000_0042_0000_0006, 0], ALL, [0x0000_0100_0000_0006, 0]),
    ([0x0000_0099_0000_0006, 0], NONE, [0; 2]),
    ([0x0000_0042_0000_0006, 1], LENIENT, [0; 2]),
    ([0x0000_0042_0000_0040, 0x34], FULL, [0x0000_0100_0000_0040, 0x34]),
    ([0x0000_0042_0000_0040, 0x1000], FULL, [0x0000_0100_0000_0040, 0x1000]),
    ([0x0000_0042_0000_0040, 0x35], LENIENT, [0; 2]),
    ([0x0000_0099_0000_0040, 0x34], NONE, [0; 2]),
    ([0x0000_0042_0000_1840, 0x34], FULL, [0x0000_0100_0000_1840, 0x34]),
    ([0x0000_0042_0000_0240, 0x34], FULL, [0x0000_0100_0000_0240, 0x34]),
    ([0x0000_0042_0000_0140, 0x34], LENIENT, [0; 2]),
    ([0x0000_0042_0000_0003, 1], NONE, [0; 2]),
    ([0x0000_0000_0000_0004, 0x1f], NONE, [0; 2]),
    ([0x0000_0000_0000_0046, 0], NONE, [0; 2]),
    ([0x0000_0042_0000_0001, 0], NONE, [0; 2]),
    ([0x0000_0000_0000_0020, 0], NONE, [0; 2]),
    ([0x0000_0000_0000_0028, 0], NONE, [0; 2]),
    ([0x0000_0042_0000_0041, 0], NONE, [0; 2]),
    ([0x0000_0042_0000_0044, 0], NONE, [0; 2]),
    ([0x0000_0000_0000_00ff, 0], NONE, [0; 2]),
    ([0x0000_0000_0000_0110, 0], LENIENT, [0; 2]),
    ([0x0000_0000_0000_0410, 0], LENIENT, [0; 2]),
    ([0x0005_0000_0000_0010, 0], LENIENT, [0; 2]),
    ([0x0000_0000_0000_0010, 0x1000], LENIENT, [0; 2]),
    ([0x0005_0000_0400_0012, 0x1000], LENIENT, [0; 2]),
    ([0x0005_0000_0000_0012, 0x1002], LENIENT, [0; 2]),
    ([0x0000_0042_0000_0005, 3], LENIENT, [0; 2]),
    ([0x0000_0042_0000_0405, 1], LENIENT, [0; 2]),
];

#[test]
fn each_command_is_answered_as_real_kernels_did() {
    for (words, (qemu, full, lenient), reached) in ANSWERS {
        let command = Command(words);
        for (generation, host, took) in [
            (Generation::Strict, QEMU, qemu),
            (Generation::Strict, FULL_HOST, full),
            (Generation::Grouped, FULL_HOST, full),
            (Generation::Lenient, QEMU, lenient),
            (Generation::Lenient, FULL_HOST, lenient),
        ] {
            let kernel = Kernel::on(generation, host);
            let expected = if took { (Ok(()), 1) } else { (Err(Errno::IO), 0) };
            assert_eq!(kernel.call(&[command]), expected, "{words:#x?} {generation:?} {host:?}");
            if full {
                let came = if took { vec![Command(reached)] } else { vec![] };
                assert_eq!(kernel.reached(), came, "{words:#x?} {generation:?} {host:?}");
            }
        }
    }
}

/// Where the bad one of 128 commands was, what was said to have been handled, and what was executed, by Linux 7.2 and 7.3.
const BAD_ONES: [(usize, usize, usize); 10] = [
    (0, 0, 0),
    (1, 1, 0),
    (10, 10, 0),
    (62, 62, 0),
    (63, 63, 63),
    (64, 64, 63),
    (70, 70, 63),
    (100, 100, 63),
    (126, 126, 126),
    (127, 127, 126),
];

#[test]
fn long_calls_lose_commands_that_they_say_to_have_handled() {
    for generation in GENERATIONS {
        for (at, said, executed) in BAD_ONES {
            let kernel = Kernel::new(generation);
            let mut commands: Vec<_> = (0..128_u64).map(|i| Command([0x11 | i << 48, 0])).collect();
            commands[at] = Command([0xff, 0]);
            let said = if generation == Generation::Grouped { executed } else { said };
            assert_eq!(kernel.call(&commands), (Err(Errno::IO), said), "{generation:?}, bad at {at}");
            assert_eq!(kernel.executed(), commands[..executed], "{generation:?}, bad at {at}");
        }
    }
}

#[test]
fn want_of_memory_counts_all_and_does_nothing() {
    let kernel = Kernel::new(Generation::Strict);
    kernel.fail([Errno::NOMEM]);
    assert_eq!(kernel.call(&[Command([0x10, 0]); 5]), (Err(Errno::NOMEM), 5));
    assert!(kernel.executed().is_empty());
}

#[test]
fn a_late_smmu_counts_all_but_the_last_of_the_late_group() {
    for (n, stalled, said) in [(1, 0, 0), (128, 5, 62), (128, 70, 125), (128, 127, 127)] {
        let kernel = Kernel::new(Generation::Strict);
        let mut commands = vec![Command([0x10, 0]); n];
        commands[stalled] = Command([0x42 << 32 | 0x40, 52]);
        kernel.set_silent(true);
        assert_eq!(kernel.call(&commands), (Err(Errno::TIMEDOUT), said), "{stalled} of {n}");
    }
}
