//! Interrupts that are written down, with what the guest could see when they came.

use std::mem;
use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, Mutex};

use ecmdq_engine::Interrupts;
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use super::reg::{CMDQ_CONS, GERROR};

/// What reached the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The global error wire, and GERROR when it came.
    Gerror(u32),
    /// The CMD_SYNC wire, and CMDQ_CONS when it came.
    CmdSync(u32),
    /// An MSI that is not to guest RAM: address, data, and GERROR when it came.
    Msi(u64, u32, u32),
}

/// A handle to the notes; clones share them. MSIs are accepted at one page.
#[derive(Clone)]
pub struct Recorder {
    pages: SharedRegion,
    events: Arc<Mutex<Vec<Event>>>,
}

/// The page at which there is something that takes MSIs.
pub const MSI_PAGE: u64 = 0x0802_0000;

impl Recorder {
    /// For a guest with these register pages.
    pub fn new(pages: SharedRegion) -> Self {
        Self { pages, events: Arc::default() }
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<Event> {
        mem::take(&mut self.events.lock().unwrap())
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Interrupts for Recorder {
    fn gerror(&mut self) {
        self.note(Event::Gerror(self.pages.load_u32(GERROR, Acquire)));
    }

    fn cmd_sync(&mut self) {
        self.note(Event::CmdSync(self.pages.load_u32(CMDQ_CONS, Acquire)));
    }

    fn msi(&mut self, address: GuestAddress, data: u32) -> bool {
        self.note(Event::Msi(address.0, data, self.pages.load_u32(GERROR, Acquire)));
        address.0 & !0xfff == MSI_PAGE
    }
}
