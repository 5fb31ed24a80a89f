//! The side that adds entries, for a queue with several producers and no lock.
//!
//! 1. A producer *reserves* slots: one compare-and-swap on the head, if there is room.
//! 2. It writes its entries, and *stamps* its first slot with the head that it left: from there on all of it is ready.
//! 3. It counts itself in as *owner*. If nobody was, it walks over everything that is ready, publishes PROD once for all of
//!    it, and counts out as many as had counted in; if more have come meanwhile, it walks again. Whoever finds an owner
//!    there leaves its entries to it.
//!
//! A producer that is the only one does without all that.
//!
//! So a producer that is slow between 1 and 2 delays what others have reserved behind it, and neither blocks them nor corrupts
//! anything; nobody waits for anybody.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::producer::store;
use crate::{AtomicWord, Entry, Index, QueueSize, QueueWords, Role};

/// A word on a cache line of its own: what everybody writes is apart from what everybody reads.
#[repr(align(64))]
struct Line<T>(T);

struct State<A> {
    head: Line<A>,
    owner: Line<A>,
    published: A,
    flags: A,
    synced: A,
    stamps: Box<[A]>,
}

/// Adds entries to a queue that others may add to as well.
///
/// Positions count entries since the beginning and never wrap.
pub struct MultiProducer<W, A = AtomicU64> {
    words: W,
    size: QueueSize,
    state: Arc<State<A>>,
    /// There is no other.
    alone: bool,
}

impl<W: QueueWords + Clone, A: AtomicWord> MultiProducer<W, A> {
    /// All `producers` of an empty queue whose PROD and CONS are both `start`, and whose PROD has `flags` above the index.
    pub fn new(words: W, size: QueueSize, start: Index, flags: u32, producers: usize) -> Vec<Self> {
        let position = u64::from(start.raw());
        let stamps = (0..size.entries()).map(|_| A::new(Role::Stamp, 0)).collect();
        let state = Arc::new(State {
            head: Line(A::new(Role::Head, position)),
            owner: Line(A::new(Role::Owner, 0)),
            published: A::new(Role::Published, position),
            flags: A::new(Role::Flags, flags.into()),
            synced: A::new(Role::Synced, position),
            stamps,
        });
        let producer = |_| Self { words: words.clone(), size, state: state.clone(), alone: producers == 1 };
        (0..producers).map(producer).collect()
    }
}

impl<W: QueueWords, A: AtomicWord> MultiProducer<W, A> {
    /// Whether there is no other producer.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// The size of the queue.
    pub fn size(&self) -> QueueSize {
        self.size
    }

    /// The words of the queue.
    pub fn words(&self) -> &W {
        &self.words
    }

    /// The position of the next entry that anybody reserves.
    pub fn head(&self) -> u64 {
        // Relaxed: a position orders nothing.
        self.state.head.0.load(Relaxed)
    }

    /// The bits of PROD above the index.
    pub fn flags(&self) -> u32 {
        self.state.flags.load(Relaxed) as u32
    }

    /// The position of the first entry that has not been consumed. A CONS word that contradicts PROD is not believed:
    /// then `None`.
    pub fn consumed(&self) -> Option<u64> {
        self.look().map(|(head, used)| head - u64::from(used))
    }

    /// The head, and how many of the entries before it have not been consumed.
    fn look(&self) -> Option<(u64, u32)> {
        let mut head = self.head();
        loop {
            // Acquire: pairs with the consumer's release store of CONS, so that its copies are made before anybody writes
            // those slots again.
            let cons = self.size.index(self.words.load_cons(Acquire));
            match self.size.used(self.size.index(head as u32), cons) {
                Ok(used) if u64::from(used) <= head => return Some((head, used)),
                _ => {}
            }
            // Others may have reserved, and the consumer passed, what is behind the head that we know.
            let now = self.head();
            if now == head {
                return None;
            }
            head = now;
        }
    }

    /// Adds up to `entries.len()` entries, in order and with nothing between them, if that leaves `spare` slots free, and
    /// makes the consumer see them as soon as those before are ready. Returns how many, and the position behind them.
    pub fn add(&self, entries: &[Entry], spare: u32) -> (usize, u64) {
        let (n, end, _) = self.add_with(entries, spare, None::<fn(u64) -> Entry>);
        (n, end)
    }

