//! What a vCPU has cached, and what it sends to have parts of it removed: in the guest's own terms, so that what a command names
//! is worked out here alone.

use ecmdq_engine::host::model::{AtcEntry, ConfigEntry, Entry, Granule, TlbEntry};
use ecmdq_engine::{Command, HostStreamId, StreamId, Vmid};

/// The names that a vCPU has to itself in its guest. Those of different guests are the same.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Its queue.
    pub queue: u16,
}

/// Pages of an address space, and pages that an endpoint has looked up.
const PAGES: u64 = 64;

/// Something cached.
#[derive(Clone, Copy, Debug)]
pub enum Cached {
    /// A page of 4 KiB of one of two ASIDs, or a global one.
    Page { asid: Option<u16>, page: u64 },
    /// The context descriptor.
    Cd,
    /// A page in the endpoint's ATC.
    Atc { page: u64 },
}

/// A command of the guest.
#[derive(Clone, Copy, Debug)]
pub enum Sent {
    /// TLBI_NH_VA of one page.
    Page { asid: u16, page: u64 },
    /// TLBI_NH_VAA of one page.
    AnyAsid { page: u64 },
    /// TLBI_NH_VA of pages 4K, by a range.
    Range { asid: u16, first: u64, pages: u64 },
    /// TLBI_NH_ASID.
    Asid { asid: u16 },
    /// ATC_INV of 2^log2 pages.
    Atc { first: u64, log2: u32 },
    /// CFGI_CD.
    Cd,
    /// TLBI_NH_ALL, which spares no vCPU.
    All,
}

impl Names {
    /// The stream that its commands name.
    pub fn stream(self) -> StreamId {
        StreamId(0x100 + u32::from(self.queue))
    }

    fn asid(self, which: u16) -> u16 {
        1 + 2 * self.queue + which
    }

    /// A part of the address space that no other vCPU of the guest uses.
    fn address(self, page: u64) -> u64 {
        (u64::from(self.queue) + 1) << 30 | page << 12
    }

    /// All that is cached.
    pub fn all(self) -> Vec<Cached> {
        let asids = [Some(0), Some(1), None];
        let pages = (0..PAGES).flat_map(|page| asids.map(|asid| Cached::Page { asid, page }));
        let atc = (0..PAGES).map(|page| Cached::Atc { page });
        pages.chain(atc).chain([Cached::Cd]).collect()
    }

    /// An entry as the host has it.
    pub fn on_host(self, cached: Cached, vmid: Vmid, stream: HostStreamId) -> Entry {
        match cached {
            Cached::Page { asid, page } => Entry::Tlb(TlbEntry {
                vmid,
                asid: asid.map(|which| self.asid(which)),
                address: self.address(page),
                granule: Granule::K4,
                level: 3,
                leaf: true,
            }),
            Cached::Cd => Entry::Config(ConfigEntry::Cd(stream, 0)),
            Cached::Atc { page } => {
                Entry::Atc(AtcEntry { stream, substream: None, address: self.address(page), bytes_log2: 12 })
            }
        }
    }

    /// A command, bit by bit (facts sheet, section 1.2). The VMID is one that must not matter.
    pub fn encode(self, sent: Sent) -> Command {
        const LEAF: u64 = 1;
        const OF_4K: u64 = 1 << 10;
        let of_asid = |which| u64::from(self.asid(which)) << 48;
        let of_stream = u64::from(self.stream().0) << 32;
        Command(match sent {
            Sent::Page { asid, page } => [0x12 | of_asid(asid) | 1 << 32, self.address(page) | LEAF],
            Sent::AnyAsid { page } => [0x13, self.address(page) | LEAF],
            Sent::Range { asid, first, pages } => {
                let (num, scale) = if pages > 32 { (pages / 2 - 1, 1) } else { (pages - 1, 0) };
                let low = 0x12 | of_asid(asid) | num << 12 | scale << 20;
                [low, self.address(first) | OF_4K | 3 << 8 | LEAF]
            }
            Sent::Asid { asid } => [0x11 | of_asid(asid), 0],
            Sent::Atc { first, log2 } => [0x40 | of_stream, self.address(first) | u64::from(log2)],
            Sent::Cd => [0x05 | of_stream, LEAF],
            Sent::All => [0x10, 0],
        })
    }
}

impl Sent {
    /// Any command, by a random number. `alone` says that the guest has no other vCPU.
    pub fn any(random: u64, alone: bool) -> Self {
        let (asid, page) = ((random >> 8 & 1) as u16, random >> 9 & (PAGES - 1));
        let more = random >> 15 & (PAGES - 1);
        match random & 31 {
            0..=11 => Self::Page { asid, page },
            12..=14 => Self::AnyAsid { page },
            15..=21 => {
                // An even number where it is more than NUM can say.
                let pages = (more + 1).min(PAGES - page);
                let pages = if pages > 32 { pages & !1 } else { pages };
                Self::Range { asid, first: page, pages }
            }
            22 => Self::Asid { asid },
            23..=29 => {
                let log2 = (more % 7) as u32;
                Self::Atc { first: page >> log2 << log2, log2 }
            }
            31 if alone && more < 8 => Self::All,
            _ => Self::Cd,
        }
    }

    /// Whether it names something.
    pub fn names(self, cached: Cached) -> bool {
        match (self, cached) {
            (Self::Page { asid: of, page: named }, Cached::Page { asid, page }) => {
                page == named && asid.is_none_or(|asid| asid == of)
            }
            (Self::AnyAsid { page: named }, Cached::Page { page, .. }) => page == named,
            (Self::Range { asid: of, first, pages }, Cached::Page { asid, page }) => {
                (first..first + pages).contains(&page) && asid.is_none_or(|asid| asid == of)
            }
            (Self::Asid { asid: of }, Cached::Page { asid, .. }) => asid == Some(of),
            (Self::All, Cached::Page { .. }) | (Self::Cd, Cached::Cd) => true,
            (Self::Atc { first, log2 }, Cached::Atc { page }) => (first..first + (1 << log2)).contains(&page),
            _ => false,
        }
    }
}
