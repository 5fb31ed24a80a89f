//! From addresses to shared memory: the only module that makes regions out of pointers.
//!
//! What it guarantees: each [`SharedRegion`] it makes points at mapped memory and owns what keeps it mapped.
#![expect(unsafe_code, reason = "a mapping's pointer can only be wrapped by promising that it stays mapped")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use ecmdq_ring::SharedRegion;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::mm::ProtFlags;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// A guest's memory as the engine needs it. [`Ram`] is the implementation over vm-memory.
///
/// Memory is what this process can read and write: anything else, such as flash that is mapped read-only, is not guest
/// memory here, and the guest sees an abort. The engine accesses it directly, on the worker's thread, and has no way to
/// recover from a fault. Until the VMM has taken memory out of the map and
/// [`memory_changed`](crate::VirtualSmmu::memory_changed) has returned, it must not
///
/// * unmap it, or take away access to it by `mprotect`, also for a moment;
/// * shorten the file behind it, or let somebody else do so ([`check_cannot_shrink`]), or leave holes in that file which
///   its file system or a memory limit may have no room to fill;
/// * poison it by `madvise` (`MADV_HWPOISON`), or keep it in the map after the hardware has;
/// * register it with userfaultfd unless each fault is resolved by a thread that waits for no worker. Such a fault delays
///   all guests of the worker.
///
/// Its methods are called while the guest's state is locked: they must not call the guest's virtual SMMU, and must not take a lock that
/// another thread holds while it does.
///
/// A violation ends the process by SIGSEGV or SIGBUS, or blocks the worker. `MADV_DONTNEED`, a balloon and hole punching
/// are fine: the engine reads zeros, or what the file has.
pub trait GuestRam: Send + Sync {
    /// The `len` bytes at `at` if they are guest memory, as said above, and lie in one piece. Must not allocate.
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion>;

    /// Stores a little-endian word with release ordering, and marks it dirty where that is logged; false, and nothing
    /// stored, if it is not guest memory, as said above, or `at` is no multiple of 4. Must not allocate.
    fn store_u32(&self, at: GuestAddress, value: u32) -> bool;

    /// The memory map may have changed: from now on, answers are from the new one.
    fn refresh(&mut self);
}

/// A region of guest memory that knows how it is mapped, for [`Ram`]. A VMM with a region type of its own implements it.
pub trait Region: GuestMemoryRegion {
    /// Whether this process may both read and write the region.
    fn is_writable(&self) -> bool;
}

impl<B: Bitmap> Region for GuestRegionMmap<B> {
    fn is_writable(&self) -> bool {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        ProtFlags::from_bits_retain(self.prot() as u32).contains(both)
    }
}

/// Guest memory of a VMM that uses vm-memory: an `Arc<GuestMemoryMmap>`, a `GuestMemoryAtomic`, or the like.
///
/// A region counts as the protection that it was mapped with says; see [`GuestRam`] for what the VMM must not do to it
/// afterwards. It holds on to the map as it was at the last [`refresh`](GuestRam::refresh).
#[derive(Clone)]
pub struct Ram<S: GuestAddressSpace> {
    space: S,
    now: Arc<S::T>,
}

impl<S: GuestAddressSpace> Ram<S> {
    /// The memory of this address space.
    pub fn new(space: S) -> Self {
        // A clone of the snapshot is one that may be kept for long.
        let now = Arc::new(space.memory().clone());
        Self { space, now }
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend<R: Region>>> Ram<S> {
    /// The region that has this address, if it is memory to the engine, and where in it the address is.
    fn find(&self, at: GuestAddress) -> Option<(&<S::M as GuestMemoryBackend>::R, MemoryRegionAddress)> {
        self.now.to_region_addr(at).filter(|(region, _)| region.is_writable())
    }
}

impl<S> GuestRam for Ram<S>
where
    S: GuestAddressSpace<M: GuestMemoryBackend<R: Region>> + Send + Sync,
    S::T: Send + Sync + 'static,
{
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        let (region, at) = self.find(at)?;
        let slice = region.get_slice(at, len).ok()?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
        // SAFETY: the slice is inside one mapping of this memory, which is readable and writable (`find`), and which the
        // clone of the Arc keeps mapped. vm-memory hands out no references, and the engine accesses it through regions only.
        Some(unsafe { SharedRegion::new(base, len, self.now.clone()) })
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        // vm-memory stores with one access, which it refuses where it is not aligned, and marks it in its bitmap.
        // The word may be in a slot of the guest's queue, which is read as 64-bit words. The two widths never race within
        // this process: the worker that read the slot stores the MSI, in this order, and is the only one that reads it
        // again; a guest that changes workers is handed over by a lock.
        self.find(at).is_some_and(|(region, at)| region.store(value.to_le(), at, Release).is_ok())
    }

    fn refresh(&mut self) {
        self.now = Arc::new(self.space.memory().clone());
    }
}

impl<S: GuestAddressSpace> fmt::Debug for Ram<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").finish_non_exhaustive()
    }
}

/// `len` bytes of new shared memory behind a file descriptor of its own, zeroed, whose size cannot be changed.
///
/// # Errors
///
/// What `memfd_create`, `ftruncate`, `fcntl` or `mmap` said.
pub fn memfd(name: &str, len: usize) -> io::Result<(File, SharedRegion)> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(len as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let region = map(&file, len)?;
    Ok((file, region))
}

/// Maps the first `len` bytes of a file, shared, readable and writable.
///
/// # Errors
///
/// As [`check_cannot_shrink`]; `InvalidInput` if the file is shorter; what `mmap` said, such as `PermissionDenied` for a
/// file that was opened read-only or is sealed against writes.
pub fn map(file: &File, len: usize) -> io::Result<SharedRegion> {
    check_cannot_shrink(file)?;
    if file.metadata()?.len() < len as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the file is shorter than what is to be mapped",
        ));
    }
    let mapping: MmapRaw = MmapOptions::new().len(len).map_raw(file)?;
    let base = NonNull::new(mapping.as_mut_ptr()).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the mapping is `len` bytes long, readable and writable; the Arc unmaps it when the region's last
    // clone is gone. It is raw: no reference to its memory exists.
    Ok(unsafe { SharedRegion::new(base, len, Arc::new(mapping)) })
}

/// Checks that nobody but this user can make a file shorter: an access past the end of a mapped file ends the process.
///
/// A file is fine if it is sealed against shrinking (`F_SEAL_SHRINK`), or if it belongs to this process's user, and
/// neither group nor others may write to it.
///
/// # Errors
///
/// `PermissionDenied` if somebody else can shrink it; what the system said.
pub fn check_cannot_shrink(file: &File) -> io::Result<()> {
    if fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
        return Ok(());
    }
    let metadata = file.metadata()?;
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let reason = "another user can shrink the file: seal it (F_SEAL_SHRINK), or make it yours and writable by you alone";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}
