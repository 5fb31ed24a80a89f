//! What a virtual SMMU takes of the host's memory, in a process of its own, since it is the process that is measured.

use ecmdq_bench::scale::Memory;

#[test]
fn a_virtual_smmu_takes_its_control_page_and_little_more() {
    // All of the page has been looked at by a reset, which sets it apart, whatever the number of queues.
    let Memory { engine, control } = Memory::measure(16).unwrap();
    assert!((65_536.0..67_000.0).contains(&control), "{control}");
    // The state, and 128 KiB of register pages at most: as much of them as the system has set apart.
    assert!((4_096.0..200_000.0).contains(&engine), "{engine}");
}
