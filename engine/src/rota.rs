//! Which of many to look at: those that had something to do lately in every sweep, the others a few at a time.
//!
//! A look at an idle queue costs a load that is in nobody's way, but of hundreds there is one too many for the busy one beside
//! them. Whoever has had nothing for a while is looked at in turn with others like it; if nobody has anything, all are looked at.

/// Sweeps without anything to do after which one counts as quiet.
const PATIENCE: u8 = 64;
/// After so many units of work for others quiet ones are looked at. A sweep counts as a few at least.
const WORK: u64 = 512;
const SWEEP: u64 = WORK / 16;

/// So few are all looked at in each sweep.
const FEW: usize = 2;

/// The numbers from 0 to `len`, as they are to be visited.
#[derive(Debug)]
pub(crate) struct Rota {
    /// How many quiet ones are looked at in one of these sweeps.
    slice: usize,
    /// How many of those that are not quiet have a turn in a sweep at the most.
    most: usize,
    /// They are so few that all are looked at: all count as lively.
    few: bool,
    /// Sweeps without anything to do, by number.
    quiet_for: Vec<u8>,
    /// Those that are not quiet.
    lively: Vec<usize>,
    /// Where among them the turns begin.
    first: usize,
    /// How many of them there were at the beginning of this sweep; others have become lively in it.
    len: usize,
    /// How many of them have a turn in this sweep.
    turns: usize,
    /// The quiet ones that have a turn in this sweep, behind those.
    looks: Vec<usize>,
    /// A lively one has become quiet in this sweep.
    quieted: bool,
    /// The quiet one whose turn is next.
    next: usize,
    /// Work that has been done since quiet ones were last looked at.
    work: u64,
}

impl Rota {
    /// `len` numbers, none of them quiet. All memory is there afterwards.
    pub fn new(len: usize, slice: usize, most: usize) -> Self {
        Self {
            slice,
            most,
            few: len <= FEW.min(slice),
            quiet_for: vec![0; len],
            lively: (0..len).collect(),
            first: 0,
            len: 0,
            turns: 0,
            looks: Vec::with_capacity(len),
            quieted: false,
            next: 0,
            work: 0,
        }
    }

    /// From now on there are `len` numbers, which may mean others than before.
    pub fn resize(&mut self, len: usize) {
        *self = Self::new(len, self.slice, self.most);
    }

    /// A new sweep, over all or those whose turn it is, after so much work in the last one; says how many turns it has. Where none
    /// is lively, four slices are looked at.
    #[inline]
    pub fn begin(&mut self, all: bool, work: u64) -> usize {
        self.len = self.lively.len();
        self.turns = if all { self.len } else { self.len.min(self.most) };
        if !self.few {
            self.look(all, work);
        }
        self.turns + self.looks.len()
    }

    /// Finds the quiet ones that have a turn.
    fn look(&mut self, all: bool, work: u64) {
        let Self { slice, quiet_for, lively, looks, next, work: done, .. } = self;
        looks.clear();
        let len = quiet_for.len();
        *done += work.max(SWEEP);
        let slices = (*done / WORK) as usize;
        *done %= WORK;
        let n = match () {
            () if all => len,
            () if lively.is_empty() => len.min(4 * *slice),
            () => len.min(slices * *slice),
        };
        if lively.len() == len {
            return;
        }
        for _ in 0..n {
            let number = *next;
            *next = if number + 1 == len { 0 } else { number + 1 };
            if quiet_for[number] >= PATIENCE {
                looks.push(number);
            }
        }
    }

    /// Whose turn it is.
    #[inline]
    pub fn turn(&self, turn: usize) -> usize {
        let at = self.first + turn;
        let number = match turn < self.turns {
            true => self.lively.get(if at < self.len { at } else { at - self.len }),
            false => self.looks.get(turn - self.turns),
        };
        number.copied().unwrap_or(0)
    }

    /// Whether one is looked at though it has had nothing for a while.
    #[inline]
    pub fn is_look(&self, turn: usize) -> bool {
        turn >= self.turns
    }

    /// The turn of the first of those.
    #[inline]
    pub fn first_look(&self) -> usize {
        self.turns
    }

    /// Whether the one whose turn it was has something to do, or waits for something.
    #[inline]
    pub fn note(&mut self, number: usize, lively: bool) {
        let Some(quiet_for) = self.quiet_for.get_mut(number) else { return };
        let before = std::mem::replace(quiet_for, if lively { 0 } else { quiet_for.saturating_add(1) });
        self.quieted |= *quiet_for == PATIENCE;
        if lively && before >= PATIENCE && !self.few {
            self.lively.push(number);
        }
    }

    /// Nobody whose turn it was has anything to do.
    pub fn rest(&mut self) {
        let Self { quiet_for, lively, first, turns, looks, quieted, .. } = self;
        for number in lively.iter().cycle().skip(*first).take(*turns).chain(&*looks) {
            quiet_for[*number] = quiet_for[*number].saturating_add(1);
            *quieted |= quiet_for[*number] == PATIENCE;
        }
    }

    /// Whether nobody has had anything for a while.
    pub fn is_quiet(&self) -> bool {
        if self.few {
            self.quiet_for.iter().all(|quiet_for| *quiet_for >= PATIENCE)
        } else {
            self.lively.is_empty()
        }
    }

    /// The end of the sweep. Another one is the first in the next: whoever was denied something, else the first that had no turn, else the
    /// second.
    #[inline]
    pub fn end(&mut self, denied: Option<usize>) {
        let step = if self.turns < self.len { self.turns } else { 1 };
        self.first = if self.first + step < self.len { self.first + step } else { 0 };
        if denied.is_some() || self.quieted {
            self.rearrange(denied);
        }
    }

