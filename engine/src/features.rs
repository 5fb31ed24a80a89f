//! What an SMMU shows of itself: features, and the ID registers that they come from (facts sheet, section 2.1).

use std::iter;

use ecmdq_ring::QueueSize;
use thiserror::Error;

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $register:literal [$bit:literal],)*) => {
        /// The features of an SMMU, a guest's or the host's.
        ///
        /// A start is one of the presets [`linux`](Self::linux) (the default), [`minimal`](Self::minimal) and
        /// [`everything`](Self::everything).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Features {
            $($(#[$doc])* pub $name: bool,)*
            /// Whether the SMMU updates access flags and dirty states in tables (IDR0.HTTU): 0 not, 1 access flags, 2 both.
            pub httu: u8,
            /// How stalls are handled (IDR0.STALL_MODEL).
            pub stall: StallModel,
            /// log2 of the most commands in a command queue (IDR1.CMDQS).
            pub cmdqs: u8,
            /// log2 of the most records in the event queue (IDR1.EVENTQS).
            pub eventqs: u8,
            /// log2 of the most requests in the page request queue (IDR1.PRIQS).
            pub priqs: u8,
            /// Number of StreamID bits (IDR1.SIDSIZE).
            pub sid_bits: u8,
            /// Number of SubstreamID bits (IDR1.SSIDSIZE).
            pub ssid_bits: u8,
            /// Output address size, encoded as in IDR5.OAS: 0 is 32 bits, 4 is 44, 5 is 48, 6 is 52.
            pub oas: u8,
            /// log2 of the number of ECMDQ control pages (IDR6.CMDQ_CONTROL_PAGE_LOG2NUMP); counts with `ecmdq` only.
            pub control_pages_log2: u8,
            /// log2 of the queues of a control page (IDR6.CMDQ_CONTROL_PAGE_LOG2NUMQ); counts with `ecmdq` only.
            pub page_queues_log2: u8,
        }

        impl Features {
            /// The features that registers IDR0 to IDR5 show. What IDR6 shows is zero: one page of one queue.
            pub fn from_idrs(idr: [u32; 6]) -> Self {
                let field = |register: usize, lsb: u32, bits: u32| (idr[register] >> lsb & ((1 << bits) - 1)) as u8;
                Self {
                    $($name: idr[$register] >> $bit & 1 != 0,)*
                    httu: field(0, 6, 2),
                    stall: match field(0, 24, 2) {
                        0b01 => StallModel::None,
                        0b10 => StallModel::Forced,
                        _ => StallModel::Supported,
                    },
                    cmdqs: field(1, 21, 5),
                    eventqs: field(1, 16, 5),
                    priqs: field(1, 11, 5),
                    sid_bits: field(1, 0, 6),
                    ssid_bits: field(1, 6, 5),
                    oas: field(5, 0, 3),
                    control_pages_log2: 0,
                    page_queues_log2: 0,
                }
            }

            /// Registers IDR0 to IDR5. What is not a feature here is as Linux needs it: AArch64 little-endian tables,
            /// hierarchical attribute disable.
            pub fn idrs(&self) -> [u32; 6] {
                let (ttf_aarch64, little_endian, had) = (0b10 << 2, 0b10 << 21, 1 << 2);
                let mut idr = [ttf_aarch64 | little_endian, 0, 0, had, 0, 0];
                $(idr[$register] |= u32::from(self.$name) << $bit;)*
                idr[0] |= u32::from(self.httu) << 6 | (self.stall as u32) << 24;
                idr[1] |= u32::from(self.sid_bits) | u32::from(self.ssid_bits) << 6;
                idr[1] |= u32::from(self.priqs) << 11 | u32::from(self.eventqs) << 16 | u32::from(self.cmdqs) << 21;
                idr[5] |= u32::from(self.oas);
                idr
            }

            /// An SMMU with nothing but what every one has.
            pub const fn none() -> Self {
                Self {
                    $($name: false,)*
                    httu: 0,
                    stall: StallModel::None,
                    cmdqs: 7,
                    eventqs: 7,
                    priqs: 0,
                    sid_bits: 16,
                    ssid_bits: 0,
                    oas: 4,
                    control_pages_log2: 0,
                    page_queues_log2: 0,
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
    /// EL2 contexts (IDR0.Hyp). No preset has them: a guest kernel at EL2 would use them for all of its stage 1, and each invalidation
    /// would be a request to the VMM, since no host executes TLBI_EL2_* for a guest.
    hyp = 0[9],
    /// ATS, and with it ATC_INV (IDR0.ATS).
    ats = 0[10],
    /// 16-bit ASIDs (IDR0.ASID16).
    asid16 = 0[12],
    /// CMD_SYNC may complete by an MSI (IDR0.MSI).
    msi = 0[13],
    /// WFE wake-ups are generated (IDR0.SEV). No preset has them: the engine sends no events, so that a guest that waits by WFE
    /// is woken by its CPU's event stream only.
    sev = 0[14],
    /// Page requests, and with them PRI_RESP (IDR0.PRI).
    pri = 0[16],
    /// 16-bit VMIDs (IDR0.VMID16).
    vmid16 = 0[18],
    /// Two-level tables of context descriptors (IDR0.CD2L). The host's SMMU walks them.
    cd2l = 0[19],
    /// Two-level stream tables (IDR0.ST_LEVEL).
    st2l = 0[27],
    /// Enhanced Command Queues (IDR1.ECMDQ).
    ecmdq = 1[31],
    /// Memory partitioning, and with it CFGI_VMS_PIDM (IDR3.MPAM).
    mpam = 3[7],
    /// Range TLB invalidation (IDR3.RIL).
    ril = 3[10],
    /// Device permission tables, and with them DPTI_* (IDR3.DPT).
    dpt = 3[15],
    /// Granules of 4 KiB (IDR5.GRAN4K).
    gran4k = 5[4],
    /// Granules of 16 KiB (IDR5.GRAN16K).
    gran16k = 5[5],
    /// Granules of 64 KiB (IDR5.GRAN64K).
    gran64k = 5[6],
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
    /// A size is outside what the architecture allows, or Linux takes.
    #[error("{field} is {value}, must be within {least} to {most}: {why}")]
    Size {
        /// The field of an ID register.
        field: &'static str,
        /// What it was.
        value: u8,
        /// The least that it may be.
        least: u8,
        /// The most that it may be.
        most: u8,
        /// What sets the bounds.
        why: &'static str,
    },
    /// A feature is there without another that it needs.
    #[error("{feature} without {needs}: {why}")]
    Needs {
        /// The feature.
        feature: &'static str,
        /// What is missing.
        needs: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
}

/// A field of an ID register that is more for the guest than the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
#[error("the guest is shown {field}={guest}, the host has {host}")]
pub struct BeyondHost {
    /// The field.
    pub field: &'static str,
    /// What the guest is shown; for S1P at least 1, since TLBI_NSNH_ALL takes a host with stage 1.
    pub guest: u8,
    /// What the host has.
    pub host: u8,
}

macro_rules! of_host {
    ($($field:literal = $name:ident,)*) => {
        impl Features {
            /// What the guest is shown beside what the host has; 1 stands for a feature that is there.
            fn beside_host(&self, host: &Self) -> impl Iterator<Item = BeyondHost> {
                [$(BeyondHost { field: $field, guest: self.$name.into(), host: host.$name.into() },)*].into_iter()
            }

            /// These features without what [`Self::check_host`] would refuse, for a VMM that shows a guest as much as the host allows.
            pub fn limited_to(self, host: &Self) -> Self {
                Self { $($name: self.$name.min(host.$name),)* ..self }
            }
        }
    };
}

// Besides stage 1, what the host must have as well if it is shown to a guest: what the host's SMMU does with the guest's tables and commands,
// which nobody can do in its place.
of_host! {
    "HTTU" = httu,
    "ASID16" = asid16,
    "CD2L" = cd2l,
    "ST_LEVEL" = st2l,
    "SIDSIZE" = sid_bits,
    "SSIDSIZE" = ssid_bits,
    "OAS" = oas,
    "GRAN4K" = gran4k,
    "GRAN16K" = gran16k,
    "GRAN64K" = gran64k,
    "DS" = ds,
    "D128" = d128,
}

impl Default for Features {
    fn default() -> Self {
        Self::linux()
    }
}

impl Features {
    /// What Linux makes the most of in a virtual SMMU: stage 1, coherent, MSIs, range invalidation, 16-bit ASIDs, queues of
    /// up to 32,768 commands; no ATS, no ECMDQs.
    pub const fn linux() -> Self {
        Self { coherent: true, msi: true, ril: true, asid16: true, cmdqs: 15, ..Self::minimal() }
    }

    /// The least that suits every Linux: stage 1 with granules of 4 and 64 KiB, two-level tables, a command queue of 128 entries,
    /// completion by CONS.
    pub const fn minimal() -> Self {
        Self { s1p: true, cd2l: true, st2l: true, gran4k: true, gran64k: true, ..Self::none() }
    }

    /// Everything that the engine knows and that does no guest harm, with 256 ECMDQs on one control page.
    pub const fn everything() -> Self {
        Self {
            s2p: true,
            ats: true,
            pri: true,
            vmid16: true,
            ecmdq: true,
            mpam: true,
            dpt: true,
            gran16k: true,
            ds: true,
            d128: true,
            httu: 2,
            stall: StallModel::Supported,
            cmdqs: 19,
            eventqs: 19,
            priqs: 19,
            sid_bits: 32,
            ssid_bits: 20,
            oas: 6,
            page_queues_log2: 8,
            ..Self::linux()
        }
    }

    /// With 2^`pages_log2` control pages of 2^`queues_log2` ECMDQs each.
    pub const fn with_ecmdqs(self, pages_log2: u8, queues_log2: u8) -> Self {
        Self { ecmdq: true, control_pages_log2: pages_log2, page_queues_log2: queues_log2, ..self }
    }

    /// Checks that a host with the features `host` can be behind a guest that is shown these: nothing of the guest's is more than the
    /// host's. Range invalidation and ATS may be shown without the host having them.
    ///
    /// # Errors
    ///
    /// The first field that is more than the host has. A host needs stage 1 always.
    pub fn check_host(&self, host: &Self) -> Result<(), BeyondHost> {
        // TLBI_NSNH_ALL is never illegal for a guest, and goes to the host as TLBI_NH_ALL.
        let stage_1 = BeyondHost { field: "S1P", guest: 1, host: host.s1p.into() };
        let mut fields = iter::once(stage_1).chain(self.beside_host(host));
        fields.find(|field| field.guest > field.host).map_or(Ok(()), Err)
    }

    /// Checks that a virtual SMMU can have these features (facts sheet, section 2.1).
    ///
    /// # Errors
    ///
    /// The first impossible one, and why it is.
    pub fn check(&self) -> Result<(), FeaturesError> {
        const ARCHITECTURE: &str = "the architecture's bounds";
        for (field, value, least, most, why) in [
            (
                "CMDQS",
                self.cmdqs,
                7,
                19,
                "Linux refuses queues of up to 64 entries, the architecture ends at 2^19",
            ),
            ("EVENTQS", self.eventqs, 0, 19, ARCHITECTURE),
            ("PRIQS", self.priqs, 0, 19, ARCHITECTURE),
            ("SIDSIZE", self.sid_bits, 0, 32, ARCHITECTURE),
            ("SSIDSIZE", self.ssid_bits, 0, 20, ARCHITECTURE),
            ("OAS", self.oas, 0, 7, "its encodings"),
            ("HTTU", self.httu, 0, 2, "its encodings"),
            ("LOG2NUMP", self.control_pages_log2, 0, 8, "256 control pages are the most"),
            ("LOG2NUMQ", self.page_queues_log2, 0, 8, "a control page holds 256 queues at most"),
        ] {
            if !(least..=most).contains(&value) {
                return Err(FeaturesError::Size { field, value, least, most, why });
            }
        }
        let any_granule = self.gran4k || self.gran16k || self.gran64k;
        for (feature, has, needs, there, why) in [
            ("an SMMU", true, "stage 1 or stage 2", self.s1p || self.s2p, "it translates nothing"),
            ("an SMMU", true, "GRAN4K, GRAN16K or GRAN64K", any_granule, "no table can be walked"),
            (
                "ECMDQ",
                self.ecmdq,
                "COHACC",
                self.coherent,
                "its control pages and queues are coherent memory",
            ),
            ("ECMDQ", self.ecmdq, "MSI", self.msi, "a CMD_SYNC of each queue signals by an MSI of its own"),
            (
                "ECMDQ",
                self.ecmdq,
                "SEV=0",
                !self.sev,
                "a guest would wait for events, which its queues do not send",
            ),
            (
                "ECMDQ",
                self.ecmdq,
                "Hyp=0",
                !self.hyp,
                "a guest at EL2 would send what only the VMM can execute",
            ),
            ("Hyp", self.hyp, "S1P", self.s1p, "EL2 contexts are stage 1"),
            ("ASID16", self.asid16, "S1P", self.s1p, "ASIDs belong to stage 1"),
            ("SSIDSIZE above 0", self.ssid_bits > 0, "S1P", self.s1p, "SubstreamIDs select stage 1 contexts"),
            ("VMID16", self.vmid16, "S2P", self.s2p, "VMIDs belong to stage 2"),
            ("PRI", self.pri, "ATS", self.ats, "page requests are part of ATS"),
            ("PRIQS above 0", self.priqs > 0, "PRI", self.pri, "the queue is of page requests"),
            ("DPT", self.dpt, "ATS", self.ats, "it checks what ATS translated"),
            ("DS", self.ds, "RIL", self.ril, "its SCALE field is that of range invalidation"),
            ("D128", self.d128, "RIL", self.ril, "TTL128 is a field of range invalidation"),
        ] {
            if has && !there {
                return Err(FeaturesError::Needs { feature, needs, why });
            }
        }
        Ok(())
    }

    /// The value of AIDR: the oldest version of the architecture that has all of these features.
    pub(crate) fn aidr(&self) -> u32 {
        match self {
            Self { d128: true, .. } => 0x04,
            Self { ecmdq: true, .. } | Self { dpt: true, .. } | Self { ds: true, .. } => 0x03,
            Self { ril: true, .. } | Self { mpam: true, .. } => 0x02,
            _ => 0x01,
        }
    }

    /// The value of IDR6.
    pub(crate) fn idr6(&self) -> u32 {
        if !self.ecmdq {
            return 0;
        }
        u32::from(self.page_queues_log2) << 16 | u32::from(self.control_pages_log2) << 24
    }

    /// The number of ECMDQs.
    pub(crate) fn ecmdqs(&self) -> usize {
        if self.ecmdq { 1 << (self.control_pages_log2 + self.page_queues_log2) } else { 0 }
    }

    /// The number of control pages.
    pub(crate) fn control_pages(&self) -> usize {
        if self.ecmdq { 1 << self.control_pages_log2 } else { 0 }
    }

    /// The largest command queue.
    pub(crate) fn queue_cap(&self) -> QueueSize {
        QueueSize::capped(u32::from(self.cmdqs), QueueSize::MAX)
    }

    /// The bits that an address can have.
    pub(crate) fn address_mask(&self) -> u64 {
        const BITS: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];
        (1 << BITS[usize::from(self.oas & 7)]) - 1
    }
}
