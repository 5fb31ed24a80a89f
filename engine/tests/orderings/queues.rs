//! Doorbells, slots, and the MSI.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::support::*;
use crate::common::reg::*;
use crate::common::{EN, RAM, nh_page, sync, sync_msi};

/// A CMDQ, or an ECMDQ by its number: where the ring is, and the PROD and CONS registers.
fn place(ecmdq: Option<usize>) -> (usize, usize, usize) {
    ecmdq.map_or((RING, CMDQ_PROD, CMDQ_CONS), |number| {
        (ECMDQ_RINGS[number], ECMDQS[number] + ECMDQ_PROD, ECMDQS[number] + ECMDQ_CONS)
    })
}

fn start(guest: &Guest, ecmdq: Option<usize>) -> u32 {
    let Some(number) = ecmdq else {
        guest.start_cmdq();
        return 0;
    };
    let (ring, prod, cons) = place(ecmdq);
    guest.pages.write_u64(ECMDQS[number], base(ring));
    guest.pages.write(cons, 0);
    guest.pages.store(prod, EN, Release);
    guest.pages.wait(cons, Acquire, |word| word & EN != 0);
    EN
}

#[test]
fn what_is_below_prod_was_written_and_what_is_below_cons_may_be_written_again() {
    for ecmdq in [None, Some(0), Some(1)] {
        Guest::new(Front::Shared).run(|guest| {
            let flags = start(guest, ecmdq);
            let (ring, prod, cons) = place(ecmdq);
            for round in 0..30 {
                let (first, end) = (index(5 * round), index(5 * round + 5));
                let page = |n| nh_page(u64::from(5 * round + n));
                guest.put(ring, first, &[page(0), page(1), page(2), page(3), sync()]);
                guest.pages.store(prod, flags | end, Release);
                guest.pages.wait(cons, Acquire, |word| word == flags | end);
            }
            assert_eq!((guest.smmu.stats().commands, guest.smmu.stats().syncs), (150, 30));
        });
    }
}

#[test]
fn whoever_sees_the_msi_sees_that_cons_has_passed_the_cmd_sync() {
    Guest::new(Front::Shared).run(|guest| {
        guest.start_cmdq();
        for round in 0..20 {
            let (first, end) = (index(2 * round), index(2 * round + 2));
            guest.ram.write(MSI, 0);
            guest.put(RING, first, &[nh_page(u64::from(round)), sync_msi(RAM + MSI as u64, 1)]);
            guest.pages.store(CMDQ_PROD, end, Release);
            guest.ram.wait(MSI, Acquire, |word| word == 1);
            // Nothing changes CONS until the next doorbell.
            assert_eq!(guest.pages.read(CMDQ_CONS), end);
        }
        assert_eq!(guest.smmu.stats().msis, 20);
    });
}

#[test]
fn statistics_are_read_while_a_worker_counts() {
    Guest::new(Front::Shared).run(|guest| {
        guest.start_cmdq();
        guest.put(RING, 0, &[nh_page(1), nh_page(2), sync()]);
        guest.pages.store(CMDQ_PROD, 3, Release);
        until(|| guest.smmu.stats().syncs == 1);
        assert_eq!(guest.smmu.stats().forwarded, 2);
    });
}
