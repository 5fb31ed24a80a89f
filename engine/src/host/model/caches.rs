//! The caches, and what each invalidation removes from them: a function for each opcode.
//!
//! The architecture lets an SMMU remove more than a command names (facts sheet, section 1.7). This one removes what is named
//! and nothing else, so that it shows when the wrong thing was named.

use super::entries::{AtcEntry, ConfigEntry, Entry, Granule, TlbEntry, span};
use super::store::Store;
use crate::command::{Command, Opcode};
use crate::features::Features;

/// The caches of an SMMU and of the endpoints behind it. The caller fills them; commands remove entries.
#[derive(Debug)]
pub struct Caches {
    features: Features,
    /// By VMID.
    tlb: Store<TlbEntry>,
    /// By StreamID.
    config: Store<ConfigEntry>,
    /// By StreamID.
    atc: Store<AtcEntry>,
    filled: u64,
    executed: Box<[u64; 256]>,
}

/// The SMMU does not take this command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Caches {
    /// Empty caches of an SMMU with these features.
    pub fn new(features: &Features) -> Self {
        let (tlb, config, atc) = (Store::default(), Store::default(), Store::default());
        Self { features: *features, tlb, config, atc, filled: 0, executed: Box::new([0; 256]) }
    }

    /// Fills an entry; says whether it was not there.
    pub fn insert(&mut self, entry: Entry) -> bool {
        let new = match aligned(entry) {
            Entry::Tlb(entry) => self.tlb.insert(entry.vmid.0.into(), entry),
            Entry::Config(entry) => self.config.insert(entry.stream().0, entry),
            Entry::Atc(entry) => self.atc.insert(entry.stream.0, entry),
        };
        self.filled += u64::from(new);
        new
    }

    /// Whether an entry is there.
    pub fn contains(&self, entry: Entry) -> bool {
        match aligned(entry) {
            Entry::Tlb(entry) => self.tlb.contains(entry.vmid.0.into(), &entry),
            Entry::Config(entry) => self.config.contains(entry.stream().0, &entry),
            Entry::Atc(entry) => self.atc.contains(entry.stream.0, &entry),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        (self.filled - self.removed()) as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries were filled so far.
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// How many entries commands have removed so far.
    pub fn removed(&self) -> u64 {
        self.tlb.removed() + self.config.removed() + self.atc.removed()
    }

    /// The opcodes of the commands that were carried out, and how often.
    pub fn by_opcode(&self) -> impl Iterator<Item = (Opcode, u64)> + '_ {
        (0..=255).map(Opcode).zip(*self.executed).filter(|(_, n)| *n > 0)
    }

    /// From now on remembers what is removed.
    pub fn record(&mut self) {
        self.tlb.record();
        self.config.record();
        self.atc.record();
    }

    /// What was removed since the last call, in no order.
    pub fn take_removed(&mut self) -> Vec<Entry> {
        let tlb = self.tlb.take_removed().map(Entry::Tlb);
        let config = self.config.take_removed().map(Entry::Config);
        tlb.chain(config).chain(self.atc.take_removed().map(Entry::Atc)).collect()
    }

    /// Carries a command out.
    ///
    /// # Errors
    ///
    /// [`Refused`], without effect, for a command that an SMMU with these features need not take: a strict host.
    pub fn execute(&mut self, command: Command) -> Result<(), Refused> {
        if !self.takes(command) {
            return Err(Refused);
        }
        match command.opcode() {
            Opcode::CFGI_STE => self.cfgi_ste(command),
            Opcode::CFGI_STE_RANGE => self.cfgi_ste_range(command),
            Opcode::CFGI_CD => self.cfgi_cd(command),
            Opcode::CFGI_CD_ALL => self.cfgi_cd_all(command),
            Opcode::TLBI_NH_ALL => self.tlbi_nh_all(command),
            Opcode::TLBI_NH_ASID => self.tlbi_nh_asid(command),
            Opcode::TLBI_NH_VA => self.tlbi_nh_va(command),
            Opcode::TLBI_NH_VAA => self.tlbi_nh_vaa(command),
            Opcode::TLBI_NSNH_ALL => self.tlbi_nsnh_all(),
            Opcode::ATC_INV => self.atc_inv(command),
            _ => {}
        }
        self.executed[usize::from(command.opcode().0)] += 1;
        Ok(())
    }

    /// The STE and all CDs fetched through it (facts sheet, section 1.6). Leaf says whether L1 stream table descriptors go
    /// too, of which there are none here.
    fn cfgi_ste(&mut self, command: Command) {
        self.config.remove(command.stream(), |_| true)
    }

    /// The same for 2^(Range+1) streams, aligned; with Range=31 that is every stream.
    fn cfgi_ste_range(&mut self, command: Command) {
        let log2 = command.bits(1, 4, 0) as u32 + 1;
        let first = u64::from(command.stream()) >> log2;
        self.config.remove_everywhere(|entry| u64::from(entry.stream().0) >> log2 == first)
    }

    /// The CD of a substream; with Leaf=0 the L1CD that leads to it, too.
    fn cfgi_cd(&mut self, command: Command) {
        let (substream, leaf_only) = (command.bits(0, 31, 12) as u32, command.bits(1, 0, 0) == 1);
        self.config.remove(command.stream(), |entry| match *entry {
            ConfigEntry::Ste(_) => false,
            ConfigEntry::Cd(_, of) => of == substream,
            ConfigEntry::L1Cd { first, log2, .. } => !leaf_only && first >> log2 == substream >> log2,
        })
    }

    /// All CDs and L1CDs of a stream.
    fn cfgi_cd_all(&mut self, command: Command) {
        self.config.remove(command.stream(), |entry| !matches!(entry, ConfigEntry::Ste(_)))
    }

    /// All of a VMID.
    fn tlbi_nh_all(&mut self, command: Command) {
        self.tlb.remove(vmid(command), |_| true)
    }

    /// Everything.
    fn tlbi_nsnh_all(&mut self) {
        self.tlb.remove_everywhere(|_| true);
    }

    /// All of an ASID; global entries are of no ASID, and stay.
    fn tlbi_nh_asid(&mut self, command: Command) {
        let asid = asid(command);
        self.tlb.remove(vmid(command), |entry| entry.asid == Some(asid))
    }

    /// Addresses of an ASID; global entries are of every ASID.
    fn tlbi_nh_va(&mut self, command: Command) {
        let (named, asid) = (self.addresses(command), asid(command));
        self.tlb.remove(vmid(command), |entry| {
            entry.asid.is_none_or(|of| of == asid) && named.translated_by(entry)
        })
    }

    /// Addresses, whatever the ASID.
    fn tlbi_nh_vaa(&mut self, command: Command) {
        let named = self.addresses(command);
        self.tlb.remove(vmid(command), |entry| named.translated_by(entry))
    }

    /// A span of 4096 * 2^Size bytes, aligned down to it; Size=52 is everything. Without SSV what was asked for without a
    /// PASID; with it that of one PASID, or with Global of every PASID (facts sheet, section 1.8).
    fn atc_inv(&mut self, command: Command) {
        let substream = command.bits(0, 31, 12) as u32;
        let (ssv, global) = (command.bits(0, 11, 11) == 1, command.bits(0, 9, 9) == 1);
        let (first, last) = span(command.0[1] & !0xfff, 12 + command.bits(1, 5, 0) as u32);
        self.atc.remove(command.stream(), |entry| {
            let asked_so = match entry.substream {
                None => !ssv,
                Some(of) => ssv && (global || of == substream),
            };
            let (from, to) = entry.addresses();
            asked_so && from <= last && first <= to
        })
    }

    /// The range of a TLBI by address (facts sheet, section 1.7).
    fn addresses(&self, command: Command) -> Addresses {
        let first = command.0[1] & !0xfff;
        let leaf_only = command.bits(1, 0, 0) == 1;
        let Some(granule) = Granule::of_tg(command.bits(1, 11, 10)) else {
            return Addresses { first, last: first, granule: None, level: None, leaf_only };
        };
        let (num, scale) = (command.bits(0, 16, 12), command.bits(0, 25, 20).min(39));
        let bytes = u128::from(num + 1) << scale << granule.bytes_log2();
        // No wrap past the top.
        let last = (u128::from(first) + bytes - 1).min(u64::MAX.into()) as u64;
        let level = match command.bits(1, 9, 8) as u8 {
            0 => None,
            1 if granule == Granule::K16 && !self.features.ds => None,
            level => Some(level),
        };
        Addresses { first, last, granule: Some(granule), level, leaf_only }
    }

    /// Whether the fields of a command are such as every SMMU with these features takes (facts sheet, sections 1.3 and 1.7).
    fn takes(&self, command: Command) -> bool {
        let Features { ril, ds, ats, asid16, ssid_bits, .. } = self.features;
        let num_scale = if ril { 0x01f1_f000 | if ds { 1 << 25 } else { 0 } } else { 0 };
        let by_address = if ril { !0xfe } else { !0xffe };
        let (vmid, asid) = (0xffff << 32, if asid16 { 0xffff << 48 } else { 0xff << 48 });
        let (stream, substream) = (0xffff_ffff << 32, ((1 << ssid_bits) - 1) << 12);
        let [low, high] = match command.opcode() {
            Opcode::CFGI_STE => [stream, 1],
            Opcode::CFGI_STE_RANGE => [stream, 0x1f],
            Opcode::CFGI_CD => [stream | substream, 1],
            Opcode::CFGI_CD_ALL => [stream, 0],
            Opcode::TLBI_NH_ALL => [vmid, 0],
            Opcode::TLBI_NH_ASID => [vmid | asid, 0],
            Opcode::TLBI_NH_VA if range_is_legal(command, ds) => [vmid | asid | num_scale, by_address],
            Opcode::TLBI_NH_VAA if range_is_legal(command, ds) => [vmid | num_scale, by_address],
            Opcode::TLBI_NSNH_ALL => [0, 0],
            Opcode::ATC_INV if ats && command.bits(1, 5, 0) <= 52 => match command.bits(0, 11, 11) {
                1 if ssid_bits > 0 => [stream | substream | 1 << 11 | 1 << 9, !0xfc0],
                _ => [stream, !0xfc0],
            },
            Opcode::CMD_SYNC => [!0, !0],
            _ => return false,
        };
        command.0[0] & !(low | 0xff) == 0 && command.0[1] & !high == 0
    }
}

