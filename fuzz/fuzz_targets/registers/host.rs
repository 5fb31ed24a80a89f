//! The host queue: takes as much as it is told to, is late, fails, and looks at each command that it gets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::{Failure, HostQueue, Ticket};

/// The host's identities of the two guests.
pub const VMIDS: [u16; 2] = [7, 9];
pub const STREAMS: [[u32; 2]; 2] = [[0x107, 0x108], [0x209, 0x20a]];

/// A handle to the host queue; clones share it.
#[derive(Clone, Default)]
pub struct Host(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    /// How many commands came for each guest.
    received: [u64; 2],
    last: Option<Command>,
    /// For each ticket, how many of them it covers.
    tickets: Vec<[u64; 2]>,
    reached: usize,
    failed: BTreeMap<usize, Failure>,
    room: usize,
    prompt: bool,
}

impl Host {
    /// Lets more commands in.
    pub fn make_room(&self, n: usize) {
        self.0.borrow_mut().room += n;
    }

    /// Reaches the next tickets.
    pub fn finish(&self, n: usize) {
        let mut state = self.0.borrow_mut();
        state.reached = state.tickets.len().min(state.reached + n);
    }

    /// Fails the next ticket. The one to blame, if that is to be known, is the last command.
    pub fn fail(&self, failure: impl FnOnce(Option<Command>) -> Failure) {
        let mut state = self.0.borrow_mut();
        if state.reached < state.tickets.len() {
            state.reached += 1;
            let (ticket, failure) = (state.reached, failure(state.last));
            state.failed.insert(ticket, failure);
        }
    }

    /// From now on takes everything, and has completed it whenever it is asked.
    pub fn be_prompt(&self) {
        let mut state = self.0.borrow_mut();
        (state.prompt, state.room) = (true, usize::MAX);
    }

    /// How many commands came for a guest.
    pub fn received(&self, guest: usize) -> u64 {
        self.0.borrow().received[guest]
    }

    /// How many of them a synchronisation covers that did not fail.
    pub fn covered(&self, guest: usize) -> u64 {
        let state = self.0.borrow();
        let reached = (1..=state.reached).rev().find(|ticket| !state.failed.contains_key(ticket));
        reached.map_or(0, |ticket| state.tickets[ticket - 1][guest])
    }
}

impl HostQueue for Host {
    fn submit(&mut self, commands: &[Command]) -> usize {
        let mut state = self.0.borrow_mut();
        let n = commands.len().min(state.room);
        state.room -= n;
        for command in &commands[..n] {
            let owner = (0..2).find(|guest| is_canonical(*command, *guest));
            let [low, high] = command.0;
            let owner = owner.unwrap_or_else(|| panic!("not canonical: {command} ({low:#x} {high:#x})"));
            state.received[owner] += 1;
            state.last = Some(*command);
        }
        n
    }

    fn sync(&mut self) -> Ticket {
        let mut state = self.0.borrow_mut();
        let (received, last) = (state.received, state.tickets.len());
        if state.tickets.last().copied().unwrap_or_default() != received || state.failed.contains_key(&last) {
            state.tickets.push(received);
        }
        Ticket(state.tickets.len() as u64)
    }

    fn completed(&mut self) -> Ticket {
        let mut state = self.0.borrow_mut();
        if state.prompt {
            state.reached = state.tickets.len();
        }
        Ticket(state.reached as u64)
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.0.borrow().failed.get(&(ticket.0 as usize)).copied()
    }
}

/// Whether the host accepts the command for certain, and it names the identities of this guest: the masks of the facts
/// sheet, section 1.3, without reserved forms of fields, for RIL, ATS, 16-bit ASIDs and 4 SubstreamID bits.
fn is_canonical(command: Command, guest: usize) -> bool {
    let [low, high] = command.0;
    let vmid = u64::from(VMIDS[guest]) << 32;
    // The first host has no RIL.
    let range = |mask: u64| low & 0x01f1_f000 & mask == low & 0x01f1_f000 && range(low, high);
    let ranges = if guest == 0 { 0 } else { u64::MAX };
    STREAMS[guest].iter().map(|stream| u64::from(*stream) << 32).any(|stream| match low & 0xff {
        0x05 => low & !0x0000_f000 == 0x05 | stream && high & !1 == 0,
        0x06 => low == 0x06 | stream && high == 0,
        0x10 => low == 0x10 | vmid && high == 0,
        0x11 => low & !0xffff_0000_0000_0000 == 0x11 | vmid && high == 0,
        0x12 => low & !0xffff_0000_01f1_f000 == 0x12 | vmid && range(ranges),
        0x13 => low & !0x0000_0000_01f1_f000 == 0x13 | vmid && range(ranges),
        0x40 => low & !0x0000_fa00 == 0x40 | stream && atc(low, high),
        _ => false,
    })
}

fn range(low: u64, high: u64) -> bool {
    let (num_scale, ttl, tg) = (low & 0x01f1_f000, high >> 8 & 3, high >> 10 & 3);
    let fields = match tg {
        0 => num_scale == 0 && ttl == 0,
        2 if ttl == 1 => false,
        _ => num_scale != 0 || ttl != 0,
    };
    fields && high & !0xffff_ffff_ffff_ff01 == 0
}

fn atc(low: u64, high: u64) -> bool {
    let has_ssv = low & 0x800 != 0;
    (has_ssv || low & 0xf200 == 0) && high & 0xfc0 == 0 && high & 0x3f <= 52
}
