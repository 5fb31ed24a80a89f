//! Sleeping on io_uring: a poll request for each eventfd, which stays until it is cancelled.
//!
//! A poll belongs to the thread that submitted it: it ends with that thread, and its events are seen only once
//! that thread enters the kernel. So only [`Uring::wait`] submits: until then it is only noted what is to be polled,
//! and what is no more. A wait on another thread than the last one cancels all polls and submits them anew.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::Watched;

/// The user data of what is no poll of an eventfd.
const NO_POLL: u64 = u64::MAX;
const ENTRIES: u32 = 64;
const POLLIN: u32 = 1;

pub(super) struct Uring {
    ring: IoUring,
    /// The thread that has submitted the polls.
    thread: Option<ThreadId>,
    /// The user data of the next poll. No two polls have the same, so that the late end of a cancelled one is not
    /// taken for that of the one that came after it.
    next_poll: u64,
    /// Polls that the next wait is to cancel.
    cancelled: Vec<u64>,
}

impl Uring {
    pub fn new() -> io::Result<Self> {
        // Cooperative: an event need not interrupt us while we run.
        let ring = IoUring::builder().setup_coop_taskrun().build(ENTRIES).or_else(|error| {
            // Linux before 5.19 does not have that.
            if error.raw_os_error() == Some(22) { IoUring::new(ENTRIES) } else { Err(error) }
        })?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut uring = Self { ring, thread: None, next_poll: 0, cancelled: Vec::new() };
        uring.check_polls()?;
        Ok(uring)
    }

    /// Whether a poll request stays after its first event, as it does since Linux 5.13. One that did not would lose doorbells.
    fn check_polls(&mut self) -> io::Result<()> {
        let ready = EventFd::new(0)?;
        ready.write(1)?;
        self.push(&poll(&ready, NO_POLL), &mut [])?;
        self.enter(1, Some(Duration::ZERO))?;
        let stays = self.ring.completion().next().is_some_and(|event| cqueue::more(event.flags()));
        self.cancel(Some(NO_POLL));
        self.submit_changes(&mut [])?;
        if stays { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Notes that a poll is no longer wanted.
    pub fn cancel(&mut self, poll: Option<u64>) {
        self.cancelled.extend(poll);
    }

    /// Sleeps until there is an event of a poll, or `timeout` is over; sometimes less.
    pub fn wait(&mut self, timeout: Option<Duration>, eventfds: &mut [Watched]) -> io::Result<()> {
        let thread = Some(thread::current().id());
        if self.thread != thread {
            self.thread = thread;
            self.cancelled.extend(eventfds.iter_mut().filter_map(|eventfd| eventfd.poll.take()));
        }
        let woken = self.take_events(eventfds) | self.submit_changes(eventfds)?;
        if !woken {
            self.enter(1, timeout)?;
            self.take_events(eventfds);
        }
        Ok(())
    }

    /// Cancels the polls that are not wanted, and submits those that are missing. Says whether there was an event.
    fn submit_changes(&mut self, eventfds: &mut [Watched]) -> io::Result<bool> {
        let mut woken = false;
        while let Some(poll) = self.cancelled.pop() {
            // A `PollRemove` would leave alone a poll that is about to tell of an event.
            let cancel = opcode::AsyncCancel::new(poll).build().user_data(NO_POLL);
            woken |= self.push(&cancel, eventfds)?;
        }
        for at in 0..eventfds.len() {
            if eventfds[at].poll.is_none() {
                let request = poll(&eventfds[at].eventfd, self.next_poll);
                woken |= self.push(&request, eventfds)?;
                eventfds[at].poll = Some(self.next_poll);
                self.next_poll += 1;
            }
        }
        if !self.ring.submission().is_empty() {
            self.enter(0, None)?;
            woken |= self.take_events(eventfds);
        }
        Ok(woken)
    }

    /// Takes all completions, and says whether one was of a poll that is wanted. The end of a poll, for whatever
    /// reason, counts: a doorbell may have been lost with it. The next wait submits another one.
    fn take_events(&mut self, eventfds: &mut [Watched]) -> bool {
        let mut any = false;
        for event in self.ring.completion() {
            let poll = Some(event.user_data());
            if let Some(eventfd) = eventfds.iter_mut().find(|eventfd| eventfd.poll == poll) {
                any = true;
                if !cqueue::more(event.flags()) {
                    eventfd.poll = None;
                }
            }
        }
        any
    }

    /// Submits what was pushed, and waits for `want` completions or until `timeout` is over.
    fn enter(&self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME | Errno::INTR) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Pushes a request; submits those of before when the queue is full, and takes what completes. Says whether
    /// there was an event.
    fn push(&mut self, request: &squeue::Entry, eventfds: &mut [Watched]) -> io::Result<bool> {
        let mut woken = false;
        loop {
            // SAFETY: the requests of this module, `PollAdd` and `AsyncCancel`, name no memory, so that there is none
            // that would have to stay; a descriptor that is not ours is refused, or polled, and neither reads nor
            // writes anything.
            #[allow(unsafe_code, reason = "requests that name memory must keep it; these name none")]
            if unsafe { self.ring.submission().push(request) }.is_ok() {
                return Ok(woken);
            }
            self.enter(0, None)?;
            woken |= self.take_events(eventfds);
        }
    }
}

/// A request that polls an eventfd, and has an event whenever it is written.
fn poll(eventfd: &EventFd, user_data: u64) -> squeue::Entry {
    opcode::PollAdd::new(Fd(eventfd.as_raw_fd()), POLLIN).multi(true).build().user_data(user_data)
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("fd", &self.ring.as_raw_fd()).finish_non_exhaustive()
    }
}
