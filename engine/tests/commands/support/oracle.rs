//! What must become of a command: facts sheet, sections 1.1 to 1.11, and the policy: reserved bits are CERROR_ILL, ignored
//! fields are ignored, the guest's VMID does not matter.

use ecmdq_engine::rules::{PageResponse, Request, ResumeAction, Signal};
use ecmdq_engine::{Command, StreamConfig, StreamId};
use vm_memory::GuestAddress;

use super::engine::{STREAMS, VMID};
use super::on::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Host([u64; 2]),
    /// No effect.
    Dropped,
    /// Taken, and nobody needs to know.
    Nowhere,
    Request(Request),
    Sync(Signal),
    Ill,
}

const SET_VMID: u64 = (VMID as u64) << 32;

/// What becomes of a command on a host that is like the guest's SMMU.
pub fn oracle(on: On, command: [u64; 2]) -> Fate {
    let [low, high] = command;
    let no_vmid = low & !0x0000_ffff_0000_0000;
    let asid = low & if on.has(ASID16) { 0xffff << 48 } else { 0x00ff << 48 };
    let stream_id = StreamId((low >> 32) as u32);
    let other = Fate::Request(Request::Other(Command(command)));
    match low & 0xff {
        // PREFETCH_CONFIG: SSec 10 must be 0, SSV 11, SubstreamID 31:12, StreamID 63:32.
        0x01 => fate(low & 0x700 == 0 && high == 0, Fate::Nowhere),
        // PREFETCH_ADDR: also Size 4:0, Stride 9:5, Addr 63:12; NS 11 must be 0.
        0x02 => fate(low & 0x700 == 0 && high & 0xc00 == 0, Fate::Nowhere),
        // CFGI_STE: StreamID, Leaf.
        0x03 => fate(low & 0xffff_ff00 == 0 && high & !1 == 0, config(StreamConfig::One(stream_id))),
        // CFGI_STE_RANGE: StreamID, Range 4:0.
        0x04 => fate(low & 0xffff_ff00 == 0 && high & !0x1f == 0, config(ste_range(low, high))),
        // CFGI_CD: SubstreamID, StreamID, Leaf; no SSV.
        0x05 if on.has(S1P) => {
            let forwarded = stream(on, low, |host| [low & 0xffff_ffff | host, high]);
            fate(low & 0xf00 == 0 && high & !1 == 0, forwarded)
        }
        // CFGI_CD_ALL: StreamID.
        0x06 if on.has(S1P) => {
            let forwarded = stream(on, low & !0xffff_f000, |host| [0x06 | host, 0]);
            fate(low & 0xffff_ff00 == 0 && high == 0, forwarded)
        }
        // CFGI_VMS_PIDM: VMID.
        0x07 if on.has(MPAM) => fate(no_vmid == 0x07 && high == 0, other),
        // TLBI_NH_ALL: VMID.
        0x10 if on.has(S1P) => fate(no_vmid == 0x10 && high == 0, Fate::Host([0x10 | SET_VMID, 0])),
        // TLBI_NH_ASID: VMID, ASID.
        0x11 if on.has(S1P) => {
            fate(no_vmid == 0x11 | asid && high == 0, Fate::Host([0x11 | SET_VMID | asid, 0]))
        }
        // TLBI_NH_VA: VMID, ASID and the range fields.
        0x12 if on.has(S1P) => tlbi(by_address(on, no_vmid & !asid, high), asid),
        // TLBI_NH_VAA: VMID and the range fields.
        0x13 if on.has(S1P) => tlbi(by_address(on, no_vmid, high), 0),
        // TLBI_EL2_ALL: no fields.
        0x20 if on.has(S1P | HYP) => fate(low == 0x20 && high == 0, other),
        // TLBI_EL2_ASID: ASID.
        0x21 if on.has(S1P | HYP) => fate(low == 0x21 | asid && high == 0, other),
        // TLBI_EL2_VA: ASID and the range fields.
        0x22 if on.has(S1P | HYP) => fate(by_address(on, low & !asid, high).is_some(), other),
        // TLBI_EL2_VAA: the range fields.
        0x23 if on.has(S1P | HYP) => fate(by_address(on, low, high).is_some(), other),
        // TLBI_S12_VMALL: VMID.
        0x28 if on.has(S2P) => fate(no_vmid == 0x28 && high == 0, other),
        // TLBI_S2_IPA: VMID and the range fields, the address only up to bit 55.
        0x2a if on.has(S2P) => fate(high >> 56 == 0 && by_address(on, no_vmid, high).is_some(), other),
        // TLBI_NSNH_ALL: no fields; the host gets TLBI_NH_ALL.
        0x30 => fate(low == 0x30 && high == 0, Fate::Host([0x10 | SET_VMID, 0])),
        0x40 if on.has(ATS) => atc_inv(on, low, high),
        0x41 if on.has(PRI) => pri_resp(on, low, high),
        // RESUME: Ac 12, Ab 13, StreamID, STAG 15:0.
        0x44 if on.has(STALL) => {
            let action = match (low >> 12 & 1, low >> 13 & 1) {
                (1, _) => ResumeAction::Retry,
                (_, 0) => ResumeAction::Terminate,
                _ => ResumeAction::Abort,
            };
            let resume = Request::Resume { stream: stream_id, stag: high as u16, action };
            fate(low & 0xffff_cf00 == 0 && high >> 16 == 0, Fate::Request(resume))
        }
        // STALL_TERM: StreamID.
        0x45 if on.has(STALL) => {
            fate(low & 0xffff_ff00 == 0 && high == 0, Fate::Request(Request::StallTerm(stream_id)))
        }
        0x46 => cmd_sync(low, high),
        // DPTI_ALL: no fields. (DPTI_PA, 0x73, is refused: nobody knows its fields.)
        0x70 if on.has(DPT) => fate(low == 0x70 && high == 0, other),
        _ => Fate::Ill,
    }
}

