//! The iommufd host queue before kernels that fail in every way they can.

#[path = "common/kernel.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod kernel;

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd::{self, IommufdExecutor, IommufdQueue};
use ecmdq_engine::host::{Cause, Failure, HostQueue, Identities};
use kernel::{Generation, Kernel};
use proptest::prelude::*;
use rustix::io::Errno;

struct Rig {
    kernel: Kernel,
    queue: IommufdQueue,
    executor: IommufdExecutor<Kernel>,
}

/// TLBI_NH_ASID, each of another ASID; VMID 0.
fn commands(n: u64) -> Vec<Command> {
    (0..n).map(|i| Command([0x11 | i << 48, 0])).collect()
}

const ATC_INV: Command = Command([0x42 << 32 | 0x40, 52]);

impl Rig {
    fn new(generation: Generation) -> Self {
        let kernel = Kernel::new(generation);
        let (queue, executor) = iommufd::queue(kernel.clone(), 10).unwrap();
        Self { kernel, queue, executor }
    }

    /// Submits, asks for a ticket, and lets the executor work; what became of the ticket, `None` if it was reached.
    fn run(&mut self, commands: &[Command]) -> Option<Failure> {
        assert_eq!(self.queue.submit(commands), commands.len());
        self.sync()
    }

    fn sync(&mut self) -> Option<Failure> {
        let ticket = self.queue.sync();
        for _ in 0..1000 {
            self.executor.step();
            let reached = self.queue.completed() >= ticket;
            if let Some(failure) = self.queue.failure(ticket) {
                return Some(failure);
            }
            if reached {
                return None;
            }
        }
        panic!("neither reached nor failed");
    }
}

#[test]
fn it_takes_the_guests_own_identities() {
    assert_eq!(Rig::new(Generation::New).queue.identities(), Identities::Guest);
}

#[test]
fn commands_go_in_calls_of_63_and_cmd_syncs_do_not_go() {
    let mut rig = Rig::new(Generation::Old);
    assert_eq!(rig.run(&commands(130)), None);
    assert_eq!(rig.kernel.calls(), [63, 63, 4]);
    assert_eq!(rig.kernel.executed(), commands(130));
    assert_eq!(rig.run(&commands(1)), None);
    assert_eq!(rig.kernel.calls()[3..], [1]);
}

#[test]
fn nothing_is_called_for_a_ticket_alone() {
    let mut rig = Rig::new(Generation::Old);
    assert_eq!(rig.sync(), None);
    assert_eq!(rig.executor.step(), 0);
    assert!(rig.kernel.calls().is_empty());
}

#[test]
fn a_refused_command_is_found_wherever_it_is_and_all_others_are_executed() {
    for generation in [Generation::Old, Generation::New] {
        for at in [0, 1, 2, 31, 32, 61, 62, 63, 64, 100, 126, 127] {
            let mut rig = Rig::new(generation);
            let sent = commands(128);
            rig.kernel.refuse(sent[at]);
            let failure = rig.run(&sent).expect("the ticket fails");
            assert_eq!((failure.cause, failure.command), (Cause::Illegal, Some(sent[at])), "{at}");
            assert_eq!(rig.sync(), None, "the next ticket is reached");
            let others: Vec<_> = sent.iter().copied().filter(|command| *command != sent[at]).collect();
            assert_eq!(rig.kernel.executed_once(), others, "{generation:?}, bad at {at}");
        }
    }
}

#[test]
fn want_of_memory_and_interruptions_are_tried_again() {
    for fault in [Errno::NOMEM, Errno::INTR, Errno::AGAIN] {
        let mut rig = Rig::new(Generation::New);
        rig.kernel.fail([fault; 5]);
        assert_eq!(rig.run(&commands(100)), None, "{fault:?}");
        assert_eq!(rig.kernel.executed(), commands(100));
        assert_eq!(rig.kernel.calls(), [63, 63, 63, 63, 63, 63, 37]);
    }
}

