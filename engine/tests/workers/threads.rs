//! Workers that move from thread to thread, and guests that another thread attaches: what a worker sleeps on must
//! not belong to a thread that has ended, or that has something else to do.

use std::hint;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use ecmdq_engine::{Doorbell, SleeperKind, VirtualSmmu, Worker, WorkerHandle};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;
use crate::support::*;

/// What a thread does when its part is done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    End,
    Park,
    /// Live on without a system call.
    Spin,
}

const EACH: [Then; 3] = [Then::End, Then::Park, Then::Spin];

/// A thread with a part to do. Nobody waits for one that hangs, so that a test that fails ends.
struct Part<R> {
    result: mpsc::Receiver<R>,
    then: Then,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<R: Send + 'static> Part<R> {
    fn new(then: Then, f: impl FnOnce() -> R + Send + 'static) -> Self {
        let ((to, result), over) = (mpsc::channel(), Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            // Nobody receives it when the test has failed.
            let _ = to.send(f());
            while then != Then::End && !is_over.load(Relaxed) {
                if then == Then::Park { thread::park() } else { hint::spin_loop() }
            }
        });
        Self { result, then, over, thread: Some(thread) }
    }

    /// Waits until the part is done, and the thread does what it does then.
    fn done(&mut self) -> R {
        let result = self.result.recv().unwrap();
        if self.then == Then::End
            && let Some(thread) = self.thread.take()
        {
            thread.join().unwrap();
        }
        result
    }
}

impl<R> Drop for Part<R> {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// A guest with an ECMDQ whose doorbell is the first of several eventfds.
struct Ringing {
    smmu: VirtualSmmu,
    queue: Ecmdq,
    eventfds: Vec<EventFd>,
}

impl Ringing {
    fn new(eventfds: usize) -> Self {
        let (guest, smmu) = Guest::new(with_ecmdq());
        let eventfds: Vec<_> = (0..eventfds).map(|_| EventFd::new(0).unwrap()).collect();
        smmu.set_doorbell(Doorbell::Eventfds(eventfds.iter().map(|e| e.try_clone().unwrap()).collect()));
        let mut queue = guest.ecmdq(0);
        queue.describe(RING, 4, 0);
        Self { smmu, queue, eventfds }
    }

    /// Enables the queue, if it is not, and rings several times while the worker sleeps.
    fn served(&mut self, handle: &WorkerHandle<AtOnce>) {
        self.queue.write_prod(EN | self.queue.prod());
        let eventfd = &self.eventfds[0];
        eventfd.write(1).unwrap();
        wait_for("the queue is enabled", || self.queue.enabled());
        let mut store: Store<'_> = Box::new(move |queue, prod| {
            queue.write_prod(prod);
            eventfd.write(1).unwrap();
        });
        for asid in 0..10 {
            let before = handle.sleeps();
            handle.wake();
            wait_for("the worker sleeps", || handle.sleeps() > before);
            invalidate_on(&mut self.queue, &mut store, asid);
        }
    }
}

fn worker(kind: SleeperKind) -> Worker<AtOnce> {
    Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap()
}

/// Runs a worker on a thread of its own while it serves a guest; the thread, too, which does as `then` says.
fn run(
    mut worker: Worker<AtOnce>,
    guest: &mut Ringing,
    then: Then,
) -> (Worker<AtOnce>, Part<Worker<AtOnce>>) {
    let (stop, handle) = (Arc::new(AtomicBool::new(false)), worker.handle());
    let stopped = stop.clone();
    let mut part = Part::new(then, move || {
        worker.run(&stopped);
        worker
    });
    guest.served(&handle);
    stop.store(true, Relaxed);
    handle.wake();
    (part.done(), part)
}

#[test]
fn a_worker_that_moves_to_another_thread_is_woken_there() {
    on_each_sleeper(|kind| {
        for then in EACH {
            println!("{kind:?}, {then:?}");
            let (mut guest, mut worker) = (Ringing::new(1), worker(kind));
            worker.attach(guest.smmu.clone()).unwrap();
            let mut threads = Vec::new();
            for _ in 0..3 {
                let (back, thread) = run(worker, &mut guest, then);
                threads.push(thread);
                worker = back;
            }
        }
    });
}

#[test]
fn a_guest_that_another_thread_has_attached_wakes_the_worker() {
    on_each_sleeper(|kind| {
        for then in EACH {
            println!("{kind:?}, {then:?}");
            // So many that io_uring's submission queue cannot hold them until the worker sleeps.
            let mut guest = Ringing::new(100);
            let attached = guest.smmu.clone();
            let mut set_up = Part::new(then, move || {
                let mut worker = worker(kind);
                worker.attach(attached).unwrap();
                worker
            });
            run(set_up.done(), &mut guest, Then::End);
        }
    });
}

#[test]
fn a_guest_that_was_attached_while_the_worker_was_stopped_wakes_it() {
    on_each_sleeper(|kind| {
        for then in EACH {
            println!("{kind:?}, {then:?}");
            let mut guests = [(); 2].map(|()| Ringing::new(1));
            let mut first = worker(kind);
            first.attach(guests[0].smmu.clone()).unwrap();
            let (mut worker, _thread) = run(first, &mut guests[0], then);
            let attached = guests[1].smmu.clone();
            let mut set_up = Part::new(then, move || {
                worker.attach(attached).unwrap();
                worker
            });
            let (worker, _thread) = run(set_up.done(), &mut guests[1], then);
            run(worker, &mut guests[0], Then::End);
        }
    });
}
