//! Whatever a guest sends, the host only gets canonical commands with the guest's own identities.
#![no_main]

use arbitrary::Arbitrary;
use ecmdq_engine::command::table::COMMANDS;
use ecmdq_engine::rules::{Applied, End, MAX_EXPANSION, Quirk, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, StreamId, StreamMap, Vmid};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    guest: [u32; 6],
    /// Bits of the host's registers that differ from the guest's.
    host: [u32; 6],
    vmid: u16,
    quirk: bool,
    disabled: bool,
    streams: [(u8, u16); 3],
    batch: Vec<(u8, bool, [u64; 2])>,
    room: u8,
}

impl Input {
    /// Commands of the table mostly, of any opcode else; those that name streams name few.
    fn commands(&self) -> Vec<Command> {
        let command = |(opcode, any, [low, high]): &(u8, bool, [u64; 2])| {
            let known = COMMANDS[usize::from(*opcode) % COMMANDS.len()].opcode.0;
            let opcode = if *any { *opcode } else { known };
            Command([low & !0xff | u64::from(opcode), *high])
        };
        self.batch.iter().take(64).map(command).collect()
    }
}

fuzz_target!(|input: Input| {
    let guest = Features::from_idrs(input.guest);
    let host = Features::from_idrs(std::array::from_fn(|i| input.guest[i] ^ input.host[i]));
    let quirks = if input.quirk { vec![Quirk::OnePageRange] } else { vec![] };
    let Ok(mut rules) = Rules::new(&guest, &host, Vmid(input.vmid), &quirks) else { return };
    rules.set_smmu_enabled(!input.disabled);
    let pairs = input.streams.map(|(guest, host)| (StreamId(guest.into()), HostStreamId(host.into())));
    let streams = StreamMap::from_pairs(pairs).unwrap();
    let commands = input.commands();

    let mut to = vec![Command::default(); usize::from(input.room)];
    let applied = rules.apply(&streams, &commands, &mut to);
    assert!(applied.taken <= commands.len() && applied.host <= to.len());
    assert_eq!(one_by_one(&rules, &streams, &commands, to.len()), (applied, to[..applied.host].to_vec()));

    // A host that is a guest: it takes each command, and makes nothing else of it.
    let canonical = Rules::new(&host, &host, Vmid(input.vmid), &[]).unwrap();
    let own = StreamMap::from_pairs(pairs.map(|(_, host)| (StreamId(host.0), host))).unwrap();
    for command in &to[..applied.host] {
        let mut again = [Command::default(); MAX_EXPANSION];
        let verdict = canonical.apply(&own, &[*command], &mut again);
        assert_eq!((verdict.host, again[0]), (1, *command), "{command} {verdict:?}");
        assert!(matches!(command.opcode().0, 0x05 | 0x06 | 0x10..=0x13 | 0x40), "{command}");
    }
});

/// The batch as single commands, each with all the room that is left.
fn one_by_one(
    rules: &Rules,
    streams: &StreamMap,
    commands: &[Command],
    room: usize,
) -> (Applied, Vec<Command>) {
    let mut all = Applied { taken: 0, host: 0, dropped: 0, widened: 0, end: End::Batch };
    let mut to = vec![Command::default(); room];
    for command in commands {
        let one = rules.apply(streams, &[*command], &mut to[all.host..]);
        all.taken += one.taken;
        all.host += one.host;
        all.dropped += one.dropped;
        all.widened += one.widened;
        all.end = one.end;
        if one.taken == 0 || one.end != End::Batch {
            break;
        }
        // What ends a batch is the last of it.
        assert!(!rules.ends_batch(*command) || one.dropped == 1, "{command}");
    }
    to.truncate(all.host);
    (all, to)
}
