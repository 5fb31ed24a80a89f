//! What a guest may have cached, in its own terms.

use ecmdq_engine::Vmid;
use ecmdq_engine::host::model::{AtcEntry, ConfigEntry, Entry, Granule, TlbEntry};

use crate::commands::WINDOWS;
use crate::vm::host_stream;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cached {
    /// A leaf, or a step of a walk, of this level; without an ASID it is global.
    Tlb {
        asid: Option<u16>,
        base: u64,
        tg: u32,
        level: u32,
        leaf: bool,
    },
    Ste(u32),
    Cd(u32, u32),
    /// The table of the CDs of 2^`log2` substreams from the second on.
    Cds(u32, u32, u32),
    Atc {
        stream: u32,
        substream: Option<u32>,
        base: u64,
        log2: u32,
    },
}

/// What is cached: no command names entries of two kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Tlb,
    Config,
    Atc,
    Nothing,
}

/// The streams that each guest owns.
pub const STREAMS: [u32; 3] = [0, 1, 3];

/// The bytes that a descriptor of a level translates: log2, for levels 0 to 3 of TG 1 to 3.
pub const DESCRIPTOR: [[u32; 4]; 3] = [[39, 30, 21, 12], [47, 36, 25, 14], [55, 42, 29, 16]];

/// All that any guest may have: around the edges of what commands name.
pub fn universe() -> Vec<Cached> {
    let mut all = Vec::new();
    let [low, top] = WINDOWS;
    let mut tlb = |tg: u32, level: u32, leaf, base, numbers: &[u64], asids: &[Option<u16>]| {
        let log2 = DESCRIPTOR[tg as usize - 1][level as usize];
        for (number, asid) in numbers.iter().flat_map(|number| asids.iter().map(move |asid| (number, asid))) {
            let base = (base >> log2 << log2) + (number << log2);
            all.push(Cached::Tlb { asid: *asid, base, tg, level, leaf });
        }
    };
    let (one, any) = (&[Some(1)][..], &[Some(1), Some(2), None][..]);
    tlb(1, 3, true, low, &[0, 1, 2, 3, 4, 31, 32], any);
    tlb(1, 3, true, low, &[5, 7, 8, 15, 16, 33, 48, 62, 63, 64, 65, 127, 128, 511, 512], one);
    tlb(1, 3, true, low, &[0, 4], &[Some(0x101)]);
    tlb(1, 2, true, low, &[0, 1, 2, 3], &[Some(1), None]);
    tlb(1, 1, true, low, &[0, 1], &[Some(2), None]);
    tlb(2, 3, true, low, &[0, 1, 2, 7, 8], &[Some(1), None]);
    tlb(2, 2, true, low, &[0, 1], one);
    tlb(2, 1, true, low, &[0], one);
    tlb(3, 3, true, low, &[0, 1, 2, 3], &[Some(1), None]);
    tlb(3, 2, true, low, &[0, 1], one);
    tlb(1, 2, false, low, &[0, 1], &[Some(1), None]);
    tlb(1, 1, false, low, &[0], one);
    tlb(1, 0, false, low, &[0], one);
    tlb(2, 2, false, low, &[0], one);
    tlb(3, 2, false, low, &[0], one);
    tlb(1, 3, true, top, &[0, 1, 14, 15], &[Some(1), None]);
    tlb(1, 2, true, top, &[0], one);
    tlb(3, 3, true, top, &[0], one);
    for stream in STREAMS {
        all.push(Cached::Ste(stream));
        all.extend([0, 1, 2, 64, 65].map(|substream| Cached::Cd(stream, substream)));
        all.extend([0, 64].map(|first| Cached::Cds(stream, first, 6)));
        all.push(Cached::Cds(stream, 0, 10));
        let spans = [(low, 12), (low + 0x1000, 12), (low + 0x4000, 12), (low + 0x1_0000, 16), (low, 21)];
        let spans = spans.into_iter().chain([(low + (1 << 30), 30), (top, 12)]);
        for (base, log2) in spans {
            let substreams = [None, Some(0), Some(1), Some(65)];
            all.extend(substreams.map(|substream| Cached::Atc { stream, substream, base, log2 }));
        }
    }
    all
}

impl Cached {
    pub fn kind(self) -> Kind {
        match self {
            Self::Tlb { .. } => Kind::Tlb,
            Self::Ste(_) | Self::Cd(..) | Self::Cds(..) => Kind::Config,
            Self::Atc { .. } => Kind::Atc,
        }
    }

    /// As the host has it. `guests` is how many guests there are.
    pub fn on_host(self, guest: u32, guests: u32, vmid: u16) -> Entry {
        let host = |stream| host_stream(guest, guests, stream);
        match self {
            Self::Tlb { asid, base, tg, level, leaf } => {
                let granule = [Granule::K4, Granule::K16, Granule::K64][tg as usize - 1];
                Entry::Tlb(TlbEntry {
                    vmid: Vmid(vmid),
                    asid,
                    address: base,
                    granule,
                    level: level as u8,
                    leaf,
                })
            }
            Self::Ste(stream) => Entry::Config(ConfigEntry::Ste(host(stream))),
            Self::Cd(stream, substream) => Entry::Config(ConfigEntry::Cd(host(stream), substream)),
            Self::Cds(stream, first, log2) => {
                Entry::Config(ConfigEntry::L1Cd { stream: host(stream), first, log2: log2 as u8 })
            }
            Self::Atc { stream, substream, base, log2 } => {
                let stream = host(stream);
                Entry::Atc(AtcEntry { stream, substream, address: base, bytes_log2: log2 as u8 })
            }
        }
    }
}
