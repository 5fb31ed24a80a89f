//! Guests that keep to nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use ecmdq_engine::host::Cause;
use ecmdq_engine::memory::GuestRam;
use ecmdq_engine::{Command, CommandError, Event, EventKind, Vmid};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// Events of one guest that may come at once, and one more for each of these.
const BURST: u128 = 16;
const INTERVAL: Duration = Duration::from_millis(100);
/// There is nothing.
const NOWHERE: u64 = 0x8000_0000;

/// Memory that is there until it is removed.
struct Removable {
    ram: SharedRegion,
    removed: Arc<AtomicBool>,
}

impl GuestRam for Removable {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        let here = !self.removed.load(Relaxed);
        here.then(|| self.ram.part(at.0.checked_sub(RAM)? as usize, len))?
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        self.region(at, 4).map(|word| word.store_u32(0, value.to_le(), Release)).is_some()
    }

    fn refresh(&mut self) {}
}

/// Memory in which every look for a ring panics.
struct Panicking;

impl GuestRam for Panicking {
    fn region(&self, _: GuestAddress, _: usize) -> Option<SharedRegion> {
        panic!("a look at memory panics {ON_PURPOSE}");
    }

    fn store_u32(&self, _: GuestAddress, _: u32) -> bool {
        false
    }

    fn refresh(&mut self) {}
}

#[test]
fn a_panic_in_the_sweep_that_learns_of_a_failure_of_the_host_keeps_it_from_nobody() {
    quiet_panics();
    let mut rig = Rig::new(0, 4, Script::default());
    let (bad, smmu) = Guest::new(Setup { ram: Some(Box::new(Panicking)), ..setup(1) });
    rig.worker.attach(smmu).unwrap();
    rig.guests.push(bad);
    rig.add(setup(2), 4);
    rig.poll_times(3);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll_times(2);
    rig.host.fail(1, Cause::Illegal);
    rig.guests[0].write(CR0, CMDQEN);
    rig.poll_times(3);
    let quarantined = |event: Event| matches!(event.kind, EventKind::Quarantined { .. });
    assert!(rig.worker.events().waiting().any(quarantined));
    rig.host.finish_all();
    rig.poll_times(3);
    assert_eq!((rig.guests[1].error(), rig.cons(1)), (Some(CERROR_ILL), 1));
}

#[test]
fn a_guest_whose_memory_is_removed_while_its_queue_runs_gets_cerror_abt() {
    let ram = SharedRegion::from_words(vec![0; RAM_SIZE as usize / 8]);
    let removed = Arc::<AtomicBool>::default();
    let removable = Removable { ram: ram.clone(), removed: removed.clone() };
    let mut rig = rig(Setup { ram: Some(Box::new(removable)), ..setup(1) });
    rig.guests[0].ram = ram;
    rig.guests[0].start(4);
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll_times(3);
    others_go_on(&mut rig);
    removed.store(true, Relaxed);
    rig.handle(0).memory_changed();
    others_go_on(&mut rig);
    assert_eq!(rig.guests[0].active(), 0, "it has not asked for anything");
    rig.guests[0].write(CMDQ_PROD, 3);
    for aborts in 1..=20 {
        others_go_on(&mut rig);
        let bad = &rig.guests[0];
        assert_eq!((bad.error(), bad.stats.read().aborts), (Some(CERROR_ABT), aborts));
        bad.ack();
    }
    let stopped = EventKind::QueueStopped { queue: 0, error: CommandError::Abt };
    let told = told(&rig);
    assert!(!told.is_empty() && told.iter().all(|event| *event == stopped), "{told:?}");
}

/// Numbers without a pattern, the same ones at each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn beside_a_guest_whose_rings_are_full_of_garbage_others_go_on() {
    let mut rig = rig(setup(1));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut ecmdq = rig.guests[0].ecmdq(0);
    ecmdq.start(8);
    for _ in 0..500 {
        for index in 0..256 {
            // Some are commands, or else nothing would be taken behind the first.
            let garbage = match random.next() % 8 {
                0 => Command([random.next(), random.next()]),
                _ => nh_page(random.next() >> 40),
            };
            rig.guests[0].put(index, garbage);
            ecmdq.put(index, garbage);
        }
        rig.guests[0].write(CMDQ_PROD, random.next() as u32);
        ecmdq.write_prod(EN | random.next() as u32);
        rig.guests[0].ack();
        others_go_on(&mut rig);
    }
    let stats = rig.guests[0].stats.read();
    assert!(stats.rejected > 100 && stats.inconsistent > 100 && stats.forwarded > 100, "{stats:?}");
    let of_queue = |event: &EventKind| {
        matches!(
            event,
            EventKind::Rejected { .. } | EventKind::Inconsistent { .. } | EventKind::QueueStopped { .. }
        )
    };
    let told = told(&rig);
    assert!(!told.is_empty() && told.iter().all(of_queue), "{told:?}");
}

