//! What one guest sees of its SMMU, and what its VMM does with it.
//!
//! A [`VirtualSmmu`] is a handle: clones are the same virtual SMMU. A [`Worker`](crate::Worker) serves it; any thread of the VMM
//! may hand over trapped accesses, pause, save, or reset it meanwhile. A trapped access takes no lock that the worker
//! takes: registers are memory in every [`FrontEnd`], which the guest or the trap writes and the worker looks at.

mod calls;
mod complete;
mod doorbell;
mod global_registers;
mod inspect;
mod lifecycle;
mod mmio;
mod output_queue;
mod queue;
mod ready;
mod register_file;
mod serve;
mod snapshot;
mod state;
mod take;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use ecmdq_ring::SharedWord;
use parking_lot::Mutex;
use thiserror::Error;

use crate::events::EventSink;
use crate::features::{BeyondHost, Features, FeaturesError};
use crate::host::Identities;
use crate::identity::{StreamMap, Vmid};
use crate::interrupts::Interrupts;
use crate::memory::GuestRam;
use crate::registers::{CR0, GBPA, GERRORN, IRQ_CTRL};
use crate::rules::{Quirk, Rejected};
use crate::sleep::{Notified, WakerSlot};
use crate::stats::{Counters, Stats};
use crate::stream_table::StreamTable;
use calls::Callbacks;
use doorbell::Writing;
pub(crate) use ready::Ready;
use register_file::RegisterFile;
pub(crate) use serve::Visit;
pub(crate) use state::State;

pub(crate) use doorbell::Watch;
pub use doorbell::{Doorbell, DoorbellTraps};
pub use inspect::Inspection;
pub use lifecycle::NotPaused;
pub use output_queue::{AutoResponse, NotRecorded, PageRequestLost, StreamIdOf};
pub use register_file::{ControlPage, FrontEnd};
pub use snapshot::{RestoreError, Snapshot, SnapshotError};
pub use state::OnRequest;

/// What a virtual SMMU is made of.
pub struct Config {
    /// What it shows in its ID registers.
    pub features: Features,
    /// What the host's SMMU can do.
    pub host_features: Features,
    /// Deviations that the guest needs.
    pub quirks: Vec<Quirk>,
    /// The host's VMID of the guest's translations.
    pub vmid: Vmid,
    /// The streams that the guest owns.
    pub streams: Arc<StreamMap>,
    /// The guest's memory: [`Ram`](crate::memory::Ram) for a VMM that uses vm-memory.
    pub ram: Box<dyn GuestRam>,
    /// How the guest reaches the registers.
    pub front_end: FrontEnd,
    /// How the guest is interrupted.
    pub interrupts: Box<dyn Interrupts>,
    /// What the guest asks of the VMM goes here.
    pub on_request: OnRequest,
}

/// Why a [`Config`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The features contradict the architecture.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The features are more than the host has.
    #[error(transparent)]
    BeyondHost(#[from] BeyondHost),
    /// The register pages are not as large as they must be.
    #[error("register pages of {len:#x} bytes, {needed:#x} are needed")]
    Registers {
        /// Their size.
        len: usize,
        /// What is needed for pages 0 and 1 and the control pages.
        needed: usize,
    },
    /// No memory for the control pages.
    #[error("no memory for the control pages: {0}")]
    Memory(io::ErrorKind),
}

/// Why a host was not bound to a virtual SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BindHostError {
    /// The guest is shown more than the host has.
    #[error(transparent)]
    BeyondHost(#[from] BeyondHost),
    /// The guest relies on what it was shown.
    #[error("the guest has enabled its SMMU or a queue: bind the host before, or after a reset")]
    Enabled,
}

/// A virtual SMMU. Clones are handles to the same one.
#[derive(Clone)]
pub struct VirtualSmmu(Arc<Shared>);

struct Shared {
    features: Features,
    vmid: Vmid,
    streams: Arc<StreamMap>,
    pages: RegisterFile,
    /// Held while a register is written, so that guards and writes of several vCPUs do not mix. A worker only tries to take it,
    /// when it is about to sleep.
    writing: Mutex<Writing>,
    worker: Arc<WakerSlot>,
    /// It has a worker.
    attached: AtomicBool,
    /// Workers only ever try to lock it: while somebody else has it, or wants it, they leave the guest out. While it is locked
    /// no code of the VMM runs but its [`GuestRam`], and no host queue is called.
    state: Mutex<State>,
    /// The VMM's code that a worker calls.
    callbacks: Mutex<Callbacks>,
    /// How many threads of the VMM wait for `state`.
    wanted: AtomicUsize,
    counters: Arc<Counters>,
}

/// Reads the statistics of a virtual SMMU while a worker runs it.
#[derive(Clone, Debug)]
pub struct StatsReader(Arc<Counters>);

impl StatsReader {
    /// The statistics now.
    pub fn read(&self) -> Stats {
        self.0.read()
    }
}

