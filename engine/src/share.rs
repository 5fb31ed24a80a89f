//! Who may take how much: deficit round robin in units of cost, and rate limits.
//!
//! In each sweep every guest gets the same credit times its weight. It is served while it has credit, and what it took is
//! subtracted; the last batch may overdraw it, which counts in the next sweep. Whoever finds no room at the host goes on in the next
//! sweep, before anybody else, with what it has left. Credit does not pile up while there is nothing to
//! take, beyond the guest's burst.

use std::time::Duration;

use crate::command::DEAREST;
use crate::outbox::{BATCH, MIN_BATCH};

/// Credit of a guest of weight 1 in a sweep.
pub(crate) const QUANTUM: i64 = 512;

/// The most that a batch costs: a few of the dearest.
pub(crate) const MAX_BATCH_COST: u64 = DEAREST * MIN_BATCH as u64;

/// What the worker does for a guest besides commands costs units as well, about as much of its time as so many commands take.
pub(crate) mod price {
    /// A queue was looked into for nothing.
    pub const VISIT: u64 = 1;
    /// A queue was enabled, disabled or resumed, or a register followed.
    pub const HANDSHAKE: u64 = 16;
    /// A queue stopped, or its PROD contradicts CONS.
    pub const ERROR: u64 = 64;
    /// The VMM is asked for something.
    pub const REQUEST: u64 = 64;

    /// Entries were fetched and not taken.
    pub fn in_vain(entries: usize) -> u64 {
        entries as u64 / 16
    }
}

/// A guest's share of its worker.
///
/// The unit of cost is a TLBI of one address. A TLBI_NH_ASID costs 4, a TLBI_NH_ALL (also one that a range became) 16, an ATC_INV 8,
/// a CFGI_CD 2, a CFGI_CD_ALL 4; commands that go nowhere cost 1. What takes the worker's time otherwise costs, too: an error and a request to
/// the VMM 64, enabling or disabling a queue 16, and 16 entries that are fetched in vain 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// How much it gets in each sweep, relative to others. 0 counts as 1.
    pub weight: u16,
    /// Units that it may save up while it has nothing to do, beyond what it gets in a sweep.
    pub burst: u32,
    /// What it may not exceed. Commands beyond wait; none is lost.
    pub limit: Option<RateLimit>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Units a second in the long run, from 1 to 10^9: 0 counts as 1, and more as no limit.
    pub per_second: u32,
    /// Units that may come at once. A batch that has begun is served whole: up to 64 commands.
    pub burst: u32,
}

impl Default for Share {
    /// Weight 1, no burst, no limit.
    fn default() -> Self {
        Self { weight: 1, burst: 0, limit: None }
    }
}

/// What a guest has left of its share.
#[derive(Debug)]
pub(crate) struct Allowance {
    quantum: i64,
    cap: i64,
    credit: i64,
    /// What was spent in this sweep.
    spent: u64,
    bucket: Option<Bucket>,
    /// There was something to take, and nothing left to take it for.
    pub denied: bool,
    /// There was something to take, but no room at the host.
    pub held_up: bool,
    /// There was room when this sweep came to the guest: it is its turn.
    open: bool,
    /// Its turn ended for want of room, and goes on when there is some.
    unfinished: bool,
}

/// A token bucket, as the time at which it will be full again.
#[derive(Debug)]
struct Bucket {
    unit: Duration,
    depth: Duration,
    full_at: Duration,
    now: Duration,
}

impl Allowance {
    pub fn new(share: Share) -> Self {
        let quantum = QUANTUM * i64::from(share.weight.max(1));
        let bucket = share.limit.map(|RateLimit { per_second, burst }| {
            let unit = Duration::from_secs(1) / per_second.max(1);
            Bucket { unit, depth: unit * burst, full_at: Duration::ZERO, now: Duration::ZERO }
        });
        let cap = quantum + i64::from(share.burst);
        Self {
            quantum,
            cap,
            credit: 0,
            spent: 0,
            bucket,
            denied: false,
            held_up: false,
            open: false,
            unfinished: false,
        }
    }

    /// Whether it depends on the time.
    pub fn is_limited(&self) -> bool {
        self.bucket.is_some()
    }

    /// A turn of the guest, so many sweeps after its last one. `now` is the time since the worker began; it only counts if there is a limit.
    /// `open` says that there may be room: only then it earns credit, or else a deficit would be repaid while others wait.
    pub fn begin(&mut self, now: Duration, open: bool, sweeps: u64) {
        let turns = match open && !std::mem::take(&mut self.unfinished) {
            true => sweeps,
            // It had none while it had nothing to do.
            false => sweeps.saturating_sub(1),
        };
        if turns > 0 {
            let earned = self.quantum.saturating_mul(i64::try_from(turns).unwrap_or(i64::MAX));
            self.credit = self.credit.saturating_add(earned).min(self.cap);
        }
        (self.open, self.denied, self.held_up) = (open, false, false);
        self.spent = 0;
        if let Some(bucket) = &mut self.bucket {
            bucket.now = now;
        }
    }

