//! A native host ring: our producers before an SMMU that makes plain accesses, and our SMMU behind such a driver.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;

use ecmdq_engine::Command;
use ecmdq_engine::host::{HostQueue, MsiWord, NativeRing, RingFormat, RingLayout};

use super::memory::Memory;
use super::support::{index, until};
use crate::common::{CMDQ_ERR, HOST_SYNC, illegal, nh_page, sync_msi};

/// Where in its memory a host ring of 16 slots has its registers, its MSI word, and a word for what the SMMU has done.
pub const PROD: usize = 0x100;
pub const CONS: usize = 0x140;
pub const GERROR: usize = 0x144;
pub const GERRORN: usize = 0x104;
pub const MSI: usize = 0x180;
pub const DATA: usize = 0x1c0;
pub const CMDQ: RingFormat = RingFormat::Cmdq { gerror: GERROR, gerrorn: GERRORN };
const MSI_ADDRESS: u64 = 0xfee0_0000;

/// Fresh memory and a ring in it.
pub fn layout(format: RingFormat, msi: bool) -> (Memory, RingLayout) {
    let memory = Memory::new(0x200);
    let word = |memory: &Memory| MsiWord { region: memory.region.clone(), offset: MSI, address: MSI_ADDRESS };
    let layout = RingLayout {
        slots: memory.region.part(0, 0x100).unwrap(),
        log2: 4,
        registers: memory.region.clone(),
        prod: PROD,
        cons: CONS,
        start: 0,
        format,
        msi: msi.then(|| word(&memory)),
        doorbell: None,
    };
    (memory, layout)
}

/// Where the slot at an index is.
pub fn slot(index: u32) -> usize {
    16 * (index as usize % 16)
}

/// A plain load of the entry at an index.
pub fn entry(memory: &Memory, index: u32) -> Command {
    Command(memory.read_entry(slot(index)))
}

#[test]
fn an_smmu_sees_the_entries_below_prod_and_a_producer_sees_what_was_done_when_cons_has_passed_its_ticket() {
    let (memory, layout) = layout(CMDQ, false);
    let mut ring = NativeRing::new(layout, 1).unwrap().pop().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20 {
                let (first, end) = (index(3 * round), index(3 * round + 3));
                memory.wait(PROD, Acquire, |prod| prod == end);
                assert_eq!(entry(&memory, first), nh_page(round.into()));
                assert_eq!(entry(&memory, first + 1), nh_page(1));
                assert_eq!(entry(&memory, first + 2), HOST_SYNC);
                memory.write(DATA, round);
                memory.store(CONS, end, Release);
            }
        });
        for round in 0..20 {
            let (taken, ticket) = ring.submit_and_sync(&[nh_page(round.into()), nh_page(1)]);
            assert_eq!(taken, 2);
            until(|| Some(ring.completed()) >= ticket);
            assert_eq!(memory.read(DATA), round);
        }
    });
}

#[test]
fn a_producer_sees_what_was_done_when_the_msi_tells_of_its_ticket() {
    let (memory, layout) = layout(CMDQ, true);
    let mut ring = NativeRing::new(layout, 1).unwrap().pop().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20 {
                let end = index(2 * round + 2);
                memory.wait(PROD, Acquire, |prod| prod == end);
                let Command([low, address]) = entry(&memory, end.wrapping_sub(1));
                assert_eq!(address, MSI_ADDRESS);
                memory.write(DATA, round);
                // So that nothing but the MSI orders anything.
                memory.store(CONS, end, Relaxed);
                memory.store(MSI, (low >> 32) as u32, Release);
            }
        });
        for round in 0..20 {
            let (_, ticket) = ring.submit_and_sync(&[nh_page(round.into())]);
            until(|| Some(ring.completed()) >= ticket);
            assert_eq!(memory.read(DATA), round);
        }
    });
}

#[test]
fn an_smmu_sees_what_several_producers_wrote_whoever_of_them_stores_prod() {
    const EACH: u64 = 200;
    let (memory, layout) = layout(CMDQ, false);
    let rings = NativeRing::new(layout, 2).unwrap();
    thread::scope(|scope| {
        for mut ring in rings {
            scope.spawn(move || {
                for page in 0..EACH {
                    until(|| ring.submit(&[nh_page(page)]) == 1);
                }
            });
        }
        let (mut cons, mut sum) = (0, 0);
        for _ in 0..2 * EACH {
            memory.wait(PROD, Acquire, |prod| prod != cons);
            let Command([low, high]) = entry(&memory, cons);
            assert_eq!(low, 0x13);
            sum += high >> 12;
            cons = index(cons + 1);
            memory.store(CONS, cons, Release);
        }
        assert_eq!(sum, EACH * (EACH - 1));
    });
}

/// Runs the SMMU that the crate has, which finds every `illegal` command illegal, against a driver on this thread.
fn against_driver(format: RingFormat, msi: bool, driver: impl FnOnce(&Memory)) {
    let (memory, layout) = layout(format, msi);
    let mut smmu = layout.consumer().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let taken = smmu.poll_with(|commands| match commands.iter().position(|c| *c == illegal()) {
                    Some(n) => (n, Some(ecmdq_engine::CommandError::Ill)),
                    None => (commands.len(), None),
                });
                if taken == 0 {
                    thread::yield_now();
                }
            }
        });
        let _finished = crate::common::SetOnDrop(&stop);
        driver(&memory);
    });
}

#[test]
fn a_driver_may_write_slots_again_that_our_smmu_has_passed() {
    against_driver(CMDQ, false, |memory| {
        for round in 0..40 {
            let end = index(round + 1);
            memory.write_entry(slot(round), nh_page(round.into()).0);
            memory.store(PROD, end, Release);
            memory.wait(CONS, Acquire, |cons| cons == end);
        }
    });
}

#[test]
fn a_driver_that_sees_the_msi_of_our_smmu_sees_cons() {
    against_driver(CMDQ, true, |memory| {
        for round in 1..40 {
            memory.write_entry(slot(round - 1), sync_msi(MSI_ADDRESS, round).0);
            memory.store(PROD, index(round), Release);
            memory.wait(MSI, Acquire, |word| word == round);
            assert_eq!(memory.read(CONS), index(round));
        }
    });
}

#[test]
fn a_driver_that_sees_gerror_of_our_smmu_sees_cons_and_may_mend_the_entry_until_gerrorn() {
    against_driver(CMDQ, false, |memory| {
        let mut error = 0;
        for round in 0..20 {
            memory.write_entry(slot(round), illegal().0);
            memory.store(PROD, index(round + 1), Release);
            error ^= CMDQ_ERR;
            memory.wait(GERROR, Acquire, |word| word == error);
            assert_eq!(memory.read(CONS), 1 << 24 | index(round));
            memory.write_entry(slot(round), HOST_SYNC.0);
            memory.store(GERRORN, error, Release);
            memory.wait(CONS, Acquire, |cons| cons & 0x1f == index(round + 1));
        }
    });
}
