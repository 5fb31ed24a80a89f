//! Commands spelled out (facts sheet, section 1.2).

use ecmdq_engine::Command;

/// What a native ring adds for a ticket.
pub const HOST_SYNC: Command = Command([0x46, 0]);

/// CMD_SYNC that signals by CONS alone.
pub fn sync() -> Command {
    Command([0x46, 0])
}

/// CMD_SYNC with CS=SIG_SEV, as Linux sends it without MSIs.
pub fn sync_sev() -> Command {
    Command([0x46 | 2 << 12, 0])
}

/// CMD_SYNC with CS=SIG_IRQ, MSH=inner, MSIAttr=0xf, as Linux sends it.
pub fn sync_msi(address: u64, data: u32) -> Command {
    Command([0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | u64::from(data) << 32, address])
}

/// TLBI_NH_ASID as the guest writes it: VMID 0.
pub fn nh_asid(asid: u64) -> Command {
    Command([0x11 | asid << 48, 0])
}

/// TLBI_NH_ASID as the host gets it.
pub fn host_asid(vmid: u64, asid: u64) -> Command {
    Command([0x11 | vmid << 32 | asid << 48, 0])
}

/// TLBI_NH_VAA of one page: 4K granule, last level, TTL=3.
pub fn nh_page(page: u64) -> Command {
    Command([0x13, page << 12 | 1 << 10 | 3 << 8 | 1])
}

/// The same as the host gets it.
pub fn host_page(vmid: u64, page: u64) -> Command {
    Command([0x13 | vmid << 32, page << 12 | 1 << 10 | 3 << 8 | 1])
}

/// CFGI_CD of substream 0.
pub fn cfgi_cd(stream: u64) -> Command {
    Command([0x05 | stream << 32, 1])
}

/// CFGI_STE.
pub fn cfgi_ste(stream: u64) -> Command {
    Command([0x03 | stream << 32, 1])
}

/// CFGI_ALL: CFGI_STE_RANGE with Range=31.
pub fn cfgi_all() -> Command {
    Command([0x04, 31])
}

/// ATC_INV of everything.
pub fn atc_inv(stream: u64) -> Command {
    Command([0x40 | stream << 32, 52])
}

/// A command that no SMMU has.
pub fn illegal() -> Command {
    Command([0xff, 0])
}