    fn rearrange(&mut self, denied: Option<usize>) {
        let Self { quiet_for, lively, first, .. } = self;
        let whose = denied.or(lively.get(*first).copied());
        if std::mem::take(&mut self.quieted) && !self.few {
            lively.retain(|number| quiet_for[*number] < PATIENCE);
        }
        *first = lively.iter().position(|number| Some(*number) == whose).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::{PATIENCE, Rota, SWEEP, WORK};

    const SLICE: usize = 4;
    const MOST: usize = 1000;

    /// One sweep in which `lively` have something to do, which is hardly any work: who was looked at.
    fn sweep(rota: &mut Rota, lively: &[usize]) -> Vec<usize> {
        after(rota, 1, lively)
    }

    /// The same after so much work.
    fn after(rota: &mut Rota, work: u64, lively: &[usize]) -> Vec<usize> {
        let turns = rota.begin(false, work);
        let seen: Vec<_> = (0..turns).map(|turn| rota.turn(turn)).collect();
        seen.iter().for_each(|number| rota.note(*number, lively.contains(number)));
        rota.end(None);
        seen
    }

    fn sorted(mut numbers: Vec<usize>) -> Vec<usize> {
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn all_are_looked_at_until_they_have_been_quiet_for_a_while_and_each_is_the_first_in_turn() {
        let mut rota = Rota::new(3, SLICE, MOST);
        let firsts: Vec<_> = (0..6).map(|_| sweep(&mut rota, &[0, 1, 2])[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
        for _ in 0..PATIENCE {
            assert_eq!(sorted(sweep(&mut rota, &[1])), [0, 1, 2]);
        }
    }

    #[test]
    fn beside_a_lively_one_each_quiet_one_is_looked_at_in_its_turn() {
        const ALL: usize = 256;
        let mut rota = Rota::new(ALL, SLICE, MOST);
        (0..PATIENCE).for_each(|_| drop(sweep(&mut rota, &[7])));
        let mut seen = vec![0; ALL];
        let sweeps = ALL / SLICE * (WORK / SWEEP) as usize;
        for _ in 0..sweeps {
            let turns = sweep(&mut rota, &[7]);
            assert!(turns.len() <= 1 + SLICE && turns[0] == 7);
            turns.into_iter().for_each(|number| seen[number] += 1);
        }
        assert_eq!(seen[7], sweeps);
        // With more work for the lively one, the more often.
        let seen_with = after(&mut rota, 3 * WORK, &[7]).len();
        // Its own turn among the others is passed over.
        assert!((3 * SLICE..=1 + 3 * SLICE).contains(&seen_with), "{seen_with}");
        assert!(seen.iter().enumerate().all(|(number, n)| number == 7 || *n == 1));
    }

    #[test]
    fn one_alone_has_every_turn_and_is_quiet_when_it_has_had_nothing_for_a_while() {
        let mut rota = Rota::new(1, SLICE, MOST);
        (0..PATIENCE).for_each(|_| {
            assert!(!rota.is_quiet());
            assert_eq!(sweep(&mut rota, &[]), [0]);
        });
        assert!(rota.is_quiet());
        (0..3).for_each(|_| assert_eq!(sweep(&mut rota, &[0]), [0]));
        assert!(!rota.is_quiet());
    }

    #[test]
    fn a_quiet_one_that_has_something_is_lively_again() {
        let mut rota = Rota::new(100, SLICE, MOST);
        (0..PATIENCE).for_each(|_| drop(sweep(&mut rota, &[7])));
        while !sweep(&mut rota, &[7, 50]).contains(&50) {}
        (0..10).for_each(|_| assert!(sweep(&mut rota, &[7, 50]).contains(&50)));
    }

    #[test]
    fn if_nobody_has_anything_more_are_looked_at_and_all_if_wanted() {
        let mut rota = Rota::new(100, SLICE, MOST);
        (0..PATIENCE).for_each(|_| drop(sweep(&mut rota, &[])));
        assert!(rota.is_quiet());
        // Sixteen at a time, each as often as any other.
        let turns: Vec<_> = (0..25).flat_map(|_| sweep(&mut rota, &[])).collect();
        assert_eq!(sorted(turns), (0..100).flat_map(|number| [number; 4]).collect::<Vec<_>>());
        assert_eq!(rota.begin(true, 0), 100);
    }

    #[test]
    fn of_many_lively_ones_so_many_have_a_turn_and_then_the_next() {
        let mut rota = Rota::new(25, SLICE, 10);
        let all: Vec<_> = (0..25).collect();
        let sweeps: Vec<_> = (0..4).map(|_| sweep(&mut rota, &all)).collect();
        assert_eq!(sweeps.iter().map(Vec::len).collect::<Vec<_>>(), [10; 4]);
        assert_eq!(sweeps[..2].concat(), all[..20]);
        // Nobody is passed over at the end, nor has a turn twice.
        assert_eq!((sweeps[2][0], sweeps[2][4], sweeps[2][5]), (20, 24, 0));
        let next = sweeps[3][0];
        assert!(next == 0 || next == 5, "{next}");
        assert_eq!(rota.begin(true, 0), 25, "all if wanted");
    }

    #[test]
    fn whoever_was_denied_is_the_first_next_time() {
        let mut rota = Rota::new(4, SLICE, MOST);
        let _ = rota.begin(false, 0);
        (0..4).for_each(|number| rota.note(number, true));
        rota.end(Some(2));
        assert_eq!(sweep(&mut rota, &[0, 1, 2, 3]), [2, 3, 0, 1]);
    }
}
