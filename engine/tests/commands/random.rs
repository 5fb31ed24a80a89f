//! Random commands, one at a time.

use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn random_and_mutated_commands(guest in guest(), command in command()) {
        Engine::new(guest).check(command);
    }

    #[test]
    fn a_host_with_more_features_gets_the_same(
        (guest, host) in host_for(guest()),
        command in command(),
    ) {
        let host = On { flags: host.flags | guest.flags, ..host };
        prop_assert_eq!(Engine::on_host(guest, host).fate(command), Engine::new(guest).fate(command));
    }

    #[test]
    fn the_vmid_of_the_guest_does_not_matter(
        guest in guest(),
        opcode in 0x10..=0x13u64,
        [low, high] in command(),
        vmid: u16,
    ) {
        let low = low & !0xff | opcode;
        let other = [low & !0x0000_ffff_0000_0000 | u64::from(vmid) << 32, high];
        let engine = Engine::new(guest);
        prop_assert_eq!(engine.fate([low, high]), engine.fate(other));
    }
}
