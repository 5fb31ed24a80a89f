//! The conformance suite of host queues on the real kernel: the same functions that the engine's tests run.
//!
//! What the device does is as real as it can be had here. A command that is refused is one that the kernel refuses, of a stream
//! that it was not told of; a device that has gone is a vIOMMU that is not there. Only a time-out is made up: the emulated SMMU has no
//! ATS, and is never late.

#[path = "../../../engine/tests/conformance/subject.rs"]
mod subject;
#[path = "../../../engine/tests/conformance/suite.rs"]
mod suite;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::HostQueue;
use ecmdq_engine::host::iommufd::{self, Invalidate, IommufdExecutor, IommufdQueue, VIommu};
use rustix::io::Errno;

use subject::{Device, Subject};

/// CFGI_CD of a stream that the kernel was not told of.
const REFUSED: Command = Command([0x99 << 32 | 0x05, 1]);
/// The id of no object.
const NOBODY: u32 = 0x7fff_0000;
const LOG2: u32 = 5;

/// The kernel, with a hand on what it is asked.
#[derive(Clone)]
struct Kernel {
    viommu: VIommu,
    nobody: VIommu,
    device: Rc<RefCell<Device>>,
    /// The commands of each call.
    calls: Rc<RefCell<Vec<Vec<Command>>>>,
}

impl Invalidate for Kernel {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        const ATC_INV: u64 = 0x40;
        let mut sent = commands.to_vec();
        match *self.device.borrow() {
            Device::Fine => {}
            Device::Gone => return self.nobody.invalidate(commands),
            Device::TimesOut if commands.iter().any(|command| command.0[0] & 0xff == ATC_INV) => {
                return Err(Errno::TIMEDOUT.into());
            }
            Device::TimesOut => {}
            Device::Refuses(refused) => {
                sent.iter_mut().filter(|command| **command == refused).for_each(|command| *command = REFUSED);
            }
        }
        self.viommu.invalidate(&sent)?;
        self.calls.borrow_mut().push(commands.to_vec());
        Ok(())
    }
}

struct Real {
    queue: IommufdQueue,
    executor: IommufdExecutor<Kernel>,
    kernel: Kernel,
    executed: Vec<Command>,
}

impl Real {
    fn new(kernel: &Kernel) -> Self {
        let kernel =
            Kernel { device: Rc::new(RefCell::new(Device::Fine)), calls: Rc::default(), ..kernel.clone() };
        let (queue, executor) = iommufd::queue(kernel.clone(), LOG2).expect("memory for a ring");
        Self { queue, executor, kernel, executed: Vec::new() }
    }
}

impl Drop for Real {
    /// What the trace must say of it: every command of the suite that gets there is a CFGI_CD or a TLBI_NH_ASID.
    fn drop(&mut self) {
        for Command([low, _]) in self.kernel.calls.borrow().iter().flatten() {
            match low & 0xff {
                0x05 => println!("EXPECT smmuv3_cmdq_cfgi_cd sid=SID"),
                _ => println!("EXPECT smmuv3_cmdq_tlbi_nh_asid asid={}", low >> 48),
            }
        }
    }
}

impl Subject for Real {
    fn queue(&mut self) -> &mut dyn HostQueue {
        &mut self.queue
    }

    fn capacity(&self) -> usize {
        24
    }

    fn set_device(&mut self, device: Device) {
        *self.kernel.device.borrow_mut() = device;
    }

    fn work(&mut self) {
        // A few more steps than it has something to do: one that fails counts as nothing done.
        let mut idle = 0;
        while idle < 5 {
            idle = if self.executor.step() > 0 { 0 } else { idle + 1 };
            self.queue.completed();
        }
        self.executed = self.kernel.calls.borrow().concat();
    }

    fn executed(&self) -> &[Command] {
        &self.executed
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        self.kernel.calls.borrow().clone()
    }
}

/// Runs all of it; says how many failed.
pub fn run(iommufd: OwnedFd, viommu: &VIommu) -> u32 {
    let kernel = Kernel {
        viommu: viommu.clone(),
        nobody: VIommu::from_fd(iommufd, NOBODY),
        device: Rc::new(RefCell::new(Device::Fine)),
        calls: Rc::default(),
    };
    type Clause = fn(&mut dyn Subject);
    let clauses: [(&str, Clause); 8] = [
        ("takes commands in order and says how many", suite::takes_commands_in_order_and_says_how_many),
        ("a full queue takes less and goes on later", suite::a_full_queue_takes_less_and_goes_on_later),
        (
            "a ticket is reached when all before it was executed",
            suite::a_ticket_is_reached_when_all_before_it_was_executed,
        ),
        ("a full queue still gives a ticket", suite::a_full_queue_still_gives_a_ticket),
        ("with nothing new a ticket is shared", suite::with_nothing_new_a_ticket_is_shared),
        ("an illegal command is left out and named", suite::an_illegal_command_is_left_out_and_named),
        (
            "an ATC time-out fails a ticket and the next is reached",
            suite::an_atc_timeout_fails_a_ticket_and_the_next_is_reached,
        ),
        (
            "a dead device fails every ticket and never blocks",
            suite::a_dead_device_fails_every_ticket_and_never_blocks,
        ),
    ];
    let told = |name: &str, test: &mut dyn FnMut()| {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("{} conformance: {name}", if passed { "ok    " } else { "FAILED" });
        u32::from(!passed)
    };
    let failed: u32 =
        clauses.into_iter().map(|(name, clause)| told(name, &mut || clause(&mut Real::new(&kernel)))).sum();
    failed
        // There is no ATS here.
        + told("what is submitted behind a sync begins behind it", &mut || {
            suite::what_is_submitted_behind_a_sync_begins_behind_it(|| Real::new(&kernel), 2);
        })
        + told("anything in any order is executed once and tickets tell the truth", &mut || {
            suite::anything_in_any_order_is_executed_once_and_tickets_tell_the_truth(|| Real::new(&kernel));
        })
}
