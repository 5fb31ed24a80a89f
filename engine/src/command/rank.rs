//! Which invalidations must be complete before which others begin.

use super::{Command, Opcode};

/// What a command invalidates, in the order in which caches are filled through one another: each is filled through those of a lower rank.
///
/// A TLB is filled through cached configuration, and an endpoint's ATC through cached translations. Where a cache is invalidated first, a
/// device that gets in between fills it again with what the lower one still has, and nothing removes that any more. So a driver puts a
/// CMD_SYNC between the two, and whoever hands its commands on must keep them apart likewise: a command behind a CMD_SYNC begins when
/// every command of a lower rank in front of it has been executed. Commands of the same rank, and those of a lower one behind a higher,
/// may be executed together with what is in front of the CMD_SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// CFGI_*.
    Configuration,
    /// TLBI_*.
    Translation,
    /// ATC_INV.
    Atc,
}

/// By opcode.
const RANK: [Option<Rank>; 256] = {
    let mut ranks = [None; 256];
    let mut opcode = 0;
    while opcode < ranks.len() {
        ranks[opcode] = match opcode {
            0x03..=0x07 => Some(Rank::Configuration),
            0x10..=0x3f | 0x50..=0x6f => Some(Rank::Translation),
            0x40 => Some(Rank::Atc),
            _ => None,
        };
        opcode += 1;
    }
    ranks
};

/// The rank of an invalidation; `None` for a command that invalidates nothing: CMD_SYNC, PREFETCH_*, answers to devices.
#[inline]
pub(crate) fn rank(command: Command) -> Option<Rank> {
    let Opcode(opcode) = command.opcode();
    RANK[usize::from(opcode)]
}

#[cfg(test)]
mod tests {
    use super::{Rank, rank};
    use crate::command::Command;
    use crate::command::table::COMMANDS;

    #[test]
    fn the_rank_of_each_command_is_that_of_the_cache_it_names() {
        for spec in COMMANDS {
            let expected = match spec.name.split_once('_') {
                Some(("CFGI", _)) => Some(Rank::Configuration),
                Some(("TLBI", _)) => Some(Rank::Translation),
                Some(("ATC", _)) => Some(Rank::Atc),
                _ => None,
            };
            assert_eq!(rank(Command([spec.opcode.0.into(), 0])), expected, "{}", spec.name);
        }
    }

    #[test]
    fn caches_are_filled_through_those_of_a_lower_rank() {
        assert!(Rank::Configuration < Rank::Translation && Rank::Translation < Rank::Atc);
    }
}
