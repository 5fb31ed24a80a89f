//! A machine of one vCPU, some RAM, and an SMMU with one ECMDQ.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ecmdq_engine::memory::{self, Ram};
use ecmdq_engine::registers::{ECMDQ_BASE, ECMDQ_PROD};
use ecmdq_engine::{Config, DoorbellTraps, Features, FrontEnd, NoInterrupts, StreamMap, VirtualSmmu, Vmid};
use kvm_bindings::{KVM_MEM_READONLY, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::code::{CODE, DONE};

/// Where the guest sees page 0 of its SMMU, and its one control page behind pages 0 and 1.
const SMMU: u64 = 0x0905_0000;
const CONTROL: u64 = SMMU + CONTROL_OFFSET;
const CONTROL_OFFSET: u64 = 0x2_0000;
/// An address with nothing behind it but perhaps an ioeventfd.
pub const KICK: u64 = 0x0a00_0000;
const RAM_SIZE: usize = 1 << 20;
const ENTRY: u64 = 0x1000;
const RING: u64 = 0x1_0000;
const RING_LOG2: u64 = 8;
const MSI_WORD: u64 = 0x2_0000;
const SCRATCH: u64 = 0x3_0000;

const RAM_SLOT: u32 = 0;
const CONTROL_SLOT: u32 = 1;

/// Where a vCPU's second store goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    Nowhere,
    Ioeventfd,
}

pub struct Machine {
    pub smmu: VirtualSmmu,
    pub vm: Arc<VmFd>,
    /// The control page as a memory slot, unless stores to it trap always.
    pub slot: Option<ControlSlot>,
    vcpu: VcpuFd,
    _ram: Arc<GuestMemoryMmap>,
}

/// The memory slot of the control page.
#[derive(Clone)]
pub struct ControlSlot {
    vm: Arc<VmFd>,
    page: Arc<GuestMemoryMmap>,
    arms: Arc<AtomicU64>,
}

/// What came of some invalidations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    pub exits: u64,
    pub time: Duration,
}

fn host_address(memory: &GuestMemoryMmap, at: GuestAddress) -> io::Result<u64> {
    memory.get_host_address(at).map(|address| address as u64).map_err(io::Error::other)
}

/// Makes a slot, or with size 0 removes it.
fn set_slot(vm: &VmFd, slot: u32, flags: u32, at: u64, size: u64, address: u64) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: at,
        memory_size: size,
        userspace_addr: address,
    };
    // SAFETY: the memory behind `address` is a shared mapping that `Machine` and `ControlSlot` keep for as long as the VM can run: each
    // holds the mapping beside its handle to the VM. All that reads it besides the guest does so by atomic or volatile
    // accesses (`ecmdq_engine::memory`), so that the guest may write it at any time.
    #[allow(unsafe_code, reason = "the guest gets memory")]
    unsafe { vm.set_user_memory_region(region) }.map_err(io::Error::from)
}

