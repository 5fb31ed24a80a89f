//! Lives of workers: each from the thread's beginning, or soon after, to its end.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ecmdq_engine::SleeperKind::{self, Epoll, IoUring};
use ecmdq_engine::host::HostQueue;
use ecmdq_engine::host::iommufd::{self, Invalidate};
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Command, Doorbell, EventKind, EventfdInterrupts, Idle, Share, Token, VirtualSmmu, Worker, WorkerHandle,
};
use seccompiler::{BpfProgram, TargetArch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::common::*;
use crate::filter::{calls, confine, filter};
use crate::process::unconfined;
use crate::support::*;

/// Of the list: what every worker needs.
const ALWAYS: [&str; 5] =
    ["to serve guests", "to attach and detach them", "to contain a panic", "to handle a signal", "to end"];
const IO_URING: &str = "to sleep on io_uring";
const EPOLL: &str = "to sleep on epoll";

/// A life of a thread.
pub struct Life {
    pub name: &'static str,
    pub env: &'static [(&'static str, &'static str)],
    /// What the list allows it, beside [`ALWAYS`].
    rows: &'static [&'static str],
    live: fn(BpfProgram),
}

/// Settings of glibc's allocator, so that it does on a small heap what it does on a large one: with heaps of the
/// threads, memory is given back early; with one heap for all, nothing is mapped apart from it.
const TUNABLES: &str = "GLIBC_TUNABLES";
const HEAPS: &str = "glibc.malloc.trim_threshold=65536";
const ONE_HEAP: &str =
    "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=65536:glibc.malloc.mmap_threshold=16777216";

pub const LIVES: [Life; 6] = [
    Life { name: "on io_uring", env: &[], rows: &[IO_URING], live: |filter| serves(IoUring, filter) },
    Life {
        name: "on epoll",
        env: &[(TUNABLES, HEAPS)],
        rows: &[EPOLL],
        live: |filter| serves(Epoll, filter),
    },
    Life {
        name: "on one heap",
        env: &[(TUNABLES, ONE_HEAP)],
        rows: &[EPOLL],
        live: |filter| serves(Epoll, filter),
    },
    Life {
        name: "with backtraces",
        env: &[("RUST_BACKTRACE", "1")],
        rows: &[EPOLL, "to print a backtrace"],
        live: |filter| serves(Epoll, filter),
    },
    Life {
        name: "made on its thread",
        env: &[],
        rows: &[IO_URING, EPOLL, "to call `with_sleep`"],
        live: made_on_its_thread,
    },
    // Its kernel is one of the test's, which needs no `ioctl`.
    Life { name: "of an executor", env: &[], rows: &[IO_URING, EPOLL], live: executes },
];

impl Life {
    pub fn named(name: &str) -> &'static Self {
        LIVES.iter().find(|life| life.name == name).unwrap()
    }

    /// Lives under the list, but for one system call.
    pub fn live(&self, without: &str) {
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let rows = [&ALWAYS, self.rows].concat();
        let calls: Vec<_> = calls(&rows, arch).into_iter().filter(|call| call != without).collect();
        (self.live)(filter(&calls, arch));
    }
}

/// Confines this thread, as a VMM does; where that cannot be had, the process ends.
fn confined(filter: &BpfProgram) {
    if let Err(error) = confine(filter) {
        unconfined(&error);
    }
}

/// A worker that may sleep; where it cannot on that, the process ends.
fn worker<H: HostQueue>(host: H, kind: SleeperKind) -> Worker<H> {
    let idle = Idle { sleeper: Some(kind), ..Idle::default() };
    Worker::new(host).with_sleep(idle).unwrap_or_else(|error: io::Error| unconfined(&error))
}

/// A worker on a confined thread of the VMM, which it ends with.
struct Confined<H> {
    handle: WorkerHandle<H>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl<H: HostQueue + Send + 'static> Confined<H> {
    fn run(mut worker: Worker<H>, filter: BpfProgram) -> Self {
        let (handle, stop) = (worker.handle(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            confined(&filter);
            worker.run(&stopped);
        });
        Self { handle, stop, thread }
    }

    fn asleep(&self) {
        let before = self.handle.sleeps();
        self.handle.wake();
        wait_for("the worker sleeps", || self.handle.sleeps() > before);
    }

    fn end(self) {
        self.stop.store(true, Relaxed);
        self.handle.wake();
        wait_for("the thread has ended", || self.thread.is_finished());
        self.thread.join().unwrap();
    }
}

/// A guest with an ECMDQ, and doorbells and interrupts that are eventfds. Its VMM keeps 100 KiB for it, and panics
/// when it is asked about streams.
struct Vm {
    guest: Guest,
    queue: Ecmdq,
    smmu: VirtualSmmu,
    doorbells: [EventFd; 2],
    wires: [EventFd; 2],
}

impl Vm {
    fn new(vmid: u16) -> Self {
        let [doorbells, wires] = [(); 2].map(|()| [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()));
        let [gerror, cmd_sync] = wires.each_ref().map(|wire| Some(wire.try_clone().unwrap()));
        let interrupts = Box::new(EventfdInterrupts { gerror, cmd_sync, ..EventfdInterrupts::default() });
        let state = vec![1_u8; 100 << 10];
        let on_request = Box::new(move |request, token: Token| match request {
            Request::Streams(_) => panic!("this VMM panics on purpose, {}", state[0]),
            _ => token.complete(),
        });
        let setup = Setup { vmid, interrupts, on_request: Some(on_request), ..with_ecmdq() };
        let (guest, smmu) = Guest::new(setup);
        smmu.set_doorbell(Doorbell::Eventfds(
            doorbells.iter().map(|doorbell| doorbell.try_clone().unwrap()).collect(),
        ));
        let queue = guest.ecmdq(0);
        Self { guest, queue, smmu, doorbells, wires }
    }

