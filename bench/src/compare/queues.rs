//! General queues as transport: one for each queue of a guest, of as many commands, with a counter back.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use ecmdq_engine::Command;

use super::host::Host;
use super::{BATCH, Executed, Guest, QUEUE_LOG2, Server, Transport};

const ENTRIES: usize = 1 << QUEUE_LOG2;

/// The end of a queue that sends.
pub trait Sender: Send {
    /// All of them, or none.
    fn send(&mut self, group: &[Command]) -> bool;
}

/// The end that takes.
pub trait Receiver: Send {
    /// Appends up to [`BATCH`] commands.
    fn take(&mut self, batch: &mut Vec<Command>);
}

impl Sender for Arc<ArrayQueue<Command>> {
    fn send(&mut self, group: &[Command]) -> bool {
        ENTRIES - self.len() >= group.len() && group.iter().all(|command| self.push(*command).is_ok())
    }
}

impl Receiver for Arc<ArrayQueue<Command>> {
    fn take(&mut self, batch: &mut Vec<Command>) {
        batch.extend((0..BATCH).map_while(|_| self.pop()));
    }
}

impl Sender for rtrb::Producer<Command> {
    fn send(&mut self, group: &[Command]) -> bool {
        let Ok(chunk) = self.write_chunk_uninit(group.len()) else { return false };
        chunk.fill_from_iter(group.iter().copied());
        true
    }
}

impl Receiver for rtrb::Consumer<Command> {
    fn take(&mut self, batch: &mut Vec<Command>) {
        let Ok(chunk) = self.read_chunk(self.slots().min(BATCH)) else { return };
        let (first, second) = chunk.as_slices();
        batch.extend_from_slice(first);
        batch.extend_from_slice(second);
        chunk.commit_all();
    }
}

impl Sender for Arc<Mutex<VecDeque<Command>>> {
    fn send(&mut self, group: &[Command]) -> bool {
        let mut queue = self.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = ENTRIES - queue.len() >= group.len();
        if fits {
            queue.extend(group);
        }
        fits
    }
}

impl Receiver for Arc<Mutex<VecDeque<Command>>> {
    fn take(&mut self, batch: &mut Vec<Command>) {
        let mut queue = self.lock().unwrap_or_else(PoisonError::into_inner);
        let n = queue.len().min(BATCH);
        batch.extend(queue.drain(..n));
    }
}

/// The sending end of a queue, and what came back.
#[derive(Debug)]
pub struct QueueGuest<S> {
    to: S,
    sent: u64,
    completed: Arc<CachePadded<AtomicU64>>,
}

/// The other ends.
#[derive(Debug)]
pub struct QueueServer<R> {
    queues: Vec<Back<R>>,
    host: Host,
    batch: Vec<Command>,
}

/// A receiving end, how much was taken from it, and who is told.
#[derive(Debug)]
struct Back<R> {
    from: R,
    taken: u64,
    completed: Arc<CachePadded<AtomicU64>>,
}

impl<S: Sender> Guest for QueueGuest<S> {
    fn send(&mut self, group: &[Command]) -> bool {
        let sent = self.to.send(group);
        self.sent += if sent { group.len() as u64 } else { 0 };
        sent
    }

    fn is_done(&mut self) -> bool {
        // Acquire: pairs with the server's release store.
        self.completed.load(Acquire) == self.sent
    }
}

impl<R: Receiver> Server for QueueServer<R> {
    fn serve(&mut self) -> bool {
        let Self { queues, host, batch } = self;
        let mut busy = false;
        for queue in queues.iter_mut() {
            batch.clear();
            queue.from.take(batch);
            if !batch.is_empty() {
                host.pass(batch);
                queue.taken += batch.len() as u64;
                busy = true;
            }
        }
        if busy {
            host.finish();
            // Release: pairs with the guest's acquire load, which thus sees all that was done.
            queues.iter().for_each(|queue| queue.completed.store(queue.taken, Release));
        }
        busy
    }

    fn executed(&self) -> Executed {
        self.host.executed()
    }
}

type Ends<S, R> = (Vec<QueueGuest<S>>, QueueServer<R>);

fn open<S: Sender, R: Receiver>(queues: usize, queue: impl Fn() -> (S, R)) -> io::Result<Ends<S, R>> {
    let pair = |_| {
        let (to, from) = queue();
        let completed = Arc::new(CachePadded::new(AtomicU64::new(0)));
        (QueueGuest { to, sent: 0, completed: completed.clone() }, Back { from, taken: 0, completed })
    };
    let (guests, queues) = (0..queues).map(pair).unzip();
    Ok((guests, QueueServer { queues, host: Host::new()?, batch: Vec::with_capacity(BATCH) }))
}

/// crossbeam's `ArrayQueue`: any number of producers and consumers.
#[derive(Debug)]
pub enum Array {}

impl Transport for Array {
    type Guest = QueueGuest<Arc<ArrayQueue<Command>>>;
    type Server = QueueServer<Arc<ArrayQueue<Command>>>;

    fn open(queues: usize) -> io::Result<(Vec<Self::Guest>, Self::Server)> {
        open(queues, || {
            let queue = Arc::new(ArrayQueue::new(ENTRIES));
            (queue.clone(), queue)
        })
    }
}

/// `rtrb`: one producer, one consumer, whole chunks.
#[derive(Debug)]
pub enum Rtrb {}

impl Transport for Rtrb {
    type Guest = QueueGuest<rtrb::Producer<Command>>;
    type Server = QueueServer<rtrb::Consumer<Command>>;

    fn open(queues: usize) -> io::Result<(Vec<Self::Guest>, Self::Server)> {
        open(queues, || rtrb::RingBuffer::new(ENTRIES))
    }
}

/// A mutex around a `VecDeque`.
#[derive(Debug)]
pub enum Deque {}

impl Transport for Deque {
    type Guest = QueueGuest<Arc<Mutex<VecDeque<Command>>>>;
    type Server = QueueServer<Arc<Mutex<VecDeque<Command>>>>;

    fn open(queues: usize) -> io::Result<(Vec<Self::Guest>, Self::Server)> {
        open(queues, || {
            let queue = Arc::new(Mutex::new(VecDeque::with_capacity(ENTRIES)));
            (queue.clone(), queue)
        })
    }
}
