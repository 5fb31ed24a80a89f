//! The register file, the queues and what becomes of guest memory, against a model of them: random accesses, legal and
//! hostile, commands, and VMMs that take their time, reject, or forget.
//!
//! The model is written from the facts sheet (sections 1.11, 2, 3, 4); where the architecture leaves a choice, from
//! docs/virtual-smmu.md. It shares no code and no table with the engine. The host completes everything at once, and the worker
//! is polled until it rests, or not at all: so there is one right answer.

mod queues;
mod registers;
mod steps;

use std::cell::RefCell;
use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_engine::memory::GuestRam;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{Features, StreamConfig};
use ecmdq_ring::SharedRegion;
use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;
use vm_memory::GuestAddress;

use super::{RAM, RAM_SIZE, Trapped, seed};
use queues::{Model, What};
use steps::Step;

/// By default.
const CASES: u32 = 300;

/// What a request says, in the model's words.
fn what(request: Request) -> What {
    match request {
        Request::Enable(table) => What::Enable { base: table.base, config: table.config, cr1: table.cr1 },
        Request::Disable => What::Disable,
        Request::UpdateGbpa(gbpa) => What::Bypass(gbpa),
        Request::Streams(StreamConfig::One(stream)) => What::Stream(stream.0),
        other => panic!("nobody asked for {other:?}"),
    }
}

/// Engine and model, to which the same is done.
struct Both {
    engine: Trapped,
    /// RAM, whether it is in the memory map or not.
    memory: SharedRegion,
    model: Model,
}

impl Both {
    fn new() -> Self {
        let mut features = Features::linux().with_ecmdqs(0, 1);
        (features.cmdqs, features.ats, features.pri) = (7, true, true);
        let engine = Trapped::new(features);
        let memory = engine.ram.region(GuestAddress(RAM), RAM_SIZE).unwrap();
        Self { engine, memory, model: Model::new() }
    }

    fn write(&mut self, offset: usize, value: u32) {
        self.engine.write(offset, value);
        self.model.write(offset, value);
    }

    fn store(&mut self, at: u64, value: u64) {
        self.memory.store_u64((at - RAM) as usize, value, Release);
        self.model.store(at, value);
    }

    /// To a request that both know, although they may have been asked in different orders by different queues.
    fn answer(&mut self, which: usize, act: super::common::Act) {
        let mut vmm = self.engine.vmm.lock().unwrap();
        if vmm.asked.is_empty() {
            return;
        }
        let which = which % vmm.asked.len();
        let asked = what(vmm.asked[which].0);
        let same_before = vmm.asked[..which].iter().filter(|(request, _)| what(*request) == asked).count();
        if let Some(token) = vmm.asked[which].1.take() {
            act.on(token);
            self.model.answer(asked, same_before, act);
        }
    }

    fn check(&self) -> Result<(), String> {
        for (offset, expected) in self.model.registers() {
            let got = self.engine.read(offset);
            if got != expected {
                return Err(format!("{offset:#x} is {got:#x}, not {expected:#x}"));
            }
        }
        let vmm = self.engine.vmm.lock().unwrap();
        let mut asked: Vec<_> = vmm.asked.iter().map(|(request, _)| what(*request)).collect();
        let mut expected = self.model.asked();
        asked.sort_unstable();
        expected.sort_unstable();
        if asked != expected {
            return Err(format!("the VMM was asked {asked:x?}, not {expected:x?}"));
        }
        Ok(())
    }

    /// All of it, whether it was ever written or not.
    fn check_memory(&self) -> Result<(), String> {
        for offset in (0..RAM_SIZE).step_by(8) {
            let got = self.memory.load_u64(offset, Acquire);
            let expected = self.model.load(RAM + offset as u64);
            if got != expected {
                return Err(format!("memory at {offset:#x} is {got:#x}, not {expected:#x}"));
            }
        }
        Ok(())
    }
}

#[test]
fn the_smmu_behaves_as_its_model() {
    // The other algorithm takes a third of the time.
    let config = ProptestConfig { rng_algorithm: RngAlgorithm::XorShift, ..seed::config(CASES) };
    let enough = config.cases >= CASES;
    let seen = RefCell::new(queues::Seen::default());
    let rings = prop::collection::vec(steps::any_put(), 3 * 8);
    let steps = prop::collection::vec(steps::any_step(), 1..100);
    proptest!(config, |(rings in rings, steps in steps)| {
        let mut both = Both::new();
        for (number, put) in rings.into_iter().enumerate() {
            Step::Put(number / 8, number as u64 % 8, put).act(&mut both);
        }
        for (number, step) in steps.iter().enumerate() {
            step.act(&mut both);
            let checked = both.check();
            prop_assert!(checked.is_ok(), "after step {number} {step:x?}: {}", checked.unwrap_err());
        }
        Step::Settle.act(&mut both);
        let checked = both.check().and_then(|()| both.check_memory());
        prop_assert!(checked.is_ok(), "in the end: {}", checked.unwrap_err());
        seen.borrow_mut().add(&both.model.seen);
    });
    let seen = seen.into_inner();
    println!("{seen:?}");
    assert!(!enough || seen.everything(), "there is something that did not happen: {seen:?}");
}
