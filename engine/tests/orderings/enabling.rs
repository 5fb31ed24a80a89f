//! Enabling and disabling queues: BASE, CONS and the slots belong to the guest while a queue is disabled.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::support::*;
use crate::common::reg::*;
use crate::common::{CMDQEN, EN, nh_page};

#[test]
fn the_registers_of_the_cmdq_are_the_guests_until_cr0_and_again_after_cr0ack() {
    Guest::new(Front::Shared).run(|guest| {
        for round in 0..10 {
            guest.describe_cmdq(round);
            guest.put(RING, round, &[nh_page(round.into())]);
            guest.pages.store(CR0, CMDQEN, Release);
            guest.pages.wait(CR0ACK, Relaxed, |ack| ack == CMDQEN);
            guest.pages.store(CMDQ_PROD, round + 1, Relaxed);
            guest.pages.wait(CMDQ_CONS, Relaxed, |cons| cons == round + 1);
            guest.pages.store(CR0, 0, Release);
            guest.pages.wait(CR0ACK, Acquire, |ack| ack == 0);
            assert_eq!(guest.pages.read(CMDQ_CONS), round + 1);
        }
    });
}

#[test]
fn the_registers_of_an_ecmdq_are_the_guests_until_en_and_again_after_enack() {
    Guest::new(Front::Shared).run(|guest| {
        let (prod, cons) = (ECMDQS[0] + ECMDQ_PROD, ECMDQS[0] + ECMDQ_CONS);
        for round in 0..10 {
            guest.pages.write_u64(ECMDQS[0], base(ECMDQ_RINGS[0]));
            guest.pages.write(cons, round);
            guest.put(ECMDQ_RINGS[0], round, &[nh_page(round.into())]);
            guest.pages.store(prod, EN | (round + 1), Release);
            guest.pages.wait(cons, Relaxed, |word| word == EN | (round + 1));
            guest.pages.store(prod, round + 1, Release);
            guest.pages.wait(cons, Acquire, |word| word == round + 1);
        }
    });
}

#[test]
fn so_are_those_of_an_ecmdq_whose_ring_is_no_memory() {
    Guest::new(Front::Shared).run(|guest| {
        let (prod, cons) = (ECMDQS[1] + ECMDQ_PROD, ECMDQS[1] + ECMDQ_CONS);
        for round in 0..10 {
            guest.pages.write_u64(ECMDQS[1], u64::from(LOG2));
            guest.pages.write(cons, round);
            guest.pages.store(prod, EN | round, Release);
            guest.pages.wait(cons, Relaxed, |word| word == EN | round);
            guest.pages.store(prod, round, Release);
            guest.pages.wait(cons, Acquire, |word| word == round);
        }
    });
}
