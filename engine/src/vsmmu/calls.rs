//! Calls of the VMM's code: requests, and interrupts.
//!
//! A visit notes them while the state is locked; the worker makes them when it is not. So a callback may call the virtual SMMU,
//! and may take a lock that another thread holds while it calls the virtual SMMU.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vm_memory::GuestAddress;

use super::{OnRequest, VirtualSmmu};
use crate::interrupts::Interrupts;
use crate::rules::Request;
use crate::token::Token;

/// How many calls may be noted at once. A visit that has so many ends, and goes on when they have been made.
const CAPACITY: usize = 64;
/// The most that one step of a visit notes: requests of two registers, and by MSI and wire an error, twice, and both output queues. The VMM's
/// threads add, between two visits, that both of these have aborted.
const STEP: usize = 10 + 4;

/// Something of which the VMM is to be told.
pub(super) enum Call {
    /// The guest asks for something.
    Request(Request, Token),
    /// An MSI to an address that is not guest memory; `abort` is the error of there being nothing.
    Msi { address: GuestAddress, data: u32, abort: u32 },
    /// The global error wire.
    Gerror,
    /// The CMD_SYNC wire.
    CmdSync,
    /// The event queue's wire.
    EventQueue,
    /// The page request queue's wire.
    PageRequestQueue,
}

/// The calls that one visit has noted, each with the queue that was being served. All memory is there from the start.
pub(super) struct Calls(Vec<(Option<usize>, Call)>);

/// The VMM's code, and what it is called with. Locked by the guest's worker alone.
pub(super) struct Callbacks {
    on_request: OnRequest,
    interrupts: Box<dyn Interrupts>,
    calls: Calls,
}

impl Calls {
    pub fn new() -> Self {
        Self(Vec::with_capacity(CAPACITY))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one step of a visit can be made, whatever it notes.
    pub fn has_room(&self) -> bool {
        self.0.len() + STEP <= CAPACITY
    }

    pub fn note(&mut self, queue: Option<usize>, call: Call) {
        debug_assert!(self.0.len() < CAPACITY, "a step notes more than {STEP} calls");
        self.0.push((queue, call));
    }

    /// Forgets requests, which have been taken back, and keeps interrupts.
    pub fn forget_requests(&mut self) {
        self.0.retain(|(_, call)| !matches!(call, Call::Request(..)));
    }
}

impl Callbacks {
    pub fn new(on_request: OnRequest, interrupts: Box<dyn Interrupts>) -> Self {
        Self { on_request, interrupts, calls: Calls::new() }
    }
}

impl VirtualSmmu {
    /// Makes the calls that a visit has noted; `panicked` learns of each that panics, and which queue was given up for it. Nothing is
    /// locked that another thread waits for. Says whether the guest has asked for something, which most VMMs have done by then.
    pub(crate) fn make_calls(&self, mut panicked: impl FnMut(Option<usize>, &(dyn Any + Send))) -> bool {
        let mut callbacks = self.0.callbacks.lock();
        let Callbacks { on_request, interrupts, calls } = &mut *callbacks;
        let mut asked = false;
        // Twice: an MSI that aborts is an error, which is told in its turn. While the VMM is busy with the guest, they wait for the
        // next visit.
        for _ in 0..2 {
            self.with_state(|state| mem::swap(&mut state.calls, calls));
            for (queue, call) in calls.0.drain(..) {
                asked |= matches!(call, Call::Request(..));
                let made = catch_unwind(AssertUnwindSafe(|| match call {
                    Call::Request(request, token) => on_request(request, token),
                    Call::Msi { address, data, abort } => {
                        let sent = interrupts.msi(address, data);
                        self.0.control(|state| state.msi_sent(sent, abort));
                    }
                    Call::Gerror => interrupts.gerror(),
                    Call::CmdSync => interrupts.cmd_sync(),
                    Call::EventQueue => interrupts.event_queue(),
                    Call::PageRequestQueue => interrupts.page_request_queue(),
                }));
                if let Err(panic) = made {
                    panicked(self.0.control(|state| state.quarantine(queue)), &*panic);
                }
            }
        }
        asked
    }
}
