//! The registers that are not a queue's own: enabling, acknowledging, errors, interrupts.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use vm_memory::GuestAddress;

use super::calls::Call;
use super::queue::Control;
use super::state::State;
use crate::command::CommandError;
use crate::events::EventKind;
use crate::registers::*;
use crate::rules::Request;
use crate::token::Outcome;

impl State {
    /// Looks at the registers that the guest writes. Says whether anything had changed.
    pub(super) fn follow_registers(&mut self) -> bool {
        let frame = &self.pages.frame;
        // Acquire: pairs with the guest's barrier before each register write, or with the trap's release store, so that
        // what it wrote earlier (BASE before CR0, a mended entry before GERRORN) is seen.
        let cr0 = frame.load_u32(CR0, Acquire) & self.cr0_bits;
        let irq_ctrl = frame.load_u32(IRQ_CTRL, Acquire) & self.irq_ctrl_bits;
        let gerrorn = frame.load_u32(GERRORN, Acquire);
        let gbpa = frame.load_u32(GBPA, Acquire);
        let mut changed = false;
        if cr0 != self.cr0ack || self.smmuen_pending.is_some() || self.smmuen_untold {
            changed |= self.follow_cr0(cr0);
        }
        if irq_ctrl != self.irq_ctrl {
            self.irq_ctrl = irq_ctrl;
            self.pages.frame.store_u32(IRQ_CTRLACK, irq_ctrl, Release);
            changed = true;
        }
        changed |= self.interrupt_outputs();
        if gerrorn != self.errors.acknowledged() {
            if self.errors.follow(gerrorn) & GERROR_CMDQ_ERR != 0 {
                self.queues[0].resume(&*self.ram);
            }
            changed = true;
        }
        let untold = std::mem::take(&mut self.gbpa_untold);
        if gbpa & GBPA_UPDATE != 0 || self.gbpa_pending.is_some() || untold {
            changed |= self.follow_gbpa(gbpa);
        }
        changed
    }

    fn follow_cr0(&mut self, cr0: u32) -> bool {
        let before = self.cr0ack;
        let changed = (cr0 ^ before) & !CR0_SMMUEN;
        if changed & CR0_CMDQEN != 0 {
            if cr0 & CR0_CMDQEN != 0 {
                self.queues[0].enable(&self.features, &*self.ram);
            } else {
                self.disable(0);
            }
        }
        let smmuen = self.follow_smmuen(cr0 & CR0_SMMUEN);
        self.cr0ack = cr0 & !CR0_SMMUEN | smmuen;
        if self.cr0ack != before {
            // Release: CONS is final before the guest sees the queue disabled.
            self.pages.frame.store_u32(CR0ACK, self.cr0ack, Release);
        }
        self.cr0ack != before
    }

    /// SMMUEN takes effect when the VMM has followed it. Returns the value that is in effect.
    fn follow_smmuen(&mut self, wanted: u32) -> u32 {
        let (before, token) = (self.cr0ack & CR0_SMMUEN, self.queues.len());
        if self.smmuen_pending.is_none() {
            // A VMM that took over a saved state follows what the guest sees to be in effect already.
            let untold = std::mem::take(&mut self.smmuen_untold) && wanted != 0;
            if wanted == before && !untold {
                return before;
            }
            self.smmuen_pending = Some(wanted);
            let request =
                if wanted != 0 { Request::Enable(self.pages.stream_table()) } else { Request::Disable };
            self.ask(request, token);
        }
        let (Some(outcome), Some(value)) = (self.tokens.outcome(token), self.smmuen_pending) else {
            return before;
        };
        self.smmuen_pending = None;
        self.check_register_request(outcome);
        self.rules.set_smmu_enabled(value != 0);
        value
    }

    fn follow_gbpa(&mut self, gbpa: u32) -> bool {
        let (before, token) = (self.gbpa_pending, self.queues.len() + 1);
        let value = before.unwrap_or(gbpa);
        if before.is_none() {
            self.gbpa_pending = Some(value);
            self.ask(Request::UpdateGbpa(value & !GBPA_UPDATE), token);
        }
        let Some(outcome) = self.tokens.outcome(token) else { return before.is_none() };
        self.gbpa_pending = None;
        self.check_register_request(outcome);
        // What a saved state brought was no update; the guest may have begun one since, which is followed next.
        if value & GBPA_UPDATE != 0 {
            self.pages.frame.store_u32(GBPA, value & !GBPA_UPDATE, Release);
        }
        true
    }

    fn ask(&mut self, request: Request, token: usize) {
        self.counters.requests.add(1);
        let token = self.tokens.issue(token);
        self.call(Call::Request(request, token));
    }

    /// A register write cannot fail, and its handshake must end: that the VMM cannot follow it is a service failure.
    fn check_register_request(&mut self, outcome: Outcome) {
        if outcome != Outcome::Completed {
            self.counters.requests_failed.add(1);
            self.emit(EventKind::RequestFailed);
            self.raise(GERROR_SFM_ERR);
        }
    }

    /// Stops a queue at its command at CONS, and tells of it.
    pub(super) fn stop(&mut self, number: usize, error: CommandError) {
        self.emit(EventKind::QueueStopped { queue: number, error });
        self.stop_silently(number, error);
    }

    /// The same, where the VMM has been told more.
    pub(super) fn stop_silently(&mut self, number: usize, error: CommandError) {
        let queue = &mut self.queues[number];
        queue.stop(error);
        let bit = match queue.control {
            Control::Cmdq { .. } => GERROR_CMDQ_ERR,
            Control::Ecmdq(_) => GERROR_CMDQP_ERR,
        };
        self.raise(bit);
    }

    /// Sends an MSI, to guest memory or by the VMM. `abort` is the error of there being nothing at the address.
    pub(super) fn send_msi(&mut self, address: GuestAddress, data: u32, abort: u32) {
        let address = GuestAddress(address.0 & self.features.address_mask());
        if self.ram.store_u32(address, data) {
            self.msi_sent(true, abort);
        } else {
            self.call(Call::Msi { address, data, abort });
        }
    }

    pub(super) fn msi_sent(&mut self, sent: bool, abort: u32) {
        if sent {
            self.counters.msis.add(1);
        } else {
            self.counters.msi_aborts.add(1);
            self.emit(EventKind::MsiAborted);
            self.raise(abort);
        }
    }

    /// Activates errors that are not active, and interrupts (facts sheet, section 2.4).
    pub(super) fn raise(&mut self, errors: u32) {
        let new = self.errors.raise(errors);
        if new == 0 {
            return;
        }
        // Release: what CONS says of the error was stored before, and must be seen by whoever sees the error.
        self.pages.frame.store_u32(GERROR, self.errors.raised(), Release);
        if self.irq_ctrl & IRQ_CTRL_GERROR == 0 || new == GERROR_MSI_GERROR_ABT_ERR {
            return;
        }
        self.interrupt(GERROR_IRQ_CFG0, GERROR_MSI_GERROR_ABT_ERR, Call::Gerror);
    }

    /// Interrupts by the MSI that IRQ_CFG0 and the registers behind it describe, and by wire (IHI 0070 §3.18.2).
    pub(super) fn interrupt(&mut self, irq_cfg0: usize, abort: u32, wire: Call) {
        // Relaxed: the guest does not change them while the interrupt is enabled.
        let address = self.pages.frame.load_u64(irq_cfg0, Relaxed) & MSI_ADDR;
        if self.features.msi && address != 0 {
            let data = self.pages.frame.load_u32(irq_cfg0 + 8, Relaxed);
            self.send_msi(GuestAddress(address), data, abort);
        }
        self.call(wire);
    }
}
