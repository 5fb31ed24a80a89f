//! Host queues that are late, full, and fail in each way that they can. Each has a thread that executes its commands on the
//! caches that all hosts share, and goes when nobody holds the queue any more.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use ecmdq_engine::host::iommufd::{self, IommufdQueue};
use ecmdq_engine::host::model::{ModelSmmu, Pace};
use ecmdq_engine::host::{Cause, Failure, HostQueue, Identities, NativeRing, RingConsumer, Ticket};
use ecmdq_engine::{Command, CommandError, Opcode, Waker};

use crate::guest::Guest;
use crate::kernel::Kernel;
use crate::random::Random;
use crate::start;
use crate::world::{Actor, Faults, World, count};

/// What is known of a host queue beside it.
#[derive(Debug)]
pub struct Status {
    pub name: String,
    /// It executes nothing any more.
    pub gone: AtomicBool,
    /// Its thread has ended: whatever it still has will never be executed.
    ended: AtomicBool,
}

impl Status {
    /// Whether nothing that it has will be executed any more. That a ring is empty says less: a worker's commands may be
    /// published by another, later.
    pub fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Its thread ends.
    fn end(&self) {
        self.ended.store(true, SeqCst);
    }
}

/// A host queue of any kind.
#[derive(Debug)]
pub struct Host {
    queue: Kind,
    pub status: Arc<Status>,
    /// While somebody has it, its thread goes on.
    _user: Arc<Stop>,
}

#[derive(Debug)]
enum Kind {
    Model(ModelSmmu),
    Ring(NativeRing),
    Iommufd(IommufdQueue),
}

/// Ends the thread of a queue when the last handle to it goes.
#[derive(Debug, Default)]
struct Stop(Option<(Arc<AtomicBool>, Waker)>);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some((stop, waker)) = &self.0 {
            stop.store(true, SeqCst);
            waker.wake();
        }
    }
}

macro_rules! each {
    ($host:expr, $queue:ident => $call:expr) => {
        match &mut $host.queue {
            Kind::Model($queue) => $call,
            Kind::Ring($queue) => $call,
            Kind::Iommufd($queue) => $call,
        }
    };
}

impl HostQueue for Host {
    fn identities(&self) -> Identities {
        match &self.queue {
            Kind::Model(queue) => queue.identities(),
            Kind::Ring(queue) => queue.identities(),
            Kind::Iommufd(queue) => queue.identities(),
        }
    }

    fn submit(&mut self, commands: &[Command]) -> usize {
        each!(self, queue => queue.submit(commands))
    }

    fn sync(&mut self) -> Ticket {
        each!(self, queue => queue.sync())
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        each!(self, queue => queue.submit_and_sync(commands))
    }

    fn completed(&mut self) -> Ticket {
        each!(self, queue => queue.completed())
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        each!(self, queue => queue.failure(ticket))
    }

    fn set_waker(&mut self, waker: &Waker) -> bool {
        each!(self, queue => queue.set_waker(waker))
    }
}

fn status(world: &World, kind: &str) -> Arc<Status> {
    count(&world.counts.hosts);
    let number = world.counts.hosts.load(SeqCst);
    Arc::new(Status {
        name: format!("{kind} {number}"),
        gone: AtomicBool::new(false),
        ended: AtomicBool::new(false),
    })
}

/// A queue of the model.
pub fn model(world: &Arc<World>) -> Host {
    let (queue, status) = (world.model.another_queue(), status(world, "model"));
    queue.set_pace(Pace::ByHand);
    let user = Arc::<Stop>::default();
    let (mut ours, told, users) = (queue.clone(), status.clone(), Arc::downgrade(&user));
    let name = status.name.clone();
    start(world, name, move |world, actor| work(world, actor, &mut ours, &told, &users));
    Host { queue: Kind::Model(queue), status, _user: user }
}

/// The handles of several producers to a native ring.
pub fn ring(world: &Arc<World>, random: &mut Random) -> Vec<Host> {
    let producers = random.of(&[1, 2, 6]);
    let log2 = 4 + random.below(6) as u32;
    let (rings, mut smmu) = NativeRing::several_with_consumer(log2, producers).unwrap();
    let (status, user) = (status(world, "ring"), Arc::<Stop>::default());
    let (told, users, name) = (status.clone(), Arc::downgrade(&user), status.name.clone());
    start(world, name, move |world, actor| consume(world, actor, &mut smmu, &told, &users));
    let host = |ring| Host { queue: Kind::Ring(ring), status: status.clone(), _user: user.clone() };
    rings.into_iter().map(host).collect()
}

/// A guest's own queue, to a kernel.
pub fn iommufd(world: &Arc<World>, guest: &Arc<Guest>, random: &mut Random) -> Host {
    let status = status(world, "iommufd");
    let kernel = Kernel::new(world.clone(), guest.clone(), status.clone(), random.next());
    let (queue, mut executor) = iommufd::queue(kernel, 4 + random.below(6) as u32).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let user = Arc::new(Stop(Some((stop.clone(), executor.waker()))));
    // It sleeps as long as there is nothing to do: the watchdog must not wait for it.
    let told = status.clone();
    let body = move || {
        executor.run(&stop);
        told.end();
    };
    thread::Builder::new().name(status.name.clone()).spawn(body).unwrap();
    Host { queue: Kind::Iommufd(queue), status, _user: user }
}

