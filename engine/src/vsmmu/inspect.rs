//! The whole state in a form for people.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use super::VirtualSmmu;
use super::queue::Control;
use super::state::State;
use crate::registers::*;
use crate::stats::Stats;

/// The state of a virtual SMMU at one moment; `Display` and `Debug` print it, a register or a queue a line.
#[derive(Clone)]
pub struct Inspection {
    paused: bool,
    registers: Vec<(&'static str, u64)>,
    queues: Vec<Queue>,
    last_rejected: Option<String>,
    stats: Stats,
}

#[derive(Clone)]
struct Queue {
    /// `None` is the CMDQ.
    ecmdq: Option<usize>,
    base: u64,
    prod: u32,
    cons: u32,
    used: Option<u32>,
    state: &'static str,
}

impl VirtualSmmu {
    /// The state now: registers that are not zero, queues that are enabled or stopped, statistics.
    pub fn inspect(&self) -> Inspection {
        self.0.control(|state| state.inspect())
    }
}

impl State {
    pub(super) fn inspect(&self) -> Inspection {
        let frame = &self.pages.frame;
        let output = |name, offset| (name, frame.load(offset, Relaxed));
        let input = |register: &Writable| output(register.name, register.offset);
        let idrs = ["IDR0", "IDR1", "IDR2", "IDR3", "IDR4", "IDR5"];
        let outputs = [
            ("IDR6", IDR6),
            ("AIDR", AIDR),
            ("CR0ACK", CR0ACK),
            ("IRQ_CTRLACK", IRQ_CTRLACK),
            ("GERROR", GERROR),
        ];
        let registers = idrs.into_iter().enumerate().map(|(n, name)| output(name, IDR0 + 4 * n));
        let registers = registers.chain(outputs.map(|(name, offset)| output(name, offset)));
        let registers = registers.chain(WRITABLE.iter().map(input));
        Inspection {
            paused: self.paused,
            registers: registers.filter(|(_, value)| *value != 0).collect(),
            queues: (0..self.queues.len()).filter_map(|number| self.inspect_queue(number)).collect(),
            last_rejected: self.last_rejected.map(|rejected| rejected.to_string()),
            stats: self.counters.read(),
        }
    }

    fn inspect_queue(&self, number: usize) -> Option<Queue> {
        let queue = &self.queues[number];
        let stopped = queue.is_stopped(self.errors.active());
        let ring = queue.ring.as_ref();
        let state = match ring {
            None if stopped => "disabled, stopped by an error",
            None => return None,
            Some(_) if stopped => "stopped by an error",
            Some(ring) if ring.syncs > 0 => "waits for the host",
            Some(ring) if ring.waits_for_vmm => "waits for the VMM",
            Some(ring) if !ring.is_backed() => "enabled, its memory is not there",
            Some(_) => "enabled",
        };
        let prod = queue.prod();
        Some(Queue {
            ecmdq: matches!(queue.control, Control::Ecmdq(_)).then(|| number - 1),
            base: ring.map_or(0, |ring| ring.base()),
            prod,
            cons: ring.map_or(0, |ring| ring.cons().raw()) | queue.flags(),
            used: ring.and_then(|ring| ring.used(prod)),
            state,
        })
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "virtual SMMU, {}", if self.paused { "paused" } else { "running" })?;
        for (name, value) in &self.registers {
            writeln!(f, "  {name:<16} {value:#x}")?;
        }
        for queue in &self.queues {
            let Queue { ecmdq, base, prod, cons, used, state } = queue;
            let name = ecmdq.map_or("CMDQ".into(), |number| format!("ECMDQ {number}"));
            let used = used.map_or("PROD and CONS contradict each other".into(), |n| format!("{n} commands"));
            writeln!(f, "  {name:<16} {state}; {used}; BASE {base:#x} PROD {prod:#x} CONS {cons:#x}")?;
        }
        if let Some(rejected) = &self.last_rejected {
            writeln!(f, "  last rejected    {rejected}")?;
        }
        write!(f, "  {:?}", self.stats)
    }
}

impl fmt::Debug for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
