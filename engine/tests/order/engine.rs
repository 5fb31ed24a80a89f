//! The engine, between a guest with a CMDQ and two ECMDQs and the host.

use ecmdq_engine::{Command, HostStreamId, StreamId, Worker};

use crate::common::reg::CR0;
use crate::common::{CMDQEN, Ecmdq, Guest, SMMUEN, Setup};
use crate::host::Host;
use crate::run::{Driver, QUEUES, ROOM};
use crate::tables::{CONTEXTS, SUBSTREAMS};

pub struct Engine {
    guest: Guest,
    ecmdqs: [Ecmdq; QUEUES - 1],
    worker: Worker<Host>,
    passed: [u64; QUEUES],
}

impl Engine {
    pub fn new(host: Host) -> Self {
        let mut setup = Setup::with(|features| {
            *features = features.with_ecmdqs(0, 1);
            (features.ats, features.ssid_bits) = (true, 1);
        });
        setup.max_streams = 1 + CONTEXTS / SUBSTREAMS;
        let (mut guest, smmu) = Guest::new(setup);
        for stream in 0..(CONTEXTS / SUBSTREAMS) as u32 {
            guest.streams.insert(StreamId(stream), HostStreamId(stream)).unwrap();
        }
        let mut worker = Worker::new(host);
        worker.attach(smmu).unwrap();
        guest.start(ROOM.ilog2());
        guest.write(CR0, CMDQEN | SMMUEN);
        let mut ecmdqs = [0, 1].map(|number| guest.ecmdq(number));
        ecmdqs.iter_mut().for_each(|ecmdq| ecmdq.start(ROOM.ilog2()));
        worker.poll();
        assert!(guest.enabled() && ecmdqs.iter().all(Ecmdq::enabled));
        Self { guest, ecmdqs, worker, passed: [0; QUEUES] }
    }
}

impl Driver for Engine {
    fn send(&mut self, queue: usize, commands: &[Command]) {
        match queue.checked_sub(1) {
            None => self.guest.send(commands),
            Some(ecmdq) => self.ecmdqs[ecmdq].send(commands),
        }
    }

    fn poll(&mut self) {
        self.worker.poll();
    }

    fn passed(&mut self, queue: usize) -> u64 {
        let (cons, error) = match queue.checked_sub(1) {
            None => (self.guest.cons(), self.guest.error()),
            Some(ecmdq) => (self.ecmdqs[ecmdq].cons(), self.ecmdqs[ecmdq].error()),
        };
        assert_eq!(error, None, "queue {queue}");
        let passed = &mut self.passed[queue];
        *passed += u64::from(cons).wrapping_sub(*passed) % (2 * ROOM as u64);
        *passed
    }
}
