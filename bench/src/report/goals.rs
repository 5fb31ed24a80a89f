//! What was to be reached, beside what was measured.

use serde::{Deserialize, Serialize};

use super::{Merging, Rate, RoundTrip, Spread};

/// A ratio, and what it was to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Goal {
    /// Which ratio.
    pub what: String,
    /// What it was to be.
    pub goal: f64,
    /// At least that, or at most.
    pub at_least: bool,
    /// What it is.
    pub measured: Spread,
    /// What the limit reaches in the engine's place, where the ratio is not one to the limit.
    pub limit: Option<f64>,
}

impl Goal {
    /// Whether the median is as it was to be.
    pub fn is_met(&self) -> bool {
        if self.at_least { self.measured.median >= self.goal } else { self.measured.median <= self.goal }
    }
}

/// The goals that the measurements say something of; `kept` is the rate with 256 queues relative to that with one.
pub(super) fn goals(
    rates: &[Rate],
    kept: Option<Spread>,
    round_trips: &[RoundTrip],
    merging: &[Merging],
) -> Vec<Goal> {
    let rate = |load: &str, queues, batch, lane: &str| {
        rates.iter().find(|rate| {
            (rate.load.as_str(), rate.queues, rate.batch, rate.lane.as_str()) == (load, queues, batch, lane)
        })
    };
    let mut goals = Vec::new();
    let mut add = |what: String, goal, at_least, measured: Option<Spread>, limit: Option<f64>| {
        goals.extend(measured.map(|measured| Goal { what, goal, at_least, measured, limit }));
    };
    for batch in [64, 254] {
        let engine = rate(super::measure::TLBI, 1, batch, "engine");
        let what = format!("engine : limit, one queue, {batch} TLBIs a doorbell");
        add(what, 0.80, true, engine.map(|rate| rate.of_limit), None);
    }
    for load in super::measure::RECORDED {
        let what = |how| format!("engine : limit, one queue, recorded {load}, {how}");
        let engine = |batch| rate(load, 1, batch, "engine").map(|rate| rate.of_limit);
        add(what("64 commands a doorbell"), 0.80, true, engine(64), None);
        add(what("as it was sent"), 0.80, true, engine(0), None);
    }
    add("engine with 256 queues : with one, 64 a doorbell".into(), 0.90, true, kept, None);
    let trip = |lane: &str| round_trips.iter().find(|trip| trip.lane == lane);
    type Part = fn(&RoundTrip) -> Spread;
    let parts: [(&str, f64, Part); 2] =
        [("p50", 1.5, |trip| trip.p50_of_floor), ("p99", 2.0, |trip| trip.p99_of_floor)];
    for (part, goal, of_floor) in parts {
        let what = format!("TLBI and CMD_SYNC : one word there and back, {part}");
        let limit = trip("limit").map(|trip| of_floor(trip).median);
        add(what, goal, false, trip("engine").map(of_floor), limit);
    }
    let peers = [
        ("engine : virtqueue, 1 command a chain", "virtqueue, 1 a chain", 40.0),
        ("engine : virtqueue, 64 a chain", "virtqueue, 64 a chain", 1.5),
        ("engine : ArrayQueue, 64 a doorbell", "ArrayQueue", 10.0),
    ];
    for (what, lane, goal) in peers {
        let peer = rate(super::measure::TLBI, 1, 64, lane);
        let limit = peer.map(|rate| 1.0 / rate.of_limit.median);
        add(what.into(), goal, true, peer.map(|rate| rate.engine_is), limit);
    }
    let sixty_four = merging.iter().find(|merging| merging.guests == 64);
    let merged = sixty_four.map(|merging| merging.guest_syncs_per_host_sync);
    add("CMD_SYNCs of 64 guests for each of the host".into(), 20.0, true, merged, None);
    goals
}
