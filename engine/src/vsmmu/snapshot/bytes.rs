//! A snapshot as bytes, for a file or a migration stream. `docs/virtual-smmu.md` has the layout as a table.

use thiserror::Error;

use super::{QueueState, Snapshot, VERSION};

const MAGIC: &[u8; 8] = b"ECMDQSNP";
/// Magic, version, length of the payload.
const HEADER: usize = 16;
const CHECKSUM: usize = 4;
/// What comes before the lists, and an element of each.
const FIXED: usize = 52;
const REGISTER: usize = 12;
const QUEUE: usize = 24;

const ENABLED: u8 = 1 << 0;
const STOPPED: u8 = 1 << 1;

/// Why bytes are not a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They do not begin as a snapshot does.
    #[error("this is no snapshot of a virtual SMMU: look for where in the VM's state it begins")]
    Magic,
    /// Another version of this crate has written it.
    #[error(
        "the snapshot has version {0}, this is for versions 1 to {VERSION}: restore it with a version of ecmdq that knows it"
    )]
    Version(u32),
    /// The end is missing.
    #[error("the snapshot is cut off, {len} bytes of {needed}: read all of it, or transfer it again")]
    Truncated {
        /// How many bytes there are.
        len: usize,
        /// How many there must be, as far as can be told.
        needed: usize,
    },
    /// There is something behind it.
    #[error("{0} bytes follow the snapshot: hand over the snapshot alone")]
    Trailing(usize),
    /// The bytes are not those that were written.
    #[error(
        "the snapshot is damaged, its checksum is {computed:#010x} and not {stored:#010x}: transfer it again"
    )]
    Checksum {
        /// The checksum that it has.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// The checksum is right, and the bytes are none that this crate writes.
    #[error(
        "the snapshot is corrupt, though its checksum is right: {0}; what wrote it is at fault, save again"
    )]
    Malformed(&'static str),
}

impl Snapshot {
    /// The snapshot as bytes, with a version and a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { version, idrs, registers, cr0ack, irq_ctrlack, gerror, gerrorn, queues } = self;
        let payload = FIXED + REGISTER * registers.len() + QUEUE * queues.len();
        let mut bytes = Vec::with_capacity(HEADER + payload + CHECKSUM);
        let to = &mut bytes;
        to.extend_from_slice(MAGIC);
        put(to, &[*version, payload as u32]);
        put(to, idrs);
        put(to, &[*cr0ack, *irq_ctrlack, *gerror, *gerrorn]);
        put(to, &[registers.len() as u32, queues.len() as u32]);
        for (offset, value) in registers {
            put(to, &[*offset]);
            to.extend_from_slice(&value.to_le_bytes());
        }
        for QueueState { number, enabled, stopped, blame, base, prod, cons } in queues {
            let flags = if *enabled { ENABLED } else { 0 } | if *stopped { STOPPED } else { 0 };
            put(to, &[*number]);
            to.extend_from_slice(&[flags, *blame, 0, 0]);
            to.extend_from_slice(&base.to_le_bytes());
            put(to, &[*prod, *cons]);
        }
        let checksum = crc32fast::hash(to);
        put(to, &[checksum]);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote. The bytes may come from anywhere: whether a virtual SMMU can be in that state,
    /// [`VirtualSmmu::restore`](crate::VirtualSmmu::restore) checks.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let len = bytes.len();
        let mut header = Reader(bytes);
        if !bytes.starts_with(&MAGIC[..len.min(MAGIC.len())]) {
            return Err(SnapshotError::Magic);
        }
        let (Some(_), Some(version), Some(payload)) = (header.take::<8>(), header.u32(), header.u32()) else {
            return Err(SnapshotError::Truncated { len, needed: HEADER + FIXED + CHECKSUM });
        };
        if !(1..=VERSION).contains(&version) {
            return Err(SnapshotError::Version(version));
        }
        let end = HEADER.saturating_add(payload as usize);
        let needed = end.saturating_add(CHECKSUM);
        if len < needed {
            return Err(SnapshotError::Truncated { len, needed });
        } else if len > needed {
            return Err(SnapshotError::Trailing(len - needed));
        }
        let (checked, stored) = bytes.split_at(end);
        let computed = crc32fast::hash(checked);
        match Reader(stored).u32() {
            Some(stored) if stored != computed => Err(SnapshotError::Checksum { stored, computed }),
            _ => decode(version, &checked[HEADER..]),
        }
    }
}

fn put(to: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| to.extend_from_slice(&word.to_le_bytes()));
}

/// The payload. Nothing is allocated before its length has been found to be what its counts say.
fn decode(version: u32, payload: &[u8]) -> Result<Snapshot, SnapshotError> {
    let malformed = SnapshotError::Malformed;
    let mut from = Reader(payload);
    let Some([a, b, c, d, e, f, g, cr0ack, irq_ctrlack, gerror, gerrorn, registers, queues]) = from.u32s()
    else {
        return Err(malformed("it is too short"));
    };
    let (registers_len, queues_len) = (u64::from(registers), u64::from(queues));
    let counted = FIXED as u64 + REGISTER as u64 * registers_len + QUEUE as u64 * queues_len;
    if counted != payload.len() as u64 {
        return Err(malformed("its lists are not as long as they say"));
    }
    let register = |from: &mut Reader<'_>| Some((from.u32()?, from.u64()?));
    let registers: Option<_> = (0..registers).map(|_| register(&mut from)).collect();
    let queues: Option<Result<_, _>> = (0..queues).map(|_| from.queue()).collect();
    let (Some(registers), Some(queues)) = (registers, queues) else {
        return Err(malformed("its lists are not as long as they say"));
    };
    let idrs = [a, b, c, d, e, f, g];
    Ok(Snapshot { version, idrs, registers, cr0ack, irq_ctrlack, gerror, gerrorn, queues: queues? })
}

/// What has not been read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32s<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Some(words)
    }

    fn queue(&mut self) -> Option<Result<QueueState, SnapshotError>> {
        let number = self.u32()?;
        let [flags, blame, reserved @ ..] = self.take::<4>()?;
        let (base, [prod, cons]) = (self.u64()?, self.u32s()?);
        if flags & !(ENABLED | STOPPED) != 0 || reserved != [0, 0] {
            return Some(Err(SnapshotError::Malformed("a queue has flags that do not exist")));
        }
        let (enabled, stopped) = (flags & ENABLED != 0, flags & STOPPED != 0);
        Some(Ok(QueueState { number, enabled, stopped, blame, base, prod, cons }))
    }
}
