//! The comparison itself: everything in turn, again and again, so that whatever else the machine does meets all alike.

use std::io;
use std::time::Duration;

use ecmdq_engine::{Features, Worker};
use hdrhistogram::Histogram;

use super::goals::goals;
use super::{Figures, MachineInfo, Memory, Merging, Rate, RoundTrip, Spread};
use crate::compare::{
    Array, Deque, Engine, Guests, Inline, Lane, Limit, Load, Pair, Rtrb, Schedule, Transport, Trap,
    Virtqueue, ping_pong,
};
use crate::machine::Machine;
use crate::trace;

/// TLBI_NH_VA of one page each, sent as there is room.
pub(super) const TLBI: &str = "TLBI";
/// The recorded streams.
pub(super) const RECORDED: [&str; 3] = ["msi-ril-2cpu-mixed", "sev-noril-64k", "ats-msi-ril-2cpu"];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often everything is repeated.
    repetitions: usize,
    /// How long each takes in a repetition.
    slice: Duration,
    queues: &'static [usize],
    batches: &'static [usize],
    /// Repetitions, and CMD_SYNCs in each, of the round trips.
    round_trips: (usize, u32),
}

impl Effort {
    /// All cases: some minutes.
    pub const FULL: Self = Self {
        repetitions: 15,
        slice: Duration::from_millis(12),
        queues: &[1, 2, 4, 16, 64, 256],
        batches: &[1, 4, 17, 64, 254],
        round_trips: (40, 4000),
    };
    /// What the goals speak of: some twenty seconds.
    pub const QUICK: Self = Self {
        repetitions: 7,
        slice: Duration::from_millis(6),
        queues: &[1, 256],
        batches: &[1, 64, 254],
        round_trips: (10, 2000),
    };
}

/// Something that carries commands: its name, how it is opened, and whether it is only of interest with one queue, because it stands
/// still for each doorbell.
type Way = (&'static str, fn(usize) -> io::Result<Box<dyn Lane>>, bool);

const WAYS: [Way; 9] = [
    (LIMIT, open::<Limit>, false),
    (ENGINE, open::<Engine>, false),
    ("virtqueue, 1 a chain", open::<Virtqueue<1>>, false),
    ("virtqueue, 16 a chain", open::<Virtqueue<16>>, false),
    ("virtqueue, 64 a chain", open::<Virtqueue<64>>, false),
    ("ArrayQueue", open::<Array>, false),
    ("rtrb", open::<Rtrb>, false),
    ("Mutex<VecDeque>", open::<Deque>, false),
    (TRAP, open::<Trap>, true),
];
const LIMIT: &str = "limit";
const ENGINE: &str = "engine";
const TRAP: &str = "trap";
/// One word there and back.
const FLOOR: &str = "one word";

fn open<T: Transport + 'static>(queues: usize) -> io::Result<Box<dyn Lane>> {
    Ok(Box::new(Pair::open::<T>(queues)?))
}

/// Measures everything; tells `progress` what comes next.
///
/// # Errors
///
/// What the system said when it refused memory, a descriptor or a thread.
pub fn measure(effort: &Effort, mut progress: impl FnMut(&str)) -> io::Result<Figures> {
    progress("memory");
    // First: what was given back before would be used again.
    let memory = memory()?;
    let mut rates = Vec::new();
    for queues in effort.queues {
        rates.extend(throughput(effort, *queues, &mut progress)?);
    }
    progress("round trips");
    let round_trips = round_trips(effort)?;
    let mut merging = Vec::new();
    for guests in [1, 16, 64, 256] {
        progress(&format!("CMD_SYNCs of {guests} guests"));
        merging.push(merged(effort, guests)?);
    }
    let goals = goals(&rates, &round_trips, &merging);
    let quick = effort.queues.len() < Effort::FULL.queues.len();
    Ok(Figures { machine: MachineInfo::this(), quick, goals, rates, round_trips, merging, memory })
}

/// What is sent along so many queues: its name, commands a doorbell, and itself.
fn loads(effort: &Effort, queues: usize) -> Vec<(&'static str, usize, Load)> {
    let mut loads: Vec<_> = effort.batches.iter().map(|n| (TLBI, *n, Load::stream(*n))).collect();
    if queues == 1 {
        for name in RECORDED {
            let commands = trace::named(name);
            loads.push((name, 64, Load::crowded(&commands, 64)));
            loads.push((name, 0, Load::recorded(&commands)));
        }
    }
    loads
}

