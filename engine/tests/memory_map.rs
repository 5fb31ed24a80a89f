//! Guest memory that comes, goes, moves, and is logged; and files that must not shrink (docs/virtual-smmu.md, "Life" and
//! "Memory that is not ours"; facts sheet, sections 3.2 and 3.3).

mod common;

use std::sync::{Arc, Weak};

use common::reg::*;
use common::*;
use ecmdq_engine::memory::Ram;
use ecmdq_engine::{Command, VirtualSmmu};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

type Region = GuestRegionMmap<AtomicBitmap>;
type Map = GuestMemoryMmap<AtomicBitmap>;

/// Where the CMDQ is in a region of its own of 64 KiB; the region below it has everything else.
const SIZE: usize = 0x1_0000;
/// A word of RAM that is in no queue.
const WORD: u64 = RAM + 0x5804;

fn region(at: u64, size: usize) -> Arc<Region> {
    Arc::new(Region::new(MmapRegion::new(size).unwrap(), GuestAddress(at)).unwrap())
}

/// The VMM's side of a guest's memory. The guest's driver writes its commands through it too.
#[derive(Clone)]
struct Space(GuestMemoryAtomic<Map>);

impl Space {
    fn new() -> Self {
        let regions = vec![region(RAM, 0x10_0000), region(RING, SIZE)];
        Self(GuestMemoryAtomic::new(Map::from_arc_regions(regions).unwrap()))
    }

    fn setup(&self) -> Setup {
        let ram = Box::new(Ram::new(self.0.clone()));
        Setup { ram: Some(ram), ..Setup::with(|f| *f = f.with_ecmdqs(0, 0)) }
    }

    /// Takes the region of the ring out of the map. Says whether it still exists, by and by.
    fn remove_ring(&self) -> Weak<Region> {
        let (map, removed) = self.0.memory().remove_region(GuestAddress(RING), SIZE as u64).unwrap();
        self.0.lock().unwrap().replace(map);
        Arc::downgrade(&removed)
    }

    /// Puts new memory where the ring was.
    fn add_ring(&self) {
        let map = self.0.memory().insert_region(region(RING, SIZE)).unwrap();
        self.0.lock().unwrap().replace(map);
    }

    fn put(&self, index: u32, command: Command) {
        let at = GuestAddress(RING + 16 * u64::from(index));
        self.0.memory().write_obj(command.0, at).unwrap();
    }

    fn word(&self, at: u64) -> u32 {
        self.0.memory().read_obj(GuestAddress(at)).unwrap()
    }

    fn clean(&self) {
        self.0.memory().iter().for_each(|region| region.get_mmap().bitmap().reset());
    }

    /// The pages that are marked.
    fn dirty(&self) -> Vec<u64> {
        let map = self.0.memory();
        let pages = |region: &Region| {
            let marked =
                (0..region.len()).step_by(0x1000).filter(|&at| region.bitmap().dirty_at(at as usize));
            marked.map(|at| region.start_addr().0 + at).collect::<Vec<_>>()
        };
        map.iter().flat_map(pages).collect()
    }
}

/// A queue that is in the region which comes and goes.
#[derive(Clone, Copy, Debug)]
enum Which {
    Cmdq,
    Ecmdq,
}

/// A machine with such a queue of 2^4 entries, which has taken `nh_asid(1)`.
struct Vm {
    machine: Machine,
    space: Space,
    smmu: VirtualSmmu,
    which: Which,
    ecmdq: Ecmdq,
}

impl Vm {
    fn new(which: Which) -> Self {
        let space = Space::new();
        let machine = Machine::new(space.setup());
        let smmu = machine.worker.guests().next().unwrap().clone();
        let ecmdq = machine.guest.ecmdq(0);
        let mut vm = Self { machine, space, smmu, which, ecmdq };
        match which {
            Which::Cmdq => vm.machine.guest.start(4),
            Which::Ecmdq => {
                vm.ecmdq.describe(RING, 4, 0);
                vm.ecmdq.enable();
            }
        }
        vm.machine.settle();
        vm.space.put(0, nh_asid(1));
        vm.publish(1);
        assert_eq!((vm.received(), vm.cons(), vm.error()), (vec![host_asid(7, 1)], 1, None));
        vm
    }

    /// Writes PROD, and lets everything happen.
    fn publish(&mut self, prod: u32) {
        match self.which {
            Which::Cmdq => self.machine.guest.write(CMDQ_PROD, prod),
            Which::Ecmdq => self.ecmdq.write_prod(EN | self.ecmdq.prod_word() & ERR | prod),
        }
        self.machine.settle();
    }

