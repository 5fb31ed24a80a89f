//! Snapshots in whose parts there is nothing wrong, but which no virtual SMMU can have written.

use ecmdq_engine::Snapshot;
use serde_json::{Value, json};

use crate::traffic::Guest;
use crate::vm::Vm;

/// A machine whose guest has enabled its queues, paused, and its state.
fn paused() -> (Vm, Value) {
    let mut vm = Vm::new();
    Guest::start(&vm);
    vm.poll(1);
    vm.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
    vm.poll(1);
    vm.smmu.pause();
    let state = serde_json::to_value(vm.smmu.save().unwrap()).unwrap();
    (vm, state)
}

/// Changes the state of [`paused`]; it must be refused, with this reason, and change nothing.
fn refused(change: impl FnOnce(&mut Value), reason: &str) {
    let (vm, mut state) = paused();
    let before = vm.registers();
    change(&mut state);
    let snapshot: Snapshot = serde_json::from_value(state.clone()).unwrap();
    let result = vm.smmu.restore(&snapshot);
    assert_eq!(vm.registers(), before, "{state}");
    let error = result.expect_err(&state.to_string()).to_string();
    assert_eq!(error, format!("the snapshot is corrupt: {reason}"), "{state}");
}

const REGISTER: &str = "a register that is not saved, or is not in order";
const VALUE: &str = "a register's value";

#[test]
fn id_registers_and_all_that_the_guest_does_not_write_are_not_overwritten() {
    // IDR0, IDR1, AIDR, CR0ACK, GERROR, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS, half of STRTAB_BASE, a description of a control page,
    // what is on no page.
    for offset in [0x00, 0x04, 0x1c, 0x24, 0x60, 0x90, 0x98, 0x9c, 0x84, 0x4000, 0x2_0000, u32::MAX] {
        for value in [0, 1] {
            refused(|state| state["registers"] = json!([[offset, value]]), REGISTER);
        }
    }
}

#[test]
fn registers_are_there_once_in_order_and_not_zero() {
    // CR0, CR1, GERROR_IRQ_CFG1.
    refused(|state| state["registers"] = json!([[0x20, 9], [0x20, 9]]), REGISTER);
    refused(|state| state["registers"] = json!([[0x28, 1], [0x20, 9]]), REGISTER);
    refused(|state| state["registers"] = json!([[0x20, 9], [0x70, 0]]), VALUE);
    refused(|state| state["registers"] = json!([[0x20, 1 << 5]]), VALUE);
    // A 32-bit register has no more bits than that.
    refused(|state| state["registers"] = json!([[0x70, 1u64 << 32]]), VALUE);
}

#[test]
fn an_error_of_the_cmdq_goes_with_a_cmdq_that_it_stops() {
    let queue = "a queue";
    refused(|state| state["gerror"] = json!(1), queue);
    refused(|state| state["queues"][0]["stopped"] = json!(true), queue);
    // As after reset, but for the error.
    let error = |state: &mut Value| {
        (state["gerror"], state["cr0ack"], state["queues"]) = (json!(1), json!(0), json!([]));
    };
    refused(error, "GERROR.CMDQ_ERR");
}

#[test]
fn gerror_has_only_errors_that_are_raised() {
    for bit in [1 << 10, 1 << 1, 1 << 31] {
        refused(|state| state["gerror"] = json!(bit as u32), "GERROR");
    }
}

#[test]
fn an_enabled_queue_has_a_code_that_there_is_and_the_cmdq_only_while_it_is_stopped() {
    let code = |queue: usize, stopped: bool, code: u32| {
        move |state: &mut Value| {
            let cons = state["queues"][queue]["cons"].as_u64().unwrap() as u32;
            state["queues"][queue]["cons"] = json!(cons | code << 24);
            state["queues"][queue]["stopped"] = json!(stopped);
            state["gerror"] = json!(u32::from(queue == 0 && stopped));
        }
    };
    for n in [4, 7] {
        refused(code(0, true, n), "a queue");
        refused(code(1, true, n), "a queue");
    }
    refused(code(0, false, 1), "a queue");
}

#[test]
fn a_queue_as_after_reset_is_left_out() {
    let empty = json!({"number": 4, "enabled": false, "stopped": false, "base": 0, "prod": 0, "cons": 0});
    refused(|state| state["queues"][4] = empty, "a queue");
}
