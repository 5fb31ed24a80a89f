//! A virtual SMMU on the buses of several VMMs: the same few lines each time.
//!
//! `cargo run -p ecmdq-engine --example bus_adapters`
//!
//! The traits are written down here in the shape that those VMMs have them, so that this compiles by itself. `SmmuDevice` is what a
//! VMM would keep: a handle, and where the guest sees page 0.

use std::sync::Arc;

use ecmdq_engine::memory::Ram;
use ecmdq_engine::registers::{GBPA, IDR1};
use ecmdq_engine::{Config, Features, FrontEnd, NoInterrupts, StreamMap, VirtualSmmu, Vmid};
use vm_memory::{GuestAddress, GuestMemoryMmap};

#[derive(Clone)]
struct SmmuDevice {
    smmu: VirtualSmmu,
    page0: u64,
}

/// Cloud Hypervisor, Firecracker: the bus gives the offset; a write may return a barrier.
mod rust_vmm {
    use std::sync::{Arc, Barrier};

    pub trait BusDeviceSync {
        fn read(&self, base: u64, offset: u64, data: &mut [u8]);
        fn write(&self, base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>>;
    }

    impl BusDeviceSync for super::SmmuDevice {
        fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
            self.smmu.mmio_read(offset, data);
        }

        fn write(&self, _base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
            self.smmu.mmio_write(offset, data);
            None
        }
    }
}

/// crosvm: the bus tells address and offset in one structure.
mod crosvm {
    pub struct BusAccessInfo {
        pub offset: u64,
        pub address: u64,
    }

    pub trait BusDevice {
        fn read(&mut self, info: BusAccessInfo, data: &mut [u8]);
        fn write(&mut self, info: BusAccessInfo, data: &[u8]);
    }

    impl BusDevice for super::SmmuDevice {
        fn read(&mut self, info: BusAccessInfo, data: &mut [u8]) {
            debug_assert_eq!(info.address, self.page0 + info.offset);
            self.smmu.mmio_read(info.offset, data);
        }

        fn write(&mut self, info: BusAccessInfo, data: &[u8]) {
            self.smmu.mmio_write(info.offset, data);
        }
    }
}

/// OpenVMM: the device gets the address, and says what became of the access.
mod openvmm {
    pub enum IoResult {
        Ok,
    }

    pub trait MmioIntercept {
        fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> IoResult;
        fn mmio_write(&mut self, address: u64, data: &[u8]) -> IoResult;
    }

    impl MmioIntercept for super::SmmuDevice {
        fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> IoResult {
            self.smmu.mmio_read(address.wrapping_sub(self.page0), data);
            IoResult::Ok
        }

        fn mmio_write(&mut self, address: u64, data: &[u8]) -> IoResult {
            self.smmu.mmio_write(address.wrapping_sub(self.page0), data);
            IoResult::Ok
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x4000_0000), 1 << 20)])?;
    let smmu = VirtualSmmu::new(Config {
        features: Features::linux(),
        host_features: Features::linux(),
        quirks: Vec::new(),
        vmid: Vmid(1),
        streams: Arc::new(StreamMap::new(16)),
        ram: Box::new(Ram::new(Arc::new(ram))),
        front_end: FrontEnd::Trapped,
        interrupts: Box::new(NoInterrupts),
        on_request: Box::new(|_, token| token.complete()),
    })?;
    let mut device = SmmuDevice { smmu, page0: 0x0905_0000 };
    let (idr1, gbpa) = (IDR1 as u64, GBPA as u64);
    let mut answers = [[0; 4]; 3];

    use crosvm::BusDevice;
    use openvmm::MmioIntercept;
    use rust_vmm::BusDeviceSync;
    BusDeviceSync::read(&device, device.page0, idr1, &mut answers[0]);
    let info = |offset| crosvm::BusAccessInfo { offset, address: 0x0905_0000 + offset };
    BusDevice::read(&mut device, info(idr1), &mut answers[1]);
    let openvmm::IoResult::Ok = device.mmio_read(0x0905_0000 + idr1, &mut answers[2]);
    println!("IDR1 by each bus: {:#x?}", answers.map(u32::from_le_bytes));
    assert_eq!(answers, [0x01e7_0010_u32.to_le_bytes(); 3]);

    let update = (1_u32 << 31 | 1 << 20).to_le_bytes();
    assert!(BusDeviceSync::write(&device, device.page0, gbpa, &update).is_none());
    BusDevice::write(&mut device, info(gbpa), &update);
    let openvmm::IoResult::Ok = device.mmio_write(0x0905_0000 + gbpa, &update);
    device.smmu.mmio_read(gbpa, &mut answers[0]);
    assert_eq!(answers[0], update, "waits for a worker");
    Ok(())
}
