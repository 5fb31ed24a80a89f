//! The verifier against an oracle: a mix of what the queues of a guest sent is right just if there is a way to get it.

use ecmdq_bench::{Machine, Mismatch, Verdict, Verifier};
use ecmdq_engine::Command;
use proptest::prelude::*;

const GUEST: u16 = 4;

/// TLBI_NH_ALL, which names no queue, or TLBI_NH_ASID with the queue in the upper byte of the ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    Asid(u8),
}

fn guest_command(queue: usize, sent: Sent) -> Command {
    match sent {
        Sent::All => Command([0x10, 0]),
        Sent::Asid(asid) => Command([0x11 | (queue as u64) << 56 | u64::from(asid) << 48, 0]),
    }
}

fn to_host(Command([low, high]): Command) -> Command {
    Command([low | 5 << 32, high])
}

fn verdict(queues: &[Vec<Sent>], received: &[Command]) -> Verdict {
    let verifier = Verifier::new(usize::from(GUEST) + 1, queues.len());
    for (queue, sent) in queues.iter().enumerate() {
        let commands: Vec<_> = sent.iter().map(|sent| guest_command(queue, *sent)).collect();
        verifier.sending(GUEST, queue, &commands, &[]);
    }
    verifier.received(received);
    verifier.finish()
}

/// Whether `received` is a mix of the rest of each queue: every way is tried.
fn is_mix(queues: &[Vec<Sent>], at: &mut Vec<usize>, received: &[Command]) -> bool {
    let Some((first, rest)) = received.split_first() else {
        return queues.iter().zip(&*at).all(|(queue, at)| *at == queue.len());
    };
    (0..queues.len()).any(|n| {
        let fits = queues[n].get(at[n]).is_some_and(|sent| to_host(guest_command(n, *sent)) == *first);
        fits && {
            at[n] += 1;
            let is = is_mix(queues, at, rest);
            at[n] -= 1;
            is
        }
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![Just(Sent::All), (0..2u8).prop_map(Sent::Asid)]
}

/// What up to three queues send, a mix of it, and what may be done to the mix.
fn mixes() -> impl Strategy<Value = (Vec<Vec<Sent>>, Vec<Command>)> {
    let queues = proptest::collection::vec(proptest::collection::vec(sent(), 0..5), 1..4);
    let order = proptest::collection::vec(any::<prop::sample::Index>(), 12);
    let harm = (0..5u8, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    (queues, order, harm).prop_map(|(queues, order, (harm, a, b))| {
        let mut rest: Vec<_> = queues.iter().enumerate().map(|(n, sent)| (n, sent.as_slice())).collect();
        let mut mix = Vec::new();
        for pick in order {
            rest.retain(|(_, sent)| !sent.is_empty());
            if rest.is_empty() {
                break;
            }
            let pick = pick.index(rest.len());
            let (n, sent) = &mut rest[pick];
            mix.push(to_host(guest_command(*n, sent[0])));
            *sent = &sent[1..];
        }
        if !mix.is_empty() {
            let (a, b) = (a.index(mix.len()), b.index(mix.len()));
            match harm {
                0 => mix.swap(a, b),
                1 => drop(mix.remove(a)),
                2 => mix.insert(b, mix[a]),
                _ => {}
            }
        }
        (queues, mix)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_mix_is_clean_just_if_the_queues_can_give_it((queues, received) in mixes()) {
        let verdict = verdict(&queues, &received);
        let expected = is_mix(&queues, &mut vec![0; queues.len()], &received);
        prop_assert_eq!(verdict.is_clean(), expected, "{:?}", verdict);
        if expected {
            prop_assert_eq!(verdict.right, received.len() as u64);
        }
    }
}

#[test]
fn queues_may_mix_but_each_keeps_its_order() {
    use Sent::{All, Asid};
    let queues = [vec![All, Asid(0)], vec![Asid(0), All, Asid(1)]];
    let host = |queue: usize, sent| to_host(guest_command(queue, sent));
    let all = host(0, All);
    let (a0, b0, b1) = (host(0, Asid(0)), host(1, Asid(0)), host(1, Asid(1)));
    for right in [[all, a0, b0, all, b1], [b0, all, all, b1, a0], [all, b0, all, b1, a0]] {
        assert_eq!(verdict(&queues, &right), Verdict { right: 5, ..Verdict::default() }, "{right:?}");
    }
    for (wrong, why) in [
        (&[all, all, b0, a0, b1][..], "the second queue's TLBI_NH_ALL came before what stands before it"),
        (&[a0, b0, all, all, b1], "so did the first queue's ASID"),
        (&[all, a0, b0, b1], "a TLBI_NH_ALL was lost"),
        (&[all, a0, b0, all], "an ASID was lost"),
        (&[all, a0, b0, all, b1, all], "a TLBI_NH_ALL nobody sent"),
        (&[all, a0, b0, b0, all, b1], "twice the same"),
    ] {
        assert!(!verdict(&queues, wrong).is_clean(), "{why}");
    }
}

#[test]
fn the_first_mismatch_is_told() {
    let stranger = Command([0x11 | 5 << 32 | 7 << 48 | 1 << 56, 0]);
    let queues = [vec![Sent::Asid(0)], vec![Sent::Asid(3)]];
    let expected = Some(Command([0x0103_0005_0000_0011, 0]));
    let first = Some(Mismatch { guest: usize::from(GUEST), queue: 1, expected, received: stranger });
    assert_eq!(verdict(&queues, &[stranger]), Verdict { right: 0, wrong: 1, lost: 1, first });
    assert_eq!(Machine::vmid(GUEST).0, 5, "the VMID that is spelled out here");
}
