//! Worker, host and guest each at their own pace.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use common::*;
use ecmdq_engine::Worker;
use ecmdq_engine::host::{NativeRing, RingConsumer};

/// Sends `n` groups of commands, each with a CMD_SYNC whose MSI clears its own slot, and waits for each MSI as
/// Linux does.
fn drive(guest: &mut Guest, n: u64) {
    for group in 0..n {
        let at = guest.slot(guest.prod() + 2);
        guest.send(&[nh_page(2 * group), nh_page(2 * group + 1), sync_msi(at, 0)]);
        wait_for("the MSI is there", || guest.u32_at(at) == 0);
        assert_eq!(guest.cons(), guest.prod(), "CONS has passed the CMD_SYNC when its MSI is seen");
    }
}

/// Serves the host's end until told to stop; checks that every page comes once and in order.
fn serve(host: &mut RingConsumer, stop: &AtomicBool) -> u64 {
    let mut pages = 0;
    while !stop.load(Relaxed) {
        let taken = host.poll(|commands| {
            for command in commands.iter().filter(|command| **command != HOST_SYNC) {
                assert_eq!(*command, host_page(7, pages));
                pages += 1;
            }
        });
        if taken == 0 {
            thread::yield_now();
        }
    }
    pages
}

#[test]
fn a_worker_on_a_thread_of_its_own_serves_a_guest_until_it_is_stopped() {
    const GROUPS: u64 = 3_000;
    let (ring, mut host) = NativeRing::with_consumer(6).unwrap();
    let (mut guest, smmu) = Guest::new(Setup::default());
    let mut worker = Worker::new(ring);
    worker.attach(smmu).unwrap();
    guest.start(4);
    let stop = AtomicBool::new(false);
    let pages = thread::scope(|scope| {
        scope.spawn(|| worker.run(&stop));
        let host = scope.spawn(|| serve(&mut host, &stop));
        let finished = SetOnDrop(&stop);
        drive(&mut guest, GROUPS);
        drop(finished);
        host.join().unwrap()
    });
    assert_eq!(pages, 2 * GROUPS);
    let stats = guest.stats.read();
    assert_eq!((stats.commands, stats.syncs, stats.msis), (3 * GROUPS, GROUPS, GROUPS));
}
