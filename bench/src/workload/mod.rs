//! What guests do, described in a few lines of TOML: so much of this, so much of that, at such a pace.
//!
//! ```toml
//! about = "16K unmaps, with ranges"
//! seed = 1
//! guests = 2
//! vcpus = 2
//! pace = { mean_ns = 5000, spread = "exponential" }
//!
//! [[action]]
//! do = "unmap"
//! pages = 4
//! ranges = true
//! ```
//!
//! | `do` | What it sends | With |
//! |---|---|---|
//! | `unmap` | TLBI_NH_VA for a mapping, CMD_SYNC | `pages`; their `size`: `4K`, `64K` or `2M`; `ranges` |
//! | `ats` | the same, then ATC_INV, CMD_SYNC | as `unmap` |
//! | `flush` | TLBI_NH_ASID, CMD_SYNC: what many lazy unmaps come to | `all`: TLBI_NH_ALL |
//! | `sva` | ranges for one of several ASIDs, CMD_SYNC, ATC_INV for its SubstreamID, CMD_SYNC | `most_pages` |
//! | `config` | CFGI_CD, CMD_SYNC, TLBI_NH_ASID, CMD_SYNC | |
//! | `attach` | CFGI_STE, CMD_SYNC, ATC_INV of all addresses, CMD_SYNC | |
//! | `replay` | the next group of a recorded stream | `trace`: its name in this repository, or a file beside the description |
//!
//! Each has a `weight`, 1 if none is given. The same description gives the same commands, always.

mod action;
mod pace;

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use thiserror::Error;

use crate::driver::Sync;
use crate::session::QueueKind;
use crate::trace::TraceError;
use crate::traffic::Traffic;
use action::Action;
pub(crate) use pace::Clock;
pub use pace::{Burst, Pace, Spread};

/// Groups that are made for each vCPU; they are sent over and over.
const GROUPS: usize = 2048;

/// What guests do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// In a sentence.
    pub about: String,
    /// Of all that is random.
    pub seed: u64,
    /// How many guests.
    #[serde(default = "one")]
    pub guests: u16,
    /// How many of them are hostile: they flood their queues, without a CMD_SYNC, with illegal commands, and with nonsense as PROD.
    #[serde(default)]
    pub hostile: u16,
    /// vCPUs of each.
    #[serde(default = "one")]
    pub vcpus: u16,
    /// The CMDQ, which all vCPUs of a guest share, or an ECMDQ for each.
    #[serde(default)]
    pub queue: QueueKind,
    /// log2 of the entries of each queue.
    #[serde(default = "log2")]
    pub queue_log2: u32,
    /// How CMD_SYNCs are waited for, if the recorded stream does not say.
    #[serde(default)]
    pub sync: Sync,
    /// When the next group begins; without it, when the last one has completed.
    pub pace: Option<Pace>,
    /// What is done.
    action: Vec<Weighted>,
}

fn one() -> u16 {
    1
}

fn log2() -> u32 {
    8
}

#[derive(Clone, Debug, Deserialize)]
struct Weighted {
    /// How often, relative to the others.
    #[serde(default = "one")]
    weight: u16,
    #[serde(flatten)]
    action: Action,
}

/// Why there is no workload.
#[derive(Debug, Error)]
pub enum WorkloadError {
    /// It is neither a name that is known nor a file.
    #[error("{0}: {1} (known by name: {names})", names = NAMED.map(|(name, _)| name).join(", "))]
    Read(String, io::Error),
    /// It is no description.
    #[error("{0}: {message}", message = .1.message())]
    Toml(String, toml::de::Error),
    /// A recorded stream that it names cannot be had.
    #[error("{0}: {1}")]
    Trace(String, TraceError),
    /// It describes what cannot be.
    #[error("{0}: {1}")]
    Impossible(String, &'static str),
}

macro_rules! named {
    ($($name:literal)*) => {
        /// The workloads that are known by name, and their descriptions.
        pub const NAMED: [(&str, &str); [$($name),*].len()] =
            [$(($name, include_str!(concat!("../../workloads/", $name, ".toml")))),*];
    };
}

named! { "strict-4k" "strict-64k" "mixed" "lazy" "sva" "ats" "config" "bursts" "crowded" "recorded" "flood" }

impl Workload {
    /// One of the [`NAMED`], or one that a file describes.
    ///
    /// # Errors
    ///
    /// [`WorkloadError`].
    pub fn open(name: &str) -> Result<Self, WorkloadError> {
        match NAMED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(name, text),
            None => {
                let text = fs::read_to_string(Path::new(name));
                Self::parse(name, &text.map_err(|e| WorkloadError::Read(name.into(), e))?)
            }
        }
    }

