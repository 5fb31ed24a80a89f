//! Interrupts: which errors and CMD_SYNCs pulse a wire or send an MSI, when, and what is visible by then (facts sheet,
//! sections 1.11, 2.4 and 3.4).

mod common;

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use common::reg::*;
use common::*;
use ecmdq_engine::{Command, EventfdInterrupts, Features, Interrupts, memory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// IRQ_CTRL.GERROR_IRQEN.
const GERROR_IRQEN: u32 = 1 << 0;
/// GERROR.MSI_GERROR_ABT_ERR.
const MSI_GERROR_ABT_ERR: u32 = 1 << 7;
/// A word of RAM that is in no queue, and where no guest has memory.
const WORD: u64 = RAM + 0x804;
const HOLE: u64 = 0x1000;
/// The lowest address bit that OAS=1, which is 36 bits, leaves out.
const ABOVE_OAS: u64 = 1 << 36;

/// A machine with an enabled queue of 2^4 entries, whose interrupts are written down.
fn recorded(change: impl FnOnce(&mut Features)) -> (Machine, Recorder) {
    let features = features(change);
    let control = if features.ecmdq { 0x1_0000 } else { 0 };
    let pages = memory::memfd("test-registers", PAGES + control).unwrap().1;
    let recorder = Recorder::new(pages.clone());
    let interrupts = Box::new(recorder.clone());
    let setup = Setup { features, pages: Some(pages), interrupts, ..Setup::default() };
    (Machine::new(setup).enabled(4), recorder)
}

/// As [`recorded`], with the global error interrupt enabled, its MSI at `address` with data 0x6e.
fn with_gerror_msi(address: u64) -> (Machine, Recorder) {
    let (mut machine, recorder) = recorded(|f| f.oas = 1);
    machine.guest.write_u64(GERROR_IRQ_CFG0, address);
    machine.guest.write(GERROR_IRQ_CFG1, 0x6e);
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.settle();
    (machine, recorder)
}

#[test]
fn the_gerror_wire_is_silent_unless_gerror_irqen_is_set() {
    // IRQ_CTRL, what comes for an illegal command.
    for (irq_ctrl, expected) in
        [(0, vec![]), (4, vec![]), (1, vec![Event::Gerror(1)]), (5, vec![Event::Gerror(1)])]
    {
        let (mut machine, recorder) = recorded(|_| ());
        machine.guest.write(IRQ_CTRL, irq_ctrl);
        machine.settle();
        machine.run(&[illegal()]);
        assert_eq!((machine.guest.active(), recorder.take()), (CMDQ_ERR, expected), "IRQ_CTRL {irq_ctrl}");
    }
}

#[test]
fn enabling_the_interrupt_does_not_tell_of_errors_of_before() {
    let (mut machine, recorder) = recorded(|_| ());
    machine.run(&[illegal()]);
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.settle();
    assert_eq!(recorder.take(), [], "it is an edge of the activation");
    machine.guest.ack();
    machine.settle();
    assert_eq!(recorder.take(), [Event::Gerror(0)], "the unmended command fails again");
}

/// Section 2.4: once per activation; what is active already is not told again. GERROR is visible by then.
#[test]
fn the_gerror_wire_pulses_once_for_each_activation_and_gerror_is_visible() {
    let (mut machine, recorder) = with_gerror_msi(0);
    machine.run(&[sync_msi(HOLE, 9), sync_msi(HOLE, 9), illegal()]);
    // Wires are pulsed after the visit, which completes both CMD_SYNCs: by then the illegal command behind them has stopped the queue.
    let stopped_at_2 = CERROR_ILL << 24 | 2;
    let told = [
        [Event::Msi(HOLE, 9, 1), Event::CmdSync(stopped_at_2)],
        [Event::Msi(HOLE, 9, 0x11), Event::CmdSync(stopped_at_2)],
        // One is that of the illegal command, the other one that of the aborted MSIs.
        [Event::Gerror(0x11), Event::Gerror(0x11)],
    ];
    assert_eq!(recorder.take(), told.concat());
    machine.guest.write(GERRORN, 0x10);
    machine.settle();
    assert_eq!(recorder.take(), [], "acknowledging is no activation");
    machine.guest.write(GERRORN, 0x11);
    machine.settle();
    assert_eq!(recorder.take(), [Event::Gerror(0x10)], "the command fails again: bit 0 toggles back");
}

/// Section 4.3: an ECMDQ's error is told by CMDQP_ERR; one that comes while that is active interrupts nobody.
#[test]
fn errors_of_ecmdqs_pulse_the_gerror_wire_while_cmdqp_err_is_not_active() {
    let (mut machine, recorder) = recorded(|f| *f = f.with_ecmdqs(0, 1));
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    for (number, expected) in [(0, vec![Event::Gerror(0x200)]), (1, vec![])] {
        let mut queue = machine.guest.ecmdq(number);
        queue.start(4);
        machine.settle();
        queue.send(&[illegal()]);
        machine.settle();
        assert_eq!((queue.error(), recorder.take()), (Some(CERROR_ILL), expected), "ECMDQ {number}");
    }
}

/// What GERROR says when its MSI comes can be seen where the MSI goes through the VMM.
#[test]
fn the_gerror_msi_goes_to_ram_or_to_the_vmm_and_the_wire_fires_as_well() {
    // IRQ_CFG0, the word of RAM, what the VMM gets.
    let vmm = Event::Msi(MSI_PAGE + 0x40, 0x6e, 1);
    let cases = [
        (0, 0, vec![Event::Gerror(1)]),
        (WORD, 0x6e, vec![Event::Gerror(1)]),
        (WORD | 3, 0x6e, vec![Event::Gerror(1)]),
        (ABOVE_OAS | WORD, 0x6e, vec![Event::Gerror(1)]),
        (MSI_PAGE + 0x40, 0, vec![vmm, Event::Gerror(1)]),
        (ABOVE_OAS | (MSI_PAGE + 0x40), 0, vec![vmm, Event::Gerror(1)]),
    ];
    for (address, word, expected) in cases {
        let (mut machine, recorder) = with_gerror_msi(address);
        machine.run(&[illegal()]);
        assert_eq!(machine.guest.u32_at(WORD), word, "{address:#x}");
        assert_eq!((recorder.take(), machine.guest.active()), (expected, CMDQ_ERR), "{address:#x}");
        let sent = u64::from(address != 0);
        assert_eq!(machine.guest.stats.read().msis, sent, "{address:#x}");
    }
}

/// Section 2.4: any bit but MSI_GERROR_ABT_ERR interrupts.
#[test]
fn a_gerror_msi_that_aborts_is_an_error_without_an_interrupt() {
    let (mut machine, recorder) = with_gerror_msi(HOLE);
    machine.run(&[illegal()]);
    assert_eq!(recorder.take(), [Event::Msi(HOLE, 0x6e, 1), Event::Gerror(0x81)]);
    assert_eq!(machine.guest.active(), CMDQ_ERR | MSI_GERROR_ABT_ERR);
    let stats = machine.guest.stats.read();
    assert_eq!((stats.msis, stats.msi_aborts), (0, 1));
}

#[test]
fn without_the_msi_feature_the_gerror_address_is_ignored() {
    let (mut machine, recorder) = recorded(|f| f.msi = false);
    machine.guest.write_u64(GERROR_IRQ_CFG0, WORD);
    machine.guest.write(GERROR_IRQ_CFG1, 0x6e);
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.settle();
    machine.run(&[illegal()]);
    assert_eq!((machine.guest.u32_at(WORD), recorder.take()), (0, vec![Event::Gerror(1)]));
}

#[test]
fn a_failed_register_request_interrupts() {
    let vmm = Vmm::default();
    let pages = memory::memfd("test-registers", PAGES).unwrap().1;
    let recorder = Recorder::new(pages.clone());
    let interrupts = Box::new(recorder.clone());
    let on_request = vmm.on_request();
    let mut machine = Machine::new(Setup { pages: Some(pages), interrupts, on_request, ..Setup::default() });
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.guest.write(CR0, SMMUEN);
    machine.settle();
    drop(vmm.take());
    machine.settle();
    assert_eq!(recorder.take(), [Event::Gerror(SFM_ERR)]);
}

/// CMD_SYNC with another CS than IRQ, and MSI fields, which mean nothing then.
fn quiet(cs: u64, address: u64) -> Command {
    Command([0x46 | cs << 12 | 9 << 32, address])
}

/// Section 1.11: the wire pulses for CS=IRQ whatever MSIAddress is, and needs no enable. Section 3.4: CONS has passed the
/// CMD_SYNC by then.
#[test]
fn which_cmd_syncs_pulse_the_wire_and_which_send_an_msi() {
    let msi = |address| Event::Msi(address, 7, 0);
    let pulse = Event::CmdSync(1);
    // The command, whether the SMMU has MSIs, the word of RAM, what the VMM gets, active errors.
    let cases = [
        (sync_msi(0, 7), true, 0, vec![pulse], 0),
        (sync_msi(WORD, 7), true, 7, vec![pulse], 0),
        (sync_msi(ABOVE_OAS | WORD, 7), true, 7, vec![pulse], 0),
        (sync_msi(MSI_PAGE, 7), true, 0, vec![msi(MSI_PAGE), pulse], 0),
        (sync_msi(ABOVE_OAS | MSI_PAGE, 7), true, 0, vec![msi(MSI_PAGE), pulse], 0),
        (sync_msi(ABOVE_OAS, 7), true, 0, vec![msi(0), pulse], MSI_CMDQ_ABT_ERR),
        (sync_msi(HOLE, 7), true, 0, vec![msi(HOLE), pulse], MSI_CMDQ_ABT_ERR),
        (sync_msi(WORD, 7), false, 0, vec![pulse], 0),
        (quiet(0, WORD), true, 0, vec![], 0),
        (quiet(0, MSI_PAGE), true, 0, vec![], 0),
        (quiet(2, WORD), true, 0, vec![], 0),
        (quiet(2, MSI_PAGE), true, 0, vec![], 0),
    ];
    for (command, has_msi, word, expected, active) in cases {
        let (mut machine, recorder) = recorded(|f| (f.msi, f.oas) = (has_msi, 1));
        machine.run(&[command]);
        assert_eq!((machine.guest.cons(), machine.guest.u32_at(WORD)), (1, word), "{command}");
        assert_eq!((recorder.take(), machine.guest.active()), (expected, active), "{command}");
    }
}

#[test]
fn a_cmd_sync_of_an_ecmdq_interrupts_in_the_same_way() {
    let (mut machine, recorder) = recorded(|f| *f = f.with_ecmdqs(0, 1));
    let mut queue = machine.guest.ecmdq(1);
    queue.start(4);
    machine.settle();
    queue.send(&[sync_msi(MSI_PAGE, 7), sync_msi(WORD, 8), sync_msi(HOLE, 9), sync()]);
    machine.settle();
    let pulse = Event::CmdSync(0);
    let expected = [Event::Msi(MSI_PAGE, 7, 0), pulse, pulse, Event::Msi(HOLE, 9, 0), pulse];
    assert_eq!((recorder.take(), machine.guest.u32_at(WORD)), (expected.to_vec(), 8));
    assert_eq!((queue.cons(), machine.guest.active()), (4, MSI_CMDQ_ABT_ERR));
}

#[test]
fn nothing_interrupts_before_the_host_is_done() {
    let pages = memory::memfd("test-registers", PAGES).unwrap().1;
    let recorder = Recorder::new(pages.clone());
    let mut rig = Rig::new(0, 4, Script::default());
    let interrupts = Box::new(recorder.clone());
    rig.add(Setup { pages: Some(pages), interrupts, ..Setup::default() }, 4);
    rig.guests[0].send(&[nh_asid(1), sync_msi(MSI_PAGE, 7)]);
    rig.poll_times(3);
    assert_eq!(recorder.take(), []);
    rig.host.finish(1);
    rig.poll();
    assert_eq!(recorder.take(), [Event::Msi(MSI_PAGE, 7, 0), Event::CmdSync(2)]);
}

/// Two eventfds as an irqfd has them, and a machine whose wires they are, with GERROR_IRQEN.
fn on_eventfds() -> (Machine, EventFd, EventFd) {
    let [gerror, cmd_sync] = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
    let interrupts = EventfdInterrupts {
        gerror: Some(gerror.try_clone().unwrap()),
        cmd_sync: Some(cmd_sync.try_clone().unwrap()),
        ..EventfdInterrupts::default()
    };
    let mut machine = Machine::new(Setup { interrupts: Box::new(interrupts), ..Setup::default() }).enabled(4);
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.settle();
    (machine, gerror, cmd_sync)
}

fn is_quiet(wire: &EventFd) -> bool {
    wire.read().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn eventfds_count_the_edges() {
    let (mut machine, gerror, cmd_sync) = on_eventfds();
    assert!(is_quiet(&gerror) && is_quiet(&cmd_sync));
    machine.run(&[sync_msi(WORD, 1), sync_msi(0, 1), sync(), sync_msi(WORD, 2), sync_sev()]);
    assert_eq!(cmd_sync.read().unwrap(), 3);
    assert!(is_quiet(&gerror) && is_quiet(&cmd_sync));
    machine.run(&[sync_msi(HOLE, 1), illegal()]);
    assert_eq!((gerror.read().unwrap(), cmd_sync.read().unwrap()), (2, 1));
    assert!(is_quiet(&gerror) && is_quiet(&cmd_sync));
}

/// An eventfd's counter goes up to 2^64 - 2. A test that blocks hangs here.
#[test]
fn eventfds_whose_counters_are_full_do_not_block_the_worker() {
    let (mut machine, gerror, cmd_sync) = on_eventfds();
    for wire in [&gerror, &cmd_sync] {
        wire.write(u64::MAX - 1).unwrap();
    }
    machine.run(&[sync_msi(WORD, 9), nh_asid(1), illegal()]);
    assert_eq!((machine.guest.cons(), machine.guest.error()), (2, Some(CERROR_ILL)));
    assert_eq!(machine.guest.u32_at(WORD), 9);
    assert_eq!((gerror.read().unwrap(), cmd_sync.read().unwrap()), (u64::MAX - 1, u64::MAX - 1));
}

#[test]
fn wires_that_are_not_there_are_not_missed() {
    let interrupts = EventfdInterrupts::default();
    assert_eq!(
        format!("{interrupts:?}"),
        "EventfdInterrupts { gerror: None, cmd_sync: None, event_queue: None, page_request_queue: None, msi: false }"
    );
    let mut machine = Machine::new(Setup { interrupts: Box::new(interrupts), ..Setup::default() }).enabled(4);
    machine.guest.write(IRQ_CTRL, GERROR_IRQEN);
    machine.settle();
    machine.run(&[sync_msi(0, 1), sync_msi(MSI_PAGE, 1), illegal()]);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (2, CMDQ_ERR | MSI_CMDQ_ABT_ERR));
}

#[test]
fn the_msi_sink_of_eventfd_interrupts_says_what_is_there() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let mut interrupts = EventfdInterrupts {
        msi: Some(Box::new(move |address, data| {
            sink.lock().unwrap().push((address.0, data));
            address.0 == MSI_PAGE
        })),
        ..EventfdInterrupts::default()
    };
    let there = [MSI_PAGE, HOLE].map(|at| interrupts.msi(vm_memory::GuestAddress(at), 5));
    assert_eq!((there, seen.lock().unwrap().as_slice()), ([true, false], &[(MSI_PAGE, 5), (HOLE, 5)][..]));
}
