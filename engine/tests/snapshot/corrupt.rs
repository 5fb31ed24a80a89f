//! Snapshots that no virtual SMMU has written: refused with one line and without a trace, or taken without harm.

use ecmdq_engine::Snapshot;
use serde_json::{Value, json};

use crate::traffic::{Guest, Random, seed};
use crate::vm::{EN, ERR, Vm, features};

/// A machine in the middle of its work, paused, and its state: errors active, requests pending, queues of all kinds.
fn busy() -> (Vm, Value) {
    let mut random = Random(seed());
    let mut vm = Vm::new();
    let mut guest = Guest::start(&vm);
    for _ in 0..2_000 {
        guest.step(&mut vm, &mut random);
        let text = vm.smmu.inspect().to_string();
        if ["stopped by an error", "waits for the host", "waits for the VMM"].iter().all(|s| text.contains(s))
        {
            break;
        }
    }
    vm.smmu.pause();
    let state = serde_json::to_value(vm.smmu.save().unwrap()).unwrap();
    (vm, state)
}

/// All ways to spoil one place of a value: each number, each list, each field, one at a time.
fn spoiled(value: &Value, spoil: &mut dyn FnMut(Value)) {
    for other in [json!(null), json!("7"), json!(-1), json!(1.5), json!([]), json!({}), json!(true)] {
        spoil(other);
    }
    match value {
        Value::Number(number) => {
            let n = number.as_u64().unwrap();
            let near = [n.wrapping_add(1), n.wrapping_sub(1), 0, 1, u64::MAX, u32::MAX.into(), 1 << 32];
            let flipped = (0..32).chain([40, 55, 56, 62, 63]).map(|bit| n ^ 1 << bit);
            near.into_iter().chain(flipped).filter(|other| *other != n).for_each(|n| spoil(json!(n)));
        }
        Value::Bool(b) => spoil(json!(!b)),
        Value::Array(values) => {
            for at in 0..values.len() {
                spoiled(&values[at], &mut |other| {
                    let mut values = values.clone();
                    values[at] = other;
                    spoil(values.into());
                });
                let mut without = values.clone();
                let removed = without.remove(at);
                spoil(without.into());
                spoil([values.clone(), vec![removed]].concat().into());
            }
        }
        Value::Object(fields) => {
            for name in fields.keys() {
                spoiled(&fields[name], &mut |other| {
                    let mut fields = fields.clone();
                    fields[name] = other;
                    spoil(fields.into());
                });
                let mut without = fields.clone();
                without.remove(name);
                spoil(without.into());
            }
        }
        _ => {}
    }
}

#[test]
fn a_snapshot_spoiled_in_any_place_is_refused_without_a_trace_or_does_no_harm() {
    let (mut vm, state) = busy();
    let good: Snapshot = serde_json::from_value(state.clone()).unwrap();
    let (mut refused, mut taken, mut unreadable) = (0, 0, 0);
    let (mut before, mut text) = (vm.registers(), vm.smmu.inspect().to_string());
    spoiled(&state, &mut |value| {
        let Ok(snapshot) = serde_json::from_value::<Snapshot>(value.clone()) else {
            unreadable += 1;
            return;
        };
        match vm.smmu.restore(&snapshot) {
            Err(error) => {
                refused += 1;
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
                assert_eq!(vm.registers(), before, "{error}: {value}");
                assert_eq!(vm.smmu.inspect().to_string(), text, "{error}: {value}");
            }
            Ok(()) => {
                taken += 1;
                vm.smmu.resume();
                vm.poll(3);
                vm.host.finish_all();
                vm.poll(1);
                vm.asked.lock().unwrap().clear();
                vm.poll(1);
                assert!(vm.registers().len() > 10);
                vm.smmu.pause();
                let again = vm.smmu.save().unwrap();
                vm.smmu.restore(&again).unwrap_or_else(|e| panic!("{e}: what became of {value}"));
                vm.smmu.restore(&good).unwrap();
                (before, text) = (vm.registers(), vm.smmu.inspect().to_string());
            }
        }
    });
    println!("{refused} refused, {taken} taken, {unreadable} unreadable");
    assert!(refused > 300 && taken > 100 && unreadable > 500, "{refused} {taken} {unreadable}");
}

#[test]
fn errors_of_a_restore_say_what_is_wrong() {
    let (vm, state) = busy();
    let refuse = |path: &str, value: Value, message: &str| {
        let mut state = state.clone();
        *state.pointer_mut(path).unwrap() = value;
        let snapshot: Snapshot = serde_json::from_value(state).unwrap();
        assert_eq!(vm.smmu.restore(&snapshot).unwrap_err().to_string(), message);
    };
    refuse("/version", json!(3), "the snapshot has version 3, this is for versions up to 2");
    refuse("/version", json!(0), "the snapshot has version 0, this is for versions up to 2");
    let idr1 = features().idrs()[1];
    let message = format!("the snapshot is of an SMMU with IDR1={:#x}, this one has {idr1:#x}", idr1 ^ 1);
    refuse("/idrs/1", json!(idr1 ^ 1), &message);
    refuse("/queues/0/number", json!(5), "the snapshot is corrupt: a queue that does not exist");
    refuse("/queues/1/number", json!(0), "the snapshot is corrupt: the queues are not in order");
    refuse("/gerror", json!(2), "the snapshot is corrupt: GERROR");
    refuse("/cr0ack", json!(0x20), "the snapshot is corrupt: CR0ACK");
    // The bit under the surface of CONS that makes a read of it wait.
    refuse("/queues/0/cons", json!(1 << 22), "the snapshot is corrupt: a queue");
    vm.smmu.resume();
    let good: Snapshot = serde_json::from_value(state.clone()).unwrap();
    assert_eq!(vm.smmu.restore(&good).unwrap_err().to_string(), "the virtual SMMU is not paused");
}

#[test]
fn nothing_that_a_guest_writes_keeps_it_from_being_moved() {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(2);
    // An error acknowledged that is not active counts as active (facts sheet, section 2.4); a CONS with bits that only the
    // SMMU sets, of a queue that is disabled, and of one whose handshake is half done; a queue without memory.
    vm.write(0x64, 0x7fd);
    vm.queue_write(1, 8, 0);
    vm.poll(1);
    for (queue, prod, cons) in [(1, 0, u32::MAX), (2, EN | ERR | 0x7f_ffff, 0), (3, 0, u32::MAX)] {
        vm.queue_write(queue, 12, cons);
        vm.queue_write(queue, 8, prod);
    }
    vm.write_base(1, u64::MAX);
    vm.write(0x20, 0x1d);
    vm.smmu.pause();
    for served in [false, true] {
        if served {
            vm.smmu.resume();
            vm.poll(3);
            vm.smmu.pause();
        }
        let saved = vm.smmu.save().unwrap();
        let new = Vm::new();
        new.smmu.pause();
        new.smmu.restore(&saved).unwrap();
        assert_eq!(new.smmu.save().unwrap(), saved);
    }
}
