//! Guests behind the engine and the iommufd queue: each command of theirs as it reaches the host's SMMU, and anything at all.

use std::env;

use ecmdq_engine::host::iommufd::{self, IommufdExecutor, IommufdQueue};
use ecmdq_engine::{Command, Worker};
use proptest::prelude::*;

use crate::common::{CERROR_ILL, Guest, SMMUEN, Setup, reg, sync};
use crate::kernel::{FULL_HOST, GENERATIONS, Generation, Kernel};

struct Machine {
    kernel: Kernel,
    guest: Guest,
    worker: Worker<IommufdQueue>,
    executor: IommufdExecutor<Kernel>,
}

impl Machine {
    fn new(generation: Generation) -> Self {
        let kernel = Kernel::new(generation);
        let (queue, executor) = iommufd::queue(kernel.clone(), 6).unwrap();
        let mut worker = Worker::new(queue);
        let (mut guest, smmu) =
            Guest::new(Setup::with(|f| (f.ats, f.ssid_bits) = (true, FULL_HOST.ssid_bits as u8)));
        worker.attach(smmu).unwrap();
        guest.write(reg::CR0, SMMUEN);
        guest.start(8);
        let mut machine = Self { kernel, guest, worker, executor };
        machine.settle();
        assert!(machine.guest.enabled());
        machine
    }

    fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..100_000 {
            let executed = self.executor.step();
            idle = if self.worker.poll() || executed > 0 { 0 } else { idle + 1 };
            if idle == 5 {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Sends commands and a CMD_SYNC as a driver does that replaces what is illegal by CMD_SYNCs; how many were.
    fn send(&mut self, commands: &[Command]) -> usize {
        self.guest.send(&[commands, &[sync()]].concat());
        self.settle();
        let mut illegal = 0;
        while let Some(error) = self.guest.error() {
            assert_eq!(error, CERROR_ILL);
            illegal += 1;
            self.guest.put(self.guest.cons(), sync());
            self.guest.ack();
            self.settle();
        }
        assert_eq!(self.guest.cons(), self.guest.prod(), "the CMD_SYNC is complete");
        illegal
    }
}

/// What a guest sends that owns vSID 0x42, and what reaches the SMMU, where it is SID 0x100 and has VMID 1.
const KINDS: [([u64; 2], Option<[u64; 2]>); 22] = [
    ([0x0000_0000_0000_0010, 0], Some([0x0000_0001_0000_0010, 0])),
    ([0x0000_0055_0000_0010, 0], Some([0x0000_0001_0000_0010, 0])),
    ([0x0000_0000_0000_0030, 0], Some([0x0000_0001_0000_0010, 0])),
    ([0xabcd_0055_0000_0011, 0], Some([0xabcd_0001_0000_0011, 0])),
    ([0xabcd_0055_0000_0012, 0x7000], Some([0xabcd_0001_0000_0012, 0x7000])),
    ([0xabcd_0055_0000_0012, 0x7001], Some([0xabcd_0001_0000_0012, 0x7001])),
    ([0xabcd_0055_0000_0012, 0x7701], Some([0xabcd_0001_0000_0012, 0x7701])),
    ([0xabcd_0055_0010_3012, 0x7400], Some([0xabcd_0001_0010_3012, 0x7400])),
    ([0x0000_0055_0000_0013, 0x7001], Some([0x0000_0001_0000_0013, 0x7001])),
    ([0x0000_0055_0001_f013, 0x7601], Some([0x0000_0001_0001_f013, 0x7601])),
    ([0x0000_0042_0000_0005, 1], Some([0x0000_0100_0000_0005, 1])),
    ([0x0000_0042_0000_3005, 0], Some([0x0000_0100_0000_3005, 0])),
    ([0x0000_0042_0000_0006, 0], Some([0x0000_0100_0000_0006, 0])),
    ([0x0000_0042_0000_0040, 52], Some([0x0000_0100_0000_0040, 52])),
    ([0x0000_0042_0000_3840, 0x7001], Some([0x0000_0100_0000_3840, 0x7001])),
    // The guest does not own these streams, or has no such SubstreamID.
    ([0x0000_0043_0000_0005, 1], None),
    ([0x0000_0100_0000_0006, 0], None),
    ([0x0000_0100_0000_0040, 52], None),
    ([0x0000_0042_0001_0005, 1], None),
    // These are for the VMM, or hints.
    ([0x0000_0042_0000_0003, 1], None),
    ([0x0000_0000_0000_0004, 31], None),
    ([0x0000_0042_0000_0001, 0], None),
];

#[test]
fn every_kind_of_command_reaches_the_smmu_with_the_kernels_identities() {
    for generation in GENERATIONS {
        let mut machine = Machine::new(generation);
        let mut expected = Vec::new();
        for (sent, reached) in KINDS {
            assert_eq!(machine.send(&[Command(sent)]), 0, "{}", Command(sent));
            expected.extend(reached.map(Command));
            assert_eq!(machine.kernel.reached(), expected, "{generation:?}, after {}", Command(sent));
        }
    }
}

#[test]
fn all_of_them_at_once_are_one_call() {
    let mut machine = Machine::new(Generation::Strict);
    // Those for the VMM end a batch.
    let sent: Vec<_> = KINDS[..19].iter().map(|(sent, _)| Command(*sent)).collect();
    machine.send(&sent);
    let reached: Vec<_> = KINDS.iter().filter_map(|(_, reached)| reached.map(Command)).collect();
    assert_eq!(machine.kernel.reached(), reached);
    assert_eq!(machine.kernel.calls(), [15]);
}

/// One of those that reach the SMMU with some bits turned over, or anything.
fn command() -> impl Strategy<Value = Command> {
    let turned = (prop::sample::select(KINDS.to_vec()), prop::collection::vec(0_u32..128, 0..3));
    prop_oneof![
        4 => turned.prop_map(|(([low, high], _), bits)| {
            let bits = bits.into_iter().fold(0_u128, |bits, bit| bits ^ 1 << bit);
            Command([low ^ bits as u64, high ^ (bits >> 64) as u64])
        }),
        1 => [any::<u64>(), any::<u64>()].prop_map(Command),
    ]
}

/// `ECMDQ_CASES` is the number of cases.
fn cases() -> u32 {
    env::var("ECMDQ_CASES").map_or(64, |cases| cases.parse().expect("ECMDQ_CASES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// A kernel that looks at every field refuses nothing, and one that looks at none gets nothing that it should have refused.
    #[test]
    fn no_guest_makes_a_kernel_refuse_or_pass_on_anything_wrong(
        batches in prop::collection::vec(prop::collection::vec(command(), 1..100), 1..4),
    ) {
        let mut reached = Vec::new();
        for generation in GENERATIONS {
            let mut machine = Machine::new(generation);
            batches.iter().for_each(|batch| {
                machine.send(batch);
            });
            prop_assert_eq!(machine.worker.host_failures(), 0, "{:?} refused one", generation);
            reached.push(machine.kernel.reached());
        }
        prop_assert_eq!(&reached[0], &reached[1], "what one passes on, the other had not refused");
        prop_assert_eq!(&reached[1], &reached[2]);
    }
}
