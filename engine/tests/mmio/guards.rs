//! Write guards (facts sheet, sections 2.2 to 2.5, 4.1, 4.2), from both sides of each transition: the worker is polled by hand.

use ecmdq_engine::Features;
use ecmdq_engine::rules::Request;

use super::Trapped;

const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const CR1: usize = 0x28;
const GBPA: usize = 0x44;
const IRQ_CTRL: usize = 0x50;
const SMMUEN: u32 = 1;
const PRIQEN: u32 = 1 << 1;
const EVENTQEN: u32 = 1 << 2;
const CMDQEN: u32 = 1 << 3;
const ATSCHK: u32 = 1 << 4;
const UPDATE: u32 = 1 << 31;
const EN: u32 = 1 << 31;
/// The second of four ECMDQs on one page: the register that enables it, and the one that acknowledges.
const ECMDQ: usize = 0x2_4000;
const ECMDQ_PROD: usize = ECMDQ + 8;
const ECMDQ_CONS: usize = ECMDQ + 12;
/// EN of PROD is left alone where all other bits are tried.
const ALL_BUT_EN: u32 = 0x008f_ffff;

/// Every register that can be written, with all its bits, but for those with a handshake and GBPA.
const REGISTERS: &[(usize, u32)] = &[
    (CR1, 0xfff),
    (0x2c, 0xa),         // CR2
    (0x64, 0x7fd),       // GERRORN
    (0x68, 0xffff_fffc), // GERROR_IRQ_CFG0 to 2
    (0x6c, 0x00ff_ffff),
    (0x70, 0xffff_ffff),
    (0x74, 0x3f),
    (0x80, 0xffff_ffc0), // STRTAB_BASE, STRTAB_BASE_CFG
    (0x84, 0x40ff_ffff),
    (0x88, 0x3_07ff),
    (0x90, 0xffff_ffff), // CMDQ_BASE, PROD, CONS
    (0x94, 0x40ff_ffff),
    (0x98, 0xf_ffff),
    (0x9c, 0x7f0f_ffff),
    (0xa0, 0xffff_ffff), // EVENTQ_BASE
    (0xa4, 0x40ff_ffff),
    (0xb0, 0xffff_fffc), // EVENTQ_IRQ_CFG0 to 2
    (0xb4, 0x00ff_ffff),
    (0xb8, 0xffff_ffff),
    (0xbc, 0x3f),
    (0xc0, 0xffff_ffff), // PRIQ_BASE
    (0xc4, 0x40ff_ffff),
    (0xd0, 0xffff_fffc), // PRIQ_IRQ_CFG0 to 2
    (0xd4, 0x00ff_ffff),
    (0xd8, 0xffff_ffff),
    (0xdc, 0x8000_003f),
    (0x1_00a8, 0x800f_ffff), // EVENTQ_PROD, CONS
    (0x1_00ac, 0x800f_ffff),
    (0x1_00c8, 0x800f_ffff), // PRIQ_PROD, CONS
    (0x1_00cc, 0x800f_ffff),
    (0x2_0000, 0xffff_ffff), // another ECMDQ's BASE, PROD, CONS
    (0x2_0004, 0x40ff_ffff),
    (0x2_0008, ALL_BUT_EN),
    (0x2_000c, 0x078f_ffff),
    (ECMDQ, 0xffff_ffff),
    (ECMDQ + 4, 0x40ff_ffff),
    (ECMDQ_PROD, ALL_BUT_EN),
    (ECMDQ_CONS, 0x078f_ffff),
];

/// What locks registers: the field that enables something, where it is acknowledged, and what is locked while either is set.
/// A register that is not listed can be written at any time.
struct Lock {
    field: (usize, u32),
    ack: usize,
    locked: &'static [(usize, u32)],
    /// Locked while field and acknowledgement differ, besides.
    between: &'static [(usize, u32)],
}

const fn lock(field: (usize, u32), locked: &'static [(usize, u32)]) -> Lock {
    Lock { field, ack: field.0 + 4, locked, between: &[] }
}

const ALL: u32 = u32::MAX;
const QUEUE_ATTRIBUTES: u32 = 0x03f;
const TABLE_ATTRIBUTES: u32 = 0xfc0;

