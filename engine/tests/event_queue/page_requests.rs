//! Page requests: what differs from events, and what an endpoint is answered (IHI 0070 §8.1, §8.2).

use ecmdq_engine::{AutoResponse, FrontEnd, HostStreamId, NotRecorded, PageRequestLost, StreamIdOf};

use crate::vm::*;

const LAST: u64 = 1 << 62;
const READ: u64 = 1 << 60;
const SSV: u64 = 1 << 63;
/// A page request in the middle of a group, the last one, and a Stop PASID marker.
const MIDDLE: [u64; 2] = [READ | 0x42, 0xdead_b005];
const LAST_ONE: [u64; 2] = [LAST | READ | 0x42, 0xdead_c005];
const STOP: [u64; 2] = [SSV | LAST | 0x42, 0];

fn record(vm: &Vm, request: [u64; 2]) -> Result<(), PageRequestLost> {
    vm.smmu.record_page_request(request, StreamIdOf::Guest)
}

fn lost(cause: NotRecorded, response: AutoResponse) -> Result<(), PageRequestLost> {
    Err(PageRequestLost { cause, response })
}

#[test]
fn a_page_request_is_16_bytes_and_its_stream_is_translated() {
    for (name, front_end) in front_ends() {
        let vm = Vm::enabled(front_end, 2);
        assert_eq!(record(&vm, MIDDLE), Ok(()), "{name}");
        let host = [LAST_ONE[0] & !0xffff_ffff | 0x1042, LAST_ONE[1]];
        assert_eq!(vm.smmu.record_page_request(host, StreamIdOf::Host), Ok(()), "{name}");
        let words = [0, 8, 16, 24, 32].map(|offset| vm.word(RAM + 0x8000 + offset));
        assert_eq!(words, [MIDDLE[0], MIDDLE[1], LAST_ONE[0], LAST_ONE[1], 0], "{name}");
        assert_eq!((vm.indices(&PRIQ), vm.indices(&EVENTQ)), ((2, 0), (0, 0)), "{name}");
    }
}

#[test]
fn an_endpoint_is_answered_as_the_cause_demands() {
    use AutoResponse::{Failure, None, Success};
    use NotRecorded::{Aborted, Disabled, ForeignStream, Full, Paused};
    // What is to be answered to a request, the last one of its group, and a Stop PASID marker.
    let all = |vm: &Vm, cause, [middle, last, stop]: [AutoResponse; 3]| {
        assert_eq!(record(vm, MIDDLE), lost(cause, middle));
        assert_eq!(record(vm, LAST_ONE), lost(cause, last));
        assert_eq!(record(vm, STOP), lost(cause, stop));
    };
    let mut vm = Vm::enabled(FrontEnd::Trapped, 0);
    assert_eq!(record(&vm, LAST_ONE), Ok(()));
    all(&vm, Full, [None, Success, None]);
    vm.smmu.pause();
    all(&vm, Paused, [None, None, None]);
    vm.smmu.resume();
    for cr0 in [5, 6] {
        vm.set(CR0, cr0);
        all(&vm, Disabled, [Failure, Failure, None]);
    }
    vm.set(CR0, 0);
    vm.write_u64(PRIQ.base, HOLE);
    vm.write(PRIQ.prod, 0);
    vm.set(CR0, ALL);
    all(&vm, Aborted, [Failure, Failure, None]);
    assert_eq!((vm.indices(&PRIQ), vm.active()), ((0, 0), 1 << 3));
    // LWR=100 without a PASID is a page request.
    assert_eq!(record(&vm, [LAST | 0x42, 0]), lost(Aborted, Failure));
    let foreign = vm.smmu.record_page_request(LAST_ONE, StreamIdOf::Host);
    assert_eq!(foreign, lost(ForeignStream(HostStreamId(0x42)), None));
}

/// §8.1: unlike that of the event queue, an overflow keeps everything out.
#[test]
fn nothing_is_recorded_until_an_overflow_is_acknowledged() {
    let vm = Vm::enabled(FrontEnd::Trapped, 0);
    let full = lost(NotRecorded::Full, AutoResponse::Success);
    assert_eq!([record(&vm, LAST_ONE), record(&vm, LAST_ONE)], [Ok(()), full]);
    assert_eq!(vm.indices(&PRIQ), (1 << 31 | 1, 0));
    vm.write(PRIQ.cons, 1);
    assert_eq!(record(&vm, LAST_ONE), full, "there is room");
    assert_eq!(vm.indices(&PRIQ), (1 << 31 | 1, 1));
    vm.write(PRIQ.cons, 1 << 31 | 1);
    assert_eq!(record(&vm, LAST_ONE), Ok(()));
    assert_eq!(vm.indices(&PRIQ), (1 << 31, 1 << 31 | 1));
}

/// §6.3.36: with LO, each last request interrupts, also one that is discarded because of an overflow.
#[test]
fn with_lo_the_last_requests_interrupt_and_no_others() {
    let mut vm = Vm::enabled(FrontEnd::Trapped, 1);
    let wires = |vm: &mut Vm, requests: &[[u64; 2]]| {
        requests.iter().map(|request| (record(vm, *request).is_ok(), vm.seen().len())).collect::<Vec<_>>()
    };
    assert_eq!(wires(&mut vm, &[MIDDLE, LAST_ONE, LAST_ONE]), [(true, 1), (true, 0), (false, 0)]);
    vm.write(PRIQ.cons, 1 << 31 | 2);
    vm.set(IRQ_CTRL, 0);
    vm.write(PRIQ.irq_cfg + 12, 1 << 31);
    vm.set(IRQ_CTRL, ALL);
    let expected = [(true, 0), (true, 1), (false, 1), (false, 0)];
    assert_eq!(wires(&mut vm, &[MIDDLE, LAST_ONE, LAST_ONE, MIDDLE]), expected);
    vm.set(CR0, 0);
    assert_eq!(wires(&mut vm, &[LAST_ONE]), [(false, 0)]);
}
