//! What an SMMU shows of itself: features, and the ID registers that they come from (facts sheet, section 2.1).

use ecmdq_ring::QueueSize;
use thiserror::Error;

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $register:literal [$bit:literal],)*) => {
        /// The features of an SMMU, a guest's or the host's.
        ///
        /// The default is what Linux takes in full of a virtual SMMU: stage 1, coherent, MSIs, range invalidation,
        /// queues of up to 32,768 commands; ATS is off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Features {
            $($(#[$doc])* pub $name: bool,)*
            /// How stalls are handled (IDR0.STALL_MODEL).
            pub stall: StallModel,
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

        impl Features {
            /// The features that registers IDR0 to IDR5 show.
            pub fn from_idrs(idr: [u32; 6]) -> Self {
                let field = |register: usize, lsb: u32, bits: u32| (idr[register] >> lsb & ((1 << bits) - 1)) as u8;
                Self {
                    $($name: idr[$register] >> $bit & 1 != 0,)*
                    stall: match field(0, 24, 2) {
                        0b01 => StallModel::None,
                        0b10 => StallModel::Forced,
                        _ => StallModel::Supported,
                    },
                    cmdqs: field(1, 21, 5),
                    eventqs: field(1, 16, 5),
                    sid_bits: field(1, 0, 6),
                    ssid_bits: field(1, 6, 5),
                    oas: field(5, 0, 3),
                }
            }

            /// Registers IDR0 to IDR5. What is not a feature here is as Linux needs it: AArch64 little-endian tables,
            /// two-level stream tables, hierarchical attribute disable, granules of 4K and 64K.
            pub fn idrs(&self) -> [u32; 6] {
                let (ttf_aarch64, cd_2level, little_endian, st_2level) = (0b10 << 2, 1 << 19, 0b10 << 21, 0b01 << 27);
                let (had, gran4k, gran64k) = (1 << 2, 1 << 4, 1 << 6);
                let mut idr = [ttf_aarch64 | cd_2level | little_endian | st_2level, 0, 0, had, 0, gran4k | gran64k];
                $(idr[$register] |= u32::from(self.$name) << $bit;)*
                idr[0] |= (self.stall as u32) << 24;
                idr[1] |= u32::from(self.sid_bits) | u32::from(self.ssid_bits) << 6;
                idr[1] |= u32::from(self.eventqs) << 16 | u32::from(self.cmdqs) << 21;
                idr[5] |= u32::from(self.oas);
                idr
            }

            /// An SMMU with nothing but what every one has.
            pub const fn none() -> Self {
                Self {
                    $($name: false,)*
                    stall: StallModel::None,
                    cmdqs: 7,
                    eventqs: 7,
                    sid_bits: 16,
                    ssid_bits: 0,
                    oas: 4,
                }
            }
        }
    };
}

features! {
    /// Stage 2 translation (IDR0.S2P).
    s2p = 0[0],
    /// Stage 1 translation (IDR0.S1P).
    s1p = 0[1],
    /// Accesses of the SMMU are coherent (IDR0.COHACC).
    coherent = 0[4],
    /// EL2 contexts (IDR0.Hyp).
    hyp = 0[9],
    /// ATS, and with it ATC_INV (IDR0.ATS).
    ats = 0[10],
    /// 16-bit ASIDs (IDR0.ASID16).
    asid16 = 0[12],
    /// CMD_SYNC may complete by an MSI (IDR0.MSI).
    msi = 0[13],
    /// WFE wake-ups are generated (IDR0.SEV).
    sev = 0[14],
    /// Page requests, and with them PRI_RESP (IDR0.PRI).
    pri = 0[16],
    /// 16-bit VMIDs (IDR0.VMID16).
    vmid16 = 0[18],
    /// Memory partitioning, and with it CFGI_VMS_PIDM (IDR3.MPAM).
    mpam = 3[7],
    /// Range TLB invalidation (IDR3.RIL).
    ril = 3[10],
    /// Device permission tables, and with them DPTI_* (IDR3.DPT).
    dpt = 3[15],
    /// 52-bit addresses with 4K and 16K granules (IDR5.DS).
    ds = 5[7],
    /// 128-bit descriptors (IDR5.D128).
    d128 = 5[8],
}

/// IDR0.STALL_MODEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallModel {
    /// Transactions stall or terminate, as each stream says.
    Supported = 0b00,
    /// Transactions never stall.
    None = 0b01,
    /// Transactions always stall.
    Forced = 0b10,
}

/// Why a set of features is none that a virtual SMMU can have.
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
        Self { s1p: true, coherent: true, msi: true, ril: true, asid16: true, cmdqs: 15, ..Self::none() }
    }
}

impl Features {
    /// Checks that a virtual SMMU can have these features.
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