    /// One that is described by `text`; files that it names are beside `name`, which errors say.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Toml`], [`WorkloadError::Trace`], [`WorkloadError::Impossible`].
    pub fn parse(name: &str, text: &str) -> Result<Self, WorkloadError> {
        let mut workload: Self = toml::from_str(text).map_err(|e| WorkloadError::Toml(name.into(), e))?;
        for Weighted { action, .. } in &mut workload.action {
            action.load(Path::new(name)).map_err(|e| WorkloadError::Trace(name.into(), e))?;
        }
        let fail = |why| Err(WorkloadError::Impossible(name.into(), why));
        match () {
            () if workload.guests == 0 || workload.vcpus == 0 => fail("guests and vcpus must not be 0"),
            () if workload.guests > 256 || workload.vcpus > 256 => {
                fail("256 guests and 256 vcpus are the most")
            }
            () if u32::from(workload.guests) * u32::from(workload.vcpus) > 1024 => {
                fail("more than 1024 vcpus in all, with a thread each")
            }
            () if workload.hostile >= workload.guests => fail("a guest at least must not be hostile"),
            () if workload.action.iter().all(|action| action.weight == 0) => fail("there is no action"),
            () if !(7..=19).contains(&workload.queue_log2) => fail("queue_log2 must be within 7 to 19"),
            () => match workload.action.iter().find_map(|weighted| weighted.action.problem()) {
                Some(why) => fail(why),
                None => Ok(workload),
            },
        }
    }

    /// What a vCPU sends.
    pub fn traffic(&self, vcpu: u16) -> Traffic {
        let mut random = self.random(vcpu);
        let all: u32 = self.action.iter().map(|action| u32::from(action.weight)).sum();
        let (mut groups, mut done) = (Vec::new(), vec![0; self.action.len()]);
        while groups.len() < GROUPS {
            let mut pick = random.random_range(0..all);
            let picked = self.action.iter().position(|Weighted { weight, .. }| {
                let rest = pick.checked_sub((*weight).into());
                pick = rest.unwrap_or(pick);
                rest.is_none()
            });
            if let Some(i) = picked {
                groups.extend(self.action[i].action.groups(done[i], &mut random, self.sync));
                done[i] += 1;
            }
        }
        let streams: BTreeSet<_> = self.action.iter().flat_map(|action| action.action.streams()).collect();
        Traffic { groups, streams: streams.into_iter().copied().collect() }
    }

    /// What is random about a vCPU, its pace included.
    pub(crate) fn random(&self, vcpu: u16) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.seed << 16 | u64::from(vcpu))
    }
}

#[cfg(test)]
mod tests {
    use ecmdq_engine::rules::{End, MAX_EXPANSION, Rules};
    use ecmdq_engine::{Command, Features, HostStreamId, Opcode, StreamMap, Vmid};

    use super::*;

