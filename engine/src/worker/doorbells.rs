//! The doorbells of all guests: which are looked at in a sweep.
//!
//! Polling one idle queue is a cached load; polling hundreds in every sweep delays the active ones. So the doorbells of each guest are in two parts:
//! active ones, which are looked at in every sweep, 512 of a guest at the most, and quiet ones, of which a few are looked at, guest after guest,
//! or all if there is nothing else to do. A guest with many queues costs the others no more than one with few.

use std::sync::atomic::Ordering::Relaxed;

use ecmdq_ring::SharedWord;

/// Sweeps in which a doorbell has not rung after which it is quiet.
const PATIENCE: u32 = 64;
/// How many active ones of a guest are looked at in a sweep at the most.
const MOST: usize = 512;
/// How many quiet ones of a guest are looked at in its turn.
const SLICE: usize = 16;

/// A queue by its guest's place among the worker's, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueId {
    pub guest: usize,
    pub queue: usize,
}

/// How many quiet ones a sweep looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    All,
    /// So many; a guest that has fewer counts as one at least.
    Some(usize),
}

#[derive(Debug)]
struct Doorbell {
    prod: SharedWord,
    /// What PROD was when it was last looked at.
    seen: u32,
    /// The sweep in which it last rang.
    rang: u32,
    queue: u32,
}

/// The doorbells of one guest: the active ones, then the quiet ones.
#[derive(Debug, Default)]
struct List {
    doorbells: Vec<Doorbell>,
    active: usize,
    /// The active one that is looked at first, if they are too many for a sweep.
    first: usize,
    /// The active one that is looked at next for whether it still is.
    oldest: usize,
    /// The quiet one that is looked at next.
    next: usize,
}

/// The doorbells that a worker polls, by guest.
#[derive(Debug, Default)]
pub(super) struct Doorbells {
    guests: Vec<List>,
    /// The guests that have active ones.
    active: Vec<usize>,
    /// The guest whose quiet ones are looked at next.
    next: usize,
    sweep: u32,
}

impl Doorbells {
    /// Adds the doorbells of a guest behind the others.
    pub fn add(&mut self, doorbells: impl IntoIterator<Item = SharedWord>) {
        let doorbell = |(queue, prod): (u32, SharedWord)| {
            // Relaxed: the queue is looked at once, whatever its PROD.
            let seen = prod.load(Relaxed);
            Doorbell { prod, seen, rang: self.sweep, queue }
        };
        let doorbells = (0..).zip(doorbells).map(doorbell).collect();
        self.guests.push(List { doorbells, ..List::default() });
        self.active.reserve(self.guests.len());
    }

    /// Removes those of a guest; the guests behind it move up.
    pub fn remove(&mut self, guest: usize) {
        self.guests.remove(guest);
        self.active.retain(|active| *active != guest);
        self.active.iter_mut().filter(|active| **active > guest).for_each(|active| *active -= 1);
    }

    /// One sweep: looks at the active ones, and at quiet ones. Calls `rings` for each that has rung.
    #[inline]
    pub fn sweep(&mut self, looks: Looks, mut rings: impl FnMut(QueueId)) {
        self.sweep = self.sweep.wrapping_add(1);
        let Self { guests, active, sweep, .. } = self;
        active.retain(|guest| {
            let list = &mut guests[*guest];
            list.look_at_active(*guest, *sweep, &mut rings);
            list.active > 0
        });
        match looks {
            Looks::All => (0..self.guests.len()).for_each(|guest| {
                self.look_at_quiet(guest, usize::MAX, &mut rings);
            }),
            Looks::Some(n) => self.look_at_some(n, &mut rings),
        }
    }

    /// Looks at some quiet ones, guest after guest; at each guest once at the most.
    fn look_at_some(&mut self, mut n: usize, rings: &mut impl FnMut(QueueId)) {
        for _ in 0..self.guests.len() {
            if n == 0 {
                return;
            }
            self.next = if self.next + 1 < self.guests.len() { self.next + 1 } else { 0 };
            let looked = self.look_at_quiet(self.next, n.min(SLICE), rings);
            n = n.saturating_sub(looked.max(1));
        }
    }

