//! The iommufd host queue before kernels that fail in every way they can.

#[path = "../common/mod.rs"]
mod common;
mod executor;
mod guests;
#[path = "../common/kernel.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod kernel;
mod measured;
mod truth;
