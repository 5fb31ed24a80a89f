//! SMMUv3 command queue rings over shared memory.
//!
//! A queue is 2^n slots of 16 bytes and two indices: PROD, written by the side that adds entries, and CONS,
//! written by the side that takes them. Both carry a *wrap bit* above the slot index, so that all 2^n slots
//! are usable and empty and full differ (facts sheet, section 3.1).
//!
//! * [`QueueSize`] and [`Index`] are the arithmetic.
//! * [`Consumer`] copies entries out and publishes CONS; [`Producer`] writes entries and publishes PROD once a
//!   batch. Each has one user at a time: their methods take `&mut self`.
//! * [`MultiProducer`] is a producer among others, without a lock.
//! * [`handshake`] and [`Toggle`] are what the two sides say to each other besides: enabling, errors.
//! * [`RequestCell`] and [`LookupTable`] are for two threads of one process: who answers a request and who waits for it, who
//!   changes a table and who looks things up in it.
//! * [`SleepWord`] is what somebody who polls leaves for those who ring, before it sleeps.
//! * [`QueueWords`] is where the words live. [`SharedQueue`] is the implementation that ships: words in memory
//!   that somebody else, perhaps hostile, writes at the same time. A model checker supplies another one, so that
//!   it runs this very code. [`AtomicWord`] is the same for what threads of one process share.
//!
//! # The protocol
//!
//! 1. The producer writes entries into free slots, then stores PROD with *release*.
//! 2. The consumer loads PROD with *acquire*: it sees every entry below PROD. It copies each entry once.
//! 3. The consumer stores CONS with *release*: its copies are made before the slots are free.
//! 4. The producer loads CONS with *acquire* before it writes those slots again.
//!
//! The release in 1 pairs with the acquire in 2, the release in 3 with the acquire in 4. A guest on the other
//! side supplies its half with its own barriers (a `DSB` before its PROD store, facts sheet, section 3.2).
//!
//! # Example
//!
//! ```
//! use ecmdq_ring::{Consumer, Index, Producer, QueueSize, SharedQueue, SharedRegion};
//!
//! // 16 slots, followed by a PROD and a CONS word, in memory of our own.
//! let size = QueueSize::from_log2(4).unwrap();
//! let memory = SharedRegion::from_words(vec![0; 2 * 16 + 1]);
//! let queue = SharedQueue::new(memory.clone(), 0, size, memory, 256, 260).unwrap();
//!
//! let mut producer = Producer::new(queue.clone(), size, Index::ZERO);
//! let mut consumer = Consumer::new(queue, size, Index::ZERO);
//!
//! assert_eq!(producer.write(&[[1, 2], [3, 4]]), 2);
//! producer.publish();
//!
//! let mut out = [[0; 2]; 8];
//! assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(2));
//! assert_eq!(out[..2], [[1, 2], [3, 4]]);
//! consumer.consume(2);
//! assert_eq!(producer.unconsumed(), 0);
//! ```
#![no_std]

extern crate alloc;

mod consumer;
pub mod handshake;
mod index;
pub mod multi;
mod producer;
mod request;
mod shared;
mod sleep;
mod table;
mod toggle;
mod words;

pub use consumer::Consumer;
pub use index::{Inconsistent, Index, QueueSize};
pub use multi::MultiProducer;
pub use producer::Producer;
pub use request::{Outcome, RequestCell};
pub use shared::{SharedQueue, SharedRegion, SharedWord};
pub use sleep::SleepWord;
pub use table::LookupTable;
pub use toggle::Toggle;
pub use words::{AtomicWord, Entry, QueueWords, Role};
