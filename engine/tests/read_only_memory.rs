//! Guest memory that the VMM has mapped read-only, such as flash: for the engine, which writes MSIs and promises regions
//! that can be written, it is no memory. A store to it would end the process.

mod common;

use std::sync::Arc;

use common::reg::*;
use common::*;
use ecmdq_engine::Command;
use ecmdq_engine::memory::{GuestRam, Ram};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

const ROM: u64 = 0x800_0000;
/// A word of RAM that is in no queue.
const WORD: u64 = RAM + 0x804;
const IRQ_CTRL_GERROR: u32 = 1 << 0;
const MSI_GERROR_ABT_ERR: u32 = 1 << 7;

fn region(at: u64, size: usize, prot: ProtFlags) -> GuestRegionMmap<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let mapping = MmapRegionBuilder::new(size)
        .with_mmap_prot(prot.bits() as i32)
        .with_mmap_flags(flags.bits() as i32 | 0x20) // MAP_ANONYMOUS
        .build()
        .unwrap();
    GuestRegionMmap::new(mapping, GuestAddress(at)).unwrap()
}

/// 64 KiB that can be read, and nothing else, and behind the hole RAM.
fn memory() -> Arc<GuestMemoryMmap> {
    let rom = region(ROM, 0x1_0000, ProtFlags::READ);
    let ram = region(RAM, RAM_SIZE as usize, ProtFlags::READ | ProtFlags::WRITE);
    Arc::new(GuestMemoryMmap::from_regions(vec![rom, ram]).unwrap())
}

/// A machine with this memory, whose queue is enabled.
struct Vm {
    machine: Machine,
    memory: Arc<GuestMemoryMmap>,
}

impl Vm {
    fn new() -> Self {
        let memory = memory();
        let ram = Box::new(Ram::new(memory.clone()));
        let machine = Machine::new(Setup { ram: Some(ram), ..Setup::default() }).enabled(4);
        Self { machine, memory }
    }

    fn run(&mut self, commands: &[Command]) {
        for (slot, command) in (0..).zip(commands) {
            self.memory.write_obj(command.0, GuestAddress(RING + 16 * slot)).unwrap();
        }
        self.machine.guest.write(CMDQ_PROD, commands.len() as u32);
        self.machine.settle();
    }
}

#[test]
fn a_cmd_sync_whose_msi_goes_to_read_only_memory_completes_and_the_guest_sees_an_abort() {
    let mut vm = Vm::new();
    vm.run(&[sync_msi(ROM + 0x40, 9), nh_asid(1), sync_msi(WORD, 5)]);
    let guest = &vm.machine.guest;
    assert_eq!((guest.cons(), guest.active()), (3, MSI_CMDQ_ABT_ERR));
    assert_eq!(vm.memory.read_obj::<u32>(GuestAddress(ROM + 0x40)).unwrap(), 0);
    assert_eq!(vm.memory.read_obj::<u32>(GuestAddress(WORD)).unwrap(), 5, "later MSIs go on");
    let stats = guest.stats.read();
    assert_eq!((stats.msi_aborts, stats.msis, stats.syncs), (1, 1, 2));
}

#[test]
fn a_gerror_msi_to_read_only_memory_is_an_abort_of_its_own() {
    let mut vm = Vm::new();
    vm.machine.guest.write_u64(GERROR_IRQ_CFG0, ROM + 0x40);
    vm.machine.guest.write(GERROR_IRQ_CFG1, 0x6e);
    vm.machine.guest.write(IRQ_CTRL, IRQ_CTRL_GERROR);
    vm.run(&[illegal()]);
    assert_eq!(vm.machine.guest.active(), CMDQ_ERR | MSI_GERROR_ABT_ERR);
    assert_eq!(vm.machine.guest.stats.read().msi_aborts, 1);
}

#[test]
fn a_queue_in_read_only_memory_gets_cerror_abt_at_its_first_command() {
    let mut vm = Vm::new();
    vm.machine.guest.stop();
    vm.machine.settle();
    vm.machine.guest.start_at(ROM, 4, 0);
    vm.machine.settle();
    assert_eq!(vm.machine.guest.active(), 0, "an empty queue has nothing to read");
    vm.machine.guest.write(CMDQ_PROD, 1);
    vm.machine.settle();
    let guest = &vm.machine.guest;
    assert_eq!((guest.error(), guest.cons(), guest.active()), (Some(CERROR_ABT), 0, CMDQ_ERR));
}

#[test]
fn memory_that_cannot_be_both_read_and_written_is_no_memory() {
    let cases = [
        (ProtFlags::empty(), false),
        (ProtFlags::READ, false),
        (ProtFlags::READ | ProtFlags::EXEC, false),
        (ProtFlags::WRITE, false),
        (ProtFlags::READ | ProtFlags::WRITE, true),
    ];
    for (prot, expected) in cases {
        let memory = GuestMemoryMmap::from_regions(vec![region(RAM, 0x1000, prot)]).unwrap();
        let ram = Ram::new(Arc::new(memory));
        assert_eq!(ram.region(GuestAddress(RAM), 0x1000).is_some(), expected, "{prot:?}");
        assert_eq!(ram.store_u32(GuestAddress(RAM + 0x40), 7), expected, "{prot:?}");
    }
}
