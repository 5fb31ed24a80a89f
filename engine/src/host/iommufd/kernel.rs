//! Nesting on Linux: what a VMM sets up for a guest, and where its commands go.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Invalidate, uapi};
use crate::command::Command;
use crate::features::Features;
use crate::identity::StreamId;

/// What a VMM sets up for a guest: a stage 2 that is a nesting parent, and a vIOMMU on it.
///
/// The objects live as long as the iommufd, or until the VMM destroys them by their ids.
#[derive(Clone, Debug)]
pub struct Nesting {
    viommu: VIommu,
    device: u32,
    stage2: u32,
}

/// A vIOMMU that commands go to: of a [`Nesting`], or one that the VMM has set up by itself.
#[derive(Clone)]
pub struct VIommu {
    iommufd: Arc<OwnedFd>,
    id: u32,
}

impl Nesting {
    /// Sets up nesting for a device that is bound to `iommufd` as `device`, with the guest's memory mapped in the IOAS
    /// `ioas`. The descriptor may be a duplicate ([`OwnedFd::try_clone`]) of the VMM's.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EOPNOTSUPP` if the SMMU cannot nest, or the device is not coherent.
    pub fn new(iommufd: OwnedFd, device: u32, ioas: u32) -> io::Result<Self> {
        let stage2 = uapi::nest_parent(iommufd.as_fd(), device, ioas)?;
        let id = uapi::viommu(iommufd.as_fd(), device, stage2)?;
        Ok(Self { viommu: VIommu::from_fd(iommufd, id), device, stage2 })
    }

    /// The nesting that a VMM has set up by itself: a vIOMMU on the stage 2 page table `stage2`, in front of `device` among others.
    /// Nothing is allocated; ids of other objects are only found out by later calls.
    pub fn from_parts(viommu: VIommu, device: u32, stage2: u32) -> Self {
        Self { viommu, device, stage2 }
    }

    /// The vIOMMU, for [`queue`](super::queue).
    pub fn viommu(&self) -> VIommu {
        self.viommu.clone()
    }

    /// The stage 2 page table, to which a device is attached while its guest's SMMU is disabled.
    pub fn stage2(&self) -> u32 {
        self.stage2
    }

    /// Tells the kernel what the guest calls a device's stream; returns the vDEVICE. Without one the kernel refuses commands
    /// that name the stream, and the guest gets CERROR_ILL: the guest's stream map gets the stream afterwards, and loses it
    /// before the vDEVICE goes.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EEXIST` if the device or the stream has a vDEVICE.
    pub fn add_stream(&self, device: u32, stream: StreamId) -> io::Result<u32> {
        Ok(uapi::vdevice(self.viommu.as_fd(), self.viommu.id, device, stream.0.into())?)
    }

    /// A page table after the first two words of the guest's stream table entry, to which the device is then attached.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EIO` for an entry that a guest may not have.
    pub fn stage1(&self, device: u32, ste: [u64; 2]) -> io::Result<u32> {
        Ok(uapi::stage1(self.viommu.as_fd(), device, self.viommu.id, ste)?)
    }

    /// What the host's SMMU can do, for the rules: of its ID registers, what the kernel lets a VMM rely on, and OAS. `ats` says whether
    /// the guest's devices use ATS, which is no property of the SMMU alone. HTTU is 0, since the kernel does not vouch for it.
    ///
    /// # Errors
    ///
    /// What the kernel said; `Unsupported` if the device is not behind an SMMUv3.
    pub fn host_features(&self, ats: bool) -> io::Result<Features> {
        Ok(features_of(uapi::idrs(self.viommu.as_fd(), self.device)?, ats))
    }
}

/// ASID16, CD2L, STALL_MODEL, ST_LEVEL; SIDSIZE, SSIDSIZE; RIL; OAS and the granules.
const RELIABLE: [u32; 6] =
    [1 << 12 | 1 << 19 | 0b11 << 24 | 0b11 << 27, 0x7ff, 0, 1 << 10, 0, 0b111 | 0b111 << 4];

fn features_of(idrs: [u32; 6], ats: bool) -> Features {
    let mut features = Features::from_idrs(std::array::from_fn(|n| idrs[n] & RELIABLE[n]));
    // Nesting and iommufd are not to be had without these.
    (features.s1p, features.coherent, features.ats) = (true, true, ats);
    features
}

impl VIommu {
    /// The vIOMMU `id` of `iommufd`, which may be a duplicate ([`OwnedFd::try_clone`]) of the VMM's descriptor. The id of another
    /// object is only found out by the first call.
    pub fn from_fd(iommufd: OwnedFd, id: u32) -> Self {
        Self { iommufd: Arc::new(iommufd), id }
    }

    /// Its id, for what else a VMM does with it: events, page tables, its end.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl AsFd for VIommu {
    /// The iommufd that it belongs to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.iommufd.as_fd()
    }
}

impl Invalidate for VIommu {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        Ok(uapi::invalidate(self.as_fd(), self.id, commands)?)
    }
}

impl fmt::Debug for VIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VIommu").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_what_the_kernel_vouches_for() {
        // As QEMU's SMMUv3 shows itself: no CD2L, two-level stream tables, 44 bits, all granules.
        let qemu = [0x0d44_101b, 0x0273_0010, 0, 0x0000_0404, 0, 0x0000_0074];
        let features = features_of(qemu, false);
        assert_eq!(features.idrs(), [0x0940_101a, 0x0000_0010, 0, 0x0000_0404, 0, 0x0000_0074]);
        // HTTU, MSI, SEV, PRI, VMID16, MPAM and DS are set, and do not count.
        let full = features_of([!(0b11 << 24), u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX], true);
        assert_eq!(full.idrs(), [0x0848_141a, 0x0000_07ff, 0, 0x0000_0404, 0, 0x0000_0077]);
    }
}
