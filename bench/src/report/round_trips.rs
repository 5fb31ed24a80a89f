//! How long a CMD_SYNC takes in each way, beside the floor: one word there and back; and asleep, beside an eventfd.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::measure::{Effort, TRAP};
use super::{RoundTrip, Spread, Steady};
use crate::compare::{Lane, Schedule, WAYS, ping_pong};
use crate::idle::wakes;

/// One word there and back.
const FLOOR: &str = "one word";

pub(super) fn round_trips(effort: &Effort, steady: &mut Steady) -> io::Result<Vec<RoundTrip>> {
    let histogram = || Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other);
    let (repetitions, requests) = effort.round_trips;
    let schedule = |lane: &str| match lane {
        // One after another: it takes so long.
        TRAP => Schedule { interval: Duration::from_micros(200), requests: requests / 20 },
        _ => Schedule { interval: Duration::from_micros(2), requests },
    };
    let mut all = vec![Timed { lane: FLOOR, open: None, times: histogram()?, each: Default::default() }];
    for (lane, open) in WAYS {
        all.push(Timed { lane, open: Some(open(1)?), times: histogram()?, each: Default::default() });
    }
    for _ in 0..repetitions {
        for timed in &mut all {
            let empty = histogram()?;
            let times = steady.measure(|| {
                let mut times = empty.clone();
                let kept_off = match &mut timed.open {
                    Some(lane) => lane.round_trips(1, schedule(timed.lane), &mut times),
                    None => ping_pong(schedule(timed.lane), &mut times),
                };
                (times, kept_off)
            });
            for (each, part) in timed.each.iter_mut().zip([0.5, 0.99]) {
                each.push(times.value_at_quantile(part) as f64);
            }
            timed.times += times;
        }
    }
    let trip = |Timed { lane, times, each, .. }: &Timed| {
        let of_floor = |which: usize| Spread::of_ratios(&each[which], &all[0].each[which]);
        RoundTrip {
            lane: (*lane).into(),
            interval_ns: schedule(lane).interval.as_nanos() as u64,
            p50_ns: times.value_at_quantile(0.5),
            p99_ns: times.value_at_quantile(0.99),
            p999_ns: times.value_at_quantile(0.999),
            p50_of_floor: of_floor(0),
            p99_of_floor: of_floor(1),
        }
    };
    let mut trips: Vec<_> = all.iter().map(trip).collect();
    trips.extend(asleep(&all[0].times)?);
    Ok(trips)
}

/// What is timed, all of its times, and the medians and the 99th percentiles of the repetitions.
struct Timed {
    lane: &'static str,
    /// `None` for the floor.
    open: Option<Box<dyn Lane>>,
    times: Histogram<u64>,
    each: [Vec<f64>; 2],
}

/// A worker that sleeps, and a bare eventfd.
fn asleep(floor: &Histogram<u64>) -> io::Result<[RoundTrip; 2]> {
    let (engine, bare, pause) = wakes()?;
    let trip = |lane: &str, times: &Histogram<u64>| {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| times.value_at_quantile(part));
        let of_floor = |ns: u64, part| Spread::of(vec![ns as f64 / floor.value_at_quantile(part) as f64]);
        RoundTrip {
            lane: lane.into(),
            interval_ns: pause.as_nanos() as u64,
            p50_ns: p50,
            p99_ns: p99,
            p999_ns: p999,
            p50_of_floor: of_floor(p50, 0.5),
            p99_of_floor: of_floor(p99, 0.99),
        }
    };
    Ok([trip("bare eventfd wake", &bare), trip("engine, asleep", &engine)])
}