const LOCKS: [Lock; 9] = [
    lock((CR0, SMMUEN), &[(CR1, TABLE_ATTRIBUTES), (0x2c, ALL), (0x80, ALL), (0x84, ALL), (0x88, ALL)]),
    lock((CR0, CMDQEN), &[(CR1, QUEUE_ATTRIBUTES), (0x90, ALL), (0x94, ALL), (0x9c, ALL)]),
    lock((CR0, EVENTQEN), &[(CR1, QUEUE_ATTRIBUTES), (0xa0, ALL), (0xa4, ALL), (0x1_00a8, ALL)]),
    lock((CR0, PRIQEN), &[(CR1, QUEUE_ATTRIBUTES), (0xc0, ALL), (0xc4, ALL), (0x1_00c8, ALL)]),
    lock((CR0, ATSCHK), &[]),
    lock((IRQ_CTRL, 1), &[(0x68, ALL), (0x6c, ALL), (0x70, ALL), (0x74, ALL)]),
    lock((IRQ_CTRL, 2), &[(0xd0, ALL), (0xd4, ALL), (0xd8, ALL), (0xdc, ALL)]),
    lock((IRQ_CTRL, 4), &[(0xb0, ALL), (0xb4, ALL), (0xb8, ALL), (0xbc, ALL)]),
    Lock {
        field: (ECMDQ_PROD, EN),
        ack: ECMDQ_CONS,
        locked: &[(CR1, QUEUE_ATTRIBUTES), (ECMDQ, ALL), (ECMDQ + 4, ALL), (ECMDQ_CONS, ALL)],
        between: &[(ECMDQ_PROD, ALL)],
    },
];

fn with_pri() -> Trapped {
    let mut features = Features::linux().with_ecmdqs(0, 2);
    (features.ats, features.pri) = (true, true);
    Trapped::new(features)
}

fn bits_of(list: &[(usize, u32)], register: usize) -> u32 {
    list.iter().find(|(at, _)| *at == register).map_or(0, |(_, bits)| *bits)
}

/// Flips all bits of every register, and back, by 32 bits, and BASE registers by 64 bits as well.
fn check(trapped: &Trapped, when: &str, locked: impl Fn(usize) -> u32) {
    for (register, bits) in REGISTERS {
        let (before, open) = (trapped.read(*register), bits & !locked(*register));
        trapped.write(*register, before ^ bits);
        assert_eq!(trapped.read(*register), before ^ open, "{register:#x} {when}");
        trapped.write(*register, before);
        assert_eq!(trapped.read(*register), before, "{register:#x} {when}, and back");
    }
    for wide in [0x68, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, ECMDQ] {
        let half = |at: usize| u64::from(bits_of(REGISTERS, at) & !locked(at));
        let (before, open) = (trapped.read_u64(wide), half(wide) | half(wide + 4) << 32);
        trapped.write_u64(wide, !before);
        assert_eq!(trapped.read_u64(wide), before ^ open, "{wide:#x} as a whole {when}");
        trapped.write_u64(wide, before);
    }
}

/// Not more is locked than must be, and the other registers stay open.
#[test]
fn registers_are_locked_while_what_they_belong_to_is_enabled_or_on_its_way() {
    for Lock { field: (control, bit), ack, locked, between } in LOCKS {
        let mut trapped = with_pri();
        let name = format!("{control:#x}={bit:#x}");
        let stable = |register: usize| bits_of(locked, register);
        let moving = |register: usize| bits_of(locked, register) | bits_of(between, register);
        check(&trapped, &format!("before {name}"), |_| 0);
        trapped.write(control, bit);
        check(&trapped, &format!("on the way to {name}"), moving);
        trapped.settle();
        trapped.complete_requests();
        assert_eq!(trapped.read(ack) & bit, bit, "{name}");
        check(&trapped, &format!("with {name}"), stable);
        trapped.write(control, 0);
        check(&trapped, &format!("on the way from {name}"), moving);
        trapped.settle();
        trapped.complete_requests();
        assert_eq!(trapped.read(ack) & bit, 0, "{name}");
        check(&trapped, &format!("after {name}"), |_| 0);
    }
}

/// Section 2.2: the acknowledgement waits for the VMM, and so do the locks.
#[test]
fn smmuen_locks_until_the_vmm_has_followed() {
    let mut trapped = with_pri();
    let [Lock { locked, .. }, ..] = LOCKS;
    let with_smmuen = |register: usize| bits_of(locked, register);
    trapped.write(CR0, SMMUEN);
    trapped.settle();
    assert_eq!(trapped.read(CR0ACK), 0);
    check(&trapped, "while the VMM enables", with_smmuen);
    trapped.complete_requests();
    trapped.write(CR0, 0);
    trapped.settle();
    assert_eq!(trapped.read(CR0ACK), SMMUEN);
    check(&trapped, "while the VMM disables", with_smmuen);
    trapped.complete_requests();
    check(&trapped, "after that", |_| 0);
}

