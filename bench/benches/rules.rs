//! Checking and rewriting a batch from one buffer into another, beside a plain loop that copies 16-byte commands and
//! replaces the VMID bits without a check.
//!
//! `engine` calls `Rules::apply` as the worker does: batches of up to 64, which end at each CMD_SYNC. (Where a batch ends is
//! found while it is fetched; that is measured by the bench `path`.)

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ecmdq_bench::trace;
use ecmdq_engine::rules::Rules;
use ecmdq_engine::{Command, Features, HostStreamId, StreamId, StreamMap, Vmid};

const BATCH: usize = 64;
/// So many that both buffers stay in the first-level cache.
const COMMANDS: usize = 704;

/// What is kept, and what is set.
type Masks = [[u64; 2]; 2];

/// The limit: copies, replaces VMID bits, checks nothing. The masks come by reference, which makes the compiler use vectors.
#[inline(never)]
fn copy(from: &[Command], to: &mut [Command], [kept, set]: &Masks) {
    for (to, Command([low, high])) in to.iter_mut().zip(from) {
        *to = Command([low & kept[0] | set[0], high & kept[1] | set[1]]);
    }
}

/// Calls `apply` for each batch; says how many commands the host gets.
#[inline(never)]
fn engine(rules: &Rules, streams: &StreamMap, batches: &[&[Command]], to: &mut [Command]) -> usize {
    let mut host = 0;
    for batch in batches {
        let applied = rules.apply(streams, batch, &mut to[host..]);
        assert!(applied.taken == batch.len());
        host += applied.host;
    }
    host
}

/// The batches as the worker fetches them.
fn batches<'a>(rules: &Rules, commands: &'a [Command]) -> Vec<&'a [Command]> {
    let parts = commands.split_inclusive(|command| rules.ends_batch(*command));
    parts.flat_map(|part| part.chunks(BATCH)).collect()
}

fn repeated(commands: &[[u64; 2]]) -> Vec<Command> {
    commands.iter().copied().map(Command).cycle().take(COMMANDS).collect()
}

/// The streams of commands that are measured, by name.
fn inputs() -> Vec<(String, Vec<Command>)> {
    let mut inputs: Vec<(String, Vec<Command>)> = [
        ("TLBI_NH_VA", [0x0005_0000_0000_0012, 0x1234_5001]),
        ("TLBI_NH_VA range", [0x0005_0000_0020_3012, 0x1234_5701]),
        ("TLBI_NH_ASID", [0x0005_0000_0000_0011, 0]),
        ("ATC_INV", [0x0000_0042_0000_0040, 0x1234_5002]),
        ("CFGI_CD", [0x0000_0042_0000_0005, 1]),
        ("PREFETCH_CONFIG", [0x0000_0042_0000_0001, 0]),
        ("CMD_SYNC", [0x2046, 0]),
    ]
    .into_iter()
    .map(|(name, command)| (name.into(), repeated(&[command])))
    .collect();
    // Every legal command that goes to the host, hints, and a CMD_SYNC, in an order without runs.
    inputs.push((
        "mix".into(),
        repeated(&[
            [0x10, 0],
            [0x0005_0000_0000_0011, 0],
            [0x0005_0000_0000_0012, 0x1234_5001],
            [0x13, 0x1234_5001],
            [0x0005_0000_0020_3012, 0x1234_5701],
            [0x30, 0],
            [0x0000_0042_0000_0040, 0x1234_5002],
            [0x0000_0042_0000_0005, 1],
            [0x0000_0042_0000_0006, 0],
            [0x0000_0042_0000_0001, 0],
            [0x0fc0_1046, 0x4000_0010],
        ]),
    ));
    for trace in ["msi-ril-2cpu-mixed", "sev-noril-64k", "ats-msi-ril-2cpu"] {
        let file = format!("{}/traces/{trace}.cmds", env!("CARGO_MANIFEST_DIR"));
        let commands = trace::read(Path::new(&file)).expect("a recorded stream of this repository");
        inputs.push((trace.into(), commands));
    }
    inputs
}

fn rules(criterion: &mut Criterion) {
    let mut features = Features::default();
    features.ats = true;
    let rules = Rules::new(&features, &features, Vmid(7), &[]).expect("the host has what the guest is shown");
    let pairs = [0x42, 0x8, 0x100].map(|stream| (StreamId(stream), HostStreamId(0x1000 + stream)));
    let streams = StreamMap::from_pairs(pairs).expect("three streams");
    let mut benches = criterion.benchmark_group("rules");
    for (name, from) in inputs() {
        let mut to = vec![Command::default(); from.len() + BATCH];
        let batches = batches(&rules, &from);
        benches.throughput(Throughput::Elements(from.len() as u64));
        benches.bench_function(BenchmarkId::new("copy", &name), |b| {
            b.iter(|| {
                for (from, to) in from.chunks(BATCH).zip(to.chunks_mut(BATCH)) {
                    copy(from, to, black_box(&[[!0x0000_ffff_0000_0000, !0], [7 << 32, 0]]));
                }
                black_box(&to);
            });
        });
        benches.bench_function(BenchmarkId::new("engine", &name), |b| {
            b.iter(|| black_box(engine(&rules, &streams, &batches, &mut to)));
        });
    }
    benches.finish();
}

criterion_group!(benches, rules);
criterion_main!(benches);
