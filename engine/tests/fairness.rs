//! Who gets how much of a worker, counted in commands at the host and not in time.

mod common;

use common::*;
use ecmdq_engine::{Command, Share};

/// Units of cost that a guest of weight 1 gets in a sweep, and by how much a batch of cheap commands may overdraw them.
const QUANTUM: usize = 512;
const OVERDRAW: usize = 63;
/// Commands that wait for the host at most.
const OUTBOX: usize = 512;
/// The flooder's queue has 2^13 entries, a victim's 2^4.
const LOG2: u32 = 13;
const VICTIMS: usize = 31;

/// TLBI_NH_VAA, which costs 1.
const CHEAP: Command = Command([0x13, 0x1701]);

/// Fills the whole ring of a guest whose queue is empty at index 0, with one command.
fn fill(guest: &Guest, log2: u32, command: Command) {
    (0..1 << log2).for_each(|index| guest.put(index, command));
    keep_full(guest, log2);
}

/// Rings for everything that has been taken, once more: the entries are there still.
fn keep_full(guest: &Guest, log2: u32) {
    guest.write(reg::CMDQ_PROD, guest.cons() ^ 1 << log2);
}

/// Guests that flood their CMDQs, each with a share and a command of its own.
struct Flood {
    rig: Rig,
    log2: u32,
}

impl Flood {
    fn new(host: Script, log2: u32, guests: &[(Share, Command)]) -> Self {
        let mut rig = Rig::new(0, log2, host);
        for (vmid, (share, _)) in (1..).zip(guests) {
            let setup = Rig::ats_setup(vmid);
            let (mut guest, smmu) = Guest::new(setup);
            rig.worker.attach_sharing(smmu, None, *share).unwrap();
            guest.write(reg::CR0, SMMUEN);
            guest.start(log2);
            rig.poll_times(2);
            assert!(guest.enabled());
            rig.guests.push(guest);
        }
        // Nobody has begun before.
        rig.guests.iter().zip(guests).for_each(|(guest, (_, command))| fill(guest, log2, *command));
        Self { rig, log2 }
    }

    fn sweeps(&mut self, n: usize) {
        for _ in 0..n {
            self.rig.poll();
            self.rig.guests.iter().for_each(|guest| keep_full(guest, self.log2));
        }
    }

    /// As many sweeps as it takes.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..200_000 {
            if done(self) {
                return;
            }
            self.sweeps(1);
        }
        panic!("somebody starves: {:?}", self.forwarded());
    }

    fn forwarded(&self) -> Vec<u64> {
        self.rig.guests.iter().map(|guest| guest.stats.read().forwarded).collect()
    }
}

/// 1 if all are equal, 1/n if one has everything.
fn jain(shares: &[u64]) -> f64 {
    let shares = || shares.iter().map(|n| *n as f64);
    shares().sum::<f64>().powi(2) / (shares().map(|n| n * n).sum::<f64>() * shares().count() as f64)
}

fn assert_fair(shares: &[u64]) {
    assert!(shares.iter().all(|n| *n > 0) && jain(shares) >= 0.99, "{:.4}: {shares:?}", jain(shares));
}

/// Guest 0 floods; all others send one TLBI and a CMD_SYNC, and again when it is complete. The longest that one waited, in
/// commands that the host got meanwhile; each waits `rounds` times. They pause for `quiet` sweeps in between.
fn worst_wait(host: Script, rounds: usize, quiet: usize) -> usize {
    let mut rig = Rig::new(0, 0, host);
    rig.add(Setup { vmid: 1, ..Setup::default() }, LOG2);
    for vmid in 2..2 + VICTIMS as u16 {
        rig.add(Setup { vmid, ..Setup::default() }, 4);
    }
    fill(&rig.guests[0], LOG2, CHEAP);
    rig.poll_times(3);
    let mut worst = 0;
    for _ in 0..rounds {
        let since = rig.host.received().len();
        rig.guests[1..].iter_mut().for_each(|victim| victim.send(&[CHEAP, sync()]));
        let mut waiting: Vec<_> = (1..=VICTIMS).collect();
        // An upper bound of the upper bound: it does not hang.
        for _ in 0..100_000 {
            keep_full(&rig.guests[0], LOG2);
            rig.poll();
            let now = rig.host.received().len();
            waiting.retain(|victim| rig.cons(*victim) != rig.guests[*victim].prod());
            if waiting.is_empty() {
                worst = worst.max(now - since);
                break;
            }
        }
        assert_eq!(waiting, [0; 0], "these still wait");
        for _ in 0..quiet {
            keep_full(&rig.guests[0], LOG2);
            rig.poll();
        }
    }
    worst
}