    #[test]
    fn what_is_known_by_name_is_legal_and_the_same_each_time() {
        let mut features = Features::default();
        (features.ats, features.ssid_bits) = (true, 20);
        let rules = Rules::new(&features, &features, Vmid(1), &[]).expect("the host has what the guest has");
        for (name, text) in NAMED {
            let workload = Workload::parse(name, text).unwrap_or_else(|e| panic!("{e}"));
            let traffic = workload.traffic(0);
            let streams = traffic.streams.iter().map(|stream| (*stream, HostStreamId(stream.0)));
            let streams = StreamMap::from_pairs(streams).expect("some streams");
            assert!(traffic == workload.traffic(0) && traffic.groups.len() >= GROUPS, "{name}");
            assert_ne!(traffic, workload.traffic(1), "{name}: another vCPU, other commands");
            for command in traffic.groups.iter().flat_map(|group| &group.commands) {
                assert_ne!(command.opcode(), Opcode::CMD_SYNC, "{name}");
                let applied = rules.apply(&streams, &[*command], &mut [Command::default(); MAX_EXPANSION]);
                assert!(!matches!(applied.end, End::Illegal(_)), "{name}: {command}");
            }
        }
    }

    /// The first groups of a workload's vCPU 0.
    fn commands(workload: Result<Workload, WorkloadError>, groups: usize) -> Vec<Vec<[u64; 2]>> {
        let traffic = workload.unwrap_or_else(|e| panic!("{e}")).traffic(0);
        let words = |group: &crate::Group| group.commands.iter().map(|command| command.0).collect();
        traffic.groups[..groups].iter().map(words).collect()
    }

    fn of(actions: &str, groups: usize) -> Vec<Vec<[u64; 2]>> {
        commands(Workload::parse("test", &format!("about = \"\"\nseed = 7\n{actions}")), groups)
    }

    #[test]
    fn a_seed_stands_for_these_commands() {
        let strict = [0x8_42c3_d701, 0xc_01c4_2701, 0x4_7679_b701, 0x8_fee6_2701];
        let strict = strict.map(|address| vec![[0x0001_0000_0000_0012, address]]);
        assert_eq!(commands(Workload::open("strict-4k"), 4), strict);
        // 27 + 1 * 2^5 pages for ASID 5, the ATC's 2^6 for SubstreamID 4; 27 + 11 * 2^5 for ASID 6, 2^9 for SubstreamID 5.
        let sva = [
            vec![[0x0005_0000_0001_a012, 0x5_c048_0400], [0x0005_0000_0050_0012, 0x5_c049_b400]],
            vec![[0x0000_0042_0000_4840, 0x5_c048_0006]],
            vec![[0x0006_0000_0001_a012, 0x3_dc00_0400], [0x0006_0000_0050_a012, 0x3_dc01_b400]],
            vec![[0x0000_0042_0000_5840, 0x3_dc00_0009]],
        ];
        assert_eq!(commands(Workload::open("sva"), 4), sva);
        let follows = |group: &crate::Group| group.follows;
        let sva = Workload::open("sva").unwrap_or_else(|e| panic!("{e}")).traffic(0);
        assert_eq!(sva.groups[..4].iter().map(follows).collect::<Vec<_>>(), [false, true, false, true]);
    }

    #[test]
    fn a_mapping_may_have_larger_pages() {
        // 2M blocks are at level 2; their ranges count in pages of 4K: 2^9 with TG=4K, TTL=2.
        let groups = of("[[action]]\ndo = \"unmap\"\npages = 1\nsize = \"2M\"\nranges = true", 1);
        let [[low, address]] = groups[0][..] else { panic!("{groups:x?}") };
        assert_eq!((low, address & 0x1f_ffff), (0x0001_0000_0090_0012, 0x601));
        let groups = of("[[action]]\ndo = \"unmap\"\npages = 2\nsize = \"64K\"\nranges = true", 1);
        let [[low, address]] = groups[0][..] else { panic!("{groups:x?}") };
        assert_eq!((low, address & 0x1_ffff), (0x0001_0000_0010_0012, 0xf01));
        let groups = of("[[action]]\ndo = \"unmap\"\npages = 2\nsize = \"2M\"", 1);
        let [[_, a], [_, b]] = groups[0][..] else { panic!("{groups:x?}") };
        assert_eq!((a & 0x3f_ffff, b - a), (1, 0x20_0000));
    }