/// What the fields of a range must be to one another.
fn range_is_legal(command: Command, ds: bool) -> bool {
    let num_scale = command.bits(0, 16, 12) | command.bits(0, 25, 20);
    match (command.bits(1, 11, 10), command.bits(1, 9, 8)) {
        (0, ttl) => num_scale | ttl == 0,
        (2, 1) if !ds => false,
        (_, ttl) => num_scale | ttl != 0,
    }
}

/// What a TLBI by address names.
struct Addresses {
    first: u64,
    /// Included.
    last: u64,
    /// Entries of this granule only.
    granule: Option<Granule>,
    /// The level of the leaf: entries of other leaves are not meant, nor steps of walks at its level or below.
    level: Option<u8>,
    /// Steps of walks stay.
    leaf_only: bool,
}

impl Addresses {
    fn translated_by(&self, entry: &TlbEntry) -> bool {
        let (from, to) = entry.addresses();
        let level = match entry.leaf {
            true => self.level.is_none_or(|level| entry.level == level),
            false => !self.leaf_only && self.level.is_none_or(|level| entry.level < level),
        };
        from <= self.last && self.first <= to && self.granule.is_none_or(|g| g == entry.granule) && level
    }
}

fn vmid(command: Command) -> u32 {
    command.bits(0, 47, 32) as u32
}

fn asid(command: Command) -> u16 {
    command.bits(0, 63, 48) as u16
}

/// The entry with its address where it starts.
fn aligned(entry: Entry) -> Entry {
    match entry {
        Entry::Tlb(tlb) => Entry::Tlb(TlbEntry { address: tlb.addresses().0, ..tlb }),
        Entry::Atc(atc) => Entry::Atc(AtcEntry { address: atc.addresses().0, ..atc }),
        Entry::Config(ConfigEntry::L1Cd { stream, first, log2 }) => {
            Entry::Config(ConfigEntry::L1Cd { stream, first: first >> log2 << log2, log2 })
        }
        Entry::Config(config) => Entry::Config(config),
    }
}
