//! The comparison itself: everything in turn, again and again, so that whatever else the machine does meets all alike; and all of that
//! several times, since a shared machine is another one a minute later. What is told is the median of those passes, with their
//! quartiles.

use std::io;
use std::time::Duration;

use super::goals::goals;
use super::round_trips::round_trips;
use super::{Figures, Instructions, MachineInfo, Memory, Merging, Rate, RoundTrip, Spread, Steady};
use crate::compare::{Engine, Guests, Lane, Load, Ran, WAYS, open};
use crate::{scale, trace};

/// TLBI_NH_VA of one page each, sent as there is room.
pub(super) const TLBI: &str = "TLBI";
/// The recorded streams.
pub(super) const RECORDED: [&str; 3] = ["msi-ril-2cpu-mixed", "sev-noril-64k", "ats-msi-ril-2cpu"];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often all of it is measured.
    passes: usize,
    /// How often everything is repeated in each pass.
    repetitions: usize,
    /// How long each takes in a repetition.
    slice: Duration,
    queues: &'static [usize],
    batches: &'static [usize],
    /// Repetitions, and CMD_SYNCs in each, of the round trips.
    pub(super) round_trips: (usize, u32),
}

impl Effort {
    /// All cases: some minutes.
    pub const FULL: Self = Self {
        passes: 5,
        repetitions: 5,
        slice: Duration::from_millis(12),
        queues: &[1, 2, 4, 16, 64, 256],
        batches: &[1, 4, 17, 64, 254],
        round_trips: (10, 4000),
    };
    /// What the goals speak of: a minute.
    pub const QUICK: Self = Self {
        passes: 3,
        repetitions: 3,
        slice: Duration::from_millis(6),
        queues: &[1, 256],
        batches: &[1, 64, 254],
        round_trips: (4, 2000),
    };
}

const LIMIT: &str = "limit";
const ENGINE: &str = "engine";
pub(super) const TRAP: &str = "trap";

/// Measures everything; tells `progress` what comes next.
///
/// # Errors
///
/// What the system said when it refused memory, a descriptor or a thread.
pub fn measure(effort: &Effort, mut progress: impl FnMut(&str)) -> io::Result<Figures> {
    let machine = MachineInfo::this();
    progress("memory");
    let memory = memory()?;
    let mut steady = Steady::default();
    let mut passes = Vec::new();
    for number in 1..=effort.passes {
        let mut progress = |next: &str| progress(&format!("{number} of {}: {next}", effort.passes));
        passes.push(Pass::measure(effort, &mut steady, &mut progress)?);
    }
    let Pass { rates, round_trips, merging, kept } = Pass::all(&passes);
    let goals = goals(&rates, kept, &round_trips, &merging);
    let quick = effort.queues.len() < Effort::FULL.queues.len();
    let instructions = Instructions::committed();
    Ok(Figures { machine, quick, steady, goals, rates, round_trips, merging, memory, instructions })
}

/// All that is repeated.
#[derive(Clone)]
struct Pass {
    rates: Vec<Rate>,
    round_trips: Vec<RoundTrip>,
    merging: Vec<Merging>,
    /// The rate with 256 queues relative to that with one.
    kept: Spread,
}

impl Pass {
    fn measure(effort: &Effort, steady: &mut Steady, progress: &mut impl FnMut(&str)) -> io::Result<Self> {
        let (mut rates, mut merging) = (Vec::new(), Vec::new());
        for queues in effort.queues {
            rates.extend(throughput(effort, *queues, steady, progress)?);
        }
        progress("round trips");
        let round_trips = round_trips(effort, steady)?;
        for guests in [1, 16, 64, 256] {
            progress(&format!("CMD_SYNCs of {guests} guests"));
            merging.push(merged(effort, guests, steady)?);
        }
        progress("256 queues beside one");
        let kept = kept(effort, steady)?;
        Ok(Self { rates, round_trips, merging, kept })
    }

