//! The kernel's side: the only file that uses the iommufd crates.

use std::fmt;
use std::io;
use std::sync::Arc;

use iommufd_bindings::iommufd::*;
use iommufd_ioctls::{IommuFd, IommufdError, IommufdHwInfoData};
use rustix::io::Errno;

use super::Invalidate;
use crate::command::Command;
use crate::features::Features;
use crate::identity::StreamId;

/// What a VMM sets up for a guest: a stage 2 that is a nesting parent, and a vIOMMU on it.
///
/// The objects live as long as the descriptor, or until the VMM destroys them by their ids.
#[derive(Clone, Debug)]
pub struct Nesting {
    viommu: VIommu,
    device: u32,
    stage2: u32,
}

/// A vIOMMU that commands go to: of a [`Nesting`], or one that the VMM has set up by itself.
#[derive(Clone)]
pub struct VIommu {
    iommufd: Arc<IommuFd>,
    id: u32,
}

impl Nesting {
    /// Sets up nesting for a device that is bound to `iommufd` as `device`, with the guest's memory mapped in the IOAS
    /// `ioas`.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EOPNOTSUPP` if the SMMU cannot nest, or the device is not coherent.
    pub fn new(iommufd: Arc<IommuFd>, device: u32, ioas: u32) -> io::Result<Self> {
        let mut stage2 = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            flags: iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
            dev_id: device,
            pt_id: ioas,
            ..Default::default()
        };
        iommufd.alloc_iommu_hwpt(&mut stage2).map_err(error)?;
        let mut viommu = iommu_viommu_alloc {
            size: size_of::<iommu_viommu_alloc>() as u32,
            type_: iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
            dev_id: device,
            hwpt_id: stage2.out_hwpt_id,
            ..Default::default()
        };
        iommufd.alloc_iommu_viommu(&mut viommu).map_err(error)?;
        let viommu = VIommu::new(iommufd, viommu.out_viommu_id);
        Ok(Self { viommu, device, stage2: stage2.out_hwpt_id })
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
        let mut vdevice = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id: self.viommu.id,
            dev_id: device,
            virt_id: stream.0.into(),
            ..Default::default()
        };
        self.viommu.iommufd.alloc_iommu_vdevice(&mut vdevice).map_err(error)?;
        Ok(vdevice.out_vdevice_id)
    }

    /// A page table after the first two words of the guest's stream table entry, to which the device is then attached.
    ///
    /// # Errors
    ///
    /// What the kernel said: `EIO` for an entry that a guest may not have.
    pub fn stage1(&self, device: u32, ste: [u64; 2]) -> io::Result<u32> {
        let data = ste.map(u64::to_le);
        let mut stage1 = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            dev_id: device,
            pt_id: self.viommu.id,
            data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
            data_len: size_of_val(&data) as u32,
            data_uptr: data.as_ptr() as u64,
            ..Default::default()
        };
        self.viommu.iommufd.alloc_iommu_hwpt(&mut stage1).map_err(error)?;
        Ok(stage1.out_hwpt_id)
    }

    /// What the host's SMMU can do, for the rules: of its ID registers, what the kernel lets a VMM rely on. `ats` says whether
    /// the guest's devices use ATS, which is no property of the SMMU alone.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn host_features(&self, ats: bool) -> io::Result<Features> {
        const ASID16_STALL_MODEL: u32 = 1 << 12 | 0b11 << 24;
        const SIDSIZE_SSIDSIZE: u32 = 0x7ff;
        const RIL: u32 = 1 << 10;
        let mut info = IommufdHwInfoData::Smmuv3(iommu_hw_info_arm_smmuv3::default());
        self.viommu.iommufd.device_hw_info(self.device, &mut info).map_err(error)?;
        let IommufdHwInfoData::Smmuv3(iommu_hw_info_arm_smmuv3 { idr, .. }) = info;
        let idrs = [idr[0] & ASID16_STALL_MODEL, idr[1] & SIDSIZE_SSIDSIZE, 0, idr[3] & RIL, 0, 0];
        let mut features = Features::from_idrs(idrs);
        // Nesting and iommufd are not to be had without these.
        (features.s1p, features.coherent, features.ats) = (true, true, ats);
        Ok(features)
    }
}

impl VIommu {
    /// The vIOMMU `id` of `iommufd`. The id of another object is only found out by the first call.
    pub fn new(iommufd: Arc<IommuFd>, id: u32) -> Self {
        Self { iommufd, id }
    }

    /// Its id, for what else a VMM does with it: events, page tables, its end.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Invalidate for VIommu {
    fn invalidate(&self, commands: &[Command]) -> Result<(), Errno> {
        let mut call = iommu_hwpt_invalidate {
            size: size_of::<iommu_hwpt_invalidate>() as u32,
            hwpt_id: self.id,
            // The kernel reads 16 little-endian bytes a command, and keeps no pointer.
            data_uptr: commands.as_ptr() as u64,
            data_type: iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
            entry_len: size_of::<Command>() as u32,
            entry_num: commands.len() as u32,
            ..Default::default()
        };
        self.iommufd
            .invalidate_hwpt(&mut call)
            .map_err(|e| Errno::from_io_error(&error(e)).unwrap_or(Errno::INVAL))
    }
}

/// What the kernel said.
fn error(error: IommufdError) -> io::Error {
    use IommufdError::*;
    match error {
        OpenIommufd(error) | AttachHwpt(error) => error,
        IommuDestroy(e)
        | IommuIoasAlloc(e)
        | IommuIoasMap(e)
        | IommuIoasMapFile(e)
        | IommuIoasUnmap(e)
        | IommuHwptAlloc(e)
        | IommuViommuAlloc(e)
        | IommuVdeviceAlloc(e)
        | IommuGetHwInfo(e)
        | IommuHwptInvalidate(e) => e.into(),
        UnsupportedIommu(_) | IommuTypeMismatch(_) => io::ErrorKind::Unsupported.into(),
        other => io::Error::other(other),
    }
}

impl fmt::Debug for VIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VIommu").field("id", &self.id).finish_non_exhaustive()
    }
}
