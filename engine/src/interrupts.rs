//! Interrupts towards the guest.

use std::fmt;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// How the virtual SMMU interrupts its guest. The worker calls it, and goes on when it returns: it must not wait for the worker.
///
/// Nothing is locked during a call: it may call the virtual SMMU, and may take any lock. Registers show by then what is told; calls come
/// after the visit in which they arose, in the order in which they did.
pub trait Interrupts: Send {
    /// The global error wire: an edge (facts sheet, section 2.4).
    fn gerror(&mut self) {}

    /// The CMD_SYNC wire: an edge for each CMD_SYNC with CS=SIG_IRQ (facts sheet, section 1.11). Linux does not use it.
    fn cmd_sync(&mut self) {}

    /// The event queue's wire: an edge when the queue is no longer empty (IHI 0070 §3.18.2).
    fn event_queue(&mut self) {}

    /// The page request queue's wire: an edge when the queue is no longer empty, or for each last request of a group
    /// (IHI 0070 §6.3.36).
    fn page_request_queue(&mut self) {}

    /// An MSI to an address that is not guest RAM, or that is RAM mapped read-only; false if there is nothing at that address, which the guest
    /// learns as an abort.
    fn msi(&mut self, address: GuestAddress, data: u32) -> bool {
        let _ = (address, data);
        false
    }
}

/// No wires, and no MSI beyond guest RAM.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInterrupts;

impl Interrupts for NoInterrupts {}

/// What an MSI beyond guest RAM is handed to: says whether there is anything at the address.
pub type MsiSink = Box<dyn FnMut(GuestAddress, u32) -> bool + Send>;

/// Wires that are eventfds, as KVM's irqfds are. They should be non-blocking.
#[derive(Default)]
pub struct EventfdInterrupts {
    /// The global error wire.
    pub gerror: Option<EventFd>,
    /// The CMD_SYNC wire. It costs a system call for each CMD_SYNC with CS=SIG_IRQ: leave it out for Linux.
    pub cmd_sync: Option<EventFd>,
    /// The event queue's wire.
    pub event_queue: Option<EventFd>,
    /// The page request queue's wire.
    pub page_request_queue: Option<EventFd>,
    /// Where MSIs beyond guest RAM go.
    pub msi: Option<MsiSink>,
}

impl Interrupts for EventfdInterrupts {
    fn gerror(&mut self) {
        pulse(self.gerror.as_ref());
    }

    fn cmd_sync(&mut self) {
        pulse(self.cmd_sync.as_ref());
    }

    fn event_queue(&mut self) {
        pulse(self.event_queue.as_ref());
    }

    fn page_request_queue(&mut self) {
        pulse(self.page_request_queue.as_ref());
    }

    fn msi(&mut self, address: GuestAddress, data: u32) -> bool {
        self.msi.as_mut().is_some_and(|msi| msi(address, data))
    }
}

fn pulse(wire: Option<&EventFd>) {
    // It fails where the counter is full: then the edge that this one merges with has not been taken yet.
    wire.map(|wire| wire.write(1));
}

impl fmt::Debug for EventfdInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gerror, cmd_sync, event_queue, page_request_queue, msi } = self;
        f.debug_struct("EventfdInterrupts")
            .field("gerror", gerror)
            .field("cmd_sync", cmd_sync)
            .field("event_queue", event_queue)
            .field("page_request_queue", page_request_queue)
            .field("msi", &msi.is_some())
            .finish()
    }
}
