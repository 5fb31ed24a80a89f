//! The queues that an SMMU fills: the event queue, and the page request queue (IHI 0070 §3.5, §7.2, §7.4, §8).
//!
//! Any thread of the VMM records, while the state is locked; the interrupt is the worker's to send, like every other one. BASE, PROD
//! and CONS are looked at anew for each record, which touches no memory but that of its own entry: nothing is kept that a changed
//! memory map, a reset or a restore would have to follow, and whatever the guest writes there, it harms its own memory only.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use ecmdq_ring::QueueSize;
use thiserror::Error;
use vm_memory::GuestAddress;

use super::VirtualSmmu;
use super::calls::Call;
use super::state::State;
use crate::features::Features;
use crate::identity::{HostStreamId, StreamId};
use crate::registers::*;

/// Whose StreamID a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamIdOf {
    /// The guest's: the record is right already, as those of an iommufd vEVENTQ are.
    Guest,
    /// The host's: it is replaced by the guest's, which takes as long as the [`StreamMap`](crate::StreamMap) is large.
    Host,
}

/// Why a record is not in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotRecorded {
    /// The virtual SMMU is paused, and guest memory does not change: the record is not lost if it is kept until then.
    #[error("the virtual SMMU is paused: record it again after `resume`")]
    Paused,
    /// A panic has left the virtual SMMU in doubt.
    #[error("the virtual SMMU is quarantined: reset it")]
    Quarantined,
    /// The guest has not enabled the queue. It sees no overflow.
    #[error("the guest has not enabled the queue")]
    Disabled,
    /// The queue is full, or PROD and CONS contradict each other, or page requests have overflowed and the guest has not
    /// acknowledged that. It sees an overflow.
    #[error("the guest's queue is full")]
    Full,
    /// The queue is not guest memory, and the guest has not acknowledged GERROR.EVENTQ_ABT_ERR or PRIQ_ABT_ERR.
    #[error("the guest's queue is not in guest memory")]
    Aborted,
    /// The guest owns no stream with this StreamID of the host.
    #[error("host StreamID {:#x} is none of the guest's: see its stream map", .0.0)]
    ForeignStream(HostStreamId),
}

/// What the endpoint of a page request that was not recorded must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoResponse {
    /// Nothing.
    None,
    /// A PRG response with code Success, which has the endpoint try again. It has the PASID of the request if the stream's
    /// STE.PPAR is 1, otherwise none (IHI 0070 §8.1).
    Success,
    /// A PRG response with code Response Failure and without a PASID (IHI 0070 §8.2).
    Failure,
}

/// A page request is not in the guest's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{cause}")]
pub struct PageRequestLost {
    /// Why.
    pub cause: NotRecorded,
    /// What the VMM has to do for the SMMU.
    pub response: AutoResponse,
}

/// The registers and bits of one of the queues.
struct OutputQueue {
    base: usize,
    prod: usize,
    cons: usize,
    /// IRQ_CFG0, 8 bytes before IRQ_CFG1.
    irq_cfg0: usize,
    /// The bits of CR0 without any of which it is disabled.
    enables: u32,
    /// Its bit of IRQ_CTRL.
    irqen: u32,
    abort: u32,
    msi_abort: u32,
    wire: Call,
    /// log2 of the most entries.
    most: fn(&Features) -> u8,
    /// Nothing is recorded while an overflow is not acknowledged.
    overflow_inhibits: bool,
}

const EVENTQ: OutputQueue = OutputQueue {
    base: EVENTQ_BASE,
    prod: EVENTQ_PROD,
    cons: EVENTQ_CONS,
    irq_cfg0: EVENTQ_IRQ_CFG0,
    enables: CR0_EVENTQEN,
    irqen: IRQ_CTRL_EVENTQ,
    abort: GERROR_EVENTQ_ABT_ERR,
    msi_abort: GERROR_MSI_EVENTQ_ABT_ERR,
    wire: Call::EventQueue,
    most: |features| features.eventqs,
    overflow_inhibits: false,
};

