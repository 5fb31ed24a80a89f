//! What it runs on, in general terms.

use std::{fs, thread};

use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineInfo {
    /// The architecture.
    pub architecture: String,
    /// The processor as it calls itself.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// The kernel's version.
    pub kernel: String,
}

impl MachineInfo {
    /// This one. What it does not tell is unknown.
    pub fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        // The first two numbers: the rest is a distribution's.
        let kernel: Vec<_> = kernel.trim().split('.').take(2).collect();
        Self {
            architecture: std::env::consts::ARCH.into(),
            processor: field("model name").unwrap_or_else(|| "unknown".into()),
            processors: thread::available_parallelism().map_or(1, Into::into),
            virtual_machine: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
            kernel: kernel.join("."),
        }
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        let Self { architecture, processor, processors, virtual_machine, kernel } = self;
        let kind = if *virtual_machine { "virtual machine" } else { "machine" };
        format!("A {kind} with {processors} processors ({processor}, {architecture}), Linux {kernel}.")
    }
}
