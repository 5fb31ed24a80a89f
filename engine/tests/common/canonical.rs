//! What a host may ever see: the masks of section 1.3 of the facts sheet, without NUM and others' reserved forms.

use ecmdq_engine::Command;

/// Panics unless the host accepts the command for certain, and it names only this VMID and this host stream.
///
/// For guests with RIL, ATS, 16-bit ASIDs and 4 SubstreamID bits.
pub fn assert_canonical(command: Command, vmid: u16, host_stream: u32) {
    let [low, high] = command.0;
    let (vmid, stream) = (u64::from(vmid) << 32, u64::from(host_stream) << 32);
    let fine = match low & 0xff {
        0x05 => low & !0x0000_f000 == 0x05 | stream && high & !1 == 0,
        0x06 => low == 0x06 | stream && high == 0,
        0x10 => low == 0x10 | vmid && high == 0,
        0x11 => low & !0xffff_0000_0000_0000 == 0x11 | vmid && high == 0,
        0x12 => low & !0xffff_0000_01f1_f000 == 0x12 | vmid && range(low, high),
        0x13 => low & !0x0000_0000_01f1_f000 == 0x13 | vmid && range(low, high),
        0x40 => low & !0x0000_fa00 == 0x40 | stream && atc(low, high),
        _ => false,
    };
    assert!(fine, "not canonical: {command} ({low:#018x} {high:#018x})");
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
