//! A VMM that is busy with a virtual SMMU for as long as a test likes.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Release;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use ecmdq_engine::VirtualSmmu;
use ecmdq_engine::memory::GuestRam;
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use super::{PATIENCE, RAM, RAM_SIZE};

/// Guest memory whose map takes a while to be followed.
struct Slow {
    ram: SharedRegion,
    begun: Sender<()>,
    /// Locked by nobody: guest memory is shared between threads.
    end: Mutex<Receiver<()>>,
}

impl GuestRam for Slow {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.ram.part(at.0.checked_sub(RAM)? as usize, len)
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        self.region(at, 4).map(|word| word.store_u32(0, value.to_le(), Release)).is_some()
    }

    fn refresh(&mut self) {
        // A test that has failed waits for nothing.
        if self.begun.send(()).is_ok() {
            let _ = self.end.get_mut().unwrap().recv_timeout(PATIENCE);
        }
    }
}

/// What makes the VMM busy, and idle again.
pub struct BusyVmm {
    begun: Receiver<()>,
    end: Sender<()>,
    vmm: Option<JoinHandle<()>>,
}

impl BusyVmm {
    /// One, and the guest's memory: for the engine, and for the guest.
    pub fn new() -> (Self, Box<dyn GuestRam>, SharedRegion) {
        let ram = SharedRegion::from_words(vec![0; RAM_SIZE as usize / 8]);
        let ((begun, begun_there), (end_here, end)) = (channel(), channel());
        let slow = Slow { ram: ram.clone(), begun, end: Mutex::new(end) };
        (Self { begun: begun_there, end: end_here, vmm: None }, Box::new(slow), ram)
    }

    /// From when it returns, the VMM holds the virtual SMMU.
    pub fn begin(&mut self, smmu: VirtualSmmu) {
        self.vmm = Some(thread::spawn(move || smmu.memory_changed()));
        self.begun.recv_timeout(PATIENCE).expect("the VMM looks at the memory map");
    }

    /// When it returns, the VMM is done.
    pub fn end(&mut self) {
        self.end.send(()).unwrap();
        self.vmm.take().unwrap().join().unwrap();
    }
}
