//! Guests, a worker and a host, put together.

use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::{Command, VirtualSmmu, Worker};

use super::reg::CR0;
use super::{CMDQEN, Guest, SMMUEN, Script, Setup};

/// One guest in front of a native ring and the SMMU that stands behind it.
pub struct Machine {
    pub guest: Guest,
    pub worker: Worker<NativeRing>,
    pub host: RingConsumer,
    received: Vec<Command>,
}

impl Machine {
    pub fn new(setup: Setup) -> Self {
        let (ring, host) = NativeRing::with_consumer(8).unwrap();
        let mut worker = Worker::new(ring);
        let (guest, smmu) = Guest::new(setup);
        worker.attach(smmu).unwrap();
        Self { guest, worker, host, received: Vec::new() }
    }

    /// With the default features and an enabled queue of 2^`log2` entries.
    pub fn with_queue(log2: u32) -> Self {
        Self::new(Setup::default()).enabled(log2)
    }

    pub fn enabled(mut self, log2: u32) -> Self {
        self.guest.start(log2);
        self.worker.poll();
        assert!(self.guest.enabled());
        self
    }

    /// Lets the host's SMMU take what is there.
    pub fn poll_host(&mut self) -> usize {
        self.host.poll(|commands| self.received.extend_from_slice(commands))
    }

    /// Lets worker and host work until there is nothing left to do.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let busy = self.worker.poll();
            if self.poll_host() == 0 && !busy {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }

    /// Adds commands, rings, and lets everything happen.
    pub fn run(&mut self, commands: &[Command]) {
        self.guest.send(commands);
        self.settle();
    }

    /// What the host received since the last call, its own CMD_SYNCs included.
    pub fn take_received(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.received)
    }
}

/// Several guests in front of a host queue that does what the test says.
pub struct Rig {
    pub guests: Vec<Guest>,
    pub worker: Worker<Script>,
    pub host: Script,
}

impl Rig {
    /// `n` guests with VMIDs 1 to `n` and enabled queues of 2^`log2` entries.
    pub fn new(n: u16, log2: u32, host: Script) -> Self {
        let mut rig = Self { guests: Vec::new(), worker: Worker::new(host.clone()), host };
        for vmid in 1..=n {
            rig.add(Setup { vmid, host_stream: u32::from(vmid) << 16, ..Setup::default() }, log2);
        }
        rig
    }

    /// As [`Self::new`], before a host that is late, with queues of 2^4 entries, ATS, two ECMDQs, and SMMUEN, without which
    /// ATC_INV is ignored.
    pub fn with_ats(n: u16) -> Self {
        let mut rig = Self::new(0, 4, Script::default());
        (1..=n).for_each(|vmid| rig.add(Self::ats_setup(vmid), 4));
        rig.guests.iter().for_each(|guest| guest.write(CR0, CMDQEN | SMMUEN));
        rig.poll();
        rig
    }

    /// A guest of [`Self::with_ats`].
    pub fn ats_setup(vmid: u16) -> Setup {
        let ats_and_ecmdqs = Setup::with(|f| {
            *f = f.with_ecmdqs(0, 1);
            f.ats = true;
        });
        Setup { vmid, host_stream: u32::from(vmid) << 16, ..ats_and_ecmdqs }
    }

    /// What the VMM of a guest has.
    pub fn handle(&self, guest: usize) -> VirtualSmmu {
        self.worker.guests().nth(guest).unwrap().clone()
    }

    /// Adds a guest with an enabled queue.
    pub fn add(&mut self, setup: Setup, log2: u32) {
        let (mut guest, smmu) = Guest::new(setup);
        self.worker.attach(smmu).unwrap();
        guest.start(log2);
        self.worker.poll();
        assert!(guest.enabled());
        self.guests.push(guest);
    }

    pub fn poll(&mut self) {
        self.worker.poll();
    }

    pub fn poll_times(&mut self, n: usize) {
        (0..n).for_each(|_| self.poll());
    }

    pub fn cons(&self, guest: usize) -> u32 {
        self.guests[guest].cons()
    }
}