#[test]
fn queue_attributes_are_locked_by_each_queue_as_long_as_any_is_enabled() {
    let mut trapped = with_pri();
    let open = |trapped: &Trapped| {
        let before = trapped.read(CR1);
        trapped.write(CR1, before ^ 0xfff);
        let changed = trapped.read(CR1) ^ before;
        trapped.write(CR1, before);
        changed
    };
    trapped.write(0x2_0008, EN);
    trapped.write(CR0, CMDQEN | EVENTQEN | PRIQEN);
    for (control, value) in [(0x2_0008, 0), (CR0, EVENTQEN | PRIQEN), (CR0, PRIQEN)] {
        trapped.settle();
        trapped.write(control, value);
        trapped.settle();
        assert_eq!(open(&trapped), TABLE_ATTRIBUTES, "{control:#x}={value:#x}");
    }
    trapped.write(CR0, SMMUEN | PRIQEN);
    assert_eq!(open(&trapped), 0);
    trapped.settle();
    trapped.complete_requests();
    trapped.write(CR0, SMMUEN);
    trapped.settle();
    assert_eq!(open(&trapped), QUEUE_ATTRIBUTES);
}

#[test]
fn gbpa_takes_writes_with_update_and_none_while_it_lasts() {
    let mut trapped = with_pri();
    for (smmuen, first, second) in [(0, 0x0010_0000, 0x1000), (SMMUEN, 0x000f_3f1f, 0)] {
        trapped.write(CR0, smmuen);
        trapped.settle();
        trapped.complete_requests();
        let before = trapped.read(GBPA);
        trapped.write(GBPA, first);
        assert_eq!(trapped.read(GBPA), before, "without Update");
        trapped.write(GBPA, UPDATE | first);
        for _polled in [false, true] {
            trapped.write(GBPA, UPDATE | second);
            trapped.write(GBPA, second);
            assert_eq!(trapped.read(GBPA), UPDATE | first, "while Update is 1");
            trapped.settle();
        }
        assert_eq!(trapped.complete_requests(), [Request::UpdateGbpa(first)]);
        assert_eq!(trapped.read(GBPA), first);
        trapped.write(GBPA, UPDATE | second);
        trapped.settle();
        assert_eq!(trapped.complete_requests(), [Request::UpdateGbpa(second)]);
        assert_eq!(trapped.read(GBPA), second);
    }
}

/// Sections 2.2 and 2.4.
#[test]
fn a_field_on_its_way_ignores_a_second_value_and_the_others_do_not() {
    for (control, fields) in [(CR0, &[SMMUEN, PRIQEN, EVENTQEN, CMDQEN, ATSCHK][..]), (IRQ_CTRL, &[1, 2, 4])]
    {
        let all = fields.iter().sum::<u32>();
        for field in fields {
            let mut trapped = with_pri();
            for (to, from) in [(*field, 0), (0, *field)] {
                trapped.write(control, to);
                for second in [from, all & !field | from, from] {
                    trapped.write(control, second);
                    let others = trapped.read(control) & !field;
                    assert_eq!(trapped.read(control) & field, to, "{control:#x}: {field:#x}");
                    assert!(second == from || others == all & !field, "{control:#x}: {others:#x}");
                    trapped.write(control, to);
                }
                trapped.settle();
                trapped.complete_requests();
                assert_eq!(trapped.read(control), trapped.read(control + 4), "{control:#x}: {field:#x}");
                trapped.write(control, to);
                trapped.settle();
                trapped.complete_requests();
                assert_eq!((trapped.read(control), trapped.read(control + 4)), (to, to), "{control:#x}");
            }
        }
    }
}

/// Section 4.1: also EN itself is not changed a second time on its way.
#[test]
fn an_ecmdqs_prod_is_read_only_while_en_and_enack_differ() {
    let mut trapped = with_pri();
    let prods = |trapped: &Trapped, values: &[u32]| {
        for value in values {
            trapped.write(ECMDQ_PROD, *value);
        }
        trapped.read(ECMDQ_PROD)
    };
    assert_eq!(prods(&trapped, &[EN, EN | 1, 0, u32::MAX]), EN, "on its way to EN");
    trapped.settle();
    assert_eq!(prods(&trapped, &[EN | 0x80_0000, EN]), EN, "enabled");
    assert_eq!(prods(&trapped, &[0, 1, EN, u32::MAX]), 0, "on its way from EN");
    trapped.settle();
    assert_eq!(trapped.read(ECMDQ_CONS), 0);
    assert_eq!(prods(&trapped, &[7, 0]), 0, "disabled");
}
