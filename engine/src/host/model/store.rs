//! A cache, indexed.

use std::collections::HashMap;

/// Entries by VMID or StreamID, sorted.
#[derive(Debug)]
pub(super) struct Store<T> {
    entries: HashMap<u32, Vec<T>>,
    removed: u64,
    /// What was removed, if that is recorded.
    record: Option<Vec<T>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), removed: 0, record: None }
    }
}

impl<T: Ord> Store<T> {
    /// Says whether it was not there.
    pub fn insert(&mut self, of: u32, entry: T) -> bool {
        let entries = self.entries.entry(of).or_default();
        entries.binary_search(&entry).map_err(|at| entries.insert(at, entry)).is_err()
    }

    pub fn contains(&self, of: u32, entry: &T) -> bool {
        self.entries.get(&of).is_some_and(|entries| entries.binary_search(entry).is_ok())
    }

    /// Removes what is named among the entries of one key.
    pub fn remove(&mut self, of: u32, named: impl Fn(&T) -> bool) {
        let Self { entries, removed, record } = self;
        entries.get_mut(&of).into_iter().for_each(|entries| remove(entries, &named, removed, record));
    }

    /// The same among all.
    pub fn remove_everywhere(&mut self, named: impl Fn(&T) -> bool) {
        let Self { entries, removed, record } = self;
        entries.values_mut().for_each(|entries| remove(entries, &named, removed, record));
    }

    /// How many were removed.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    /// From now on remembers what is removed.
    pub fn record(&mut self) {
        self.record.get_or_insert_default();
    }

    /// What was removed since the last call.
    pub fn take_removed(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.record.as_mut().map(std::mem::take).unwrap_or_default().into_iter()
    }
}

fn remove<T>(
    entries: &mut Vec<T>,
    named: &impl Fn(&T) -> bool,
    removed: &mut u64,
    record: &mut Option<Vec<T>>,
) {
    let before = entries.len();
    match record {
        None => entries.retain(|entry| !named(entry)),
        Some(record) => record.extend(entries.extract_if(.., |entry| named(entry))),
    }
    *removed += (before - entries.len()) as u64;
}
