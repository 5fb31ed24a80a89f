//! From addresses to shared memory: the only module of this crate with `unsafe`.
//!
//! What it guarantees: each [`SharedRegion`] it makes points at mapped memory and owns what keeps it mapped.
#![expect(unsafe_code, reason = "a mapping's pointer can only be wrapped by promising that it stays mapped")]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use ecmdq_ring::SharedRegion;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A guest's memory as the engine needs it.
pub trait GuestRam: Send + Sync {
    /// The `len` bytes at `at` if they are guest memory and lie in one piece. Must not allocate.
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion>;
}

impl<B: Bitmap + Send + Sync + 'static> GuestRam for Arc<GuestMemoryMmap<B>> {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        let slice = GuestMemoryBackend::get_slice(&**self, at, len).ok()?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
        // SAFETY: the slice is inside one mapping of this memory, readable and writable, which the clone of the
        // Arc keeps mapped. vm-memory hands out no references, and the engine accesses it through regions only.
        Some(unsafe { SharedRegion::new(base, len, self.clone()) })
    }
}

/// `len` bytes of new shared memory behind a file descriptor of its own, zeroed.
///
/// # Errors
///
/// What `memfd_create`, `ftruncate` or `mmap` said.
pub fn memfd(name: &str, len: usize) -> io::Result<(File, SharedRegion)> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    let region = map(&file, len)?;
    Ok((file, region))
}

/// Maps the first `len` bytes of a file, shared.
///
/// The file must not be made shorter while the region lives: an access past its end ends the process.
///
/// # Errors
///
/// What `mmap` said.
pub fn map(file: &File, len: usize) -> io::Result<SharedRegion> {
    let mapping: MmapRaw = MmapOptions::new().len(len).map_raw(file)?;
    let base = NonNull::new(mapping.as_mut_ptr()).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the mapping is `len` bytes long, readable and writable; the Arc unmaps it when the region's last
    // clone is gone. It is raw: no reference to its memory exists.
    Ok(unsafe { SharedRegion::new(base, len, Arc::new(mapping)) })
}
