//! The device: the emulator's `edu`, which copies memory by DMA, behind a vfio character device.
#![expect(unsafe_code, reason = "vfio's system calls and a device's registers")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

const VFIO: u32 = b';' as u32;
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO, 108);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, VFIO, 118);
ioctl_io_nr!(VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO, 119);

const IOMMUFD: u32 = b';' as u32;
ioctl_io_nr!(IOMMU_IOAS_ALLOC, IOMMUFD, 0x81);
ioctl_io_nr!(IOMMU_IOAS_MAP, IOMMUFD, 0x85);
const FIXED_WRITABLE_READABLE: u32 = 0b111;

const BAR0: u32 = 0;
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

/// Registers of `edu`, and its buffer.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const CONTROL: usize = 0x98;
const BUFFER: u64 = 0x4_0000;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;

#[repr(C)]
#[derive(Default)]
struct Bind {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct Region {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

/// An IOAS in which `length` bytes of this process, from `user_va` on, are at `iova`.
pub fn map(iommufd: &File, iova: u64, user_va: u64, length: u64) -> io::Result<u32> {
    let mut alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, ..IoasAlloc::default() };
    // SAFETY: the structure is the one of this call and outlives it.
    checked(unsafe { ioctl_with_mut_ref(iommufd, IOMMU_IOAS_ALLOC(), &mut alloc) })?;
    let (size, ioas_id) = (size_of::<IoasMap>() as u32, alloc.out_ioas_id);
    let map = IoasMap {
        size,
        flags: FIXED_WRITABLE_READABLE,
        ioas_id,
        user_va,
        length,
        iova,
        ..IoasMap::default()
    };
    // SAFETY: as above; the kernel pins the memory, and devices access it as another guest's CPU would.
    checked(unsafe { ioctl_with_ref(iommufd, IOMMU_IOAS_MAP(), &map) })?;
    Ok(ioas_id)
}

pub struct Device {
    file: File,
    registers: Option<MmapRaw>,
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Device {
    pub fn open(cdev: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(cdev)?;
        Ok(Self { file, registers: None })
    }

    /// Binds it to an iommufd; returns its id there.
    pub fn bind(&mut self, iommufd: &File) -> io::Result<u32> {
        let argsz = size_of::<Bind>() as u32;
        let mut bind = Bind { argsz, iommufd: iommufd.as_raw_fd(), ..Bind::default() };
        // SAFETY: the structure is the one of this call and outlives it.
        checked(unsafe { ioctl_with_mut_ref(&self.file, VFIO_DEVICE_BIND_IOMMUFD(), &mut bind) })?;
        Ok(bind.out_devid)
    }

    /// Attaches it to a page table.
    pub fn attach(&self, pt_id: u32) -> io::Result<()> {
        let attach = Attach { argsz: size_of::<Attach>() as u32, flags: 0, pt_id };
        // SAFETY: as in `bind`.
        checked(unsafe { ioctl_with_ref(&self.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &attach) })
    }

    /// Maps its registers and lets it do DMA.
    pub fn start(&mut self) -> io::Result<()> {
        let config = self.region(CONFIG)?;
        self.file.write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), config.offset + COMMAND)?;
        let bar = self.region(BAR0)?;
        let map = MmapOptions::new().offset(bar.offset).len(bar.size as usize).map_raw(&self.file)?;
        self.registers = Some(map);
        Ok(())
    }

    fn region(&self, index: u32) -> io::Result<Region> {
        let mut region = Region { argsz: size_of::<Region>() as u32, index, ..Region::default() };
        // SAFETY: as in `bind`.
        checked(unsafe { ioctl_with_mut_ref(&self.file, VFIO_DEVICE_GET_REGION_INFO(), &mut region) })?;
        Ok(region)
    }

    /// Copies 64 bytes by DMA from one address to another; false if it does not come to an end.
    pub fn copy(&self, from: u64, to: u64) -> bool {
        self.transfer(from, BUFFER, START) && self.transfer(BUFFER, to, START | TO_MEMORY)
    }

    fn transfer(&self, from: u64, to: u64, control: u64) -> bool {
        for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, 64), (CONTROL, control)] {
            self.access(register, Some(value));
        }
        let start = Instant::now();
        while self.access(CONTROL, None) & START != 0 {
            if start.elapsed() > Duration::from_secs(300) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn access(&self, register: usize, value: Option<u64>) -> u64 {
        let Some(map) = &self.registers else { return 0 };
        let register = map.as_mut_ptr().wrapping_add(register).cast::<u64>();
        // SAFETY: the register is inside the mapped BAR and aligned; nothing else accesses the mapping.
        unsafe {
            match value {
                Some(value) => register.write_volatile(value),
                None => return register.read_volatile(),
            }
        }
        0
    }
}
