//! Hosts that may be sent to a thread, and guests that wait with patience.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Idle, Running, SleeperKind, Waker, Worker};

use crate::common::*;

/// A host that has completed everything whenever it is asked. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct AtOnce {
    commands: Arc<AtomicU64>,
    tickets: u64,
}

impl AtOnce {
    /// How many commands it was given.
    pub fn received(&self) -> u64 {
        self.commands.load(Relaxed)
    }
}

impl HostQueue for AtOnce {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.commands.fetch_add(commands.len() as u64, Relaxed);
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.tickets)
    }

    fn set_waker(&mut self, _: &Waker) -> bool {
        // Nothing is ever waited for.
        true
    }
}

/// Sleeps whenever it can, and looks at nothing by a timer for a long time: a doorbell that is lost is one for ever.
pub fn sleepy(sleeper: SleeperKind) -> Idle {
    Idle { look_every: Duration::from_secs(1000), sleeper: Some(sleeper), ..Idle::always_sleep() }
}

/// On each kind of sleeper that this system has.
pub fn on_each_sleeper(test: impl Fn(SleeperKind)) {
    for kind in [SleeperKind::IoUring, SleeperKind::Epoll] {
        match Worker::new(AtOnce::default()).with_sleep(sleepy(kind)) {
            Ok(_) => test(kind),
            Err(error) => println!("without {kind:?}: {error}"),
        }
    }
}

/// Waits until the worker has gone to sleep since now; or is about to, since it counts that before it does.
pub fn asleep<H: HostQueue>(running: &Running<H>) {
    let handle = running.handle();
    let before = handle.sleeps();
    handle.wake();
    wait_for("the worker sleeps", || handle.sleeps() > before);
}

/// A guest with an enabled CMDQ whose registers trap, or with one ECMDQ on a page that it writes without a trap.
pub fn trapped() -> Setup {
    Setup { direct: true, ..Setup::default() }
}

pub fn with_ecmdq() -> Setup {
    Setup { direct: true, ..Setup::with(|f| *f = f.with_ecmdqs(0, 0)) }
}

/// Enables the CMDQ, as a driver does: by traps, while a worker serves the guest.
pub fn enable(guest: &mut Guest) {
    guest.start(4);
    wait_for("the queue is enabled", || guest.enabled());
}

/// One invalidation and a CMD_SYNC; waits until that is complete.
pub fn invalidate(guest: &mut Guest, asid: u64) {
    guest.send(&[nh_asid(asid), sync()]);
    wait_for("a CMD_SYNC is complete", || guest.cons() == guest.prod());
}

/// How a vCPU's store of PROD reaches the page.
pub type Store<'a> = Box<dyn FnMut(&Ecmdq, u32) + Send + 'a>;

/// The same on an ECMDQ.
pub fn invalidate_on(queue: &mut Ecmdq, store: &mut Store<'_>, asid: u64) {
    queue.push(&[nh_asid(asid), sync()]);
    store(queue, EN | queue.prod());
    wait_for("a CMD_SYNC is complete", || queue.cons() == queue.prod());
}