#[test]
fn interruptions_never_count_as_the_end() {
    let mut rig = Rig::new(Generation::New);
    rig.kernel.fail([Errno::INTR; 500]);
    assert_eq!(rig.run(&commands(1)), None);
}

#[test]
fn an_smmu_that_is_late_gets_the_commands_again() {
    let mut rig = Rig::new(Generation::Old);
    rig.kernel.fail([Errno::TIMEDOUT; 3]);
    assert_eq!(rig.run(&commands(50)), None);
    assert_eq!(rig.kernel.executed_once(), commands(50));
}

#[test]
fn an_atc_inv_that_times_out_fails_the_ticket_and_the_rest_is_executed() {
    let mut rig = Rig::new(Generation::New);
    let sent = [&commands(20)[..], &[ATC_INV]].concat();
    rig.kernel.fail([Errno::TIMEDOUT]);
    assert_eq!(rig.run(&sent), Some(Failure { cause: Cause::AtcTimeout, command: None }));
    assert_eq!(rig.kernel.executed_once(), commands(20));
    assert_eq!(rig.sync(), None, "it is told once");
    assert_eq!(rig.run(&[ATC_INV]), None);
}

#[test]
fn an_atc_inv_alone_that_times_out_fails_the_ticket() {
    let mut rig = Rig::new(Generation::New);
    rig.kernel.fail([Errno::TIMEDOUT]);
    assert_eq!(rig.run(&[ATC_INV]).map(|failure| failure.cause), Some(Cause::AtcTimeout));
    assert_eq!(rig.kernel.calls(), [1], "and no empty call was made");
}

#[test]
fn what_cannot_get_better_is_the_end() {
    let never = [Errno::NODEV, Errno::NOENT, Errno::INVAL, Errno::OPNOTSUPP, Errno::BADF, Errno::FAULT];
    for fault in never {
        let mut rig = Rig::new(Generation::New);
        rig.kernel.fail([fault; 10]);
        assert_eq!(rig.run(&commands(3)).map(|failure| failure.cause), Some(Cause::DeviceGone), "{fault:?}");
    }
    for fault in [Errno::NOMEM, Errno::TIMEDOUT] {
        let mut rig = Rig::new(Generation::New);
        rig.kernel.fail([fault; 100]);
        assert_eq!(rig.run(&commands(3)).map(|failure| failure.cause), Some(Cause::DeviceGone), "{fault:?}");
    }
}

/// What a test does to the kernel before a batch.
#[derive(Clone, Debug)]
enum Trouble {
    None,
    Refuse(prop::sample::Index),
    Fail(Vec<Errno>),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop::sample::select(vec![Errno::NOMEM, Errno::INTR, Errno::AGAIN, Errno::TIMEDOUT]);
    prop_oneof![
        Just(Trouble::None),
        any::<prop::sample::Index>().prop_map(Trouble::Refuse),
        prop::collection::vec(fault, 1..6).prop_map(Trouble::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A ticket that is reached means that everything before it was executed; one that failed, everything but the command
    /// that it names.
    #[test]
    fn tickets_tell_the_truth(batches in prop::collection::vec((1..200_u64, trouble()), 1..8)) {
        let mut rig = Rig::new(Generation::Old);
        let mut expected = Vec::new();
        for (number, (n, trouble)) in batches.into_iter().enumerate() {
            let batch: Vec<_> =
                commands(n).into_iter().map(|c| Command([c.0[0], number as u64])).collect();
            let mut refused = None;
            match trouble {
                Trouble::None => {}
                Trouble::Refuse(index) => {
                    refused = Some(*index.get(&batch));
                    rig.kernel.refuse(*index.get(&batch));
                }
                Trouble::Fail(faults) => rig.kernel.fail(faults),
            }
            let failure = rig.run(&batch);
            prop_assert_eq!(failure.and_then(|failure| failure.command), refused);
            if refused.is_some() {
                prop_assert_eq!(rig.sync(), None);
            }
            expected.extend(batch.into_iter().filter(|command| Some(*command) != refused));
            prop_assert_eq!(&rig.kernel.executed_once(), &expected);
        }
    }
}
