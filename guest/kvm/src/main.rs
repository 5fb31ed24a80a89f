//! A vCPU that invalidates through the engine, by each kind of doorbell, and how often it exits for that.
//!
//! `ecmdq-guest-kvm [--required]`: prints a table. Exits with 0 if each kind had as many exits as it must have, or if KVM cannot be
//! had here, which it says; with `--required` that is an error.

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod code;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod modes;
#[cfg(target_arch = "x86_64")]
mod watchdog;

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    println!("did not run: the guest's code is for x86-64");
    ExitCode::from(u8::from(std::env::args().any(|arg| arg == "--required")))
}

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    let required = std::env::args().any(|arg| arg == "--required");
    // Whatever comes of it later is the engine's, or this program's.
    if let Err(error) = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        println!("did not run: KVM makes no machine here: {error}");
        return ExitCode::from(u8::from(required));
    }
    watchdog::start();
    let rows = match modes::run() {
        Ok(rows) => rows,
        Err(error) => {
            println!("FAILED: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{:<28}{:>14}{:>8}{:>18}{:>12}{:>8}",
        "doorbell", "invalidations", "exits", "exits for each", "ns, median", "sleeps"
    );
    let mut good = true;
    for modes::Row { name, invalidations, exits, expected, ns, sleeps } in rows {
        let right = expected.contains(&exits);
        good &= right;
        println!(
            "{name:<28}{invalidations:>14}{exits:>8}{:>18.4}{ns:>12}{sleeps:>8}{}",
            exits as f64 / invalidations as f64,
            if right { "" } else { "  WRONG" }
        );
    }
    println!("An exit is one to this program. An ioeventfd has one to the kernel for each doorbell, too.");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
