//! The calls of `/dev/iommu` that nesting takes, as the kernel's `include/uapi/linux/iommufd.h` has them: the only module that makes
//! system calls with pointers in their structures.
//!
//! What it guarantees: each request goes with the structure that the kernel takes for it, `size` says how long that is, and what its pointers name is
//! memory that the function's own arguments keep for as long as the call takes. The kernel keeps no pointer. So a wrong
//! descriptor or object is an error, and no more.
#![expect(unsafe_code, reason = "what an ioctl reads and writes is known only to who knows its number")]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::command::Command;

const TYPE: u8 = b';';
const HWPT_ALLOC: Opcode = opcode::none(TYPE, 0x89);
const GET_HW_INFO: Opcode = opcode::none(TYPE, 0x8a);
const HWPT_INVALIDATE: Opcode = opcode::none(TYPE, 0x8d);
const VIOMMU_ALLOC: Opcode = opcode::none(TYPE, 0x90);
const VDEVICE_ALLOC: Opcode = opcode::none(TYPE, 0x91);

const ALLOC_NEST_PARENT: u32 = 1 << 0;
const HWPT_DATA_ARM_SMMUV3: u32 = 2;
const HW_INFO_ARM_SMMUV3: u32 = 2;
const VIOMMU_ARM_SMMUV3: u32 = 1;
const VIOMMU_INVALIDATE_ARM_SMMUV3: u32 = 1;

#[repr(C)]
#[derive(Default)]
struct HwptAlloc {
    size: u32,
    flags: u32,
    dev_id: u32,
    pt_id: u32,
    out_hwpt_id: u32,
    reserved: u32,
    data_type: u32,
    data_len: u32,
    data_uptr: u64,
    fault_id: u32,
    reserved2: u32,
}

#[repr(C)]
#[derive(Default)]
struct HwInfo {
    size: u32,
    flags: u32,
    dev_id: u32,
    data_len: u32,
    data_uptr: u64,
    out_data_type: u32,
    out_max_pasid_log2: u8,
    reserved: [u8; 3],
    out_capabilities: u64,
}

/// What [`HwInfo`] points at.
#[repr(C)]
#[derive(Default)]
struct HwInfoSmmuv3 {
    flags: u32,
    reserved: u32,
    idr: [u32; 6],
    iidr: u32,
    aidr: u32,
}

#[repr(C)]
#[derive(Default)]
struct HwptInvalidate {
    size: u32,
    hwpt_id: u32,
    data_uptr: u64,
    data_type: u32,
    entry_len: u32,
    entry_num: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Default)]
struct ViommuAlloc {
    size: u32,
    flags: u32,
    kind: u32,
    dev_id: u32,
    hwpt_id: u32,
    out_viommu_id: u32,
    data_len: u32,
    reserved: u32,
    data_uptr: u64,
}

#[repr(C)]
#[derive(Default)]
struct VdeviceAlloc {
    size: u32,
    viommu_id: u32,
    dev_id: u32,
    out_vdevice_id: u32,
    virt_id: u64,
}

/// # Safety
///
/// `REQUEST` takes a `T`; what the pointers in `call` name may be read, and written where the kernel does, for as many bytes as `call` says.
unsafe fn call<const REQUEST: Opcode, T>(iommufd: BorrowedFd<'_>, call: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller's promise; the kernel reads and writes `*call`, which is borrowed for the call, and no more of it than the
    // `size` that is its first word.
    unsafe { ioctl(iommufd, Updater::<REQUEST, T>::new(call)) }
}

/// Allocates a stage 2 page table for a device on an IOAS, under which stage 1 may be nested.
pub fn nest_parent(iommufd: BorrowedFd<'_>, device: u32, ioas: u32) -> Result<u32, Errno> {
    let size = size_of::<HwptAlloc>() as u32;
    let mut alloc =
        HwptAlloc { size, flags: ALLOC_NEST_PARENT, dev_id: device, pt_id: ioas, ..Default::default() };
    // SAFETY: the request takes this structure, and there is no pointer in it: `data_len` is 0.
    unsafe { call::<HWPT_ALLOC, _>(iommufd, &mut alloc) }?;
    Ok(alloc.out_hwpt_id)
}

