//! Which invalidations must be complete before which others begin.

use super::{Command, Opcode};

/// What a command invalidates, in the order in which caches are filled through one another: each is filled through those of a lower rank.
///
/// A TLB is filled through cached configuration and cached steps of a table walk, and an endpoint's ATC through cached translations. Where a
/// cache is invalidated first, a device that gets in between fills it again with what the lower one still has, and nothing removes that any
/// more. So a driver puts a CMD_SYNC between the two, and whoever hands its commands on must keep them apart likewise: a command behind a
/// CMD_SYNC begins when every command of a lower rank in front of it has been executed. Commands of the same rank, and those of a lower
/// one behind a higher, may be executed together with what is in front of the CMD_SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// CFGI_CD with Leaf=0: also the L1CD that leads to other CDs.
    ConfigurationTable,
    /// Other CFGI_*.
    Configuration,
    /// TLBI by address with Leaf=0: also steps of the walk that lead to other addresses.
    TranslationTable,
    /// Other TLBI_*: what is removed and what leads there go together.
    Translation,
    /// ATC_INV.
    Atc,
}

/// By opcode, with Leaf=1.
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
    let is_leaf = command.0[1] & 1 != 0;
    match command.opcode() {
        Opcode::CFGI_CD if !is_leaf => Some(Rank::ConfigurationTable),
        Opcode::TLBI_NH_VA | Opcode::TLBI_NH_VAA if !is_leaf => Some(Rank::TranslationTable),
        Opcode(opcode) => RANK[usize::from(opcode)],
    }
}

/// The lowest and the highest rank among invalidations, of which there is at least one.
#[inline]
pub(crate) fn ranks(commands: &[Command]) -> (Rank, Rank) {
    let ranks = commands.iter().filter_map(|command| rank(*command));
    ranks.fold((Rank::Atc, Rank::ConfigurationTable), |(low, high), rank| (low.min(rank), high.max(rank)))
}

/// The same for TLBIs of one address each, which most commands are.
#[inline]
pub(crate) fn ranks_by_address(commands: &[Command]) -> (Rank, Rank) {
    let leafs = commands.iter().map(|command| command.0[1] & 1);
    match leafs.fold((1, 0), |(all, any), leaf| (all & leaf, any | leaf)) {
        (0, 0) => (Rank::TranslationTable, Rank::TranslationTable),
        (0, _) => (Rank::TranslationTable, Rank::Translation),
        _ => (Rank::Translation, Rank::Translation),
    }
}

#[cfg(test)]
mod tests {
    use super::{Rank, rank, ranks, ranks_by_address};
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
            assert_eq!(rank(Command([spec.opcode.0.into(), 1])), expected, "{}", spec.name);
        }
    }

    #[test]
    fn what_leads_to_others_must_go_before_them() {
        let of = |opcode, leaf| rank(Command([opcode, leaf]));
        assert!(of(0x05, 0) < of(0x05, 1) && of(0x12, 0) < of(0x12, 1) && of(0x13, 0) < of(0x13, 1));
        assert_eq!((of(0x11, 0), of(0x06, 0)), (Some(Rank::Translation), Some(Rank::Configuration)));
    }

    #[test]
    fn commands_by_address_have_the_same_ranks_either_way() {
        for leafs in [&[0, 0][..], &[0, 1], &[1, 0, 1], &[1]] {
            let commands: Vec<_> = leafs.iter().map(|leaf| Command([0x12, *leaf])).collect();
            assert_eq!(ranks(&commands), ranks_by_address(&commands), "{leafs:?}");
        }
    }

    #[test]
    fn caches_are_filled_through_those_of_a_lower_rank() {
        assert!(Rank::Configuration < Rank::TranslationTable && Rank::Translation < Rank::Atc);
    }
}
