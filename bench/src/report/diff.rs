//! What is different from an older run.

use super::{Figures, Sharing, Spread};

/// Something that both runs measured: a ratio, so that it says something even if the machine was in another mood.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it is.
    pub what: String,
    /// Then.
    pub old: Spread,
    /// Now.
    pub new: Spread,
    /// Whether more is better.
    pub more_is_better: bool,
}

impl Change {
    /// How much it has changed, relative to what it was.
    pub fn relative(&self) -> f64 {
        self.new.median / self.old.median.max(f64::MIN_POSITIVE) - 1.0
    }

    /// How much it may change by chance: the noise of both runs, relative.
    pub fn noise(&self) -> f64 {
        self.old.noise().hypot(self.new.noise())
    }

    /// Whether it has changed by more than that, and the quartiles do not overlap.
    pub fn is_real(&self) -> bool {
        let apart = self.new.low > self.old.high || self.new.high < self.old.low;
        apart && self.relative().abs() > self.noise()
    }

    /// Whether it has become better.
    pub fn is_better(&self) -> bool {
        (self.relative() > 0.0) == self.more_is_better
    }
}

/// All ratios that both have, in the order of the newer one.
pub fn changes(old: &Figures, new: &Figures) -> Vec<Change> {
    let before = ratios(old);
    let find = |what: &str| before.iter().find(|(name, ..)| name == what).map(|(_, ratio, _)| *ratio);
    let change = |(what, new, more_is_better): (String, Spread, bool)| {
        let old = find(&what)?;
        Some(Change { what, old, new, more_is_better })
    };
    ratios(new).into_iter().filter_map(change).collect()
}

/// By name, and whether more is better.
fn ratios(figures: &Figures) -> Vec<(String, Spread, bool)> {
    let rates = figures.rates.iter().filter(|rate| rate.lane == "engine").map(|rate| {
        let what =
            format!("engine : limit, {}, {} queues, {} a doorbell", rate.load, rate.queues, rate.batch);
        (what, rate.of_limit, true)
    });
    let trips = figures.round_trips.iter().filter(|trip| trip.lane == "engine").flat_map(|trip| {
        [("p50", trip.p50_of_floor), ("p99", trip.p99_of_floor)]
            .map(|(part, ratio)| (format!("round trip : one word, {part}"), ratio, false))
    });
    let merging = figures.merging.iter().map(|merging| {
        let what = format!("CMD_SYNCs of {} guests for each of the host", merging.guests);
        (what, merging.guest_syncs_per_host_sync, true)
    });
    let beside_idle = figures
        .beside_idle
        .map(|ratio| ("one queue beside 256 idle guests : alone".to_string(), ratio, true));
    rates.chain(trips).chain(merging).chain(sharing(&figures.sharing)).chain(beside_idle).collect()
}

/// A host whose CMD_SYNCs take their time is a clock: beside it, what gets done in that time is a ratio as well.
fn sharing(sharing: &[Sharing]) -> impl Iterator<Item = (String, Spread, bool)> {
    sharing.iter().flat_map(|sharing| {
        let Sharing { vcpus, queues, host_sync_ns, .. } = sharing;
        let of = format!("{vcpus} vCPUs, {queues}, host CMD_SYNC in {host_sync_ns} ns");
        let done = match host_sync_ns {
            0 => (format!("{of} : limit"), sharing.of_limit, true),
            ns => {
                let each = |per_second: f64| per_second * *ns as f64 / 1e9;
                let Spread { low, median, high } = sharing.syncs_per_second;
                let spread = Spread { low: each(low), median: each(median), high: each(high) };
                (format!("CMD_SYNCs in that time, {of}"), spread, true)
            }
        };
        let merged =
            (format!("CMD_SYNCs for each of the host, {of}"), sharing.guest_syncs_per_host_sync, true);
        [done, merged]
    })
}

#[cfg(test)]
mod tests {
    use super::{Change, Sharing, Spread, sharing};

    fn change(old: [f64; 3], new: [f64; 3]) -> Change {
        let spread = |[low, median, high]: [f64; 3]| Spread { low, median, high };
        Change { what: String::new(), old: spread(old), new: spread(new), more_is_better: true }
    }

    #[test]
    fn a_change_is_real_if_it_is_more_than_the_noise_of_both() {
        assert!(change([0.9, 1.0, 1.1], [1.3, 1.4, 1.5]).is_real());
        assert!(!change([0.9, 1.0, 1.1], [1.05, 1.2, 1.3]).is_real(), "the quartiles overlap");
        assert!(!change([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).is_real());
        let worse = change([0.9, 1.0, 1.1], [0.5, 0.5, 0.5]);
        assert!(worse.is_real() && !worse.is_better());
        assert_eq!(worse.relative(), -0.5);
    }

    #[test]
    fn a_late_host_is_a_clock() {
        let spread = |median: f64| Spread { low: median / 2.0, median, high: 2.0 * median };
        let with = |host_sync_ns| Sharing {
            vcpus: 4,
            queues: "one CMDQ".into(),
            host_sync_ns,
            commands_per_second: spread(6e6),
            syncs_per_second: spread(3e6),
            of_limit: spread(0.25),
            guest_syncs_per_host_sync: spread(1.5),
        };
        let ratios: Vec<_> = sharing(&[with(0), with(2000)]).map(|(_, ratio, _)| ratio).collect();
        assert_eq!(ratios, [spread(0.25), spread(1.5), spread(6.0), spread(1.5)]);
    }

    #[test]
    fn quartiles_lie_between_the_values() {
        assert_eq!(Spread::of(vec![4.0, 1.0, 3.0, 2.0, 5.0]), Spread { low: 2.0, median: 3.0, high: 4.0 });
        assert_eq!(Spread::of(vec![1.0, 2.0]), Spread { low: 1.25, median: 1.5, high: 1.75 });
        assert_eq!(Spread::of(Vec::new()).median, 0.0);
    }
}