    /// Whether more may be taken.
    pub fn has_some(&self) -> bool {
        self.credit > 0 && self.bucket.as_ref().is_none_or(|bucket| bucket.wait().is_zero())
    }

    /// How many commands may be taken at once: a few at least, which may overdraw it.
    pub fn batch(&self) -> usize {
        match self.bucket {
            None => usize::try_from(self.credit).unwrap_or(0).clamp(MIN_BATCH, BATCH),
            Some(_) => MIN_BATCH,
        }
    }

    /// There is something to take and no credit, or, if the host is full, no room either.
    pub fn deny(&mut self, full: bool) {
        if full { self.hold_up() } else { self.denied = true }
    }

    /// There is no room for what it would take.
    pub fn hold_up(&mut self) {
        self.held_up = true;
        self.unfinished |= self.open;
    }

    /// There is room again: the same turn goes on.
    pub fn go_on(&mut self) {
        (self.denied, self.held_up, self.unfinished) = (false, false, false);
    }

    /// What was spent in this sweep.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Subtracts what was done from the credit, and not from what a limit allows.
    pub fn spend_credit(&mut self, cost: u64) {
        self.spent += cost;
        self.credit = self.credit.saturating_sub_unsigned(cost);
    }

    pub fn spend(&mut self, cost: u64) {
        self.spend_credit(cost);
        if let Some(bucket) = &mut self.bucket {
            let cost = u32::try_from(cost).unwrap_or(u32::MAX);
            bucket.full_at = bucket.full_at.max(bucket.now) + bucket.unit * cost;
        }
    }

    /// How long nothing can be taken; zero unless a limit is why something was denied.
    pub fn wait(&self) -> Duration {
        self.bucket.as_ref().filter(|_| self.denied).map_or(Duration::ZERO, Bucket::wait)
    }
}

impl Bucket {
    /// How long it takes until there is something in it.
    fn wait(&self) -> Duration {
        self.full_at.saturating_sub(self.now + self.depth)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Allowance, RateLimit, Share};

    fn limited(per_second: u32, burst: u32) -> Allowance {
        Allowance::new(Share { limit: Some(RateLimit { per_second, burst }), ..Share::default() })
    }

    /// Takes batches of a cost whenever it may, once a step, until a time: how much it took.
    fn taken(allowance: &mut Allowance, cost: u64, step: Duration, until: Duration) -> u64 {
        let (mut now, mut taken) = (Duration::ZERO, 0);
        while now < until {
            allowance.begin(now, true, 1);
            if allowance.has_some() {
                allowance.spend(cost);
                taken += cost;
            }
            now += step;
        }
        taken
    }

    #[test]
    fn in_the_long_run_a_limit_is_kept_and_used_up_whatever_the_batches() {
        // 10,000 units a second for 10 seconds, and what may come at once: the burst, and a batch that had begun.
        for (cost, burst) in [(1, 0), (1, 100), (64, 0), (64, 1000), (1024, 0), (512, 5000)] {
            let step = Duration::from_micros(20);
            let taken = taken(&mut limited(10_000, burst), cost, step, Duration::from_secs(10));
            let (least, most) = (99_000, 100_000 + u64::from(burst) + cost);
            assert!((least..=most).contains(&taken), "batches of {cost}, burst {burst}: {taken}");
        }
    }

    #[test]
    fn how_long_there_is_nothing_is_as_long_as_what_was_spent_takes() {
        let mut allowance = limited(1000, 10);
        let at = Duration::from_millis;
        allowance.begin(at(5), true, 1);
        assert!(allowance.has_some());
        allowance.spend(50);
        assert_eq!((allowance.has_some(), allowance.wait()), (false, at(0)), "nobody was denied anything");
        allowance.denied = true;
        assert_eq!(allowance.wait(), at(40), "50 units, of which 10 are the burst");
        allowance.begin(at(44), true, 1);
        assert!(!allowance.has_some());
        allowance.begin(at(45), true, 1);
        assert!(allowance.has_some());
    }

    #[test]
    fn a_turn_that_found_no_room_goes_on_and_earns_nothing_while_others_are_ahead() {
        let mut allowance = Allowance::new(Share::default());
        let credit = |allowance: &mut Allowance, open| {
            allowance.begin(Duration::ZERO, open, 1);
            allowance.credit
        };
        assert_eq!(credit(&mut allowance, true), 512);
        allowance.spend(100);
        allowance.hold_up();
        assert_eq!(credit(&mut allowance, false), 412, "it is not its turn");
        allowance.hold_up();
        assert_eq!(credit(&mut allowance, true), 412, "its turn goes on");
        allowance.spend(1000);
        assert_eq!(credit(&mut allowance, false), -588);
        assert_eq!(credit(&mut allowance, true), -76);
        assert_eq!(credit(&mut allowance, true), 436);
        assert_eq!(credit(&mut allowance, true), 512, "without a burst it saves up nothing");
    }

    #[test]
    fn a_burst_is_saved_up_and_no_more() {
        let mut allowance = Allowance::new(Share { weight: 2, burst: 3000, ..Share::default() });
        (0..10).for_each(|_| allowance.begin(Duration::ZERO, true, 1));
        assert_eq!(allowance.credit, 1024 + 3000);
    }
}
