//! What guests take of the host's memory: measured on real virtual SMMUs, as the system counts pages.

use std::{fs, io};

use super::lock_step::LockStep;

/// The memory of a virtual SMMU whose queues are all enabled, in bytes. The rings are the guest's RAM, 16 bytes an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// The engine's own: state, ID and other registers.
    pub engine: f64,
    /// Control pages that the guest maps, as far as they are used.
    pub control: f64,
}

impl Memory {
    /// Measures it with so many queues each, a power of two: the mean of some virtual SMMUs with a worker.
    ///
    /// # Errors
    ///
    /// What the system said; `NotFound` where it does not count pages for a process.
    pub fn measure(queues: usize) -> io::Result<Self> {
        const GUESTS: usize = 64;
        let before = pages()?;
        let mut real = LockStep::new(GUESTS, queues, &[])?;
        real.run(2);
        let after = pages()?;
        drop(real);
        let [engine, control] = [0, 1].map(|n| after[n].saturating_sub(before[n]) as f64 / GUESTS as f64);
        Ok(Self { engine, control })
    }
}

/// Bytes of this process that are its own, and that are shared memory.
fn pages() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    Ok([of("Anonymous:")?, of("Pss_Shmem:")?])
}
