//! When the queues interrupt, and what the guest sees by then (IHI 0070 §3.18).

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ecmdq_engine::host::NativeRing;
use ecmdq_engine::memory::Ram;
use ecmdq_engine::{FrontEnd, Interrupts, NotRecorded, StreamIdOf, Worker};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::vm::*;
use crate::{EVENT, record};

#[test]
fn the_wire_fires_when_the_queue_was_empty_and_prod_is_visible() {
    for (name, front_end) in front_ends() {
        let mut vm = Vm::enabled(front_end, 2);
        record(&vm).unwrap();
        assert_eq!(vm.seen(), [Seen::EventWire(1)], "{name}");
        record(&vm).unwrap();
        assert_eq!(vm.seen(), [], "{name}: it was not empty");
        vm.write(EVENTQ.cons, 2);
        record(&vm).unwrap();
        record(&vm).unwrap();
        assert_eq!(vm.seen(), [Seen::EventWire(4)], "{name}: one for both");
        vm.smmu.record_page_request([0x42, 0], StreamIdOf::Guest).unwrap();
        assert_eq!(vm.seen(), [Seen::PageRequestWire(1)], "{name}");
    }
}

/// The guest has read the entries that there were, and the old PROD: only an interrupt tells it of the new one.
#[test]
fn a_queue_that_becomes_empty_while_a_record_is_written_was_empty() {
    let [_, _, (_, shared)] = front_ends();
    let mut vm = Vm::enabled(shared, 2);
    record(&vm).unwrap();
    assert_eq!(vm.seen(), [Seen::EventWire(1)]);
    vm.meanwhile(EVENTQ.cons, 1);
    record(&vm).unwrap();
    assert_eq!((vm.indices(&EVENTQ), vm.seen()), ((2, 1), vec![Seen::EventWire(2)]));
}

#[test]
fn a_source_that_is_not_enabled_is_silent() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
    for irq_ctrl in [0, 1, 3] {
        vm.set(IRQ_CTRL, irq_ctrl);
        record(&vm).unwrap();
        vm.write(EVENTQ.cons, vm.read(EVENTQ.prod));
        vm.set(IRQ_CTRL, ALL);
        assert_eq!(vm.seen(), [], "IRQ_CTRL {irq_ctrl}");
    }
    record(&vm).unwrap();
    vm.set(IRQ_CTRL, 3);
    assert_eq!(vm.seen(), [], "§3.18.1: none comes when disabling has been acknowledged");
}

#[test]
fn an_msi_goes_to_ram_or_to_the_vmm_or_aborts() {
    let (event, request) = (1 << 5, 1 << 6);
    // The address, what the VMM gets of each queue, the word of RAM, active errors of each queue.
    for (address, taken, word, aborts) in
        [(RAM + 0x100, false, 0x77, false), (MSI, true, 0, false), (HOLE, true, 0, true)]
    {
        for (queue, error) in [(EVENTQ, event), (PRIQ, request)] {
            let mut vm = Vm::enabled(FrontEnd::Trapped, 2);
            vm.set(IRQ_CTRL, 0);
            vm.write_u64(queue.irq_cfg, address);
            vm.write(queue.irq_cfg + 8, 0x77);
            vm.set(IRQ_CTRL, ALL);
            let wire = if error == event {
                record(&vm).unwrap();
                Seen::EventWire(1)
            } else {
                vm.smmu.record_page_request([0x42, 0], StreamIdOf::Guest).unwrap();
                Seen::PageRequestWire(1)
            };
            let active = if aborts { error } else { 0 };
            let told = aborts.then_some(Seen::Gerror(error));
            let msi = taken.then_some(Seen::Msi(address, 0x77));
            let expected: Vec<_> = msi.into_iter().chain([wire]).chain(told).collect();
            assert_eq!((vm.seen(), vm.active()), (expected, active), "{address:#x}");
            assert_eq!(vm.word(RAM + 0x100) as u32, word, "{address:#x}");
            assert_eq!(queue.entry, if error == event { 32 } else { 16 });
        }
    }
}

/// Tells the guest's thread, and calls the virtual SMMU that it came from.
struct Wake(mpsc::Sender<()>);

impl Interrupts for Wake {
    fn event_queue(&mut self) {
        let _ = self.0.send(());
    }
}

/// The guest looks at the queue only when it is interrupted, and goes when it finds it empty. One interrupt that is missing, and it waits for ever.
#[test]
fn no_interrupt_is_missing_however_guest_and_vmm_meet() {
    const EVENTS: u64 = 20_000;
    let (wake, woken) = mpsc::channel();
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap();
    let pages = SharedRegion::from_words(vec![0; 0x2_0000 / 8]);
    let smmu = smmu(Ram::new(Arc::new(ram)), FrontEnd::Shared(pages.clone()), Wake(wake));
    let (ring, _host) = NativeRing::with_consumer(8).unwrap();
    let mut worker = Worker::new(ring);
    worker.attach(smmu.clone()).unwrap();
    use std::sync::atomic::Ordering::SeqCst;
    pages.store_u64(EVENTQ.base as usize, RAM | 2, SeqCst);
    pages.store_u32(CR0 as usize, 4, SeqCst);
    pages.store_u32(IRQ_CTRL as usize, 4, SeqCst);
    while worker.poll() {}
    assert_eq!((pages.load_u32(0x24, SeqCst), pages.load_u32(0x54, SeqCst)), (4, 4));
    let worker = worker.spawn("worker", None).unwrap();
    let guest = thread::spawn(move || {
        let mut taken = 0;
        while taken < EVENTS {
            // As good as never: only an interrupt that is missing takes so long.
            woken.recv_timeout(Duration::from_secs(60)).expect("no interrupt");
            loop {
                let cons = pages.load_u32(EVENTQ.cons as usize, SeqCst);
                let prod = pages.load_u32(EVENTQ.prod as usize, SeqCst) & 7;
                if prod == cons & 7 {
                    break;
                }
                taken += 1;
                pages.store_u32(EVENTQ.cons as usize, (cons + 1) & 7, SeqCst);
            }
        }
    });
    for _ in 0..EVENTS {
        while let Err(error) = smmu.record_event(EVENT, StreamIdOf::Guest) {
            assert_eq!(error, NotRecorded::Full);
            assert!(!guest.is_finished(), "the guest has given up");
            thread::yield_now();
        }
    }
    guest.join().unwrap();
    worker.stop();
}
