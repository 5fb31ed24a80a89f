//! The host behind what is compared with the engine: the same rules, the same ring, one CMD_SYNC for all that have come together.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_engine::host::{Failure, HostQueue, NativeRing, RingConsumer, Ticket};
use ecmdq_engine::rules::{End, MAX_EXPANSION, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, Opcode, StreamId, StreamMap, Vmid};

use super::{BATCH, Executed, HOST_LOG2};

/// The features of the guest and of the host.
pub(super) fn features() -> Features {
    let mut features = Features::default();
    features.ats = true;
    features
}

/// The streams that the recorded commands name, as the host names them.
pub(super) const STREAMS: [StreamId; 3] = [StreamId(0x8), StreamId(0x42), StreamId(0x100)];

/// Rules, and the host's ring with an SMMU behind it.
#[derive(Debug)]
pub(super) struct Host {
    rules: Rules,
    streams: StreamMap,
    ring: NativeRing,
    smmu: RingConsumer,
    rewritten: Vec<Command>,
    /// A CMD_SYNC was passed.
    due: bool,
}

impl Host {
    pub fn new() -> io::Result<Self> {
        let features = features();
        let (ring, smmu) = NativeRing::with_consumer(HOST_LOG2)?;
        let pairs = STREAMS.map(|stream| (stream, HostStreamId(0x1_0000 | stream.0)));
        Ok(Self {
            rules: Rules::new(&features, &features, Vmid(1), &[]).map_err(io::Error::other)?,
            streams: StreamMap::from_pairs(pairs).map_err(io::Error::other)?,
            ring,
            smmu,
            rewritten: vec![Command::default(); BATCH + MAX_EXPANSION],
            due: false,
        })
    }

    /// Passes on up to a batch of commands of a guest. What is illegal is left out: nothing here sends it.
    pub fn pass(&mut self, mut commands: &[Command]) {
        while !commands.is_empty() {
            let applied = self.rules.apply(&self.streams, commands, &mut self.rewritten);
            self.due |= matches!(applied.end, End::Sync(_));
            let mut rest = &self.rewritten[..applied.host];
            while !rest.is_empty() {
                let taken = self.ring.submit(rest);
                rest = &rest[taken..];
                if !rest.is_empty() {
                    self.smmu.poll(|_| ());
                }
            }
            commands = &commands[applied.taken.max(1)..];
        }
    }

    /// Has all of it executed, and synchronised if a CMD_SYNC was passed.
    pub fn finish(&mut self) {
        while self.due {
            self.due = self.ring.submit_and_sync(&[]).1.is_none();
            self.smmu.poll(|_| ());
        }
        while self.smmu.poll(|_| ()) > 0 {}
        self.ring.completed();
    }

    pub fn executed(&self) -> Executed {
        executed(&self.smmu)
    }
}

fn executed(smmu: &RingConsumer) -> Executed {
    let syncs = smmu.received(Opcode::CMD_SYNC);
    Executed { commands: smmu.total() - syncs, syncs }
}

/// The host's ring for the engine, with an SMMU that executes on the worker's thread what it is handed.
#[derive(Debug)]
pub struct Inline {
    ring: NativeRing,
    smmu: RingConsumer,
    counts: Arc<Counts>,
}

/// What it has executed, for other threads.
#[derive(Debug, Default)]
pub struct Counts {
    all: AtomicU64,
    syncs: AtomicU64,
}

impl Counts {
    pub fn executed(&self) -> Executed {
        let syncs = self.syncs.load(Relaxed);
        Executed { commands: self.all.load(Relaxed) - syncs, syncs }
    }
}

impl Inline {
    pub fn new() -> io::Result<(Self, Arc<Counts>)> {
        let (ring, smmu) = NativeRing::with_consumer(HOST_LOG2)?;
        let counts = Arc::<Counts>::default();
        Ok((Self { ring, smmu, counts: counts.clone() }, counts))
    }

    fn execute(&mut self) {
        // Relaxed, and no read-modify-write: there is one writer, and readers look when it rests.
        let add = |to: &AtomicU64, n: u64| to.store(to.load(Relaxed) + n, Relaxed);
        let count = |commands: &[Command]| {
            add(&self.counts.all, commands.len() as u64);
            // There is one at most, behind all that was handed over with it.
            let sync = commands.last().is_some_and(|command| command.opcode() == Opcode::CMD_SYNC);
            add(&self.counts.syncs, u64::from(sync));
        };
        while self.smmu.poll(count) > 0 {}
    }
}

impl HostQueue for Inline {
    fn submit(&mut self, commands: &[Command]) -> usize {
        let taken = self.ring.submit(commands);
        self.execute();
        taken
    }

    fn sync(&mut self) -> Ticket {
        let ticket = self.ring.sync();
        self.execute();
        ticket
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        let taken = self.ring.submit_and_sync(commands);
        self.execute();
        taken
    }

    fn completed(&mut self) -> Ticket {
        self.ring.completed()
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.ring.failure(ticket)
    }
}