/// Rests now and then.
fn rest(world: &World, random: &mut Random, done: usize) {
    if world.is_attack() && random.one_in(200) {
        thread::sleep(Duration::from_millis(random.below(15) as u64));
    } else if done == 0 {
        thread::sleep(Duration::from_micros(50));
    }
}

/// The model's thread.
fn work(world: &Arc<World>, actor: &Actor, queue: &mut ModelSmmu, status: &Status, users: &Weak<Stop>) {
    let (mut random, faults) = (actor.random(), &world.faults);
    // What was made to go wrong, and how many CMD_SYNCs were over: it is over with the first that fails.
    let mut trouble: Option<(Cause, u64)> = None;
    while users.strong_count() > 0 {
        let over = queue.syncs().1;
        if let Some((cause, looked)) = &mut trouble {
            let failed = (*looked + 1..=over).any(|ticket| queue.failure(Ticket(ticket)).is_some());
            *looked = over;
            if failed {
                match cause {
                    Cause::Illegal => faults.illegal.end(),
                    Cause::AtcTimeout => faults.atc.end(),
                    _ => faults.transient.end(),
                }
                trouble = None;
            }
        }
        if world.is_attack() && random.one_in(64) {
            let room = random.of(&[usize::MAX, usize::MAX, 64, 5, 0]);
            actor.note(format!("room {room}"));
            queue.set_room(room);
        } else if !world.is_attack() {
            queue.set_room(usize::MAX);
        }
        if world.is_attack() && trouble.is_none() && random.one_in(50) {
            let cause = if random.one_in(40) {
                Cause::DeviceGone
            } else {
                random.of(&[Cause::Illegal, Cause::AtcTimeout, Cause::Transient])
            };
            actor.note(format!("{cause:?}"));
            match cause {
                Cause::Illegal => faults.illegal.begin(),
                Cause::AtcTimeout => faults.atc.begin(),
                Cause::Transient => faults.transient.begin(),
                _ => {
                    faults.gone.begin();
                    status.gone.store(true, SeqCst);
                }
            }
            queue.fail_next(cause);
            if cause != Cause::DeviceGone {
                trouble = Some((cause, over));
            }
        }
        let most = if random.one_in(2) { 1 + random.below(8) } else { usize::MAX };
        let done = queue.work(most, |_| ());
        actor.beat();
        rest(world, &mut random, done);
    }
    status.end();
}

/// What the consumer of a ring is in the middle of.
#[derive(Default)]
struct Consumer {
    /// An ATC_INV was lost since the last CMD_SYNC.
    lost_atc: bool,
    /// How often the next fetch aborts.
    aborts: u32,
}

/// The thread of a ring's consumer.
fn consume(world: &Arc<World>, actor: &Actor, smmu: &mut RingConsumer, status: &Status, users: &Weak<Stop>) {
    let (mut random, mut consumer) = (actor.random(), Consumer::default());
    while users.strong_count() > 0 {
        let mut end: Option<fn(&Faults)> = None;
        let done = smmu
            .poll_with(|commands| consumer.execute(world, actor, &mut random, status, commands, &mut end));
        if let Some(end) = end {
            end(&world.faults);
        }
        actor.beat();
        rest(world, &mut random, done);
    }
    status.end();
}

impl Consumer {
    fn execute(
        &mut self,
        world: &World,
        actor: &Actor,
        random: &mut Random,
        status: &Status,
        commands: &[Command],
        end: &mut Option<fn(&Faults)>,
    ) -> (usize, Option<CommandError>) {
        let faults = &world.faults;
        if self.aborts > 0 {
            self.aborts -= 1;
            return (0, Some(CommandError::Abt));
        }
        let most = if world.is_attack() && random.one_in(3) { 1 + random.below(8) } else { usize::MAX };
        for (at, command) in commands.iter().take(most).enumerate() {
            if command.opcode() == Opcode::CMD_SYNC {
                if std::mem::take(&mut self.lost_atc) {
                    *end = Some(|faults| faults.atc.end());
                    return (at, Some(CommandError::AtcInvSync));
                }
                continue;
            }
            if world.is_attack() && random.one_in(150) {
                match random.below(5) {
                    0 | 1 => {
                        actor.note(format!("{command} is illegal"));
                        faults.illegal.begin();
                        *end = Some(|faults| faults.illegal.end());
                        return (at, Some(CommandError::Ill));
                    }
                    2 | 3 if command.opcode() == Opcode::ATC_INV => {
                        if !std::mem::replace(&mut self.lost_atc, true) {
                            faults.atc.begin();
                        }
                        actor.note(format!("{command} is lost"));
                        continue;
                    }
                    4 => {
                        // Three times is what a ring survives.
                        self.aborts = if random.one_in(12) { 8 } else { random.below(3) as u32 };
                        if self.aborts > 3 {
                            faults.gone.begin();
                            status.gone.store(true, SeqCst);
                        }
                        actor.note(format!("aborts {} times", self.aborts + 1));
                        return (at, Some(CommandError::Abt));
                    }
                    _ => {}
                }
            }
            if world.model.caches().execute(*command).is_err() {
                world.found(format!("{}: a host got {command}, which it need not take", actor.name()));
            }
        }
        (commands.len().min(most), None)
    }
}
