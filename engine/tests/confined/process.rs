//! A process of its own for each life, since a system call that is not allowed ends it.

use std::env;
use std::ffi::{c_int, c_void};
use std::hint;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

use crate::life::Life;

const LIFE: &str = "CONFINED_LIFE";
const WITHOUT: &str = "CONFINED_WITHOUT";
const SIGSYS: c_int = 31;
/// What the process says of its end.
const TRAPPED: i32 = 71;
const UNCONFINED: i32 = 72;

/// How a life ended.
#[derive(Debug)]
pub enum End {
    Well,
    /// A system call that was not allowed; its number, unless it was made where signals are blocked.
    Trapped(Option<i32>),
    /// This system has no seccomp, or not what the life sleeps on.
    Unconfined(String),
}

/// Lives, without one of the system calls of the list; in a process of its own.
pub fn run(life: &Life, without: Option<&str>) -> End {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "the_life_in_a_process_of_its_own",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(LIFE, life.name).env(WITHOUT, without.unwrap_or_default());
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").envs(life.env.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => End::Well,
        (Some(TRAPPED), _) => {
            End::Trapped(said.lines().find_map(|line| line.strip_prefix("trapped ")?.parse().ok()))
        }
        (_, Some(SIGSYS)) => End::Trapped(None),
        (Some(UNCONFINED), _) => End::Unconfined(said.into()),
        _ => panic!("{}: {}\n{said}\n{}", life.name, output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// What [`run`] has the process do.
pub fn live() {
    let name = env::var(LIFE).expect("only the other tests run it");
    let without = env::var(WITHOUT).unwrap_or_default();
    register_signal_handler(SIGSYS, note).unwrap();
    thread::spawn(|| {
        loop {
            match CALL.load(Relaxed) {
                NONE => thread::sleep(Duration::from_millis(1)),
                call => {
                    // On a line of its own, since the harness has begun one.
                    println!("\ntrapped {call}");
                    process::exit(TRAPPED);
                }
            }
        }
    });
    let life = Life::named(&name);
    life.live(&without);
}

/// Ends the process: this system has not what the life needs.
pub fn unconfined(why: &std::io::Error) -> ! {
    println!("{why}");
    process::exit(UNCONFINED);
}

const NONE: i32 = -1;
/// The system call that was not allowed.
static CALL: AtomicI32 = AtomicI32::new(NONE);

/// Notes the system call that was not allowed; the thread makes no other.
extern "C" fn note<Info>(_: c_int, info: *mut Info, _: *mut c_void) {
    /// `siginfo_t::si_syscall`, in words of 32 bits: behind three of them, a gap, and an address.
    const SI_SYSCALL: usize = 6;
    // SAFETY: the kernel hands a `siginfo_t` of 128 bytes to a handler with SA_SIGINFO, and for SIGSYS that is in it.
    #[allow(unsafe_code, reason = "the only place that says which system call it was")]
    let call = unsafe { info.cast::<i32>().add(SI_SYSCALL).read() };
    CALL.store(call, Relaxed);
    loop {
        hint::spin_loop();
    }
}
