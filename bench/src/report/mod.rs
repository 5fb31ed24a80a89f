//! What a comparison has measured: as data, as a page with plots, and beside an older one.

mod breakdown;
mod diff;
mod goals;
mod html;
mod instructions;
mod machine;
mod measure;
mod plots;
mod round_trips;
mod sharing;
mod steady;

pub use diff::{Change, changes};
pub use goals::Goal;
pub use html::html;
pub use instructions::{Count, Instructions};
pub use machine::MachineInfo;
pub use measure::{Effort, Part, measure};
pub use plots::{Plot, plots};
pub use sharing::Sharing;
pub use steady::Steady;

use serde::{Deserialize, Serialize};

/// Everything. Of what is repeated, the ratio of two things is taken in each repetition, in which one follows the other; then the
/// median of each pass, and of those the spread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// What it ran on.
    pub machine: MachineInfo,
    /// Fewer cases, and fewer repetitions.
    pub quick: bool,
    /// How much was measured again.
    pub steady: Steady,
    /// The goals, first.
    pub goals: Vec<Goal>,
    /// Commands a second.
    pub rates: Vec<Rate>,
    /// CMD_SYNCs that are waited for.
    pub round_trips: Vec<RoundTrip>,
    /// CMD_SYNCs of many guests.
    pub merging: Vec<Merging>,
    /// vCPUs that share a CMDQ.
    #[serde(default)]
    pub sharing: Vec<Sharing>,
    /// The rate of one queue beside 256 idle guests, relative to that beside none.
    #[serde(default)]
    pub beside_idle: Option<Spread>,
    /// Memory.
    pub memory: Memory,
    /// The figures of the source, which another machine would count as well.
    pub instructions: Option<Instructions>,
}

/// Of repeated measurements: the median, and the quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// A quarter is below.
    pub low: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub high: f64,
}

impl Spread {
    /// Of some measurements; of none, zero.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let at = part * values.len().saturating_sub(1) as f64;
            let (low, high) = (at.floor() as usize, at.ceil() as usize);
            let value = |at: usize| values.get(at).copied().unwrap_or(0.0);
            value(low) + (value(high) - value(low)) * at.fract()
        };
        Self { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// Of the ratios of what was measured in turn.
    pub fn of_ratios(these: &[f64], those: &[f64]) -> Self {
        Self::of(these.iter().zip(those).map(|(this, that)| this / that).collect())
    }

    /// Half the distance of the quartiles, relative to the median.
    pub fn noise(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median.abs().max(f64::MIN_POSITIVE)
    }
}

/// How fast something carries commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// What is sent: `TLBI`, or the name of a recorded stream.
    pub load: String,
    /// How many queues.
    pub queues: usize,
    /// Commands a doorbell; 0 where it is as recorded.
    pub batch: usize,
    /// What carries them.
    pub lane: String,
    /// Commands a second.
    pub per_second: Spread,
    /// Relative to the limit.
    pub of_limit: Spread,
    /// The engine's rate relative to this one.
    pub engine_is: Spread,
}

/// How long it takes from the doorbell of a TLBI and a CMD_SYNC until it has completed, in nanoseconds, since it was due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundTrip {
    /// What carries it.
    pub lane: String,
    /// The time from one to the next, in nanoseconds.
    pub interval_ns: u64,
    /// Half take less.
    pub p50_ns: u64,
    /// All but one of a hundred.
    pub p99_ns: u64,
    /// All but one of a thousand.
    pub p999_ns: u64,
    /// The median relative to that of the floor, by repetition.
    pub p50_of_floor: Spread,
    /// The 99th percentile relative to that of the floor, by repetition.
    pub p99_of_floor: Spread,
}

/// CMD_SYNCs of guests, and those that the host executed for them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Merging {
    /// How many guests, each with an ECMDQ, and a TLBI before each CMD_SYNC.
    pub guests: usize,
    /// CMD_SYNCs of guests for each of the host.
    pub guest_syncs_per_host_sync: Spread,
}

/// What a virtual SMMU takes of the host's memory, in bytes; its rings are the guest's RAM.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// A guest with an ECMDQ.
    pub guest: u64,
    /// Each further ECMDQ.
    pub queue: u64,
}
