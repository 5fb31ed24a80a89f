//! Sleeping on epoll. Timers are whole milliseconds.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll as Descriptor, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

pub(super) struct Epoll {
    fd: Descriptor,
    events: Vec<EpollEvent>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: Descriptor::new()?, events: vec![EpollEvent::default(); 64] })
    }

    pub fn add(&mut self, eventfd: &EventFd) -> io::Result<()> {
        // Edge-triggered: each write is an event.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        self.fd.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
    }

    pub fn remove(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.fd.ctl(ControlOperation::Delete, eventfd.as_raw_fd(), EpollEvent::default())
    }

    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Up, so that it is over when it has ended; -1 is no end.
        let millis = timeout
            .map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        match self.fd.wait(millis, &mut self.events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("fd", &self.fd()).finish_non_exhaustive()
    }
}
