//! What a call costs by the number of commands in it. On an emulated host only ratios mean anything.

use std::error::Error;
use std::time::{Duration, Instant};

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd::{GROUP, Invalidate, VIommu};

const SIZES: [usize; 7] = [1, 2, 4, 8, 16, 32, GROUP];
const ROUNDS: usize = 2000;

/// The median of each size. A round has each of them, so that a drift of the machine falls on all alike.
pub fn print(viommu: &VIommu) -> Result<(), Box<dyn Error>> {
    let commands: Vec<_> = (0..GROUP as u64).map(|i| Command([0x12 | 5 << 48, i << 12 | 1])).collect();
    let mut times = SIZES.map(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (times, n) in times.iter_mut().zip(SIZES) {
            let start = Instant::now();
            viommu.invalidate(&commands[..n])?;
            times.push(start.elapsed());
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2]
    });
    let nanos = |time: Duration| time.as_nanos() as f64;
    println!("COST {:>8} {:>10} {:>12} {:>14}", "commands", "a call/us", "against one", "cheaper each");
    for (median, n) in medians.into_iter().zip(SIZES) {
        let ratio = nanos(median) / nanos(medians[0]);
        println!("COST {n:>8} {:>10.1} {ratio:>12.2} {:>14.1}", nanos(median) / 1e3, n as f64 / ratio);
    }
    Ok(())
}