impl VirtualSmmu {
    /// A virtual SMMU after reset.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a configuration that cannot be.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let vmid = config.vmid;
        let (state, callbacks) = State::new(config)?;
        Ok(Self(Arc::new(Shared {
            features: state.features,
            vmid,
            streams: state.streams.clone(),
            pages: state.pages.clone(),
            writing: Mutex::default(),
            worker: state.worker.clone(),
            attached: AtomicBool::new(false),
            counters: state.counters.clone(),
            state: Mutex::new(state),
            callbacks: Mutex::new(callbacks),
            wanted: AtomicUsize::new(0),
        })))
    }

    /// What it shows in its ID registers.
    pub fn features(&self) -> Features {
        self.0.features
    }

    /// Follows that the host's SMMU is one with these features: for a VMM that learns only when it makes the first device what is behind
    /// its guest, or moves the guest to other devices. What the guest is shown does not change.
    ///
    /// It takes a guest that has nothing enabled: the SMMU, a queue, or anything else of CR0.
    ///
    /// # Errors
    ///
    /// [`BindHostError`]; then nothing has changed.
    pub fn bind_host(&self, host_features: Features) -> Result<(), BindHostError> {
        self.0.control(|state| state.bind_host(&host_features))
    }

    /// Where the guest's registers say that its stream table is: since [`Request::Enable`](crate::rules::Request::Enable) until CR0.SMMUEN is
    /// cleared, what that request said.
    pub fn stream_table(&self) -> StreamTable {
        self.0.pages.stream_table()
    }

    /// The ECMDQ control pages, to be mapped into the guest; none unless the front end is [`FrontEnd::Direct`].
    pub fn control_pages(&self) -> impl Iterator<Item = ControlPage<'_>> {
        self.0.pages.control_pages()
    }

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.read()
    }

    /// A handle to the statistics that does not keep the virtual SMMU.
    pub fn stats_reader(&self) -> StatsReader {
        StatsReader(self.0.counters.clone())
    }

    /// The last command that raised CERROR_ILL.
    pub fn last_rejected(&self) -> Option<Rejected> {
        self.0.control(|state| state.last_rejected)
    }

    /// What the VMM calls it: the VMID that it was made with.
    pub(crate) fn vmid(&self) -> Vmid {
        self.0.vmid
    }

    /// The doorbells of its queues, by number.
    pub(crate) fn doorbells(&self) -> Vec<SharedWord> {
        self.0.control(|state| state.queues.iter().filter_map(|queue| queue.registers.doorbell()).collect())
    }

    /// The registers that are no queue's own, for a worker that looks at them often.
    pub(crate) fn global_registers(&self) -> [Option<SharedWord>; 4] {
        [CR0, IRQ_CTRL, GERRORN, GBPA]
            .map(|offset| SharedWord::new(self.0.pages.frame.memory().clone(), offset))
    }

    /// Whether both are handles to the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether it had no worker, and gets one now.
    pub(crate) fn claim(&self) -> bool {
        // Relaxed: what a worker has to see of the last one is behind locks, of the waker and of the state, that the last one
        // took before `part` stored what is swapped here.
        !self.0.attached.swap(true, Relaxed)
    }

    /// It gets a worker: commands name the identities that its host queue takes, events go to `events`.
    pub(crate) fn join(&self, identities: Identities, events: EventSink) {
        self.0.control(|state| {
            state.rules.set_identities(identities);
            state.events = Some(events);
            state.looks = true;
        });
    }

    /// Its worker goes, and takes with it what was on its way to the host.
    pub(crate) fn abandon(&self) {
        self.0.control(State::abandon);
        self.part();
    }

    /// It has no worker any more.
    pub(crate) fn part(&self) {
        self.set_worker(None);
        self.0.control(|state| state.events = None);
        // Relaxed: see `claim`.
        self.0.attached.store(false, Relaxed);
    }

    /// Whom it notifies.
    pub(crate) fn set_worker(&self, worker: Option<Notified>) {
        self.0.worker.set(worker);
    }

    /// Whether somebody has something for its worker.
    pub(crate) fn take_notified(&self) -> bool {
        self.0.worker.take()
    }

    /// After a panic in [`Self::with_state`]: which queue is not served any more; `None` if nothing is.
    pub(crate) fn quarantine(&self) -> Option<usize> {
        self.0.control(|state| {
            let queue = state.serving.take();
            state.quarantine(queue)
        })
    }

    /// For the worker: `None` if the VMM is busy with the state.
    pub(crate) fn with_state<T>(&self, f: impl FnOnce(&mut State) -> T) -> Option<T> {
        // Relaxed: it only tells to stay away; the lock orders the rest.
        if self.0.wanted.load(Relaxed) != 0 {
            return None;
        }
        Some(f(&mut *self.0.state.try_lock()?))
    }
}

impl Shared {
    /// Looks at the state, or changes it, for the VMM. The worker lets go of it within a sweep, and looks at it again afterwards.
    fn control<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // Relaxed: see `with_state`.
        self.wanted.fetch_add(1, Relaxed);
        let mut state = self.state.lock();
        self.wanted.fetch_sub(1, Relaxed);
        let result = f(&mut state);
        drop(state);
        self.worker.notify();
        result
    }
}

impl fmt::Debug for VirtualSmmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.state.try_lock() {
            Some(state) => state.inspect().fmt(f),
            None => f.debug_struct("VirtualSmmu").field("stats", &self.stats()).finish_non_exhaustive(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { features, host_features, quirks, vmid, streams, front_end, .. } = self;
        f.debug_struct("Config")
            .field("features", features)
            .field("host_features", host_features)
            .field("quirks", quirks)
            .field("vmid", vmid)
            .field("streams", streams)
            .field("front_end", front_end)
            .finish_non_exhaustive()
    }
}
