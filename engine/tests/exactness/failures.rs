//! A host that fails: whoever's commands were lost is told at its own CMD_SYNC, whenever that comes, and nobody else.

use ecmdq_engine::Worker;
use ecmdq_engine::host::Cause;
use ecmdq_engine::host::model::{Entry, ModelSmmu, Pace};

use crate::commands::Cmd;
use crate::entries::Cached;
use crate::vm::{Shown, Vm, host_features, vmid};

const ALL: Shown =
    Shown { ril: true, ds: false, ats: true, asid16: true, smmuen: true, ssid_bits: 0, ecmdqs_log2: 1 };
const ATC: Cmd = Cmd::Atc { stream: 1, substream: None, address: 0, size: 52 };
const IN_ATC: Cached = Cached::Atc { stream: 1, substream: None, base: 0x4000_0000, log2: 12 };
/// CERROR_ILL and CERROR_ATC_INV_SYNC.
const ILL: u32 = 1;
const ATC_INV_SYNC: u32 = 3;

/// Two guests with three queues each, and a host that does what the test says.
struct Rig {
    vms: [Vm; 2],
    worker: Worker<ModelSmmu>,
    model: ModelSmmu,
}

impl Rig {
    fn new() -> Self {
        let features = host_features(true, true);
        let model = ModelSmmu::new(&features);
        let mut worker = Worker::new(model.clone());
        let vms = [0, 1].map(|guest| Vm::new(guest, 2, ALL, features, 4));
        for (guest, vm) in (0..).zip(&vms) {
            worker.attach(vm.smmu.clone()).unwrap();
            vm.start();
            model.caches().insert(Self::in_atc(guest));
        }
        worker.poll();
        assert!(vms.iter().all(Vm::is_started));
        model.set_pace(Pace::ByHand);
        Self { vms, worker, model }
    }

    fn in_atc(guest: u32) -> Entry {
        IN_ATC.on_host(guest, 2, vmid(guest, 2))
    }

    fn has_atc(&self, guest: u32) -> bool {
        self.model.caches().contains(Self::in_atc(guest))
    }

    fn send(&mut self, (guest, queue): (usize, usize), commands: &[Cmd]) {
        self.vms[guest].queues[queue].send(commands.iter().map(|command| command.encode()));
        self.worker.poll();
    }

    /// The host does all that it was asked, this going wrong.
    fn fail(&mut self, cause: Cause) {
        self.model.fail_next(cause);
        self.work();
    }

    fn work(&mut self) {
        self.model.work(usize::MAX, |_| ());
        self.worker.poll();
    }

    fn error(&self, (guest, queue): (usize, usize)) -> Option<u32> {
        self.vms[guest].queues[queue].error()
    }

    fn is_done(&self, (guest, queue): (usize, usize)) -> bool {
        self.vms[guest].queues[queue].outstanding() == 0
    }

    /// The driver acknowledges; the CMD_SYNC is taken again, and completes.
    fn mend(&mut self, at: (usize, usize)) {
        self.vms[at.0].queues[at.1].mend(None);
        self.worker.poll();
        self.work();
        assert!(self.is_done(at) && self.error(at).is_none());
    }
}

#[test]
fn an_atc_timeout_is_told_to_a_sync_that_comes_later() {
    for victim in [(1, 0), (1, 2), (0, 1)] {
        let mut rig = Rig::new();
        rig.send(victim, &[ATC]);
        rig.send((0, 0), &[Cmd::NhAll(0), Cmd::Sync]);
        rig.fail(Cause::AtcTimeout);
        assert!(rig.has_atc(victim.0 as u32), "it was lost");
        rig.work();
        assert!(rig.is_done((0, 0)), "it is not to blame, and only takes longer");
        rig.send(victim, &[Cmd::Asid(1), Cmd::Sync]);
        rig.work();
        assert_eq!((rig.error(victim), rig.is_done(victim)), (Some(ATC_INV_SYNC), false), "{victim:?}");
        rig.mend(victim);
    }
}