    /// Looks at some quiet ones of a guest; those that have rung are active. Says how many there were.
    #[inline]
    fn look_at_quiet(&mut self, guest: usize, n: usize, rings: &mut impl FnMut(QueueId)) -> usize {
        let list = &mut self.guests[guest];
        let before = list.active;
        let looked = list.look_at_quiet(n, guest, self.sweep, rings);
        if before == 0 && list.active > 0 {
            self.active.push(guest);
        }
        looked
    }
}

impl List {
    #[inline]
    fn look_at_active(&mut self, guest: usize, sweep: u32, rings: &mut impl FnMut(QueueId)) {
        if self.active <= MOST {
            self.look(0, self.active, guest, sweep, rings);
        } else {
            // The end of the list ends a turn, too.
            let end = self.active.min(self.first + MOST);
            self.look(self.first, end, guest, sweep, rings);
            self.first = if end < self.active { end } else { 0 };
        }
        self.retire(sweep);
    }

    /// The next quiet ones, the first again behind the last.
    #[inline]
    fn look_at_quiet(
        &mut self,
        n: usize,
        guest: usize,
        sweep: u32,
        rings: &mut impl FnMut(QueueId),
    ) -> usize {
        let quiet = self.active..self.doorbells.len();
        if n >= quiet.len() {
            self.look(quiet.start, quiet.end, guest, sweep, rings);
            return quiet.len();
        }
        let first = if quiet.contains(&self.next) { self.next } else { quiet.start };
        let end = quiet.end.min(first + n);
        self.look(first, end, guest, sweep, rings);
        self.next = end;
        end - first
    }

    /// Looks at some; a quiet one that has rung is active.
    #[inline]
    fn look(
        &mut self,
        mut first: usize,
        end: usize,
        guest: usize,
        sweep: u32,
        rings: &mut impl FnMut(QueueId),
    ) {
        // Relaxed: whoever takes commands loads PROD once more.
        let rung = |doorbell: &Doorbell| doorbell.prod.load(Relaxed) != doorbell.seen;
        while let Some(n) = self.doorbells.get(first..end).and_then(|some| some.iter().position(rung)) {
            let (at, doorbell) = (first + n, &mut self.doorbells[first + n]);
            (doorbell.seen, doorbell.rang) = (doorbell.prod.load(Relaxed), sweep);
            rings(QueueId { guest, queue: doorbell.queue as usize });
            if at >= self.active {
                self.doorbells.swap(at, self.active);
                self.active += 1;
            }
            first = at + 1;
        }
    }

