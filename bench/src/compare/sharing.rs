//! vCPUs that have one CMDQ for all of them, as Linux drives it without ECMDQs, and vCPUs with an ECMDQ each, in front of a host whose
//! CMD_SYNCs take no time, or some.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use ecmdq_engine::{Command, Worker};

use super::engine::{Ecmdq, EngineServer, several};
use super::host::{STREAMS, features};
use super::late::Late;
use super::{Guest, QUEUE_LOG2, Transport};
use crate::cmdlist::{Cmdlist, Stepped};
use crate::machine::Machine;
use crate::registers::Registers;

/// vCPUs of a guest that share its CMDQ. A CMD_SYNC of the host takes so many ns.
#[derive(Debug)]
pub enum OneCmdq<const SYNC_NS: u64> {}

/// vCPUs of a guest with an ECMDQ each. A CMD_SYNC of the host takes so many ns.
#[derive(Debug)]
pub enum OwnEcmdqs<const SYNC_NS: u64> {}

impl<const SYNC_NS: u64> Transport for OneCmdq<SYNC_NS> {
    type Guest = Stepped;
    type Server = EngineServer<Late>;

    fn open(vcpus: usize) -> io::Result<(Vec<Stepped>, EngineServer<Late>)> {
        let (host, counts) = Late::new(Duration::from_nanos(SYNC_NS))?;
        let mut worker = Worker::new(host);
        let machine = Machine::new(0, features(), &STREAMS)?;
        worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
        let cmdlist = enable(&machine, &mut worker)?;
        let vcpus = (0..vcpus).map(|_| cmdlist.stepped()).collect();
        Ok((vcpus, EngineServer::new(worker, counts, vec![machine])))
    }
}

/// The driver enables the CMDQ and waits for that: meanwhile the worker must poll.
fn enable(machine: &Machine, worker: &mut Worker<Late>) -> io::Result<Cmdlist> {
    let nothing = || io::Error::from(io::ErrorKind::InvalidInput);
    let Registers::Memory(pages) = &machine.registers else { return Err(nothing()) };
    let ring = machine.region(Machine::RAM_BASE, 16 << QUEUE_LOG2).ok_or_else(nothing)?;
    let enabled = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| worker.run(&enabled));
        let cmdlist = Cmdlist::new(pages, Machine::RAM_BASE, ring, QUEUE_LOG2);
        // Relaxed: it carries nothing but itself.
        enabled.store(true, Relaxed);
        cmdlist.map_err(io::Error::other)
    })
}

impl<const SYNC_NS: u64> Transport for OwnEcmdqs<SYNC_NS> {
    type Guest = Ecmdq;
    type Server = EngineServer<Late>;

    fn open(vcpus: usize) -> io::Result<(Vec<Ecmdq>, EngineServer<Late>)> {
        several(Late::new(Duration::from_nanos(SYNC_NS))?, 1, vcpus)
    }
}

impl Guest for Stepped {
    fn send(&mut self, group: &[Command]) -> bool {
        self.start(group)
    }

    fn is_done(&mut self) -> bool {
        self.step()
    }
}
