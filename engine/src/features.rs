//! What a virtual SMMU shows of itself: the ID registers (facts sheet, section 2.1).

use ecmdq_ring::QueueSize;
use thiserror::Error;

/// The features of a virtual SMMU, from which its ID registers follow.
///
/// The default is what Linux takes in full: stage 1, coherent, MSIs, range invalidation, queues of up to 32,768
/// commands; ATS is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Accesses of the SMMU are coherent (IDR0.COHACC).
    pub coherent: bool,
    /// CMD_SYNC may complete by an MSI (IDR0.MSI).
    pub msi: bool,
    /// WFE wake-ups are generated (IDR0.SEV).
    pub sev: bool,
    /// ATS, and with it ATC_INV (IDR0.ATS).
    pub ats: bool,
    /// Range TLB invalidation (IDR3.RIL).
    pub ril: bool,
    /// 16-bit ASIDs (IDR0.ASID16).
    pub asid16: bool,
    /// log2 of the most commands in a command queue (IDR1.CMDQS).
    pub cmdqs: u8,
    /// log2 of the most records in the event queue (IDR1.EVENTQS).
    pub eventqs: u8,
    /// Number of StreamID bits (IDR1.SIDSIZE).
    pub sid_bits: u8,
    /// Number of SubstreamID bits (IDR1.SSIDSIZE).
    pub ssid_bits: u8,
    /// Output address size, encoded as in IDR5.OAS: 0 is 32 bits, 4 is 44, 5 is 48, 6 is 52.
    pub oas: u8,
}

/// Why a set of features is none that an SMMU can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FeaturesError {
    /// Linux refuses a command queue of 64 entries or fewer; the architecture ends at 2^19.
    #[error("CMDQS {0} is not within 7 to 19")]
    Cmdqs(u8),
    /// The architecture ends at 2^19 records.
    #[error("EVENTQS {0} is above 19")]
    Eventqs(u8),
    /// StreamIDs have at most 32 bits.
    #[error("SIDSIZE {0} is above 32")]
    SidBits(u8),
    /// SubstreamIDs have at most 20 bits.
    #[error("SSIDSIZE {0} is above 20")]
    SsidBits(u8),
    /// The encodings end at 7.
    #[error("OAS {0} is above 7")]
    Oas(u8),
}

impl Default for Features {
    fn default() -> Self {
        Self {
            coherent: true,
            msi: true,
            sev: false,
            ats: false,
            ril: true,
            asid16: true,
            cmdqs: 15,
            eventqs: 7,
            sid_bits: 16,
            ssid_bits: 0,
            oas: 4,
        }
    }
}

impl Features {
    /// Checks that an SMMU can have these features.
    ///
    /// # Errors
    ///
    /// The first impossible one.
    pub fn check(&self) -> Result<(), FeaturesError> {
        match *self {
            Self { cmdqs, .. } if !(7..=19).contains(&cmdqs) => Err(FeaturesError::Cmdqs(cmdqs)),
            Self { eventqs, .. } if eventqs > 19 => Err(FeaturesError::Eventqs(eventqs)),
            Self { sid_bits, .. } if sid_bits > 32 => Err(FeaturesError::SidBits(sid_bits)),
            Self { ssid_bits, .. } if ssid_bits > 20 => Err(FeaturesError::SsidBits(ssid_bits)),
            Self { oas, .. } if oas > 7 => Err(FeaturesError::Oas(oas)),
            _ => Ok(()),
        }
    }

    /// IDR0: stage 1 with AArch64 little-endian tables, two-level stream and CD tables, no stalls, and the rest
    /// as the features say.
    pub fn idr0(&self) -> u32 {
        let bit = |set: bool, n: u32| u32::from(set) << n;
        let (s1p, ttf_aarch64, cd2l, little_endian, no_stall, st_2level) =
            (1 << 1, 0b10 << 2, 1 << 19, 0b10 << 21, 0b01 << 24, 0b01 << 27);
        s1p | ttf_aarch64
            | cd2l
            | little_endian
            | no_stall
            | st_2level
            | bit(self.coherent, 4)
            | bit(self.ats, 10)
            | bit(self.asid16, 12)
            | bit(self.msi, 13)
            | bit(self.sev, 14)
    }

    /// IDR1: sizes of identifiers and queues.
    pub fn idr1(&self) -> u32 {
        u32::from(self.sid_bits)
            | u32::from(self.ssid_bits) << 6
            | u32::from(self.eventqs) << 16
            | u32::from(self.cmdqs) << 21
    }

    /// IDR3: hierarchical attribute disable, and range invalidation as the features say.
    pub fn idr3(&self) -> u32 {
        let had = 1 << 2;
        had | u32::from(self.ril) << 10
    }

    /// IDR5: 4K and 64K granules, the output address size.
    pub fn idr5(&self) -> u32 {
        let (gran4k, gran64k) = (1 << 4, 1 << 6);
        gran4k | gran64k | u32::from(self.oas)
    }

    /// The largest command queue.
    pub fn queue_cap(&self) -> QueueSize {
        QueueSize::capped(u32::from(self.cmdqs), QueueSize::MAX)
    }

    /// The bits of an output address.
    pub fn address_mask(&self) -> u64 {
        const BITS: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];
        (1 << BITS[usize::from(self.oas & 7)]) - 1
    }
}
