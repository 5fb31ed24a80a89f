//! Whatever two guests write to registers and memory, and whatever their VMM does meanwhile: no guest gets beyond its own.
#![no_main]

#[path = "registers/guest.rs"]
mod guest;
#[path = "registers/host.rs"]
mod host;

use std::mem;

use arbitrary::{Arbitrary, Unstructured};
use ecmdq_engine::host::{Cause, Failure};
use ecmdq_engine::{Command, NotRecorded, Snapshot, StreamIdOf, Worker};
use libfuzzer_sys::fuzz_target;

use guest::{EN, Guest, QUEUES, RAM, RAM_SIZE};
use host::Host;

#[derive(Arbitrary, Debug)]
struct Step {
    second: bool,
    op: Op,
    /// Sweeps after it, up to 3.
    polls: u8,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Write {
        register: u8,
        off: u8,
        size: u8,
        value: Value,
        trap: bool,
    },
    Read {
        register: u8,
        off: u8,
        size: u8,
    },
    /// A queue is described and enabled as a driver does.
    Start {
        queue: u8,
        log2: u8,
        index: u16,
    },
    /// Commands behind PROD, the first of them several times, a CMD_SYNC or none, and the doorbell. `flood` of the entries
    /// behind those are what they were.
    Send {
        queue: u8,
        first: Raw,
        times: u8,
        second: Raw,
        sync: bool,
        flood: u8,
    },
    Memory {
        slot: u16,
        command: Raw,
        times: u8,
    },
    /// GERRORN or ERRACK as it should be.
    Acknowledge {
        queue: u8,
    },
    Token {
        which: u8,
        act: u8,
    },
    Pause,
    Resume,
    Reset,
    Save,
    Restore {
        which: u8,
        spoil: Option<Spoil>,
    },
    MemoryChanged {
        len: u8,
    },
    Host {
        room: u8,
        tickets: u8,
    },
    Fail {
        cause: u8,
        named: bool,
    },
    Polls(u8),
    Record {
        page_request: bool,
        host: bool,
        words: [u64; 4],
        times: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Value {
    kind: u8,
    raw: u64,
}

impl Value {
    fn get(&self) -> u64 {
        let (raw, small) = (self.raw, self.raw % 0x101);
        match self.kind % 8 {
            0 => raw,
            1 => 1 << (raw % 64),
            2 => small,
            3 => RAM + 0x1000 * (raw >> 8 & 7) | raw & 7,
            4 => u64::from(EN) | small,
            5 => u64::from(EN | 1 << 23) | small,
            6 => raw & 0x1f,
            _ => raw & 0x8000_0000_80ff_ffff,
        }
    }
}

/// A command: one of a kind with the bits that may differ, or any.
#[derive(Arbitrary, Debug)]
struct Raw {
    kind: u8,
    words: [u64; 2],
    flip: Option<u8>,
}

impl Raw {
    fn command(&self) -> Command {
        /// What is fixed, and the bits that are not. Streams 0x42 and 0x43 are the guest's.
        const KINDS: [([u64; 2], [u64; 2]); 24] = [
            ([0x46, 0], [0, 0]),
            ([0x46, 0], [0x0fc0_20ff & !0xff, 0]),
            ([0x1046, RAM], [0xffff_ffff_0000_0000, 0x7ffc]),
            ([0x1046, 0], [0xffff_ffff_0000_0000, 0x00ff_ffff_ffff_fffc]),
            ([0x10, 0], [0x0000_ffff_0000_0000, 0]),
            ([0x11, 0], [0xffff_0000_0000_0000, 0]),
            ([0x12, 0], [0xffff_ffff_0000_0000, 0xffff_ffff_ffff_f001]),
            ([0x12, 0x500], [0xffff_0000_0031_f000, 0xffff_ffff_ffff_fa01]),
            ([0x13, 0x400], [0x0000_0000_01f1_f000, 0xffff_ffff_ffff_fb01]),
            ([0x13, 0x801], [0x0000_0000_0011_f000, 0x0000_00ff_ffff_f700]),
            ([0x30, 0], [0, 0]),
            ([0x05 | 0x42 << 32, 0], [0x0000_0001_0000_f000, 1]),
            ([0x05 | 0x42 << 32, 0], [0x0000_0007_ffff_f000, 1]),
            ([0x06 | 0x42 << 32, 0], [0x0000_0001_0000_0000, 0]),
            ([0x06 | 0x100 << 32, 0], [0x0000_030f_0000_0000, 0]),
            ([0x40 | 0x42 << 32, 0], [0x0000_0001_0000_fa00, 0xffff_ffff_ffff_f01f]),
            ([0x40 | 0x42 << 32, 52], [0x0000_0001_0000_f800, 0]),
            ([0x03 | 0x42 << 32, 1], [0x0000_0003_0000_0000, 1]),
            ([0x04, 0], [0xffff_ffff_0000_0000, 0x1f]),
            ([0x01, 0], [0xffff_ffff_ffff_f800, 0]),
            ([0x41 | 0x42 << 32, 0], [0x0000_0001_0000_f800, 0x31ff]),
            ([0x44 | 0x42 << 32, 0], [0x0000_0001_0000_3000, 0xffff]),
            ([0x45 | 0x42 << 32, 0], [0x0000_0001_0000_0000, 0]),
            ([0, 0], [u64::MAX, u64::MAX]),
        ];
        let (fixed, free) = KINDS[usize::from(self.kind) % KINDS.len()];
        let mut words = [0, 1].map(|n| fixed[n] | self.words[n] & free[n]);
        if let Some(bit) = self.flip {
            words[usize::from(bit >> 6 & 1)] ^= 1 << (bit & 63);
        }
        Command(words)
    }
}

/// How the text of a snapshot is spoiled: one of its numbers replaced, or one of its bytes.
#[derive(Arbitrary, Debug)]
struct Spoil {
    at: u16,
    byte: Option<u8>,
    number: Value,
}

impl Spoil {
    fn text(&self, text: &str) -> String {
        let at = usize::from(self.at);
        if let Some(byte) = self.byte {
            let mut bytes = text.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        let digit = |c: char| c.is_ascii_digit();
        let starts: Vec<_> = text.match_indices(digit).map(|(at, _)| at).collect();
        let starts: Vec<_> = starts.iter().copied().filter(|at| !text[..*at].ends_with(digit)).collect();
        let start = starts[at % starts.len()];
        let rest = text[start..].trim_start_matches(digit);
        format!("{}{}{rest}", &text[..start], self.number.get())
    }
}

/// Registers worth hitting.
const REGISTERS: &[usize] = &[
    0x00, 0x04, 0x20, 0x20, 0x20, 0x24, 0x28, 0x2c, 0x44, 0x50, 0x54, 0x60, 0x64, 0x64, 0x68, 0x70, 0x74,
    0x80, 0x88, 0x90, 0x98, 0x98, 0x9c, 0xa0, 0xb0, 0xc0, 0xd0, 0x190, 0x4000, 0x4008, 0x1_00a8, 0x1_00c8,
    0x2_0000, 0x2_0008, 0x2_0008, 0x2_000c, 0x2_4000, 0x2_4008, 0x2_400c, 0x2_8000, 0x2_8008, 0x2_800c,
    0x2_c000, 0x2_c008, 0x2_c00c,
];

fn offset(register: u8, off: u8) -> usize {
    let register = REGISTERS[usize::from(register) % REGISTERS.len()];
    // Mostly the register itself.
    if off < 0xc0 { register } else { register.wrapping_add(usize::from(off & 0x1f)).wrapping_sub(8) }
}

fn size(size: u8) -> usize {
    [4, 4, 4, 4, 8, 8, usize::from(size >> 3 & 0x1f)][usize::from(size % 7)]
}

struct Rig {
    guests: [Guest; 2],
    host: Host,
    worker: Worker<Host>,
    saved: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        let host = Host::default();
        let mut worker = Worker::new(host.clone());
        let guests = [0, 1].map(Guest::new);
        guests.iter().for_each(|guest| worker.attach(guest.smmu.clone()).unwrap());
        Self { guests, host, worker, saved: Vec::new() }
    }

    fn poll(&mut self) -> bool {
        self.guests.iter_mut().for_each(Guest::before);
        let busy = self.worker.poll();
        self.guests.iter_mut().for_each(|guest| guest.after(&self.host));
        busy
    }

    fn polls(&mut self, n: u8) {
        for _ in 0..n {
            self.poll();
        }
    }

    fn step(&mut self, step: Step) {
        let guest = &mut self.guests[usize::from(step.second)];
        match step.op {
            Op::Write { register, off, size: length, value, trap } => {
                let data = value.get().to_le_bytes();
                let data = data.repeat(4);
                let (offset, data) = (offset(register, off), &data[..size(length)]);
                if trap { guest.smmu.mmio_write(offset as u64, data) } else { guest.store(offset, data) }
            }
            Op::Read { register, off, size: length } => {
                let (offset, mut data) = (offset(register, off), vec![0xaa; size(length)]);
                guest.smmu.mmio_read(offset as u64, &mut data);
                let legal = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len());
                assert!(legal || data.iter().all(|byte| *byte == 0), "{offset:#x}: {data:?}");
            }
            Op::Start { queue, log2, index } => start(guest, usize::from(queue) % QUEUES, log2, index.into()),
            Op::Send { queue, first, times, second, sync, flood } => {
                let first = (0..times % 16).map(|n| {
                    Command([first.command().0[0], first.command().0[1].wrapping_add(u64::from(n) << 12)])
                });
                let commands = first.chain([second.command()]).chain(sync.then_some(Command([0x46, 0])));
                send(guest, usize::from(queue) % QUEUES, commands, flood.saturating_sub(0xe0));
            }
            Op::Memory { slot, command, times } => {
                (0..=usize::from(times)).for_each(|n| guest.put(usize::from(slot) + n, command.command()));
            }
            Op::Acknowledge { queue } => match usize::from(queue) % QUEUES {
                0 => guest.store_u32(0x64, guest.load(0x60)),
                queue => {
                    let at = Guest::registers(queue);
                    let [prod, cons] = [8, 12].map(|register| guest.load(at + register));
                    guest.store_u32(at + 8, prod & !(1 << 23) | cons & 1 << 23);
                }
            },
            Op::Token { which, act } => {
                let mut tokens = guest.tokens.lock().unwrap();
                if !tokens.is_empty() {
                    let which = usize::from(which) % tokens.len();
                    let token = tokens.swap_remove(which);
                    match act % 8 {
                        0 => token.reject(),
                        1 => drop(token),
                        _ => token.complete(),
                    }
                }
            }
            Op::Pause => {
                guest.smmu.pause();
                guest.paused = true;
            }
            Op::Resume => {
                guest.smmu.resume();
                guest.paused = false;
            }
            Op::Reset => guest.smmu.reset(),
            Op::Save => {
                let saved = guest.smmu.save();
                assert_eq!(saved.is_ok(), guest.paused);
                self.saved.extend(saved.ok().map(|snapshot| serde_json::to_string(&snapshot).unwrap()));
            }
            Op::Restore { which, spoil } if !self.saved.is_empty() => {
                restore(guest, &self.saved[usize::from(which) % self.saved.len()], spoil);
            }
            Op::Restore { .. } => {}
            Op::MemoryChanged { len } => {
                let len = [RAM_SIZE, RAM_SIZE, RAM_SIZE / 2, 0x1400, 0][usize::from(len) % 5];
                guest.ram_len.store(len, std::sync::atomic::Ordering::Relaxed);
                guest.smmu.memory_changed();
            }
            Op::Host { room, tickets } => {
                self.host.make_room(8 * usize::from(room));
                self.host.finish(usize::from(tickets % 8));
            }
            Op::Fail { cause, named } => {
                let causes = [Cause::Illegal, Cause::AtcTimeout, Cause::Transient, Cause::DeviceGone];
                let cause = causes[usize::from(cause) % 4];
                self.host.fail(|last| Failure { cause, command: last.filter(|_| named) });
            }
            Op::Polls(n) => self.polls(n % 32),
            Op::Record { page_request, host, words, times } => {
                let stream = if host { StreamIdOf::Host } else { StreamIdOf::Guest };
                for _ in 0..=times % 64 {
                    let cause = match page_request {
                        true => {
                            let lost = guest.smmu.record_page_request([words[0], words[1]], stream);
                            lost.err().map(|lost| lost.cause)
                        }
                        false => guest.smmu.record_event(words, stream).err(),
                    };
                    let foreign = matches!(cause, Some(NotRecorded::ForeignStream(_)));
                    assert!(!guest.paused || foreign || cause == Some(NotRecorded::Paused));
                }
            }
        }
        self.polls(step.polls % 4);
    }

    /// The host is prompt, the VMM completes everything, the guests do nothing more: it must come to rest.
    fn settle(&mut self) {
        self.guests.iter_mut().for_each(|guest| {
            guest.smmu.resume();
            guest.paused = false;
        });
        self.host.be_prompt();
        let mut idle = 0;
        for _ in 0..10_000 {
            for guest in &self.guests {
                mem::take(&mut *guest.tokens.lock().unwrap()).into_iter().for_each(|token| token.complete());
            }
            idle = if self.poll() { 0 } else { idle + 1 };
            if idle == 2 {
                return self.guests.iter().for_each(|guest| guest.at_rest(&self.host));
            }
        }
        panic!("it does not come to rest: {:?}", self.guests.each_ref().map(|guest| guest.smmu.inspect()));
    }
}

fn start(guest: &mut Guest, queue: usize, log2: u8, index: u32) {
    let at = Guest::registers(queue);
    let base = RAM + 0x1000 * queue as u64 | u64::from(log2 % 10);
    guest.store(at, &base.to_le_bytes());
    guest.store_u32(at + 8, index);
    guest.store_u32(at + 12, index);
    match queue {
        0 => guest.store_u32(0x20, guest.load(0x20) | 8),
        _ => guest.store_u32(at + 8, EN | index),
    }
}

fn send(guest: &mut Guest, queue: usize, commands: impl Iterator<Item = Command>, flood: u8) {
    let at = Guest::registers(queue);
    let (base, prod) = (guest.load(at) as usize, guest.load(at + 8));
    let mask = (1 << (base & 0x1f).min(7)) - 1;
    let mut index = prod;
    for command in commands {
        guest.put((base & 0x7fe0) / 16 + (index & mask) as usize, command);
        index = index.wrapping_add(1);
    }
    index = index.wrapping_add(flood.into());
    guest.store_u32(at + 8, prod & !0xf_ffff | index & 0xf_ffff);
}

fn restore(guest: &mut Guest, text: &str, spoil: Option<Spoil>) {
    let other = spoil.as_ref().map(|spoil| spoil.text(text));
    let Ok(snapshot) = serde_json::from_str::<Snapshot>(other.as_deref().unwrap_or(text)) else {
        assert!(other.is_some(), "not read back: {text}");
        return;
    };
    let before = guest.everything();
    match guest.smmu.restore(&snapshot) {
        Err(error) => {
            assert_eq!(before, guest.everything(), "{error}");
            assert!(spoil.is_some() || !guest.paused, "{error}: {text}");
        }
        Ok(()) if spoil.is_none() => assert_eq!(guest.smmu.save().as_ref(), Ok(&snapshot)),
        Ok(()) => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::new();
    let mut data = Unstructured::new(data);
    for _ in 0..200 {
        // Not a `Vec`, which ends at every other byte of random data.
        let (false, Ok(step)) = (data.is_empty(), Step::arbitrary(&mut data)) else { break };
        rig.step(step);
    }
    rig.settle();
});
