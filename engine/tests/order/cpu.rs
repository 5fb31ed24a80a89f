//! A CPU of the guest: it changes its tables, and writes the sequence of invalidations that makes that known.
//!
//! The sequences are right by the architecture: an SMMU that executes one command after another, and waits at each CMD_SYNC, leaves
//! nothing that a sequence promises to be gone. For that no CPU touches what is another's, and each keeps its own order.

use std::collections::VecDeque;

use ecmdq_engine::Command;

use crate::claims::Claim;
use crate::commands::*;
use crate::common::Random;
use crate::tables::{CONTEXTS_OF_CPU, PAGES, SPACES_OF_CPU, Tables};

pub struct Cpu {
    number: usize,
    random: Random,
    /// What it has not put into the queue; behind the last CMD_SYNC of a sequence, what is true when that is complete.
    pub backlog: VecDeque<(Command, Vec<Claim>)>,
}

/// What has to be invalidated for some changes: configuration, then translations, then ATCs.
#[derive(Default)]
struct Changes {
    stages: [Vec<Command>; 3],
    claims: Vec<Claim>,
}

impl Cpu {
    pub fn new(number: usize, random: Random) -> Self {
        Self { number, random, backlog: VecDeque::new() }
    }

    /// Writes another sequence.
    pub fn write(&mut self, tables: &mut Tables) {
        if self.random.one_in(6) {
            return self.write_anything();
        }
        let (mut changes, with_atc) = (Changes::default(), !self.random.one_in(4));
        for _ in 0..self.random.of(&[1, 1, 1, 2, 3]) {
            match self.random.below(5) {
                0 | 1 => self.map(tables, &mut changes, with_atc),
                2 | 3 => self.attach(tables, &mut changes, with_atc),
                _ => self.replace(tables, &mut changes, with_atc),
            }
        }
        self.write_stages(changes);
    }

    fn space(&mut self) -> usize {
        self.number * SPACES_OF_CPU + self.random.below(SPACES_OF_CPU)
    }

    /// Pages of an address space get other translations.
    fn map(&mut self, tables: &mut Tables, changes: &mut Changes, with_atc: bool) {
        let space = self.space();
        for _ in 0..self.random.of(&[1, 1, 2, 4]) {
            let page = self.random.below(PAGES);
            let since = tables.map(space, page);
            changes.stages[1].push(match self.random.below(8) {
                0 => nh_asid(space),
                1 => nh_vaa(page),
                2 if self.random.one_in(4) => nh_all(),
                _ => nh_va(space, page),
            });
            changes.claims.push(Claim::Tlb { space, page, since });
            for context in tables.users(space).into_iter().filter(|_| with_atc) {
                let invalidation =
                    if self.random.one_in(4) { atc_inv_all(context) } else { atc_inv(context, page) };
                changes.stages[2].push(invalidation);
                changes.claims.push(Claim::AtcPage { context, space, page, since });
            }
        }
    }

    /// A context gets another address space. The one before stays what it is, and so do its translations.
    fn attach(&mut self, tables: &mut Tables, changes: &mut Changes, with_atc: bool) {
        let context = self.number * CONTEXTS_OF_CPU + self.random.below(CONTEXTS_OF_CPU);
        let since = tables.attach(context, self.space());
        changes.stages[0].push(self.configuration(context));
        changes.claims.push(Claim::Cd { context, since });
        if with_atc {
            changes.stages[2].push(self.all_of_atc(context));
            changes.claims.push(Claim::Atc { context, since });
        }
    }

    /// An address space gets another table: so its ASID is used anew, with other descriptors.
    fn replace(&mut self, tables: &mut Tables, changes: &mut Changes, with_atc: bool) {
        let space = self.space();
        let since = tables.replace(space);
        changes.stages[1].push(nh_asid(space));
        changes.claims.extend((0..PAGES).map(|page| Claim::Tlb { space, page, since }));
        for context in tables.users(space) {
            changes.stages[0].push(self.configuration(context));
            changes.claims.push(Claim::Cd { context, since });
            if with_atc {
                changes.stages[2].push(self.all_of_atc(context));
                changes.claims.push(Claim::Atc { context, since });
                let of_page = |page| Claim::AtcPage { context, space, page, since };
                changes.claims.extend((0..PAGES).map(of_page));
            }
        }
    }

    fn configuration(&mut self, context: usize) -> Command {
        if self.random.one_in(4) { cfgi_cd_all(context) } else { cfgi_cd(context) }
    }

    fn all_of_atc(&mut self, context: usize) -> Command {
        if self.random.one_in(6) { atc_inv_global(context) } else { atc_inv_all(context) }
    }

    /// Each stage with a CMD_SYNC behind it; sometimes with something of the others, which is then too early or superfluous.
    fn write_stages(&mut self, Changes { stages, claims }: Changes) {
        let mixed = self.random.one_in(3);
        for (number, stage) in stages.iter().enumerate().filter(|(_, stage)| !stage.is_empty()) {
            let mut group = stage.clone();
            for (_, other) in stages.iter().enumerate().filter(|(other, _)| mixed && *other != number) {
                group.extend(other.iter().filter(|_| self.random.one_in(2)));
            }
            self.random.shuffle(&mut group);
            self.put(&group);
            self.put(&[sync()]);
        }
        if let Some((_, promised)) = self.backlog.back_mut() {
            *promised = claims;
        }
    }

    /// Commands in any order, which promise nothing.
    fn write_anything(&mut self) {
        for _ in 0..self.random.below(8) {
            let context = self.number * CONTEXTS_OF_CPU + self.random.below(CONTEXTS_OF_CPU);
            let (space, page) = (self.space(), self.random.below(PAGES));
            let command = match self.random.below(9) {
                0 => cfgi_cd(context),
                1 => nh_asid(space),
                2 => nh_va(space, page),
                3 => atc_inv(context, page),
                4 => atc_inv_all(context),
                5 => prefetch(context),
                _ => sync(),
            };
            self.put(&[command]);
        }
    }

    fn put(&mut self, commands: &[Command]) {
        self.backlog.extend(commands.iter().map(|command| (*command, Vec::new())));
    }
}
