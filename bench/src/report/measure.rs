//! The comparison itself: everything in turn, again and again, so that whatever else the machine does meets all alike; and all of that
//! several times, since a shared machine is another one a minute later. What is told is the median of those passes, with their
//! quartiles.

use std::io;
use std::time::Duration;

use super::goals::goals;
use super::round_trips::round_trips;
use super::sharing::sharing;
use super::{Figures, Instructions, MachineInfo, Memory, Merging, Rate, RoundTrip, Sharing, Spread, Steady};
use crate::compare::{BesideIdle, Engine, Guests, Lane, Load, Ran, WAYS, open};
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
    pub(super) repetitions: usize,
    /// How long each takes in a repetition.
    slice: Duration,
    queues: &'static [usize],
    batches: &'static [usize],
    /// Repetitions, and CMD_SYNCs in each, of the round trips.
    pub(super) round_trips: (usize, u32),
    /// The part that is measured, if it is not everything.
    only: Option<Part>,
}

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Commands a second.
    Rates,
    /// CMD_SYNCs that are waited for.
    RoundTrips,
    /// CMD_SYNCs of many guests.
    Merging,
    /// vCPUs that share a CMDQ.
    Sharing,
    /// A queue beside idle guests.
    Idle,
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
        only: None,
    };
    /// What the goals speak of: a minute.
    pub const QUICK: Self = Self {
        passes: 3,
        repetitions: 3,
        slice: Duration::from_millis(6),
        queues: &[1, 256],
        batches: &[1, 64, 254],
        round_trips: (4, 2000),
        only: None,
    };

    /// The same for one part of the comparison.
    pub fn only(self, part: Part) -> Self {
        Self { only: Some(part), ..self }
    }

    /// The same in short slices, and more of them: where others use the machine as well, some of them are left alone.
    pub(super) fn in_short(&self) -> Self {
        Self { slice: self.slice / 4, repetitions: 2 * self.repetitions, ..*self }
    }

    fn has(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
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
    let Pass { rates, round_trips, merging, kept, sharing, beside_idle } = Pass::all(&passes);
    let goals = goals(&rates, kept, &round_trips, &merging);
    let quick = effort.queues.len() < Effort::FULL.queues.len();
    let instructions = Instructions::committed();
    Ok(Figures {
        machine,
        quick,
        steady,
        goals,
        rates,
        round_trips,
        merging,
        sharing,
        beside_idle,
        memory,
        instructions,
    })
}

/// All that is repeated.
#[derive(Clone, Default)]
struct Pass {
    rates: Vec<Rate>,
    round_trips: Vec<RoundTrip>,
    merging: Vec<Merging>,
    /// The rate with 256 queues relative to that with one.
    kept: Option<Spread>,
    sharing: Vec<Sharing>,
    beside_idle: Option<Spread>,
}

impl Pass {
    fn measure(effort: &Effort, steady: &mut Steady, progress: &mut impl FnMut(&str)) -> io::Result<Self> {
        let mut pass = Self::default();
        if effort.has(Part::Rates) {
            for queues in effort.queues {
                pass.rates.extend(throughput(effort, *queues, steady, progress)?);
            }
            progress("256 queues beside one");
            let lanes = [open::<Engine>(256)?, open::<Engine>(1)?];
            pass.kept = Some(relative(lanes, effort, steady));
        }
        if effort.has(Part::RoundTrips) {
            progress("round trips");
            pass.round_trips = round_trips(effort, steady)?;
        }
        if effort.has(Part::Merging) {
            for guests in [1, 16, 64, 256] {
                progress(&format!("CMD_SYNCs of {guests} guests"));
                pass.merging.push(merged(effort, guests, steady)?);
            }
        }
        if effort.has(Part::Sharing) {
            pass.sharing = sharing(effort, steady, progress)?;
        }
        if effort.has(Part::Idle) {
            progress("a queue beside 256 idle guests");
            let lanes = [open::<BesideIdle>(257)?, open::<BesideIdle>(1)?];
            pass.beside_idle = Some(relative(lanes, &effort.in_short(), steady));
        }
        Ok(pass)
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
        for (i, sharing) in all.sharing.iter_mut().enumerate() {
            sharing.commands_per_second = spread(&|pass| pass.sharing[i].commands_per_second);
            sharing.syncs_per_second = spread(&|pass| pass.sharing[i].syncs_per_second);
            sharing.of_limit = spread(&|pass| pass.sharing[i].of_limit);
            sharing.guest_syncs_per_host_sync = spread(&|pass| pass.sharing[i].guest_syncs_per_host_sync);
        }
        let of_all = |ratio: fn(&Self) -> Option<Spread>| {
            let medians: Option<Vec<_>> = passes.iter().map(|pass| Some(ratio(pass)?.median)).collect();
            medians.map(Spread::of)
        };
        all.kept = of_all(|pass| pass.kept);
        all.beside_idle = of_all(|pass| pass.beside_idle);
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

/// The rate of one lane relative to that of another, 64 commands a doorbell.
fn relative(mut lanes: [Box<dyn Lane>; 2], effort: &Effort, steady: &mut Steady) -> Spread {
    let rates = in_turn(&mut lanes, &Load::stream(64), effort, 2 * effort.repetitions, steady);
    Spread::of_ratios(&rates[0], &rates[1])
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
pub(super) fn long_enough(lane: &mut dyn Lane, load: &Load, effort: &Effort) -> usize {
    let (mut steady, mut groups) = (Steady::default(), 64);
    loop {
        // The least of a few: who loses the processor for as long as a slice would make do with what takes no time.
        let times = [(); 4].map(|()| steady.run(lane, load, groups).time);
        let time = times.into_iter().min().unwrap_or_default();
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