#[test]
fn beside_a_guest_that_reconfigures_its_queues_for_ever_others_go_on() {
    let mut rig = rig(setup(1));
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let ecmdq = rig.guests[0].ecmdq(0);
    let mut toggles = [0, 0];
    for round in 0..2000u32 {
        let bad = &rig.guests[0];
        let base = [RING | 4, RING | 20, NOWHERE | 8, 0, u64::MAX][random.next() as usize % 5];
        bad.write_base(base);
        bad.write(CMDQ_CONS, random.next() as u32);
        bad.write(CMDQ_PROD, random.next() as u32);
        bad.write(CR0, if round % 2 == 0 { 0 } else { CMDQEN });
        ecmdq.write_base(base);
        ecmdq.write_cons(random.next() as u32);
        ecmdq.write_prod(random.next() as u32 & !EN | if round % 2 == 0 { EN } else { 0 });
        others_go_on(&mut rig);
        toggles[0] += u32::from(rig.guests[0].enabled());
        toggles[1] += u32::from(ecmdq.enabled());
        rig.guests[0].ack();
    }
    assert_eq!(toggles, [1000, 1000], "each of them took effect");
}

#[test]
fn beside_64_k_bad_commands_others_go_on_and_the_vmm_hears_of_a_few_and_how_many_there_were() {
    let mut rig = rig(setup(1));
    let events = rig.worker.events();
    let begin = Instant::now();
    rig.guests[0].send(&[illegal()]);
    let (mut told, mut covered, mut exact) = (0, 0, 0);
    for round in 0u64.. {
        rig.poll();
        let bad = &rig.guests[0];
        let rejected = bad.stats.read().rejected;
        assert_eq!((bad.error(), rejected), (Some(CERROR_ILL), round + 1));
        for event in events.waiting() {
            assert_eq!(event.guest, Some(Vmid(1)));
            assert!(matches!(event.kind, EventKind::Rejected { queue: 0, .. }), "{event:?}");
            (told, covered) = (told + 1, covered + 1 + event.left_out);
            // What was left out since the one before, and this one.
            assert_eq!(covered, rejected);
            exact += u64::from(event.left_out > 0);
        }
        if rejected >= 0x1_0000 && exact > 0 {
            break;
        }
        if round % 0x1000 == 0 {
            others_go_on(&mut rig);
        }
        rig.guests[0].ack();
    }
    let most = BURST + 1 + begin.elapsed().as_nanos() / INTERVAL.as_nanos();
    assert!(told <= most, "{told} events, at most {most}");
    // That one guest is not listened to any more says nothing of others.
    rig.guests[1].send(&[illegal()]);
    rig.poll_times(2);
    let of_others: Vec<_> = events.waiting().filter(|event| event.guest != Some(Vmid(1))).collect();
    assert_eq!(
        of_others.iter().map(|event| (event.guest, event.left_out)).collect::<Vec<_>>(),
        [(Some(Vmid(2)), 0)]
    );
}

#[test]
fn beside_a_storm_of_msis_to_nowhere_others_go_on() {
    let mut rig = rig(setup(1));
    let begin = Instant::now();
    let storm = vec![sync_msi(NOWHERE, 1); 16];
    for round in 1..=500 {
        rig.guests[0].send(&storm);
        others_go_on(&mut rig);
        rig.poll_times(20);
        let bad = &rig.guests[0];
        let stats = bad.stats.read();
        assert_eq!(
            (bad.cons(), bad.error()),
            (bad.prod(), None),
            "the queue goes on (facts sheet, section 3)"
        );
        assert_eq!((stats.syncs, stats.msi_aborts, stats.msis), (16 * round, 16 * round, 0));
        assert_eq!(bad.active(), MSI_CMDQ_ABT_ERR);
        bad.ack();
    }
    let told = told(&rig);
    assert!(told.iter().all(|event| *event == EventKind::MsiAborted));
    let most = BURST + 1 + begin.elapsed().as_nanos() / INTERVAL.as_nanos();
    assert!((1..=most).contains(&(told.len() as u128)), "{} events, at most {most}", told.len());
}
