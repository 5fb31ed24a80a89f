//! What all actors share.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::env;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::time::{Duration, Instant};

use ecmdq_engine::host::model::ModelSmmu;
use parking_lot::{Mutex, RwLock};

use crate::fleet::Fleet;
use crate::guest::{self, Guest};
use crate::random::Random;

/// What an actor remembers of what it did.
const LOG: usize = 24;

/// Faults of one kind that hosts were given: one that has begun and has not ended may be told to anybody whom it concerns.
#[derive(Debug, Default)]
pub struct Injected {
    begun: AtomicU64,
    ended: AtomicU64,
    /// When the last one ended, by the clock of whoever asks.
    last: Mutex<Option<Instant>>,
}

/// How long it may take until everybody has been told of a fault: it may come with the CMD_SYNC after the next.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

impl Injected {
    pub fn begin(&self) {
        self.begun.fetch_add(1, SeqCst);
    }

    pub fn end(&self) {
        *self.last.lock() = Some(Instant::now());
        self.ended.fetch_add(1, SeqCst);
    }

    /// Whether there was one since a mark, or shortly before.
    pub fn around(&self, mark: u64) -> bool {
        self.since(mark) || self.last.lock().is_some_and(|last| last.elapsed() < TOLD_WITHIN)
    }

    /// To be kept by whoever asks [`Self::since`] later.
    pub fn mark(&self) -> u64 {
        self.ended.load(SeqCst)
    }

    /// Whether there was one at any time since a mark.
    pub fn since(&self, mark: u64) -> bool {
        self.begun.load(SeqCst) > mark
    }
}

/// The faults of hosts that some guests share, or of one guest's own.
#[derive(Debug, Default)]
pub struct Faults {
    pub illegal: Injected,
    pub atc: Injected,
    pub transient: Injected,
    /// A host that has gone does not come back.
    pub gone: Injected,
}

/// What the attack is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Attack,
    /// Nothing goes wrong any more, and what waits must complete.
    Calm,
    End,
}

pub struct World {
    pub seed: u64,
    pub seconds: Duration,
    patience: Duration,
    start: Instant,
    phase: AtomicU8,
    /// Whose caches every host's commands reach.
    pub model: ModelSmmu,
    pub guests: Vec<Arc<Guest>>,
    /// Moves of guests hold it for reading, changes of workers for writing. Locked before a guest's control.
    pub fleet: RwLock<Fleet>,
    pub faults: Faults,
    pub counts: Counts,
    actors: Mutex<Vec<Arc<Log>>>,
    found: Mutex<Vec<String>>,
    any_found: AtomicBool,
}

/// What the attack has done.
#[derive(Debug, Default)]
pub struct Counts {
    pub judged: AtomicU64,
    pub exempt: AtomicU64,
    pub abandoned: AtomicU64,
    pub errors: AtomicU64,
    pub moves: AtomicU64,
    pub restores: AtomicU64,
    pub resets: AtomicU64,
    pub workers_made: AtomicU64,
    pub workers_lost: AtomicU64,
    pub hosts: AtomicU64,
    pub calls: AtomicU64,
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, SeqCst);
}

/// The last actions of an actor, and when it was last alive.
struct Log {
    name: String,
    lines: Mutex<VecDeque<(Duration, String)>>,
    beat: AtomicU64,
    left: AtomicBool,
}

/// One thread of the attack.
pub struct Actor {
    log: Arc<Log>,
    start: Instant,
    seed: u64,
}

impl Actor {
    /// Its own numbers.
    pub fn random(&self) -> Random {
        Random::new(self.seed)
    }

    pub fn note(&self, line: String) {
        let mut lines = self.log.lines.lock();
        if lines.len() == LOG {
            lines.pop_front();
        }
        lines.push_back((self.start.elapsed(), line));
        drop(lines);
        self.beat();
    }

    pub fn beat(&self) {
        self.log.beat.store(self.start.elapsed().as_millis() as u64, SeqCst);
    }

    pub fn leave(&self) {
        self.log.left.store(true, SeqCst);
    }

