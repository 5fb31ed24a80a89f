//! The kinds of host queues, each with a hand on what is behind it.

use ecmdq_engine::host::iommufd::{self, IommufdExecutor, IommufdQueue};
use ecmdq_engine::host::model::Pace;
use ecmdq_engine::host::{
    Cause, HostQueue, ModelSmmu, MsiWord, NativeRing, RingConsumer, RingFormat, RingLayout,
};
use ecmdq_engine::{Command, CommandError, Features, Opcode};
use ecmdq_ring::SharedRegion;
use rustix::io::Errno;

use super::kernel::{Generation, Kernel};
use super::subject::{Device, Subject};

/// The device behind a native ring.
#[derive(Debug)]
struct Behind {
    smmu: RingConsumer,
    device: Device,
    executed: Vec<Command>,
    /// What was executed between CMD_SYNCs.
    groups: Vec<Vec<Command>>,
}

impl Behind {
    fn new(smmu: RingConsumer) -> Self {
        Self { smmu, device: Device::Fine, executed: Vec::new(), groups: Vec::new() }
    }

    /// One poll; says whether there was anything.
    fn step(&mut self) -> bool {
        let Self { smmu, device, executed, groups } = self;
        let mut failed = false;
        let n = smmu.poll_with(|commands| {
            let (n, error) = execute(commands, device);
            failed = error.is_some();
            for command in &commands[..n] {
                if command.opcode() == Opcode::CMD_SYNC {
                    groups.push(Vec::new());
                    continue;
                }
                if groups.is_empty() {
                    groups.push(Vec::new());
                }
                groups.last_mut().into_iter().for_each(|group| group.push(*command));
                executed.push(*command);
            }
            (n, error)
        });
        n > 0 || failed
    }
}

/// How many of the commands are executed, and what is wrong with the next.
fn execute(commands: &[Command], device: &mut Device) -> (usize, Option<CommandError>) {
    let is_sync = |command: &Command| command.opcode() == Opcode::CMD_SYNC;
    match *device {
        Device::Fine => (commands.len(), None),
        Device::Gone => (0, Some(CommandError::Abt)),
        Device::Refuses(refused) => match commands.iter().position(|command| *command == refused) {
            Some(at) => (at, Some(CommandError::Ill)),
            None => (commands.len(), None),
        },
        Device::TimesOut => match commands.iter().position(is_sync) {
            Some(at) => {
                *device = Device::Fine;
                (at, Some(CommandError::AtcInvSync))
            }
            None => (commands.len(), None),
        },
    }
}

/// A native ring in the format of the CMDQ, whose CONS is looked at.
pub struct Ring {
    ring: NativeRing,
    behind: Behind,
}

const LOG2: u32 = 5;

impl Ring {
    pub fn new() -> Self {
        let (ring, smmu) = NativeRing::with_consumer(LOG2).unwrap();
        Self { ring, behind: Behind::new(smmu) }
    }
}

/// A native ring in the format of an ECMDQ, whose CMD_SYNCs send MSIs, and which starts just before its indices wrap.
pub struct EcmdqWithMsi(Ring);

impl EcmdqWithMsi {
    pub fn new() -> Self {
        const EN: u32 = 1 << 31;
        const START: u32 = 61;
        let memory = SharedRegion::from_words(vec![0; 1024]);
        memory.store_u32(0x1008, EN | START, std::sync::atomic::Ordering::Relaxed);
        memory.store_u32(0x100c, EN | START, std::sync::atomic::Ordering::Relaxed);
        let layout = RingLayout {
            slots: memory.clone(),
            log2: LOG2,
            registers: memory.clone(),
            prod: 0x1008,
            cons: 0x100c,
            start: START,
            format: RingFormat::Ecmdq,
            msi: Some(MsiWord { region: memory, offset: 0x1800, address: 0xfee_0000 }),
            doorbell: None,
        };
        let behind = Behind::new(layout.consumer().unwrap());
        let ring = NativeRing::new(layout, 1).unwrap().remove(0);
        Self(Ring { ring, behind })
    }
}

/// The iommufd queue before Linux 7.3.
pub struct Iommufd {
    kernel: Kernel,
    queue: IommufdQueue,
    executor: IommufdExecutor<Kernel>,
    executed: Vec<Command>,
}

impl Iommufd {
    pub fn new() -> Self {
        let kernel = Kernel::new(Generation::Strict);
        let (queue, executor) = iommufd::queue(kernel.clone(), LOG2).unwrap();
        Self { kernel, queue, executor, executed: Vec::new() }
    }
}

