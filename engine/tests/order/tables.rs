//! A guest's tables: context descriptors, which point to translation tables. Each value knows when it was written.

use std::cell::Cell;
use std::rc::Rc;

/// CPUs of the guest. Each has streams and address spaces of its own, and puts what it invalidates into one of the queues.
pub const CPUS: usize = 6;
const STREAMS_OF_CPU: usize = 2;
pub const SUBSTREAMS: usize = 2;
/// Streams with a PASID: each has a context descriptor. `StreamID * SUBSTREAMS + SubstreamID` is its number.
pub const CONTEXTS: usize = CPUS * STREAMS_OF_CPU * SUBSTREAMS;
pub const CONTEXTS_OF_CPU: usize = CONTEXTS / CPUS;
/// Address spaces: an ASID and a translation table. Their number is the ASID.
pub const SPACES: usize = CPUS * SPACES_OF_CPU;
pub const SPACES_OF_CPU: usize = 3;
/// Pages of an address space.
pub const PAGES: usize = 8;

/// A time: how many changes there were before.
pub type Time = u64;

/// When each translation was written. Those of a table that is no longer used stay as they are.
pub type Table = [Cell<Time>; PAGES];

/// A context descriptor.
#[derive(Clone)]
pub struct Cd {
    pub written: Time,
    pub space: usize,
    pub table: Rc<Table>,
}

/// All of it.
pub struct Tables {
    now: Time,
    cds: Vec<Cd>,
    /// The table of each address space.
    spaces: Vec<Rc<Table>>,
}

impl Tables {
    pub fn new() -> Self {
        let spaces: Vec<Rc<Table>> = (0..SPACES).map(|_| Rc::default()).collect();
        let cd = |context| {
            let space = context / CONTEXTS_OF_CPU * SPACES_OF_CPU;
            Cd { written: 0, space, table: spaces[space].clone() }
        };
        Self { now: 0, cds: (0..CONTEXTS).map(cd).collect(), spaces }
    }

    pub fn cd(&self, context: usize) -> &Cd {
        &self.cds[context]
    }

    /// The contexts whose descriptors point to an address space.
    pub fn users(&self, space: usize) -> Vec<usize> {
        (0..CONTEXTS).filter(|context| self.cds[*context].space == space).collect()
    }

    /// A page of an address space gets another translation.
    pub fn map(&mut self, space: usize, page: usize) -> Time {
        self.now += 1;
        self.spaces[space][page].set(self.now);
        self.now
    }

    /// A context gets another address space.
    pub fn attach(&mut self, context: usize, space: usize) -> Time {
        self.now += 1;
        self.cds[context] = Cd { written: self.now, space, table: self.spaces[space].clone() };
        self.now
    }

    /// An address space gets another table, to which the descriptors of its users then point.
    pub fn replace(&mut self, space: usize) -> Time {
        self.now += 1;
        self.spaces[space] = Rc::new([(); PAGES].map(|()| Cell::new(self.now)));
        for cd in self.cds.iter_mut().filter(|cd| cd.space == space) {
            *cd = Cd { written: self.now, space, table: self.spaces[space].clone() };
        }
        self.now
    }
}
