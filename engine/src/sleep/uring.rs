//! Sleeping on io_uring: a poll request for each eventfd, which stays until it is removed; one system call hands over what has changed,
//! sleeps, and wakes.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

/// The key of what is no eventfd.
const NO_KEY: u64 = u64::MAX;
const ENTRIES: u32 = 64;
const POLLIN: u32 = 1;

pub(super) struct Uring(IoUring);

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
        let mut uring = Self(ring);
        uring.check_polls()?;
        Ok(uring)
    }

    /// Whether a poll request stays after its first event, as it does since Linux 5.13. One that did not would lose doorbells.
    fn check_polls(&mut self) -> io::Result<()> {
        let ready = EventFd::new(0)?;
        ready.write(1)?;
        self.add(NO_KEY, &ready)?;
        self.enter(Some(Duration::ZERO))?;
        let stays = self.0.completion().next().is_some_and(|event| cqueue::more(event.flags()));
        self.remove(NO_KEY)?;
        // The request's own end, and what `remove` says.
        while self.0.completion().next().is_some() {}
        if stays { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    pub fn add(&mut self, key: u64, eventfd: &EventFd) -> io::Result<()> {
        self.arm(key, eventfd.as_raw_fd())
    }

    pub fn remove(&mut self, key: u64) -> io::Result<()> {
        self.push(&opcode::PollRemove::new(key).build().user_data(NO_KEY))?;
        self.0.submit()?;
        Ok(())
    }

    pub fn wait(&mut self, timeout: Option<Duration>, eventfds: &[(u64, EventFd)]) -> io::Result<()> {
        if self.0.completion().is_empty() {
            self.enter(timeout)?;
        }
        let ended = self.0.completion().filter(|event| !cqueue::more(event.flags()) && event.result() >= 0);
        // Allocates nothing as long as nothing ends, and requests do so only when the completion queue overflows.
        let ended: Vec<_> = ended.map(|event| event.user_data()).collect();
        for (key, eventfd) in eventfds.iter().filter(|(key, _)| ended.contains(key)) {
            self.arm(*key, eventfd.as_raw_fd())?;
        }
        Ok(())
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        const ETIME: i32 = 62;
        match self.0.submitter().submit_with_args(1, &args) {
            Err(error)
                if error.raw_os_error() != Some(ETIME) && error.kind() != io::ErrorKind::Interrupted =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn arm(&mut self, key: u64, fd: RawFd) -> io::Result<()> {
        self.push(&opcode::PollAdd::new(Fd(fd), POLLIN).multi(true).build().user_data(key))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the requests of this module, `PollAdd` and `PollRemove`, name no memory, so that there is none that would have to
            // stay; a descriptor that is not ours is refused, or polled, and neither reads nor writes anything.
            #[allow(unsafe_code, reason = "requests that name memory must keep it; these name none")]
            if unsafe { self.0.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.0.submit()?;
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("fd", &self.0.as_raw_fd()).finish_non_exhaustive()
    }
}