    fn ack(&mut self) {
        match self.which {
            Which::Cmdq => self.machine.guest.ack(),
            Which::Ecmdq => self.ecmdq.write_prod(self.ecmdq.prod_word() ^ ERR),
        }
        self.machine.settle();
    }

    fn cons(&self) -> u32 {
        match self.which {
            Which::Cmdq => self.machine.guest.read(CMDQ_CONS) & 0xf_ffff,
            Which::Ecmdq => self.ecmdq.cons_word() & 0xf_ffff,
        }
    }

    fn error(&self) -> Option<u32> {
        match self.which {
            Which::Cmdq => self.machine.guest.error(),
            Which::Ecmdq => self.ecmdq.error(),
        }
    }

    fn received(&mut self) -> Vec<Command> {
        self.machine.take_received()
    }
}

fn on_both(test: impl Fn(Vm)) {
    for which in [Which::Cmdq, Which::Ecmdq] {
        println!("{which:?}");
        test(Vm::new(which));
    }
}

#[test]
fn memory_that_was_removed_is_let_go_when_memory_changed_returns() {
    on_both(|mut vm| {
        let old = vm.space.remove_ring();
        assert!(old.upgrade().is_some(), "until the SMMU is told, it holds on");
        vm.smmu.memory_changed();
        assert!(old.upgrade().is_none(), "unmapped");
        vm.machine.settle();
        assert_eq!((vm.error(), vm.cons()), (None, 1), "no command, no error");
    });
}

#[test]
fn a_ring_whose_memory_has_gone_aborts_at_its_next_command() {
    on_both(|mut vm| {
        vm.space.remove_ring();
        vm.smmu.memory_changed();
        vm.publish(3);
        assert_eq!((vm.error(), vm.cons(), vm.received()), (Some(CERROR_ABT), 1, vec![]));
        let active = match vm.which {
            Which::Cmdq => CMDQ_ERR,
            Which::Ecmdq => CMDQP_ERR,
        };
        assert_eq!((vm.machine.guest.active(), vm.smmu.stats().aborts), (active, 1));
    });
}

#[test]
fn a_ring_whose_memory_has_come_back_goes_on_when_the_error_is_acknowledged() {
    on_both(|mut vm| {
        vm.space.remove_ring();
        vm.smmu.memory_changed();
        vm.publish(2);
        vm.ack();
        assert_eq!((vm.error(), vm.cons()), (Some(CERROR_ABT), 1), "still not there");
        vm.space.add_ring();
        vm.smmu.memory_changed();
        vm.space.put(1, nh_asid(5));
        vm.machine.settle();
        assert_eq!((vm.error(), vm.received()), (Some(CERROR_ABT), vec![]), "not without the guest's word");
        vm.ack();
        assert_eq!((vm.error(), vm.cons(), vm.received()), (None, 2, vec![host_asid(7, 5)]));
    });
}

#[test]
fn a_ring_whose_memory_was_away_while_there_was_no_command_has_not_noticed() {
    on_both(|mut vm| {
        vm.space.remove_ring();
        vm.smmu.memory_changed();
        vm.machine.settle();
        vm.space.add_ring();
        vm.smmu.memory_changed();
        vm.space.put(1, nh_asid(5));
        vm.publish(2);
        assert_eq!((vm.error(), vm.cons(), vm.received()), (None, 2, vec![host_asid(7, 5)]));
    });
}

#[test]
fn a_ring_that_moved_to_other_memory_is_read_there() {
    on_both(|mut vm| {
        vm.space.put(1, nh_asid(2));
        let old = vm.space.remove_ring();
        vm.space.add_ring();
        vm.space.put(1, nh_asid(3));
        vm.smmu.memory_changed();
        assert!(old.upgrade().is_none());
        vm.publish(2);
        assert_eq!((vm.error(), vm.cons(), vm.received()), (None, 2, vec![host_asid(7, 3)]));
    });
}

/// Section 3.3: a change of the map is no acknowledgement, and takes nothing away from what CONS says.
#[test]
fn a_change_of_the_map_leaves_an_error_as_it_is() {
    on_both(|mut vm| {
        vm.space.put(1, illegal());
        vm.publish(2);
        vm.smmu.memory_changed();
        vm.machine.settle();
        assert_eq!((vm.error(), vm.cons()), (Some(CERROR_ILL), 1));
        vm.space.put(1, nh_asid(4));
        vm.ack();
        assert_eq!((vm.error(), vm.cons(), vm.received()), (None, 2, vec![host_asid(7, 4)]));
    });
}

