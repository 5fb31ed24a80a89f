//! Several workers' producers on one native ring, on threads: nothing is lost, torn or out of order, and a ticket is
//! reached only when what it covers has been executed.

#[path = "common/wait.rs"]
mod wait;

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;

use ecmdq_engine::host::{HostQueue, NativeRing};
use ecmdq_engine::{Command, Opcode};
use wait::wait_for;

const EACH: u64 = 20_000;

/// Command `i` of a producer: a TLBI whose VMID is the producer, and whose words contradict each other if it is torn.
fn command(producer: u64, i: u64) -> Command {
    Command([0x12 | producer << 32, i << 12])
}

/// Sends everything in batches of different sizes, with a ticket after each; says how many were shared with others.
fn produce(ring: &mut NativeRing, producer: u64, executed: &AtomicUsize) -> u64 {
    let mut sent = 0;
    while sent < EACH {
        let end = EACH.min(sent + 1 + sent % 7);
        let batch: Vec<_> = (sent..end).map(|i| command(producer, i)).collect();
        sent += ring.submit(&batch) as u64;
        let ticket = ring.sync();
        wait_for("a ticket is reached", || ring.completed() >= ticket);
        assert_eq!(ring.failure(ticket), None);
        // Acquire: pairs with the host's release.
        assert!(executed.load(Acquire) as u64 >= sent, "reached before it was executed");
    }
    ring.merged()
}

#[test]
fn producers_on_threads_share_a_small_ring() {
    const PRODUCERS: u64 = 3;
    let (rings, mut smmu) = NativeRing::several_with_consumer(4, PRODUCERS as u32).unwrap();
    let executed: Vec<_> = (0..PRODUCERS).map(|_| AtomicUsize::new(0)).collect();
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let senders: Vec<_> = (0..)
            .zip(rings)
            .map(|(producer, mut ring)| {
                let executed = &executed[producer as usize];
                scope.spawn(move || produce(&mut ring, producer, executed))
            })
            .collect();
        let host = scope.spawn(|| {
            let mut next = vec![0; PRODUCERS as usize];
            while senders.iter().any(|sender| !sender.is_finished()) {
                let n = smmu.poll(|commands| {
                    for got in commands.iter().filter(|command| command.opcode() != Opcode::CMD_SYNC) {
                        let producer = got.0[0] >> 32;
                        if *got != command(producer, next[producer as usize]) {
                            wrong.lock().unwrap().push(*got);
                        }
                        next[producer as usize] += 1;
                        executed[producer as usize].fetch_add(1, Release);
                    }
                });
                if n == 0 {
                    thread::yield_now();
                }
            }
            assert!(next.iter().all(|next| *next == EACH), "{next:?}");
            senders.into_iter().map(|sender| sender.join().unwrap()).sum::<u64>()
        });
        println!("{} CMD_SYNCs were shared", host.join().unwrap());
    });
    assert_eq!(*wrong.lock().unwrap(), []);
}
