//! A polling engine for SMMUv3 command queues in memory shared with guests.
//!
//! A guest's command queue and its registers are plain memory. Ringing the doorbell is a store, waiting for a
//! CMD_SYNC is a load; nothing exits. A [`Worker`] polls the registers of many [`VirtualSmmu`]s, takes their
//! commands, [checks and rewrites](rules) them, hands them to one [host queue](host), and completes the guests'
//! CMD_SYNCs: one host synchronisation for many guests.
//!
//! A command travels through the modules in this order: [`command`] (what it is), [`rules`] (what a guest may
//! send and what the host gets), the queue and the [`VirtualSmmu`] (registers, errors, completion), the
//! [`Worker`], the [`host`] queue.
//!
//! What always holds: an entry is copied out of guest memory once, and only the copy is looked at; the host sees
//! only canonical commands with the guest's own VMID and StreamIDs; CONS passes a CMD_SYNC only after the host
//! has synchronised everything before it; nothing a guest does panics, allocates, blocks or takes a lock.
//!
//! # Example
//!
//! A guest that invalidates one ASID, driven by hand:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::Ordering::{Acquire, Release};
//!
//! use ecmdq_engine::host::NativeRing;
//! use ecmdq_engine::memory::{self, GuestRam, Ram};
//! use ecmdq_engine::{Command, Config, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap};
//! use ecmdq_engine::{VirtualSmmu, Vmid, Worker, registers};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! // The VMM's part: memory, register pages, identities, a host queue.
//! let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x4000_0000), 1 << 20)])?);
//! let (_fd, pages) = memory::memfd("registers", registers::FRAME_SIZE)?;
//! let guest = VirtualSmmu::new(Config {
//!     features: Features::default(),
//!     host_features: Features::default(),
//!     quirks: Vec::new(),
//!     vmid: Vmid(7),
//!     streams: Arc::new(StreamMap::from_pairs([(StreamId(0x42), HostStreamId(0x100))])?),
//!     ram: Box::new(Ram::new(ram.clone())),
//!     front_end: FrontEnd::Shared(pages.clone()),
//!     interrupts: Box::new(NoInterrupts),
//!     on_request: Box::new(|_, token| token.complete()),
//! })?;
//! let (ring, mut smmu) = NativeRing::with_consumer(8)?;
//! let mut worker = Worker::new(ring);
//! worker.attach(guest)?;
//!
//! // The guest's part: a queue of 2^4 entries at the start of RAM, two commands, the doorbell.
//! let slots = Ram::new(ram).region(GuestAddress(0x4000_0000), 256).unwrap();
//! pages.store_u64(registers::CMDQ_BASE, 0x4000_0000 | 4, Release);
//! pages.store_u32(registers::CR0, registers::CR0_CMDQEN, Release);
//! slots.store_u64(0, 0x0005_0000_0000_0011, Release); // TLBI_NH_ASID ASID=5
//! slots.store_u64(16, 0x46, Release); // CMD_SYNC
//! pages.store_u32(registers::CMDQ_PROD, 2, Release);
//!
//! // A worker would do this on a thread of its own.
//! worker.poll();
//! let mut received = Vec::new();
//! smmu.poll(|commands| received.extend_from_slice(commands));
//! worker.poll();
//!
//! assert_eq!(received[0].to_string(), "TLBI_NH_ASID VMID=0x7 ASID=0x5");
//! assert_eq!(pages.load_u32(registers::CMDQ_CONS, Acquire), 2, "complete");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

/// The examples of the documentation compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embedding.md")]
struct Embedding;

pub mod command;
pub mod host;
pub mod memory;
pub mod registers;
pub mod rules;

mod bits;
mod events;
mod features;
mod identity;
mod interrupts;
mod outbox;
mod share;
mod sleep;
mod stats;
mod stream_table;
mod submission;
mod token;
mod vsmmu;
mod worker;

pub use command::{Command, CommandError, Opcode};
pub use events::{Event, EventKind, Events};
pub use features::{BeyondHost, Features, FeaturesError, StallModel};
pub use identity::{HostStreamId, StreamConfig, StreamId, StreamMap, StreamMapError, Vmid};
pub use interrupts::{EventfdInterrupts, Interrupts, MsiSink, NoInterrupts};
pub use share::{RateLimit, Share};
pub use sleep::{SleeperKind, Waker};
pub use stats::Stats;
pub use stream_table::{Ste, StreamFault, StreamTable};
pub use token::Token;
pub use vsmmu::{
    AutoResponse, BindHostError, Config, ConfigError, ControlPage, Doorbell, DoorbellTraps, FrontEnd,
    Inspection, NotPaused, NotRecorded, OnRequest, PageRequestLost, RestoreError, Snapshot, SnapshotError,
    StatsReader, StreamIdOf, VirtualSmmu,
};
pub use worker::{AttachError, Detaching, Idle, Nap, Running, Worker, WorkerHandle};