#[test]
fn a_paused_smmu_follows_the_map_as_well() {
    on_both(|vm| {
        vm.smmu.pause();
        let old = vm.space.remove_ring();
        vm.smmu.memory_changed();
        assert!(old.upgrade().is_none());
    });
}

/// What was taken before needs the ring no more: CONS passes it, and only then its MSI is sent (section 3.4).
#[test]
fn a_cmd_sync_completes_though_the_memory_of_its_ring_has_gone() {
    for which in [Which::Cmdq, Which::Ecmdq] {
        let space = Space::new();
        let mut rig = Rig::new(0, 4, Script::default());
        rig.add(space.setup(), 4);
        let mut queue = rig.guests[0].ecmdq(0);
        space.put(0, nh_asid(1));
        space.put(1, sync_msi(WORD, 9));
        match which {
            Which::Cmdq => rig.guests[0].write(CMDQ_PROD, 2),
            Which::Ecmdq => {
                queue.describe(RING, 4, 0);
                queue.write_prod(EN | 2);
            }
        }
        rig.poll_times(2);
        assert_eq!(rig.host.syncs(), 1);
        space.remove_ring();
        rig.worker.guests().next().unwrap().memory_changed();
        rig.host.finish(1);
        rig.poll_times(3);
        let cons = match which {
            Which::Cmdq => rig.cons(0),
            Which::Ecmdq => queue.cons(),
        };
        assert_eq!((cons, space.word(WORD), rig.guests[0].active()), (2, 9, 0), "{which:?}");
    }
}

#[test]
fn a_command_for_the_vmm_completes_though_the_memory_of_its_ring_has_gone() {
    let (space, vmm) = (Space::new(), Vmm::default());
    let mut machine = Machine::new(Setup { on_request: vmm.on_request(), ..space.setup() }).enabled(4);
    space.put(0, cfgi_ste(STREAM));
    machine.guest.write(CMDQ_PROD, 1);
    machine.settle();
    space.remove_ring();
    machine.worker.guests().next().unwrap().memory_changed();
    vmm.complete();
    machine.settle();
    assert_eq!((machine.guest.cons(), machine.guest.active(), vmm.waiting()), (1, 0, 0));
}

#[test]
fn an_msi_to_memory_that_has_gone_is_an_abort() {
    on_both(|mut vm| {
        vm.space.put(1, sync_msi(WORD, 9));
        let (map, _) = vm.space.0.memory().remove_region(GuestAddress(RAM), 0x10_0000).unwrap();
        vm.space.0.lock().unwrap().replace(map);
        vm.smmu.memory_changed();
        vm.publish(2);
        assert_eq!((vm.error(), vm.cons(), vm.machine.guest.active()), (None, 2, MSI_CMDQ_ABT_ERR));
    });
}

#[test]
fn msis_to_ram_are_marked_dirty_and_nothing_else_is() {
    on_both(|mut vm| {
        vm.space.put(1, nh_asid(2));
        vm.space.put(2, sync());
        vm.space.put(3, sync_msi(0x1000, 9));
        vm.space.clean();
        vm.publish(4);
        assert_eq!((vm.cons(), vm.space.dirty()), (4, vec![]), "commands are read; this MSI has no memory");
        vm.space.put(4, sync_msi(WORD, 9));
        vm.space.put(5, sync_msi(RING + 0x9ffc, 8));
        vm.space.clean();
        vm.publish(6);
        assert_eq!((vm.cons(), vm.space.dirty()), (6, vec![RAM + 0x5000, RING + 0x9000]));
        assert_eq!((vm.space.word(WORD), vm.space.word(RING + 0x9ffc)), (9, 8));
    });
}

#[test]
fn the_gerror_msi_is_marked_dirty_as_well() {
    on_both(|mut vm| {
        vm.machine.guest.write_u64(GERROR_IRQ_CFG0, WORD);
        vm.machine.guest.write(GERROR_IRQ_CFG1, 0x6e);
        vm.machine.guest.write(IRQ_CTRL, 1);
        vm.space.put(1, illegal());
        vm.space.clean();
        vm.publish(2);
        assert_eq!((vm.space.dirty(), vm.space.word(WORD)), (vec![RAM + 0x5000], 0x6e));
    });
}
