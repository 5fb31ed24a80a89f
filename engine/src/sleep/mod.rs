//! Sleeping until somebody rings, and being woken.
//!
//! A [`Sleeper`] waits for any number of eventfds and a timer with one system call. Eventfds are never read: each write to one is an
//! event, whatever its counter says. There are two kinds behind one seam, io_uring, and epoll where that is refused.

mod epoll;
mod uring;
mod waker;
mod waker_slot;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use epoll::Epoll;
use uring::Uring;
pub use waker::Waker;
pub(crate) use waker_slot::{Notified, WakerSlot};

/// What a worker sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleeperKind {
    /// io_uring: Linux 5.13 or newer, and a system that allows it.
    IoUring,
    /// epoll.
    Epoll,
}

/// Waits for eventfds.
#[derive(Debug)]
pub(crate) struct Sleeper {
    backend: Backend,
    eventfds: Vec<Watched>,
    next_key: u64,
}

/// An eventfd that is waited for.
#[derive(Debug)]
struct Watched {
    key: u64,
    /// Kept, so that the descriptor never becomes another one while it is waited for.
    eventfd: EventFd,
    /// io_uring's request that polls it, if there is one.
    poll: Option<u64>,
}

#[derive(Debug)]
enum Backend {
    Uring(Box<Uring>),
    Epoll(Epoll),
}

impl Sleeper {
    /// Of the kind that is asked for; else io_uring, or epoll if that cannot be had.
    pub fn new(kind: Option<SleeperKind>) -> io::Result<Self> {
        let backend = match kind {
            Some(SleeperKind::IoUring) => Backend::Uring(Box::new(Uring::new()?)),
            Some(SleeperKind::Epoll) => Backend::Epoll(Epoll::new()?),
            None => match Uring::new() {
                Ok(uring) => Backend::Uring(Box::new(uring)),
                Err(error) => {
                    log::info!("workers sleep on epoll, since io_uring cannot be had: {error}");
                    Backend::Epoll(Epoll::new()?)
                }
            },
        };
        Ok(Self { backend, eventfds: Vec::new(), next_key: 0 })
    }

    pub fn kind(&self) -> SleeperKind {
        match self.backend {
            Backend::Uring(_) => SleeperKind::IoUring,
            Backend::Epoll(_) => SleeperKind::Epoll,
        }
    }

    /// From now on a write to `eventfd` ends a sleep; returns the key to remove it by.
    pub fn add(&mut self, eventfd: &EventFd) -> io::Result<u64> {
        let (key, eventfd) = (self.next_key, eventfd.try_clone()?);
        match &mut self.backend {
            // The next wait has it polled, since only the thread that waits may.
            Backend::Uring(_) => {}
            Backend::Epoll(epoll) => epoll.add(&eventfd)?,
        }
        self.next_key += 1;
        self.eventfds.push(Watched { key, eventfd, poll: None });
        Ok(key)
    }

    /// Writes to an eventfd are of no concern any more.
    pub fn remove(&mut self, key: u64) -> io::Result<()> {
        let Some(at) = self.eventfds.iter().position(|known| known.key == key) else { return Ok(()) };
        let Watched { eventfd, poll, .. } = self.eventfds.swap_remove(at);
        match &mut self.backend {
            Backend::Uring(uring) => {
                uring.cancel(poll);
                Ok(())
            }
            Backend::Epoll(epoll) => epoll.remove(&eventfd),
        }
    }

