//! Who is looked at in a sweep: a guest whose queues have rung, its queues in turn, as `engine/src/vsmmu/serve.rs` does it.

/// Sweeps without anything to do after which one counts as quiet.
const PATIENCE: u8 = 64;
/// After so much work for others quiet ones are looked at. A sweep counts as a few at least.
const WORK: u64 = 512;
const SWEEP: u64 = WORK / 16;

/// The guests of a worker, or the queues of a guest.
#[derive(Debug)]
pub(super) struct Turns {
    /// How many quiet ones are looked at in one of these sweeps.
    slice: usize,
    quiet_for: Vec<u8>,
    lively: Vec<usize>,
    next: usize,
    work: u64,
}

impl Turns {
    pub fn new(len: usize, slice: usize) -> Self {
        Self { slice, quiet_for: vec![0; len], lively: (0..len).collect(), next: 0, work: 0 }
    }

    /// Those whose turn it is, in `turns`: all, or after so much work in the last sweep.
    pub fn begin(&mut self, all: bool, work: u64, turns: &mut Vec<usize>) {
        let len = self.quiet_for.len();
        turns.clear();
        if len == 1 {
            turns.push(0);
            return;
        }
        turns.extend_from_slice(&self.lively);
        self.work += work.max(SWEEP);
        let slices = (self.work / WORK) as usize;
        self.work %= WORK;
        let looks = match () {
            () if all => len,
            () if self.lively.is_empty() => len.min(4 * self.slice),
            () => len.min(slices * self.slice),
        };
        for _ in 0..looks {
            if self.quiet_for[self.next] >= PATIENCE {
                turns.push(self.next);
            }
            self.next = (self.next + 1) % len;
        }
    }

    /// Whether the one whose turn it was has something to do, or waits for something.
    pub fn note(&mut self, number: usize, lively: bool) {
        if !lively {
            self.quiet_for[number] = self.quiet_for[number].saturating_add(1);
            return;
        }
        if self.quiet_for[number] >= PATIENCE && self.quiet_for.len() > 1 {
            self.lively.push(number);
        }
        self.quiet_for[number] = 0;
    }

    /// Whether nobody has had anything for a while.
    pub fn is_quiet(&self) -> bool {
        match self.quiet_for[..] {
            [quiet_for] => quiet_for >= PATIENCE,
            _ => self.lively.is_empty(),
        }
    }

    /// The end of the sweep: whoever was denied something is the first in the next, else the second.
    pub fn end(&mut self, denied: Option<usize>) {
        let Self { quiet_for, lively, .. } = self;
        if quiet_for.len() == 1 {
            return;
        }
        lively.retain(|number| quiet_for[*number] < PATIENCE);
        let first = match denied {
            Some(denied) => lively.iter().position(|number| *number == denied).unwrap_or(0),
            None => usize::from(lively.len() > 1),
        };
        lively.rotate_left(first);
    }
}
