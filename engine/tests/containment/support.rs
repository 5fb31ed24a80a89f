//! A bad guest beside good ones.

use std::panic;
use std::sync::Once;

use ecmdq_engine::{Event, EventKind, Vmid};

use crate::common::*;

/// Part of what panics on purpose say, which are not printed.
pub const ON_PURPOSE: &str = "on purpose";

/// Keeps panics on purpose quiet. Any other is still told.
pub fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !panic.payload_as_str().is_some_and(|text| text.contains(ON_PURPOSE)) {
                tell(panic);
            }
        }));
    });
}

/// A guest with ATS, two ECMDQs, and a shared frame.
pub fn setup(vmid: u16) -> Setup {
    Rig::ats_setup(vmid)
}

/// The bad guest, which is number 0 and has VMID 1, and two good ones, in front of a host that completes everything.
pub fn rig(bad: Setup) -> Rig {
    let mut rig = Rig::new(0, 4, Script::at_once());
    rig.add(bad, 4);
    rig.add(setup(2), 4);
    rig.add(setup(3), 4);
    rig
}

/// A good guest sends an invalidation and a CMD_SYNC, which is complete within a few sweeps, and is counted.
pub fn goes_on(guest: &mut Guest, mut poll: impl FnMut()) {
    let before = guest.stats.read();
    guest.send(&[nh_asid(1), sync()]);
    (0..4).for_each(|_| poll());
    let after = guest.stats.read();
    assert_eq!((guest.cons(), guest.active()), (guest.prod(), 0));
    let counted =
        (after.commands - before.commands, after.syncs - before.syncs, after.forwarded - before.forwarded);
    assert_eq!(counted, (2, 1, 1), "commands, CMD_SYNCs, forwarded");
}

/// All guests but the first go on.
pub fn others_go_on(rig: &mut Rig) {
    let worker = &mut rig.worker;
    rig.guests[1..].iter_mut().for_each(|guest| goes_on(guest, || _ = worker.poll()));
}

/// What the VMM was told since the last call: all of it is of the bad guest.
pub fn told(rig: &Rig) -> Vec<EventKind> {
    let events: Vec<Event> = rig.worker.events().waiting().collect();
    assert!(events.iter().all(|event| event.guest == Some(Vmid(1))), "{events:?}");
    events.into_iter().map(|event| event.kind).collect()
}
