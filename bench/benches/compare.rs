//! The engine beside what a VMM would use in its place, and the limit, on two processors: commands a second in batches, and TLBIs with a
//! CMD_SYNC that is waited for.
//!
//! Criterion measures one after the other; `ecmdq bench` measures them in turn, and tells the ratios.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ecmdq_bench::compare::{Load, WAYS};

fn compare(c: &mut Criterion) {
    let loads = [
        ("TLBIs, 1 a doorbell", Load::stream(1), 1),
        ("TLBIs, 64 a doorbell", Load::stream(64), 64),
        ("TLBI and CMD_SYNC, waited for", Load::synced(1), 2),
    ];
    for (name, load, commands) in loads {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(commands));
        for (name, open) in WAYS {
            let mut lane = open(1).expect("memory");
            group.bench_function(name, |b| b.iter_custom(|n| lane.run(&load, n as usize).time));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = compare
}
criterion_main!(benches);
