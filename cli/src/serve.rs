//! `ecmdq serve`: one guest whose RAM is a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use clap::Args;
use crossbeam::utils::Backoff;
use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::registers::{CONTROL_PAGE_SIZE, FRAME_SIZE};
use ecmdq_engine::{
    Config, Features, FrontEnd, HostStreamId, NoInterrupts, Opcode, Stats, StreamId, StreamIdOf, StreamMap,
    VirtualSmmu, Vmid, Worker,
};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use thiserror::Error;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::values::{number, stream};

/// The number of the event (IHI 0070 §7.3.13).
const F_TRANSLATION: u64 = 0x10;

/// Options of `ecmdq serve`.
#[derive(Args, Debug)]
pub struct Options {
    /// The guest's RAM: a file that the VMM maps shared. It is made if it does not exist.
    #[arg(long, value_name = "FILE")]
    mem: PathBuf,
    /// The size of RAM in bytes.
    #[arg(long, value_name = "BYTES", value_parser = number)]
    size: u64,
    /// Where RAM starts in the guest's map.
    #[arg(long, value_name = "GPA", default_value = "0x40000000", value_parser = number)]
    base: u64,
    /// Where the SMMU's register pages 0 and 1 are, and behind them the control pages of its ECMDQs: inside RAM, on a 64 KiB
    /// boundary.
    #[arg(long, value_name = "GPA", value_parser = number)]
    smmu_pa: u64,
    /// Made once the SMMU is being served.
    #[arg(long, value_name = "FILE")]
    ready: Option<PathBuf>,
    /// Statistics are written here as JSON at the end; without it they are printed.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// The host's VMID of the guest.
    #[arg(long, default_value_t = 1)]
    vmid: u16,
    /// A stream that the guest owns, and the host's name for it; without any, each stream s below 0x10000 is
    /// the host's 0x10000 + s.
    #[arg(long, value_name = "GUEST=HOST", value_parser = stream)]
    stream: Vec<(StreamId, HostStreamId)>,
    /// Show coherent accesses (IDR0.COHACC).
    #[arg(long)]
    coh: bool,
    /// Show MSIs (IDR0.MSI).
    #[arg(long)]
    msi: bool,
    /// Show wake-up events (IDR0.SEV).
    #[arg(long)]
    sev: bool,
    /// Show range invalidation (IDR3.RIL).
    #[arg(long)]
    ril: bool,
    /// Show ATS (IDR0.ATS).
    #[arg(long)]
    ats: bool,
    /// Show ECMDQs (IDR1.ECMDQ): so many control pages with so many queues each, powers of two up to 256. They need --coh and
    /// --msi.
    #[arg(long, value_name = "PAGESxQUEUES", value_parser = ecmdqs)]
    ecmdq: Option<Ecmdqs>,
    /// log2 of the most commands in a queue (IDR1.CMDQS).
    #[arg(long, value_name = "LOG2", default_value_t = Features::default().cmdqs)]
    cmdqs: u8,
    /// Record one event, F_TRANSLATION of this StreamID of the guest, as soon as the guest has enabled its event queue.
    #[arg(long, value_name = "STREAM", value_parser = number)]
    event: Option<u64>,
}

/// log2 of the number of control pages, and of the queues of each.
#[derive(Clone, Copy, Debug)]
struct Ecmdqs {
    pages: u8,
    queues: u8,
}

/// PAGESxQUEUES.
fn ecmdqs(text: &str) -> Result<Ecmdqs, String> {
    let log2 = |text: &str| match text.parse().map_err(|e: ParseIntError| e.to_string())? {
        n @ 1_u32..=256 if n.is_power_of_two() => Ok(n.ilog2() as u8),
        n => Err(format!("{n} is no power of two up to 256")),
    };
    let (pages, queues) = text.split_once('x').ok_or("not PAGESxQUEUES")?;
    Ok(Ecmdqs { pages: log2(pages)?, queues: log2(queues)? })
}

/// Why nothing is served.
#[derive(Debug, Error)]
pub enum Error {
    #[error("--mem {}: {source}", path.display())]
    Mem { path: PathBuf, source: io::Error },
    #[error("--mem {}: the file has {len} bytes, --size says {size}", path.display())]
    Size { path: PathBuf, len: u64, size: u64 },
    #[error("--smmu-pa {0:#x}: not on a 64 KiB boundary with {1:#x} bytes of RAM behind it")]
    SmmuPa(u64, usize),
    #[error("--{option} {}: {source}", path.display())]
    Output { option: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Setup(String),
}

/// The statistics, as they are written.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    guest: Stats,
    last_rejected: Option<String>,
    host_commands: u64,
    host_syncs: u64,
    host_opcodes: BTreeMap<String, u64>,
}

