//! Threads: a guest that stops only between two of its accesses, and a VMM that saves it again and again.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;

use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::{Command, VirtualSmmu, Worker};
use ecmdq_ring::SharedRegion;

use crate::common::{HOST_SYNC, RAM, SetOnDrop, host_page, nh_page, sync_msi, wait_for};
use crate::vm::{self, EN, VMID};

/// A vCPU with an ECMDQ of 16 entries. It holds `running` during each access: who has it has stopped the guest.
struct Vcpu<'a> {
    running: &'a Mutex<()>,
    block: SharedRegion,
    ram: SharedRegion,
}

impl Vcpu<'_> {
    fn access<T>(&self, access: impl FnOnce(&Self) -> T) -> T {
        let _running = self.running.lock().unwrap();
        access(self)
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        wait_for(what, || self.access(&done));
    }

    fn put(&self, index: u32, Command([low, high]): Command) {
        let at = 16 * (index & 15) as usize;
        self.access(|vcpu| vcpu.ram.store_u64(at, low, Release));
        self.access(|vcpu| vcpu.ram.store_u64(at + 8, high, Release));
    }

    /// Sends two pages and a CMD_SYNC whose MSI clears its own slot, over and over, as Linux does: `groups` times at least, and
    /// until it is enough. Says how often.
    fn drive(&self, groups: u64, enough: impl Fn() -> bool) -> u64 {
        self.access(|vcpu| vcpu.block.store_u64(0, RAM | 4, Release));
        self.access(|vcpu| vcpu.block.store_u32(8, EN, Release));
        self.wait("ENACK is there", |vcpu| vcpu.block.load_u32(12, Acquire) & EN != 0);
        let (mut prod, mut group) = (0, 0);
        while group < groups || !enough() {
            let slot = 16 * u64::from((prod + 2) & 15);
            self.put(prod, nh_page(2 * group));
            self.put(prod + 1, nh_page(2 * group + 1));
            self.put(prod + 2, sync_msi(RAM + slot, 0));
            prod = (prod + 3) & 31;
            self.access(|vcpu| vcpu.block.store_u32(8, EN | prod, Release));
            self.wait("the MSI is there", |vcpu| vcpu.ram.load_u32(slot as usize, Acquire) == 0);
            self.access(|vcpu| assert_eq!(vcpu.block.load_u32(12, Acquire), EN | prod));
            group += 1;
        }
        group
    }
}

/// The host's end until told to stop: every page once and in order, and nothing else but what a restore brings.
fn execute(host: &mut RingConsumer, stop: &AtomicBool) -> u64 {
    let mut pages = 0;
    let full = vm::Vm::full_invalidation();
    while !stop.load(Relaxed) {
        let taken = host.poll(|commands| {
            for command in commands.iter().filter(|command| **command != HOST_SYNC && !full.contains(command))
            {
                assert_eq!(*command, host_page(VMID, pages));
                pages += 1;
            }
        });
        if taken == 0 {
            thread::yield_now();
        }
    }
    pages
}

/// Stops the guest, pauses, saves twice, at times takes the state over in place, and resumes.
fn save_again_and_again(smmu: &VirtualSmmu, running: &Mutex<()>, done: &AtomicBool, saves: &AtomicU64) {
    while !done.load(Relaxed) {
        let stopped = running.lock().unwrap();
        smmu.pause();
        let (before, saved) = (smmu.inspect().to_string(), smmu.save().unwrap());
        thread::yield_now();
        assert_eq!(smmu.save().unwrap(), saved, "the worker has gone on");
        assert_eq!(smmu.inspect().to_string(), before);
        if saves.load(Relaxed).is_multiple_of(7) {
            smmu.restore(&saved).unwrap();
        }
        smmu.resume();
        drop(stopped);
        saves.fetch_add(1, Relaxed);
        thread::yield_now();
    }
}

#[test]
fn a_guest_that_is_saved_while_it_runs_loses_nothing() {
    const GROUPS: u64 = 1_500;
    const SAVES: u64 = 20;
    let asked = Arc::default();
    let (smmu, ram) = vm::smmu(vm::features(), asked);
    let block = vm::map_control_pages(&smmu).part(0x8000, 16).unwrap();
    let (ring, mut host) = NativeRing::with_consumer(6).unwrap();
    let mut worker = Worker::new(ring);
    worker.attach(smmu.clone()).unwrap();
    let running = Mutex::new(());
    let (stop, done, saves) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (pages, groups) = thread::scope(|scope| {
        scope.spawn(|| worker.run(&stop));
        let host = scope.spawn(|| execute(&mut host, &stop));
        let stopping = SetOnDrop(&stop);
        let saving = scope.spawn(|| save_again_and_again(&smmu, &running, &done, &saves));
        let guest = SetOnDrop(&done);
        let enough = || saves.load(Relaxed) >= SAVES || saving.is_finished();
        let groups = Vcpu { running: &running, block, ram }.drive(GROUPS, enough);
        drop(guest);
        saving.join().unwrap();
        drop(stopping);
        (host.join().unwrap(), groups)
    });
    assert_eq!(pages, 2 * groups);
}