/// Allocates a stage 1 page table for a device on a vIOMMU, as the first words of a stream table entry say.
pub fn stage1(iommufd: BorrowedFd<'_>, device: u32, viommu: u32, ste: [u64; 2]) -> Result<u32, Errno> {
    let ste = ste.map(u64::to_le);
    let mut alloc = HwptAlloc {
        size: size_of::<HwptAlloc>() as u32,
        dev_id: device,
        pt_id: viommu,
        data_type: HWPT_DATA_ARM_SMMUV3,
        data_len: size_of_val(&ste) as u32,
        data_uptr: ste.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the request takes this structure; the kernel reads `data_len` bytes at `data_uptr`, which are those of `ste`.
    unsafe { call::<HWPT_ALLOC, _>(iommufd, &mut alloc) }?;
    Ok(alloc.out_hwpt_id)
}

/// Allocates a vIOMMU for a device on a stage 2 page table.
pub fn viommu(iommufd: BorrowedFd<'_>, device: u32, stage2: u32) -> Result<u32, Errno> {
    let size = size_of::<ViommuAlloc>() as u32;
    let mut alloc =
        ViommuAlloc { size, kind: VIOMMU_ARM_SMMUV3, dev_id: device, hwpt_id: stage2, ..Default::default() };
    // SAFETY: the request takes this structure, and there is no pointer in it: `data_len` is 0.
    unsafe { call::<VIOMMU_ALLOC, _>(iommufd, &mut alloc) }?;
    Ok(alloc.out_viommu_id)
}

/// Allocates a vDEVICE: what the guest of a vIOMMU calls a device.
pub fn vdevice(iommufd: BorrowedFd<'_>, viommu: u32, device: u32, virt_id: u64) -> Result<u32, Errno> {
    let size = size_of::<VdeviceAlloc>() as u32;
    let mut alloc = VdeviceAlloc { size, viommu_id: viommu, dev_id: device, virt_id, ..Default::default() };
    // SAFETY: the request takes this structure, and there is no pointer in it.
    unsafe { call::<VDEVICE_ALLOC, _>(iommufd, &mut alloc) }?;
    Ok(alloc.out_vdevice_id)
}

/// IDR0 to IDR5 of the SMMU in front of a device.
pub fn idrs(iommufd: BorrowedFd<'_>, device: u32) -> io::Result<[u32; 6]> {
    let mut smmu = HwInfoSmmuv3::default();
    let mut info = HwInfo {
        size: size_of::<HwInfo>() as u32,
        dev_id: device,
        data_len: size_of_val(&smmu) as u32,
        data_uptr: &raw mut smmu as u64,
        ..Default::default()
    };
    // SAFETY: the request takes this structure; the kernel writes up to `data_len` bytes at `data_uptr`, which are those of `smmu`: plain
    // integers, and nothing looks at them meanwhile.
    unsafe { call::<GET_HW_INFO, _>(iommufd, &mut info) }?;
    if info.out_data_type != HW_INFO_ARM_SMMUV3 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the device is not behind an SMMUv3"));
    }
    Ok(smmu.idr)
}

/// Has the commands executed and synchronised.
pub fn invalidate(iommufd: BorrowedFd<'_>, viommu: u32, commands: &[Command]) -> Result<(), Errno> {
    let mut invalidate = HwptInvalidate {
        size: size_of::<HwptInvalidate>() as u32,
        hwpt_id: viommu,
        data_uptr: commands.as_ptr() as u64,
        data_type: VIOMMU_INVALIDATE_ARM_SMMUV3,
        entry_len: size_of::<Command>() as u32,
        entry_num: commands.len() as u32,
        ..Default::default()
    };
    // SAFETY: the request takes this structure; the kernel reads `entry_num` times `entry_len` bytes at `data_uptr`, which are those
    // of `commands`: a length that did not fit would only be cut short.
    unsafe { call::<HWPT_INVALIDATE, _>(iommufd, &mut invalidate) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        let requests = [HWPT_ALLOC, GET_HW_INFO, HWPT_INVALIDATE, VIOMMU_ALLOC, VDEVICE_ALLOC];
        assert_eq!(requests, [0x3b89, 0x3b8a, 0x3b8d, 0x3b90, 0x3b91]);
    }

    macro_rules! layout {
        ($name:ident, $size:literal, $($field:ident: $offset:literal),*) => {
            assert_eq!(size_of::<$name>(), $size, stringify!($name));
            $(assert_eq!(offset_of!($name, $field), $offset, stringify!($name.$field));)*
        };
    }

    #[test]
    fn structures_have_the_kernels_layout() {
        layout!(HwptAlloc, 48, size: 0, flags: 4, dev_id: 8, pt_id: 12, out_hwpt_id: 16, reserved: 20, data_type: 24,
            data_len: 28, data_uptr: 32, fault_id: 40, reserved2: 44);
        layout!(HwInfo, 40, size: 0, flags: 4, dev_id: 8, data_len: 12, data_uptr: 16, out_data_type: 24,
            out_max_pasid_log2: 28, reserved: 29, out_capabilities: 32);
        layout!(HwInfoSmmuv3, 40, flags: 0, reserved: 4, idr: 8, iidr: 32, aidr: 36);
        layout!(HwptInvalidate, 32, size: 0, hwpt_id: 4, data_uptr: 8, data_type: 16, entry_len: 20, entry_num: 24,
            reserved: 28);
        layout!(ViommuAlloc, 40, size: 0, flags: 4, kind: 8, dev_id: 12, hwpt_id: 16, out_viommu_id: 20, data_len: 24,
            reserved: 28, data_uptr: 32);
        layout!(VdeviceAlloc, 24, size: 0, viommu_id: 4, dev_id: 8, out_vdevice_id: 12, virt_id: 16);
        assert_eq!(size_of::<Command>(), 16);
    }

    #[test]
    fn what_is_no_iommufd_is_an_error() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        assert_eq!(invalidate(fd, 1, &[Command([0x10, 0])]), Err(Errno::NOTTY));
        assert_eq!(nest_parent(fd, 1, 2), Err(Errno::NOTTY));
        assert_eq!(stage1(fd, 1, 2, [1, 0]), Err(Errno::NOTTY));
        assert_eq!(viommu(fd, 1, 2), Err(Errno::NOTTY));
        assert_eq!(vdevice(fd, 1, 2, 3), Err(Errno::NOTTY));
        assert_eq!(idrs(fd, 1).unwrap_err().raw_os_error(), Some(25));
    }
}