fn fate(legal: bool, fate: Fate) -> Fate {
    if legal { fate } else { Fate::Ill }
}

fn config(streams: StreamConfig) -> Fate {
    Fate::Request(Request::Streams(streams))
}

/// 2^(Range+1) streams from the StreamID with its low Range+1 bits cleared; Range 31 is CFGI_ALL.
fn ste_range(low: u64, high: u64) -> StreamConfig {
    let log2 = (high & 0x1f) as u32 + 1;
    let first = low >> 32 >> log2 << log2;
    if log2 == 32 { StreamConfig::All } else { StreamConfig::Range { first: StreamId(first as u32), log2 } }
}

/// A command for the stream in its upper half and the substream in bits 31:12.
fn stream(on: On, low: u64, forwarded: impl Fn(u64) -> [u64; 2]) -> Fate {
    let substream = low >> 12 & 0xf_ffff;
    let host = STREAMS.iter().find(|(guest, _)| u64::from(*guest) == low >> 32);
    match host {
        Some((_, host)) if substream < 1 << on.ssid_bits => Fate::Host(forwarded(u64::from(*host) << 32)),
        _ => Fate::Dropped,
    }
}

fn tlbi(canonical: Option<[u64; 2]>, asid: u64) -> Fate {
    canonical.map_or(Fate::Ill, |[low, high]| Fate::Host([low | SET_VMID | asid, high]))
}

/// Of a TLBI without VMID and ASID what the host gets, or `None` if it is CERROR_ILL.
fn by_address(on: On, low: u64, high: u64) -> Option<[u64; 2]> {
    let (op, num, scale) = (low & 0xff, low >> 12 & 0x1f, low >> 20 & 0x3f);
    let (leaf, ttl128, ttl, tg, address) =
        (high & 1, high >> 7 & 1, high >> 8 & 3, high >> 10 & 3, high >> 12);
    let low_fields = op | num << 12 | scale << 20;
    let high_fields = leaf | ttl128 << 7 | ttl << 8 | tg << 10 | address << 12;
    let fields_only = low == low_fields && high == high_fields;
    let they_exist = (on.has(RIL) || num | scale | ttl128 | ttl | tg == 0)
        && (on.has(DS) || scale < 32)
        && (on.has(D128) || ttl128 == 0);
    let one_page = num == 0 && scale == 0;
    // 16K has no leaf at level 1 without DS: that TTL counts as 0.
    let ttl_counts = if tg == 2 && ttl == 1 && !on.has(DS) { 0 } else { ttl };
    let legal = match tg {
        0 => one_page && ttl == 0 && ttl128 == 0,
        // TTL128 goes with a TTL only.
        _ if ttl_counts == 0 => ttl128 == 0 && (on.has(ONE_PAGE) || !one_page),
        _ => true,
    };
    // TTL128 does not reach the host, and TTL means something else without it. A TG for nothing is reserved.
    let hint = if ttl128 == 1 { 0 } else { ttl_counts };
    let tg = if one_page && hint == 0 { 0 } else { tg };
    (fields_only && they_exist && legal).then_some([low, leaf | hint << 8 | tg << 10 | address << 12])
}

/// Global 9, SSV 11, SubstreamID, StreamID; Size 5:0, Address 63:12.
fn atc_inv(on: On, low: u64, high: u64) -> Fate {
    let (ssv, size) = (low >> 11 & 1, high & 0x3f);
    let legal = low & 0x500 == 0 && high & 0xfc0 == 0 && size <= 52;
    // Without SSV, or without substreams, SubstreamID and Global are ignored, and the host gets none.
    let with_substream = ssv == 1 && on.ssid_bits > 0;
    let fields = if with_substream { low & 0xffff_fa00 } else { 0 };
    let seen = low & !0xffff_ffff | fields;
    let forwarded = stream(on, seen, |host| [0x40 | fields | host, high]);
    fate(legal, if on.has(SMMUEN) { forwarded } else { Fate::Dropped })
}

/// SSV 11, SubstreamID, StreamID; PRGIndex 8:0, Resp 13:12.
fn pri_resp(on: On, low: u64, high: u64) -> Fate {
    let (ssv, response) = (low >> 11 & 1, high >> 12 & 3);
    let page_response = PageResponse {
        stream: StreamId((low >> 32) as u32),
        substream: (ssv == 1 && on.ssid_bits > 0).then_some((low >> 12 & 0xf_ffff) as u32),
        group: (high & 0x1ff) as u16,
        response: response as u8,
    };
    let legal = low & 0x700 == 0 && high & !0x31ff == 0 && response != 3;
    let answered = Fate::Request(Request::PageResponse(page_response));
    fate(legal, if on.has(SMMUEN) { answered } else { Fate::Dropped })
}

/// CS 13:12, MSH 23:22, MSIAttr 27:24, MSIData 63:32; MSIAddress 55:2.
fn cmd_sync(low: u64, high: u64) -> Fate {
    let legal = low & 0xf03f_cf00 == 0 && high & 0xff00_0000_0000_0003 == 0;
    match low >> 12 & 3 {
        0 => fate(legal, Fate::Sync(Signal::None)),
        1 => {
            let irq = Signal::Irq { address: GuestAddress(high), data: (low >> 32) as u32 };
            fate(legal, Fate::Sync(irq))
        }
        2 => fate(legal, Fate::Sync(Signal::Sev)),
        _ => Fate::Ill,
    }
}