    /// Enables its queue and its interrupts.
    fn start(&mut self) {
        self.guest.write(reg::IRQ_CTRL, 0b101);
        self.queue.start(4);
        self.ring();
        wait_for("the queue is enabled", || self.queue.enabled());
    }

    fn ring(&self) {
        self.queue.ring();
        self.doorbells[1].write(1).unwrap();
    }

    /// An invalidation, and a CMD_SYNC with an interrupt.
    fn invalidate(&mut self) {
        self.queue.push(&[nh_asid(1), sync_msi(0, 0)]);
        self.ring();
        wait_for("a CMD_SYNC is complete", || self.queue.cons() == self.queue.prod());
        wait_for("an interrupt", || self.wires[1].read().is_ok());
    }

    /// A command that is not allowed, an interrupt, and the next one.
    fn err(&mut self) {
        self.queue.push(&[illegal()]);
        self.ring();
        wait_for("an interrupt", || self.wires[0].read().is_ok());
        self.guest.ack();
        self.queue.skip_err();
        self.ring();
        wait_for("the queue goes on", || self.queue.cons() == self.queue.prod());
    }
}

/// A signal handler of the VMM's, as for kicking threads.
extern "C" fn nothing<Info>(_: std::ffi::c_int, _: *mut Info, _: *mut std::ffi::c_void) {}

const PATIENCE: Duration = Duration::from_secs(60);

/// How many guests come and go: so many that what the worker keeps of them grows.
const GUESTS: u16 = 64;

fn serves(kind: SleeperKind, filter: BpfProgram) {
    register_signal_handler(SIGRTMIN(), nothing).unwrap();
    let mut worker = worker(AtOnce::default(), kind);
    let events = worker.events();
    let mut first = Vm::new(1);
    worker.attach(first.smmu.clone()).unwrap();
    let confined = Confined::run(worker, filter);
    first.start();
    for _ in 0..20 {
        first.invalidate();
        confined.asleep();
        first.invalidate();
        confined.asleep();
        confined.thread.kill(SIGRTMIN()).unwrap();
    }
    first.err();
    let mut told = (0..2).map(|_| events.wait_at_most(PATIENCE).unwrap());
    assert!(told.any(|event| matches!(event.kind, EventKind::Rejected { .. })));

    // Half of them are made by this thread, half by another one: their memory is of different heaps.
    let mut vms: Vec<_> = (2..GUESTS / 2).map(Vm::new).collect();
    let others = thread::spawn(|| (GUESTS / 2..GUESTS).map(Vm::new).collect::<Vec<_>>());
    vms.append(&mut others.join().unwrap());
    for vm in &mut vms {
        confined.handle.attach(vm.smmu.clone(), None, Share::default()).unwrap();
        vm.start();
        vm.invalidate();
    }
    // The VMM is busy with one while another one rings.
    for _ in 0..20 {
        vms[0].smmu.pause();
        vms[1].invalidate();
        vms[0].smmu.resume();
        vms[0].invalidate();
    }
    // The VMM's callback panics.
    first.queue.push(&[cfgi_ste(STREAM), sync()]);
    first.ring();
    loop {
        let event = events.wait_at_most(PATIENCE).unwrap();
        if matches!(event.kind, EventKind::Quarantined { .. }) {
            break;
        }
    }
    // Those of this thread go; the others end with the worker.
    for vm in vms.drain(..vms.len() / 2) {
        let leaving = confined.handle.detach(&vm.smmu);
        wait_for("it has left", || leaving.has_left());
    }
    drop(vms);
    confined.asleep();
    confined.end();
}

fn made_on_its_thread(filter: BpfProgram) {
    let (to, handle) = mpsc::channel();
    let mut vm = Vm::new(1);
    let smmu = vm.smmu.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::spawn(move || {
        confined(&filter);
        // Whatever the system has.
        for sleeper in [None, Some(Epoll)] {
            let idle = Idle { sleeper, ..Idle::default() };
            let mut worker = Worker::new(AtOnce::default()).with_sleep(idle).unwrap();
            worker.attach(smmu.clone()).unwrap();
            to.send(worker.handle()).unwrap();
            worker.run(&stopped);
        }
    });
    for turn in 0..2 {
        let handle = handle.recv().unwrap();
        if turn == 0 {
            vm.start();
        }
        vm.invalidate();
        handle.stop();
    }
    thread.join().unwrap();
}

/// A kernel that executes everything.
struct Executes;

impl Invalidate for Executes {
    fn invalidate(&self, _: &[Command]) -> io::Result<()> {
        Ok(())
    }
}

fn executes(filter: BpfProgram) {
    let (queue, mut executor) = iommufd::queue(Executes, 6).unwrap();
    let (stop, waker) = (Arc::new(AtomicBool::new(false)), executor.waker());
    let stopped = stop.clone();
    let own = filter.clone();
    let thread = thread::spawn(move || {
        confined(&own);
        executor.run(&stopped);
    });
    let mut worker = worker(queue, Epoll);
    let mut vm = Vm::new(1);
    worker.attach(vm.smmu.clone()).unwrap();
    let worker = Confined::run(worker, filter);
    vm.start();
    for _ in 0..20 {
        vm.invalidate();
        worker.asleep();
    }
    stop.store(true, Relaxed);
    waker.wake();
    thread.join().unwrap();
    worker.end();
}