/// The bound holds, and says something.
fn assert_within(worst: usize, bound: usize) {
    assert!(worst <= bound && 2 * worst >= bound, "{worst} of at most {bound} commands");
}

#[test]
fn beside_a_flood_a_cmd_sync_waits_for_two_shares_of_the_flooder_at_most() {
    // One sweep takes it, and the next one, which takes another share of the flood, finds it complete.
    let bound = 2 * (QUANTUM + OVERDRAW) + VICTIMS;
    assert_within(worst_wait(Script::at_once(), 50, 0), bound);
}

#[test]
fn beside_a_flood_guests_that_have_been_quiet_wait_for_their_turn_to_be_looked_at_as_well() {
    // 16 of those that have been quiet are looked at in each sweep, and one more for each 32 units of work for others: with the share of a
    // flooder all of them. What is found is complete in the sweep after that.
    let bound = 2 * (QUANTUM + OVERDRAW) + VICTIMS;
    assert_within(worst_wait(Script::at_once(), 5, 140), bound);
}

#[test]
fn before_a_host_that_is_always_full_a_cmd_sync_waits_for_its_backlog_and_two_shares_of_the_flooder_at_most()
{
    for takes in 1..=7 {
        let host = Script::at_once();
        host.take_at_most(takes);
        // What is in the outbox before them, a share of the flooder, the batch that fills the outbox again and may stand
        // before the last of the victims, and what the host takes until the ticket.
        let bound = OUTBOX + (QUANTUM + OVERDRAW) + VICTIMS + 3 * takes;
        assert_within(worst_wait(host, 5, 0), bound);
    }
}

#[test]
fn guests_that_all_flood_get_the_same() {
    let mut flood = Flood::new(Script::at_once(), 10, &[(Share::default(), CHEAP); 32]);
    flood.sweeps(32);
    assert_fair(&flood.forwarded());
}

#[test]
fn guests_that_all_flood_a_host_that_is_always_full_get_the_same() {
    for takes in [1, 4, 7] {
        let host = Script::at_once();
        host.take_at_most(takes);
        let mut flood = Flood::new(host, 10, &[(Share::default(), CHEAP); 32]);
        // As long as it takes for six turns of each.
        flood.until(|flood| flood.rig.host.received().len() >= 6 * 32 * QUANTUM);
        assert_fair(&flood.forwarded());
    }
}

#[test]
fn a_guest_with_many_queues_gets_no_more_than_one_with_few() {
    let mut rig = Rig::new(0, 0, Script::at_once());
    let mut queues = Vec::new();
    for vmid in 1..=32 {
        let setup = Setup { vmid, ..Setup::with(|f| *f = f.with_ecmdqs(0, 4)) };
        rig.add(setup, 4);
        let guest = rig.guests.last().unwrap();
        for number in 0..(usize::from(vmid) - 1) % 16 + 1 {
            let mut queue = guest.ecmdq(number);
            queue.start(8);
            (0..256).for_each(|index| queue.put(index, CHEAP));
            queues.push(queue);
        }
    }
    for _ in 0..64 {
        rig.poll();
        queues.iter().for_each(|queue| queue.write_prod(EN | queue.cons() ^ 256));
    }
    // The rings of 256 bound what a guest with one can send in a sweep: half a share.
    let shares: Vec<_> = rig.guests.iter().map(|guest| guest.stats.read().forwarded).collect();
    for (number, share) in shares.iter().enumerate() {
        let queues = number as u64 % 16 + 1;
        let expected = 62 * (256 * queues).min(512);
        assert!(share.abs_diff(expected) <= 1024, "{queues} queues: {share}, {expected} expected");
    }
    assert_fair(&shares.iter().enumerate().filter(|(n, _)| n % 16 > 0).map(|(_, n)| *n).collect::<Vec<_>>());
}