    /// The same; and behind all of them, if they fit, in a slot that need not be spare, the synchronisation that `sync` makes
    /// of the position behind it. Returns how many of `entries`, the position behind what was added, and whether `sync` was.
    pub fn add_with(
        &self,
        entries: &[Entry],
        spare: u32,
        sync: Option<impl FnOnce(u64) -> Entry>,
    ) -> (usize, u64, bool) {
        let Some((first, n)) = self.reserve(entries.len(), spare, sync.is_some()) else {
            return (0, self.head(), false);
        };
        let end = first + u64::from(n);
        let added = entries.len().min(n as usize);
        store(&self.words, self.size, self.size.index(first as u32), &entries[..added]);
        let synced = n as usize > added;
        if let Some(sync) = sync.filter(|_| synced) {
            self.words.store_entry(self.slot(end - 1), sync(end));
            if !self.alone {
                // Release: pairs with the acquire load in `synced`.
                self.state.synced.store(end, Release);
            }
        }
        self.finish(first, end);
        (added, end, synced)
    }

    /// The position behind a synchronisation that somebody added, and hardly ever an older one than the newest. Whatever is
    /// before that position is covered by it; whatever is added here from now on is behind it.
    pub fn synced(&self) -> u64 {
        // Acquire: pairs with the release store in `add_with`. The synchronisation was reserved before, so that a reservation that
        // is made here afterwards is behind it.
        self.state.synced.load(Acquire)
    }

    /// Makes reserved entries known, which have been written.
    fn finish(&self, first: u64, end: u64) {
        if self.alone {
            return self.store_prod(end);
        }
        // Release: pairs with the acquire load in `walk`: the entries are written when the stamp is seen.
        self.stamp(first).store(end, Release);
        self.publish(false);
    }

    /// As many slots as can be had of `wanted` with `spare` left free, and one more for `sync` if that is all of them.
    fn reserve(&self, wanted: usize, spare: u32, sync: bool) -> Option<(u64, u32)> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        loop {
            let (head, used) = self.look()?;
            let free = self.size.entries().saturating_sub(used);
            let n = wanted.min(free.saturating_sub(spare));
            let n = n + u32::from(sync && n == wanted && n < free);
            if n == 0 {
                return None;
            }
            let new = head + u64::from(n);
            if self.alone {
                self.state.head.0.store(new, Relaxed);
                return Some((head, n));
            }
            // Relaxed: that the slots are free was learnt from CONS, and CONS only moves on.
            if self.state.head.0.compare_exchange(head, new, Relaxed, Relaxed).is_ok() {
                return Some((head, n));
            }
        }
    }

    /// Replaces the bits of PROD above the index, and publishes them.
    pub fn set_flags(&self, flags: u32) {
        // Relaxed: counting in as owner orders it.
        self.state.flags.store(flags.into(), Relaxed);
        if self.alone {
            self.store_prod(self.head());
        } else {
            self.publish(true);
        }
    }

    /// Publishes all that is ready, or leaves it to whoever is doing that. `always` stores PROD even if nothing is.
    fn publish(&self, always: bool) {
        // What asks for the store in any case counts in the upper half.
        let ours = if always { 1 << 32 } else { 1 };
        // Acquire and release: pairs with itself. Who finds an owner there has made its stamp and its flags visible to it; and
        // an owner sees what the one before did.
        let mut seen = self.state.owner.0.fetch_add(ours, AcqRel) + ours;
        if seen != ours {
            return;
        }
        loop {
            self.walk(seen >> 32 != 0);
            match self.state.owner.0.compare_exchange(seen, 0, AcqRel, Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// The owner's: publishes all that is ready.
    fn walk(&self, always: bool) {
        // Relaxed: the owner's own words; see `publish`.
        let before = self.state.published.load(Relaxed);
        let mut ready = before;
        loop {
            // Acquire: pairs with the release store in `add`.
            let end = self.stamp(ready).load(Acquire);
            // A stamp of an earlier time around is at most where we are.
            if end <= ready {
                break;
            }
            ready = end;
        }
        if ready != before || always {
            self.state.published.store(ready, Relaxed);
            self.store_prod(ready);
        }
    }

    fn store_prod(&self, position: u64) {
        // Release: pairs with the consumer's acquire load of PROD, so that it sees the entries.
        self.words.store_prod(self.size.index(position as u32).raw() | self.flags(), Release);
    }

    fn stamp(&self, position: u64) -> &A {
        &self.state.stamps[self.slot(position) as usize]
    }

    /// The slot at a position.
    pub fn slot(&self, position: u64) -> u32 {
        self.size.slot(self.size.index(position as u32))
    }
}

impl<W: fmt::Debug, A> fmt::Debug for MultiProducer<W, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { words, size, .. } = self;
        f.debug_struct("MultiProducer").field("words", words).field("size", size).finish_non_exhaustive()
    }
}