/// Serves the guest until a signal says that it is over.
pub fn serve(options: &Options) -> Result<ExitCode, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, stop.clone()).map_err(setup)?;
    }
    let ram = map_ram(options)?;
    let (ring, mut host) = NativeRing::with_consumer(12).map_err(setup)?;
    let mut worker = Worker::new(ring);
    let smmu = virtual_smmu(options, ram)?;
    worker.attach(smmu.clone()).map_err(|error| setup(io::Error::other(error)))?;
    if let Some(path) = &options.ready {
        File::create(path).map_err(|source| output("ready", path, source))?;
    }
    // Worker and host take turns on one thread: a guest's vCPUs need the other processors.
    let backoff = Backoff::new();
    let mut event = options.event.map(|stream| [F_TRANSLATION | stream << 32, 0, 0xdead_b000, 0]);
    while !stop.load(Relaxed) {
        event = event.filter(|event| smmu.record_event(*event, StreamIdOf::Guest).is_err());
        let busy = worker.poll();
        if host.poll(|_| ()) > 0 || busy {
            backoff.reset();
        } else {
            backoff.snooze();
        }
    }
    write_stats(options, &smmu, &host)?;
    Ok(ExitCode::SUCCESS)
}

fn map_ram(options: &Options) -> Result<Arc<GuestMemoryMmap>, Error> {
    let Options { mem, size, base, .. } = options;
    let fail = |source| Error::Mem { path: mem.clone(), source };
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mem).map_err(fail)?;
    memory::check_cannot_shrink(&file).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    if len == 0 {
        file.set_len(*size).map_err(fail)?;
    } else if len != *size {
        return Err(Error::Size { path: mem.clone(), len, size: *size });
    }
    let bytes = usize::try_from(*size).map_err(|e| fail(io::Error::other(e)))?;
    let range = (GuestAddress(*base), bytes, Some(FileOffset::new(file, 0)));
    let ram = GuestMemoryMmap::from_ranges_with_files([range]).map_err(|e| fail(io::Error::other(e)))?;
    Ok(Arc::new(ram))
}

fn virtual_smmu(options: &Options, ram: Arc<GuestMemoryMmap>) -> Result<VirtualSmmu, Error> {
    let at = GuestAddress(options.smmu_pa);
    let size = FRAME_SIZE + options.ecmdq.map_or(0, |ecmdqs| CONTROL_PAGE_SIZE << ecmdqs.pages);
    let registers = Ram::new(ram.clone()).region(at, size).filter(|_| at.0.is_multiple_of(0x1_0000));
    let registers = registers.ok_or(Error::SmmuPa(at.0, size))?;
    let streams = match &options.stream[..] {
        [] => StreamMap::from_pairs((0..0x1_0000).map(|s| (StreamId(s), HostStreamId(0x1_0000 + s)))),
        given => StreamMap::from_pairs(given.iter().copied()),
    };
    let mut features = Features::default();
    features.coherent = options.coh;
    features.msi = options.msi;
    features.sev = options.sev;
    features.ril = options.ril;
    features.ats = options.ats;
    features.cmdqs = options.cmdqs;
    if let Some(Ecmdqs { pages, queues }) = options.ecmdq {
        features = features.with_ecmdqs(pages, queues);
    }
    VirtualSmmu::new(Config {
        features,
        host_features: features,
        quirks: Vec::new(),
        vmid: Vmid(options.vmid),
        streams: Arc::new(streams.map_err(setup)?),
        ram: Box::new(Ram::new(ram)),
        front_end: FrontEnd::Shared(registers),
        interrupts: Box::new(NoInterrupts),
        on_request: Box::new(|_, token| token.complete()),
    })
    .map_err(setup)
}

fn write_stats(options: &Options, guest: &VirtualSmmu, host: &RingConsumer) -> Result<(), Error> {
    let host_syncs = host.received(Opcode::CMD_SYNC);
    let summary = Summary {
        guest: guest.stats(),
        last_rejected: guest.last_rejected().map(|rejected| rejected.to_string()),
        host_commands: host.total() - host_syncs,
        host_syncs,
        host_opcodes: host.by_opcode().map(|(opcode, n)| (opcode.to_string(), n)).collect(),
    };
    let text = serde_json::to_string_pretty(&summary).map_err(setup)? + "\n";
    match &options.stats {
        Some(path) => std::fs::write(path, text).map_err(|source| output("stats", path, source)),
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

fn setup(error: impl ToString) -> Error {
    Error::Setup(error.to_string())
}

fn output(option: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Output { option, path: path.into(), source }
}
