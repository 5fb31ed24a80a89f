//! Workers that hand guests over to each other, and a VMM that does something with a guest that is served.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;

use ecmdq_engine::{Share, Worker};

use super::support::*;
use crate::common::reg::*;
use crate::common::{STREAM, cfgi_ste, nh_page, sync};

#[test]
fn a_guest_that_changes_its_worker_takes_with_it_what_the_last_one_knew() {
    // What the VMM does without any ordering of its own is on the thread of whichever worker has the guest.
    let guest = Guest::with_vmm(Front::Shared, |ram| {
        Box::new(move |_, token| {
            ram.write(DATA, ram.read(DATA) + 1);
            token.complete();
        })
    });
    let mut workers = [AtOnce::default(), AtOnce::default()].map(Worker::new);
    let handles = workers.each_ref().map(Worker::handle);
    thread::scope(|scope| {
        for worker in &mut workers {
            scope.spawn(|| worker.run(&false.into()));
        }
        handles[1].attach(guest.smmu.clone(), None, Share::default()).unwrap();
        guest.start_cmdq();
        for round in 0..20 {
            let (first, end) = (index(3 * round), index(3 * round + 3));
            guest.put(RING, first, &[nh_page(1), cfgi_ste(STREAM), sync()]);
            guest.pages.store(CMDQ_PROD, end, Release);
            guest.pages.wait(CMDQ_CONS, Acquire, |cons| cons == end);
            let (from, to) = (&handles[(1 - round % 2) as usize], &handles[(round % 2) as usize]);
            from.detach(&guest.smmu).wait();
            assert_eq!(guest.ram.read(DATA), round + 1);
            to.attach(guest.smmu.clone(), None, Share::default()).unwrap();
        }
        handles.iter().for_each(|handle| handle.stop());
    });
    assert_eq!(guest.smmu.stats().commands, 60);
}

#[test]
fn a_guest_is_paused_saved_and_restored_between_two_accesses_of_a_vcpu() {
    Guest::new(Front::Shared).run(|guest| {
        guest.start_cmdq();
        for round in 0..10 {
            let (first, end) = (index(2 * round), index(2 * round + 2));
            guest.put(RING, first, &[nh_page(1), sync()]);
            guest.pages.store(CMDQ_PROD, end, Release);
            guest.smmu.pause();
            // Whatever the worker has taken, it touches nothing now.
            guest.ram.read_entry(slot(RING, first));
            let cons = guest.pages.read(CMDQ_CONS);
            let snapshot = guest.smmu.save().unwrap();
            guest.smmu.reset();
            guest.smmu.restore(&snapshot).unwrap();
            assert_eq!(guest.pages.read(CMDQ_CONS), cons);
            guest.smmu.resume();
            guest.pages.wait(CMDQ_CONS, Acquire, |word| word == end);
        }
        assert_eq!(guest.smmu.stats().syncs, 10);
    });
}
