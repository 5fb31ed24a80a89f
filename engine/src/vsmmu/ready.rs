//! The queues of a guest that are to be looked at.

use std::collections::VecDeque;

use crate::bits::Bits;

/// Queues whose doorbell has rung, or that can go on, by number: each once, in the order in which they are served.
#[derive(Debug)]
pub(crate) struct Ready {
    order: VecDeque<u32>,
    members: Bits,
}

impl Ready {
    /// For so many queues, none of which is ready. All memory is there afterwards.
    pub fn new(queues: usize) -> Self {
        Self { order: VecDeque::with_capacity(queues), members: Bits::new(queues) }
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds a queue behind the others, unless it is there.
    #[inline]
    pub fn push(&mut self, queue: usize) {
        if self.members.insert(queue) {
            self.order.push_back(queue as u32);
        }
    }

    /// The queue whose turn it is.
    #[inline]
    pub fn first(&self) -> Option<usize> {
        self.order.front().map(|queue| *queue as usize)
    }

    /// Removes the queue whose turn it is.
    #[inline]
    pub fn pop(&mut self) {
        if let Some(queue) = self.order.pop_front() {
            self.members.remove(queue as usize);
        }
    }

    /// The queue whose turn it is has its next turn behind the others.
    pub fn rotate(&mut self) {
        if self.order.len() > 1 {
            self.order.rotate_left(1);
        }
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.order.drain(..).for_each(|queue| self.members.remove(queue as usize));
    }
}
