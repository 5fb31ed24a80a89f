//! What the guest asks of the VMM, by registers and by commands.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc;
use std::thread;

use ecmdq_engine::rules::Request;

use super::support::*;
use crate::common::reg::*;
use crate::common::{SMMUEN, STREAM, cfgi_ste};

const STRTAB_BASE: usize = 0x80;
const STRTAB_BASE_CFG: usize = 0x88;
const CR1: usize = 0x28;

#[test]
fn the_stream_table_is_described_before_smmuen_and_may_be_described_anew_after_cr0ack() {
    Guest::new(Front::Shared).run(|guest| {
        for round in 0..10 {
            guest.pages.write_u64(STRTAB_BASE, RAM_TABLE + (round << 12));
            guest.pages.write(STRTAB_BASE_CFG, 5);
            guest.pages.write(CR1, 1);
            guest.pages.store(CR0, SMMUEN, Release);
            guest.pages.wait(CR0ACK, Relaxed, |ack| ack == SMMUEN);
            guest.pages.store(CR0, 0, Release);
            guest.pages.wait(CR0ACK, Acquire, |ack| ack == 0);
        }
    });
}

const RAM_TABLE: u64 = 0x4000_8000;
const UPDATE: u32 = 1 << 31;

#[test]
fn the_vmm_sees_what_the_guest_did_before_gbpa_and_the_guest_sees_after_it_what_the_vmm_did() {
    let guest = Guest::with_vmm(Front::Shared, |ram| {
        Box::new(move |request, token| {
            let Request::UpdateGbpa(value) = request else { panic!("{request:?}") };
            assert_eq!(ram.read(DATA), value);
            ram.write(DATA, value + 1);
            token.complete();
        })
    });
    guest.run(|guest| {
        for value in 1..10 {
            guest.ram.write(DATA, value);
            guest.pages.store(GBPA, UPDATE | value, Release);
            guest.pages.wait(GBPA, Acquire, |word| word & UPDATE == 0);
            assert_eq!(guest.ram.read(DATA), value + 1);
        }
    });
}

#[test]
fn whoever_sees_cons_pass_a_command_sees_what_another_thread_of_the_vmm_did_for_it() {
    let (asked, requests) = mpsc::channel();
    let guest = Guest::with_vmm(Front::Shared, |_| {
        Box::new(move |request, token| {
            let Request::Streams(_) = request else { panic!("{request:?}") };
            asked.send(token).unwrap();
        })
    });
    let data = guest.ram.clone();
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in 1..=10 {
                let token = requests.recv().unwrap();
                data.write(DATA, round);
                token.complete();
            }
        });
        guest.run(|guest| {
            guest.start_cmdq();
            for round in 1..=10 {
                guest.put(RING, round - 1, &[cfgi_ste(STREAM)]);
                guest.pages.store(CMDQ_PROD, round, Release);
                guest.pages.wait(CMDQ_CONS, Acquire, |cons| cons == round);
                assert_eq!(guest.ram.read(DATA), round);
            }
        });
    });
}
