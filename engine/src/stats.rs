//! Counters of a virtual SMMU, written by whoever has its state locked and read by anyone.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The live counters: one writer at a time, any number of readers, no ordering between counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// What a virtual SMMU has done so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.0.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Commands taken from the guest, CMD_SYNCs included.
    commands,
    /// CMD_SYNCs completed.
    syncs,
    /// Of these, those that sent an MSI.
    msis,
    /// Canonical commands handed to the host queue, without its own CMD_SYNCs.
    forwarded,
    /// Requests to the VMM, by commands and by registers.
    requests,
    /// Requests that the VMM rejected or forgot.
    requests_failed,
    /// Commands without effect: the guest owns no such stream or substream, or the host has no ATS.
    dropped,
    /// Ranges too long for a host without ranges, which became an invalidation of all the guest's entries.
    widened,
    /// Commands that raised CERROR_ILL.
    rejected,
    /// Queue reads that found no memory: CERROR_ABT.
    aborts,
    /// CMD_SYNCs that failed because the host failed to execute commands of this guest.
    host_failures,
    /// MSIs whose address is not guest memory.
    msi_aborts,
    /// Looks at a doorbell that showed PROD further from CONS than the queue is long.
    inconsistent,
    /// Batches taken from the guest.
    batches,
    /// Records put into the event queue and the page request queue.
    recorded,
    /// Records that such a queue had no room or no memory for.
    lost,
}

/// A counter with one writer at a time.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        // Relaxed, and no read-modify-write: writers take turns, and readers need no order.
        self.0.store(self.0.load(Relaxed) + n as u64, Relaxed);
    }
}
