//! vCPUs that share one CMDQ, beside vCPUs with an ECMDQ each, in front of hosts whose CMD_SYNCs take their time.
//!
//! There are two threads, however many vCPUs: all of them go on by steps on the one, and the worker and the host share the other. So it is
//! the engine that is measured, and not how many threads the machine has processors for.

use std::io;

use serde::{Deserialize, Serialize};

use super::measure::{Effort, long_enough};
use super::{Spread, Steady};
use crate::compare::{Limit, Load, OneCmdq, Open, OwnEcmdqs, Ran, open};

/// What vCPUs of a guest get done, each with a TLBI and a CMD_SYNC at a time, for which it waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sharing {
    /// How many.
    pub vcpus: usize,
    /// `one CMDQ` for all, or `an ECMDQ each`.
    pub queues: String,
    /// What a CMD_SYNC of the host takes, in nanoseconds; 0 where it takes no more than the emulated host does.
    pub host_sync_ns: u64,
    /// Commands a second, CMD_SYNCs included.
    pub commands_per_second: Spread,
    /// CMD_SYNCs a second.
    pub syncs_per_second: Spread,
    /// Commands a second relative to raw rings, one for each vCPU, and a host that takes no time.
    pub of_limit: Spread,
    /// CMD_SYNCs of the guest for each of the host.
    pub guest_syncs_per_host_sync: Spread,
}

const VCPUS: [usize; 3] = [1, 4, 16];
const QUEUES: [&str; 2] = ["one CMDQ", "an ECMDQ each"];
const HOSTS: [(u64, [Open; 2]); 3] = [
    (0, [open::<OneCmdq<0>>, open::<OwnEcmdqs<0>>]),
    (1000, [open::<OneCmdq<1000>>, open::<OwnEcmdqs<1000>>]),
    (10_000, [open::<OneCmdq<10_000>>, open::<OwnEcmdqs<10_000>>]),
];
/// A TLBI and a CMD_SYNC.
const GROUP: f64 = 2.0;

pub(super) fn sharing(
    effort: &Effort,
    steady: &mut Steady,
    progress: &mut impl FnMut(&str),
) -> io::Result<Vec<Sharing>> {
    let (effort, mut all) = (&effort.in_short(), Vec::new());
    for (host_sync_ns, opens) in HOSTS {
        for vcpus in VCPUS {
            progress(&format!("{vcpus} vCPUs, a CMD_SYNC of the host in {host_sync_ns} ns"));
            let [limit, measured @ ..] = measured(vcpus, opens, effort, steady)?;
            for (queues, Measured { rates, merged }) in QUEUES.into_iter().zip(measured) {
                let times = |n: f64| Spread::of(rates.iter().map(|rate| rate * n).collect());
                all.push(Sharing {
                    vcpus,
                    queues: queues.into(),
                    host_sync_ns,
                    commands_per_second: times(GROUP),
                    syncs_per_second: times(1.0),
                    of_limit: Spread::of_ratios(&rates, &limit.rates),
                    guest_syncs_per_host_sync: Spread::of(merged),
                });
            }
        }
    }
    Ok(all)
}

/// CMD_SYNCs a second, and for each of the host, by repetition.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    merged: Vec<f64>,
}

/// The raw rings, and the two ways. Each is the first in turn.
fn measured(
    vcpus: usize,
    [one, own]: [Open; 2],
    effort: &Effort,
    steady: &mut Steady,
) -> io::Result<[Measured; 3]> {
    let load = Load::of_vcpus(1);
    let mut lanes = [open::<Limit>(vcpus)?, one(vcpus)?, own(vcpus)?];
    let groups = lanes.each_mut().map(|lane| long_enough(&mut **lane, &load, effort));
    let mut measured: [Measured; 3] = Default::default();
    for repetition in 0..effort.repetitions {
        for i in 0..lanes.len() {
            let i = (i + repetition) % lanes.len();
            let (rate, merged) = steady.measure(|| {
                let before = lanes[i].executed().syncs;
                let Ran { time, kept_off, .. } = lanes[i].run(&load, groups[i]);
                let (syncs, host) = (groups[i] as f64, lanes[i].executed().syncs - before);
                ((syncs / time.as_secs_f64(), syncs / host.max(1) as f64), kept_off)
            });
            measured[i].rates.push(rate);
            measured[i].merged.push(merged);
        }
    }
    Ok(measured)
}
