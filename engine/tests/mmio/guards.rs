//! Write guards (facts sheet, sections 2.2 to 2.5, 4.1).

use ecmdq_engine::Features;

use super::Trapped;

const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const IRQ_CTRL: usize = 0x50;
const SMMUEN: u32 = 1;
const PRIQEN: u32 = 1 << 1;
const EVENTQEN: u32 = 1 << 2;
const CMDQEN: u32 = 1 << 3;
const EN: u32 = 1 << 31;
/// ECMDQ 1 of four on one page.
const ECMDQ: usize = 0x2_4000;

/// What locks registers: the control register and its bits; and the registers, with the bits that are locked.
type Locks = (usize, u32, &'static [(usize, u32)]);

const LOCKS: &[Locks] = &[
    (CR0, SMMUEN, &[(0x28, 0xfc0), (0x2c, 0xa), (0x80, 0xffff_ffc0), (0x84, 0x00ff_ffff), (0x88, 0x3_07ff)]),
    (CR0, CMDQEN, &[(0x28, 0x3f), (0x90, 0xffff_ffff), (0x94, 0x00ff_ffff), (0x9c, 0xf_ffff)]),
    (CR0, EVENTQEN, &[(0x28, 0x3f), (0xa0, 0xffff_ffff), (0xa4, 0x00ff_ffff), (0x1_00a8, 0xf_ffff)]),
    (CR0, PRIQEN, &[(0x28, 0x3f), (0xc0, 0xffff_ffff), (0xc4, 0x00ff_ffff), (0x1_00c8, 0xf_ffff)]),
    (IRQ_CTRL, 1, &[(0x68, 0xffff_fffc), (0x6c, 0x00ff_ffff), (0x70, 0xffff_ffff), (0x74, 0x3f)]),
    (IRQ_CTRL, 2, &[(0xd0, 0xffff_fffc), (0xd4, 0x00ff_ffff), (0xd8, 0xffff_ffff), (0xdc, 0x3f)]),
    (IRQ_CTRL, 4, &[(0xb0, 0xffff_fffc), (0xb4, 0x00ff_ffff), (0xb8, 0xffff_ffff), (0xbc, 0x3f)]),
];

fn with_pri() -> Trapped {
    let mut features = Features::linux().with_ecmdqs(0, 2);
    (features.ats, features.pri) = (true, true);
    Trapped::new(features)
}

#[test]
fn registers_are_locked_while_what_they_belong_to_is_enabled_or_on_its_way() {
    for (control, bit, registers) in LOCKS {
        for (register, bits) in *registers {
            let mut trapped = with_pri();
            let writes = |trapped: &Trapped, when: &str, open: bool| {
                let before = trapped.read(*register);
                trapped.write(*register, before ^ bits);
                let expected = if open { before ^ bits } else { before };
                assert_eq!(trapped.read(*register), expected, "{register:#x} {when} {control:#x}={bit:#x}");
            };
            writes(&trapped, "before", true);
            trapped.write(*control, *bit);
            writes(&trapped, "on the way to", false);
            trapped.settle();
            trapped.complete_requests();
            assert_eq!(trapped.read(control + 4), *bit);
            writes(&trapped, "with", false);
            trapped.write(*control, 0);
            writes(&trapped, "on the way from", false);
            trapped.settle();
            trapped.complete_requests();
            assert_eq!(trapped.read(control + 4), 0);
            writes(&trapped, "after", true);
        }
    }
}

#[test]
fn queue_attributes_are_locked_by_an_ecmdq_and_table_attributes_are_not() {
    let mut trapped = with_pri();
    trapped.write(ECMDQ + 8, EN);
    trapped.write(0x28, 0xfff);
    assert_eq!(trapped.read(0x28), 0xfc0);
    trapped.settle();
    trapped.write(ECMDQ + 8, 0);
    trapped.write(0x28, 0xfff);
    assert_eq!(trapped.read(0x28), 0xfc0, "ENACK is still set");
    trapped.settle();
    trapped.write(0x28, 0xfff);
    assert_eq!(trapped.read(0x28), 0xfff);
}

#[test]
fn gbpa_takes_writes_with_update_and_none_while_it_lasts() {
    let mut trapped = with_pri();
    trapped.write(0x44, 0x0010_0000);
    assert_eq!(trapped.read(0x44), 0, "without Update");
    trapped.write(0x44, 0x8010_0000);
    trapped.write(0x44, 0x8000_1000);
    assert_eq!(trapped.read(0x44), 0x8010_0000, "while Update is 1");
    trapped.settle();
    assert_eq!(trapped.read(0x44), 0x8010_0000, "the VMM has not followed");
    trapped.complete_requests();
    assert_eq!(trapped.read(0x44), 0x0010_0000);
    trapped.write(0x44, 0x8000_1000);
    trapped.settle();
    trapped.complete_requests();
    assert_eq!(trapped.read(0x44), 0x0000_1000);
}

#[test]
fn a_field_on_its_way_ignores_a_second_value_and_the_others_do_not() {
    let mut trapped = with_pri();
    trapped.write(CR0, CMDQEN);
    trapped.write(CR0, EVENTQEN);
    assert_eq!(trapped.read(CR0), CMDQEN | EVENTQEN);
    trapped.settle();
    assert_eq!(trapped.read(CR0ACK), CMDQEN | EVENTQEN);
    trapped.write(CR0, 0);
    assert_eq!(trapped.read(CR0), 0);
    trapped.write(IRQ_CTRL, 1);
    trapped.write(IRQ_CTRL, 4);
    assert_eq!(trapped.read(IRQ_CTRL), 5);
}

#[test]
fn an_ecmdq_is_locked_while_it_is_enabled_and_its_prod_while_that_changes() {
    let mut trapped = with_pri();
    let words = |trapped: &Trapped| [0, 4, 8, 12].map(|at| trapped.read(ECMDQ + at));
    let scribble = |trapped: &Trapped| {
        trapped.write(ECMDQ, 0x4000_1003);
        trapped.write(ECMDQ + 4, 0x1);
        trapped.write(ECMDQ + 12, 0x3);
    };
    scribble(&trapped);
    assert_eq!(words(&trapped), [0x4000_1003, 1, 0, 3]);
    trapped.write(ECMDQ, 0x4000_0003);
    trapped.write(ECMDQ + 4, 0);
    trapped.write(ECMDQ + 8, EN | 3);
    trapped.write(ECMDQ + 8, EN | 7);
    scribble(&trapped);
    assert_eq!(words(&trapped), [0x4000_0003, 0, EN | 3, 3], "on its way");
    trapped.settle();
    scribble(&trapped);
    assert_eq!(words(&trapped), [0x4000_0003, 0, EN | 3, EN | 3], "enabled");
    trapped.write(ECMDQ + 8, 3);
    trapped.write(ECMDQ + 8, EN | 3);
    scribble(&trapped);
    assert_eq!(words(&trapped), [0x4000_0003, 0, 3, EN | 3], "on its way back");
    trapped.settle();
    scribble(&trapped);
    assert_eq!(words(&trapped), [0x4000_1003, 1, 3, 3], "disabled");
}
