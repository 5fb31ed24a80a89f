//! The memory of the registers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_ring::SharedRegion;

use super::ConfigError;
use crate::features::Features;
use crate::memory;
use crate::registers::*;
use crate::stream_table::StreamTable;

/// How the guest reaches the registers.
#[derive(Clone, Debug)]
pub enum FrontEnd {
    /// The VMM traps every access, and hands it over.
    Trapped,
    /// The VMM traps accesses to pages 0 and 1, and maps the ECMDQ control pages into the guest: the normal way to run.
    Direct,
    /// All pages are memory that the guest writes without a trap: pages 0 and 1, and behind them the control pages.
    Shared(SharedRegion),
}

/// One ECMDQ control page as memory that a VMM maps into the guest, readable and writable.
#[derive(Clone, Copy, Debug)]
pub struct ControlPage<'a> {
    /// The memory; its size cannot change.
    pub fd: BorrowedFd<'a>,
    /// Where in `fd` the page starts.
    pub fd_offset: u64,
    /// Where the guest sees it, from the SMMU's page 0.
    pub offset: u64,
    /// Its size in bytes.
    pub size: usize,
}

/// The register pages, wherever they are.
#[derive(Clone, Debug)]
pub(crate) struct RegisterFile {
    /// RegisterFile 0 and 1.
    pub frame: RegisterWords,
    /// The control pages.
    pub control: RegisterWords,
    /// The control pages' file where they are to be mapped into the guest.
    file: Option<Arc<File>>,
    /// Whether the guest sees pages 0 and 1, and the control pages, by traps only.
    pub frame_traps: bool,
    pub control_traps: bool,
}

impl RegisterFile {
    pub fn stream_table(&self) -> StreamTable {
        // Relaxed: whoever looks has seen SMMUEN, by the acquire load of CR0.
        StreamTable {
            base: self.frame.load_u64(STRTAB_BASE, Relaxed),
            config: self.frame.load_u32(STRTAB_BASE_CFG, Relaxed),
            cr1: self.frame.load_u32(CR1, Relaxed),
        }
    }

    pub fn new(front_end: FrontEnd, features: &Features) -> Result<Self, ConfigError> {
        let control_len = features.control_pages() * CONTROL_PAGE_SIZE;
        let private = |len: usize| SharedRegion::from_words(vec![0; len / 8]);
        let (frame_traps, control_traps) = match &front_end {
            FrontEnd::Trapped => (true, true),
            FrontEnd::Direct => (true, false),
            FrontEnd::Shared(_) => (false, false),
        };
        let (frame, control, file) = match front_end {
            FrontEnd::Direct if control_len > 0 => {
                let (file, control) = memory::memfd("ecmdq-control-pages", control_len)?;
                (private(FRAME_SIZE), control, Some(Arc::new(file)))
            }
            FrontEnd::Trapped | FrontEnd::Direct => (private(FRAME_SIZE), private(control_len), None),
            FrontEnd::Shared(region) => {
                let needed = FRAME_SIZE + control_len;
                let part = |offset, len| {
                    region.part(offset, len).ok_or(ConfigError::Registers { len: region.len(), needed })
                };
                (part(0, FRAME_SIZE)?, part(CONTROL_PAGES, control_len)?, None)
            }
        };
        let frame = RegisterWords::frame(frame);
        let control = RegisterWords::control(control, Self::ecmdq_stride(features));
        Ok(Self { frame, control, file, frame_traps, control_traps })
    }

    /// The control pages as memory to be mapped into the guest.
    pub fn control_pages(&self) -> impl Iterator<Item = ControlPage<'_>> {
        let file = self.file.as_deref();
        file.into_iter().flat_map(|file| {
            (0..self.control.len() / CONTROL_PAGE_SIZE).map(|page| ControlPage {
                fd: file.as_fd(),
                fd_offset: (page * CONTROL_PAGE_SIZE) as u64,
                offset: (CONTROL_PAGES + page * CONTROL_PAGE_SIZE) as u64,
                size: CONTROL_PAGE_SIZE,
            })
        })
    }

    /// Gives every register its value after reset: zero, but for the ID registers and the descriptions of the control pages.
    pub fn reset(&self, features: &Features) {
        self.frame.clear();
        self.control.clear();
        // Relaxed: the VMM starts the guest after this, and the lock of the state orders the worker.
        for (n, value) in features.idrs().into_iter().enumerate() {
            self.frame.store_u32(IDR0 + 4 * n, value, Relaxed);
        }
        self.frame.store_u32(IDR6, features.idr6(), Relaxed);
        self.frame.store_u32(AIDR, features.aidr(), Relaxed);
        for page in 0..features.control_pages() {
            let at = CONTROL_PAGE_BASE + CONTROL_PAGE_STRIDE * page;
            let offset = (CONTROL_PAGES + page * CONTROL_PAGE_SIZE) as u64;
            // ADDR, CMDQGS=64 KiB, PRESET: registers.
            self.frame.store_u64(at, offset | 0b01 << 1 | 1, Relaxed);
            // EN and ENACK are fixed at 1.
            self.frame.store_u32(at + 8, 1, Relaxed);
            self.frame.store_u32(at + 12, 1, Relaxed);
        }
    }

    /// The distance from one ECMDQ's registers to the next one's: N queues are spread evenly over a page (facts sheet,
    /// section 4.1), and so over all pages.
    pub fn ecmdq_stride(features: &Features) -> usize {
        CONTROL_PAGE_SIZE >> features.page_queues_log2
    }
}

impl From<io::Error> for ConfigError {
    fn from(error: io::Error) -> Self {
        Self::Memory(error.kind())
    }
}
