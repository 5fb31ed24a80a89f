//! What hangs is named, and ends the program: a vCPU that waits for ever in its guest returns to nobody who could look at a clock.

use std::process;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

/// How long a step may take. It takes milliseconds; on a machine with a hundred others at work, seconds.
const LIMIT: Duration = Duration::from_secs(600);

/// How many steps have begun; the mode of the last one, and until when it lasts.
static STEPS: Mutex<(u64, &str, &str)> = Mutex::new((0, "", ""));

/// The next step of a mode: until when it lasts.
pub fn begin(mode: &'static str, until: &'static str) {
    if let Ok(mut steps) = STEPS.lock() {
        *steps = (steps.0 + 1, mode, until);
    }
}

/// Ends the program when a step takes too long.
pub fn start() {
    thread::spawn(|| {
        let mut seen = 0;
        loop {
            thread::sleep(LIMIT);
            let (steps, mode, until) = STEPS.lock().map(|steps| *steps).unwrap_or_default();
            if steps == seen {
                println!("FAILED: {mode}: waited {LIMIT:?} until {until}");
                process::exit(1);
            }
            seen = steps;
        }
    });
}
