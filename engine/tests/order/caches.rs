//! The caches of an SMMU and of the endpoints behind it, each filled through the one below: descriptors from memory, the TLB by the cached
//! descriptor and the table that this points to, ATCs by the TLB.

use ecmdq_engine::Command;

use crate::claims::{AtcEntry, Claim, Promised};
use crate::common::Random;
use crate::tables::{
    CONTEXTS, CONTEXTS_OF_CPU, CPUS, Cd, PAGES, SPACES, SPACES_OF_CPU, SUBSTREAMS, Tables, Time,
};

pub struct Caches {
    pub tables: Tables,
    cds: Vec<Option<Cd>>,
    /// When the translation of each page was written.
    tlb: [[Option<Time>; PAGES]; SPACES],
    atc: [[Option<AtcEntry>; PAGES]; CONTEXTS],
    promised: Promised,
    /// The first entry that was there in spite of a promise.
    stale: Option<String>,
    random: Random,
    /// The CPU whose entries were invalidated last.
    hot: usize,
    filled: u64,
}

impl Caches {
    pub fn new(random: Random) -> Self {
        Self {
            tables: Tables::new(),
            cds: vec![None; CONTEXTS],
            tlb: [[None; PAGES]; SPACES],
            atc: [[None; PAGES]; CONTEXTS],
            promised: Promised::new(),
            stale: None,
            random,
            hot: 0,
            filled: 0,
        }
    }

    /// What is wrong.
    pub fn stale(&self) -> Option<&str> {
        self.stale.as_deref()
    }

    /// How many entries were filled, and how many promises held.
    pub fn counts(&self) -> (u64, u64) {
        (self.filled, self.promised.claims)
    }

    /// Something has been promised: it must hold, and hold from now on.
    pub fn promise(&mut self, claim: Claim) {
        self.promised.add(claim);
        match claim {
            Claim::Cd { context, .. } => self.check_cd(context),
            Claim::Tlb { space, page, .. } => self.check_tlb(space, page),
            Claim::Atc { context, .. } => (0..PAGES).for_each(|page| self.check_atc(context, page)),
            Claim::AtcPage { context, page, .. } => self.check_atc(context, page),
        }
    }

    /// Devices do something, or nothing: often all that is there to be done where something was invalidated just now.
    pub fn disturb(&mut self) {
        match self.random.below(8) {
            0..=2 => {}
            3 | 4 => self.access_anything(),
            5 => (0..8).for_each(|_| self.access_anything()),
            6 => self.evict(),
            _ => {
                let with_ats = !self.random.one_in(3);
                let first = self.hot * CONTEXTS_OF_CPU;
                for context in first..first + CONTEXTS_OF_CPU {
                    (0..PAGES).for_each(|page| self.access(context, page, with_ats));
                }
            }
        }
    }

    fn access_anything(&mut self) {
        let (context, page) = (self.random.below(CONTEXTS), self.random.below(PAGES));
        let with_ats = self.random.one_in(2);
        self.access(context, page, with_ats);
    }

    /// A device accesses a page; with ATS it asks for the translation, and keeps it.
    fn access(&mut self, context: usize, page: usize, with_ats: bool) {
        if with_ats && self.atc[context][page].is_some() {
            return;
        }
        let (cds, tables, filled) = (&mut self.cds, &self.tables, &mut self.filled);
        let cd = cds[context].get_or_insert_with(|| {
            *filled += 1;
            tables.cd(context).clone()
        });
        let (written, space) = (cd.written, cd.space);
        let translation = match self.tlb[space][page] {
            Some(translation) => translation,
            None => {
                let translation = cd.table[page].get();
                self.tlb[space][page] = Some(translation);
                self.filled += 1;
                self.check_tlb(space, page);
                translation
            }
        };
        if with_ats {
            self.atc[context][page] = Some(AtcEntry { cd: written, space, translation });
            self.filled += 1;
            self.check_atc(context, page);
        }
    }

    /// A cache has other uses for an entry.
    fn evict(&mut self) {
        let page = self.random.below(PAGES);
        match self.random.below(3) {
            0 => self.cds[self.random.below(CONTEXTS)] = None,
            1 => self.tlb[self.random.below(SPACES)][page] = None,
            _ => self.atc[self.random.below(CONTEXTS)][page] = None,
        }
    }

    /// Carries a command out, by the host's names or the guest's, which are the same but for VMIDs (IHI 0070, chapter 4).
    pub fn execute(&mut self, command: Command) {
        let stream = command.stream() as usize * SUBSTREAMS;
        let substream = command.bits(0, 31, 12) as usize;
        let asid = command.bits(0, 63, 48) as usize;
        let page = (command.0[1] >> 12) as usize;
        match command.opcode().0 {
            0x05 => self.cds[stream + substream] = None,
            0x06 => self.cds[stream..stream + SUBSTREAMS].fill(None),
            0x10 | 0x30 => self.tlb = [[None; PAGES]; SPACES],
            0x11 => self.tlb[asid] = [None; PAGES],
            0x12 => self.tlb[asid][page] = None,
            0x13 => self.tlb.iter_mut().for_each(|space| space[page] = None),
            0x40 => {
                assert_eq!(command.bits(0, 11, 11), 1, "all that is asked for has a PASID");
                let all_substreams = command.bits(0, 9, 9) == 1;
                let contexts = if all_substreams { 0..SUBSTREAMS } else { substream..substream + 1 };
                let pages = match command.bits(1, 5, 0) {
                    0 => page..page + 1,
                    _ => 0..PAGES,
                };
                for context in contexts {
                    self.atc[stream + context][pages.clone()].fill(None);
                }
            }
            _ => panic!("nobody sends {command} to a host"),
        }
        self.hot = match command.opcode().0 {
            0x05 | 0x06 | 0x40 => stream / CONTEXTS_OF_CPU,
            0x11 | 0x12 => asid / SPACES_OF_CPU,
            _ => self.random.below(CPUS),
        };
    }

    fn check_cd(&mut self, context: usize) {
        if let Some(Cd { written, .. }) = &self.cds[context]
            && !self.promised.allows_cd(context, *written)
        {
            self.is_stale(format!("a descriptor of context {context} that was written at {written}"));
        }
    }

    fn check_tlb(&mut self, space: usize, page: usize) {
        if let Some(written) = self.tlb[space][page]
            && !self.promised.allows_tlb(space, page, written)
        {
            self.is_stale(format!(
                "a translation of ASID {space}, page {page}, that was written at {written}"
            ));
        }
    }

    fn check_atc(&mut self, context: usize, page: usize) {
        if let Some(entry) = self.atc[context][page]
            && !self.promised.allows_atc(context, page, entry)
        {
            self.is_stale(format!("an ATC entry of context {context}, page {page}: {entry:?}"));
        }
    }

    fn is_stale(&mut self, what: String) {
        self.stale.get_or_insert(what);
    }
}