    /// The medians of several, with their quartiles. All have measured the same, in the same order.
    fn all(passes: &[Self]) -> Self {
        let spread =
            |of: &dyn Fn(&Self) -> Spread| Spread::of(passes.iter().map(|pass| of(pass).median).collect());
        let median = |of: &dyn Fn(&Self) -> u64| {
            Spread::of(passes.iter().map(|pass| of(pass) as f64).collect()).median as u64
        };
        let mut all = passes[0].clone();
        for (i, rate) in all.rates.iter_mut().enumerate() {
            rate.per_second = spread(&|pass| pass.rates[i].per_second);
            rate.of_limit = spread(&|pass| pass.rates[i].of_limit);
            rate.engine_is = spread(&|pass| pass.rates[i].engine_is);
        }
        for (i, trip) in all.round_trips.iter_mut().enumerate() {
            trip.p50_ns = median(&|pass| pass.round_trips[i].p50_ns);
            trip.p99_ns = median(&|pass| pass.round_trips[i].p99_ns);
            trip.p999_ns = median(&|pass| pass.round_trips[i].p999_ns);
            trip.p50_of_floor = spread(&|pass| pass.round_trips[i].p50_of_floor);
            trip.p99_of_floor = spread(&|pass| pass.round_trips[i].p99_of_floor);
        }
        for (i, merging) in all.merging.iter_mut().enumerate() {
            merging.guest_syncs_per_host_sync = spread(&|pass| pass.merging[i].guest_syncs_per_host_sync);
        }
        all.kept = spread(&|pass| pass.kept);
        all
    }
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

fn throughput(
    effort: &Effort,
    queues: usize,
    steady: &mut Steady,
    progress: &mut impl FnMut(&str),
) -> io::Result<Vec<Rate>> {
    let mut rates = Vec::new();
    // It stands still for each doorbell, of whichever queue.
    let ways = WAYS.into_iter().filter(|(name, _)| *name != TRAP || queues == 1);
    let (names, opens): (Vec<_>, Vec<_>) = ways.unzip();
    let mut lanes = opens.into_iter().map(|open| open(queues)).collect::<io::Result<Vec<_>>>()?;
    for (load, batch, commands) in loads(effort, queues) {
        progress(&format!("{load}, {batch} a doorbell, {queues} queues"));
        let measured = in_turn(&mut lanes, &commands, effort, effort.repetitions, steady);
        let of = |name| &measured[names.iter().position(|lane| *lane == name).unwrap_or(0)];
        for (lane, per_second) in names.iter().zip(&measured) {
            rates.push(Rate {
                load: load.into(),
                queues,
                batch,
                lane: (*lane).into(),
                per_second: Spread::of(per_second.clone()),
                of_limit: Spread::of_ratios(per_second, of(LIMIT)),
                engine_is: Spread::of_ratios(of(ENGINE), per_second),
            });
        }
    }
    Ok(rates)
}

/// The engine's rate with 256 queues relative to that with one, 64 commands a doorbell.
fn kept(effort: &Effort, steady: &mut Steady) -> io::Result<Spread> {
    let mut lanes = [open::<Engine>(256)?, open::<Engine>(1)?];
    let rates = in_turn(&mut lanes, &Load::stream(64), effort, 2 * effort.repetitions, steady);
    Ok(Spread::of_ratios(&rates[0], &rates[1]))
}

/// Commands a second, by lane and repetition. Each is the first in turn.
fn in_turn(
    lanes: &mut [Box<dyn Lane>],
    load: &Load,
    effort: &Effort,
    repetitions: usize,
    steady: &mut Steady,
) -> Vec<Vec<f64>> {
    let groups: Vec<_> = lanes.iter_mut().map(|lane| long_enough(&mut **lane, load, effort)).collect();
    let mut measured = vec![Vec::new(); lanes.len()];
    for repetition in 0..repetitions {
        for i in 0..lanes.len() {
            let i = (i + repetition) % lanes.len();
            let Ran { commands, time, .. } = steady.run(&mut *lanes[i], load, groups[i]);
            measured[i].push(commands as f64 / time.as_secs_f64());
        }
    }
    measured
}

/// So many groups take as long as a slice.
fn long_enough(lane: &mut dyn Lane, load: &Load, effort: &Effort) -> usize {
    let (mut steady, mut groups) = (Steady::default(), 64);
    loop {
        let Ran { time, .. } = steady.run(lane, load, groups);
        if time >= effort.slice / 2 || groups > 1 << 24 {
            return (groups as f64 * effort.slice.div_duration_f64(time)) as usize + 1;
        }
        groups *= 2;
    }
}

fn merged(effort: &Effort, guests: usize, steady: &mut Steady) -> io::Result<Merging> {
    let mut lane = open::<Guests>(guests)?;
    let load = Load::synced(1);
    let groups = long_enough(&mut *lane, &load, effort);
    let mut ratio = |_| {
        steady.measure(|| {
            let before = lane.executed().syncs;
            let ran = lane.run(&load, groups);
            (groups as f64 / (lane.executed().syncs - before) as f64, ran.kept_off)
        })
    };
    let guest_syncs_per_host_sync = Spread::of((0..effort.repetitions).map(&mut ratio).collect());
    Ok(Merging { guests, guest_syncs_per_host_sync })
}

fn memory() -> io::Result<Memory> {
    // Memory that was given back before would be used again: the first one is not counted.
    let bytes = |queues| scale::Memory::measure(queues).map(|memory| memory.engine + memory.control);
    let (_, one, many) = (bytes(1)?, bytes(1)?, bytes(256)?);
    Ok(Memory { guest: one as u64, queue: ((many - one) / 255.0) as u64 })
}
