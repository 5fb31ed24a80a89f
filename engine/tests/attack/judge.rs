//! What an honest queue sends between two CMD_SYNCs, and what must have come of it when that completes.

use std::sync::atomic::Ordering::SeqCst;

use ecmdq_engine::host::model::{AtcEntry, ConfigEntry, Entry, Granule, TlbEntry};
use ecmdq_engine::{Command, Vmid};

use crate::guest::{Guest, MSIS, RAM, STREAMS};
use crate::random::Random;
use crate::world::{World, count};

/// Commands up to a CMD_SYNC, and what they name. No two name the same, so that one that comes late does no harm.
pub struct Tx {
    pub number: u64,
    pub commands: Vec<Command>,
    /// The position behind its CMD_SYNC.
    pub end: u64,
    /// What must be gone, and whether it is an ATC entry.
    named: Vec<(Entry, Command)>,
    /// What must still be there.
    others: Vec<Entry>,
    /// Data of its MSI.
    pub msi: Option<u32>,
    pub atc_invs: bool,
    /// The guest was told that commands were lost, or that ATC_INVs were.
    pub told: bool,
    pub told_atc: bool,
    marks: Marks,
    /// What its queue knew when entries were filled.
    clean: Option<u64>,
    /// When it was sent.
    pub since: u64,
}

/// Where things stood when entries were filled.
#[derive(Clone, Copy)]
struct Marks {
    illegal: [u64; 2],
    atc: [u64; 2],
    widened: u64,
}

impl Marks {
    fn now(world: &World, guest: &Guest) -> Self {
        let (all, own) = (&world.faults, &guest.faults);
        Self {
            illegal: [all.illegal.mark(), own.illegal.mark()],
            atc: [all.atc.mark(), own.atc.mark()],
            widened: guest.widened.load(SeqCst),
        }
    }
}

fn gone(world: &World, guest: &Guest) -> bool {
    world.faults.gone.since(0) || guest.faults.gone.since(0)
}

impl Tx {
    /// The `number`th of a queue, with its entries filled. `clean` is until when all that was widened has come to pass.
    pub fn new(
        world: &World,
        guest: &Guest,
        (queue, number): (usize, u64),
        clean: Option<u64>,
        random: &mut Random,
    ) -> Self {
        let marks = Marks::now(world, guest);
        let (mut commands, mut named, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let (mut atc_invs, q) = (false, queue as u64);
        // Each command has addresses, an ASID and a SubstreamID of its own.
        for part in 0..1 + random.below(4) as u64 {
            let n = 4 * number + part;
            let (asid, ssid) = (q << 12 | n & 0xfff, q << 15 | n & 0x7fff);
            let page = q << 44 | n << 18;
            let stream = random.below(STREAMS as usize) as u64;
            let host = guest.host_stream(stream as u32).expect("it owns the stream");
            let tlb = |asid: Option<u64>, page| {
                let asid = asid.map(|asid| asid as u16);
                let vmid = Vmid(guest.vmid);
                Entry::Tlb(TlbEntry { vmid, asid, address: page, granule: Granule::K4, level: 3, leaf: true })
            };
            let cd = |ssid| Entry::Config(ConfigEntry::Cd(host, ssid as u32));
            let pasid = random.one_in(2);
            let atc = |address| {
                let substream = pasid.then_some(ssid as u32);
                Entry::Atc(AtcEntry { stream: host, substream, address, bytes_log2: 12 })
            };
            let (command, names, not) = match random.below(6) {
                0 => ([0x11 | asid << 48, 0], tlb(Some(asid), page), tlb(None, page)),
                1 => ([0x12 | asid << 48, page | 1], tlb(Some(asid), page), tlb(Some(asid), page + 0x1000)),
                // Four pages from the second on.
                2 => {
                    let range = [0x12 | 3 << 12 | asid << 48, (page + 0x1000) | 3 << 8 | 1 << 10 | 1];
                    (range, tlb(None, page + 0x4000), tlb(Some(asid), page + 0x5000))
                }
                3 => ([0x13, page | 1], tlb(Some(asid), page), tlb(Some(asid), page + 0x2000)),
                4 => ([0x05 | ssid << 12 | stream << 32, 1], cd(ssid), cd(ssid ^ 0x4000)),
                _ => {
                    atc_invs = true;
                    let size = random.below(4) as u64;
                    let ssv = if pasid { 1 << 11 | ssid << 12 } else { 0 };
                    let command = [0x40 | ssv | stream << 32, page | size];
                    (command, atc(page + (0x1000 << size) - 0x1000), atc(page + (0x1000 << size)))
                }
            };
            let command = Command(command);
            commands.push(command);
            named.push((names, command));
            others.push(not);
        }
        if random.one_in(12) {
            // For the VMM, which has nothing to do for it.
            commands.insert(random.below(commands.len()), Command([0x03 | 1 << 32, 1]));
        }
        if guest.plan.wild && random.one_in(8) {
            commands.push(Command([0x10, 0]));
        }
        let msi = random.one_in(2).then_some(0x8000_0000 | number as u32);
        commands.push(Command(match msi {
            Some(data) => [0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | u64::from(data) << 32, RAM + MSIS + 64 * q],
            None => [0x46 | random.of(&[0, 2]) << 12, 0],
        }));
        let mut caches = world.model.caches();
        for entry in named.iter().map(|(entry, _)| entry).chain(&others) {
            caches.insert(*entry);
        }
        drop(caches);
        let since = world.now().max(1);
        let (end, told, told_atc) = (0, false, false);
        Self { number, commands, end, named, others, msi, atc_invs, told, told_atc, marks, clean, since }
    }

    /// What an error at its CMD_SYNC has to do with what has gone wrong; none if nothing.
    pub fn blame(&mut self, world: &World, guest: &Guest, code: u32) -> Result<(), &'static str> {
        count(&world.counts.errors);
        let why = match code {
            1 => {
                self.told = true;
                world.faults.illegal.around(self.marks.illegal[0])
                    || guest.faults.illegal.around(self.marks.illegal[1])
            }
            2 => {
                self.told = true;
                gone(world, guest)
            }
            3 => {
                self.told_atc = true;
                let around =
                    world.faults.atc.around(self.marks.atc[0]) || guest.faults.atc.around(self.marks.atc[1]);
                // What makes good for a lost worker, or a restore, has ATC_INVs, too.
                let sent = self.atc_invs || guest.widened.load(SeqCst) > 0;
                sent && around
            }
            _ => return Err("an error code that does not exist"),
        };
        if why { Ok(()) } else { Err("an error for which there is no reason") }
    }

