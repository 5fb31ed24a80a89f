//! Runs of one opcode, looked at as a whole.
//!
//! The bits that any of its commands has, and the bits that all of them have, tell whether the opcode is the same in all
//! (the two agree in its bits), whether a reserved bit is set in any, whether all name one stream, one granule, and so on:
//! one decision for the run, two operations a command.

use super::Rules;
use super::checks::{ATC_SIZE_MAX, NUM_SCALE, SSV_AND_WITH_IT, TG, TTL, TTL128};
use super::compile::{Kind, Masks};
use crate::command::Command;
use crate::identity::{StreamId, StreamMap};

/// The fewest commands that are worth looking at together.
pub(super) const RUN: usize = 8;

/// The bits that any of the commands has, and those that all of them have. (Four results side by side: the compiler then
/// takes each command as one vector, and need not bring low words and high words together.)
#[inline(never)]
fn summary(commands: &[Command]) -> ([u64; 2], [u64; 2]) {
    let or = |a: Command, b: &Command| Command([a.0[0] | b.0[0], a.0[1] | b.0[1]]);
    let and = |a: Command, b: &Command| Command([a.0[0] & b.0[0], a.0[1] & b.0[1]]);
    let (none, every) = (Command([0; 2]), Command([u64::MAX; 2]));
    let (mut any, mut all) = ([none; 4], [every; 4]);
    let (fours, rest) = commands.as_chunks::<4>();
    for four in fours {
        for ((any, all), command) in any.iter_mut().zip(&mut all).zip(four) {
            (*any, *all) = (or(*any, command), and(*all, command));
        }
    }
    (any.iter().chain(rest).fold(none, or).0, all.iter().chain(rest).fold(every, and).0)
}

/// Copies commands through masks, and puts a StreamID on top. (The masks are behind a reference: as values they would come in
/// registers, and the compiler would not use vectors. Eight at a time spare it most of the loop.)
#[inline(never)]
pub(super) fn merge(from: &[Command], to: &mut [Command], masks: &Masks, stream: u64) {
    let Masks { kept, set } = masks;
    let set = [set[0] | stream, set[1]];
    let masked = |Command([low, high]): Command| Command([low & kept[0] | set[0], high & kept[1] | set[1]]);
    let ((from8, from), (to8, to)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (to, from) in to8.iter_mut().zip(from8) {
        *to = from.map(masked);
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = masked(*from);
    }
}

/// What becomes of the commands of a run.
pub(super) enum Whole {
    /// They go to the host through the masks of their rule, with this on top.
    Host(u64),
    Nowhere,
}

impl Rules {
    /// A run of one opcode at the front for which one decision is enough: how many commands that is, and the decision. What
    /// stands behind it is not decided.
    #[inline]
    pub(super) fn whole(&self, streams: &StreamMap, from: &[Command]) -> Option<(usize, Whole)> {
        let opcode = from.first()?.opcode();
        // Soon said where there is none.
        if from.get(RUN - 1)?.opcode() != opcode {
            return None;
        }
        // All of it, or all but the CMD_SYNC at its end; a part.
        let most = from.len() - usize::from(from.last()?.opcode() != opcode);
        [most, RUN].into_iter().find_map(|n| {
            let (any, all) = summary(from.get(..n)?);
            Some((n, self.decide(streams, any, all)?))
        })
    }

    /// The decision on a run: `any` are the bits that any of its commands has, `all` those that all of them have. `None` if
    /// they are not so uniform, or do not go one for one.
    #[inline]
    fn decide(&self, streams: &StreamMap, any: [u64; 2], all: [u64; 2]) -> Option<Whole> {
        let differ = [any[0] ^ all[0], any[1] ^ all[1]];
        let rule = self.rule(Command(any));
        if differ[0] & 0xff != 0 || rule.has_reserved(any) {
            return None;
        }
        let effective = match rule.kind {
            Kind::Masked => return Some(Whole::Host(0)),
            Kind::Nowhere => return Some(Whole::Nowhere),
            Kind::Range => return self.uniform_ranges(any, all, differ).then_some(Whole::Host(0)),
            Kind::Stream => true,
            Kind::Substream => self.has_substream(any[0]),
            Kind::AtcInv => {
                self.smmu_enabled && any[0] & SSV_AND_WITH_IT == 0 && any[1] & 0x3f <= ATC_SIZE_MAX
            }
            _ => false,
        };
        if !effective || differ[0] >> 32 != 0 {
            return None;
        }
        let host = self.host_stream(streams, StreamId((any[0] >> 32) as u32))?;
        Some(Whole::Host(u64::from(host.0) << 32))
    }

    /// Whether the range fields of a run are certainly legal, and go to the host as they are.
    #[inline]
    fn uniform_ranges(&self, any: [u64; 2], all: [u64; 2], differ: [u64; 2]) -> bool {
        if differ[1] & TG != 0 || any[1] & TTL128 != 0 {
            return false;
        }
        match any[1] & TG {
            0 => any[0] & NUM_SCALE | any[1] & TTL == 0,
            // With 16K granules, TTL=1 needs a closer look; 2 and 3 have the upper bit, in all of them here.
            0x800 if all[1] & 0x200 == 0 => false,
            _ => all[0] & NUM_SCALE | all[1] & TTL != 0,
        }
    }
}
