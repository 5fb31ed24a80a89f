//! What commands cost the host.

use super::{Command, Opcode};

/// Units beyond one for each: entries that must be looked at, an endpoint that must answer; guests whose commands come behind wait for
/// that as well.
const EXTRA: [(Opcode, u8); 6] = [
    (Opcode::TLBI_NH_ALL, 15),
    (Opcode::TLBI_NSNH_ALL, 15),
    (Opcode::TLBI_NH_ASID, 3),
    (Opcode::CFGI_CD, 1),
    (Opcode::CFGI_CD_ALL, 3),
    (Opcode::ATC_INV, 7),
];

/// By opcode.
const COST: [u8; 256] = {
    let mut cost = [1; 256];
    let mut n = 0;
    while n < EXTRA.len() {
        let (opcode, extra) = EXTRA[n];
        cost[opcode.0 as usize] += extra;
        n += 1;
    }
    cost
};

/// What the dearest command costs.
pub(crate) const DEAREST: u64 = {
    let (mut most, mut n) = (0, 0);
    while n < COST.len() {
        most = if COST[n] > most { COST[n] } else { most };
        n += 1;
    }
    most as u64
};

/// What a command costs the host, in units of a TLBI of one address.
#[inline]
pub(crate) fn cost(command: Command) -> u64 {
    u64::from(COST[usize::from(command.opcode().0)])
}
