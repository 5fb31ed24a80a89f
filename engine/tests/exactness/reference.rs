//! What may, and what must, have disappeared: an account of each entry of a guest.

use std::collections::VecDeque;

use crate::commands::Cmd;
use crate::entries::{Cached, Kind};
use crate::named::Host;
use crate::vm::Shown;

const CERROR_ILL: u32 = 1;
const CERROR_ATC_INV_SYNC: u32 = 3;

/// What one guest has cached, and what its commands say of it.
pub struct Reference {
    shown: Shown,
    host: Host,
    entries: Vec<Account>,
    queues: Vec<Sent>,
    /// Ranges that had to become more.
    pub widened: u64,
}

struct Account {
    entry: Cached,
    kind: Kind,
    present: bool,
    /// The commands that name it, which may have effect: queue and position, and whether it was there when they became
    /// effective; if it was filled later they may find it, or not.
    named: Vec<(usize, u64, bool)>,
}

/// A queue: positions count all commands ever sent.
#[derive(Default)]
struct Sent {
    /// The commands that have not been consumed, and the position of the first.
    waiting: VecDeque<Cmd>,
    consumed: u64,
    /// Up to here, commands may have effect.
    open: u64,
    /// Commands that may have effect, and that no CMD_SYNC covers which has completed.
    effective: Vec<(u64, Cmd)>,
}

impl Reference {
    pub fn new(universe: &[Cached], queues: usize, shown: Shown, host: Host) -> Self {
        let account =
            |entry: &Cached| Account { entry: *entry, kind: entry.kind(), present: false, named: Vec::new() };
        let queues = (0..queues).map(|_| Sent::default()).collect();
        Self { shown, host, entries: universe.iter().map(account).collect(), queues, widened: 0 }
    }

    pub fn is_present(&self, entry: usize) -> bool {
        self.entries[entry].present
    }

    pub fn outstanding(&self, queue: usize) -> usize {
        self.queues[queue].waiting.len()
    }

    /// An entry was filled. Whatever was sent before may find it or have missed it.
    pub fn filled(&mut self, entry: usize) {
        let Account { entry, kind, present, named } = &mut self.entries[entry];
        *present = true;
        named.clear();
        for (queue, sent) in self.queues.iter().enumerate() {
            let of_kind = sent.effective.iter().filter(|(_, command)| command.kind() == *kind);
            let naming = of_kind.filter(|(_, command)| command.names(*entry, &self.shown, self.host));
            named.extend(naming.map(|(position, _)| (queue, *position, false)));
        }
    }

    pub fn sent(&mut self, queue: usize, commands: &[Cmd]) {
        self.queues[queue].waiting.extend(commands);
        self.open(queue);
    }

    /// A queue was stopped by an error. Says what is to be put in place of the command at CONS.
    pub fn stopped(&mut self, queue: usize, error: u32) -> Result<Option<Cmd>, String> {
        let sent = &mut self.queues[queue];
        match (error, sent.waiting.front_mut()) {
            (CERROR_ILL, Some(command @ Cmd::Illegal(_))) => {
                *command = Cmd::Sync;
                self.open(queue);
                Ok(Some(Cmd::Sync))
            }
            // Its ATC_INVs may have had no effect.
            (CERROR_ATC_INV_SYNC, Some(Cmd::Sync))
                if sent.effective.iter().any(|(_, c)| c.kind() == Kind::Atc) =>
            {
                let accounts = self.entries.iter_mut().filter(|account| account.kind == Kind::Atc);
                let named = accounts.flat_map(|account| &mut account.named);
                named.filter(|(by, ..)| *by == queue).for_each(|(_, _, must)| *must = false);
                Ok(None)
            }
            (error, at) => Err(format!("error {error} at {at:x?}")),
        }
    }

    /// Commands become effective, up to one that is illegal, or that the VMM must act upon: nothing behind that may begin. What is behind a
    /// CMD_SYNC may begin before that has completed.
    fn open(&mut self, queue: usize) {
        loop {
            let sent = &mut self.queues[queue];
            let next = (sent.open - sent.consumed) as usize;
            let held = next > 0 && sent.waiting[next - 1].is_barrier();
            let Some(command) = sent.waiting.get(next).copied().filter(|_| !held) else { return };
            let position = sent.open;
            sent.open += 1;
            self.widened += u64::from(command.is_widened(&self.shown, self.host));
            sent.effective.push((position, command));
            let kind = command.kind();
            let present = self.entries.iter_mut().filter(|account| account.present && account.kind == kind);
            for account in present {
                if command.names(account.entry, &self.shown, self.host) {
                    account.named.push((queue, position, true));
                }
            }
        }
    }

    /// CONS has passed all but `outstanding` commands. Tells what of it completed something: first look at what has
    /// disappeared, then at [`Self::completed`].
    pub fn consumed(&mut self, queue: usize, outstanding: usize) -> Result<Vec<Completed>, String> {
        let mut completed = Vec::new();
        while self.queues[queue].waiting.len() > outstanding {
            let sent = &mut self.queues[queue];
            let Some(command) = sent.waiting.pop_front() else { break };
            let position = sent.consumed;
            if position >= sent.open {
                return Err(format!("queue {queue} consumed {command:x?} before something that holds it"));
            }
            sent.consumed += 1;
            match command {
                Cmd::Sync => completed.push(Completed { queue, first: 0, last: position }),
                Cmd::Ste(_) | Cmd::Stes(..) => {
                    completed.push(Completed { queue, first: position, last: position })
                }
                Cmd::Illegal(_) => return Err(format!("queue {queue} consumed {command:x?}")),
                _ => {}
            }
            self.open(queue);
        }
        Ok(completed)
    }

    /// An entry has disappeared.
    pub fn disappeared(&mut self, entry: usize) -> Result<(), String> {
        let Account { entry, present, named, .. } = &mut self.entries[entry];
        if !*present || named.is_empty() {
            return Err(format!("{entry:x?} disappeared, and nobody named it"));
        }
        *present = false;
        named.clear();
        Ok(())
    }

    /// What these commands named must have disappeared.
    pub fn completed(&mut self, Completed { queue, first, last }: Completed) -> Result<(), String> {
        let covered = |position: u64| (first..=last).contains(&position);
        let effective = &mut self.queues[queue].effective;
        for Account { entry, present, named, .. } in self.entries.iter_mut().filter(|account| account.present)
        {
            let must =
                |&&(by, position, must): &&(usize, u64, bool)| must && by == queue && covered(position);
            if let Some((_, position, _)) = named.iter().find(must).filter(|_| *present) {
                let command = effective.iter().find(|(of, _)| of == position);
                return Err(format!("{entry:x?} is still there after {command:x?} of queue {queue}"));
            }
            named.retain(|(by, position, _)| *by != queue || !covered(*position));
        }
        effective.retain(|(position, _)| !covered(*position));
        Ok(())
    }
}

/// Commands of a queue, from `first` to `last`, that are complete.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    pub queue: usize,
    pub first: u64,
    pub last: u64,
}
