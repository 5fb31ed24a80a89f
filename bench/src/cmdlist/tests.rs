//! Many vCPUs, an SMMU that takes what they ring for, and what came of it.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::thread;

use ecmdq_ring::Consumer;

use super::*;

const CMDS: usize = 0x4000;
const PAGES: usize = 0x1000;
const BASE: GuestAddress = GuestAddress(0x4000_0000);

/// Commands as they came, the CMD_SYNCs completed as an SMMU does: CONS, and then the MSI.
fn smmu(
    mut consumer: Consumer<SharedQueue>,
    base: u64,
    counts: &[AtomicU64],
    stop: &AtomicBool,
) -> Vec<[u64; 2]> {
    let (mut taken, mut buffer) = (Vec::new(), [[0; 2]; 5]);
    loop {
        let last = stop.load(Relaxed);
        let n = consumer.fetch(consumer.prod(), &mut buffer).expect("PROD and CONS stay consistent");
        for entry in &buffer[..n] {
            if entry[0] & 0xff == 0x12 {
                counts[(entry[0] >> 32) as usize].fetch_add(1, Relaxed);
            }
            consumer.consume(1);
            if entry[0] & 0xff == 0x46 && entry[1] != 0 {
                consumer.words().ring().store_u32((entry[1] - base) as usize, 0, Release);
            }
            taken.push(*entry);
        }
        if n == 0 && last {
            return taken;
        }
        thread::yield_now();
    }
}

fn empty(log2: u32) -> Cmdlist {
    let ring = SharedRegion::from_words(vec![0; CMDS / 8]);
    let pages = SharedRegion::from_words(vec![0; PAGES / 8]);
    let size = QueueSize::from_log2(log2).expect("a size");
    let ring = ring.part(0, size.bytes()).expect("it fits");
    let words = SharedQueue::new(ring, 0, size, pages.clone(), CMDQ_PROD, CMDQ_CONS).expect("it fits");
    Cmdlist::over(words, size, BASE, Registers::Memory(pages))
}

/// So many vCPUs send groups of 0 to 20 commands; each command names its vCPU and has a number.
fn run(log2: u32, vcpus: u64, groups: u64, sync: Sync) {
    let cmdlist = empty(log2);
    let consumer = Consumer::new(cmdlist.words.clone(), cmdlist.size, Index::ZERO);
    let stop = AtomicBool::new(false);
    let counts: Vec<_> = (0..vcpus).map(|_| AtomicU64::new(0)).collect();
    let counts = &counts;
    let (taken, sent) = thread::scope(|scope| {
        let smmu = scope.spawn(|| smmu(consumer, BASE.0, counts, &stop));
        let vcpus: Vec<_> = (0..vcpus)
            .map(|vcpu| {
                let cmdlist = cmdlist.clone();
                scope.spawn(move || {
                    let mut sent = 0;
                    for group in 0..groups {
                        let commands: Vec<_> =
                            (0..group % 21).map(|i| Command([0x12 | vcpu << 32, sent + i])).collect();
                        sent += commands.len() as u64;
                        cmdlist.send(&commands, sync).expect("a CMD_SYNC that completes");
                        // Relaxed: it was counted before CONS passed it.
                        assert_eq!(
                            counts[vcpu as usize].load(Relaxed),
                            sent,
                            "all before the CMD_SYNC was taken"
                        );
                    }
                    sent
                })
            })
            .collect();
        let sent: Vec<_> = vcpus.into_iter().map(|vcpu| vcpu.join()).collect();
        // Also after a panic: else the SMMU would go on for ever.
        stop.store(true, Relaxed);
        (smmu.join().expect("no panic"), sent)
    });
    let sent: Vec<u64> = sent.into_iter().map(|sent| sent.expect("no panic")).collect();
    let mut next = vec![0; sent.len()];
    for [low, number] in taken.iter().filter(|entry| entry[0] & 0xff == 0x12) {
        let next = &mut next[(low >> 32) as usize];
        assert_eq!(number, next, "each once, and in its vCPU's order");
        *next += 1;
    }
    assert_eq!(next, sent);
    let syncs = taken.iter().filter(|entry| entry[0] & 0xff == 0x46).count() as u64;
    assert_eq!(syncs, vcpus * groups);
}

#[test]
fn all_commands_come_once_and_each_vcpus_in_order_many_times_around() {
    for sync in [Sync::Msi, Sync::Cons] {
        run(2, 3, 400, sync);
        run(3, 2, 600, sync);
        run(4, 4, 400, sync);
        // More than one word of marks.
        run(7, 3, 1000, sync);
    }
}

#[test]
fn the_owner_rings_once_for_all_and_not_before_all_are_valid() {
    let cmdlist = empty(2);
    let long_ago = Instant::now() - 2 * TIMEOUT;
    let mut before = 0;
    // Of a queue of four entries, with its wrap bit.
    for end in [3, 6, 1, 4] {
        let owner = cmdlist.reserve(2).expect("room");
        let other = cmdlist.reserve(1).expect("room");
        assert!(!owner.owned && other.owned);
        cmdlist.mark(owner.prod, 2);
        assert!(cmdlist.ring(owner.prod, Patience { since: long_ago, ..cmdlist.patience() }).is_err());
        assert_eq!(cmdlist.words.load_prod(Relaxed), before);
        cmdlist.mark(other.prod, 1);
        cmdlist.ring(owner.prod, cmdlist.patience()).expect("all are valid");
        assert_eq!(cmdlist.words.load_prod(Relaxed), end);
        cmdlist.words.store_cons(end, Release);
        before = end;
    }
}

#[test]
fn one_alone_is_its_own_owner() {
    run(4, 1, 300, Sync::Msi);
}

#[test]
fn vcpus_that_go_by_steps_ring_together() {
    let cmdlist = empty(4);
    let mut vcpus: Vec<_> = (0..3).map(|_| cmdlist.stepped()).collect();
    let mut consumer = Consumer::new(cmdlist.words.clone(), cmdlist.size, Index::ZERO);
    let group = [Command([0x12, 0]), Command([0x2046, 0])];
    // Of a queue of 16 entries, with its wrap bit, several times around.
    for round in 1..=10 {
        assert!(vcpus.iter_mut().all(|vcpu| vcpu.start(&group) && !vcpu.start(&group)));
        let prod = cmdlist.words.load_prod(Relaxed);
        // All write, and the first, which is the owner, rings for all.
        assert!(vcpus.iter_mut().all(|vcpu| !vcpu.step()));
        assert_eq!(cmdlist.words.load_prod(Relaxed), prod);
        assert!(!vcpus[0].step());
        assert_eq!(cmdlist.words.load_prod(Relaxed), 6 * round % 32);
        assert!(vcpus.iter_mut().all(|vcpu| !vcpu.step()), "nothing has completed");
        // CONS passes the CMD_SYNC of the first, then all.
        consumer.consume(2);
        assert!(vcpus[0].step() && !vcpus[1].step() && !vcpus[2].step());
        consumer.consume(4);
        assert!(vcpus.iter_mut().all(|vcpu| vcpu.step()));
    }
}
