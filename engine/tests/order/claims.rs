//! What a sequence of invalidations promises when its last CMD_SYNC is complete: that entries made from what it replaced are gone, and do
//! not come back.

use crate::tables::{CONTEXTS, PAGES, SPACES, Time};

/// Entries of a cache that must be made from what was written at a time or later.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// The cached descriptor of a context.
    Cd { context: usize, since: Time },
    /// The TLB's translation of a page, by when that was written.
    Tlb { space: usize, page: usize, since: Time },
    /// All ATC entries of a context, by when its descriptor was written.
    Atc { context: usize, since: Time },
    /// The ATC entry of a context for a page, if it is of this address space, by when the translation was written.
    AtcPage { context: usize, space: usize, page: usize, since: Time },
}

/// A translation that an endpoint keeps: when what it was made from was written.
#[derive(Clone, Copy, Debug)]
pub struct AtcEntry {
    /// The context's descriptor.
    pub cd: Time,
    pub space: usize,
    pub translation: Time,
}

/// All that has been promised.
pub struct Promised {
    cds: [Time; CONTEXTS],
    tlb: [[Time; PAGES]; SPACES],
    atc: [Time; CONTEXTS],
    atc_pages: Vec<[[Time; PAGES]; SPACES]>,
    pub claims: u64,
}

impl Promised {
    pub fn new() -> Self {
        Self {
            cds: [0; CONTEXTS],
            tlb: [[0; PAGES]; SPACES],
            atc: [0; CONTEXTS],
            atc_pages: vec![[[0; PAGES]; SPACES]; CONTEXTS],
            claims: 0,
        }
    }

    pub fn add(&mut self, claim: Claim) {
        let (promised, since) = match claim {
            Claim::Cd { context, since } => (&mut self.cds[context], since),
            Claim::Tlb { space, page, since } => (&mut self.tlb[space][page], since),
            Claim::Atc { context, since } => (&mut self.atc[context], since),
            Claim::AtcPage { context, space, page, since } => {
                (&mut self.atc_pages[context][space][page], since)
            }
        };
        *promised = since.max(*promised);
        self.claims += 1;
    }

    pub fn allows_cd(&self, context: usize, written: Time) -> bool {
        written >= self.cds[context]
    }

    pub fn allows_tlb(&self, space: usize, page: usize, written: Time) -> bool {
        written >= self.tlb[space][page]
    }

    pub fn allows_atc(&self, context: usize, page: usize, entry: AtcEntry) -> bool {
        entry.cd >= self.atc[context] && entry.translation >= self.atc_pages[context][entry.space][page]
    }
}
