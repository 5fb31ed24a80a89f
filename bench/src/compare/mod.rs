//! The same commands, by the same rules, to the same host, in different ways: the engine, what a VMM would use in its place, and
//! the limit.
//!
//! A [`Transport`] has a guest's side, which runs on one processor, and a server's, which takes the commands, has the rules
//! checked and rewritten, and executes them at the host, all on another one. [`Lane`] drives one with a [`Load`].

mod engine;
mod host;
mod lane;
mod late;
mod limit;
mod queues;
mod round_trip;
mod sharing;
mod trap;
mod virtqueue;

pub use engine::{BesideIdle, Engine, Guests};
pub use lane::{Lane, Load, Pair, Ran, Wait};
pub use limit::Limit;
pub use queues::{Array, Deque, Rtrb};
pub use round_trip::{Schedule, ping_pong};
pub use sharing::{OneCmdq, OwnEcmdqs};
pub use trap::Trap;
pub use virtqueue::Virtqueue;

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_engine::Command;

/// log2 of the entries of a guest's queue: 1,024, in everything that is compared.
pub const QUEUE_LOG2: u32 = 10;
/// log2 of the entries of the host's ring.
pub const HOST_LOG2: u32 = 12;
/// The most commands that a server takes from a queue before it looks at the next one: as many as the engine.
pub const BATCH: usize = 256;

/// Opens so many queues of a [`Transport`].
pub type Open = fn(usize) -> io::Result<Box<dyn Lane>>;

/// What is compared: the limit, the engine, and the others.
pub const WAYS: [(&str, Open); 9] = [
    ("limit", open::<Limit>),
    ("engine", open::<Engine>),
    ("virtqueue, 1 a chain", open::<Virtqueue<1>>),
    ("virtqueue, 16 a chain", open::<Virtqueue<16>>),
    ("virtqueue, 64 a chain", open::<Virtqueue<64>>),
    ("ArrayQueue", open::<Array>),
    ("rtrb", open::<Rtrb>),
    ("Mutex<VecDeque>", open::<Deque>),
    ("trap", open::<Trap>),
];

/// Opens so many queues.
///
/// # Errors
///
/// As [`Transport::open`].
pub fn open<T: Transport + 'static>(queues: usize) -> io::Result<Box<dyn Lane>> {
    Ok(Box::new(Pair::open::<T>(queues)?))
}

/// A way from guests to the host.
pub trait Transport {
    /// The side of one queue.
    type Guest: Guest + Send;
    /// The other side of all of them.
    type Server: Server + Send;

    /// So many queues, ready to be used.
    ///
    /// # Errors
    ///
    /// What the system said when it refused memory or a descriptor.
    fn open(queues: usize) -> io::Result<(Vec<Self::Guest>, Self::Server)>;
}

/// One queue of a guest.
pub trait Guest {
    /// Sends all of `group` with one doorbell; `false` says that there is no room yet.
    fn send(&mut self, group: &[Command]) -> bool;

    /// Whether all that was sent has completed; what has no CMD_SYNC behind it, whether it has been taken.
    fn is_done(&mut self) -> bool;
}

/// Who serves the queues.
pub trait Server {
    /// Whether it, or a guest that waits for it, sleeps when there is nothing to do.
    const SLEEPS: bool = false;

    /// Takes what there is, hands it to the host, has the host execute it, and completes. Says whether there was anything.
    fn serve(&mut self) -> bool;

    /// The same until `stop`.
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            if !self.serve() {
                spin_loop();
            }
        }
    }

    /// What the host has executed.
    fn executed(&self) -> Executed;
}

/// What the host has executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Commands but for CMD_SYNCs.
    pub commands: u64,
    /// CMD_SYNCs.
    pub syncs: u64,
}