    /// Sleeps until an eventfd has been written since the last sleep, or `timeout` is over; sometimes less.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match &mut self.backend {
            Backend::Uring(uring) => uring.wait(timeout, &mut self.eventfds),
            Backend::Epoll(epoll) => epoll.wait(timeout),
        }
    }

    /// A descriptor that is readable when [`Self::wait`] would not sleep.
    pub fn pollable(&self) -> Option<RawFd> {
        match &self.backend {
            // Its events are only seen on the thread that waits.
            Backend::Uring(_) => None,
            Backend::Epoll(epoll) => Some(epoll.fd()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use vmm_sys_util::eventfd::EventFd;

    use super::{Sleeper, SleeperKind};

    const LONG: Option<Duration> = Some(Duration::from_secs(600));
    const NONE: Option<Duration> = Some(Duration::ZERO);

    /// Ends what waits for it, also when this thread panics.
    struct SetOnDrop<'a>(&'a AtomicBool);

    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    /// On each kind that this system has.
    fn each(test: impl Fn(Sleeper)) {
        test(Sleeper::new(Some(SleeperKind::Epoll)).unwrap());
        match Sleeper::new(Some(SleeperKind::IoUring)) {
            Ok(sleeper) => test(sleeper),
            Err(error) => println!("without io_uring: {error}"),
        }
    }

    /// Whether a sleep ends before its time.
    fn wakes(sleeper: &mut Sleeper) -> bool {
        let start = Instant::now();
        sleeper.wait(LONG).unwrap();
        Some(start.elapsed()) < LONG
    }

    /// What an eventfd may have left over is gone.
    fn settle(sleeper: &mut Sleeper) {
        (0..3).for_each(|_| sleeper.wait(NONE).unwrap());
    }

    #[test]
    fn each_write_wakes_whether_the_eventfd_is_read_or_not() {
        each(|mut sleeper| {
            let eventfds = [(); 3].map(|()| EventFd::new(0).unwrap());
            for eventfd in &eventfds {
                sleeper.add(eventfd).unwrap();
            }
            for eventfd in eventfds.iter().cycle().take(3000) {
                eventfd.write(1).unwrap();
                assert!(wakes(&mut sleeper));
            }
        });
    }

    #[test]
    fn a_write_before_the_eventfd_is_added_wakes() {
        each(|mut sleeper| {
            let eventfd = EventFd::new(0).unwrap();
            eventfd.write(1).unwrap();
            sleeper.add(&eventfd).unwrap();
            assert!(wakes(&mut sleeper));
        });
    }

    #[test]
    fn a_sleep_ends_in_time_and_not_before() {
        each(|mut sleeper| {
            let eventfd = EventFd::new(0).unwrap();
            sleeper.add(&eventfd).unwrap();
            eventfd.write(1).unwrap();
            settle(&mut sleeper);
            let (start, timeout) = (Instant::now(), Duration::from_millis(20));
            sleeper.wait(Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout);
        });
    }

    #[test]
    fn an_eventfd_that_was_removed_does_not_wake() {
        each(|mut sleeper| {
            let (removed, other) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
            let key = sleeper.add(&removed).unwrap();
            sleeper.add(&other).unwrap();
            sleeper.remove(key).unwrap();
            settle(&mut sleeper);
            removed.write(1).unwrap();
            let (start, timeout) = (Instant::now(), Duration::from_millis(20));
            sleeper.wait(Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout, "woken by an eventfd that was removed");
            other.write(1).unwrap();
            assert!(wakes(&mut sleeper));
        });
    }

    #[test]
    fn many_eventfds_at_once() {
        each(|mut sleeper| {
            let eventfds: Vec<_> = (0..700).map(|_| EventFd::new(0).unwrap()).collect();
            let keys: Vec<_> = eventfds.iter().map(|eventfd| sleeper.add(eventfd).unwrap()).collect();
            for _ in 0..3 {
                eventfds.iter().for_each(|eventfd| eventfd.write(1).unwrap());
                (0..50).for_each(|_| sleeper.wait(NONE).unwrap());
                eventfds[699].write(1).unwrap();
                assert!(wakes(&mut sleeper));
            }
            keys.into_iter().for_each(|key| sleeper.remove(key).unwrap());
        });
    }

    /// Runs `f` on a thread of its own, which has ended afterwards.
    fn elsewhere<R: Send>(f: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| scope.spawn(f).join().unwrap())
    }

    #[test]
    fn a_sleeper_that_moves_to_another_thread_is_woken_there_once_the_first_has_ended() {
        each(|mut sleeper| {
            let eventfds = [(); 3].map(|()| EventFd::new(0).unwrap());
            for eventfd in &eventfds {
                sleeper.add(eventfd).unwrap();
            }
            for _ in 0..5 {
                elsewhere(|| {
                    settle(&mut sleeper);
                    for eventfd in eventfds.iter().cycle().take(9) {
                        eventfd.write(1).unwrap();
                        assert!(wakes(&mut sleeper));
                        settle(&mut sleeper);
                    }
                });
            }
        });
    }

    #[test]
    fn a_sleeper_that_moves_to_another_thread_is_woken_there_while_the_first_lives_on() {
        each(|mut sleeper| {
            let eventfd = EventFd::new(0).unwrap();
            sleeper.add(&eventfd).unwrap();
            let (to, from) = mpsc::channel();
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let (to, over, mut moved) = (to.clone(), &over, sleeper);
                    scope.spawn(move || {
                        settle(&mut moved);
                        to.send(moved).unwrap();
                        // It lives on, and does not enter the kernel.
                        while !over.load(Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                    sleeper = from.recv().unwrap();
                }
                let _over = SetOnDrop(&over);
                settle(&mut sleeper);
                for _ in 0..9 {
                    eventfd.write(1).unwrap();
                    assert!(wakes(&mut sleeper));
                    settle(&mut sleeper);
                }
            });
        });
    }

    #[test]
    fn an_eventfd_that_a_thread_added_which_has_ended_wakes() {
        each(|mut sleeper| {
            let eventfds = [(); 2].map(|()| EventFd::new(0).unwrap());
            settle(&mut sleeper);
            // More than a submission queue holds.
            let more: Vec<_> = (0..100).map(|_| EventFd::new(0).unwrap()).collect();
            let key = elsewhere(|| {
                let keys: Vec<_> = more.iter().map(|eventfd| sleeper.add(eventfd).unwrap()).collect();
                sleeper.add(&eventfds[0]).unwrap();
                keys.into_iter().for_each(|key| sleeper.remove(key).unwrap());
                sleeper.add(&eventfds[1]).unwrap()
            });
            settle(&mut sleeper);
            eventfds[0].write(1).unwrap();
            assert!(wakes(&mut sleeper));
            elsewhere(|| sleeper.remove(key).unwrap());
            settle(&mut sleeper);
            eventfds[1].write(1).unwrap();
            let (start, timeout) = (Instant::now(), Duration::from_millis(20));
            sleeper.wait(Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout, "woken by an eventfd that was removed");
            eventfds[0].write(1).unwrap();
            assert!(wakes(&mut sleeper));
        });
    }
}
