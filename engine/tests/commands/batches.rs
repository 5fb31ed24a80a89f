//! A batch is its commands one by one, whatever the room.

use ecmdq_engine::Command;
use ecmdq_engine::rules::{End, MAX_EXPANSION};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

const UNTOUCHED: Command = Command([0xdead_beef_dead_beef; 2]);

/// What became of a batch, by whatever number of calls.
#[derive(Debug, PartialEq, Eq)]
struct Total {
    host: Vec<Command>,
    taken: usize,
    dropped: usize,
    widened: usize,
    end: End,
}

impl Total {
    const NOTHING: Self = Self { host: Vec::new(), taken: 0, dropped: 0, widened: 0, end: End::Batch };

    fn of(alone: Alone) -> Self {
        let mut total = Self::NOTHING;
        total.add(alone);
        total
    }

    fn add(&mut self, more: Alone) {
        self.host.extend(more.host);
        self.taken += more.taken;
        self.dropped += more.dropped;
        self.widened += more.widened;
        self.end = more.end;
    }

    fn goes_on(&self, batch: &[Command]) -> bool {
        self.end == End::Batch && self.taken < batch.len()
    }
}

fn one_by_one(engine: &Engine, batch: &[Command]) -> Total {
    let mut total = Total::NOTHING;
    while total.goes_on(batch) {
        total.add(engine.alone(batch[total.taken]));
    }
    total
}

/// One call with this much room for what is behind `taken`.
fn call(engine: &Engine, batch: &[Command], room: usize) -> Alone {
    let mut to = vec![UNTOUCHED; room];
    let applied = engine.rules.apply(&engine.streams, batch, &mut to);
    let rest = to.split_off(applied.host);
    assert_eq!(applied.cost, cost(&to));
    assert!(rest.iter().all(|command| *command == UNTOUCHED), "nothing is written behind what is said");
    let stopped_early = applied.end == End::Batch && applied.taken < batch.len();
    if stopped_early {
        let next = engine.alone(batch[applied.taken]).host.len();
        assert!(next > rest.len(), "stopped with room {} for {next}", rest.len());
    }
    let (taken, dropped, widened) = (applied.taken, applied.dropped, applied.widened);
    Alone { host: to, taken, dropped, widened, end: applied.end }
}

/// Calls with these rooms, over and over, and enough room in between.
fn in_rooms(engine: &Engine, batch: &[Command], rooms: &[usize]) -> Total {
    let mut total = Total::NOTHING;
    let mut rooms = rooms.iter().copied().chain([MAX_EXPANSION]).cycle();
    while total.goes_on(batch) {
        total.add(call(engine, &batch[total.taken..], rooms.next().unwrap()));
    }
    total
}

fn commands(words: impl IntoIterator<Item = [u64; 2]>) -> Vec<Command> {
    words.into_iter().map(Command).collect()
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn runs_are_their_commands_one_by_one(
        (guest, host) in host_for(guest()),
        runs in vec(run(), 1..4),
        rooms in vec(0..=150usize, 0..3),
    ) {
        let engine = Engine::on_host(guest, host);
        let batch = commands(runs.concat());
        let expected = one_by_one(&engine, &batch);
        let plenty = MAX_EXPANSION * batch.len();
        prop_assert_eq!(&Total::of(call(&engine, &batch, plenty)), &expected);
        prop_assert_eq!(&in_rooms(&engine, &batch, &rooms), &expected);
    }

    #[test]
    fn mixed_commands_are_themselves_one_by_one(
        (guest, host) in host_for(guest()),
        batch in vec(command(), 0..64).prop_map(commands),
        rooms in vec(0..=80usize, 0..3),
    ) {
        let engine = Engine::on_host(guest, host);
        prop_assert_eq!(in_rooms(&engine, &batch, &rooms), one_by_one(&engine, &batch));
    }

    /// The oracle, not the engine, on what the commands of a run are.
    #[test]
    fn runs_are_what_the_oracle_says(guest in guest(), run in run()) {
        let engine = Engine::new(guest);
        let fates = run.iter().map(|command| oracle(guest, *command));
        let passing = |fate: &Fate| matches!(fate, Fate::Host(_) | Fate::Dropped | Fate::Nowhere);
        let passed: Vec<_> = fates.take_while(passing).collect();
        let host = passed.iter().filter_map(|fate| match fate {
            Fate::Host(words) => Some(*words),
            _ => None,
        });
        let got = call(&engine, &commands(run.iter().copied()), run.len());
        prop_assert_eq!(got.host, commands(host));
        prop_assert_eq!(got.dropped, passed.iter().filter(|fate| **fate == Fate::Dropped).count());
        let last_taken = matches!(got.end, End::Sync(_) | End::Request(_));
        prop_assert_eq!(got.taken, passed.len() + usize::from(last_taken));
        let last = run.get(passed.len()).map(|command| oracle(guest, *command));
        prop_assert_eq!(last, ended(got.end));
    }
}

fn ended(end: End) -> Option<Fate> {
    match end {
        End::Batch => None,
        End::Sync(signal) => Some(Fate::Sync(signal)),
        End::Request(request) => Some(Fate::Request(request)),
        End::Illegal(_) => Some(Fate::Ill),
    }
}

#[test]
fn a_batch_says_what_it_costs_the_host() {
    let engine = Engine::new(On::ALL);
    let [va, asid, all, sync] = [[0x12, 0x1001], [0x11, 0], [0x10, 0], [0x46, 0]];
    let dear = [va, asid, all];
    // Up to seven and a CMD_SYNC; a run; one by one; what does not go to the host.
    for (batch, cost) in [
        ([&dear[..], &[sync]].concat(), 21),
        (vec![asid; 64], 256),
        (dear.repeat(20), 420),
        (vec![sync], 0),
        (vec![], 0),
    ] {
        let applied = engine.rules.apply(&engine.streams, &commands(batch), &mut [Command::default(); 128]);
        assert_eq!(applied.cost, cost, "{applied:?}");
    }
}
