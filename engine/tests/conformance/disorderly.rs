//! A queue whose tickets tell the truth, and which executes everything at once that it has: a group for all that is there, whatever
//! synchronisations are between.

use std::mem;

use ecmdq_engine::Command;
use ecmdq_engine::host::{HostQueue, Ticket};

use super::subject::{Device, Subject};

#[derive(Default)]
pub struct Disorderly {
    waiting: Vec<Command>,
    executed: Vec<Command>,
    groups: Vec<Vec<Command>>,
    /// For each ticket how many commands it covers.
    tickets: Vec<usize>,
}

impl HostQueue for Disorderly {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.waiting.extend_from_slice(commands);
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        let submitted = self.executed.len() + self.waiting.len();
        if self.tickets.last().copied().unwrap_or(0) < submitted {
            self.tickets.push(submitted);
        }
        Ticket(self.tickets.len() as u64)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.tickets.partition_point(|covered| *covered <= self.executed.len()) as u64)
    }
}

impl Subject for Disorderly {
    fn queue(&mut self) -> &mut dyn HostQueue {
        self
    }

    fn capacity(&self) -> usize {
        usize::MAX
    }

    fn set_device(&mut self, device: Device) {
        assert_eq!(device, Device::Fine, "it cannot fail");
    }

    fn work(&mut self) {
        let group = mem::take(&mut self.waiting);
        self.executed.extend_from_slice(&group);
        self.groups.push(group);
    }

    fn executed(&self) -> &[Command] {
        &self.executed
    }

    fn groups(&self) -> Vec<Vec<Command>> {
        self.groups.clone()
    }
}