    /// Its CMD_SYNC has completed: what is wrong, if anything. What was widened before it was sent has come to pass.
    pub fn judge(&self, world: &World, guest: &Guest, clean: &mut Option<u64>) -> Option<String> {
        let widened = guest.widened.load(SeqCst);
        let steady = widened == self.marks.widened && widened.is_multiple_of(2);
        let exact = steady && self.clean == Some(widened) && !guest.plan.wild && guest.has_no_ghosts();
        let caches = world.model.caches();
        let lost = self.named.iter().find(|(entry, _)| {
            let atc = match entry {
                Entry::Atc(_) => self.told_atc,
                _ => false,
            };
            let exempt = self.told || atc;
            !exempt && caches.contains(*entry)
        });
        let more = self.others.iter().find(|entry| exact && !caches.contains(**entry));
        drop(caches);
        // It may have been widened while we looked.
        let more = more.filter(|_| guest.widened.load(SeqCst) == widened);
        if self.told {
            count(&world.counts.exempt);
        } else {
            count(&world.counts.judged);
            if steady {
                *clean = Some(widened);
            }
        }
        match (lost, more) {
            (Some((entry, command)), _) => Some(format!("LOST {command}: {entry:x?} is still there")),
            (None, Some(entry)) => Some(format!("MORE than was named is gone: {entry:x?}")),
            (None, None) => None,
        }
    }

    /// Its entries go.
    pub fn clean(&self, world: &World) {
        let mut caches = world.model.caches();
        for entry in self.named.iter().map(|(entry, _)| entry).chain(&self.others) {
            if caches.contains(*entry) {
                let _ = caches.execute(exactly(*entry));
            }
        }
    }
}

/// The host's command that removes one entry.
fn exactly(entry: Entry) -> Command {
    Command(match entry {
        Entry::Tlb(TlbEntry { vmid, asid, address, .. }) => {
            let opcode = if asid.is_some() { 0x12 } else { 0x13 };
            let asid = u64::from(asid.unwrap_or(0)) << 48;
            [opcode | asid | u64::from(vmid.0) << 32, address | 1]
        }
        Entry::Config(ConfigEntry::Cd(stream, ssid)) => {
            [0x05 | u64::from(ssid) << 12 | u64::from(stream.0) << 32, 1]
        }
        Entry::Atc(AtcEntry { stream, substream, address, .. }) => {
            let ssv = substream.map_or(0, |substream| 1 << 11 | u64::from(substream) << 12);
            [0x40 | ssv | u64::from(stream.0) << 32, address]
        }
        _ => [0x46, 0],
    })
}

/// Entries of a guest that it never names.
pub struct Canaries {
    entries: Vec<Entry>,
    /// When they were filled, as a count of what widened.
    filled: Option<u64>,
}

impl Canaries {
    pub fn new(guest: &Guest) -> Self {
        let vmid = Vmid(guest.vmid);
        let tlb = |asid, address| {
            Entry::Tlb(TlbEntry { vmid, asid, address, granule: Granule::K4, level: 3, leaf: true })
        };
        let mut entries = vec![tlb(Some(0xff00), 0xcafe << 52), tlb(None, 0xcaff << 52)];
        for host in (0..STREAMS).filter_map(|stream| guest.host_stream(stream)) {
            let substream = Some(0xf_ffff);
            entries.push(Entry::Config(ConfigEntry::Ste(host)));
            entries.push(Entry::Config(ConfigEntry::Cd(host, 0xf_ffff)));
            entries.push(Entry::Atc(AtcEntry { stream: host, substream, address: 0, bytes_log2: 30 }));
        }
        Self { entries, filled: None }
    }

    /// Fills them when all that was widened has come to pass, and looks whether somebody else removes them later.
    pub fn look(&mut self, world: &World, guest: &Guest, clean: Option<u64>) -> Option<String> {
        let widened = Some(guest.widened.load(SeqCst));
        if guest.plan.wild || clean != widened || !guest.has_no_ghosts() {
            return None;
        }
        let mut caches = world.model.caches();
        if self.filled == widened {
            let gone = self.entries.iter().find(|entry| !caches.contains(**entry));
            // It may have been widened while we looked.
            return gone
                .filter(|_| Some(guest.widened.load(SeqCst)) == widened)
                .map(|entry| format!("FOREIGN: somebody else removed {entry:x?}"));
        }
        for entry in &self.entries {
            caches.insert(*entry);
        }
        self.filled = widened;
        None
    }
}
