//! Whatever a guest sends, the host only gets canonical commands with the guest's own identities.
#![no_main]

use arbitrary::Arbitrary;
use ecmdq_engine::command::table::{COMMANDS, Check, Destination, Role, Spec, find};
use ecmdq_engine::rules::{Applied, End, MAX_EXPANSION, Quirk, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, Opcode, StreamId, StreamMap, Vmid};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    guest: [u32; 6],
    /// Bits that the host has besides.
    more: [u32; 6],
    host_lacks_ril: bool,
    host_lacks_ats: bool,
    /// Bits of the host turned over after that: it may lack what the guest is shown.
    turned: Option<[u32; 6]>,
    vmid: u16,
    quirk: bool,
    disabled: bool,
    streams: [(u32, u32); 3],
    room: u8,
    batch: Vec<Run>,
}

/// Commands that differ in a few bits.
#[derive(Arbitrary, Debug)]
struct Run {
    opcode: u8,
    /// Any opcode, not only those of the table.
    any: bool,
    /// Reserved bits too.
    reserved: bool,
    /// Scales that a host without ranges can be given one by one; ATC_INV with a legal size, without substream.
    small: bool,
    /// One of the streams instead of the words' own.
    stream: Option<u8>,
    /// A bit turned over at last, in the last command.
    flip: Option<u8>,
    words: [u64; 2],
    /// The bits that differ from command to command.
    differ: [u64; 2],
    times: u8,
}

impl Run {
    fn commands(&self, guest: &Features, streams: &[(StreamId, HostStreamId)]) -> Vec<Command> {
        // Those that go to the host half of the time.
        let to_host = |spec: &&Spec| self.opcode & 1 == 0 || spec.to == Destination::Host;
        let known: Vec<_> = COMMANDS.iter().filter(to_host).collect();
        let spec = known[usize::from(self.opcode >> 1) % known.len()];
        let mut mask = [0; 2];
        spec.fields.iter().for_each(|field| mask[field.word] |= field.mask_for(guest));
        if self.any || self.reserved {
            mask = [u64::MAX; 2];
        }
        match spec.check {
            Check::Range if self.small => mask[0] &= !(0x3c << 20),
            Check::AtcInv if self.small => mask = [mask[0] & !0xffff_ff00, mask[1] & !0x30],
            _ => {}
        }
        let opcode = u64::from(if self.any { self.opcode } else { spec.opcode.0 });
        let times = u64::from(self.times % 40) + 1;
        let command = |i: u64| {
            let noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut words = self.words;
            words[0] = (words[0] ^ noise & self.differ[0]) & mask[0];
            words[1] = (words[1] ^ noise.rotate_left(32) & self.differ[1]) & mask[1];
            if let Some(stream) = self.stream
                && spec.has_stream()
            {
                let (guest, _) = streams[usize::from(stream) % streams.len()];
                words[0] = words[0] & u64::from(u32::MAX) | u64::from(guest.0) << 32;
            }
            words[0] = words[0] & !0xff | opcode;
            if let Some(bit) = self.flip
                && i + 1 == times
            {
                words[usize::from(bit >> 6 & 1)] ^= 1 << (bit & 63);
            }
            Command(words)
        };
        (0..times).map(command).collect()
    }
}

