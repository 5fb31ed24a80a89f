//! Errors, acknowledgements and the global error interrupt.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::support::*;
use crate::common::reg::*;
use crate::common::{CERROR_ILL, CMDQ_ERR, EN, ERR, RAM, illegal, nh_page};

#[test]
fn whoever_sees_gerror_sees_cons_and_the_entry_is_the_guests_until_gerrorn() {
    Guest::new(Front::Shared).run(|guest| {
        guest.start_cmdq();
        let mut error = 0;
        for round in 0..10 {
            let (at, end) = (index(2 * round), index(2 * round + 2));
            guest.put(RING, at, &[illegal(), nh_page(round.into())]);
            guest.pages.store(CMDQ_PROD, end, Release);
            error ^= CMDQ_ERR;
            guest.pages.wait(GERROR, Acquire, |word| word == error);
            assert_eq!(guest.pages.read(CMDQ_CONS), CERROR_ILL << 24 | at);
            guest.put(RING, at, &[nh_page(round.into())]);
            guest.pages.store(GERRORN, error, Release);
            guest.pages.wait(CMDQ_CONS, Relaxed, |word| word == end);
            // So that the next round begins when the worker is through with this one.
            guest.pages.load(CMDQ_CONS, Acquire);
        }
    });
}

#[test]
fn whoever_sees_err_of_an_ecmdq_may_mend_the_entry_until_errack() {
    Guest::new(Front::Shared).run(|guest| {
        let (prod, cons) = (ECMDQS[0] + ECMDQ_PROD, ECMDQS[0] + ECMDQ_CONS);
        guest.pages.write_u64(ECMDQS[0], base(ECMDQ_RINGS[0]));
        guest.pages.store(prod, EN, Release);
        guest.pages.wait(cons, Acquire, |word| word == EN);
        let mut error = 0;
        for round in 0..10 {
            guest.put(ECMDQ_RINGS[0], round, &[illegal()]);
            guest.pages.store(prod, EN | error | (round + 1), Release);
            error ^= ERR;
            guest.pages.wait(cons, Acquire, |word| word & (ERR | 0xf_ffff) == error | round);
            guest.put(ECMDQ_RINGS[0], round, &[nh_page(round.into())]);
            guest.pages.store(prod, EN | error | (round + 1), Release);
            guest.pages.wait(cons, Acquire, |word| word & (ERR | 0xf_ffff) == error | (round + 1));
        }
    });
}

#[test]
fn where_the_error_interrupt_goes_is_the_guests_until_irq_ctrl_and_again_after_irq_ctrlack() {
    let guest = Guest::new(Front::Shared);
    // All of this is there before the worker is, so that no doorbell orders anything.
    guest.describe_cmdq(0);
    guest.put(RING, 0, &[illegal()]);
    guest.pages.store(CR0, 1 << 3, Relaxed);
    guest.run(|guest| {
        guest.pages.write_u64(GERROR_IRQ_CFG0, RAM + MSI as u64);
        guest.pages.write(GERROR_IRQ_CFG1, 7);
        guest.pages.store(IRQ_CTRL, 1, Release);
        guest.pages.wait(IRQ_CTRLACK, Relaxed, |ack| ack == 1);
        guest.pages.store(CMDQ_PROD, 1, Relaxed);
        guest.ram.wait(MSI, Relaxed, |word| word == 7);
        guest.pages.store(IRQ_CTRL, 0, Relaxed);
        guest.pages.wait(IRQ_CTRLACK, Acquire, |ack| ack == 0);
        guest.pages.write_u64(GERROR_IRQ_CFG0, 0);
        guest.pages.write(GERROR_IRQ_CFG1, 0);
        guest.ram.write(MSI, 0);
    });
}
