//! Files that the engine maps must not shrink under it (docs/virtual-smmu.md, "Memory that is not ours").

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_engine::memory::{check_cannot_shrink, map, memfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// A file of this user, of one page, with these access rights and seals.
fn file(mode: u32, seals: SealFlags) -> File {
    let file =
        File::from(memfd_create("test-file", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(0x1000).unwrap();
    file.set_permissions(Permissions::from_mode(mode)).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

const NO_SEALS: SealFlags = SealFlags::empty();

#[test]
fn files_that_nobody_else_can_shrink_are_fine() {
    let fine = [
        (0o600, NO_SEALS),
        (0o644, NO_SEALS),
        (0o755, NO_SEALS),
        (0o777, SealFlags::SHRINK),
        (0o666, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL),
    ];
    for (mode, seals) in fine {
        let file = file(mode, seals);
        assert!(check_cannot_shrink(&file).is_ok(), "{mode:o} {seals:?}");
        assert!(map(&file, 0x1000).is_ok(), "{mode:o} {seals:?}");
    }
}

#[test]
fn files_that_somebody_else_can_shrink_are_refused_with_the_reason() {
    let refused = [
        (0o620, NO_SEALS),
        (0o602, NO_SEALS),
        (0o666, NO_SEALS),
        (0o777, NO_SEALS),
        (0o660, SealFlags::GROW),
    ];
    for (mode, seals) in refused {
        let file = file(mode, seals);
        for error in [check_cannot_shrink(&file).unwrap_err(), map(&file, 0x1000).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{mode:o} {seals:?}");
            assert_eq!(
                error.to_string(),
                "another user can shrink the file: seal it (F_SEAL_SHRINK), or make it yours and writable by you alone"
            );
        }
    }
}

#[test]
fn a_file_that_is_shorter_than_what_is_to_be_mapped_is_refused() {
    let file = file(0o600, NO_SEALS);
    let error = map(&file, 0x1001).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "the file is shorter than what is to be mapped");
    assert_eq!(map(&file, 0x800).unwrap().len(), 0x800, "a part is fine");
}

/// An error, not a mapping that faults at the first store.
#[test]
fn a_file_that_cannot_be_written_is_refused() {
    let file_of_ours = file(0o600, NO_SEALS);
    let read_only = File::open(format!("/proc/self/fd/{}", file_of_ours.as_raw_fd())).unwrap();
    assert_eq!(map(&read_only, 0x1000).unwrap_err().kind(), ErrorKind::PermissionDenied);
    for seals in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        let error = map(&file(0o600, seals), 0x1000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{seals:?}");
    }
}

#[test]
fn files_of_the_engine_are_zeroed_shared_and_keep_their_size() {
    let (file, region) = memfd("test-file", 0x2000).unwrap();
    assert_eq!((region.len(), file.metadata().unwrap().len()), (0x2000, 0x2000));
    assert!((0..0x2000).step_by(8).all(|at| region.load_u64(at, Acquire) == 0));
    for len in [0, 0x1fff, 0x2001, 0x4000] {
        assert!(file.set_len(len).is_err(), "{len:#x}");
    }
    assert!(fcntl_add_seals(&file, SealFlags::WRITE).is_err(), "nobody can make it read-only either");
    let again = map(&file, 0x2000).unwrap();
    region.store_u32(0x1ffc, 0xcafe_f00d, Release);
    assert_eq!(again.load_u32(0x1ffc, Acquire), 0xcafe_f00d);
}

#[test]
fn a_mapping_outlives_its_file_descriptor() {
    let (file, region) = memfd("test-file", 0x1000).unwrap();
    let again = map(&file, 0x1000).unwrap();
    drop((file, region));
    again.store_u64(8, 5, Release);
    assert_eq!(again.load_u64(8, Acquire), 5);
}