fn throughput(effort: &Effort, queues: usize, progress: &mut impl FnMut(&str)) -> io::Result<Vec<Rate>> {
    let mut rates = Vec::new();
    let ways = WAYS.iter().filter(|(.., alone)| !alone || queues == 1);
    let mut lanes = Vec::new();
    for (name, open, _) in ways {
        lanes.push((*name, open(queues)?));
    }
    for (load, batch, commands) in loads(effort, queues) {
        progress(&format!("{load}, {batch} a doorbell, {queues} queues"));
        let groups: Vec<_> =
            lanes.iter_mut().map(|(_, lane)| long_enough(&mut **lane, &commands, effort)).collect();
        // By lane, by repetition.
        let mut measured = vec![Vec::new(); lanes.len()];
        for repetition in 0..effort.repetitions {
            for i in 0..lanes.len() {
                let i = (i + repetition) % lanes.len();
                let (sent, time) = lanes[i].1.run(&commands, groups[i]);
                measured[i].push(sent as f64 / time.as_secs_f64());
            }
        }
        let of = |name| lanes.iter().position(|(lane, _)| *lane == name).unwrap_or(0);
        let ratio = |a: &[f64], b: &[f64]| Spread::of(a.iter().zip(b).map(|(a, b)| a / b).collect());
        for (i, (lane, _)) in lanes.iter().enumerate() {
            rates.push(Rate {
                load: load.into(),
                queues,
                batch,
                lane: (*lane).into(),
                per_second: Spread::of(measured[i].clone()),
                of_limit: ratio(&measured[i], &measured[of(LIMIT)]),
                engine_is: ratio(&measured[of(ENGINE)], &measured[i]),
            });
        }
    }
    Ok(rates)
}

/// So many groups take as long as a slice.
fn long_enough(lane: &mut dyn Lane, load: &Load, effort: &Effort) -> usize {
    let mut groups = 64;
    loop {
        let (_, time) = lane.run(load, groups);
        if time >= effort.slice / 2 || groups > 1 << 24 {
            return (groups as f64 * effort.slice.div_duration_f64(time)) as usize + 1;
        }
        groups *= 2;
    }
}

fn round_trips(effort: &Effort) -> io::Result<Vec<RoundTrip>> {
    let histogram = || Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other);
    let (repetitions, requests) = effort.round_trips;
    let schedule = |lane: &str| match lane {
        // One after another: it takes so long.
        TRAP => Schedule { interval: Duration::from_micros(200), requests: requests / 20 },
        _ => Schedule { interval: Duration::from_micros(2), requests },
    };
    let mut all = vec![Timed { lane: FLOOR, open: None, times: histogram()?, each: Vec::new() }];
    for (lane, open, _) in WAYS {
        all.push(Timed { lane, open: Some(open(1)?), times: histogram()?, each: Vec::new() });
    }
    for _ in 0..repetitions {
        for timed in &mut all {
            let mut times = histogram()?;
            match &mut timed.open {
                Some(lane) => lane.round_trips(1, schedule(timed.lane), &mut times),
                None => ping_pong(schedule(timed.lane), &mut times),
            }
            timed.each.push([0.5, 0.99].map(|part| times.value_at_quantile(part) as f64));
            timed.times += times;
        }
    }
    let trip = |Timed { lane, times, each, .. }: &Timed| {
        let of_floor = |which: usize| {
            Spread::of(
                each.iter().zip(&all[0].each).map(|(this, floor)| this[which] / floor[which]).collect(),
            )
        };
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
    Ok(all.iter().map(trip).collect())
}

/// What is timed, all of its times, and the median and the 99th percentile of each repetition.
struct Timed {
    lane: &'static str,
    /// `None` for the floor.
    open: Option<Box<dyn Lane>>,
    times: Histogram<u64>,
    each: Vec<[f64; 2]>,
}

fn merged(effort: &Effort, guests: usize) -> io::Result<Merging> {
    let mut lane = open::<Guests>(guests)?;
    let load = Load::synced(1);
    let groups = long_enough(&mut *lane, &load, effort);
    let ratio = |_| {
        let before = lane.executed().syncs;
        lane.run(&load, groups);
        groups as f64 / (lane.executed().syncs - before) as f64
    };
    let guest_syncs_per_host_sync = Spread::of((0..effort.repetitions).map(ratio).collect());
    Ok(Merging { guests, guest_syncs_per_host_sync })
}

/// By what is resident before and after.
fn memory() -> io::Result<Memory> {
    const MANY: u64 = 32;
    let each = |make: &dyn Fn(u16) -> io::Result<Machine>| -> io::Result<u64> {
        let before = resident()?;
        let machines: Vec<_> = (0..MANY as u16).map(make).collect::<Result<_, _>>()?;
        let bytes = resident()?.saturating_sub(before) / MANY;
        drop(machines);
        Ok(bytes)
    };
    let plain = each(&|number| Machine::new(number, Features::default(), &[]))?;
    // Their registers are cleared: their control pages are there.
    let with_queues = each(&|number| Machine::new(number, Features::default().with_ecmdqs(0, 8), &[]))?;
    let before = resident()?;
    let mut workers = Vec::new();
    for _ in 0..MANY {
        let (mut host, _) = Inline::new()?;
        host.fill();
        workers.push(Worker::new(host));
    }
    let worker = resident()?.saturating_sub(before) / MANY;
    Ok(Memory { guest: plain, queue: with_queues.saturating_sub(plain) / 256, worker })
}

/// Bytes of this process that are resident.
fn resident() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages
        .map(|pages| pages * rustix::param::page_size() as u64)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
