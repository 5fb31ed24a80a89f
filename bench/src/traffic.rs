//! What emulated guests send.

use std::collections::BTreeSet;
use std::path::Path;

use ecmdq_engine::{Command, Opcode, StreamId};

use crate::driver::Sync;
use crate::trace::{self, TraceError};

/// Commands that are sent together, with the CMD_SYNC that follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The commands without the CMD_SYNC.
    pub commands: Vec<Command>,
    /// How the CMD_SYNC is waited for.
    pub sync: Sync,
    /// Whether it is the rest of what the group before began, and is sent at once, whatever the pace.
    pub follows: bool,
}

/// A stream of groups, sent over and over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The groups in order.
    pub groups: Vec<Group>,
    /// The streams that the commands name.
    pub streams: Vec<StreamId>,
}

/// The most commands sent before a CMD_SYNC: more are split, so that a group fits every queue.
const MOST: usize = 4095;

impl Traffic {
    /// A built-in mix after the habits of real drivers: single pages, 16 pages without ranges, ranges, long
    /// batches, whole address spaces, ATC invalidations behind their TLBI, a configuration change now and then.
    pub fn mix() -> Self {
        const STREAM: u64 = 0x42;
        let page = |i: u64| Command([0x0001_0000_0000_0012, (0xffff_0000 + i) << 12 | 1]);
        let range = |i: u64, scale: u64| {
            Command([0x0001_0000_0000_3012 | scale << 20, (0xfff0_0000 + (i << 9)) << 12 | 0x701])
        };
        let mut groups = Vec::new();
        let mut add = |sync, commands| groups.push(Group { commands, sync, follows: false });
        for i in 0..64 {
            add(Sync::Msi, vec![page(i)]);
            add(Sync::Msi, vec![range(i, i % 8)]);
            add(Sync::Cons, (0..16).map(|k| page(16 * i + k)).collect());
            add(Sync::Msi, (0..254).map(|k| page(256 * i + k)).collect());
            add(Sync::Msi, vec![range(i, 0)]);
            add(Sync::Msi, vec![Command([STREAM << 32 | 0x40, (0xfff0_0000 + (i << 9)) << 12 | 2])]);
        }
        add(Sync::Cons, vec![Command([0x0001_0000_0000_0011, 0])]);
        add(Sync::Cons, vec![Command([0x10, 0]), Command([0x30, 0])]);
        add(Sync::Msi, vec![Command([STREAM << 32 | 0x05, 1]), Command([STREAM << 32 | 0x06, 0])]);
        add(Sync::Msi, vec![Command([STREAM << 32 | 0x03, 1]), Command([STREAM << 32 | 0x01, 0])]);
        add(Sync::Msi, vec![Command([0x04, 0x1f])]);
        Self { groups, streams: vec![StreamId(STREAM as u32)] }
    }

    /// The same traffic for one of several queues of a guest, with the queue's number in it, so that each command to the host
    /// names its queue: in the upper byte of the ASID, of the address where there is no ASID, of the lower half of the
    /// StreamID. TLBI_NH_ALL and TLBI_NSNH_ALL have no room for it.
    pub fn of_queue(&self, queue: u8) -> Self {
        let group = |group: &Group| Group {
            commands: group.commands.iter().map(|command| tagged(*command, queue)).collect(),
            ..*group
        };
        Self {
            groups: self.groups.iter().map(group).collect(),
            streams: self.streams.iter().map(|stream| tagged_stream(*stream, queue)).collect(),
        }
    }

    /// A recorded stream as traffic. MSIs are aimed at the CMD_SYNC's own slot, wherever that is now.
    ///
    /// # Errors
    ///
    /// As [`trace::read`]; and [`TraceError::Empty`].
    pub fn from_trace(path: &Path) -> Result<Self, TraceError> {
        match trace::read(path)? {
            commands if commands.is_empty() => Err(TraceError::Empty { path: path.into() }),
            commands => Ok(Self::from_commands(commands)),
        }
    }

    /// The groups of a command stream with CMD_SYNCs in it.
    pub fn from_commands(stream: impl IntoIterator<Item = Command>) -> Self {
        let (mut groups, mut streams) = (Vec::new(), BTreeSet::new());
        let mut commands = Vec::new();
        let mut add = |commands: &mut Vec<_>, sync| {
            groups.push(Group { commands: std::mem::take(commands), sync, follows: false })
        };
        for command in stream {
            if command.opcode() == Opcode::CMD_SYNC {
                add(&mut commands, if command.bits(0, 13, 12) == 1 { Sync::Msi } else { Sync::Cons });
                continue;
            }
            if matches!(command.opcode().0, 0x01..=0x06 | 0x40) {
                streams.insert(StreamId(command.stream()));
            }
            commands.push(command);
            if commands.len() == MOST {
                add(&mut commands, Sync::Cons);
            }
        }
        if !commands.is_empty() {
            add(&mut commands, Sync::Cons);
        }
        Self { groups, streams: streams.into_iter().collect() }
    }
}

fn tagged(Command([low, high]): Command, queue: u8) -> Command {
    let top_byte = |word: u64| word & !(0xff << 56) | u64::from(queue) << 56;
    Command(match low & 0xff {
        0x11 | 0x12 => [top_byte(low), high],
        0x13 => [low, top_byte(high)],
        0x01..=0x06 | 0x40 => {
            let stream = tagged_stream(StreamId((low >> 32) as u32), queue);
            [low & 0xffff_ffff | u64::from(stream.0) << 32, high]
        }
        _ => [low, high],
    })
}

fn tagged_stream(StreamId(stream): StreamId, queue: u8) -> StreamId {
    StreamId(stream & !0xff00 | u32::from(queue) << 8)
}

/// The queue whose [number](Traffic::of_queue) is in a command to the host.
pub(crate) fn queue_of(Command([low, high]): Command) -> Option<usize> {
    let byte = match low & 0xff {
        0x11 | 0x12 => low >> 56,
        0x13 => high >> 56,
        0x05 | 0x06 | 0x40 => low >> 40 & 0xff,
        _ => return None,
    };
    Some(byte as usize)
}
