//! Snapshots at random points of running traffic: nothing is lost, nothing is out of order, everything goes on.

use crate::traffic::{Guest, Random, seed};
use crate::vm::Vm;

fn snapshots() -> usize {
    std::env::var("ECMDQ_SNAPSHOTS").map_or(200, |n| n.parse().expect("ECMDQ_SNAPSHOTS is a number"))
}

#[test]
fn a_guest_that_is_moved_at_random_points_loses_nothing() {
    let mut random = Random(seed());
    let mut vm = Vm::new();
    let mut guest = Guest::start(&vm);
    for n in 1..=snapshots() {
        for _ in 0..random.below(80) {
            guest.step(&mut vm, &mut random);
        }
        guest.check_host(&vm);
        let new = vm.moved();
        guest.moved();
        // What the old machine's VMM and host still do has no effect on the new one.
        vm.host.set_room(usize::MAX);
        vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
        vm = new;
        vm.smmu.resume();
        if n % 25 == 0 {
            guest.finish(&mut vm, &mut random);
        }
    }
    guest.finish(&mut vm, &mut random);
    assert!(guest.sent() > 5 * snapshots(), "the guest was hardly running: {} commands", guest.sent());
}
