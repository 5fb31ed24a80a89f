//! Callbacks of the VMM may call the library again, and take locks that others hold while they call it.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;
use std::{io, thread};

use common::reg::*;
use common::*;
use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{
    Command, Doorbell, DoorbellTraps, Idle, Interrupts, OnRequest, StreamIdOf, VirtualSmmu, Worker,
    WorkerHandle,
};
use vm_memory::GuestAddress;

/// As good as never: only what hangs takes so long.
const LONG: Duration = Duration::from_secs(60);

/// Runs a test that may hang on a thread of its own.
fn ends(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(LONG) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap(),
    }
}

/// The virtual SMMU that a callback calls, which is made after the callback.
type Itself = Arc<OnceLock<VirtualSmmu>>;

/// All that a VMM may call from anywhere.
fn call_all(smmu: &VirtualSmmu, handle: Option<&WorkerHandle<Script>>) {
    let _ = (smmu.inspect(), smmu.stats(), smmu.last_rejected(), format!("{smmu:?}"));
    smmu.pause();
    smmu.save().unwrap();
    smmu.resume();
    smmu.memory_changed();
    let _ = smmu.record_event([0; 4], StreamIdOf::Guest);
    let _ = smmu.record_page_request([0; 2], StreamIdOf::Guest);
    let mut data = [0; 4];
    smmu.mmio_read(IRQ_CTRL as u64, &mut data);
    smmu.mmio_write(IRQ_CTRL as u64, &data);
    if let Some(handle) = handle {
        handle.wake();
        let _ = handle.sleeps();
    }
}

#[test]
fn a_request_may_call_the_virtual_smmu_that_it_came_from() {
    ends(|| {
        let itself = Itself::default();
        let seen = itself.clone();
        let on_request: OnRequest = Box::new(move |_, token| {
            call_all(seen.get().unwrap(), None);
            token.complete();
        });
        let (mut guest, smmu) = Guest::new(Setup { on_request: Some(on_request), ..Rig::ats_setup(1) });
        itself.set(smmu.clone()).unwrap();
        let mut worker = Worker::new(Script::at_once());
        worker.attach(smmu).unwrap();
        guest.start(4);
        guest.write(CR0, CMDQEN | SMMUEN);
        (0..4).for_each(|_| _ = worker.poll());
        guest.send(&[cfgi_ste(STREAM), nh_asid(1), sync()]);
        (0..6).for_each(|_| _ = worker.poll());
        assert_eq!((guest.cons(), guest.active()), (3, 0));
        assert_eq!(guest.read(CR0ACK), CMDQEN | SMMUEN);
    });
}

/// Interrupts that call the virtual SMMU, and count.
struct Wires {
    itself: Itself,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Interrupts for Wires {
    fn gerror(&mut self) {
        call_all(self.itself.get().unwrap(), None);
        self.calls.lock().unwrap().push("gerror");
    }

    fn cmd_sync(&mut self) {
        call_all(self.itself.get().unwrap(), None);
        self.calls.lock().unwrap().push("cmd_sync");
    }

    fn msi(&mut self, _: GuestAddress, data: u32) -> bool {
        call_all(self.itself.get().unwrap(), None);
        self.calls.lock().unwrap().push("msi");
        data == 1
    }
}

#[test]
fn an_interrupt_may_call_the_virtual_smmu_that_it_came_from() {
    ends(|| {
        let (itself, calls) = (Itself::default(), Arc::default());
        let wires = Wires { itself: itself.clone(), calls: Arc::clone(&calls) };
        let (mut guest, smmu) =
            Guest::new(Setup { interrupts: Box::new(wires), ..Setup::with(|f| f.msi = true) });
        itself.set(smmu.clone()).unwrap();
        let mut worker = Worker::new(Script::at_once());
        worker.attach(smmu).unwrap();
        guest.start(4);
        guest.write(IRQ_CTRL, 1);
        (0..3).for_each(|_| _ = worker.poll());
        // The second MSI goes nowhere, which is an error.
        guest.send(&[sync_msi(0x1000, 1), sync_msi(0x1000, 2), illegal()]);
        (0..8).for_each(|_| _ = worker.poll());
        assert_eq!((guest.cons(), guest.error()), (2, Some(CERROR_ILL)));
        assert_eq!(guest.active(), CMDQ_ERR | MSI_CMDQ_ABT_ERR);
        let mut calls = calls.lock().unwrap().clone();
        calls.sort_unstable();
        assert_eq!(calls, ["cmd_sync", "cmd_sync", "gerror", "gerror", "msi", "msi"]);
    });
}

/// The VMM's one big lock.
type Bql = Arc<Mutex<u64>>;

/// A host queue whose every call takes the big lock.
struct UnderLock(Bql);

impl HostQueue for UnderLock {
    fn submit(&mut self, commands: &[Command]) -> usize {
        *self.0.lock().unwrap() += commands.len() as u64;
        // It leaves a part, so that it is called in the middle of a turn as well.
        commands.len().min(100)
    }

    fn sync(&mut self) -> Ticket {
        Ticket(*self.0.lock().unwrap())
    }

    fn completed(&mut self) -> Ticket {
        Ticket(*self.0.lock().unwrap())
    }
}

/// The same lock for requests, interrupts and traps.
impl Interrupts for UnderLock {
    fn cmd_sync(&mut self) {
        drop(self.0.lock().unwrap());
    }
}

impl DoorbellTraps for UnderLock {
    fn arm(&mut self) -> io::Result<()> {
        drop(self.0.lock().unwrap());
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        drop(self.0.try_lock());
        Ok(())
    }
}

#[test]
fn a_vmm_may_call_under_a_lock_that_its_callbacks_take() {
    ends(|| {
        let bql = Bql::default();
        let of_requests = bql.clone();
        let on_request: OnRequest = Box::new(move |_, token| {
            drop(of_requests.lock().unwrap());
            token.complete();
        });
        let interrupts = Box::new(UnderLock(bql.clone()));
        let setup = Setup { on_request: Some(on_request), interrupts, ..Setup::with(|f| f.msi = true) };
        let (mut guest, smmu) = Guest::new(setup);
        smmu.set_doorbell(Doorbell::Traps(Box::new(UnderLock(bql.clone()))));
        let mut worker = Worker::new(UnderLock(bql.clone())).with_sleep(Idle::always_sleep()).unwrap();
        worker.attach(smmu.clone()).unwrap();
        guest.start(10);
        worker.poll();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let handle = worker.handle();
            scope.spawn(|| worker.run(&stop));
            let vmm = smmu.clone();
            let (stop, locked) = (&stop, bql.clone());
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let _lock = locked.lock().unwrap();
                    vmm.pause();
                    let _ = (vmm.inspect(), vmm.record_event([0; 4], StreamIdOf::Guest));
                    vmm.mmio_write(GERRORN as u64, &[0; 4]);
                    vmm.resume();
                }
            });
            let mut done = 0;
            for n in 0..400 {
                let mut commands = vec![nh_asid(1); 300];
                commands.extend([cfgi_ste(STREAM), sync_msi(0, n)]);
                guest.push(&commands);
                // As a trapped store does under the big lock.
                let lock = bql.lock().unwrap();
                smmu.mmio_write(CMDQ_PROD as u64, &guest.prod().to_le_bytes());
                drop(lock);
                while guest.cons() != guest.prod() {
                    thread::yield_now();
                }
                done += 1;
            }
            assert_eq!(done, 400);
            stop.store(true, Relaxed);
            handle.wake();
        });
    });
}