#[test]
fn an_atc_timeout_is_told_to_a_sync_that_waits_for_a_later_ticket() {
    let mut rig = Rig::new();
    rig.send((1, 0), &[ATC]);
    rig.send((0, 0), &[Cmd::NhAll(0), Cmd::Sync]);
    rig.send((1, 0), &[Cmd::Asid(1), Cmd::Sync]);
    assert_eq!(rig.model.syncs(), (1, 0), "its ticket is asked for when this one is over");
    rig.fail(Cause::AtcTimeout);
    assert_eq!((rig.model.syncs(), rig.error((1, 0))), ((2, 1), None), "it waits for its own");
    rig.work();
    assert_eq!((rig.error((1, 0)), rig.error((0, 0))), (Some(ATC_INV_SYNC), None));
    rig.mend((1, 0));
    assert!(rig.is_done((0, 0)));
}

#[test]
fn an_atc_timeout_is_not_told_to_those_whose_atc_inv_came_before_or_after() {
    let mut rig = Rig::new();
    rig.send((1, 0), &[ATC, Cmd::Sync]);
    rig.work();
    assert!(rig.is_done((1, 0)) && !rig.has_atc(1), "before");
    rig.send((0, 0), &[ATC, Cmd::Sync]);
    rig.send((1, 1), &[ATC]);
    rig.fail(Cause::AtcTimeout);
    assert_eq!(rig.error((0, 0)), Some(ATC_INV_SYNC));
    for queue in [(1, 0), (1, 1)] {
        rig.send(queue, &[Cmd::Asid(1), Cmd::Sync]);
        rig.work();
        assert_eq!((rig.error(queue), rig.is_done(queue)), (None, true), "{queue:?}");
    }
    rig.mend((0, 0));
}

#[test]
fn a_refused_command_is_told_to_a_sync_that_comes_later() {
    let mut rig = Rig::new();
    rig.send((1, 1), &[Cmd::Asid(7)]);
    rig.send((0, 0), &[Cmd::NhAll(0), Cmd::Sync]);
    rig.fail(Cause::Illegal);
    rig.work();
    assert!(rig.is_done((0, 0)), "it is not to blame");
    rig.send((1, 0), &[Cmd::Asid(8), Cmd::Sync]);
    rig.work();
    assert!(rig.is_done((1, 0)), "its queue sent nothing that was refused");
    rig.send((1, 1), &[Cmd::Sync]);
    rig.work();
    assert_eq!((rig.error((1, 1)), rig.is_done((1, 1))), (Some(ILL), false));
    rig.mend((1, 1));
}

#[test]
fn a_transient_failure_is_told_to_nobody_but_what_it_put_off_may_still_be_lost() {
    let mut rig = Rig::new();
    rig.send((1, 0), &[ATC]);
    rig.send((0, 0), &[Cmd::NhAll(0), Cmd::Sync]);
    rig.fail(Cause::Transient);
    assert!(rig.has_atc(1) && !rig.is_done((0, 0)), "it was put off");
    rig.fail(Cause::AtcTimeout);
    assert_eq!((rig.error((0, 0)), rig.error((1, 0))), (None, None));
    rig.work();
    assert!(rig.is_done((0, 0)));
    rig.send((1, 0), &[Cmd::Asid(1), Cmd::Sync]);
    rig.work();
    assert_eq!((rig.error((1, 0)), rig.is_done((1, 0))), (Some(ATC_INV_SYNC), false));
    rig.mend((1, 0));
}

#[test]
fn a_guest_that_was_paused_meanwhile_is_told_when_it_goes_on() {
    for (cause, error) in [(Cause::AtcTimeout, Some(ATC_INV_SYNC)), (Cause::Transient, None)] {
        let mut rig = Rig::new();
        rig.send((1, 0), &[ATC, Cmd::Sync]);
        rig.vms[1].smmu.pause();
        rig.fail(cause);
        rig.vms[1].smmu.resume();
        rig.worker.poll();
        assert_eq!((rig.error((1, 0)), rig.is_done((1, 0))), (error, false), "{cause:?}");
        rig.work();
        assert_eq!(rig.is_done((1, 0)), error.is_none(), "{cause:?}");
    }
}
