//! The engine under one combination of features.

use ecmdq_engine::rules::{End, MAX_EXPANSION, Rules};
use ecmdq_engine::{Command, HostStreamId, StreamId, StreamMap, Vmid};

use super::on::{D128, DS, ONE_PAGE, On, RIL, SMMUEN};
use super::oracle::{Fate, oracle};

pub const VMID: u16 = 0xa5c3;

/// The guest's StreamIDs and the host's; all bits are used by one or the other.
pub const STREAMS: [(u32, u32); 3] = [(0x0, 0x8000_0001), (0x1, 0x7fff_fffe), (0x8000_0000, 0x55aa_55aa)];

pub struct Engine {
    pub on: On,
    pub rules: Rules,
    pub streams: StreamMap,
}

/// What a command becomes that is alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    pub host: Vec<Command>,
    pub taken: usize,
    pub dropped: usize,
    pub widened: usize,
    pub end: End,
}

impl Engine {
    pub fn new(on: On) -> Self {
        Self::on_host(on, on)
    }

    pub fn on_host(on: On, host: On) -> Self {
        Self::with_streams(on, host, STREAMS)
    }

    pub fn with_streams(on: On, host: On, streams: [(u32, u32); 3]) -> Self {
        let pairs = streams.map(|(guest, host)| (StreamId(guest), HostStreamId(host)));
        let mut host = host.features();
        host.s1p = true;
        let mut rules = Rules::new(&on.features(), &host, Vmid(VMID), on.quirks()).unwrap();
        rules.set_smmu_enabled(on.has(SMMUEN));
        Self { on, rules, streams: StreamMap::from_pairs(pairs).unwrap() }
    }

    pub fn alone(&self, command: Command) -> Alone {
        let mut host = [Command::default(); MAX_EXPANSION];
        let applied = self.rules.apply(&self.streams, &[command], &mut host);
        assert_eq!(applied.cost, cost(&host[..applied.host]));
        let (taken, dropped, widened) = (applied.taken, applied.dropped, applied.widened);
        Alone { host: host[..applied.host].to_vec(), taken, dropped, widened, end: applied.end }
    }

    /// What becomes of a command that no host needs to have expanded.
    pub fn fate(&self, command: [u64; 2]) -> Fate {
        let mut host = [Command::default(); 1];
        let applied = self.rules.apply(&self.streams, &[Command(command)], &mut host);
        let fate = match (applied.taken, applied.host, applied.dropped, applied.end) {
            (1, 1, 0, End::Batch) => Fate::Host(host[0].0),
            (1, 0, 1, End::Batch) => Fate::Dropped,
            (1, 0, 0, End::Batch) => Fate::Nowhere,
            (1, 0, 0, End::Request(request)) => Fate::Request(request),
            (1, 0, 0, End::Sync(signal)) => Fate::Sync(signal),
            (0, 0, 0, End::Illegal(rejected)) if rejected.command.0 == command => Fate::Ill,
            _ => panic!("{applied:?} makes no sense for one command"),
        };
        assert_eq!(applied.widened, 0, "{}", Command(command));
        let ends = matches!(fate, Fate::Request(_) | Fate::Sync(_));
        assert!(!ends || self.rules.ends_batch(Command(command)), "{} ends a batch", Command(command));
        fate
    }

    /// The engine and the oracle agree.
    #[track_caller]
    pub fn check(&self, command: [u64; 2]) {
        let (got, expected) = (self.fate(command), oracle(self.on, command));
        let [low, high] = command;
        assert_eq!(got, expected, "{low:#018x} {high:#018x} ({}) with {:?}", Command(command), self.on);
    }
}

/// What commands cost the host, in units of a TLBI of one address.
pub fn cost(host: &[Command]) -> u64 {
    let one = |command: &Command| match command.0[0] as u8 {
        0x10 => 16,
        0x40 => 8,
        0x06 | 0x11 => 4,
        0x05 => 2,
        _ => 1,
    };
    host.iter().map(one).sum()
}