    pub fn name(&self) -> &str {
        &self.log.name
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

impl World {
    pub fn new() -> Arc<Self> {
        let seed = match env::var("ECMDQ_SEED").as_deref() {
            Err(_) => 0x5eed,
            Ok("random") => RandomState::new().hash_one(0),
            Ok(seed) => seed.parse().expect("ECMDQ_SEED is `random` or a number"),
        };
        let mut random = Random::new(seed);
        let features = guest::host_features();
        let model = ModelSmmu::new(&features);
        Arc::new(Self {
            seed,
            seconds: Duration::from_secs(number("ECMDQ_ATTACK_SECONDS").unwrap_or(4)),
            patience: Duration::from_secs(number("ECMDQ_ATTACK_PATIENCE").unwrap_or(600)),
            start: Instant::now(),
            phase: AtomicU8::new(0),
            model,
            guests: guest::all(&mut random),
            fleet: RwLock::default(),
            faults: Faults::default(),
            counts: Counts::default(),
            actors: Mutex::default(),
            found: Mutex::default(),
            any_found: AtomicBool::new(false),
        })
    }

    pub fn actor(&self, name: &str) -> Actor {
        let seed = name.bytes().fold(self.seed, |seed, byte| Random::new(seed ^ u64::from(byte)).next());
        let beat = AtomicU64::new(self.start.elapsed().as_millis() as u64);
        let log = Log { name: name.into(), lines: Mutex::default(), beat, left: AtomicBool::new(false) };
        let log = Arc::new(log);
        let mut actors = self.actors.lock();
        // Of those that have left the last ones may still be of interest.
        if actors.len() > 200
            && let Some(at) = actors.iter().position(|log| log.left.load(SeqCst))
        {
            actors.remove(at);
        }
        actors.push(log.clone());
        Actor { log, start: self.start, seed }
    }

    pub fn actors_left(&self) -> usize {
        self.actors.lock().iter().filter(|log| !log.left.load(SeqCst)).count()
    }

    pub fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, SeqCst);
    }

    pub fn is_attack(&self) -> bool {
        self.phase.load(SeqCst) == Phase::Attack as u8
    }

    pub fn is_over(&self) -> bool {
        self.phase.load(SeqCst) == Phase::End as u8 || self.any_found.load(SeqCst)
    }

    /// How long somebody may be stuck.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A fault has been found.
    pub fn found(&self, what: String) {
        self.found.lock().push(what);
        self.any_found.store(true, SeqCst);
    }

    /// Fails if somebody has found a fault, or is stuck.
    pub fn check(&self) {
        let now = self.now();
        let limit = self.patience.as_millis() as u64;
        let stuck = |since: u64| now.saturating_sub(since) > limit;
        if !self.any_found.load(SeqCst) {
            for log in self.actors.lock().iter().filter(|log| !log.left.load(SeqCst)) {
                if stuck(log.beat.load(SeqCst)) {
                    self.found(format!("{} is stuck", log.name));
                }
            }
            for guest in &self.guests {
                for (queue, since) in guest.since.iter().enumerate() {
                    let since = since.load(SeqCst);
                    if since != 0 && stuck(since) {
                        let where_to = guest.placement.try_lock().map(|p| format!("{p:?}"));
                        let state = guest.machine.try_read().map(|m| format!("{:?}", m.smmu));
                        let (n, state) = (guest.number, state.unwrap_or_default());
                        self.found(format!(
                            "guest {n}, queue {queue}: a CMD_SYNC does not complete; {where_to:?}; {state}"
                        ));
                    }
                }
            }
        }
        if self.any_found.load(SeqCst) {
            panic!("{}", self.report());
        }
    }

    fn report(&self) -> String {
        let mut text = format!("ECMDQ_SEED={} after {:?}\n", self.seed, self.start.elapsed());
        for found in self.found.lock().iter().take(5) {
            let _ = writeln!(text, "FOUND: {found}");
        }
        let _ = writeln!(text, "{}", self.summary());
        if let Some(fleet) = self.fleet.try_read() {
            let _ = writeln!(text, "{}", fleet.report());
        }
        for guest in &self.guests {
            let placement = guest.placement.try_lock().map(|placement| format!("{placement:?}"));
            let _ = writeln!(text, "guest {}: {:?} {placement:?}", guest.number, guest.plan);
        }
        for log in self.actors.lock().iter() {
            let _ = writeln!(text, "--- {}, last alive at {} ms", log.name, log.beat.load(SeqCst));
            for (at, line) in log.lines.lock().iter() {
                let _ = writeln!(text, "{at:>12.3?} {line}");
            }
        }
        text
    }

    pub fn summary(&self) -> String {
        format!("{} guests, {:?}", self.guests.len(), self.counts)
    }
}