    /// Looks at a few active ones for whether they have rung lately; those that have not are quiet.
    #[inline]
    fn retire(&mut self, sweep: u32) {
        for _ in 0..self.active / PATIENCE as usize + 1 {
            self.oldest = if self.oldest < self.active { self.oldest } else { 0 };
            match self.doorbells.get(self.oldest) {
                Some(doorbell) if sweep.wrapping_sub(doorbell.rang) >= PATIENCE && self.active > 0 => {
                    self.active -= 1;
                    self.doorbells.swap(self.oldest, self.active);
                }
                _ => self.oldest += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use ecmdq_ring::{SharedRegion, SharedWord};

    use super::{Doorbells, Looks, MOST, PATIENCE, QueueId, SLICE};

    /// A list with the doorbells of guests that have so many each, and their memory.
    fn doorbells(guests: &[usize]) -> (Doorbells, Vec<SharedRegion>) {
        let memory: Vec<_> = guests.iter().map(|n| SharedRegion::from_words(vec![0; *n])).collect();
        let mut doorbells = Doorbells::default();
        for (memory, n) in memory.iter().zip(guests) {
            doorbells.add((0..*n).filter_map(|n| SharedWord::new(memory.clone(), 8 * n)));
        }
        (doorbells, memory)
    }

    fn ring(memory: &SharedRegion, n: usize) {
        memory.store_u32(8 * n, memory.load_u32(8 * n, Relaxed) + 1, Relaxed);
    }

    /// Who is found to have rung in one sweep.
    fn sweep(doorbells: &mut Doorbells, looks: Looks) -> Vec<(usize, usize)> {
        let mut rung = Vec::new();
        doorbells.sweep(looks, |QueueId { guest, queue }| rung.push((guest, queue)));
        rung
    }

    fn rest(doorbells: &mut Doorbells) {
        (0..2 * PATIENCE).for_each(|_| drop(sweep(doorbells, Looks::Some(0))));
        assert!(doorbells.active.is_empty());
    }

    #[test]
    fn each_ring_is_found_once() {
        let (mut doorbells, memory) = doorbells(&[1, 3]);
        assert_eq!(sweep(&mut doorbells, Looks::All), []);
        ring(&memory[1], 2);
        assert_eq!(sweep(&mut doorbells, Looks::All), [(1, 2)]);
        assert_eq!(sweep(&mut doorbells, Looks::All), []);
    }

    #[test]
    fn a_quiet_one_is_found_at_once_if_all_are_looked_at_and_else_in_its_turn() {
        const ALL: usize = 1000;
        let (mut doorbells, memory) = doorbells(&[ALL]);
        for n in [0, 500, ALL - 1] {
            ring(&memory[0], n);
            assert_eq!(sweep(&mut doorbells, Looks::All), [(0, n)]);
            rest(&mut doorbells);
            for looks in [1, SLICE, 100] {
                ring(&memory[0], n);
                let sweeps = (1..=ALL).find(|_| sweep(&mut doorbells, Looks::Some(looks)) == [(0, n)]);
                let most = ALL.div_ceil(looks.min(SLICE)) + 1;
                assert!(sweeps.is_some_and(|sweeps| sweeps <= most), "{n}, {looks}: {sweeps:?}");
                rest(&mut doorbells);
            }
        }
    }

    #[test]
    fn a_guest_with_many_quiet_ones_keeps_the_others_waiting_no_longer_than_one_with_few() {
        let (mut doorbells, memory) = doorbells(&[10_000, 1, 10_000]);
        for _ in 0..10 {
            ring(&memory[1], 0);
            let sweeps = (1..100).find(|_| sweep(&mut doorbells, Looks::Some(SLICE)) == [(1, 0)]);
            assert!(sweeps.is_some_and(|sweeps| sweeps <= 3), "{sweeps:?}");
            rest(&mut doorbells);
        }
    }

    #[test]
    fn of_many_active_ones_so_many_are_looked_at_and_then_the_next() {
        const ALL: usize = 3 * MOST;
        let (mut doorbells, memory) = doorbells(&[ALL]);
        (0..ALL).for_each(|n| ring(&memory[0], n));
        assert_eq!(sweep(&mut doorbells, Looks::All).len(), ALL);
        for _ in 0..3 {
            (0..ALL).for_each(|n| ring(&memory[0], n));
            let mut found: Vec<_> = (0..3).map(|_| sweep(&mut doorbells, Looks::Some(0))).collect();
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [MOST; 3]);
            found.concat().sort_unstable();
            let mut all = std::mem::take(&mut found).concat();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), ALL, "each once");
        }
    }

    #[test]
    fn one_that_rings_now_and_then_stays_active() {
        let (mut doorbells, memory) = doorbells(&[100]);
        for n in 0..10 * PATIENCE {
            if n.is_multiple_of(PATIENCE / 2) {
                ring(&memory[0], 42);
            }
            let looks = if n < PATIENCE { Looks::All } else { Looks::Some(0) };
            assert_eq!(sweep(&mut doorbells, looks).len(), usize::from(n.is_multiple_of(PATIENCE / 2)));
        }
        assert_eq!(doorbells.guests[0].active, 1);
    }

    #[test]
    fn those_of_a_guest_that_goes_are_forgotten_and_those_behind_it_move_up() {
        let (mut doorbells, memory) = doorbells(&[2, 1, 2]);
        (0..3).for_each(|guest| ring(&memory[guest], 0));
        assert_eq!(sweep(&mut doorbells, Looks::All).len(), 3);
        doorbells.remove(1);
        ring(&memory[1], 0);
        ring(&memory[2], 0);
        assert_eq!(sweep(&mut doorbells, Looks::Some(0)), [(1, 0)]);
    }
}
