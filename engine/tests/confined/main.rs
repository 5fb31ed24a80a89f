//! A worker's thread makes the system calls that `docs/embedding.md` lists, and no other: whole lives of workers
//! under filters that are made from that list.

#[path = "../common/mod.rs"]
mod common;
mod filter;
mod life;
mod process;
#[path = "../workers/support.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use seccompiler::TargetArch;

use life::Life;
use process::{End, run};

/// A life ends well under what the list allows it.
fn lives(name: &str) {
    match run(Life::named(name), None) {
        End::Well => {}
        End::Unconfined(why) => println!("not shown on this system: {why}"),
        End::Trapped(call) => panic!("{name}: the list of docs/embedding.md lacks system call {call:?}"),
    }
}

#[test]
#[ignore = "the other tests run it"]
fn the_life_in_a_process_of_its_own() {
    process::live();
}

#[test]
fn a_worker_on_io_uring_needs_what_is_listed() {
    lives("on io_uring");
}

#[test]
fn a_worker_on_epoll_needs_what_is_listed() {
    lives("on epoll");
}

#[test]
fn memory_from_one_heap_needs_what_is_listed() {
    lives("on one heap");
}

#[test]
fn a_backtrace_needs_what_is_listed() {
    lives("with backtraces");
}

#[test]
fn a_worker_that_is_made_on_its_thread_needs_what_is_listed() {
    lives("made on its thread");
}

#[test]
fn an_executor_needs_what_is_listed() {
    lives("of an executor");
}

#[test]
fn each_system_call_that_is_listed_is_one_of_both_architectures() {
    for arch in [TargetArch::x86_64, TargetArch::aarch64] {
        let rows = filter::rows();
        let all: Vec<_> = rows.iter().map(|row| &*row.of).collect();
        assert!(all.len() >= 8, "{all:?}");
        filter::filter(&filter::calls(&all, arch), arch);
    }
}

#[test]
fn without_a_system_call_that_is_needed_a_life_does_not_end_well() {
    let ways = [
        ("on epoll", "fcntl close write epoll_ctl gettid rt_sigreturn rt_sigprocmask sigaltstack exit"),
        ("on io_uring", "io_uring_enter"),
    ];
    for (life, needed) in ways {
        for call in needed.split(' ') {
            let end = run(Life::named(life), Some(call));
            assert!(!matches!(end, End::Well), "{life}, without {call}");
        }
    }
}
