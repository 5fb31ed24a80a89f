//! Trapped accesses against the worker.
//!
//! That a write took effect where a guard forbids it while something is enabled tells as much as the acknowledgement itself: what
//! was enabled is not any more, and its memory is the guest's again.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;

use super::support::*;
use crate::common::reg::*;
use crate::common::{CMDQEN, EN, RAM, nh_page, sync, sync_msi};

const CR1: usize = 0x28;

/// Enables the CMDQ, has it take a command, and asks for it to be disabled. All that it waits for, it only waits for by
/// statistics, which order nothing.
fn use_cmdq(guest: &Guest) {
    guest.trap_write_u64(CMDQ_BASE, base(RING));
    guest.trap_write(CMDQ_PROD, 0);
    guest.trap_write(CMDQ_CONS, 0);
    guest.trap_write(CR0, CMDQEN);
    let before = guest.smmu.stats().commands;
    guest.put(RING, 0, &[nh_page(1)]);
    guest.trap_write(CMDQ_PROD, 1);
    until(|| guest.smmu.stats().commands == before + 1);
    guest.trap_write(CR0, 0);
}

#[test]
fn a_trapped_doorbell_shows_what_was_written_before_and_a_trapped_read_of_cons_what_may_be_written_again() {
    Guest::new(Front::Trapped).run(|guest| {
        guest.trap_write_u64(CMDQ_BASE, base(RING));
        guest.trap_write(CR0, CMDQEN);
        for round in 0..20 {
            let (first, end) = (index(5 * round), index(5 * round + 5));
            let page = nh_page(round.into());
            guest.ram.write(MSI, 0);
            guest.put(RING, first, &[page, page, sync(), page, sync_msi(RAM + MSI as u64, 1)]);
            guest.trap_write(CMDQ_PROD, end);
            until(|| guest.trap_read(CMDQ_CONS) == end);
            assert_eq!(guest.ram.read(MSI), 1, "CONS is not seen before the MSI is");
        }
    });
}

#[test]
fn what_a_vcpu_reads_from_a_wide_register_shows_what_the_one_that_wrote_it_had_done() {
    let guest = Guest::new(Front::Trapped);
    let read = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..20 {
                guest.ram.write(DATA, round);
                guest.trap_write_u64(CMDQ_BASE, u64::from(round) << 12);
                until(|| read.load(Acquire) == round);
            }
        });
        for round in 1..20 {
            until(|| guest.trap_read_u64(CMDQ_BASE) == u64::from(round) << 12);
            assert_eq!(guest.ram.read(DATA), round);
            read.store(round, Release);
        }
    });
}

#[test]
fn a_base_that_could_be_written_says_that_the_cmdq_is_disabled() {
    Guest::new(Front::Trapped).run(|guest| {
        use_cmdq(guest);
        until(|| {
            guest.trap_write_u64(CMDQ_BASE, base(0));
            guest.trap_read_u64(CMDQ_BASE) == base(0)
        });
        guest.put(RING, 0, &[nh_page(2)]);
    });
}

#[test]
fn an_enable_that_could_be_written_says_that_the_disable_before_is_complete() {
    Guest::new(Front::Trapped).run(|guest| {
        use_cmdq(guest);
        until(|| {
            guest.trap_write(CR0, CMDQEN);
            guest.trap_read(CR0) == CMDQEN
        });
        // It is empty.
        guest.put(RING, 1, &[nh_page(2)]);
        guest.put(RING, 0, &[nh_page(3)]);
    });
}

/// As [`use_cmdq`], with an ECMDQ whose doorbells do not trap: trapped ones look at CONS.
fn use_ecmdq(guest: &Guest) {
    let (prod, cons) = (ECMDQS[0] + ECMDQ_PROD, ECMDQS[0] + ECMDQ_CONS);
    guest.pages.write_u64(ECMDQS[0], base(ECMDQ_RINGS[0]));
    guest.put(ECMDQ_RINGS[0], 0, &[nh_page(1)]);
    guest.pages.store(prod, EN | 1, Release);
    guest.pages.wait(cons, Relaxed, |word| word == EN | 1);
    guest.pages.store(prod, 1, Release);
}

#[test]
fn a_base_that_could_be_written_says_that_the_ecmdq_is_disabled() {
    Guest::new(Front::Shared).run(|guest| {
        use_ecmdq(guest);
        until(|| {
            guest.trap_write_u64(ECMDQS[0], base(0));
            guest.trap_read_u64(ECMDQS[0]) == base(0)
        });
        guest.put(ECMDQ_RINGS[0], 0, &[nh_page(2)]);
    });
}

#[test]
fn queue_attributes_that_could_be_written_say_that_all_ecmdqs_are_disabled() {
    Guest::new(Front::Shared).run(|guest| {
        use_ecmdq(guest);
        until(|| {
            guest.trap_write(CR1, 1);
            guest.trap_read(CR1) == 1
        });
        guest.put(ECMDQ_RINGS[0], 0, &[nh_page(2)]);
    });
}

#[test]
fn an_update_of_gbpa_that_could_be_written_says_that_the_one_before_is_complete() {
    const UPDATE: u32 = 1 << 31;
    let asked = Arc::new(AtomicU32::new(0));
    let guest = Guest::with_vmm(Front::Trapped, |ram| {
        let (asked, mut kept) = (asked.clone(), Vec::new());
        Box::new(move |_, token| {
            // A token that is given back wakes the worker, which takes a lock that the guest's next access takes, too. So
            // what is to be seen comes behind that, and the second token is never given back.
            if asked.fetch_add(1, Relaxed) == 0 {
                token.complete();
                ram.write(DATA, 1);
            } else {
                kept.push(token);
            }
        })
    });
    guest.run(|guest| {
        guest.trap_write(GBPA, UPDATE);
        until(|| {
            guest.trap_write(GBPA, UPDATE | 1);
            asked.load(Relaxed) == 2
        });
        assert_eq!(guest.ram.read(DATA), 1);
    });
}