impl Machine {
    /// One whose stores to the control page always trap, or one that has it as memory.
    pub fn new(front_end: FrontEnd, kick: Kick) -> io::Result<Self> {
        let (file, _) = memory::memfd("guest-ram", RAM_SIZE)?;
        let range = (GuestAddress(0), RAM_SIZE, Some(FileOffset::new(file, 0)));
        let ram = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?);
        let features = Features::linux().with_ecmdqs(0, 0);
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: features,
            quirks: Vec::new(),
            vmid: Vmid(7),
            streams: Arc::new(StreamMap::new(1)),
            ram: Box::new(Ram::new(ram.clone())),
            front_end,
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(|_, token| token.complete()),
        })
        .map_err(io::Error::other)?;
        let kvm = Kvm::new()?;
        let vm = Arc::new(kvm.create_vm()?);
        vm.set_tss_address(0xfffb_d000)?;
        set_slot(&vm, RAM_SLOT, 0, 0, RAM_SIZE as u64, host_address(&ram, GuestAddress(0))?)?;
        let slot = match smmu.control_pages().next() {
            None => None,
            Some(page) => {
                let file = FileOffset::new(File::from(page.fd.try_clone_to_owned()?), page.fd_offset);
                let range = (GuestAddress(CONTROL), page.size, Some(file));
                let page = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
                let slot = ControlSlot { vm: vm.clone(), page: Arc::new(page), arms: Arc::default() };
                slot.map(0)?;
                Some(slot)
            }
        };
        for (byte, at) in CODE.iter().zip(ENTRY..) {
            vm_memory::Bytes::write_obj(&*ram, *byte, GuestAddress(at)).map_err(io::Error::other)?;
        }
        let vcpu = vm.create_vcpu(0)?;
        start(&vcpu, kick)?;
        Ok(Self { smmu, vm, slot, vcpu, _ram: ram })
    }

    /// Whether slots can be read-only.
    pub fn can_trap_once(&self) -> bool {
        self.vm.check_extension(Cap::ReadonlyMem)
    }

    /// What the guest's driver does at its start: the ECMDQ is described and enabled, while a worker serves it.
    pub fn enable(&self) -> io::Result<()> {
        let at = |register: usize| CONTROL_OFFSET + register as u64;
        self.smmu.mmio_write(at(ECMDQ_BASE), &(RING | RING_LOG2).to_le_bytes());
        self.smmu.mmio_write(at(ECMDQ_PROD), &(1_u32 << 31).to_le_bytes());
        let mut cons = [0; 4];
        while cons[3] & 0x80 == 0 {
            self.smmu.mmio_read(at(ECMDQ_PROD) + 4, &mut cons);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The vCPU invalidates `n` times, and waits for each.
    pub fn invalidate(&mut self, n: u32) -> io::Result<Batch> {
        let mut regs = self.vcpu.get_regs()?;
        regs.rcx = n.into();
        self.vcpu.set_regs(&regs)?;
        let (start, mut exits) = (Instant::now(), 0);
        loop {
            let exit = match self.vcpu.run() {
                Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => continue,
                exit => exit?,
            };
            match exit {
                VcpuExit::IoOut(DONE, _) => return Ok(Batch { exits, time: start.elapsed() }),
                VcpuExit::MmioWrite(at, data) if (SMMU..KICK).contains(&at) => {
                    self.smmu.mmio_write(at - SMMU, data);
                }
                // Nobody listens.
                VcpuExit::MmioWrite(KICK, _) => {}
                VcpuExit::MmioRead(at, data) if (SMMU..KICK).contains(&at) => {
                    self.smmu.mmio_read(at - SMMU, data);
                }
                VcpuExit::Intr => continue,
                other => return Err(io::Error::other(format!("the vCPU did something else: {other:?}"))),
            }
            exits += 1;
        }
    }
}

/// Flat 32-bit protected mode at the code.
fn start(vcpu: &VcpuFd, kick: Kick) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 0x8, type_: 11, ..data };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: ENTRY,
        rflags: 2,
        rbx: RING,
        rsi: CONTROL + ECMDQ_PROD as u64,
        rdx: if kick == Kick::Ioeventfd { KICK } else { SCRATCH },
        rdi: MSI_WORD,
        ..Default::default()
    })?;
    Ok(())
}

impl ControlSlot {
    /// How often the page was made to trap.
    pub fn arms(&self) -> u64 {
        self.arms.load(Relaxed)
    }

    fn map(&self, flags: u32) -> io::Result<()> {
        let at = GuestAddress(CONTROL);
        let size = self.page.find_region(at).map_or(0, |region| region.len());
        set_slot(&self.vm, CONTROL_SLOT, flags, CONTROL, size, host_address(&self.page, at)?)
    }

    /// KVM does not change the flag of a slot that is there. While it is not, all accesses exit, and are answered.
    fn remap(&self, flags: u32) -> io::Result<()> {
        set_slot(&self.vm, CONTROL_SLOT, 0, CONTROL, 0, 0)?;
        self.map(flags)
    }
}

impl DoorbellTraps for ControlSlot {
    fn arm(&mut self) -> io::Result<()> {
        self.arms.fetch_add(1, Relaxed);
        self.remap(KVM_MEM_READONLY)
    }

    fn disarm(&mut self) -> io::Result<()> {
        self.remap(0)
    }
}