#[test]
fn weights_are_shares() {
    let weighted = |weight| (Share { weight, ..Share::default() }, CHEAP);
    for takes in [usize::MAX, 7] {
        let host = Script::at_once();
        host.take_at_most(takes);
        let mut flood = Flood::new(host, LOG2, &[weighted(1), weighted(2), weighted(4)]);
        flood.until(|flood| flood.rig.host.received().len() >= 60 * 7 * QUANTUM);
        let shares = flood.forwarded();
        let total: u64 = shares.iter().sum();
        for (share, weight) in shares.iter().zip([1.0, 2.0, 4.0]) {
            let ratio = *share as f64 / total as f64 / (weight / 7.0);
            assert!((0.98..=1.02).contains(&ratio), "{takes}: {shares:?}");
        }
    }
}

#[test]
fn expensive_commands_count_for_more() {
    // What each costs, in units of a TLBI of one address.
    let costs =
        [(CHEAP, 1), (nh_asid(1), 4), (atc_inv(STREAM), 8), (Command([0x10, 0]), 16), (cfgi_cd(STREAM), 2)];
    for takes in [usize::MAX, 7] {
        let host = Script::at_once();
        host.take_at_most(takes);
        let mut flood = Flood::new(host, 10, &costs.map(|(command, _)| (Share::default(), command)));
        flood.until(|flood| flood.forwarded()[0] >= 200 * QUANTUM as u64);
        let units: Vec<_> = flood.forwarded().iter().zip(costs).map(|(n, (_, cost))| n * cost).collect();
        let [least, most] = [units.iter().min().unwrap(), units.iter().max().unwrap()];
        assert!(most - least <= most / 50, "{takes}: {units:?}");
    }
}

#[test]
fn a_batch_ends_where_its_cost_would_exceed_that_of_64_of_the_dearest_commands() {
    // TLBI_NH_ALL, TLBI_NH_ASID: the first batch, which may overdraw the share of 512, and no second one.
    for (command, one_sweep) in [(CHEAP, 512), (Command([0x10, 0]), 64), (nh_asid(1), 256)] {
        let mut flood = Flood::new(Script::at_once(), 10, &[(Share::default(), command)]);
        flood.sweeps(1);
        assert_eq!(flood.forwarded(), [one_sweep], "{command:?}");
    }
}

#[test]
fn a_flood_arrives_in_order_and_nothing_is_lost_however_little_the_host_takes() {
    for takes in [1, 3, 7, 100, usize::MAX] {
        let host = Script::at_once();
        host.take_at_most(takes);
        let mut rig = Rig::new(2, LOG2, host);
        for guest in &mut rig.guests {
            let commands: Vec<_> = (0..8192).map(nh_page).collect();
            guest.send(&commands);
        }
        for _ in 0..20_000 {
            if rig.host.received().len() == 2 * 8192 {
                break;
            }
            rig.poll();
        }
        for vmid in 1..=2 {
            let of_guest = |command: &&Command| command.bits(0, 47, 32) == vmid;
            let received: Vec<_> = rig.host.received().iter().filter(of_guest).copied().collect();
            let expected: Vec<_> = (0..8192).map(|page| host_page(vmid, page)).collect();
            assert!(received == expected, "{takes} at a time");
        }
    }
}
