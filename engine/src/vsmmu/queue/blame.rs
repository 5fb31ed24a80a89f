//! Which failures of the host a queue must report.

use crate::command::CommandError;
use crate::host::Cause;
use crate::submission::OUTSTANDING;

/// The rounds in which a queue sent commands to the host, and what failed of them, until its CMD_SYNC reports that: no later
/// synchronisation says so again.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::vsmmu) struct History {
    sent: Rounds,
    /// Those in which ATC_INVs were sent.
    atc: Rounds,
    blame: Blame,
    /// The oldest round that blames: CMD_SYNCs of rounds before it have nothing to report.
    since: u64,
}

impl History {
    /// Commands were sent in a round, with or without ATC_INVs.
    #[inline]
    pub fn sent(&mut self, round: u64, atc_invs: bool) {
        self.sent.add(round);
        if atc_invs {
            self.atc.add(round);
        }
    }

    /// The synchronisation of a round failed, for which a CMD_SYNC `waits` or not. `ours` says that a command of this guest may
    /// be to blame. Says whether the queue must report an error for it; otherwise a CMD_SYNC that waits waits for another round.
    pub fn on_sync_failed(&mut self, failed: u64, cause: Cause, ours: bool, waits: bool) -> bool {
        let concerned = waits || self.sent.contain(failed);
        let error = match cause {
            Cause::Transient => None,
            Cause::DeviceGone => concerned.then_some(CommandError::Abt),
            Cause::Illegal => (ours && concerned).then_some(CommandError::Ill),
            Cause::AtcTimeout => (ours && self.atc.contain(failed)).then_some(CommandError::AtcInvSync),
        };
        if error == Some(CommandError::AtcInvSync) {
            // The ATC_INVs are not executed again, so that no later round can fail for them.
            self.atc.remove(failed);
        }
        // More may have gone wrong with what the round covers than this: the next one says so.
        self.sent.put_off(failed);
        self.atc.put_off(failed);
        if let Some(error) = error {
            self.since = if self.blame.0 == 0 { failed } else { self.since.min(failed) };
            self.blame.add(error);
        }
        error.is_some()
    }

    /// Whether there is any error to be reported.
    #[inline]
    pub fn has_blame(&self) -> bool {
        self.blame.0 != 0
    }

    /// The error that a CMD_SYNC whose round is over must report.
    #[inline]
    pub fn take_error(&mut self, round: u64) -> Option<CommandError> {
        if self.blame.0 == 0 || round < self.since {
            return None;
        }
        self.blame.take()
    }

    /// All that was sent has been synchronised, or will be sent again, and the rounds of another worker are others. What is known to have
    /// failed stays.
    pub fn forget_rounds(&mut self) {
        (self.sent, self.atc, self.since) = (Rounds::default(), Rounds::default(), 0);
    }

    /// The errors that the next CMD_SYNC must report, for a snapshot: bit n is the [`CommandError`] n.
    pub fn blame_bits(&self) -> u8 {
        self.blame.0
    }

    /// As [`Self::blame_bits`], from a snapshot.
    pub fn set_blame_bits(&mut self, bits: u8) {
        (self.blame, self.since) = (Blame(bits), 0);
    }
}

/// A set of rounds, whose synchronisations cover what was taken in them.
///
/// It reaches back as many rounds as may be outstanding: an older one is over, and can no longer fail.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    newest: u64,
    /// Bit n is the round n before the newest.
    bits: u128,
}

const _: () = assert!(OUTSTANDING < u128::BITS as usize);

impl Rounds {
    #[inline]
    fn add(&mut self, round: u64) {
        if round == self.newest {
            self.bits |= 1;
        } else {
            self.add_other(round);
        }
    }

    #[inline(never)]
    fn add_other(&mut self, round: u64) {
        if let Some(age) = self.newest.checked_sub(round) {
            self.bits |= bit(age);
        } else {
            self.bits = u32::try_from(round - self.newest).map_or(0, |n| self.bits.unbounded_shl(n)) | 1;
            self.newest = round;
        }
    }

    fn contain(&self, round: u64) -> bool {
        self.newest.checked_sub(round).is_some_and(|age| self.bits & bit(age) != 0)
    }

    /// The synchronisation of a round said nothing of it, or not all: the next one covers it, too.
    fn put_off(&mut self, round: u64) {
        if self.contain(round) {
            self.add(round + 1);
        }
    }

    fn remove(&mut self, round: u64) {
        self.bits &= !self.newest.checked_sub(round).map_or(0, bit);
    }
}

/// The bit of a round by how many rounds it is before the newest; none if it is too old.
fn bit(age: u64) -> u128 {
    u32::try_from(age).map_or(0, |age| 1_u128.unbounded_shl(age))
}

/// Errors that the next CMD_SYNC must report, as bits by their codes: it reports one at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Blame(u8);

impl Blame {
    fn add(&mut self, error: CommandError) {
        self.0 |= 1 << error as u8;
    }

    fn take(&mut self) -> Option<CommandError> {
        use CommandError::{Abt, AtcInvSync, Ill};
        let error = [Ill, Abt, AtcInvSync].into_iter().find(|error| self.0 & 1 << *error as u8 != 0)?;
        self.0 &= !(1 << error as u8);
        Some(error)
    }
}