/// Its effective enable depends on SMMUEN (IHI 0070 §6.3.9.5).
const PRIQ: OutputQueue = OutputQueue {
    base: PRIQ_BASE,
    prod: PRIQ_PROD,
    cons: PRIQ_CONS,
    irq_cfg0: PRIQ_IRQ_CFG0,
    enables: CR0_PRIQEN | CR0_SMMUEN,
    irqen: IRQ_CTRL_PRIQ,
    abort: GERROR_PRIQ_ABT_ERR,
    msi_abort: GERROR_MSI_PRIQ_ABT_ERR,
    wire: Call::PageRequestQueue,
    most: |features| features.priqs,
    overflow_inhibits: true,
};

/// PROD.OVFLG and CONS.OVACKFLG.
const OVERFLOW: u32 = 1 << 31;
/// PRIQ_IRQ_CFG2.LO.
const LAST_ONLY: u32 = 1 << 31;
/// Fields of a page request: Last, which the Stop PASID marker has without W and R, and with a PASID.
const LAST: u64 = 1 << 62;
const STOP: u64 = 1 << 63 | LAST;
const STOP_MASK: u64 = STOP | 0b11 << 60;

impl VirtualSmmu {
    /// Puts a record into the guest's event queue; bits 63:32 of its first word are the StreamID.
    ///
    /// The guest sees the record, then PROD, then the interrupt, which the worker sends. A call writes one entry, and waits for no more
    /// than [`Self::pause`] does; how often it is called is up to the VMM.
    ///
    /// # Errors
    ///
    /// [`NotRecorded`].
    pub fn record_event(&self, mut event: [u64; 4], stream: StreamIdOf) -> Result<(), NotRecorded> {
        let guest = self.guest_stream(StreamId((event[0] >> 32) as u32), stream)?;
        event[0] = event[0] & 0xffff_ffff | u64::from(guest.0) << 32;
        self.0.control(|state| state.record_event(event))
    }

    /// Puts a page request into the guest's page request queue; bits 31:0 of its first word are the StreamID. Otherwise as
    /// [`Self::record_event`].
    ///
    /// # Errors
    ///
    /// [`PageRequestLost`], with the answer that an endpoint must get.
    pub fn record_page_request(
        &self,
        mut request: [u64; 2],
        stream: StreamIdOf,
    ) -> Result<(), PageRequestLost> {
        let recorded = self.guest_stream(StreamId(request[0] as u32), stream).and_then(|guest| {
            request[0] = request[0] & !0xffff_ffff | u64::from(guest.0);
            self.0.control(|state| state.record_page_request(request))
        });
        recorded.map_err(|cause| PageRequestLost { cause, response: auto_response(cause, request[0]) })
    }

    /// The guest's name for a stream.
    fn guest_stream(&self, stream: StreamId, of: StreamIdOf) -> Result<StreamId, NotRecorded> {
        let host = HostStreamId(stream.0);
        match of {
            StreamIdOf::Guest => Ok(stream),
            StreamIdOf::Host => self.0.streams.guest_of(host).ok_or(NotRecorded::ForeignStream(host)),
        }
    }
}

/// IHI 0070 §8.1 and §8.2.
fn auto_response(cause: NotRecorded, request: u64) -> AutoResponse {
    match cause {
        _ if request & STOP_MASK == STOP => AutoResponse::None,
        NotRecorded::Disabled | NotRecorded::Aborted | NotRecorded::Quarantined => AutoResponse::Failure,
        NotRecorded::Full if request & LAST != 0 => AutoResponse::Success,
        _ => AutoResponse::None,
    }
}

impl State {
    fn record_event(&mut self, event: [u64; 4]) -> Result<(), NotRecorded> {
        if self.record(&EVENTQ, &event)? {
            self.interrupts_due |= EVENTQ.irqen & self.irq_ctrl;
        }
        Ok(())
    }

    fn record_page_request(&mut self, request: [u64; 2]) -> Result<(), NotRecorded> {
        let recorded = self.record(&PRIQ, &request);
        // Relaxed: the guest does not change it while the interrupt is enabled.
        let last_only = self.pages.frame.load_u32(PRIQ_IRQ_CFG2, Relaxed) & LAST_ONLY != 0;
        let last = request[0] & LAST != 0;
        let due = match recorded {
            Ok(_) | Err(NotRecorded::Full) if last_only => last,
            recorded => recorded == Ok(true),
        };
        if due {
            self.interrupts_due |= PRIQ.irqen & self.irq_ctrl;
        }
        recorded.map(|_| ())
    }