/// One of two producers of a native ring; the other sends a CMD_SYNC of its own now and then.
pub struct OneOfTwo {
    ring: Ring,
    other: NativeRing,
    works: u64,
}

impl OneOfTwo {
    pub fn new() -> Self {
        let (mut rings, smmu) = NativeRing::several_with_consumer(LOG2, 2).unwrap();
        let other = rings.remove(1);
        Self { ring: Ring { ring: rings.remove(0), behind: Behind::new(smmu) }, other, works: 0 }
    }

    /// A command that the suite does not send.
    const OTHERS: Command = Command([0xfff0_0000_0000_0011, 0]);
}

impl Subject for Ring {
    fn queue(&mut self) -> &mut dyn HostQueue {
        &mut self.ring
    }

    fn capacity(&self) -> usize {
        24
    }

    fn set_device(&mut self, device: Device) {
        self.behind.device = device;
    }

    fn work(&mut self) {
        while self.behind.step() {
            // Whoever asks what has completed mends errors on the way.
            self.ring.completed();
        }
    }

    fn executed(&self) -> &[Command] {
        &self.behind.executed
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        self.behind.groups.clone()
    }
}

impl Subject for Iommufd {
    fn queue(&mut self) -> &mut dyn HostQueue {
        &mut self.queue
    }

    fn capacity(&self) -> usize {
        24
    }

    fn set_device(&mut self, device: Device) {
        match device {
            Device::Fine => {}
            Device::Refuses(command) => self.kernel.refuse(command),
            Device::TimesOut => self.kernel.fail([Errno::TIMEDOUT]),
            Device::Gone => self.kernel.go(Errno::NODEV),
        }
    }

    fn work(&mut self) {
        // A few more steps than it has something to do: one that fails counts as nothing done.
        let mut idle = 0;
        while idle < 5 {
            idle = if self.executor.step() > 0 { 0 } else { idle + 1 };
            self.queue.completed();
        }
        // It may execute commands again: the first time counts.
        self.executed = self.kernel.executed_once();
    }

    fn executed(&self) -> &[Command] {
        &self.executed
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        self.kernel.groups()
    }
}

impl Subject for EcmdqWithMsi {
    fn queue(&mut self) -> &mut dyn HostQueue {
        self.0.queue()
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn set_device(&mut self, device: Device) {
        self.0.set_device(device);
    }

    fn work(&mut self) {
        self.0.work();
    }

    fn executed(&self) -> &[Command] {
        self.0.executed()
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        self.0.groups()
    }
}

impl Subject for OneOfTwo {
    fn queue(&mut self) -> &mut dyn HostQueue {
        self.ring.queue()
    }

    fn capacity(&self) -> usize {
        20
    }

    fn set_device(&mut self, device: Device) {
        self.ring.set_device(device);
    }

    fn work(&mut self) {
        self.works += 1;
        if self.works.is_multiple_of(2) {
            self.meddle();
        }
        self.ring.work();
        self.ring.behind.executed.retain(|command| *command != Self::OTHERS);
    }

    fn executed(&self) -> &[Command] {
        self.ring.executed()
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        let mut groups = self.ring.groups();
        groups.iter_mut().for_each(|group| group.retain(|command| *command != Self::OTHERS));
        groups
    }

    fn meddle(&mut self) {
        if self.other.submit(&[Self::OTHERS]) == 1 {
            self.other.sync();
        }
    }
}

/// A model SMMU, whose faults are its own.
pub struct Model {
    queue: ModelSmmu,
    device: Device,
    executed: Vec<Command>,
}

impl Model {
    pub fn new() -> Self {
        let mut features = Features::linux();
        features.ats = true;
        let queue = ModelSmmu::new(&features);
        queue.set_pace(Pace::ByHand);
        queue.set_room(24);
        Self { queue, device: Device::Fine, executed: Vec::new() }
    }
}

impl Subject for Model {
    fn queue(&mut self) -> &mut dyn HostQueue {
        &mut self.queue
    }

    fn capacity(&self) -> usize {
        24
    }

    fn set_device(&mut self, device: Device) {
        self.device = device;
        match device {
            Device::Fine => {}
            Device::Refuses(command) => self.queue.refuse(command),
            Device::TimesOut => self.queue.fail_next(Cause::AtcTimeout),
            Device::Gone => self.queue.fail_next(Cause::DeviceGone),
        }
    }

    fn work(&mut self) {
        self.queue.work(usize::MAX, |command| self.executed.push(command));
    }

    fn executed(&self) -> &[Command] {
        &self.executed
    }

    /// It is done with each before it begins with the next.
    fn groups(&self) -> Vec<Vec<Command>> {
        self.executed.iter().map(|command| vec![*command]).collect()
    }
}