fuzz_target!(|input: Input| {
    let guest = Features::from_idrs(input.guest);
    let turned = input.turned.unwrap_or_default();
    let host = std::array::from_fn(|i| (input.guest[i] | input.more[i]) ^ turned[i]);
    let mut host = Features::from_idrs(host);
    host.ril &= !input.host_lacks_ril;
    host.ats &= !input.host_lacks_ats;
    let quirks = if input.quirk { vec![Quirk::OnePageRange] } else { vec![] };
    let Ok(mut rules) = Rules::new(&guest, &host, Vmid(input.vmid), &quirks) else { return };
    rules.set_smmu_enabled(!input.disabled);
    // StreamID 0xffff_ffff cannot be mapped.
    let pairs = input.streams.map(|(guest, host)| (StreamId(guest >> 1), HostStreamId(host >> 1)));
    let streams = StreamMap::from_pairs(pairs).unwrap();
    let commands: Vec<_> = input.batch.iter().take(8).flat_map(|run| run.commands(&guest, &pairs)).collect();

    let mut to = vec![Command::default(); usize::from(input.room)];
    let applied = rules.apply(&streams, &commands, &mut to);
    assert!(applied.taken <= commands.len() && applied.host <= to.len());
    let emitted = &to[..applied.host];

    // The same one by one, and each command against what it became.
    let mut all = Applied { taken: 0, host: 0, cost: 0, dropped: 0, widened: 0, end: End::Batch };
    let mut single = vec![Command::default(); to.len()];
    for command in &commands {
        let one = rules.apply(&streams, &[*command], &mut single[all.host..]);
        let became = &single[all.host..][..one.host];
        became.iter().for_each(|host| same_meaning(&guest, &streams, *command, *host));
        if one.host > 0 && find(command.opcode()).is_some_and(|spec| spec.check == Check::Range) {
            covers(&guest, &host, *command, became, one.widened);
        } else {
            assert!(one.host <= 1 && one.widened == 0, "{command} {one:?}");
        }
        all.taken += one.taken;
        all.cost += one.cost;
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
    assert_eq!((applied, emitted), (all, &single[..all.host]));

    // A host that is a guest: it takes each command, and makes nothing else of it.
    let canonical = Rules::new(&host, &host, Vmid(input.vmid), &[]).unwrap();
    let own = StreamMap::from_pairs(pairs.map(|(_, host)| (StreamId(host.0), host))).unwrap();
    for command in emitted {
        let mut again = [Command::default(); MAX_EXPANSION];
        let verdict = canonical.apply(&own, &[*command], &mut again);
        assert_eq!((verdict.taken, verdict.host, again[0]), (1, 1, *command), "{command} {verdict:?}");
        assert!(matches!(command.opcode().0, 0x05 | 0x06 | 0x10..=0x13 | 0x40), "{command}");
        let tlbi = command.opcode() != Opcode::ATC_INV && command.opcode().0 >= 0x10;
        assert!(!tlbi || command.bits(0, 47, 32) == u64::from(input.vmid), "{command}");
    }
});

/// The host's command has the guest's opcode, its mapped stream, and of all other fields at most what the guest set.
fn same_meaning(guest: &Features, streams: &StreamMap, command: Command, host: Command) {
    let spec = find(command.opcode()).expect("only commands of the table go to the host");
    if host.opcode() != spec.host {
        assert!(spec.check == Check::Range && host.opcode() == Opcode::TLBI_NH_ALL, "{command}: {host}");
        return;
    }
    for field in spec.fields {
        let (was, is) = (field.of(command), field.of(host));
        match field.name {
            "StreamID" => {
                assert_eq!(streams.get(StreamId(was as u32)), Some(HostStreamId(is as u32)), "{command}")
            }
            "ASID" | "Leaf" | "Size" => assert_eq!(is, was, "{field:?} of {command}: {host}"),
            "TTL128" => assert_eq!(is, 0, "{command}: {host}"),
            // Without SSV, or without substreams, they do not count.
            "SubstreamID" | "SSV" | "Global" if spec.check == Check::AtcInv => {
                let counts = command.bits(0, 11, 11) == 1 && guest.ssid_bits > 0;
                assert_eq!(is, if counts { was } else { 0 }, "{field:?} of {command}: {host}");
            }
            "SubstreamID" => assert_eq!(is, was, "{command}: {host}"),
            // See `covers`.
            "NUM" | "SCALE" | "TG" | "TTL" => {}
            "Address" => assert!(spec.check == Check::Range || is == was, "{command}: {host}"),
            _ => assert!(matches!(field.role, Role::Vmid | Role::Zero), "{field:?} of {command}: {host}"),
        }
    }
}

/// What a TLBI by address became invalidates every leaf that its range touches, or everything.
fn covers(guest: &Features, host: &Features, command: Command, became: &[Command], widened: usize) {
    let field = |command: Command, word, msb, lsb| command.bits(word, msb, lsb);
    let [num, scale] = [field(command, 0, 16, 12), field(command, 0, 25, 20)];
    let [tg, ttl, ttl128] = [field(command, 1, 11, 10), field(command, 1, 9, 8), field(command, 1, 7, 7)];
    let page = |command: Command| u128::from(field(command, 1, 63, 12)) << 12;
    // The leaves that the hint names; TTL128 makes it one of other sizes.
    let leaf_log2 = match (tg, if ttl128 == 1 { 0 } else { ttl }) {
        (0 | 1, 0 | 3) => 12,
        (1, 2) => 21,
        (1, 1) => 30,
        (2, 2) => 25,
        (2, 1) if guest.ds => 36,
        (2, _) => 14,
        (3, 2) => 29,
        (3, 1) => 42,
        _ => 16,
    };
    let granule_log2 = [12, 12, 14, 16][tg as usize];
    // One page without a hint that counts is the one address.
    let hinted = ttl != 0 && ttl128 == 0 && (tg != 2 || ttl != 1 || guest.ds);
    let one_address = num == 0 && scale == 0 && !hinted;
    let bytes = if one_address { 1 } else { u128::from(num + 1) << scale.min(39) << granule_log2 };
    let last = (page(command) + bytes - 1).min(u128::from(u64::MAX));
    let leaves = (page(command) >> leaf_log2)..=(last >> leaf_log2);
    let count = leaves.end() - leaves.start() + 1;
    let range_fields =
        |command: Command| [field(command, 0, 16, 12), field(command, 0, 25, 20), field(command, 1, 11, 10)];
    if host.ril {
        let [one] = became else { panic!("{command}: {became:?}") };
        assert_eq!((widened, page(*one)), (0, page(command)), "{command}: {one}");
        // Granule and all, or one page without.
        let whole = range_fields(*one) == range_fields(command);
        assert!(whole || range_fields(*one) == [0; 3] && num == 0 && scale == 0, "{command}: {one}");
        let hint = field(*one, 1, 9, 8);
        assert!(hint == 0 || hint == ttl, "{command}: {one}");
    } else if count > MAX_EXPANSION as u128 {
        assert!(widened == 1 && became.len() == 1 && became[0].opcode() == Opcode::TLBI_NH_ALL, "{command}");
    } else {
        assert_eq!(widened, 0, "{command}");
        let named = became.iter().map(|one| page(*one) >> leaf_log2);
        assert!(named.eq(leaves), "{command}: {became:?}");
        became.iter().for_each(|one| assert_eq!(range_fields(*one), [0; 3], "{command}: {one}"));
    }
}