    /// Puts a record into a queue. Says whether the queue was empty.
    fn record(&mut self, queue: &OutputQueue, record: &[u64]) -> Result<bool, NotRecorded> {
        if self.paused {
            return Err(NotRecorded::Paused);
        } else if self.quarantined {
            return Err(NotRecorded::Quarantined);
        } else if self.cr0ack & queue.enables != queue.enables {
            return Err(NotRecorded::Disabled);
        } else if self.errors.active() & queue.abort != 0 {
            return Err(NotRecorded::Aborted);
        }
        let frame = &self.pages.frame;
        // Relaxed: the guest wrote BASE, and where PROD begins, before it enabled the queue, which was seen by an acquire load.
        let base = frame.load_u64(queue.base, Relaxed);
        let prod = frame.load_u32(queue.prod, Relaxed);
        // Acquire: pairs with the guest's barrier before it stores CONS: it has read the entry that is overwritten.
        let cons = frame.load_u32(queue.cons, Acquire);
        let most = QueueSize::capped((queue.most)(&self.features).into(), QueueSize::MAX);
        let size = QueueSize::capped((base & BASE_LOG2SIZE) as u32, most);
        let (index, overflow) = (size.index(prod), prod & OVERFLOW);
        let overflowed = (prod ^ cons) & OVERFLOW != 0;
        // Indices that contradict each other count as a full queue, as the architecture permits (IHI 0070 §3.5.1).
        let full = !size.used(index, size.index(cons)).is_ok_and(|used| used < size.entries());
        if full || queue.overflow_inhibits && overflowed {
            if !overflowed {
                // Release: the index was stored before, by which the guest sees the queue full.
                frame.store_u32(queue.prod, prod ^ OVERFLOW, Release);
            }
            self.counters.lost.add(1);
            return Err(NotRecorded::Full);
        }
        let bytes = 8 * record.len() as u64;
        // ADDR counts from the size of the queue on, and from 32 bytes (IHI 0070 §6.3.29).
        let alignment = (bytes << size.log2()).max(32);
        let base = base & BASE_ADDR & self.features.address_mask() & !(alignment - 1);
        let entry = base + bytes * u64::from(size.slot(index));
        let words = record.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        let mut places = (entry..).step_by(4).map(GuestAddress).zip(words);
        if !places.all(|(at, word)| self.ram.store_u32(at, word)) {
            self.counters.lost.add(1);
            self.raise(queue.abort);
            return Err(NotRecorded::Aborted);
        }
        // Release: pairs with the guest's barrier behind its load of PROD: it sees the entry.
        frame.store_u32(queue.prod, size.advance(index, 1).raw() | overflow, Release);
        // Pairs with the guest's device accesses, CONS and then PROD: either it sees this PROD, or CONS is seen to have reached the last one,
        // and it is interrupted.
        fence(SeqCst);
        let cons_after = frame.load_u32(queue.cons, Relaxed);
        self.counters.recorded.add(1);
        Ok([cons, cons_after].iter().any(|cons| size.index(*cons) == index))
    }

    /// Sends the interrupts of the queues that have got something: one for all that it has got. Says whether there were any.
    pub(super) fn interrupt_outputs(&mut self) -> bool {
        // A source that the guest has disabled meanwhile is silent (IHI 0070 §3.18.1).
        let due = std::mem::take(&mut self.interrupts_due) & self.irq_ctrl;
        for queue in [EVENTQ, PRIQ].into_iter().filter(|queue| due & queue.irqen != 0) {
            self.interrupt(queue.irq_cfg0, queue.msi_abort, queue.wire);
        }
        due != 0
    }

    /// After a restore: an interrupt that was due when the state was saved is due again. One too many does no harm.
    pub(super) fn interrupt_outputs_again(&mut self) {
        let frame = &self.pages.frame;
        // Relaxed: as all registers of a restore.
        let differ = |queue: &OutputQueue| {
            (frame.load_u32(queue.prod, Relaxed) ^ frame.load_u32(queue.cons, Relaxed)) & INDEX != 0
        };
        let enabled = |queue: &OutputQueue| self.cr0ack & queue.enables == queue.enables;
        let due = [EVENTQ, PRIQ].into_iter().filter(|queue| enabled(queue) && differ(queue));
        self.interrupts_due = due.fold(0, |due, queue| due | queue.irqen) & self.irq_ctrl;
    }
}