    #[test]
    fn one_page_of_a_process_is_two() {
        let groups = of("[[action]]\ndo = \"sva\"\nmost_pages = 1", 1);
        let [[low, address]] = groups[0][..] else { panic!("{groups:x?}") };
        // NUM 0, SCALE 1; TG=4K without TTL and Leaf.
        assert_eq!((low & 0xffff_ffff, address & 0xfff), (0x0010_0012, 0x400));
    }

    #[test]
    fn a_recorded_stream_keeps_its_batches() {
        let groups = of("[[action]]\ndo = \"replay\"\ntrace = \"sev-noril-64k\"", 20);
        let sizes: Vec<_> = groups.iter().map(Vec::len).collect();
        // The driver's start, and what a first unmap comes behind.
        assert_eq!(sizes, [1, 1, 1, 1, 1, 1, 1, 17, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn an_unmap_without_ranges_is_a_command_a_page() {
        let groups = of("[[action]]\ndo = \"unmap\"\npages = 3", 1);
        let [[low, a], [_, b], [_, c]] = groups[0][..] else { panic!("{groups:x?}") };
        // TLBI_NH_VA, ASID 1; Leaf; pages that follow each other.
        assert_eq!(low, 0x0001_0000_0000_0012);
        assert_eq!((a & 0xfff, b - a, c - a), (1, 0x1000, 0x2000));
    }

    #[test]
    fn an_unmap_with_ranges_is_what_linux_makes_of_it() {
        let groups = of("[[action]]\ndo = \"unmap\"\npages = 77\nranges = true", 1);
        // 77 = 13 + 2 * 2^5: NUM is 12 with SCALE 0, then 1 with SCALE 6; TG=4K, TTL=3, Leaf.
        let [[a, first], [b, second]] = groups[0][..] else { panic!("{groups:x?}") };
        assert_eq!((a, b), (0x0001_0000_0000_c012, 0x0001_0000_0060_0012));
        assert_eq!((first & 0xfff, second - first), (0x701, 13 << 12));
    }

    #[test]
    fn an_atc_invalidation_comes_behind_the_cmd_sync_of_its_tlbi() {
        let groups = of("[[action]]\ndo = \"ats\"\npages = 4\nranges = true", 2);
        let ([[tlbi, address]], [[atc, size]]) = (&groups[0][..], &groups[1][..]) else {
            panic!("{groups:x?}")
        };
        // NUM 0, SCALE 2; four pages are 4096 << 2 bytes.
        assert_eq!((*tlbi, *atc), (0x0001_0000_0020_0012, 0x0000_0042_0000_0040));
        assert_eq!((address & !0xfff | 2, address & 0xfff), (*size, 0x701));
    }

    #[test]
    fn what_cannot_be_is_said_in_a_line() {
        for (text, why) in [
            ("guests = 0\n[[action]]\ndo = \"flush\"", "guests and vcpus must not be 0"),
            ("hostile = 1\n[[action]]\ndo = \"flush\"", "a guest at least must not be hostile"),
            ("[[action]]\ndo = \"flush\"\nweight = 0", "there is no action"),
            ("[[action]]\ndo = \"unmap\"\npages = 0", "pages must be within 1 to 512"),
            ("[[action]]\ndo = \"replay\"\ntrace = \"none\"", "No such file or directory"),
            ("[[action]]\ndo = \"dance\"", "unknown variant `dance`"),
            ("[[action]]\ndo = \"config\"\npages = 1", "unknown field `pages`"),
            ("[[action]]\ndo = \"unmap\"\npages = 1\nsteps = 2", "unknown field `steps`"),
            ("guests = 5\nvcpus = 256\n[[action]]\ndo = \"flush\"", "more than 1024 vcpus in all"),
        ] {
            let error =
                Workload::parse("x.toml", &format!("about = \"\"\nseed = 1\n{text}")).expect_err(text);
            let error = error.to_string();
            assert!(error.contains(why) && !error.contains('\n'), "{error}");
        }
    }
}
