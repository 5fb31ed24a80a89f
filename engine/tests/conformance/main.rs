//! What every host queue must do, whatever is behind it: the contract of `HostQueue`, run against each kind. On a real kernel `guest/iommufd`
//! runs it.

mod disorderly;
#[path = "../common/kernel.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod kernel;
mod subject;
mod subjects;
mod suite;

use disorderly::Disorderly;
use subjects::{EcmdqWithMsi, Iommufd, Model, OneOfTwo, Ring};

/// All of the suite for a kind of host queue.
macro_rules! conforms {
    ($kind:ident: $subject:expr) => {
        mod $kind {
            use super::*;

            #[test]
            fn takes_commands_in_order_and_says_how_many() {
                suite::takes_commands_in_order_and_says_how_many(&mut $subject);
            }

            #[test]
            fn a_full_queue_takes_less_and_goes_on_later() {
                suite::a_full_queue_takes_less_and_goes_on_later(&mut $subject);
            }

            #[test]
            fn a_ticket_is_reached_when_all_before_it_was_executed() {
                suite::a_ticket_is_reached_when_all_before_it_was_executed(&mut $subject);
            }

            #[test]
            fn a_full_queue_still_gives_a_ticket() {
                suite::a_full_queue_still_gives_a_ticket(&mut $subject);
            }

            #[test]
            fn with_nothing_new_a_ticket_is_shared() {
                suite::with_nothing_new_a_ticket_is_shared(&mut $subject);
            }

            #[test]
            fn anything_in_any_order_is_executed_once_and_tickets_tell_the_truth() {
                suite::anything_in_any_order_is_executed_once_and_tickets_tell_the_truth(|| $subject);
            }

            #[test]
            fn what_is_submitted_behind_a_sync_begins_behind_it() {
                suite::what_is_submitted_behind_a_sync_begins_behind_it(|| $subject, 3);
            }

            #[test]
            fn an_illegal_command_is_left_out_and_named() {
                suite::an_illegal_command_is_left_out_and_named(&mut $subject);
            }

            #[test]
            fn an_atc_timeout_fails_a_ticket_and_the_next_is_reached() {
                suite::an_atc_timeout_fails_a_ticket_and_the_next_is_reached(&mut $subject);
            }

            #[test]
            fn a_dead_device_fails_every_ticket_and_never_blocks() {
                suite::a_dead_device_fails_every_ticket_and_never_blocks(&mut $subject);
            }
        }
    };
}

conforms!(native_ring: Ring::new());
conforms!(native_ecmdq_with_msi: EcmdqWithMsi::new());
conforms!(iommufd: Iommufd::new());
conforms!(one_of_two_producers: OneOfTwo::new());
conforms!(model_smmu: Model::new());

#[test]
#[should_panic(expected = "it begins too early")]
fn a_queue_that_keeps_no_order_is_caught() {
    suite::what_is_submitted_behind_a_sync_begins_behind_it(Disorderly::default, 3);
}

#[test]
fn a_queue_that_keeps_no_order_is_only_caught_by_that() {
    suite::takes_commands_in_order_and_says_how_many(&mut Disorderly::default());
    suite::a_ticket_is_reached_when_all_before_it_was_executed(&mut Disorderly::default());
    suite::with_nothing_new_a_ticket_is_shared(&mut Disorderly::default());
}
