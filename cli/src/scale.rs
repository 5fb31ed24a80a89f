//! `ecmdq scale`: what a host with many guests needs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::Args;
use ecmdq_bench::scale::{Checked, Costs, Demand, Host, Memory, Plan, Tickets, check};
use indicatif::HumanCount;
use thiserror::Error;

/// Options of `ecmdq scale`.
#[derive(Args, Debug)]
pub struct Options {
    /// Virtual machines.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    vms: u32,
    /// Devices of each.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    devices: u32,
    /// vCPUs of each, which have an ECMDQ each; as many as devices if it is not said.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    vcpus: Option<u32>,
    /// Invalidations a second of each device.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,
    /// Commands of each, before its CMD_SYNC.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    commands: u32,
    /// The host's processors: the most workers that there may be.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    cores: u32,
    /// What the p99 of a CMD_SYNC's round trip must not exceed, in us.
    #[arg(long, default_value_t = 50, value_name = "US")]
    p99: u32,
    /// Host queues, among which the workers are divided.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    host_queues: u32,
    /// Commands a second that one of them executes.
    #[arg(long, default_value_t = 50_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    host_rate: u32,
    /// How long a CMD_SYNC takes there, in ns.
    #[arg(long, default_value_t = 1000, value_name = "NS")]
    host_sync: u32,
    /// CMD_SYNCs of the host that a worker may have outstanding before it takes nothing more; if it is not said, one, and what comes
    /// meanwhile shares the next.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    tickets: Option<u16>,
    /// What the workers' steps cost: `measured` here, `default`, or a TOML file with what this prints.
    #[arg(long, default_value = "measured")]
    costs: String,
    /// Compare the simulation with the engine, on this machine.
    #[arg(long)]
    check: bool,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum Error {
    #[error("--costs {0}: {1}")]
    Read(PathBuf, io::Error),
    #[error("--costs {0}: {1}")]
    Costs(PathBuf, toml::de::Error),
    #[error("not measured: {0}")]
    Measure(#[from] io::Error),
}

/// Prints costs, plan and memory. The exit status is 1 if nothing keeps the bound.
pub fn scale(options: &Options) -> Result<ExitCode, Error> {
    // First: what the others leave free would be taken again, and not be counted.
    let vcpus = options.vcpus.unwrap_or(options.devices).min(256) as usize;
    let memory = Memory::measure(vcpus.next_power_of_two())?;
    let (costs, checked) = match options.check {
        true => {
            let (measured, checked) = check()?;
            (if options.costs == "measured" { measured } else { costs(&options.costs)? }, checked)
        }
        false => (costs(&options.costs)?, Vec::new()),
    };
    say!("# what a worker's steps cost, in ns");
    print!("{}", toml::to_string(&costs).unwrap_or_default());
    if !checked.is_empty() {
        print_check(&checked);
    }
    let demand = Demand {
        vms: options.vms as usize,
        vcpus,
        rate: f64::from(options.devices) * f64::from(options.rate),
        commands: options.commands,
        cores: options.cores as usize,
        host_queues: options.host_queues as usize,
        host: Host { command: 1e9 / f64::from(options.host_rate), sync: f64::from(options.host_sync) },
        tickets: options.tickets.map_or(Tickets::One, |most| Tickets::Fewer(most.into())),
        bound: f64::from(options.p99) * 1e3,
        seed: 1,
    };
    say!(
        "\n{} VMs with {vcpus} queues each, {} invalidations/s of {} commands and a CMD_SYNC",
        options.vms,
        count(demand.rate * f64::from(options.vms)),
        options.commands
    );
    let plan = demand.plan(costs);
    match &plan {
        Some(plan) => print_plan(plan),
        None => {
            say!("not with {} workers: p99 above {} us, or less than is wanted", options.cores, options.p99);
            print_plan(&demand.with(demand.cores, costs));
        }
    }
    print_memory(options.vms, vcpus.next_power_of_two(), memory);
    Ok(if plan.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn costs(from: &str) -> Result<Costs, Error> {
    match from {
        "measured" => Ok(Costs::measure()?),
        "default" => Ok(Costs::default()),
        path => {
            let text = fs::read_to_string(path).map_err(|e| Error::Read(path.into(), e))?;
            toml::from_str(&text).map_err(|e| Error::Costs(path.into(), e))
        }
    }
}

fn print_plan(plan: &Plan) {
    let Plan { workers, host_queues, guests, outcome, .. } = plan;
    let counts = outcome.counts;
    let micros = |quantile| outcome.round_trip.value_at_quantile(quantile) as f64 / 1e3;
    let all = counts.commands + counts.host_syncs;
    say!("  workers              {workers}, up to {guests} guests each");
    say!("  busy                 {:.0} % of their time", outcome.busy * 100.0);
    say!("  of what is wanted    {:.0} %", plan.achieved() * 100.0);
    say!("  round trip           p50 {:.1} us, p99 {:.1} us", micros(0.5), micros(0.99));
    say!("  a sweep              {:.2} us", plan.sweep() / 1e3);
    say!("  host queues          {host_queues}, each busy {:.0} %, with", outcome.host_busy * 100.0);
    say!("    commands/s         {}", count(outcome.per_second(all)));
    say!(
        "    CMD_SYNCs/s        {}, one for {:.1} of the guests",
        count(outcome.per_second(counts.host_syncs)),
        counts.syncs as f64 / counts.host_syncs as f64
    );
}

fn print_memory(vms: u32, queues: usize, Memory { engine, control }: Memory) {
    let kib = |bytes: f64| format!("{:.0} KiB", bytes / 1024.0);
    say!(
        "memory of {vms} virtual SMMUs with {queues} queues: {} MiB",
        (f64::from(vms) * (engine + control)) as u64 >> 20
    );
    say!("  the engine's         {} each", kib(engine));
    say!("  control pages        {} each, which the guest maps", kib(control));
    say!("  rings                16 bytes an entry, in the guests' RAM");
}

fn print_check(checked: &[Checked]) {
    say!("\nin lock step, the engine and the simulation");
    say!(
        "{:>6} {:>6} {:>8} {:>22} {:>25} {:>28}",
        "guests",
        "queues",
        "commands",
        "commands a sweep",
        "guest SYNCs a host SYNC",
        "commands/s of the worker"
    );
    for Checked { guests, queues, group, engine, simulated } in checked {
        say!(
            "{guests:>6} {queues:>6} {group:>8} {:>11.1} {:>10.1} {:>12.1} {:>12.1} {:>11} {:>11} {:>+4.0} %",
            engine.commands_per_sweep,
            simulated.commands_per_sweep,
            1.0 / engine.host_syncs,
            1.0 / simulated.host_syncs,
            count(engine.per_second),
            count(simulated.per_second),
            (simulated.per_second / engine.per_second - 1.0) * 100.0
        );
    }
}

fn count(n: f64) -> String {
    HumanCount(n as u64).to_string()
}
