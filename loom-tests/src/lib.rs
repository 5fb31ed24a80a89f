//! The tests of this package run the shipping algorithms of `ecmdq-ring` over loom's atomics: loom explores the
//! interleavings and the stale values that the memory model allows, within a bound on preemptions
//! (`LOOM_MAX_PREEMPTIONS`, 3 unless set).
//!
//! Each protocol also has tests with one ordering weakened that must fail: they show that the model can see it.
